"""Hugging Face directories, as they lie and converted: the models of `oracle.cases` are there in both forms.

A case has the keys and tensors of a GGUF beside its directory. So what is read from the directory has to be those, but
for what the keys under `llama_rs.` say; and what is converted has to be those.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_rs import Checkpoint, convert
from numpy.typing import NDArray
from oracle.cases import CASES
from oracle.tiny import N_TOKENS, Tiny

Array = NDArray[np.float32]


def directory_of(name: str, folder: Path) -> tuple[Tiny, Path]:
    tiny = CASES[name].make()
    return tiny, tiny.write_directory(folder / "model")


def plain(value: Any) -> Any:
    return list(value) if not isinstance(value, (str, int, float, bool)) else value


def assert_has_keys(metadata: Mapping[str, Any], tiny: Tiny) -> None:
    """What the GGUF says, the metadata says; what it adds does not contradict."""
    assert metadata["general.architecture"] == tiny.arch
    assert metadata[f"{tiny.arch}.vocab_size"] == N_TOKENS
    missing = {}
    for name, value in tiny.keys.items():
        key = f"{tiny.arch}{name}" if name.startswith(".") else name
        got = plain(metadata[key]) if key in metadata else None
        if value is not None and got != pytest.approx(plain(value), rel=1e-6):
            missing[key] = (got, value)
    assert not missing


def assert_same_tensors(found: Mapping[str, Array], tiny: Tiny) -> None:
    assert {name: x.size for name, x in found.items()} == {name: x.size for name, x in tiny.tensors.items()}
    for name, expected in tiny.tensors.items():
        got = found[name]
        shape = [n for n in expected.shape if n != 1]
        assert [n for n in got.shape if n != 1] == shape, name
        np.testing.assert_allclose(got.reshape(shape), expected.reshape(shape), rtol=2e-6, err_msg=name)


def as_gguf(checkpoint: Checkpoint) -> dict[str, Array]:
    """The tensors, with everything done to them that the metadata asks for."""
    metadata = checkpoint.metadata
    arch = metadata["general.architecture"]
    tensors = {name: np.array(tensor.numpy()) for name, tensor in checkpoint.tensors.items()}
    n_heads = metadata[f"{arch}.attention.head_count"]
    n_kv_heads = metadata.get(f"{arch}.attention.head_count_kv", n_heads)
    out: dict[str, Array] = {}
    experts: dict[str, list[Array]] = {}
    for name, x in tensors.items():
        part = name.split(".", 2)[2] if name.startswith("blk.") else name
        if metadata.get("llama_rs.rope_style") == "half" and part.startswith(("attn_q.", "attn_k.")):
            n = n_heads if part.startswith("attn_q.") else n_kv_heads
            x = x.reshape(n, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        if part.endswith("norm.weight") and part != "ssm_norm.weight":
            x = x + np.float32(metadata.get("llama_rs.norm_offset", 0))
        if part == "ssm_a" and metadata.get("llama_rs.ssm_a") == "log":
            x = -np.exp(x)
        pieces = name.split(".")
        if len(pieces) == 5 and pieces[3].isdigit():
            experts.setdefault(f"{'.'.join(pieces[:3])}_exps.weight", []).append(x)
            assert len(experts[f"{'.'.join(pieces[:3])}_exps.weight"]) == int(pieces[3]) + 1
        elif part == "ffn_gate_up_exps.weight":
            gate, up = np.split(x, 2, axis=1)
            out[name.replace("gate_up", "gate")], out[name.replace("gate_up", "up")] = gate, up
        else:
            out[name] = x
    return out | {name: np.stack(each) for name, each in experts.items()}


SUPPORTED = [name for name in CASES if CASES[name].make().config["model_type"] != "gpt_oss"]


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_directory_is_what_its_gguf_is(tmp_path: Path, name: str) -> None:
    tiny, folder = directory_of(name, tmp_path)
    checkpoint = Checkpoint(folder)
    assert_has_keys(checkpoint.metadata, tiny)
    assert_same_tensors(as_gguf(checkpoint), tiny)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_converted_directory_is_its_gguf(tmp_path: Path, name: str) -> None:
    tiny, folder = directory_of(name, tmp_path)
    convert(folder, tmp_path / "converted.gguf")
    checkpoint = Checkpoint(tmp_path / "converted.gguf")
    assert not [key for key in checkpoint.metadata if key.startswith("llama_rs.")]
    assert_has_keys(checkpoint.metadata, tiny)
    assert_same_tensors({name: np.array(t.numpy()) for name, t in checkpoint.tensors.items()}, tiny)
