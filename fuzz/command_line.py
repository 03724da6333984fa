"""Any command line over any model file: it ends by itself, says what is wrong in a line, and controls no terminal.

    python fuzz/command_line.py [--seed N] [--runs N] [--seconds S]

Each run is a fork of this process, which has the package imported, with options and odd values and, half of the time, a
damaged model. What is asked of it: an exit code of the list, no traceback, exactly one line `error:` if it fails and no
other line but warnings, UTF-8 without control characters on both outputs (but for an answer), and JSON that is JSON.
Prints what was wrong, and how many runs of each command ended how.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from llama_rs.cli import COMMANDS, find_command, main
from tiny_model import write_tiny_model

for name in (*COMMANDS, "clicked"):  # so that no fork imports it anew
    __import__(f"llama_rs.cli.{name}")

ODD = [
    *("", "x", "the sea", "-1", "0", "1", "3", "7", "9" * 30, "1e400", "1e308", "nan", "inf", "-inf", "0.5"),
    *("--", "-", "-n", "--json", "--nope", "=", "--temp=", "--temp=0.3", "-hello"),
    *("\x1b[31mred", "\udce9", "日本", "\u202e", "a\nb", "\x01"),
    *("f16", "q8_0", "stop", "shift", "mmap", "read", "/dev/null", "/dev/full", "/proc/self/mem", "/proc/x.kv"),
]
TEXTS = [b"", b"the sea and the wind and the sun " * 9, b"\xff", b"\xef\xbb\xbfx", b"a\0b\x1b[31m"]
SHORT = {
    "generate": ["-n", "3"],
    "perplexity": ["-c", "8"],
    "bench": ["-r", "1", "-n", "2", "-p", "3"],
}
SECONDS = 20  # that a run may take


class Maker:
    """Makes command lines and the files that they speak of, in a folder of its own."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.tiny: Path = write_tiny_model(folder / "tiny.gguf", "F32", n_layers=1, dim=32, hidden_dim=32)
        self.good = self.tiny.read_bytes()
        self.caches = [folder / "a.kv", folder / "b.kv", folder / "link.kv", folder / "pipe.kv", folder / "damaged.kv"]
        (folder / "link.kv").symlink_to("nothing.kv")
        os.mkfifo(folder / "pipe.kv")
        self.odd = [*ODD, str(self.tiny), str(folder), str(folder / "none"), *map(str, self.caches[:3])]

    def arguments(self) -> list[str]:
        r = self.random
        command = r.choice([name for name in COMMANDS if name != "serve"])  # which ends when it is told to
        arguments = [command, *SHORT.get(command, [])]
        if r.random() < 0.9:
            arguments += ["-m", str(self.model())]
        for _ in range(r.randrange(5)):
            arguments += self.option(command)
        if r.random() < 0.3:
            arguments.append(r.choice(self.odd))
        if r.random() < 0.05:
            r.shuffle(arguments)
        return [a for a in arguments if a != "--lock" or command != "warm"]  # which waits for a signal

    def option(self, command: str) -> list[str]:
        """An option of the command with a value that it may take, or any."""
        r = self.random
        options = [p for p in find_command(command).parameters if p.is_option]
        if not options:
            return []
        option = r.choice(options)
        spelling = r.choice([spelling for spelling, _ in option.spellings()])
        if option.is_flag:
            return [spelling]
        default = option.settings.get("default")
        values = [str(default)] if default is not None else []
        values += option.kind.choices or ["1", "2", "8"]
        if "cache" in spelling:
            values = [str(r.choice(self.caches))] * 5
        return [spelling, r.choice(values) if r.random() < 0.7 else r.choice(self.odd)]

    def model(self) -> Path:
        r = self.random
        if r.random() < 0.5:
            return self.tiny
        path = self.folder / (os.fsdecode(b"m\xe9\x1b.gguf") if r.random() < 0.3 else "m.gguf")
        path.write_bytes(self.damaged(self.good))
        return path

    def damaged(self, content: bytes) -> bytes:
        r = self.random
        out = bytearray(content)
        for _ in range(r.choice([1, 1, 2, 5, 30])):
            at = r.randrange(min(len(out), 12_000 if r.random() < 0.8 else len(out)))  # the header, most of the time
            kind = r.random()
            if kind < 0.5:
                out[at] = r.randrange(256)
            elif kind < 0.6:
                out[at : at + 8] = r.choice([0, 1 << 31, 1 << 63, (1 << 64) - 1]).to_bytes(8, "little")
            elif kind < 0.7:
                del out[at : at + r.randrange(1, 20)]
            elif kind < 0.8:
                out[at:at] = r.randbytes(r.randrange(1, 20))
            elif kind < 0.85:
                del out[at:]
            else:
                out[at : at + 3] = r.choice([b"\x1b[3", b"\n\r\t", b"\xe9\xff\x80"])
            if not out:
                out += b"x"
        return bytes(out)

    def files(self) -> None:
        """Caches to be used: some of an earlier run, some damaged, some none at all."""
        r = self.random
        for path in self.caches:
            if path.is_fifo():
                continue
            kind = r.random()
            if kind < 0.05:
                path.unlink(missing_ok=True)
                if path.name == "link.kv":
                    path.symlink_to("nothing.kv")
            elif path.name == "damaged.kv" or kind < 0.1:
                path.write_bytes(
                    self.damaged(path.read_bytes() if path.exists() and path.stat().st_size else b"llama_rs")
                )


def run(arguments: list[str], text: bytes, folder: Path) -> tuple[int, bytes, bytes]:
    """The exit code, negative for a signal, and what was written."""
    files = [os.open(folder / name, os.O_CREAT | os.O_RDWR | os.O_TRUNC) for name in ("in", "out", "err")]
    os.write(files[0], text)
    os.lseek(files[0], 0, os.SEEK_SET)
    pid = os.fork()
    if not pid:
        code = 99
        try:
            for i, file in enumerate(files):
                os.dup2(file, i)
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115
            sys.stderr = open(2, "w", errors="backslashreplace")  # noqa: SIM115
            code = main(arguments)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    for file in files:
        os.close(file)
    return os.waitstatus_to_exitcode(status), (folder / "out").read_bytes(), (folder / "err").read_bytes()


def is_controlling(text: str) -> bool:
    return any((c < " " and c != "\n") or "\x7f" <= c < "\xa0" for c in text)


def what_is_wrong(arguments: list[str], code: int, out: bytes, err: bytes) -> str | None:
    if code not in (0, 1, 2, 3, 4):
        return "exit code"
    said = err.decode(errors="replace")
    # With --jsonl each line has its own error, and the last word says how many have one.
    some = re.compile(r"error: |\d+ of \d+ lines? could not be answered")
    errors = [line for line in said.splitlines() if some.match(line)]
    if len(errors) != (code != 0):
        return "number of errors"
    if is_controlling(said):
        return "control characters in what is said"
    is_verbose = {"-v", "--verbose"} & set(arguments)
    if not is_verbose and any(not line.startswith("warning: ") and line not in errors for line in said.splitlines()):
        return "other words"
    try:
        text = out.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    if not {"generate", "chat"} & set(arguments) and is_controlling(text):
        return "control characters in the result"
    if "--json" in arguments and code == 0 and out and not {"-h", "--help", "--version"} & set(arguments):
        try:
            json.loads(text)
        except ValueError:
            return "no JSON"
    return None


def fuzz() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=1 << 60)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    maker = Maker(options.seed, folder)
    codes: Counter[tuple[str, int]] = Counter()
    start, bad = time.monotonic(), 0
    while sum(codes.values()) < options.runs and time.monotonic() - start < options.seconds:
        maker.files()
        arguments = maker.arguments()
        code, out, err = run(arguments, maker.random.choice(TEXTS), folder)
        codes[arguments[0] if arguments[0] in COMMANDS else "?", code] += 1
        if what := what_is_wrong(arguments, code, out, err):
            bad += 1
            print(f"{what}: exit {code} of {arguments}\n  {out[-200:]!r}\n  {err[-600:]!r}")
    shutil.rmtree(folder)
    print(f"seed {options.seed}: {sum(codes.values())} runs in {time.monotonic() - start:.0f} s, {bad} of them wrong")
    for (command, code), n in sorted(codes.items()):
        print(f"  {command} {code}: {n}")
    return bad > 0


if __name__ == "__main__":
    sys.exit(fuzz())
