"""State dicts: the tensors of a file, mapped. PyTorch itself is half a gigabyte: what stands for it here is numpy."""

from __future__ import annotations

import json
import multiprocessing
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from llama_rs import Model, ModelFileError, ModelFormatError, split
from llama_rs.torch import load_state_dict, mapped


class Tensor:
    """What ``torch.from_numpy`` gives."""

    def __init__(self, array: Any, dtype: str = "") -> None:
        self.array, self.dtype = array, dtype

    def view(self, dtype: str) -> Tensor:
        return Tensor(self.array, dtype)


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(from_numpy=Tensor, bfloat16="bfloat16"))


def safetensors(path: Path, tensors: dict[str, Any], header: bytes | None = None) -> Path:
    entries, data = {}, b""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
    for name, array in tensors.items():
        begin = len(data)
        data += array.tobytes()
        entries[name] = {"dtype": names[str(array.dtype)], "shape": array.shape, "data_offsets": [begin, len(data)]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_of_gguf_are_those_of_the_file(tiny_models: Callable[[str], Path], dtype: str, tmp_path: Path) -> None:
    path = tiny_models(dtype)
    own = {t.name: t for t in GGUFReader(path).tensors}
    parts = split(path, tmp_path / "part", max_tensors=5)
    for one in (path, parts[1]):
        state = load_state_dict(one)
        assert state.keys() == own.keys()
        for name, tensor in state.items():
            assert tensor.array.tobytes() == own[name].data.tobytes()
            assert tensor.array.shape == tuple(int(n) for n in reversed(own[name].shape))
            assert (tensor.dtype == "bfloat16") == (own[name].tensor_type.name == "BF16")


def test_tensors_of_safetensors_have_their_own_names(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "model.a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(3, dtype=np.int64),
        "none": np.empty((0, 4), dtype=np.float16),
        "half": np.arange(4, dtype=np.uint16),
    }
    safetensors(tmp_path / "model-1.safetensors", arrays)
    safetensors(tmp_path / "model-2.safetensors", {"b": arrays["model.a"] * 2})
    state = load_state_dict(tmp_path)
    assert state.keys() == {*arrays, "b"}
    assert state["half"].dtype == "bfloat16"
    for name, array in arrays.items():
        assert state[name].array.tobytes() == array.tobytes() and state[name].array.shape == array.shape
    assert load_state_dict(tmp_path / "model-2.safetensors").keys() == {"b"}


def test_what_is_written_is_ones_own(tiny_models: Callable[[str], Path]) -> None:
    path = tiny_models("F32")
    before = path.read_bytes()
    mine, others = load_state_dict(path), load_state_dict(path)
    name = "token_embd.weight"
    mine[name].array[:] = 7
    assert (mine[name].array == 7).all() and not (others[name].array == 7).any()
    assert path.read_bytes() == before


def private_bytes(path: str, touched: Any) -> None:
    """Reads all weights, and tells how much memory of the file's maps is this process's own."""
    kept = list(mapped(path))
    total = sum(float(array.sum()) for _, _, array in kept)
    private = shared = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(path)
        elif inside and line.startswith("Anonymous"):
            private += int(line.split()[1])
        elif inside and line.startswith("Rss"):
            shared += int(line.split()[1])
    touched.send((private, shared, total))


def test_processes_share_the_pages(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "big.safetensors", {"a": np.ones((1 << 20,), dtype=np.float32)})
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=private_bytes, args=(os.fspath(path), theirs))
        process.start()
        private, resident, total = ours.recv()
        process.join(60)
        assert private == 0 and resident >= 4096 and total == 1 << 20


def test_quantised_tensors_are_refused_with_a_remedy(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor 'token_embd.weight' is Q8_0, which PyTorch has no type for"):
        load_state_dict(tiny)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\x01", "past the end"),
        (struct.pack("<Q", 1 << 62), "past the end"),
        (struct.pack("<Q", 2) + b"[]", "no header"),
        (struct.pack("<Q", 4) + b"\xff\xff\xff\xff", "no header"),
        (struct.pack("<Q", 50000) + b"[" * 50000, "no header"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelFormatError, match=message):
        load_state_dict(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": ["a"], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32"},
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_an_error(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = safetensors(tmp_path / "x.safetensors", {}, json.dumps({"a": entry}).encode())
    with open(path, "ab") as f:
        f.write(bytes(8))
    with pytest.raises(ModelFormatError):
        load_state_dict(path)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.safetensors", tmp_path / "none.gguf"):
        with pytest.raises(FileNotFoundError) as e:
            load_state_dict(path)
        assert isinstance(e.value, ModelFileError)


def test_the_arrays_of_a_model_agree(tiny_models: Callable[[str], Path]) -> None:
    path = tiny_models("F16")
    with Model(path) as model:
        for name, _, array in mapped(path):
            assert array.tobytes() == model.tensors[name].numpy().tobytes()
