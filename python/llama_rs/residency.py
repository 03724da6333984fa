"""What of a model file is in memory, who has it there, and bringing it in.

The kernel is asked about each byte once, in one sweep over the file, and all numbers are sums of its answers: so they
fit together, also while the file is being read. Only experts are looked at a second time, one by one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from . import _core
from .output import progress

if TYPE_CHECKING:
    from .model import Model

STEP = 16 << 20
"""Bytes that are read at a time: some ten milliseconds of a good disk."""

LITTLE = 8 << 20
"""Bytes in small pages that are not worth mending."""

PIECES = 32
"""Of a layer, in a picture of it."""

CAP_FOWNER = 1 << 3


class Part(NamedTuple):
    """A part of a model: where it lies, and how many of its bytes are in memory.

    Where a model is in several files, ``start`` counts through them one after another.
    """

    name: str
    start: int
    bytes: int
    resident: int
    pieces: tuple[float, ...] = ()
    """Of a layer, from its start to its end in equal pieces: the share of each that is in memory."""


class Experts(NamedTuple):
    """The experts of a layer: which of them are in memory. A pass reads those that its router chose."""

    layer: str
    bytes: int
    """Of all of them."""
    shares: tuple[float, ...]
    """Of each expert, the share that is in memory."""


class Residency(NamedTuple):
    """What of a model file is in memory, in the page cache that all processes share.

    ``layers`` are the header, the token embedding, the layers in the order in which a pass uses them, and what belongs
    to none of them (``output``). ``tensors`` are the same, one by one, in the order of the file.

    The kernel tells only who owns the file or may write to it; to others it says that all is in memory, see
    :func:`is_known`.
    """

    bytes: int
    resident: int
    layers: list[Part]
    tensors: list[Part]
    files: list[tuple[str, int]]
    """Paths and bytes: one file, or the parts of the model in their order."""
    experts: list[Experts] = []  # noqa: RUF012 - a tuple's default is never changed
    """The layers that have experts, in the order of the file."""


class Process(NamedTuple):
    """A process that has a file mapped. PSS is memory where each page counts by one over those who share it."""

    pid: int
    command: str
    """Bytes that are not UTF-8 as ``\\xe9``."""
    pss: int
    """Of this file, in bytes."""
    pss_total: int
    """Of the whole process."""
    large: int = 0
    """Of this file, the bytes that it has mapped in large pages."""


def residency(checkpoint: _core.Checkpoint) -> Residency:
    """Asks the kernel about every part of an open file."""
    size = checkpoint.size()
    spans = [(start, start + n_bytes, name) for name, start, n_bytes in checkpoint.tensor_spans()]
    by_place = sorted(spans)
    header = by_place[0][0] if by_place else size

    # The tensors of a layer may be spread over the file: it counts them, and not what lies between.
    layers: dict[str, _Sum] = {"header": _Sum(0, header)}
    for start, end, name in by_place:
        layers.setdefault(_layer_of(name), _Sum(start)).bytes += end - start
    layers["header"].ask(checkpoint, 0, header)
    resident, at = layers["header"].resident, header
    tensors: dict[str, Part] = {}
    for start, end, name in by_place:
        between = checkpoint.resident(at, start) if at < start else 0  # padding
        own = layers[_layer_of(name)].ask(checkpoint, start, end)
        tensors[name] = Part(name, start, end - start, own)
        resident, at = resident + between + own, max(at, end)
    resident = min(resident + checkpoint.resident(at, size), size)
    return Residency(
        size,
        resident,
        [layers[name].part(name) for name in sorted(layers, key=_place_of_layer)],
        [tensors[name] for _, _, name in spans],
        [(path, n_bytes) for path, _, _, n_bytes in checkpoint.files()],
        _experts(checkpoint, spans),
    )


def _experts(checkpoint: _core.Checkpoint, spans: list[tuple[int, int, str]]) -> list[Experts]:
    """Of each expert of each layer, what is in memory. Its matrices are parts of tensors, or tensors."""
    found: dict[str, dict[int, list[int]]] = {}  # [bytes, those in memory]

    def add(layer: str, expert: int, start: int, end: int) -> None:
        both = found.setdefault(layer, {}).setdefault(expert, [0, 0])
        both[0] += end - start
        both[1] += checkpoint.resident(start, end)

    for start, end, name in spans:
        if stack := re.fullmatch(r"(blk\.\d+)\.ffn_(?:gate|up|gate_up|down)_exps\.weight", name):
            tensor = checkpoint.tensor(name)
            n = tensor.shape[0] if tensor and len(tensor.shape) == 3 else 1
            each = (end - start) // n
            for i in range(n):
                add(stack[1], i, start + i * each, start + (i + 1) * each)
        elif one := re.fullmatch(r"(blk\.\d+)\.ffn_(?:gate|up|down)\.(\d{1,9})\.weight", name):
            add(one[1], int(one[2]), start, end)
    return [
        Experts(
            layer,
            sum(n for n, _ in experts.values()),
            tuple(here / max(n, 1) for _, (n, here) in sorted(experts.items())),
        )
        for layer, experts in found.items()
    ]


class _Sum:
    """Of a layer, while its tensors are asked about one after the other."""

    def __init__(self, start: int, n_bytes: int = 0) -> None:
        self.start = start
        self.bytes = n_bytes
        self.done = 0
        self.resident = 0
        self.pieces = [0] * PIECES

    def ask(self, checkpoint: _core.Checkpoint, start: int, end: int) -> int:
        """Asks about the next bytes of the layer, piece by piece; gives how many of them are in memory."""
        found = 0
        while start < end:
            i = min(self.done * PIECES // self.bytes, PIECES - 1)
            n = min(end - start, max(-(-self.bytes * (i + 1) // PIECES) - self.done, 1))
            here = checkpoint.resident(start, start + n)
            self.pieces[i] += here
            found, start, self.done = found + here, start + n, self.done + n
        self.resident += found
        return found

    def part(self, name: str) -> Part:
        borders = [-(-self.bytes * i // PIECES) for i in range(PIECES + 1)]
        lengths = [b - a for a, b in pairwise(borders)]
        shares = (piece / length if length else 0.0 for piece, length in zip(self.pieces, lengths, strict=True))
        return Part(name, self.start, self.bytes, self.resident, tuple(shares))


def _layer_of(tensor: str) -> str:
    layer = re.match(r"blk\.[0-9]{1,9}(?=\.)|[^.]*", tensor)
    return layer[0] if layer else tensor


def _place_of_layer(name: str) -> tuple[int, int, str]:
    """Sorts layers as a pass uses them."""
    if name == "header":
        return 0, 0, name
    if name.startswith("blk."):  # and a number, see above
        return 2, int(name[4:]), name
    return (1 if name.startswith(("token_", "position_")) else 3), 0, name


def is_known(path: str | os.PathLike[str]) -> bool:
    """Whether the kernel tells this process what of a file is in memory: to others it says that all is.

    Of a directory, whether it does of all weights in it.
    """
    if os.path.isdir(path):
        folder = os.fsdecode(path)
        weights = [name for name in os.listdir(folder) if name.endswith(".safetensors")]
        return all(is_known(os.path.join(folder, name)) for name in weights)
    try:
        if os.stat(path).st_uid == os.geteuid() or os.access(path, os.W_OK, effective_ids=True):
            return True
        with open("/proc/self/status") as f:
            capabilities = next(int(line.split()[1], 16) for line in f if line.startswith("CapEff:"))
        return bool(capabilities & CAP_FOWNER)
    except (OSError, StopIteration, NotImplementedError):
        return True


def processes(checkpoint: _core.Checkpoint) -> list[Process]:
    """The processes that have the file, or a part of it, mapped, as far as this user may look into them (Linux)."""
    # Names are bytes: those of other programs need not be UTF-8. The kernel writes a newline in one as \\012.
    places, names = [], []
    for file, device, inode, _ in checkpoint.files():
        places.append(f" {os.major(device):02x}:{os.minor(device):02x} {inode} ".encode())
        names.append(b" " + os.fsencode(os.path.realpath(file)).replace(b"\n", b"\\012") + b"\n")

    def is_ours(line: bytes) -> bool:
        # The device of a map is not always that of the file (overlayfs): then it is found by its name.
        return any(place in line for place in places) or line.endswith(tuple(names))

    found = []
    for pid in sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit()):
        with suppress(OSError):  # it has ended, or belongs to somebody else
            with open(f"/proc/{pid}/maps", "rb") as f:
                if not any(is_ours(line) for line in f):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                command = f.read().rstrip(b"\0").replace(b"\0", b" ").decode(errors="backslashreplace")
            pss = pss_total = large = 0
            ours = False
            with open(f"/proc/{pid}/smaps", "rb") as f:
                for line in f:
                    if re.match(rb"[0-9a-f]+-[0-9a-f]+ ", line):
                        ours = is_ours(line)
                    elif line.startswith(b"Pss:"):
                        size = int(line.split()[1]) << 10
                        pss_total += size
                        pss += size if ours else 0
                    elif ours and line.startswith(b"FilePmdMapped:"):
                        large += int(line.split()[1]) << 10
            found.append(Process(pid, command, pss, pss_total, large))
    return found


def enlarge_pages(checkpoint: _core.Checkpoint) -> int:
    """Has a file that is in memory lie there in large pages; gives how many more of its bytes do than before.

    A file that was written (downloaded, copied) lies in small ones, and each process takes longer to map them. Where
    the kernel cannot put them together they are dropped and read again, but not while another process uses the file.
    """

    def large() -> int:
        return sum(process.large for process in processes(checkpoint) if process.pid == os.getpid())

    size, before = checkpoint.size(), large()
    if size - before < max(size // 8, LITTLE):
        return 0
    drop = all(process.pid == os.getpid() for process in processes(checkpoint))
    if drop:
        checkpoint.sync()  # what is not on the disk yet cannot be dropped
    for at in range(0, size, STEP):
        checkpoint.enlarge_pages(at, min(at + STEP, size), drop)
        # Once, after more than what was large before: if still nothing is, the file system has no large pages.
        if at - STEP <= before + LITTLE < at and large() <= before:
            break
    return max(large() - before, 0)


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


@contextmanager
def watch(model: Model, say: Callable[[str], None], period: float = 0.2) -> Iterator[None]:
    """Says now and then how much of what a pass needs is in memory, if not all of it is, until the end of the block.

    What a pass needs is all but the embedding, of which it reads a few rows, and the header, which has been read.
    """

    def count() -> tuple[int, int]:
        tensors = model.residency().tensors
        needed = [part for part in tensors if not part.name.startswith("token_embd.")] or tensors
        return sum(part.resident for part in needed), sum(part.bytes for part in needed)

    before, whole = count()
    if before > 0.98 * whole:
        yield
        return
    from threading import Event, Thread

    end, start = Event(), perf_counter()

    def run() -> None:
        done = before
        while not end.wait(period) and done < whole:
            done, _ = count()
            say(progress(done, whole, (done - before) / (perf_counter() - start)))

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        say("")
