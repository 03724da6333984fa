"""``llama-rs merge``: the parts of a model as one file."""

from __future__ import annotations

from ..files import merge
from ..output import size, write_line
from . import declare
from .kinds import Path
from .making import making


@declare.command("merge")
@declare.argument("part", type=Path())
@declare.argument("output", type=Path())
def command(part: str, output: str) -> None:
    """Write the parts of a model as the GGUF file OUTPUT.

    PART is any of them; the others are found by its name, in the same folder.

    \b
      llama-rs merge model-00001-of-00003.gguf model.gguf
    """
    with making() as tell:
        merge(part, output, on_progress=tell)
    write_line(f"{output}: {size(tell.whole)}")
