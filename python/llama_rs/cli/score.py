"""``llama-rs score``: how likely continuations of a text are."""

from __future__ import annotations

from typing import Literal

import click

from .. import Model
from ..output import write_json
from . import Command
from .arguments import find_model, is_utf8, lora_option, model_option, parameters


@click.command("score", cls=Command)
@click.argument("prompt")
@click.argument("continuations", nargs=-1, required=True, metavar="CONTINUATION...")
@model_option
@lora_option
@parameters("context_length", "threads", "kv_type")
def command(
    prompt: str,
    continuations: tuple[str, ...],
    model: str | None,
    lora: tuple[tuple[str, float], ...],
    context_length: int | None,
    threads: int | None,
    kv_type: Literal["f16", "q8_0"],
) -> None:
    """Say how likely each continuation of a text is.

    Prints a line of JSON for each: "continuation", "logprob", the natural logarithm of its probability, and "tokens",
    each with its own. A continuation begins with the space that the text does not end with.

    \b
      llama-rs score "The capital of France is" " Paris" " London"
    """
    if not all(map(is_utf8, (prompt, *continuations))):
        raise click.UsageError("a text is not valid UTF-8")
    llama = Model(find_model(model), context_length=context_length, threads=threads, kv_type=kv_type, lora=lora)
    decode = llama.tokenizer.decode
    for continuation in continuations:
        score = llama.score(prompt, continuation)
        tokens = [
            {"id": i, "text": decode([i]), "logprob": logprob}
            for i, logprob in zip(score.token_ids, score.logprobs, strict=True)
        ]
        write_json({"continuation": continuation, "logprob": score.total, "tokens": tokens})
