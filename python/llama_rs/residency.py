"""What of a model file is in memory, who has it there, and bringing it in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import NamedTuple

from . import _core

STEP = 16 << 20
"""Bytes that are read at a time: some ten milliseconds of a good disk."""


class Part(NamedTuple):
    """A part of a model: where it lies, and how many of its bytes are in memory.

    Where a model is in several files, ``start`` counts through them one after another.
    """

    name: str
    start: int
    bytes: int
    resident: int


class Residency(NamedTuple):
    """What of a model file is in memory, in the page cache that all processes share.

    The kernel tells only who owns the file or may write to it; to others it says that all is there.

    ``layers`` are the header, the layers and what belongs to none of them (``token_embd``, ``output``), in the order of
    the file. ``tensors`` are the same, one by one.
    """

    bytes: int
    resident: int
    layers: list[Part]
    tensors: list[Part]
    files: list[tuple[str, int]]
    """Paths and bytes: one file, or the parts of the model in their order."""


class Process(NamedTuple):
    """A process that has a file mapped. PSS is memory where each page counts by one over those who share it."""

    pid: int
    command: str
    pss: int
    """Of this file, in bytes."""
    pss_total: int
    """Of the whole process."""


def residency(checkpoint: _core.Checkpoint) -> Residency:
    """Asks the kernel about every part of an open file."""

    def part(name: str, start: int, end: int) -> Part:
        return Part(name, start, end - start, checkpoint.resident(start, end))

    tensors = [part(name, start, start + size) for name, start, size in checkpoint.tensor_spans()]
    # A layer whose tensors are spread over the file counts those and not what lies between them.
    by_layer: dict[str, list[Part]] = {}
    for tensor in tensors:
        layer = re.match(r"blk\.\d+|[^.]*", tensor.name)
        by_layer.setdefault(layer[0] if layer else tensor.name, []).append(tensor)
    layers = [
        Part(key, min(t.start for t in own), sum(t.bytes for t in own), sum(t.resident for t in own))
        for key, own in by_layer.items()
    ]
    layers.sort(key=lambda layer: layer.start)
    size = checkpoint.size()
    header = part("header", 0, min((t.start for t in tensors), default=size))
    files = [(path, size) for path, _, _, size in checkpoint.files()]
    return Residency(size, checkpoint.resident(0, size), [header, *layers], tensors, files)


def processes(checkpoint: _core.Checkpoint) -> list[Process]:
    """The processes that have the file, or a part of it, mapped, as far as this user may look into them (Linux)."""
    places, names = [], []
    for file, device, inode, _ in checkpoint.files():
        places.append(f" {os.major(device):02x}:{os.minor(device):02x} {inode} ")
        names.append(f" {os.path.realpath(file)}\n")

    def is_ours(line: str) -> bool:
        # The device of a map is not always that of the file (overlayfs): then it is found by its name.
        return any(place in line for place in places) or line.endswith(tuple(names))

    found = []
    for pid in sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit()):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            with open(f"/proc/{pid}/maps") as f:
                if not any(is_ours(line) for line in f):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                command = cmdline.read().replace(b"\0", b" ").decode(errors="replace").strip()
            pss = pss_total = 0
            ours = False
            with open(f"/proc/{pid}/smaps") as f:
                for line in f:
                    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                        ours = is_ours(line)
                    elif line.startswith("Pss:"):
                        size = int(line.split()[1]) << 10
                        pss_total += size
                        pss += size if ours else 0
            found.append(Process(pid, command, pss, pss_total))
    return found


def read_rate(residency: Residency, seconds: float = 0.2) -> float | None:
    """Bytes per second that the disk gives, measured on what is missing and without bringing it into the page cache.

    None if nothing large enough is missing, or if the file system cannot read past the cache.
    """
    import mmap

    missing = max(residency.tensors, key=lambda t: t.bytes - t.resident, default=None)
    if missing is None or missing.bytes - missing.resident < 1 << 20:
        return None
    step, at, files = 4 << 20, missing.start, iter(residency.files)
    path, size = next(files)
    while at >= size:
        at -= size
        path, size = next(files)
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, step) as buffer:  # O_DIRECT wants the memory aligned
            end = at + missing.bytes
            at -= at % mmap.PAGESIZE
            start, done = perf_counter(), 0
            while at < end and perf_counter() - start < seconds:
                got = os.preadv(file, [buffer], at)
                if got == 0:
                    break
                at, done = at + got, done + got
            return done / (perf_counter() - start) if done else None
    except OSError:
        return None
    finally:
        os.close(file)


def read_in(checkpoint: _core.Checkpoint) -> Iterator[int]:
    """Reads the file into memory, step by step; gives the bytes done so far."""
    size = checkpoint.size()
    for start in range(0, size, STEP):
        end = min(start + STEP, size)
        checkpoint.read_in(start, end)
        yield end


def strip(checkpoint: _core.Checkpoint, part: Part, width: int = 32) -> str:
    """A picture of a part of the file from its start to its end: the fuller, the more of it is in memory."""
    shades = " ░▒▓█"
    cells = []
    for i in range(width):
        start, end = (part.start + part.bytes * j // width for j in (i, i + 1))
        share = checkpoint.resident(start, end) / (end - start) if end > start else 0
        # The extremes mean all and nothing.
        cells.append(shades[4 if share == 1 else 0 if share == 0 else min(max(round(4 * share), 1), 3)])
    return "".join(cells)


def progress(done: int, whole: int, rate: float, width: int = 24) -> str:
    """A line that says how far the reading is."""
    filled = width * done // max(whole, 1)
    left = f", {(whole - done) / rate:.0f} s left" if rate > 0 and done < whole else ""
    return f"[{'#' * filled}{'.' * (width - filled)}] {done >> 20} of {whole >> 20} MiB, {rate / 1e6:.0f} MB/s{left}"


@contextmanager
def watch(checkpoint: _core.Checkpoint, say: Callable[[str], None], period: float = 0.2) -> Iterator[None]:
    """Says now and then how much of what a pass needs is in memory, if not all of it is, until the end of the block.

    What a pass needs is all but the embedding, of which it reads a few rows, and the header, which has been read.
    """
    tensors = residency(checkpoint).tensors
    needed = [part for part in tensors if not part.name.startswith("token_embd.")] or tensors
    whole = sum(part.bytes for part in needed)
    before = sum(part.resident for part in needed)
    if before > 0.98 * whole:
        yield
        return
    from threading import Event, Thread

    end, start = Event(), perf_counter()

    def run() -> None:
        done = before
        while not end.wait(period) and done < whole:
            done = sum(checkpoint.resident(part.start, part.start + part.bytes) for part in needed)
            say(progress(done, whole, (done - before) / (perf_counter() - start)))

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        say("")
