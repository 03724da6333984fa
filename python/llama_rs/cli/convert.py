"""``llama-rs convert``: a directory into a GGUF file."""

from __future__ import annotations

from typing import Literal

from ..files import convert
from ..output import size, write_line
from . import declare
from .arguments import parameters
from .kinds import Choice, Path
from .making import making


@declare.command("convert")
@declare.argument("directory", type=Path())
@declare.argument("output", type=Path())
@declare.option(
    "--output-type",
    type=Choice(["auto", "f32", "f16", "bf16", "q8_0"]),
    default="auto",
    help="Type of the matrices; auto keeps theirs.",
)
@parameters("threads")
def command(
    directory: str, output: str, output_type: Literal["auto", "f32", "f16", "bf16", "q8_0"], threads: int | None
) -> None:
    """Write the model in DIRECTORY as the GGUF file OUTPUT.

    DIRECTORY is as Hugging Face has them: config.json, safetensors, the files of a tokenizer. It runs as it is
    (llama-rs generate -m DIRECTORY); a GGUF is one file, can be quantized, and is read by other programs.

    \b
      llama-rs convert ./SmolLM2-135M smollm2.gguf
      llama-rs convert ./SmolLM2-135M smollm2-q8_0.gguf --output-type q8_0
    """
    with making() as tell:
        convert(directory, output, output_type=output_type, threads=threads, on_progress=tell)
    write_line(f"{output}: {size(tell.whole)}")
