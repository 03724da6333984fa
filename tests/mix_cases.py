"""Models that are only names and shapes, for what each mix makes of them; and what llama.cpp makes of them, stored.

``tests/data/mixes.json`` was written by ``llama_model_quantize`` of llama.cpp (of llama-cpp-python 0.3.36): for each
case and mix the type of each kind of matrix; where layers differ, runs of them, such as ``Q6_K*2 Q4_K*14``. With a
``+`` after the name of the mix: where an importance matrix changes something.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np

STORED = Path(__file__).parent / "data" / "mixes.json"
LAYERS = 16

Case = dict[str, Any]
CASES: dict[str, Case] = {
    "plain": {},
    "shared": {"kv_heads": 1},
    "untied": {"output": True},
    "fused": {"fused": True, "output": True},
    "odd rows": {"width": 288, "output": True},
    "two experts": {"experts": 2},
    "eight experts": {"experts": 8, "kv_heads": 1, "output": True},
    "sixty experts": {"experts": 60, "shared_experts": True},
}


def tensors(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes, rows first, of a case."""
    width, experts = case.get("width", 256), case.get("experts", 0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (4, width), "output_norm.weight": (width,)}
    if case.get("output"):
        shapes["output.weight"] = (4, width)
    for i in range(LAYERS):
        kinds = ("attn_qkv", "attn_output") if case.get("fused") else ("attn_q", "attn_k", "attn_v", "attn_output")
        shapes |= {f"blk.{i}.{kind}.weight": (2, width) for kind in kinds}
        shapes[f"blk.{i}.attn_norm.weight"] = (width,)
        if experts:
            shapes[f"blk.{i}.ffn_gate_inp.weight"] = (experts, width)
        if case.get("shared_experts"):
            shapes |= {f"blk.{i}.ffn_{kind}_shexp.weight": (2, width) for kind in ("gate", "up", "down")}
        suffix, lead = ("_exps", (experts,)) if experts else ("", ())
        shapes |= {f"blk.{i}.ffn_{kind}{suffix}.weight": (*lead, 2, width) for kind in ("gate", "up", "down")}
    return shapes


def write(path: str | Path, case: Case) -> None:
    """Writes the model of a case, in F16."""
    writer = gguf.GGUFWriter(path, "qwen2moe" if case.get("shared_experts") else "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(case.get("width", 256))
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(case.get("kv_heads", 2))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(4)
    if case.get("experts"):
        writer.add_expert_count(case["experts"])
        writer.add_expert_used_count(2)
    rng = np.random.default_rng(1)
    for name, shape in tensors(case).items():
        kind = np.float32 if len(shape) == 1 or "gate_inp" in name else np.float16
        writer.add_tensor(name, rng.standard_normal(shape).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_kind(types: dict[str, str]) -> dict[str, str]:
    """Types of matrices by kind, runs of them where layers differ."""
    kinds: dict[str, list[str]] = {}
    for name, of in types.items():
        kind = name.split(".", 2)[2] if name.startswith("blk.") else name
        if "norm" not in kind:
            kinds.setdefault(kind.removesuffix(".weight"), []).append(of)
    return {kind: _runs(of) for kind, of in kinds.items()}


def _runs(types: list[str]) -> str:
    runs = [(of, len(list(same))) for of, same in groupby(types)]
    return runs[0][0] if len(runs) == 1 else " ".join(f"{of}*{n}" for of, n in runs)


def stored() -> dict[str, dict[str, dict[str, str]]]:
    """What llama.cpp makes of each case, by case, then by mix."""
    data: dict[str, dict[str, dict[str, str]]] = json.loads(STORED.read_text())
    return data
