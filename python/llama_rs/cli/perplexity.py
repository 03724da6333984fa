"""``llama-rs perplexity``: how well a model predicts a text."""

from __future__ import annotations

from functools import partial
from math import isinf
from typing import Literal

from .. import Model, Perplexity
from ..notes import counted
from ..output import is_watched, say, write, write_json
from . import bulk, declare
from .arguments import (
    bulk_options,
    check_bulk_options,
    find_model,
    json_option,
    lora_option,
    model_option,
    parameters,
    read_text,
    text_option,
    verbose_option,
)
from .exits import Failure, UsageError
from .kinds import Number


@declare.command("perplexity")
@text_option
@model_option
@declare.option("-c", "--context-length", type=Number(int, 4, 2**32 - 1), default=512, help="Tokens per window.")
@declare.option(
    "--stride",
    type=Number(int, 1, 2**32 - 1),
    help="Windows begin so many tokens apart, and the last so many of each are scored.",
)
@lora_option
@parameters("kv_type", "threads")
@json_option
@bulk_options
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
    jsonl: bool,
    output: str | None,
    resume: bool,
    verbose: bool,
) -> None:
    """Measure how well a model predicts a text.

    Lower is better. The text is the file given with -f, or else standard input. It is cut into windows of -c tokens,
    and the second half of each is scored, given what comes before it in the window, as llama.cpp's llama-perplexity
    does. Tokens at the end that do not fill a window are left out. With --stride windows overlap, and all tokens after
    the first window are scored.

    With --jsonl each line of the input is a text, or an object with "text" and maybe "id", and each line written has
    "id" and what --json has, or "error".

    \b
      llama-rs perplexity -m model.gguf -f text.txt
      llama-rs perplexity -m model.gguf -c 32 --jsonl < texts.jsonl
    """
    check_bulk_options(output, jsonl=jsonl, resume=resume, others=as_json, without="--json")
    if stride is not None and stride >= context_length:
        raise UsageError(f"--stride is {stride}, it must be less than the {context_length} tokens of a window")
    path = find_model(model)
    text = "" if jsonl else read_text(None, file)
    llama = Model(path, threads=threads, context_length=context_length, kv_type=kv_type, lora=lora)

    def tell(window: int, n_windows: int, perplexity: float) -> None:
        if verbose or (is_watched() and not jsonl):
            say(f"window {window} of {n_windows}: perplexity {perplexity:.4f}")

    def measured(text: str) -> Perplexity:
        result = llama.perplexity(text, context_length=context_length, stride=stride, on_window=tell)
        if isinf(result.perplexity):
            raise ValueError(f"{path}: the perplexity is larger than any number: a weight is damaged")
        return result

    if jsonl:
        each = partial(bulk.each_alone, lambda text: measured(text)._asdict())
        bulk.run(file, bulk.text, each, at_a_time=1, output=output, resume=resume)
        return
    try:
        result = measured(text)
    except ValueError as e:  # the text is too short, say
        raise Failure(str(e)) from e
    if as_json:
        write_json(result._asdict())
    else:
        write(f"perplexity {result.perplexity:.4f} +- {result.stderr:.4f} over {counted(result.tokens, 'token')}\n")
