"""What a user should know and nobody asked for: the library says it to the logger ``llama_rs``, and prints nothing.

The logger is imported when there is something to say. The command line, where no logger is set up, listens itself.
"""

from __future__ import annotations

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []


def counted(n: int, noun: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def note(text: str) -> None:
    """Says it."""
    if _listeners:
        _listeners[-1](text)
    else:
        import logging

        logging.getLogger("llama_rs").warning(text)


class Listener:
    """Has ``listener`` be told and not the logger, until the end of the block."""

    def __init__(self, listener: Callable[[str], None]) -> None:
        self.listener = listener

    def __enter__(self) -> None:
        _listeners.append(self.listener)

    def __exit__(self, *_: object) -> None:
        _listeners.remove(self.listener)
