"""``python -m llama_rs`` and the script ``llama-rs``: the command line, and Ctrl-C from the first moment to the last.

The package imports nothing by itself, so this runs some milliseconds after Python does. Ctrl-C ends the process at once
and quietly, but for the time in which a command works: there it is a KeyboardInterrupt, so that what there is can be
written. A second one does not wait for that.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130  # what a shell says of a process that SIGINT ended


def main() -> int:
    """Runs the command line that the process was started with; gives the exit code."""
    try:
        import signal

        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a shell's job in the background
        if not ignored:
            signal.signal(signal.SIGINT, _end)
        from .cli import main

        return main(on_interrupt=None if ignored else _end)
    except KeyboardInterrupt:  # in the first lines of this function
        return INTERRUPTED


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
