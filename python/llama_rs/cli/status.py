"""``llama-rs status``: what of a model is in memory, and who has it there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .. import Checkpoint
from ..output import bar, percent, size, table, write, write_json, write_line
from ..residency import Part, Process, Residency, is_known, read_rate
from . import declare
from .arguments import find_model, json_option, model_argument
from .kinds import Number

UNKNOWN = "how much of it is in memory cannot be known: the kernel tells only who owns the file or may write to it"


@declare.command("status")
@model_argument
@declare.option(
    "--rate", type=Number(float, 0, None, above=True), help="Speed of the disk in MB/s.  [default: measured]"
)
@json_option
def command(file: str | None, model: str | None, rate: float | None, as_json: bool) -> None:
    """Show how much of MODEL is in memory.

    Also shows which processes use it. A row per layer, with a bar from its start to its end: what is filled in is
    in memory, shared by all processes. PSS is what a process costs: of each page that n processes share, each
    counts one nth. Only root sees processes of other users. Nothing but the header is read into memory.

    \b
      llama-rs status model.gguf
      llama-rs status model.gguf --json | jq '.tensors[] | select(.resident < .bytes)'
    """
    path = find_model(model, file)
    checkpoint = Checkpoint(path)
    what = checkpoint.residency() if is_known(path) else None
    users = [p for p in checkpoint.processes() if p.pid != os.getpid()]
    missing = what.bytes - what.resident if what else 0
    speed = rate * 1e6 if rate else read_rate(what) if what and missing else None
    if as_json:
        result: dict[str, Any] = {
            "path": path,
            "bytes": checkpoint.size,
            "resident": what.resident if what else None,
            "read_bytes_per_second": speed,
            "layers": [part._asdict() for part in what.layers] if what else None,
            "experts": [experts._asdict() for experts in what.experts] if what else None,
            "tensors": [_tensor(part) for part in what.tensors] if what else None,
            "processes": [user._asdict() for user in users],
        }
        write_json(result)
        return
    write_line(path)
    if what:
        _write_layers(what)
    else:
        write(f"{size(checkpoint.size)}; {UNKNOWN}\n")
    _write_users(users)
    if what and not missing:
        write("\nAll of it is there.\n")
    elif speed and missing:
        source = "given" if rate else "measured"
        write(f"\n{size(missing)} missing: {missing / speed:.1f} s to read at {speed / 1e6:.0f} MB/s ({source})\n")
    elif missing:
        write(f"\n{size(missing)} missing\n")


def _tensor(part: Part) -> dict[str, Any]:
    return {"name": part.name, "start": part.start, "bytes": part.bytes, "resident": part.resident}


def _write_layers(what: Residency) -> None:
    write(f"{size(what.resident)} of {size(what.bytes)} in memory ({percent(what.resident, what.bytes)})\n\n")
    rows = [("", "bytes", "in memory", "", "")]
    for part in what.layers:
        share = percent(part.resident, part.bytes)
        rows.append((part.name, size(part.bytes), size(part.resident), share, bar(part.pieces)))
    table(rows, right=(1, 2, 3), cut=0)
    if what.experts:
        write("\nExperts, each a place: those that were chosen are read, the others need not be there\n")
        experts = [
            (e.layer, f"{sum(s > 0.5 for s in e.shares)} of {len(e.shares)}", bar(e.shares)) for e in what.experts
        ]
        table([("", "in memory", ""), *experts], right=(1,), cut=2)


def _write_users(users: Sequence[Process]) -> None:
    if not users:
        write("\nNo process has it mapped.\n")
        return
    write("\nMapped by\n")
    rows = [("pid", "of this file", "in all (PSS)", "command")]
    rows += [(str(user.pid), size(user.pss), size(user.pss_total), user.command) for user in users]
    rows.append(("", size(sum(u.pss for u in users)), size(sum(u.pss_total for u in users)), "together"))
    table(rows, right=(0, 1, 2), keep_end=True)
