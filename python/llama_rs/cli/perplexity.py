"""``llama-rs perplexity``: how well a model predicts a text."""

from __future__ import annotations

from math import isinf
from typing import Literal

import click

from .. import Model
from ..notes import counted
from ..output import is_watched, say, write, write_json
from . import Command
from .arguments import (
    Number,
    find_model,
    json_option,
    lora_option,
    model_option,
    parameters,
    read_text,
    text_option,
    verbose_option,
)


@click.command("perplexity", cls=Command)
@text_option
@model_option
@click.option("-c", "--context-length", type=Number(int, 4, 2**32 - 1), default=512, help="Tokens per window.")
@click.option(
    "--stride",
    type=Number(int, 1, 2**32 - 1),
    help="Windows begin so many tokens apart, and the last so many of each are scored.",
)
@lora_option
@parameters("kv_type", "threads")
@json_option
@verbose_option
def command(
    file: str | None,
    model: str | None,
    context_length: int,
    stride: int | None,
    lora: tuple[tuple[str, float], ...],
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure how well a model predicts a text.

    Lower is better. The text is the file given with -f, or else standard input. It is cut into windows of -c tokens,
    and the second half of each is scored, given what comes before it in the window, as llama.cpp's llama-perplexity
    does. Tokens at the end that do not fill a window are left out. With --stride windows overlap, and all tokens after
    the first window are scored.

    \b
      llama-rs perplexity -m model.gguf -f text.txt
    """
    if stride is not None and stride >= context_length:
        raise click.UsageError(f"--stride is {stride}, it must be less than the {context_length} tokens of a window")
    path = find_model(model)
    text = read_text(None, file)
    llama = Model(path, threads=threads, context_length=context_length, kv_type=kv_type, lora=lora)

    def tell(window: int, n_windows: int, perplexity: float) -> None:
        if verbose or is_watched():
            say(f"window {window} of {n_windows}: perplexity {perplexity:.4f}")

    try:
        result = llama.perplexity(text, context_length=context_length, stride=stride, on_window=tell)
    except ValueError as e:  # the text is too short
        raise click.ClickException(str(e)) from e
    if isinf(result.perplexity):
        raise click.ClickException(f"{path}: the perplexity is larger than any number: a weight is damaged")
    if as_json:
        write_json(result._asdict())
    else:
        write(f"perplexity {result.perplexity:.4f} +- {result.stderr:.4f} over {counted(result.tokens, 'token')}\n")
