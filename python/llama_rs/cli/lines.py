"""Inputs of a text a line, for commands that answer each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ..output import is_watched, say
from .exits import Failure, UsageError

BLOCK = 1 << 16
"""Bytes of lines that are taken at a time, if so many are there."""


def lines_of(file: str | None) -> Iterator[list[bytes]]:
    """The lines of a file or of standard input, as they come: a program may write one and wait for its answer."""
    name = "standard input" if file in (None, "-") else file
    try:
        if file is not None and file != "-":
            stream: Any = open(file, "rb")  # noqa: SIM115  # until the process ends
        elif sys.stdin is None:
            raise UsageError("no texts: give them as arguments, with -f FILE or on standard input")
        else:
            if sys.stdin.isatty() and is_watched():
                say("Type texts, one a line, then Ctrl-D on a line of its own.")
            stream = sys.stdin.buffer
        rest = b""
        while block := stream.read1(BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            if lines:
                yield lines
    except OSError as e:
        raise Failure(f"{name}: {e.strerror}") from e
    if rest:
        yield [rest]


def decoded(name: str | None, index: int, line: bytes) -> str:
    """A line as text."""
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as e:
        raise Failure(f"{name}: line {index + 1} is not UTF-8 text at byte {e.start}") from e


def texts_of(file: str | None) -> Iterator[list[str]]:
    """The lines of a file or of standard input as text, as they come."""
    name, at = "standard input" if file in (None, "-") else file, 0
    for lines in lines_of(file):
        yield [decoded(name, at + i, line) for i, line in enumerate(lines)]
        at += len(lines)
