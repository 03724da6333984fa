"""``llama-rs score``: how likely continuations of a text are."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any, Literal

from .. import Model
from ..output import write_json
from . import bulk, declare
from .arguments import bulk_options, check_bulk_options, find_model, lora_option, model_option, parameters
from .exits import UsageError
from .kinds import Path, is_utf8
from .lines import texts_of


@declare.command("score")
@declare.argument("prompt", required=False)
@declare.argument("continuations", nargs=-1, metavar="[CONTINUATION]...")
@declare.option(
    "-f",
    "--file",
    type=Path(exists=True, dir_okay=False, allow_dash=True),
    help="Read continuations from this file, one a line; - is standard input.",
)
@model_option
@lora_option
@bulk_options
@parameters("context_length", "threads", "kv_type")
def command(
    prompt: str | None,
    continuations: tuple[str, ...],
    file: str | None,
    model: str | None,
    lora: tuple[tuple[str, float], ...],
    jsonl: bool,
    output: str | None,
    resume: bool,
    context_length: int | None,
    threads: int | None,
    kv_type: Literal["f16", "q8_0"],
) -> None:
    """Say how likely each continuation of a text is.

    The continuations are the arguments, or the lines of the file given with -f, or else those of standard input. Prints
    a line of JSON for each: "continuation", "logprob", the natural logarithm of its probability, and "tokens", each
    with its own. A continuation begins with the space that the text does not end with.

    With --jsonl each line of the input is an object with "prompt", "continuation" and maybe "id", and each line written
    has "id", "logprob" and "tokens", or "error".

    \b
      llama-rs score "The capital of France is" " Paris" " London"
      llama-rs score --jsonl < pairs.jsonl > scores.jsonl
    """
    if continuations and file is not None:
        raise UsageError("give the continuations as arguments or with -f FILE, not both")
    check_bulk_options(
        output, jsonl=jsonl, resume=resume, others=prompt is not None, without="PROMPT and no CONTINUATION"
    )
    if prompt is None and not jsonl:
        raise UsageError("Missing argument 'PROMPT'.")
    if not all(map(is_utf8, (prompt or "", *continuations))):
        raise UsageError("a text is not valid UTF-8")
    llama = Model(find_model(model), context_length=context_length, threads=threads, kv_type=kv_type, lora=lora)

    def scored(asked: tuple[str, str]) -> dict[str, Any]:
        score = llama.score(*asked)
        tokens = [
            {"id": i, "text": llama.tokenizer.decode([i]), "logprob": logprob}
            for i, logprob in zip(score.token_ids, score.logprobs, strict=True)
        ]
        return {"logprob": score.total, "tokens": tokens}

    def parse(asked: Any) -> tuple[str, str]:
        asked = bulk.only(asked, "prompt", "continuation")
        return bulk.field(asked, "prompt"), bulk.field(asked, "continuation")

    if jsonl:
        bulk.run(file, parse, partial(bulk.each_alone, scored), at_a_time=1, output=output, resume=resume)
        return
    for continuation in continuations or filter(None, chain.from_iterable(texts_of(file))):
        write_json({"continuation": continuation, **scored((prompt or "", continuation))})
