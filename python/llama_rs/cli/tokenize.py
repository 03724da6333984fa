"""``llama-rs tokenize``: what a text is to a model."""

from __future__ import annotations

import sys
from functools import partial

from .. import Tokenizer
from ..output import write_json
from . import bulk, declare
from .arguments import (
    bulk_options,
    check_bulk_options,
    find_model,
    json_option,
    model_option,
    parameters,
    read_text,
    text_option,
)


@declare.command("tokenize")
@declare.argument("text", required=False)
@text_option
@model_option
@parameters("prompt")
@json_option
@bulk_options
def command(
    text: str | None,
    file: str | None,
    model: str | None,
    add_special: bool,
    parse_special: bool,
    as_json: bool,
    jsonl: bool,
    output: str | None,
    resume: bool,
) -> None:
    """Show the tokens of TEXT.

    The text is the argument, or the file given with -f, or else standard input. An argument follows standard input,
    after a newline, if that is a pipe or a file.

    Prints a token per line, its id and the text that it stands for; with --json a list of the ids. A model file with a
    vocabulary and no weights is enough.

    With --jsonl each line of the input is a text, or an object with "text" and maybe "id", and each line written has
    "id" and "tokens", a list of ids, or "error".

    \b
      llama-rs tokenize "Once upon a time"
      llama-rs tokenize -m model.gguf --json -f text.txt
      llama-rs tokenize --jsonl < texts.jsonl | jq '.tokens | length'
    """
    others = text is not None or as_json
    check_bulk_options(output, jsonl=jsonl, resume=resume, others=others, without="TEXT and no --json")
    path = find_model(model)
    content = "" if jsonl else read_text(text, file)
    tokenizer = Tokenizer(path)

    def tokens(content: str) -> list[int]:
        return tokenizer.encode(content, add_special=add_special, parse_special=parse_special)

    if jsonl:
        each = partial(bulk.each_alone, lambda content: {"tokens": tokens(content)})
        bulk.run(file, bulk.text, each, at_a_time=1, output=output, resume=resume)
        return
    ids = tokens(content)
    if as_json:
        write_json(ids)
        return
    width = len(str(tokenizer.vocab_size))
    for token in ids:
        data = tokenizer.token_bytes(token)
        try:
            shown = repr(data.decode())
        except UnicodeDecodeError:
            shown = repr(data)  # part of a character
        sys.stdout.write(f"{token:{width}}  {shown}\n")
