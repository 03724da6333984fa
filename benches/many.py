"""Many answers at once: a batch beside single runs, what a step costs, and how long others wait while a prompt arrives.

    python benches/many.py model.gguf --threads 2
    python benches/many.py model.gguf --threads 2 --peer       # in an environment with llama-cpp-python

The peer is llama.cpp itself, without anything of Python between its steps but the largest logit. Prints a table a test.
Times are those that a program in Python sees. The machine must be quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_rs import Model

TEXT = "The keeper of the lighthouse wrote down what the sea had brought that day, and what it had taken. "
TOPICS = ["the wind", "a ship", "his brother", "the lamp", "a letter", "the winter", "gulls", "the harbour"]


def texts(n: int) -> list[str]:
    """Prompts that begin alike."""
    return [TEXT * 2 + f"Today it was about {TOPICS[i % len(TOPICS)]} {i}:" for i in range(n)]


def batch(model: Model, n: int, max_tokens: int, rounds: int) -> None:
    """Total tokens per second of `n` prompts, one after another and together."""
    prompts = texts(n)
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    single, together = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        alone = [model.generate(prompt, **options).token_ids for prompt in prompts]
        single.append(n * max_tokens / (time.perf_counter() - start))
        start = time.perf_counter()
        done = [completion.token_ids for completion in model.generate_batch(prompts, parallel=n, **options)]
        together.append(n * max_tokens / (time.perf_counter() - start))
        assert done == alone
    a, b = statistics.median(single), statistics.median(together)
    print(f"{n} prompts, {max_tokens} tokens each: single {a:.1f} tokens/s, together {b:.1f} tokens/s: {b / a:.2f} x")


def curve(model: Model) -> None:
    """Milliseconds of a step by its rows: answers that are made at the same time."""
    for n in (1, 2, 4, 8, 16, 32):
        prompts = [[1 + (7 * i + j) % 200 for j in range(8)] for i in range(n)]
        times = []
        for tokens in (8, 40):
            start = time.perf_counter()
            model.generate_batch(prompts, parallel=n, max_tokens=tokens, temperature=0, ignore_eos=True)
            times.append(time.perf_counter() - start)
        step = (times[1] - times[0]) / 32
        print(f"{n:3} rows: {step * 1e3:6.1f} ms a step, {n / step:6.1f} tokens/s")


async def arrival(model: Model, n: int, prompt_tokens: int, step_ms: float) -> None:
    """The time between two tokens of `n` answers, before and while a long prompt is computed."""
    from llama_rs import AsyncEngine

    prompt = (model.tokenizer.encode(TEXT) * (prompt_tokens // 8))[:prompt_tokens]
    async with AsyncEngine(model, parallel=n + 1, step_ms=step_ms) as engine:
        seen: list[list[float]] = [[] for _ in range(n)]

        async def read(i: int) -> None:
            topic = f"{TOPICS[i % len(TOPICS)]} {i}:"
            async for _ in engine.stream(topic, max_tokens=4000, ignore_eos=True, temperature=1.0, seed=i):
                seen[i].append(time.perf_counter())

        tasks = [asyncio.ensure_future(read(i)) for i in range(n)]
        while min(map(len, seen)) < 30:
            await asyncio.sleep(0.01)
        start = time.perf_counter()
        first = engine.stream(prompt, max_tokens=1, temperature=0)
        await anext(first, "")
        end = time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for name, low, high in (("before", 0.0, start), ("while", start, end)):
        gaps = [(b - a) * 1e3 for times in seen for a, b in pairwise(times) if a >= low and b <= high]
        gaps.sort()
        print(
            f"{name:7} between tokens of {n} answers: median {statistics.median(gaps):.1f} ms, "
            f"p99 {gaps[int(0.99 * (len(gaps) - 1))]:.1f}, worst {gaps[-1]:.1f}"
        )
    print(f"first token of {prompt_tokens} after {end - start:.2f} s; step_ms {step_ms:g}")


def peer(path: str, threads: int | None, n: int, max_tokens: int, rounds: int) -> None:
    """The batch, by llama.cpp: each prompt a sequence of one context."""
    import llama_cpp as lib
    import numpy as np

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_backend_init()
    options = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(path.encode(), options)
    vocabulary = lib.llama_model_get_vocab(model)
    n_vocab = lib.llama_vocab_n_tokens(vocabulary)
    context = lib.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = 8192, 2048, 512, n
    if threads:
        context.n_threads = context.n_threads_batch = threads
    ctx = lib.llama_init_from_model(model, context)
    batch = lib.llama_batch_init(2048, 0, 1)

    def encoded(text: str) -> list[int]:
        buffer = (lib.llama_token * 1024)()
        count = lib.llama_tokenize(vocabulary, text.encode(), len(text.encode()), buffer, 1024, True, True)
        return list(buffer[:count])

    def step(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Computes (token, position, sequence, whether its logits are wanted); gives the likeliest next tokens."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        assert lib.llama_decode(ctx, batch) == 0
        wanted_rows = [i for i, row in enumerate(rows) if row[3]]
        return [
            int(np.ctypeslib.as_array(lib.llama_get_logits_ith(ctx, i), shape=(n_vocab,)).argmax()) for i in wanted_rows
        ]

    def answers(prompts: list[list[int]]) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(ctx), True)
        rows = [(t, i, s, i == len(p) - 1) for s, p in enumerate(prompts) for i, t in enumerate(p)]
        tokens = step(rows)
        for k in range(max_tokens - 1):
            tokens = step([(t, len(prompts[s]) + k, s, True) for s, t in enumerate(tokens)])

    prompts = [encoded(text) for text in texts(n)]
    single, together = [], []
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        for prompt in prompts:
            answers([prompt])
        single.append(n * max_tokens / (time.perf_counter() - start))
        start = time.perf_counter()
        answers(prompts)
        together.append(n * max_tokens / (time.perf_counter() - start))
    a, b = statistics.median(single[1:]), statistics.median(together[1:])
    print(f"{n} prompts, {max_tokens} tokens each: single {a:.1f} tokens/s, together {b:.1f} tokens/s: {b / a:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tests", default="batch,curve,arrival")
    parser.add_argument("--peer", action="store_true", help="measure the batch of llama.cpp")
    arguments = parser.parse_args()
    if arguments.peer:
        peer(arguments.model, arguments.threads, 8, arguments.max_tokens, arguments.rounds)
        return
    from llama_rs import Model

    model = Model(arguments.model, threads=arguments.threads, context_length=8192)
    model.generate(TEXT, max_tokens=8)  # warm
    tests = arguments.tests.split(",")
    if "batch" in tests:
        batch(model, 8, arguments.max_tokens, arguments.rounds)
    if "curve" in tests:
        curve(model)
    if "arrival" in tests:
        asyncio.run(arrival(model, arguments.answers, arguments.prompt_tokens, arguments.step_ms))


if __name__ == "__main__":
    main()
