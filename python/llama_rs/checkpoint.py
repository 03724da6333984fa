"""A model file seen from Python: metadata and tensors, where they lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from time import perf_counter

from . import _core
from .lazy import TYPE_CHECKING, NamedTuple, np, npt, typing
from .lazy import residency as _residency

if TYPE_CHECKING:
    from typing import overload

STEP = 16 << 20
"""Bytes that are read at a time: some ten milliseconds of a good disk."""


class Warmed(NamedTuple):
    """What :meth:`Checkpoint.warm` did."""

    bytes: int
    """Bytes of the file, all of which are in memory now."""
    resident_before: int
    """How many of them were there already."""
    seconds: float
    enlarged: int = 0
    """How many bytes lay there in small pages, as those of a file that was written do, and lie in large ones now."""


class Tensor:
    """A tensor of a model file. Nothing is read before an array is asked for."""

    def __init__(self, name: str, core: _core.Tensor) -> None:
        self.name = name
        self._core = core

    @property
    def dtype(self) -> str:
        """The type as GGUF names it, such as ``Q4_K`` or ``F32``."""
        return self._core.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of weights, rows first."""
        return self._core.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self._core.nbytes

    @property
    def offset(self) -> int:
        """Where in the file it starts, in bytes; of a model in parts, in the part that has it."""
        return self._core.offset

    def numpy(self) -> npt.NDArray[typing.Any]:
        """A read-only view of the file, without a copy. If the file is cut short later, it reads zeros there.

        Float and integer types have the tensor's shape (BF16 as the ``uint16`` of its bits). Quantised types are
        ``uint8`` blocks as they lie in the file, of shape ``(..., bytes of a row)``.
        """
        return np.asarray(self._core)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights as new float32 numbers, of the tensor's shape.

        Raises:
            ValueError: for a type that cannot be computed with.
        """
        return np.asarray(self._core.dequantize())

    def __array__(self, dtype: typing.Any = None, copy: bool | None = None) -> npt.NDArray[typing.Any]:
        return np.array(self._core, dtype=dtype, copy=bool(copy) or None)

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> typing.Any:
        """A read-only view of the file for other frameworks (DLPack 1.0), without a copy; BF16 is bfloat16 there.

        Raises:
            BufferError: for a framework that does not know read-only memory, and for what is no view of the file.
        """
        return self._core.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._core.__dlpack_device__()

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, shape={self.shape})"


class Tensors(Mapping[str, Tensor]):
    """The tensors of a file by name, in the order of the file."""

    def __init__(self, core: _core.Checkpoint) -> None:
        self._core = core

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._core.tensor(name)
        if tensor is None:
            raise KeyError(name)
        return Tensor(name, tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._core.tensor_names())

    def __len__(self) -> int:
        return len(self._core.tensor_names())

    def __repr__(self) -> str:
        return f"<{len(self)} tensors>"


class Array(Sequence["typing.Any"]):
    """An array of the metadata, equal to a list of the same elements.

    An element is read when it is asked for: the array may be as long as the file. ``list(array)`` reads all of it.
    """

    def __init__(self, core: _core.Array) -> None:
        self._core = core

    def __len__(self) -> int:
        return len(self._core)

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, index: int) -> typing.Any: ...
        @overload
        def __getitem__(self, index: slice) -> list[typing.Any]: ...

    def __getitem__(self, index: int | slice) -> typing.Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(f"index {index} of an array of {len(self)} elements")
        return _value(self._core[i])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array | list | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return list, (list(self),)

    def __repr__(self) -> str:
        shown = [repr(item) for item in islice(self, 4)]
        return f"[{', '.join(shown)}{f', ... {len(self)} in all' if len(self) > 4 else ''}]"


def _value(value: typing.Any) -> typing.Any:
    return Array(value) if isinstance(value, _core.Array) else value


class Metadata(Mapping[str, "typing.Any"]):
    """The key-value pairs of a file. A value is read when it is asked for; arrays are an :class:`Array`."""

    def __init__(self, core: _core.Checkpoint) -> None:
        self._core = core

    def __getitem__(self, key: str) -> typing.Any:
        value = self._core.metadata_value(key)
        if value is None:
            raise KeyError(key)
        return _value(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._core.metadata_keys())

    def __len__(self) -> int:
        return len(self._core.metadata_keys())

    def __repr__(self) -> str:
        return f"<{len(self)} keys>"


class Checkpoint:
    """A model file or directory, opened to look into: it need not be a model that can be run.

    Of a directory, names, shapes and keys are those that a GGUF file of the model would have.

    Raises:
        ModelFileError: if it cannot be opened or mapped.
        ModelFormatError: if it is not a valid GGUF file.
        UnsupportedModelError: for a version or tensor type that is not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._open(_core.Checkpoint(path), os.fspath(path))

    @classmethod
    def _of(cls, core: _core.Checkpoint, path: str) -> Checkpoint:
        self = cls.__new__(cls)
        self._open(core, path)
        return self

    def _open(self, core: _core.Checkpoint, path: str) -> None:
        self.path = path
        self._core = core
        self.metadata: Mapping[str, typing.Any] = Metadata(core)
        self.tensors: Mapping[str, Tensor] = Tensors(core)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._core.size()

    def resident(self, start: int = 0, end: int | None = None) -> int:
        """How many of the bytes from ``start`` to ``end`` are in memory now; by default of the whole file."""
        size = self.size
        return self._core.resident(*(min(max(n, 0), size) for n in (start, size if end is None else end)))

    def residency(self) -> _residency.Residency:
        """What of the file is in memory now, by layer and by tensor."""
        return _residency.residency(self._core)

    def processes(self) -> list[_residency.Process]:
        """The processes that have the file mapped, as far as this user may look into them (Linux)."""
        return _residency.processes(self._core)

    def warm(self, on_progress: Callable[[int, int], object] | None = None, *, lock: bool = False) -> Warmed:
        """Reads the file into memory, where all processes find it. It stays there while nothing else needs the room.

        What was there in small pages, and is used by no other process, is put into large ones if the system has them:
        whoever maps it then gets it sooner.

        Args:
            on_progress: called now and then with the bytes read so far and the bytes of the file.
            lock: then keep it in memory for as long as this object lives (mlock).

        Raises:
            ModelFileError: if it cannot be read or locked.
            ModelChangedError: if the file changed meanwhile.
        """
        start, size = perf_counter(), self.size
        before = self.resident()
        for at in range(0, size, STEP):
            end = min(at + STEP, size)
            self._core.read_in(at, end)
            if on_progress:
                on_progress(end, size)
        enlarged = _residency.enlarge_pages(self._core) if before else 0
        seconds = perf_counter() - start
        if lock:
            self._core.lock()
        return Warmed(size, before, seconds, enlarged)

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r})"
