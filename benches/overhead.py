"""What Python costs: microseconds per streamed token, and the time that imports take.

    python benches/overhead.py

A model of random weights so small that a pass takes microseconds answers greedily: what is left of the time of a
token is that of the bindings, of the package and of the loop around it. Each way is measured in turns with the others,
and the best of the rounds counts, since whatever disturbs makes it longer.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
TOKENS = 400
ROUNDS = 15


def ways(path: Path) -> dict[str, Callable[[], Iterable[Any]]]:
    """What is measured: each gives a stream of an answer."""
    from llama_rs import Model
    from llama_rs.compat import Llama

    model = Model(path, threads=1, context_length=TOKENS + 8)
    llm = Llama(str(path), n_threads=1, n_ctx=TOKENS + 8)
    prompt = model.tokenizer.encode("ab")
    asked: dict[str, Any] = {"temperature": 0.0, "max_tokens": TOKENS}

    def passes() -> Iterable[Any]:
        """The passes alone, in Rust."""
        model.bench(prompt_tokens=0, max_tokens=TOKENS, repetitions=1)
        return ()

    return {
        "in Rust alone": passes,
        "Model.stream": lambda: model.stream(prompt, ignore_eos=True, **asked),
        "compat, generate": lambda: (
            token for token, _ in zip(llm.generate(prompt, temp=0), range(TOKENS), strict=False)
        ),
        "compat, completion": lambda: llm(prompt, stream=True, **asked),
        "compat, chat": lambda: llm.create_chat_completion([{"role": "user", "content": "a"}], stream=True, **asked),
    }


def seconds(stream: Callable[[], Iterable[Any]]) -> tuple[float, int]:
    """The time of a stream without its first piece, and how many pieces that are."""
    pieces = iter(stream())
    next(pieces, None)
    start = time.perf_counter()
    n = sum(1 for _ in pieces)
    return time.perf_counter() - start, n


def measure(path: Path) -> None:
    """Prints microseconds a piece."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, stream in ways(path).items():
            if name == "in Rust alone":
                start = time.perf_counter()
                stream()
                took = (time.perf_counter() - start) / (2 * TOKENS)  # it runs once to warm up
            else:
                total, n = seconds(stream)
                took = total / max(n, 1)
            best[name] = min(best.get(name, took), took)
    rust = best["in Rust alone"]
    for name, took in best.items():
        print(f"{name:<20} {1e6 * took:7.1f} us a token, {1e6 * (took - rust):6.1f} more than the pass")


def imports() -> None:
    """Prints milliseconds that a process takes with an import, above one without."""

    def process(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    codes = {"nothing": "pass", "llama_rs": "import llama_rs", "Model": "from llama_rs import Model"}
    codes |= {"compat": "from llama_rs.compat import Llama", "numpy": "import numpy"}
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(ROUNDS):
        for name, code in codes.items():
            times[name].append(process(code))
    nothing = statistics.median(times["nothing"])
    for name, took in times.items():
        print(f"import of {name:<10} {1e3 * (statistics.median(took) - nothing):6.1f} ms")


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    from tiny_model import write_tiny_model

    with tempfile.TemporaryDirectory() as folder:
        measure(write_tiny_model(Path(folder, "tiny.gguf"), "F32", context_length=1024))
    imports()
