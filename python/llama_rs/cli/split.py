"""``llama-rs split``: a GGUF file in parts."""

from __future__ import annotations

import re
from typing import Any

from ..files import split
from ..output import shorten, write_line
from . import declare
from .exits import UsageError
from .kinds import Kind, Number, Path
from .making import making


class Size(Kind):
    """A number of bytes: 2G, 500M."""

    name = "size"

    def convert(self, value: Any) -> Any:
        match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", value, re.IGNORECASE)
        if not match:
            raise ValueError(f"{shorten(repr(value), 40)} is not a size such as 2G or 500M")
        n: int = int(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")
        if not 0 < n < 1 << 63:
            raise ValueError(f"{n} is out of range, it must be from 1 to {(1 << 63) - 1} bytes")
        return n


@declare.command("split")
@declare.argument("model", type=Path())
@declare.argument("prefix", type=Path())
@declare.option("--max-size", type=Size(), metavar="SIZE", help="Largest size of a part, such as 2G or 500M.")
@declare.option("--max-tensors", type=Number(int, 1, 2**32 - 1), help="Most tensors of a part.")
def command(model: str, prefix: str, max_size: int | None, max_tensors: int | None) -> None:
    """Write the GGUF file MODEL in parts.

    They are called PREFIX-00001-of-00003.gguf and so on. Any of them opens all, where all are in one folder.

    \b
      llama-rs split model.gguf model --max-size 2G
      llama-rs generate -m model-00001-of-00003.gguf "Once upon a time"
    """
    if (max_size is None) == (max_tensors is None):
        raise UsageError("give --max-size or --max-tensors, one of the two")
    with making() as tell:
        paths = split(model, prefix, max_size=max_size, max_tensors=max_tensors, on_progress=tell)
    for path in paths:
        write_line(path)
