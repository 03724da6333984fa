"""``llama-rs warm``: a model into memory, for all processes."""

from __future__ import annotations

import signal
import time

from .. import Checkpoint
from ..output import is_watched, progress, say, say_in_place, size, write_json, write_line
from ..residency import is_known
from . import declare
from .arguments import find_model, json_option, model_argument


@declare.command("warm")
@model_argument
@declare.option(
    "--lock", is_flag=True, help="After reading, keep it there until Ctrl-C (exit code 130) or SIGTERM (0)."
)
@json_option
def command(file: str | None, model: str | None, lock: bool, as_json: bool) -> None:
    """Read MODEL into memory, for all processes.

    At a terminal a line shows the progress. What is in memory stays there until something else needs the space;
    with --lock it stays in any case.

    A file that was written, not read, lies in memory in small pages, and each process takes longer to start with it.
    If no other process uses it, it is put into large ones.

    \b
      llama-rs warm model.gguf
      llama-rs warm --lock model.gguf &
    """
    path = find_model(model, file)
    checkpoint = Checkpoint(path)
    start = time.perf_counter()

    def tell(done: int, whole: int) -> None:
        if is_watched():
            say_in_place(progress(done, whole, done / (time.perf_counter() - start)))

    try:
        done = checkpoint.warm(tell, lock=lock)
    finally:
        if is_watched():
            say_in_place("")
    before = done.resident_before if is_known(path) else None
    stops = {signal.SIGINT, signal.SIGTERM}
    if lock:
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # they are waited for below
    if as_json:
        write_json(
            {
                "path": path,
                "bytes": done.bytes,
                "resident_before": before,
                "seconds": done.seconds,
                "enlarged": done.enlarged,
                "locked": lock,
            }
        )
    elif before is not None:
        read = size(done.bytes - before)
        large = f"; {size(done.enlarged)} lay in small pages and lie in large ones now" if done.enlarged else ""
        write_line(f"{path}: {size(done.bytes)} in memory, {read} of it read in {done.seconds:.2f} s{large}")
    else:
        took = f"{done.seconds:.2f} s; how much of it was read cannot be known"
        write_line(f"{path}: {size(done.bytes)} in memory after {took}")
    if lock:
        if is_watched():
            say("Locked in memory. Ctrl-C releases it.")
        if signal.sigwait(stops) == signal.SIGINT:
            raise KeyboardInterrupt
