"""What of a model file is in memory, who has it there, and bringing it in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from time import perf_counter
from typing import NamedTuple

from . import _core

STEP = 16 << 20
"""Bytes that are read at a time: some ten milliseconds of a good disk."""


class Part(NamedTuple):
    """A part of a file: where it lies, and how many of its bytes are in memory."""

    name: str
    start: int
    bytes: int
    resident: int


class Residency(NamedTuple):
    """What of a model file is in memory, in the page cache that all processes share.

    The kernel tells only who owns the file or may write to it; to others it says that all is there.

    ``layers`` are the header, the layers and what belongs to none of them (``token_embd``, ``output``), in the order of the
    file. ``tensors`` are the same, one by one.
    """

    bytes: int
    resident: int
    layers: list[Part]
    tensors: list[Part]


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

    spans: dict[str, tuple[int, int]] = {}
    tensors = []
    for name in checkpoint.tensor_names():
        tensor = checkpoint.tensor(name)
        assert tensor is not None, "it is in the list"
        start, end = tensor.offset, tensor.offset + tensor.nbytes
        tensors.append(part(name, start, end))
        layer = re.match(r"blk\.\d+|[^.]*", name)
        key = layer[0] if layer else name
        first, last = spans.get(key, (start, end))
        spans[key] = (min(first, start), max(last, end))
    size = checkpoint.size()
    header = part("header", 0, min((t.start for t in tensors), default=size))
    # A layer whose tensors are spread over the file counts those and not what lies between them.
    layers = []
    for key, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        own = [t for t in tensors if t.name == key or t.name.startswith(key + ".")]
        layers.append(Part(key, start, sum(t.bytes for t in own), sum(t.resident for t in own)))
    return Residency(size, checkpoint.resident(0, size), [header, *layers], tensors)


def processes(path: str, checkpoint: _core.Checkpoint) -> list[Process]:
    """The processes that have the file mapped, as far as this user may look into them (Linux)."""
    device, inode = checkpoint.file()
    name = os.path.realpath(path)
    place = f"{os.major(device):02x}:{os.minor(device):02x} {inode} "
    found = []
    for pid in sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit()):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            with open(f"/proc/{pid}/maps") as f:
                # The device of a map is not always that of the file (overlayfs): then it is found by its name.
                if not any(place in line or line.endswith(f"{name}\n") for line in f):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                command = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
            pss = pss_total = 0
            ours = False
            with open(f"/proc/{pid}/smaps") as f:
                for line in f:
                    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                        ours = place in line or line.endswith(f"{name}\n")
                    elif line.startswith("Pss:"):
                        size = int(line.split()[1]) << 10
                        pss_total += size
                        pss += size if ours else 0
            found.append(Process(pid, command, pss, pss_total))
    return found


def read_rate(path: str, residency: Residency, seconds: float = 0.2) -> float | None:
    """Bytes per second that the disk gives, measured on what is missing and without bringing it into the page cache.

    None if nothing large enough is missing, or if the file system cannot read past the cache.
    """
    import mmap

    missing = max(residency.tensors, key=lambda t: t.bytes - t.resident, default=None)
    if missing is None or missing.bytes - missing.resident < 1 << 20:
        return None
    step = 4 << 20
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        with mmap.mmap(-1, step) as buffer:  # O_DIRECT wants the memory aligned
            at = missing.start - missing.start % mmap.PAGESIZE
            end = missing.start + missing.bytes
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


def warm(checkpoint: _core.Checkpoint) -> Iterator[int]:
    """Reads the file into memory, step by step; gives the bytes done so far."""
    size = checkpoint.size()
    for start in range(0, size, STEP):
        end = min(start + STEP, size)
        checkpoint.read_in(start, end)
        yield end
