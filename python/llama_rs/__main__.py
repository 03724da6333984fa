"""``python -m llama_rs`` and the script ``llama-rs``: the command line, and Ctrl-C from the first moment to the last.

The package imports nothing by itself, so this runs some milliseconds after Python does. Ctrl-C ends the process at once
and quietly, but for the time in which a command works: there it is a KeyboardInterrupt, so that what there is can be
written. A second one does not wait for that.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # what does it: the module of that name makes enums of its constants, which takes longer

INTERRUPTED = 130  # what a shell says of a process that SIGINT ended


def main() -> int:
    """Runs the command line that the process was started with; gives the exit code."""
    try:
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a shell's job in the background
        if not ignored:
            signal.signal(signal.SIGINT, _end)
        from .cli import main

        return main(on_interrupt=None if ignored else _end)
    except KeyboardInterrupt:  # in the first lines of this function
        return INTERRUPTED


def run() -> int:
    """Runs the command line and ends the process. The interpreter is not taken apart: that takes as long as ten tokens.

    What others have registered with :mod:`atexit` is done. Where there are threads to wait for, it ends as usual.
    """
    code = main()
    threading = sys.modules.get("threading")
    if threading and threading.active_count() > 1:
        return code
    import atexit

    from .output import settle

    atexit._run_exitfuncs()
    settle(sys.stdout)
    settle(sys.stderr)
    os._exit(code)


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run())
