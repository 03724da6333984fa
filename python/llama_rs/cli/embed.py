"""``llama-rs embed``: vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

from .. import Model
from ..output import write_json
from . import bulk, declare
from .arguments import bulk_options, check_bulk_options, find_model, model_option, parameters
from .exits import UsageError
from .kinds import Choice, Number, Path, is_utf8
from .lines import texts_of

AT_A_TIME = 64
"""Texts that are taken together, with --jsonl."""


@declare.command("embed")
@declare.argument("texts", nargs=-1, metavar="[TEXT]...")
@declare.option(
    "-f",
    "--file",
    type=Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read texts from this file, one a line; - is standard input.",
)
@model_option
@declare.option(
    "--pooling",
    type=Choice(["mean", "cls", "last"]),
    help="How the vectors of tokens become one.  [default: as the file says]",
)
@declare.option("--no-normalize", is_flag=True, help="Leave vectors as long as they are.")
@declare.option("--dimensions", type=Number(int, 1, 2**32 - 1), help="The first so many numbers of each vector alone.")
@declare.option("--truncate", is_flag=True, help="Cut texts that are longer than the context.")
@bulk_options
@parameters("context_length", "threads")
def command(
    texts: tuple[str, ...],
    file: str | None,
    model: str | None,
    pooling: Literal["mean", "cls", "last"] | None,
    no_normalize: bool,
    dimensions: int | None,
    truncate: bool,
    jsonl: bool,
    output: str | None,
    resume: bool,
    context_length: int | None,
    threads: int | None,
) -> None:
    """Print vectors of texts: those that mean something similar have similar ones.

    The texts are the arguments, or the lines of the file given with -f, or else those of standard input. Prints a line
    of JSON for each, as soon as it is there: "index", from 0, "text" and "embedding". Empty lines count, and have none.

    With --jsonl each line of the input is a text, or an object with "text" and maybe "id", and each line written has
    "id" and "embedding", or "error".

    \b
      llama-rs embed -m bge-small.gguf "a cat" "a dog"
      llama-rs embed -m bge-small.gguf --truncate < lines.txt > vectors.jsonl
    """
    path = find_model(model)
    if texts and file is not None:
        raise UsageError("give the texts as arguments or with -f FILE, not both")
    if not all(map(is_utf8, texts)):
        raise UsageError("a text is not valid UTF-8")
    check_bulk_options(output, jsonl=jsonl, resume=resume, others=bool(texts), without="TEXT")
    llama = Model(path, context_length=context_length, threads=threads)

    def vectors(some: list[str]) -> Iterator[list[float]]:
        found = llama.embed(some, pooling=pooling, normalize=not no_normalize, dimensions=dimensions, truncate=truncate)
        return ([float(str(x)) for x in vector] for vector in found)  # as few digits as tell float32 apart

    def results(asked: list[str]) -> Iterator[bulk.Result]:
        return ({"embedding": vector} for vector in vectors(asked))

    if jsonl:
        together = partial(bulk.together, results)
        bulk.run(file, bulk.text, together, at_a_time=AT_A_TIME, output=output, resume=resume)
        return
    index = 0
    for block in [list(texts)] if texts else texts_of(file):
        some = [(index + i, text) for i, text in enumerate(block) if text]
        index += len(block)
        for (i, text), vector in zip(some, vectors([text for _, text in some]), strict=True):
            write_json({"index": i, "text": text, "embedding": vector})
