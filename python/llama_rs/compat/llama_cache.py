"""Caches of states: what was computed for one prompt serves the next that begins alike.

A state of llama_rs is a fork of a session, which shares its blocks and copies nothing; on a disk it is a file that is
mapped. So neither cache costs what those of llama-cpp-python do.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .llama import LlamaState


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class BaseLlamaCache(ABC):
    """What ``Llama.set_cache`` takes: states by the tokens that they are of. Asked for other tokens it gives the state
    that has the most of them."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """Bytes in use."""

    @abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState: ...

    @abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool: ...

    @abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None: ...


def nearest(keys: Iterable[tuple[int, ...]], key: Sequence[int]) -> tuple[int, ...] | None:
    """Of the keys, the one that begins most like ``key``; None if none does."""
    best = max(((common_prefix(k, key), k) for k in keys), key=lambda found: found[0], default=(0, None))
    return best[1] if best[0] else None


class LlamaRAMCache(BaseLlamaCache):
    """A cache in memory. The states that were not used for longest go first."""

    def __init__(self, capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[tuple[int, ...], LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        return sum(state.llama_state_size for state in self.cache_state.values())

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = nearest(self.cache_state, key)
        if found is None:
            raise KeyError("Key not found")
        self.cache_state.move_to_end(found)
        return self.cache_state[found]

    def __contains__(self, key: Sequence[int]) -> bool:
        return nearest(self.cache_state, key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self.cache_state[tuple(key)] = value
        self.cache_state.move_to_end(tuple(key))
        while self.cache_size > self.capacity_bytes and self.cache_state:
            self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """A cache in a directory: a file a state, mapped by whoever uses it, and beside it the tokens that it is of."""

    def __init__(self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = 2 << 30) -> None:
        super().__init__(capacity_bytes)
        self._folder = Path(cache_dir)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _files(self) -> dict[tuple[int, ...], Path]:
        found = {}
        for path in self._folder.glob("*.tokens"):
            ids = array("I")
            try:
                ids.frombytes(path.read_bytes())
            except (OSError, ValueError):  # another process removed it, or is writing it
                continue
            found[tuple(ids)] = path.with_suffix(".state")
        return found

    @property
    def cache_size(self) -> int:
        return sum(path.stat().st_size for path in self._folder.glob("*.state"))

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        from .llama import LlamaState

        files = self._files()
        found = nearest(files, key)
        if found is None:
            raise KeyError("Key not found")
        os.utime(files[found])
        return LlamaState._in_file(files[found], found)

    def __contains__(self, key: Sequence[int]) -> bool:
        return nearest(self._files(), key) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        ids = array("I", key)
        path = self._folder / f"{sha256(ids.tobytes()).hexdigest()[:32]}.state"
        value._save(path)
        path.with_suffix(".tokens").write_bytes(ids.tobytes())
        by_age = sorted(self._folder.glob("*.state"), key=lambda p: p.stat().st_mtime_ns)
        while self.cache_size > self.capacity_bytes and by_age:
            oldest = by_age.pop(0)
            oldest.with_suffix(".tokens").unlink(missing_ok=True)
            oldest.unlink(missing_ok=True)
