"""What the command line writes: results, tables, sizes, JSON, and lines for a person who watches.

Standard output carries results, standard error everything else. Names and texts out of files are escaped before they
reach either: a terminal obeys control characters, and one message is one line.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence

from .lazy import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TextIO

CELL_WIDTH = 80
"""Most columns of a cell when nobody's terminal sets a limit: one long name must not widen every row."""

PIECES = " ░▒▓█"
"""Shades of a bar, from nothing to all."""


# Escaping


def printable(text: str) -> str:
    """The text with ``\\x1b`` for what a terminal obeys, and ``\\xe9`` for a byte that is not UTF-8."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def one_line(text: str) -> str:
    """A message as one line, printable."""
    return printable(" ".join(text.splitlines()))


def harmless(text: str) -> str:
    """Text as it is, newlines and tabs included, but with other control characters escaped."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def _escape(c: str) -> str:
    code = ord(c)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python has it in file names
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class _Controls(dict[int, str]):
    """A table for str.translate that knows the control characters."""

    def __missing__(self, code: int) -> str:
        c = chr(code)
        return _escape(c) if (code < 0x20 or 0x7F <= code < 0xA0) and c not in "\n\t" else c


_CONTROLS = _Controls()


# Standard output


class StandardOutput:
    """Has standard output be UTF-8, and whole: without buffer (PYTHONUNBUFFERED) what one write leaves over is lost."""

    def __enter__(self) -> None:
        self.before = before = sys.stdout
        if isinstance(before, io.TextIOWrapper):
            if isinstance(before.buffer, io.RawIOBase):
                sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(before.fileno(), "w", closefd=False)))
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        settle(sys.stdout)
        sys.stdout = self.before


def settle(stream: TextIO | None) -> None:
    """Writes out what a stream holds; what cannot be written is dropped, or Python would complain of it at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def write(text: str) -> None:
    """Writes a result, now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_line(text: str) -> None:
    """Writes a line of a result, printable."""
    write(printable(text) + "\n")


def write_json(data: Any) -> None:
    """Writes JSON in a line."""
    write(json_line(data))


def json_line(data: Any) -> str:
    """JSON in a line: valid Unicode without control characters; what is not UTF-8 is escaped as in text."""
    import json

    text = json.dumps(_json_value(data), ensure_ascii=False, allow_nan=False)
    # Inside strings json leaves DEL, the C1 controls and the separators that are newlines to some.
    if not text.isprintable():
        text = "".join(f"\\u{ord(c):04x}" if "\x7f" <= c < "\xa0" or c in "\u2028\u2029" else c for c in text)
    return text + "\n"


def _json_value(value: Any) -> Any:
    """A value as JSON has it: that knows neither NaN nor infinity, which become strings, nor bytes in names."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return "".join(_escape(c) if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {_json_value(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_json_value(item) for item in value]
    return value


# Standard error


def say(text: str) -> None:
    """A line on standard error, for a person; whether it can be written decides nothing."""
    _tell(one_line(text) + "\n")


def _tell(text: str) -> None:
    from contextlib import suppress

    with suppress(OSError, ValueError, AttributeError):  # full, closed, or None
        sys.stderr.write(text)
        sys.stderr.flush()


def warn(text: str) -> None:
    """Says that something is very likely wrong."""
    say(f"warning: {text}")


def is_watched() -> bool:
    """Whether a person waits at a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say_in_place(text: str) -> None:
    """A line at a terminal that the next one replaces; the empty one leaves nothing behind."""
    width = _terminal_width(sys.stderr)
    _tell("\r\033[K" + one_line(text)[: width - 1 if width else None])


# Sizes


def size(n: int) -> str:
    """A number of bytes, for reading."""
    amount, unit = float(n), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{n} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def percent(part: int, whole: int) -> str:
    """A share in percent; 100% is all of it, and 0% nothing."""
    if 0 < part < whole:
        return f"{min(max(round(100 * part / whole), 1), 99)}%"
    return "0%" if whole and not part else "100%"


def bar(shares: Sequence[float]) -> str:
    """A picture of shares between 0 and 1, whose extremes mean all and nothing."""
    return "".join(PIECES[4 if s == 1 else 0 if s == 0 else min(max(round(4 * s), 1), 3)] for s in shares)


def progress(done: int, whole: int, rate: float, width: int = 24) -> str:
    """A line that says how far the reading of a file is; ``rate`` in bytes per second."""
    filled = width * done // max(whole, 1)
    left = f", {(whole - done) / rate:.0f} s left" if rate > 0 and done < whole else ""
    return f"[{'#' * filled}{'.' * (width - filled)}] {done >> 20} of {whole >> 20} MiB, {rate / 1e6:.0f} MB/s{left}"


def count_progress(done: int, whole: int | None, seconds: float, noun: str, width: int = 24) -> str:
    """A line that says how many things are done; ``whole`` is None where nobody knows how many come."""
    rate = done / max(seconds, 1e-9)
    if whole is None:
        return f"{done} {noun}, {rate:.1f} a second"
    filled = width * done // max(whole, 1)
    left = f", {(whole - done) / rate:.0f} s left" if rate > 0 and done < whole else ""
    return f"[{'#' * filled}{'.' * (width - filled)}] {done} of {whole} {noun}, {rate:.1f} a second{left}"


# Tables


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), cut: int = -1, keep_end: bool = False) -> None:
    """Writes rows in columns, printable and within the terminal's width.

    Args:
        rows: of equally many cells.
        right: columns that are flush right.
        cut: the column that gives way when a line is too long for the terminal.
        keep_end: of its cells the end is kept, and not the beginning.
    """
    if not rows:
        return
    n = len(rows[0])
    cut %= n
    terminal = _terminal_width(sys.stdout)
    limit = min(CELL_WIDTH, terminal // 2) if terminal else CELL_WIDTH
    cells = [
        [shorten(printable(c), limit, keep_end=keep_end) if i != cut else printable(c) for i, c in enumerate(row)]
        for row in rows
    ]
    if terminal:
        limit = max(terminal - 2 * n - sum(_width_of_column(cells, i) for i in range(n) if i != cut), 8)
    for row in cells:
        row[cut] = shorten(row[cut], limit, keep_end=keep_end)
    widths = [_width_of_column(cells, i) for i in range(n)]
    for row in cells:
        parts = []
        for i, cell in enumerate(row):
            space = " " * (widths[i] - _width(cell))
            parts.append(space + cell if i in right else cell + space)
        line = f"  {'  '.join(parts).rstrip()}"
        sys.stdout.write((shorten(line, terminal) if terminal else line) + "\n")


def shorten(text: str, width: int, *, keep_end: bool = False) -> str:
    """The text in at most ``width`` columns; dots stand for what is left out."""
    if len(text) <= width and _width(text) <= width:
        return text
    kept = text[-width:] if keep_end else text[:width]
    while _width(kept) > width - 3:
        kept = kept[1:] if keep_end else kept[:-1]
    return "..." + kept if keep_end else kept + "..."


def _width_of_column(cells: Sequence[Sequence[str]], i: int) -> int:
    return max(_width(row[i]) for row in cells)


def _width(text: str) -> int:
    """Columns at a terminal, where letters of East Asia take two."""
    if text.isascii() or not any(c > "\u1100" for c in text):
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _terminal_width(stream: TextIO | None) -> int | None:
    """Columns of the terminal that a stream goes to; None if it is none. ``COLUMNS`` overrules it, as elsewhere."""
    try:
        if stream is None or not stream.isatty():
            return None
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() and int(columns) else os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None
