"""``llama-rs rerank``: documents by how well they answer a query."""

from __future__ import annotations

import click

from .. import Model
from ..output import write_json
from . import Command
from .arguments import Number, find_model, is_utf8, model_option, parameters
from .lines import decoded, lines_of


@click.command("rerank", cls=Command)
@click.argument("query")
@click.argument("documents", nargs=-1, metavar="[DOCUMENT]...")
@click.option(
    "-f",
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read documents from this file, one a line; - is standard input.",
)
@model_option
@click.option("--top-n", type=Number(int, 1, 2**32 - 1), help="Only the best so many.  [default: all]")
@parameters("context_length", "threads")
def command(
    query: str,
    documents: tuple[str, ...],
    file: str | None,
    model: str | None,
    top_n: int | None,
    context_length: int | None,
    threads: int | None,
) -> None:
    """Sort documents by how well they answer a query, the best first, by a model that was made for it.

    The documents are the arguments, or the lines of the file given with -f, or else those of standard input. Prints a
    line of JSON for each: "index", from 0, "score" and "text".

    \b
      llama-rs rerank -m bge-reranker.gguf "who eats pandas?" "Pandas eat bamboo." "Pandas is a library."
      llama-rs rerank -m bge-reranker.gguf --top-n 3 "how are blocks quantized" < lines.txt
    """
    path = find_model(model)
    if documents and file is not None:
        raise click.UsageError("give the documents as arguments or with -f FILE, not both")
    if not all(map(is_utf8, (query, *documents))):
        raise click.UsageError("a text is not valid UTF-8")
    texts = [*documents]
    if not documents:
        name = "standard input" if file in (None, "-") else file
        for lines in lines_of(file):
            texts += [decoded(name, len(texts) + i, line) for i, line in enumerate(lines)]
    some = [(i, text) for i, text in enumerate(texts) if text]
    llama = Model(path, context_length=context_length, threads=threads)
    scores = llama.rerank(query, [text for _, text in some])
    order = sorted(range(len(some)), key=lambda i: (-scores[i], i))
    for i in order[:top_n]:
        write_json({"index": some[i][0], "score": scores[i], "text": some[i][1]})
