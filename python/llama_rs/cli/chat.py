"""``llama-rs chat``: a conversation at a terminal, or one question and its answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import click

from .. import Model, Session, Stream
from ..errors import ContextOverflowError
from ..output import harmless, is_watched, say, say_in_place, warn, write
from . import Command
from .arguments import doubts_of_length, find_model, model_option, parameters, read_text, text_option

HELP = """\
/clear     begin anew
/system X  begin anew, with X as the system message
/exit      end; so does Ctrl-D
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""


@click.command("chat", cls=Command)
@click.argument("prompt", required=False)
@text_option
@model_option
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@parameters("max_tokens", "json_schema", "grammar", "regex", "choices", "sampling", "stop", "session")
def command(
    prompt: str | None,
    file: str | None,
    model: str | None,
    system: str | None,
    context_length: int | None,
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    **options: Any,
) -> None:
    """Talk with a model.

    With PROMPT, or if standard input is a pipe or a file, it is one question, and the answer is written to standard
    output. Else it is a conversation at the terminal: a line is a message, and /help says what else there is. The
    messages reach the model in the form that it was trained for, by the template in its file.

    \b
      llama-rs chat
      llama-rs chat -n 64 "What is gravity?"
      git diff | llama-rs chat --system "You review code." "What is wrong with this change?"
    """
    path = find_model(model)
    is_conversation = prompt is None and file is None and sys.stdin is not None and sys.stdin.isatty()
    text = None if is_conversation else read_text(prompt, file)
    llama = Model(path, threads=threads, context_length=context_length, kv_type=kv_type)
    for warning in doubts_of_length(llama, context_length or 0):
        warn(warning)
    messages = beginning(system)
    with llama.session() as session:
        if text is not None:
            messages.append({"role": "user", "content": text})
            show(llama, session.stream_chat(messages, **options))
        else:
            converse(llama, session, messages, options)


def beginning(system: str | None) -> list[dict[str, str]]:
    """The messages before the first of the user."""
    return [{"role": "system", "content": system}] if system else []


def converse(llama: Model, session: Session, messages: list[dict[str, str]], options: dict[str, Any]) -> None:
    """A message, an answer, and so on."""
    with suppress(ImportError):
        import readline  # noqa: F401  # line editing and history for input()

    say("Type a message; /help says what else there is.")
    while (text := read_message()) is not None:
        word, _, rest = text.partition(" ")
        if not text.strip():
            continue
        if word in ("/exit", "/quit", "/bye"):
            break
        if word in ("/clear", "/system"):
            messages = beginning(rest if word == "/system" else None)
        elif word == "/help":
            for line in HELP.splitlines():
                say(line)
        elif word.startswith("/") and word[1:].isalpha():
            say(f"there is no {word}; /help says what there is")
        else:
            messages.append({"role": "user", "content": text})
            answer = answered(llama, session, messages, options)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def answered(llama: Model, session: Session, messages: list[dict[str, str]], options: dict[str, Any]) -> str | None:
    """The answer, shown; what there is of it if it is stopped. None if there can be none."""
    try:
        stream = session.stream_chat(messages, **options)
        try:
            show(llama, stream)
        except KeyboardInterrupt:
            say("[stopped]")
            click.get_current_context().obj.forget()
    except ContextOverflowError as e:
        say(f"{e}; /clear begins anew")
        return None
    except ValueError as e:  # the template of the model refuses
        say(str(e))
        return None
    return stream.text


def show(llama: Model, stream: Stream) -> None:
    """Writes an answer as it comes."""
    is_terminal = sys.stdout.isatty()
    last = "\n"
    try:
        for piece in awaited(llama, stream):
            write(harmless(piece) if is_terminal else piece)
            last = piece[-1:] or last
    finally:
        if last != "\n" and (is_terminal or stream.finish_reason is not None):
            write("\n")


def awaited(llama: Model, stream: Stream) -> Iterator[str]:
    """The pieces; while a person waits for the first and the model is being read, a line says how far that is."""
    if not is_watched():
        yield from stream
        return
    from ..residency import watch

    with watch(llama, say_in_place):
        first = next(stream, None)
    if first is not None:
        yield first
        yield from stream


def read_message() -> str | None:
    """A message: a line, and more of them after each that ends with a backslash. None at the end."""
    lines: list[str] = []
    try:
        while True:
            line = input(". " if lines else "> ")
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)
    except EOFError:
        say("")
        return "\n".join(lines) if lines else None
