"""``llama-rs inspect``: what a model file contains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Checkpoint, Tensor
from ..output import size, table, write, write_json, write_line
from . import declare
from .arguments import find_model, json_option, model_argument


@declare.command("inspect")
@model_argument
@json_option
def command(file: str | None, model: str | None, as_json: bool) -> None:
    """Show the contents of the file MODEL.

    These are its metadata and its tensors. It need not be a model that llama-rs can run. Without MODEL it is the
    default model. Shapes are rows x columns. Long names and values are cut; --json has everything, arrays in full.

    \b
      llama-rs inspect model.gguf
      llama-rs inspect model.gguf --json | jq '.metadata["general.name"]'
    """
    path = find_model(model, file)
    checkpoint = Checkpoint(path)
    tensors = dict(checkpoint.tensors)
    if as_json:
        write_json(
            {
                "path": path,
                "bytes": checkpoint.size,
                "metadata": checkpoint.metadata,
                "tensors": [
                    {"name": name, "type": t.dtype, "shape": list(t.shape), "offset": t.offset, "bytes": t.nbytes}
                    for name, t in tensors.items()
                ],
            }
        )
        return
    write_line(path)
    write(f"{size(checkpoint.size)}, {_parameters(tensors)}\n\nMetadata\n")
    table([(key, _shown(value)) for key, value in checkpoint.metadata.items()])
    write("\nTensors\n")
    rows = [("name", "type", "shape", "offset", "bytes")]
    for name, t in tensors.items():
        rows.append((name, t.dtype, " x ".join(map(str, t.shape)), str(t.offset), str(t.nbytes)))
    table(rows, right=(3, 4), cut=0)


def _parameters(tensors: Mapping[str, Tensor]) -> str:
    """Number of weights, and which types take how much of the file."""
    from math import prod

    n_bytes: dict[str, int] = {}
    for t in tensors.values():
        n_bytes[t.dtype] = n_bytes.get(t.dtype, 0) + t.nbytes
    count = sum(prod(t.shape) for t in tensors.values())
    types = ", ".join(f"{dtype} {size(n)}" for dtype, n in sorted(n_bytes.items(), key=lambda item: -item[1]))
    return f"{count:,} weights in {len(tensors)} tensors" + (f" ({types})" if types else "")


def _shown(value: Any, most: int = 80) -> str:
    """A metadata value, cut to what a person wants to see of it."""
    if isinstance(value, str):
        return repr(value) if len(value) <= most else f"{value[:most]!r}... {len(value)} characters"
    if isinstance(value, (bool, int, float)):
        return f"{value:.7g}" if isinstance(value, float) else str(value)
    first = ", ".join(_shown(item, 20) for item in value[:4])
    return f"[{first}]" if len(value) <= 4 else f"[{first}, ... {len(value)} in all]"
