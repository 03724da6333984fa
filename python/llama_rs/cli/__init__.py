"""The command line: what people use.

A command is a file of this folder with a ``command``, imported when it runs: the time to the first token is also the
time that imports take. For the same reason click is imported only for what is out of the ordinary (``declare.py``).
Standard output carries the result and nothing else; all other words go to standard error. What a user can do something
about is one line and an exit code.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from .. import errors, notes
from ..lazy import TYPE_CHECKING, load, signal
from ..output import StandardOutput, say, settle, warn
from .arguments import find_model as find_model
from .arguments import in_options
from .declare import Command
from .exits import (
    EXIT_BAD_MODEL,
    EXIT_CLOSED_PIPE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_UNSUPPORTED_MODEL,
    EXIT_USAGE,
    Exit,
    Failure,
    UsageError,
)

if TYPE_CHECKING:
    from typing import ClassVar

COMMANDS = (
    "chat",
    "generate",
    "serve",
    "perf",
    "tokenize",
    "embed",
    "classify",
    "score",
    "rerank",
    "inspect",
    "models",
    "perplexity",
    "bench",
    "status",
    "warm",
    "convert",
    "quantize",
    "imatrix",
    "split",
    "merge",
    "man",
)
COMPLETION_VARIABLE = "_LLAMA_RS_COMPLETE"


def find_command(name: str) -> Command:
    """A command, out of its file."""
    command: Command = load(f"{__name__}.{name}").command
    return command


def main(arguments: Sequence[str] | None = None, *, on_interrupt: Callable[..., object] | None = None) -> int:
    """Runs a command line; gives the exit code.

    Args:
        arguments: by default those of the process.
        on_interrupt: the handler of SIGINT before and after the command itself; None to leave SIGINT alone.
    """
    with StandardOutput(), notes.Listener(warn):
        try:
            code = _run(sys.argv[1:] if arguments is None else list(arguments), on_interrupt)
        except BrokenPipeError:
            code = EXIT_CLOSED_PIPE
    settle(sys.stderr)
    return code


def _run(arguments: list[str], on_interrupt: Callable[..., object] | None) -> int:
    """Runs a command line. Whatever a user can do something about becomes one line and its exit code."""
    try:
        if sys.stdout is None:
            return _fail(EXIT_FAILURE, "standard output is closed")
        if COMPLETION_VARIABLE in os.environ:
            from .clicked import complete

            return complete(os.environ[COMPLETION_VARIABLE])
        command = find_command(arguments[0]) if arguments and arguments[0] in COMMANDS else None
        values = command.parse(arguments[1:]) if command else None
        interrupts = Interrupts(on_interrupt)
        if command is None or values is None:
            from .clicked import run

            run(arguments, interrupts)
        else:
            with interrupts:
                command.callback(**values)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exit as e:
        return e.code
    except UsageError as e:
        name = next((word for word in arguments if word in COMMANDS), None)
        said = " ".join(str(e).split())  # click puts choices in lines of their own
        return _fail(EXIT_USAGE, f"{said.rstrip('.')} ({e.hint or f'see llama-rs {name} --help'})")
    except Failure as e:
        return _fail(EXIT_FAILURE, str(e))
    except (errors.ModelFileError, errors.ModelFormatError) as e:
        return _fail(EXIT_BAD_MODEL, str(e))
    except errors.UnsupportedModelError as e:
        return _fail(EXIT_UNSUPPORTED_MODEL, str(e))
    except errors.GrammarError as e:
        return _fail(EXIT_USAGE, str(e))
    except errors.LlamaError as e:
        return _fail(EXIT_FAILURE, str(e))
    except ValueError as e:  # an argument that the library finds out of range
        return _fail(EXIT_USAGE, in_options(str(e)))
    except MemoryError as e:
        return _fail(EXIT_FAILURE, str(e) or "out of memory")
    except BrokenPipeError:
        raise
    except OSError as e:
        return _fail(EXIT_FAILURE, f"{e.filename or 'standard output'}: {e.strerror}")
    return 0


def _fail(code: int, message: str) -> int:
    say(f"error: {message}")
    return code


class Interrupts:
    """While a command works, Ctrl-C is a KeyboardInterrupt; the next one ends the process, as one before or after does.

    Some programs send every signal twice, timeout(1) for one, so that the next one within a second means the same.
    """

    working: ClassVar[Interrupts | None] = None
    """Those of the command that works."""

    def __init__(self, outside: Callable[..., object] | None) -> None:
        self.outside = outside
        self.interrupted: float | None = None

    def __enter__(self) -> None:
        Interrupts.working = self
        if self.outside:
            signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, *_: object) -> None:
        if self.outside:
            signal.signal(signal.SIGINT, self.outside)

    @classmethod
    def forget(cls) -> None:
        """Has the next Ctrl-C be as the first, for a command that goes on after one."""
        if cls.working:
            cls.working.interrupted = None

    def _interrupt(self, *_: object) -> None:
        now = time.monotonic()
        if self.interrupted is None:
            self.interrupted = now
            raise KeyboardInterrupt
        if now > self.interrupted + 1 and self.outside:
            self.outside()
