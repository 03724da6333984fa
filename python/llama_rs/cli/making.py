"""What commands have in common that make model files: a line at the terminal while they do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..output import is_watched, progress, say_in_place


class Teller:
    """Says how far a file is."""

    def __init__(self) -> None:
        self.whole = 0
        """Bytes of the file."""
        self._start = time.perf_counter()

    def __call__(self, done: int, whole: int) -> None:
        self.whole = whole
        if is_watched():
            say_in_place(progress(done, whole, done / max(time.perf_counter() - self._start, 1e-9)))


@contextmanager
def making() -> Iterator[Teller]:
    """Gives what is to be told of the progress; nothing of it stays at the terminal."""
    try:
        yield Teller()
    finally:
        if is_watched():
            say_in_place("")
