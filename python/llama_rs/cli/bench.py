"""``llama-rs bench``: how fast a model is on this computer."""

from __future__ import annotations

from typing import Any, Literal

import click

from .. import Model
from .._core import cpu
from ..output import is_watched, printable, say, table, write, write_json
from . import Command
from .arguments import find_model, json_option, model_option, parameters


@click.command("bench", cls=Command)
@model_option
@click.option(
    "-p",
    "--prompt-tokens",
    type=click.IntRange(0, 2**32 - 1),
    default=512,
    help="Tokens of the prompt; 0 for no such test.",
)
@click.option(
    "-n", "--max-tokens", type=click.IntRange(0, 2**32 - 1), default=128, help="Tokens to generate; 0 for no such test."
)
@click.option(
    "-r", "--repetitions", type=click.IntRange(1, 1_000_000), default=5, help="How many times to run each test."
)
@parameters("kv_type", "threads")
@json_option
def command(
    model: str | None,
    prompt_tokens: int,
    max_tokens: int,
    repetitions: int,
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the speed of a model on this computer.

    The unit is tokens per second. pp512 is the processing of a prompt of 512 tokens; tg128 is the generation of 128
    tokens one after another. Both start from an empty context with random tokens, run once to warm up, and mean
    what they mean in llama.cpp's llama-bench.

    \b
      llama-rs bench -m model.gguf
      llama-rs bench -m model.gguf -p 512 -n 128 -r 5 -t 2 --json
    """
    if not prompt_tokens and not max_tokens:
        raise click.UsageError("nothing to measure: -p and -n are both 0")
    path = find_model(model)
    llama = Model(path, threads=threads, kv_type=kv_type)
    results: list[dict[str, Any]] = []
    for test, n, is_generation in (("pp", prompt_tokens, False), ("tg", max_tokens, True)):
        if n == 0:
            continue
        if is_watched():
            say(f"measuring {test}{n}, {repetitions} times ...")
        results.append({"test": f"{test}{n}", **_measure(llama, n, is_generation, repetitions), "model": path})
    if as_json:
        write_json(results)
        return
    write(f"{printable(path)}, {llama.threads} threads, {cpu()}\n")
    rows = [(r["test"], f"{r['tokens_per_second']:.2f}", f"+- {r['stddev']:.2f} tokens/s") for r in results]
    table(rows, right=(1,))


def _measure(llama: Model, n: int, is_generation: bool, repetitions: int) -> dict[str, Any]:
    from math import sqrt

    with llama.session(context_length=n) as session:
        seconds = session._handle.bench(n, is_generation, repetitions)
    speeds = [n / s for s in seconds]
    mean = sum(speeds) / len(speeds)
    variance = sum((s - mean) ** 2 for s in speeds) / max(len(speeds) - 1, 1)
    return {
        "tokens_per_second": mean,
        "stddev": sqrt(variance),
        "seconds": seconds,
        "threads": llama.threads,
        "kv_type": llama.kv_type,
        "cpu": cpu(),
    }
