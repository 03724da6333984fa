"""A token under conditions: behind a long context, beside a busy process.

    python benches/conditions.py model.gguf
    python benches/conditions.py model.gguf --depths 4096,16384,32768 --no-busy
    LLAMA_RS_CPU=avx2 python benches/conditions.py model.gguf --depths ""

Behind a context, a token reads the weights and all keys and values: its time is printed beside that in which as many
threads read as many bytes of memory. The context is random tokens; how long they took comes with it. Beside a process
that never sleeps, a token of all threads is held against a token of one thread that is alone. Medians; the machine must
be quiet but for that process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from llama_rs import Model, Session
from peers import cpu_name

TOKENS = 32
READ = 1 << 28
"""Bytes that each thread reads to find the rate."""


def read_rate(threads: int) -> float:
    """Bytes a second that as many threads read of memory: the best of five."""
    parts = [np.ones(READ // 8, np.uint64) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        readers = [threading.Thread(target=part.max) for part in parts]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = max(best, threads * READ / (time.perf_counter() - start))
    return best


def token_seconds(session: Session, tokens: int = TOKENS) -> float:
    """The median time of a token."""
    times = []
    for i in range(tokens):
        start = time.perf_counter()
        session.forward([1 + i])
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def contexts(path: str, depths: list[int], threads: int | None) -> None:
    """Tokens behind contexts."""
    for kv_type, bytes_of_number in (("f16", 2.0), ("q8_0", 34 / 32)):
        model = Model(path, threads=threads, kv_type=kv_type, context_length=max(depths) + TOKENS)  # type: ignore[arg-type]
        config = model.config
        of_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * bytes_of_number
        weights = sum(t.nbytes for t in model.tensors.values() if t.name != "token_embd.weight" or tied(model))
        session, at = model.session(), 0
        random = np.random.default_rng(1)
        for depth in depths:
            start = time.perf_counter()
            session.forward(random.integers(10, min(config.vocab_size, 30_000), depth - at).tolist())
            filled, at = time.perf_counter() - start, depth + TOKENS
            seconds = token_seconds(session)
            read = weights + of_token * depth
            rate = read_rate(model.threads)
            print(
                f"{kv_type}, {depth} tokens before: {1 / seconds:.1f} tokens/s, {read / 1e6:.0f} MB a token,"
                f" {read / seconds / 1e9:.1f} of {rate / 1e9:.1f} GB/s ({read / seconds / rate:.0%});"
                f" the context took {filled:.1f} s",
                flush=True,
            )


def tied(model: Model) -> bool:
    """Whether the embeddings are the output matrix as well, and are read for each token."""
    return "output.weight" not in model.tensors


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that takes what it gets of a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def beside_a_busy_process(path: str, threads: int | None, rounds: int) -> None:
    """Milliseconds of a token of one thread and of all, alone and beside a process that never sleeps; in turns."""
    models = {"one thread": Model(path, threads=1), "all threads": Model(path, threads=threads)}
    sessions = {name: model.session() for name, model in models.items()}
    times: dict[tuple[str, str], list[float]] = {}

    def measure(where: str) -> None:
        for name, session in sessions.items():
            session.truncate(0)
            token_seconds(session, 8)
            times.setdefault((name, where), []).append(token_seconds(session, 64))

    for _ in range(rounds):
        measure("alone")
        with busy_process():
            measure("beside a busy process")
    found = {of: statistics.median(of_all) for of, of_all in times.items()}
    for (name, where), seconds in sorted(found.items()):
        print(f"{name}, {where}: {1e3 * seconds:.1f} ms a token, {1 / seconds:.1f} tokens/s")
    ratio = found["all threads", "beside a busy process"] / found["one thread", "alone"]
    print(f"all threads beside a busy process: {ratio:.2f} x the time of one thread that is alone", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--depths", default="4096", help="tokens of context, ascending, with commas; may be empty")
    parser.add_argument("--threads", type=int, help="by default all cores")
    parser.add_argument("--rounds", type=int, default=5, help="beside a busy process")
    parser.add_argument("--no-busy", action="store_true", help="only contexts")
    options = parser.parse_args()
    print(cpu_name())
    if options.depths:
        contexts(options.model, [int(depth) for depth in options.depths.split(",")], options.threads)
    if not options.no_busy:
        beside_a_busy_process(options.model, options.threads, options.rounds)


if __name__ == "__main__":
    main()
