"""``llama-rs perplexity``: how well a model predicts a text."""

from __future__ import annotations

from typing import Literal

import click

from .. import Model
from ..output import is_watched, say, write, write_json
from . import Command
from .arguments import find_model, json_option, model_option, parameters, read_text, text_option, verbose_option


@click.command("perplexity", cls=Command)
@text_option
@model_option
@click.option("-c", "--context-length", type=click.IntRange(4, 2**32 - 1), default=512, help="Tokens per window.")
@parameters("kv_type", "threads")
@json_option
@verbose_option
def command(
    file: str | None,
    model: str | None,
    context_length: int,
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure how well a model predicts a text.

    Lower is better. The text is the file given with -f, or else standard input. It is cut into windows of -c
    tokens, and the second half of each is scored, given what comes before it in the window, as llama.cpp's llama-
    perplexity does. Tokens at the end that do not fill a window are left out.

    \b
      llama-rs perplexity -m model.gguf -f text.txt
    """
    path = find_model(model)
    text = read_text(None, file)
    llama = Model(path, threads=threads, context_length=context_length, kv_type=kv_type)
    result = _measure(llama, text, context_length, verbose or is_watched())
    if as_json:
        write_json(result)
    else:
        write(f"perplexity {result['perplexity']:.4f} +- {result['stderr']:.4f} over {result['tokens']} tokens\n")


def _measure(llama: Model, text: str, context_length: int, progress: bool) -> dict[str, float]:
    from math import exp, sqrt

    tokenizer = llama.tokenizer
    ids = tokenizer.encode(text, parse_special=False)
    if len(ids) < context_length:
        raise click.ClickException(
            f"the text has {len(ids)} tokens, too few for a window of {context_length}: choose a smaller one with -c"
        )
    begin = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos] else []
    n_windows = len(ids) // context_length
    scores: list[float] = []
    with llama.session() as session:
        for i in range(n_windows):
            window = ids[i * context_length : (i + 1) * context_length]
            window = begin + window[len(begin) :]
            scores += session._handle.negative_log_likelihood(window, context_length // 2 + 1)
            mean = sum(scores) / len(scores)
            if not mean < 700:
                raise click.ClickException(f"the perplexity is not a number ({mean}): the model is damaged")
            if progress:
                say(f"window {i + 1} of {n_windows}: perplexity {exp(mean):.4f}")
    n = len(scores)
    deviation = sqrt(sum((s - mean) ** 2 for s in scores) / (n - 1)) if n > 1 else 0.0
    return {
        "perplexity": exp(mean),
        "stderr": exp(mean) * deviation / sqrt(n),
        "tokens": n,
        "windows": n_windows,
        "context_length": context_length,
    }
