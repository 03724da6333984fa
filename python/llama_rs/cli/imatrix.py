"""``llama-rs imatrix``: how important the weights of a model are."""

from __future__ import annotations

import os

from .. import Model
from ..output import is_watched, say_in_place, write_json, write_line
from ..quantization import imatrix
from . import declare
from .arguments import find_model, json_option, model_option, parameters, read_text, text_option
from .exits import Failure
from .kinds import Number, Path


@declare.command("imatrix")
@text_option
@model_option
@declare.option("-o", "--output", type=Path(), required=True, help="The file to write.")
@declare.option("-c", "--chunk-length", type=Number(int, 16, 2**32 - 1), default=512, help="Tokens per chunk.")
@declare.option("--chunks", type=Number(int, 1, None), help="Read no more than so many chunks.  [default: all]")
@parameters("threads")
@json_option
def command(
    file: str | None,
    model: str | None,
    output: str,
    chunk_length: int,
    chunks: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how important each weight of a model is.

    The model reads a text, the file given with -f or else standard input, in chunks of -c tokens, and it is measured
    how large the numbers are that each column of its matrices is multiplied with. The result is an importance matrix
    for llama-rs quantize --imatrix, and for llama.cpp.

    \b
      llama-rs imatrix -m model-F16.gguf -f text.txt -o model.imatrix.gguf
      llama-rs quantize model-F16.gguf small.gguf --type IQ3_XXS --imatrix model.imatrix.gguf
    """
    path = find_model(model)
    text = read_text(None, file)
    llama = Model(path, threads=threads, context_length=chunk_length)

    def tell(done: int, whole: int) -> None:
        if is_watched():
            say_in_place(f"chunk {done} of {whole}")

    dataset = os.path.basename(file) if file and file != "-" else ""
    try:
        done = imatrix(
            llama, text, output, dataset=dataset, chunk_length=chunk_length, max_chunks=chunks, on_chunk=tell
        )
    except ValueError as e:  # the text is too short
        raise Failure(str(e)) from e
    finally:
        if is_watched():
            say_in_place("")
    if as_json:
        write_json({"path": output, **done._asdict()})
    else:
        write_line(f"{output}: {done.tokens} tokens in {done.chunks} chunks, {done.seconds:.1f} s")
