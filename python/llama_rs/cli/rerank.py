"""``llama-rs rerank``: documents by how well they answer a query."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

from .. import Model
from ..output import write_json
from . import bulk, declare
from .arguments import bulk_options, check_bulk_options, find_model, model_option, parameters
from .exits import UsageError
from .kinds import Number, Path, is_utf8
from .lines import texts_of


@declare.command("rerank")
@declare.argument("query", required=False)
@declare.argument("documents", nargs=-1, metavar="[DOCUMENT]...")
@declare.option(
    "-f",
    "--file",
    type=Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read documents from this file, one a line; - is standard input.",
)
@model_option
@declare.option("--top-n", type=Number(int, 1, 2**32 - 1), help="Only the best so many.  [default: all]")
@bulk_options
@parameters("context_length", "threads")
def command(
    query: str | None,
    documents: tuple[str, ...],
    file: str | None,
    model: str | None,
    top_n: int | None,
    jsonl: bool,
    output: str | None,
    resume: bool,
    context_length: int | None,
    threads: int | None,
) -> None:
    """Sort documents by how well they answer a query, the best first, by a model that was made for it.

    The documents are the arguments, or the lines of the file given with -f, or else those of standard input. Prints a
    line of JSON for each: "index", from 0, "score" and "text".

    With --jsonl each line of the input is an object with "query", "documents", a list of texts, and maybe "id". Each
    line written has "id" and "results", the best first, each with its "index" and "score"; or "error".

    \b
      llama-rs rerank -m bge-reranker.gguf "who eats pandas?" "Pandas eat bamboo." "Pandas is a library."
      llama-rs rerank -m bge-reranker.gguf --top-n 3 "how are blocks quantized" < lines.txt
    """
    path = find_model(model)
    if documents and file is not None:
        raise UsageError("give the documents as arguments or with -f FILE, not both")
    others = query is not None or bool(documents)
    check_bulk_options(output, jsonl=jsonl, resume=resume, others=others, without="QUERY and no DOCUMENT")
    if jsonl:
        llama = Model(path, context_length=context_length, threads=threads)
        _bulk(llama, file, top_n, output, resume=resume)
        return
    if query is None:
        raise UsageError("Missing argument 'QUERY'.")
    if not all(map(is_utf8, (query, *documents))):
        raise UsageError("a text is not valid UTF-8")
    texts = documents or list(chain.from_iterable(texts_of(file)))
    some = [(i, text) for i, text in enumerate(texts) if text]
    llama = Model(path, context_length=context_length, threads=threads)
    for i, score in _best(llama, query, [text for _, text in some], top_n):
        write_json({"index": some[i][0], "score": score, "text": some[i][1]})


def _best(llama: Model, query: str, documents: list[str], top_n: int | None) -> list[tuple[int, float]]:
    """The best documents, by number, and their scores."""
    scores = llama.rerank(query, documents) if documents else []
    return [(i, scores[i]) for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:top_n]]


def _bulk(llama: Model, file: str | None, top_n: int | None, output: str | None, *, resume: bool) -> None:
    def parse(asked: Any) -> tuple[str, list[str]]:
        asked = bulk.only(asked, "query", "documents")
        return bulk.field(asked, "query"), bulk.texts(asked, "documents")

    def result(asked: tuple[str, list[str]]) -> bulk.Result:
        return {"results": [{"index": i, "score": score} for i, score in _best(llama, *asked, top_n)]}

    bulk.run(file, parse, partial(bulk.each_alone, result), at_a_time=1, output=output, resume=resume)
