"""``llama-rs warm``: a model into memory, for all processes."""

from __future__ import annotations

import signal
import sys
import time

import click

from .. import Checkpoint
from ..output import is_watched, progress, say, say_in_place, size, write_json, write_line
from ..residency import is_known, read_in
from . import Command
from .arguments import find_model, json_option, model_argument


@click.command("warm", cls=Command)
@model_argument
@click.option("--lock", is_flag=True, help="Then keep it there, until Ctrl-C or SIGTERM.")
@json_option
def command(file: str | None, model: str | None, lock: bool, as_json: bool) -> None:
    """Read MODEL into memory, for all processes.

    At a terminal a line shows the progress. What is in memory stays there until something else needs the space;
    with --lock it stays in any case.

    \b
      llama-rs warm model.gguf
      llama-rs warm --lock model.gguf &
    """
    path = find_model(model, file)
    core = Checkpoint(path)._core
    n_bytes = core.size()
    before = core.resident(0, n_bytes) if is_known(path) else None
    start = time.perf_counter()
    try:
        for done in read_in(core):
            if is_watched():
                say_in_place(progress(done, n_bytes, done / (time.perf_counter() - start)))
    finally:
        if is_watched():
            say_in_place("")
    seconds = time.perf_counter() - start
    stops = {signal.SIGINT, signal.SIGTERM}
    if lock:
        core.lock()
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # they are waited for below
    if as_json:
        write_json({"path": path, "bytes": n_bytes, "resident_before": before, "seconds": seconds, "locked": lock})
    elif before is not None:
        write_line(f"{path}: {size(n_bytes)} in memory, {size(n_bytes - before)} of it read in {seconds:.2f} s")
    else:
        write_line(f"{path}: {size(n_bytes)} in memory after {seconds:.2f} s; how much of it was read cannot be known")
    if lock:
        sys.stdout.flush()
        if is_watched():
            say("Locked in memory. Ctrl-C releases it.")
        signal.sigwait(stops)
