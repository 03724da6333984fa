"""``llama-rs man``: the manual as a page for man(1), out of what ``--help`` shows."""

from __future__ import annotations

import inspect

import click

from .. import __version__
from ..output import write
from . import COMMANDS, declare
from .clicked import cli

VARIABLES = (
    ("LLAMA_RS_MODEL", "The model to use when none is named."),
    ("LLAMA_RS_THREADS", "The most cores to use; all that the process may use, by default."),
    (
        "LLAMA_RS_CPU",
        "scalar; avx2, avxvnni or avx512; on AArch64 neon, neon_dotprod or neon_i8mm: use these kernels and not the "
        "best that the CPU has.",
    ),
)


@declare.command("man")
def command() -> None:
    """Write the manual, all commands in one page, in the form of man(1).

    \b
      llama-rs man | man -l -
      llama-rs man > ~/.local/share/man/man1/llama-rs.1
    """
    write(page())


def page() -> str:
    """The page."""
    context = click.Context(cli, info_name="llama-rs")
    lines = [
        f'.TH LLAMA-RS 1 "" "llama-rs {__version__}" "User Commands"',
        ".SH NAME",
        "llama-rs \\- run language models from their files",
        ".SH SYNOPSIS",
        ".B llama-rs",
        "\\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...",
        ".SH DESCRIPTION",
        *_prose(cli),
        ".SH COMMANDS",
    ]
    for name in COMMANDS:
        one = cli.get_command(context, name)
        assert one is not None, "the table has it"
        with click.Context(one, parent=context, info_name=name) as inner:
            usage = " ".join(one.collect_usage_pieces(inner))
            lines += [f".SS llama-rs {name}", f"\\fBllama\\-rs {name}\\fR {_text(usage)}", *_prose(one)]
            for parameter in one.get_params(inner):
                if (record := parameter.get_help_record(inner)) and record[1]:
                    lines += [".TP", f"\\fB{_text(record[0])}\\fR", _text(record[1])]
    lines.append(".SH ENVIRONMENT")
    for name, means in VARIABLES:
        lines += [".TP", f"\\fB{name}\\fR", _text(means)]
    return "\n".join(lines) + "\n"


def _prose(command: click.Command) -> list[str]:
    """The paragraphs of a help; those after \\b stay as they are written."""
    lines = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            examples = inspect.cleandoc(paragraph.removeprefix("\b\n").replace("\n  ", "\n")).splitlines()
            lines += [".PP", ".nf", ".RS", *map(_text, examples), ".RE", ".fi"]
        else:
            lines += [".PP", _text(" ".join(paragraph.split()))]
    return lines


def _text(text: str) -> str:
    """Text as roff has it: nothing in it is an instruction."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text
