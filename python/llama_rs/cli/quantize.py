"""``llama-rs quantize``: a model file into a smaller one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from typing import Any

from ..output import size, table, warn, write_json, write_line
from ..quantization import MIXES, TYPES, Quantized, quantize
from . import declare
from .arguments import json_option, parameters
from .exits import UsageError
from .kinds import Choice, Kind, Path
from .making import making


class Named(Choice):
    """One of many names, in any case, which help does not list each time."""

    name = "type"

    def __init__(self, choices: Iterable[str]) -> None:
        super().__init__(choices)
        self.metavar = None

    def convert(self, value: Any) -> Any:
        meant = (choice for choice in self.choices if choice.casefold() == value.casefold())
        return super().convert(next(meant, value))

    def names(self, beginning: str) -> Iterable[str]:
        """Names as they are written, whatever case they were begun in."""
        return [choice for choice in self.choices if choice.lower().startswith(beginning.lower())]


class TensorType(Kind):
    """A pattern and a type."""

    name = "regex=type"

    def convert(self, value: Any) -> tuple[str, str]:
        pattern, equals, of = value.rpartition("=")
        if not equals or not pattern:
            raise ValueError(f"{value!r} is not a pattern and a type, as ffn_down=Q6_K is")
        try:
            re.compile(pattern)
        except re.error as e:
            raise ValueError(f"{pattern!r} is not a regular expression: {e}") from None
        return pattern, _type.convert(of)


_mix = Named([*MIXES, "Q3_K", "Q4_K", "Q5_K"])
_type = Named(TYPES)


@declare.command("quantize")
@declare.argument("source", type=Path())
@declare.argument("target", type=Path(), required=False)
@declare.option("--type", "mix", type=_mix, required=True, help="What to make of it; the list is above.")
@declare.option("--imatrix", type=Path(), metavar="FILE", help="How important each weight is.")
@declare.option("--output-type", type=_type, help="Type of the output matrix, or of the embeddings that stand for it.")
@declare.option("--token-embedding-type", type=_type, help="Type of the token embeddings.")
@declare.option(
    "--tensor-type",
    type=TensorType(),
    multiple=True,
    metavar="REGEX=TYPE",
    help="Type of the matrices in whose names REGEX is found; may be given several times, the first that fits counts.",
)
@declare.option("--pure", is_flag=True, help="The base type for all matrices.")
@declare.option("--allow-requantize", is_flag=True, help="Convert also what is quantized already, and lose more.")
@declare.option("--dry-run", is_flag=True, help="Write nothing; show what would become of each tensor.")
@parameters("threads")
@json_option
def command(
    source: str,
    target: str | None,
    mix: str,
    imatrix: str | None,
    output_type: str | None,
    token_embedding_type: str | None,
    tensor_type: tuple[tuple[str, str], ...],
    pure: bool,
    allow_requantize: bool,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the model SOURCE to TARGET with fewer bits a weight.

    SOURCE is a GGUF file, best of F16, BF16 or F32. TARGET appears when it is whole. At a terminal a line shows the
    progress.

    \b
      llama-rs quantize model-F16.gguf model-Q4_K_M.gguf --type Q4_K_M
      llama-rs quantize model-F16.gguf --type IQ3_XXS --imatrix model.imatrix.gguf --dry-run

    Types, fewest bits first; those of less than 3.5 bits need an importance matrix:

    {mixes}
    """
    if target is None and not dry_run:
        raise UsageError("name the file to write, or use --dry-run")
    with making() as tell:
        done = quantize(
            source,
            None if dry_run else target,
            mix,
            output_type=output_type,
            token_embedding_type=token_embedding_type,
            tensor_types=tensor_type,
            imatrix=imatrix,
            pure=pure,
            allow_requantize=allow_requantize,
            threads=threads,
            on_progress=tell,
        )
    _warn_of_fallbacks(done, mix)
    if as_json:
        facts = [t._asdict() | {"shape": list(t.shape)} for t in done.tensors]
        write_json({"path": target, "seconds": done.seconds, "bytes": done.bytes, "tensors": facts})
        return
    if dry_run:
        rows = [("name", "shape", "type", "", "bytes", "")]
        for t in done.tensors:
            shape = " x ".join(map(str, t.shape))
            becomes = (f"-> {t.type}", f"-> {t.bytes}") if t.type != t.source_type else ("", "")
            rows.append((t.name, shape, t.source_type, becomes[0], str(t.source_bytes), becomes[1]))
        table(rows, right=(4,), cut=0)
    bits = f"{size(done.source_bytes)} -> {size(done.bytes)}, {done.bits_per_weight:.2f} bits a weight"
    write_line(f"{source}: {bits}" if dry_run else f"{target}: {bits}, in {done.seconds:.1f} s")


def _warn_of_fallbacks(done: Quantized, mix: str) -> None:
    """Says if rows are not whole blocks of 256: then a file is larger than its name says."""
    odd = [t for t in done.tensors if t.type != t.source_type and t.shape[-1] % 256]
    if odd and _block(mix) == 256:
        of = max(odd, key=lambda t: prod(t.shape))
        rows = f"rows of {of.shape[-1]}, not whole blocks of 256"
        warn(f"{len(odd)} matrices have {rows}: they become {of.type} or the like")


def _block(mix: str) -> int:
    base = MIXES[mix if mix in MIXES else f"{mix}_M"]
    return 256 if "_K" in base or base.startswith(("IQ1", "IQ2", "IQ3", "TQ")) or base == "IQ4_XS" else 32


command.help = command.help.replace("{mixes}", ", ".join(MIXES))
