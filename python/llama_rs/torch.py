"""The weights of a model file as tensors of PyTorch, where they lie.

The map is copy-on-write: processes that load one file share its pages, and what one of them writes into a tensor is its
own and reaches no file. Nothing is read before it is used. (A read-only map would end the process that writes.)
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint import Checkpoint
from .errors import ModelChangedError, ModelFileError, ModelFormatError, ModelNotFoundError

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_HEADER = 100_000_000
"""The longest header of a safetensors file, as in the reference implementation."""

# GGUF's types, and those of safetensors by other names. BF16 is taken by its bits, which numpy has no type for.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.int16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tensors of a file by name, ``torch.Tensor`` each, mapped: for ``module.load_state_dict(..., assign=True)``.

    Names are those of the file: GGUF's of a GGUF file, those of the module that was saved of safetensors. Tensors are
    on the CPU, and may be written to: a page that is, is a copy from then on.

    Args:
        path: a GGUF file, any part of one that is split, a ``.safetensors`` file, or a directory that has such.

    Raises:
        ValueError: for a tensor of a type that PyTorch does not have, such as Q4_K: its name, and what to do.
        ModelFileError, ModelFormatError: by what is wrong with the file.
    """
    import torch  # type: ignore[import-not-found, unused-ignore]

    def tensor(dtype: str, array: npt.NDArray[Any]) -> Any:
        made = torch.from_numpy(array)
        return made.view(torch.bfloat16) if dtype == "BF16" else made

    return {name: tensor(dtype, array) for name, dtype, array in mapped(path)}


def mapped(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    """Name, type and numbers of each tensor. The arrays are views of a copy-on-write map."""
    where = Path(path)
    if where.is_dir():
        files = sorted(where.glob("*.safetensors"))
        if not files:
            raise ModelNotFoundError(f"{path}: no *.safetensors in the directory", os.fspath(path))
    elif where.suffix == ".safetensors":
        files = [where]
    else:
        yield from _of_gguf(path)
        return
    for file in files:
        yield from _of_safetensors(file)


def _map(path: str | os.PathLike[str]) -> tuple[mmap.mmap, tuple[int, int]]:
    """A copy-on-write map of a file, and which file that is."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), (status.st_dev, status.st_ino)
    except FileNotFoundError as e:
        raise ModelNotFoundError(f"{path}: {e.strerror}", os.fspath(path), e.errno) from None
    except OSError as e:
        raise ModelFileError(f"{path}: {e.strerror}", os.fspath(path), e.errno) from None
    except ValueError as e:  # an empty file
        raise ModelFormatError(f"{path}: {e}", os.fspath(path)) from None


def _array(buffer: mmap.mmap, dtype: str, shape: tuple[int, ...], at: int, end: int, what: str) -> npt.NDArray[Any]:
    """The numbers at a place of a map, which are as many as the shape says."""
    kind = DTYPES.get(dtype)
    if kind is None:
        raise ValueError(
            f"{what} is {dtype}, which PyTorch has no type for: Checkpoint(path).tensors[name].dequantize() makes "
            "float32 numbers of it, llama-rs quantize a file of F16"
        )
    count = 1
    for n in shape:
        count *= n
    if at < 0 or end > len(buffer) or end - at != count * np.dtype(kind).itemsize:
        raise ModelFormatError(f"{what}: bytes {at} to {end} of {len(buffer)} are no {dtype} of shape {shape}")
    return np.frombuffer(buffer, kind, count, at).reshape(shape) if count else np.empty(shape, kind)


def _of_gguf(path: str | os.PathLike[str]) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    checkpoint = Checkpoint(path)
    parts = []
    begin = 0
    for name, device, inode, length in checkpoint._core.files():
        buffer, identity = _map(name)
        if identity != (device, inode) or len(buffer) != length:
            raise ModelChangedError(f"{name}: the file was replaced while it was opened", os.fspath(path))
        parts.append((begin, begin + length, buffer))
        begin += length
    for name, at, length in checkpoint._core.tensor_spans():
        tensor = checkpoint.tensors[name]
        begin, _, buffer = next(part for part in parts if part[0] <= at < part[1] or at == part[1] == begin)
        at -= begin
        yield (
            name,
            tensor.dtype,
            _array(buffer, tensor.dtype, tensor.shape, at, at + length, f"{path}: tensor {name!r}"),
        )


def _of_safetensors(path: Path) -> Iterator[tuple[str, str, npt.NDArray[Any]]]:
    buffer, _ = _map(path)
    n = int.from_bytes(buffer[:8], "little")
    data = 8 + n
    if len(buffer) < 8 or n > MAX_HEADER or data > len(buffer):
        raise ModelFormatError(f"{path}: the header reaches past the end of the file: no safetensors, or cut short")
    try:
        header: dict[str, Any] = json.loads(buffer[8:data])
        tensors = []
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = map(int, entry["data_offsets"])
                tensors.append((name, str(entry["dtype"]), tuple(map(int, entry["shape"])), begin, end))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ModelFormatError(f"{path}: no header of safetensors ({e})", str(path)) from None
    for name, dtype, shape, begin, end in tensors:
        if any(n < 0 for n in shape) or begin < 0:
            raise ModelFormatError(f"{path}: tensor {name!r}: negative numbers in the header", str(path))
        yield name, dtype, _array(buffer, dtype, shape, data + begin, data + end, f"{path}: tensor {name!r}")
