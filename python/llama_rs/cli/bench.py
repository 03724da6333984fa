"""``llama-rs bench``: how fast a model is on this computer."""

from __future__ import annotations

import statistics
from typing import Literal

from .. import Model
from .._core import cpu
from ..notes import counted
from ..output import is_watched, say, table, warn, write_json, write_line
from . import declare
from .arguments import doubts_of_length, find_model, json_option, model_option, parameters
from .exits import UsageError
from .kinds import Number


@declare.command("bench")
@model_option
@declare.option(
    "-p",
    "--prompt-tokens",
    type=Number(int, 0, 2**32 - 1),
    default=512,
    help="Tokens of the prompt; 0 for no such test.",
)
@declare.option(
    "-n", "--max-tokens", type=Number(int, 0, 2**32 - 1), default=128, help="Tokens to generate; 0 for no such test."
)
@declare.option(
    "-r", "--repetitions", type=Number(int, 1, 1_000_000), default=5, help="How many times to run each test."
)
@declare.option(
    "--curve",
    is_flag=True,
    help="Prompts of 1, 2, 4 ... tokens up to that of -p: what a batch of so many costs, in milliseconds.",
)
@parameters("kv_type", "threads")
@json_option
def command(
    model: str | None,
    prompt_tokens: int,
    max_tokens: int,
    repetitions: int,
    curve: bool,
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
      llama-rs bench -m model.gguf --curve -n 0
    """
    if not prompt_tokens and not max_tokens:
        raise UsageError("nothing to measure: -p and -n are both 0")
    path = find_model(model)
    llama = Model(path, threads=threads, kv_type=kv_type)

    for warning in doubts_of_length(llama, max(prompt_tokens, max_tokens)):
        warn(warning)

    def tell(test: str) -> None:
        if is_watched():
            say(f"measuring {test}, {counted(repetitions, 'time')} ...")

    prompts = [prompt_tokens]
    if curve:
        prompts = [1 << k for k in range(prompt_tokens.bit_length()) if 1 << k < prompt_tokens] + prompts
    results = [
        result
        for prompt, generated in [*((n, 0) for n in prompts), (0, max_tokens)]
        for result in llama.bench(prompt_tokens=prompt, max_tokens=generated, repetitions=repetitions, on_test=tell)
    ]
    if as_json:
        machine = {"threads": llama.threads, "kv_type": kv_type, "cpu": cpu(), "model": path}
        write_json(
            [
                {
                    "test": result.test,
                    "tokens_per_second": result.tokens_per_second,
                    "stddev": result.stddev,
                    "seconds": result.seconds,
                    **machine,
                }
                for result in results
            ]
        )
        return
    write_line(f"{path}, {counted(llama.threads, 'thread')}, {cpu()}")
    rows: list[tuple[str, ...]] = [
        (r.test, f"{r.tokens_per_second:.2f}", f"+- {r.stddev:.2f} tokens/s") for r in results
    ]
    if curve:
        rows = [(*row, f"{statistics.median(r.seconds) * 1000:.2f} ms") for row, r in zip(rows, results, strict=True)]
    table(rows, right=(1, 3) if curve else (1,))
