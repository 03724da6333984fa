"""Adapters (LoRA): what they give is what the merged weights give, and nothing of them stays behind.

The models of `oracle.cases` are there as directories; the truth is the directory whose matrices have the products of
the adapter added, and what is converted from it. An adapter that PEFT wrote goes with both forms of a model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_rs import (
    Model,
    ModelChangedError,
    ModelFormatError,
    ModelNotFoundError,
    SavedSessionError,
    UnsupportedModelError,
    convert,
)
from numpy.typing import NDArray
from oracle.cases import CASES, TOKENS
from oracle.compare import deviation
from oracle.tiny import Tiny
from test_cli import bad, good, run

Array = NDArray[np.float32]
Pairs = dict[str, tuple[Array, Array]]
"""The two matrices of each module, ``(rank, columns)`` and ``(rows, rank)``."""

RANK, ALPHA = 6, 3.0


def drawn(rng: np.random.Generator, rows: int, columns: int, by: float = 1.0) -> Array:
    """Normally distributed numbers."""
    return (by * rng.standard_normal((rows, columns))).astype(np.float32)


ALSO = ["llama", "qwen2", "phi3", "gemma2", "granite", "deepseek2-kv-b", "nemotron", "starcoder2", "smollm3", "lfm2"]
"""Biases, fused matrices, norms on both sides, multipliers, latent attention, no gate, hybrids."""


def pairs_of(tiny: Tiny, seed: int = 1, only: str = "") -> Pairs:
    """An adapter of every matrix of a layer that is no expert's, whose changes show."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, tensor in tiny.hf.items():
        module = name.removesuffix(".weight")
        has_rows = tensor.ndim == 2 and ".layers." in name
        is_matrix = has_rows and not re.search(r"expert|gate\.weight|conv|moe|kv_b", name)
        if is_matrix and only in name:
            rows, columns = tensor.shape
            a = drawn(rng, RANK, columns, columns**-0.5)
            found[module] = (a, drawn(rng, rows, RANK, 1 / 4))
    assert found
    return found


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        kind = {"float32": "F32", "float16": "F16"}[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t.tobytes() for t in tensors.values()))


def write_peft(folder: Path, pairs: Pairs, **config: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_rslora": False} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_gguf_adapter(
    path: Path, arch: str, pairs: Pairs, alpha: float = ALPHA, keys: Mapping[str, str] | None = None
) -> Path:
    """As llama.cpp's converter writes it; ``pairs`` are by the names of GGUF."""
    writer = gguf.GGUFWriter(path, arch)
    for name, value in ({"general.type": "adapter", "adapter.type": "lora"} | dict(keys or {})).items():
        writer.add_string(name, value)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.weight.lora_a", a)
        writer.add_tensor(f"{name}.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merged(tiny: Tiny, changes: list[tuple[Pairs, float]], folder: Path) -> Path:
    """The directory with the products added."""
    other = tiny.changed()
    other.hf = dict(tiny.hf)
    for pairs, scale in changes:
        for module, (a, b) in pairs.items():
            other.hf[f"{module}.weight"] = (other.hf[f"{module}.weight"] + scale * (b @ a)).astype(np.float32)
    return other.write_directory(folder)


def logits(path: str | Path, lora: Any = ()) -> Array:
    with Model(path, lora=lora).session(context_length=64) as session:
        return session.logits(TOKENS)


@pytest.mark.parametrize("name", ALSO)
def test_an_adapter_gives_what_the_merged_weights_give(name: str, tmp_path: Path) -> None:
    tiny = CASES[name].make()
    pairs = pairs_of(tiny)
    base = tiny.write_directory(tmp_path / "base")
    adapter = write_peft(tmp_path / "adapter", pairs)
    whole = merged(tiny, [(pairs, ALPHA / RANK)], tmp_path / "merged")
    expected = logits(whole)
    assert deviation(logits(base), expected) > 0.1, "the adapter shows"
    assert deviation(logits(base, adapter), expected) < 2e-3
    convert(base, tmp_path / "base.gguf", output_type="f32")
    convert(whole, tmp_path / "merged.gguf", output_type="f32")
    assert deviation(logits(tmp_path / "base.gguf", adapter), logits(tmp_path / "merged.gguf")) < 2e-3


def test_an_adapter_of_gguf_goes_with_both_forms_of_a_model(tmp_path: Path) -> None:
    tiny = CASES["llama"].make()
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.down_proj": "ffn_down"}
    rng = np.random.default_rng(2)
    pairs, other = {}, tiny.changed()
    for layer in range(2):
        for theirs in names.values():
            name = f"blk.{layer}.{theirs}"
            rows, columns = tiny.tensors[f"{name}.weight"].shape
            a = drawn(rng, RANK, columns, columns**-0.5)
            b = drawn(rng, rows, RANK, 1 / 4)
            pairs[name] = (a, b)
            other.tensors[f"{name}.weight"] = other.tensors[f"{name}.weight"] + np.float32(ALPHA / RANK) * (b @ a)
    adapter = write_gguf_adapter(tmp_path / "adapter.gguf", "llama", pairs)
    expected = logits(other.write_gguf(tmp_path / "merged.gguf"))
    assert deviation(logits(tiny.write_gguf(tmp_path / "base.gguf")), expected) > 0.1
    assert deviation(logits(tmp_path / "base.gguf", adapter), expected) < 2e-3
    assert deviation(logits(tiny.write_directory(tmp_path / "base"), adapter), expected) < 2e-3
    # Without a factor there is none.
    plain = write_gguf_adapter(tmp_path / "plain.gguf", "llama", pairs, alpha=0.0)
    assert deviation(logits(tmp_path / "base.gguf", (plain, ALPHA / RANK)), expected) < 2e-3


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Path, Callable[..., Path]]:
    """A tiny llama, and what makes adapters for it."""
    folder = tmp_path_factory.mktemp("lora")
    tiny = CASES["llama"].make()
    base = tiny.write_directory(folder / "base")

    def adapter(seed: int, only: str = "", **config: Any) -> Path:
        name = f"{seed}-{only}-{len(list(folder.iterdir()))}"
        return write_peft(folder / name, pairs_of(tiny, seed, only), **config)

    return tiny, base, adapter


def test_several_adapters_add_up_each_with_its_scale(
    llama: tuple[Tiny, Path, Callable[..., Path]], tmp_path: Path
) -> None:
    tiny, base, adapter = llama
    one, two = adapter(1), adapter(2, "q_proj")
    factor = ALPHA / RANK
    changes = [(pairs_of(tiny, 1), 0.5 * factor), (pairs_of(tiny, 2, "q_proj"), -2 * factor)]
    expected = logits(merged(tiny, changes, tmp_path / "merged"))
    assert deviation(logits(base, [(one, 0.5), (two, -2)]), expected) < 2e-3
    assert deviation(logits(base, [(two, -2), (one, 0.5)]), expected) < 2e-3
    nothing = logits(base)
    assert (logits(base, [(one, 0)]) == nothing).all()
    assert (logits(base, []) == nothing).all()
    assert (logits(base, one) == logits(base, [(one, 1.0)])).all()


def test_what_a_config_says_of_factors(llama: tuple[Tiny, Path, Callable[..., Path]], tmp_path: Path) -> None:
    tiny, base, adapter = llama
    by_root = adapter(1, use_rslora=True)
    expected = logits(merged(tiny, [(pairs_of(tiny, 1), ALPHA / RANK**0.5)], tmp_path / "root"))
    assert deviation(logits(base, by_root), expected) < 2e-3
    patterned = adapter(1, alpha_pattern={"q_proj": 12.0, "model.layers.0.mlp.up_proj": 1.0})
    changes = [
        ({module: pair}, {"q_proj": 12.0}.get(module.rpartition(".")[2], ALPHA) / RANK)
        for module, pair in pairs_of(tiny, 1).items()
    ]
    changes = [(pairs, 1.0 / RANK if "model.layers.0.mlp.up_proj" in pairs else scale) for pairs, scale in changes]
    expected = logits(merged(tiny, changes, tmp_path / "pattern"))
    assert deviation(logits(base, patterned), expected) < 2e-3


def test_each_session_has_its_own_adapters_to_the_bit_in_any_company(tiny: Path, tmp_path: Path) -> None:
    """Sessions with different ones, in one process and in one batch, and models that have some by default."""
    rng = np.random.default_rng(3)
    shapes = {"blk.0.attn_q": (64, 64), "blk.1.ffn_up": (128, 64), "blk.1.attn_output": (64, 64)}
    adapters = []
    for i in range(2):
        pairs = {name: (drawn(rng, 4, c), drawn(rng, r, 4, 1 / 8)) for name, (r, c) in shapes.items()}
        adapters.append(write_gguf_adapter(tmp_path / f"{i}.gguf", "llama", pairs))
    model = Model(tiny, threads=2)
    ids = model.tokenizer.encode("The old lighthouse keeper climbed the stairs")
    options: dict[str, Any] = {"max_tokens": 12, "seed": 1, "ignore_eos": True}
    kinds: list[Any] = [[], adapters[0], (adapters[1], 0.7), adapters]
    alone = [Model(tiny, threads=1, lora=lora).generate(ids, **options) for lora in kinds]
    assert len({completion.text for completion in alone}) == len(kinds)
    for lora, expected in zip(kinds, alone, strict=True):
        assert model.generate(ids, lora=lora, **options).token_ids == expected.token_ids
        assert Model(tiny, lora=lora).generate_batch([ids, ids[:9]], **options)[0].token_ids == expected.token_ids
    # Turn by turn.
    sessions = [model.session(lora=lora) for lora in kinds]
    streams = [session.stream(ids, **options) for session in sessions]
    for _ in range(40):
        for stream in streams:
            next(stream, None)
    assert [stream.token_ids for stream in streams] == [completion.token_ids for completion in alone]
    assert [len(session.lora) for session in sessions] == [0, 1, 1, 2]
    # One token at a time, in pieces and all at once.
    whole = model.session(lora=adapters[0]).logits(ids)
    with model.session(lora=adapters[0]) as session:
        for i in range(0, len(ids), 3):
            assert (session.logits(ids[i : i + 3]) == whole[i : i + 3]).all()
        with session.fork() as fork:
            assert fork.lora == session.lora
            assert (fork.forward([5]) == session.forward([5])).all()


def test_what_was_computed_with_others_is_not_used(tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pairs = {
        "blk.0.attn_k": (
            drawn(rng, 4, 64),
            drawn(rng, 32, 4),
        )
    }
    one, two = (write_gguf_adapter(tmp_path / f"{i}.gguf", "llama", pairs, alpha=i + 1.0) for i in range(2))
    model = Model(tiny)
    prompt = "The old lighthouse keeper climbed the stairs every evening"
    saved = tmp_path / "saved.kv"
    with model.session(lora=one) as session:
        session.generate(prompt, max_tokens=2, temperature=0)
        session.save(saved)
    assert model.load_session(saved, lora=one).position > 5
    others: list[Any] = [None, two, (one, 0.5), [one, two]]
    for lora in others:
        with pytest.raises(SavedSessionError, match="other adapters"):
            model.load_session(saved, lora=lora)
    cache = tmp_path / "cache.kv"
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "prompt_cache": cache}
    first = model.generate(prompt, lora=one, **options)
    before = cache.read_bytes()
    again = model.generate(prompt, lora=one, **options)
    assert again.token_ids == first.token_ids
    assert again.timings.cached_tokens > 5
    other = model.generate(prompt, lora=two, **options)
    assert other.timings.cached_tokens == 0
    assert other.token_ids == model.generate(prompt, lora=two, max_tokens=6, temperature=0).token_ids
    assert cache.read_bytes() == before


def test_the_base_stays_mapped_and_shared(smollm2: Path, tmp_path: Path) -> None:
    """What a session with an adapter has for itself is less than a tenth of the model."""
    rng = np.random.default_rng(5)
    pairs = {
        f"blk.{i}.{name}": (
            drawn(rng, 8, c, 1 / 100),
            drawn(rng, r, 8),
        )
        for i in range(30)
        for name, r, c in (("attn_q", 576, 576), ("ffn_gate", 1536, 576))
    }
    adapter = write_gguf_adapter(tmp_path / "adapter.gguf", "llama", pairs)
    code = f"""
import re
from llama_rs import Model
model = Model({str(smollm2)!r}, threads=1, context_length=64)
def private():
    rollup = open("/proc/self/smaps_rollup").read()
    return sum(int(re.search(name + r":\\s+(\\d+) kB", rollup)[1]) for name in ("Private_Dirty", "Anonymous"))
model.generate("The sea", max_tokens=2, temperature=0)
before = private()
text = model.generate("The sea", max_tokens=2, temperature=0, lora={str(adapter)!r}).text
print(private() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) * 1024 < os.path.getsize(smollm2) / 10


def test_a_file_that_changes_while_it_is_used_is_found(tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    pairs = {
        "blk.0.attn_k": (
            drawn(rng, 4, 64),
            drawn(rng, 32, 4),
        )
    }
    adapter = write_gguf_adapter(tmp_path / "adapter.gguf", "llama", pairs)
    model = Model(tiny)
    with model.session(lora=adapter) as session:
        session.forward([1, 2, 3])
        os.truncate(adapter, 100)
        with pytest.raises(ModelChangedError, match=r"adapter\.gguf: .* changed"):
            session.forward([4])
    assert len(model.generate("x", max_tokens=2).token_ids) <= 2  # the model is well


# Files that are not what they should be


def broken(folder: Path, pairs: Pairs, change: Callable[[Path], object]) -> Path:
    path = write_peft(folder, pairs)
    change(path)
    return path


def test_bad_directories_say_what_is_wrong(llama: tuple[Tiny, Path, Callable[..., Path]], tmp_path: Path) -> None:
    tiny, base, _ = llama
    model = Model(base)
    q = "model.layers.0.self_attn.q_proj"
    good_pairs = {q: pairs_of(tiny)[q]}
    a, b = good_pairs[q]

    def refuse(kind: type[Exception], match: str, pairs: Pairs, **config: Any) -> None:
        path = write_peft(tmp_path / str(len(list(tmp_path.iterdir()))), pairs, **config)
        with pytest.raises(kind, match=match):
            model.session(lora=path)

    refuse(UnsupportedModelError, "peft_type IA3", good_pairs, peft_type="IA3")
    for name in ("use_dora", "fan_in_fan_out"):
        refuse(UnsupportedModelError, name, good_pairs, **{name: True})
    refuse(UnsupportedModelError, "bias", good_pairs, bias="all")
    refuse(UnsupportedModelError, "modules_to_save", good_pairs, modules_to_save=["lm_head"])
    refuse(UnsupportedModelError, "alpha_pattern", good_pairs, alpha_pattern={"q.*": 2})
    refuse(ModelFormatError, "lora_alpha", good_pairs, lora_alpha=None)
    refuse(ModelFormatError, r"another model \(blk.0.attn_q.weight\): got \[63, 96\]", {q: (a[:, 1:], b)})
    refuse(ModelFormatError, r"another model \(blk.0.attn_q.weight\): got \[64, 95\]", {q: (a, b[1:])})
    refuse(ModelFormatError, "do not fit together", {q: (a, b[:, 1:])})
    refuse(UnsupportedModelError, "does not have", {"model.layers.9.self_attn.q_proj": (a, b)})
    refuse(UnsupportedModelError, "does not have", {"model.layers.0.self_attn.x_proj": (a, b)})
    refuse(UnsupportedModelError, "does not have", {"model.embed_tokens": (a, b)})
    refuse(UnsupportedModelError, "does not have", {"lm_head": (a, b)})
    refuse(ModelFormatError, "nothing", {})

    changes: list[tuple[type[Exception], str, Callable[[Path], object]]] = [
        (ModelFormatError, "without adapter_config.json", lambda p: (p / "adapter_config.json").unlink()),
        (ModelFormatError, "without adapter_model.safetensors", lambda p: (p / "adapter_model.safetensors").unlink()),
        (ModelFormatError, "not valid JSON", lambda p: (p / "adapter_config.json").write_text("{")),
        (ModelFormatError, "safetensors", lambda p: (p / "adapter_model.safetensors").write_bytes(b"\0" * 7)),
        (
            UnsupportedModelError,
            "neither lora_A nor lora_B",
            lambda p: write_safetensors(p / "adapter_model.safetensors", {f"base_model.model.{q}.lora_magnitude": a}),
        ),
        (
            ModelFormatError,
            "one of lora_a and lora_b",
            lambda p: write_safetensors(p / "adapter_model.safetensors", {f"base_model.model.{q}.lora_A.weight": a}),
        ),
    ]
    for i, (kind, match, change) in enumerate(changes):
        with pytest.raises(kind, match=match):
            model.session(lora=broken(tmp_path / f"broken{i}", good_pairs, change))
    named = {f"base_model.model.{q}.lora_{x}.default.weight": t for x, t in zip("AB", (a, b), strict=True)}
    path = broken(tmp_path / "named", good_pairs, lambda p: write_safetensors(p / "adapter_model.safetensors", named))
    model.session(lora=path).close()
    with pytest.raises(ModelNotFoundError):
        model.session(lora=tmp_path / "nowhere")


def test_bad_files_say_what_is_wrong(tiny: Path, tmp_path: Path) -> None:
    model = Model(tiny)
    a, b = np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    q = {"blk.0.attn_q": (a, b)}

    def refuse(kind: type[Exception], match: str, path: Path) -> None:
        with pytest.raises(kind, match=match):
            Model(tiny, lora=path)
        with pytest.raises(kind, match=match):
            model.session(lora=path)

    write = write_gguf_adapter
    refuse(ModelFormatError, "another model: got qwen2, expected llama", write(tmp_path / "1", "qwen2", q))
    refuse(
        UnsupportedModelError,
        "type control_vector",
        write(tmp_path / "2", "llama", q, keys={"adapter.type": "control_vector"}),
    )
    refuse(ModelFormatError, "no adapter", write(tmp_path / "3", "llama", q, keys={"general.type": "model"}))
    refuse(ModelFormatError, "no adapter", tiny)
    refuse(ModelFormatError, "no such tensor", write(tmp_path / "4", "llama", {"blk.7.attn_q": (a, b)}))
    refuse(
        ModelFormatError,
        r"got \[64, 64\], expected \[64, 32\]",
        write(tmp_path / "5", "llama", {"blk.0.attn_k": (a, b)}),
    )
    embedding = {"token_embd": (a, np.ones((300, 4), np.float32))}
    refuse(UnsupportedModelError, "no plain matrix", write(tmp_path / "6", "llama", embedding))
    refuse(ModelFormatError, "bad factor", write(tmp_path / "7", "llama", q, alpha=float("nan")))
    whole = write(tmp_path / "8", "llama", q).read_bytes()
    for n in (0, 4, 30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:n])
        refuse(ModelFormatError, "cut", tmp_path / "cut")
    for lora in ((tmp_path / "8", float("nan")), (tmp_path / "8", float("inf"))):
        with pytest.raises(ValueError, match="must be a finite number"):
            model.session(lora=lora)
    for wrong in (1, [1], [(1, 2)], {"a": 1}):
        with pytest.raises(TypeError, match="must be a path"):
            model.session(lora=wrong)  # type: ignore[arg-type]


# The command line


def test_commands_take_adapters(tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    pairs = {
        "blk.0.ffn_up": (
            drawn(rng, 4, 64),
            drawn(rng, 128, 4),
        )
    }
    adapter = write_gguf_adapter(tmp_path / "a:1.gguf", "llama", pairs)
    model = Model(tiny)
    ask = ("generate", "-m", tiny, "-n", "8", "--temp", "0", "--raw", "The sea")
    for given, lora in (
        (f"{adapter}", adapter),
        (f"{adapter}:0.25", (adapter, 0.25)),
        (f"{adapter}:-1", (adapter, -1)),
    ):
        assert good(*ask, "--lora", given) == model.generate("The sea", max_tokens=8, temperature=0, lora=lora).text
    assert good(*ask, "--lora", f"{adapter}:0") == good(*ask)
    assert "nowhere" in bad(3, *ask, "--lora", "nowhere:0.5")
    assert (
        run("score", "-m", tiny, "--lora", adapter, "The", " sea").stdout
        != run("score", "-m", tiny, "The", " sea").stdout
    )
    asked = ("chat", "-m", tiny, "-n", "8", "--temp", "0")
    expected = model.chat("The sea", max_tokens=8, temperature=0, lora=(adapter, 2.0)).text
    assert expected != model.chat("The sea", max_tokens=8, temperature=0).text
    said = good(*asked, "--lora", f"{adapter}:2", "The sea")
    assert said.removesuffix("\n") == expected.removesuffix("\n")
    request = json.dumps({"content": "The sea", "stream": False}).encode()
    (line,) = run(*asked, "--jsonl", "--lora", f"{adapter}:2", stdin=request).stdout.splitlines()
    assert json.loads(line)["message"]["content"] == expected
    assert "nowhere" in bad(3, *asked, "--lora", "nowhere", "x")
