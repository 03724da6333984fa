"""``llama-rs chat``: a conversation at a terminal, one question and its answer, or the conversations of a program."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from ..errors import ContextOverflowError
from ..lazy import TYPE_CHECKING
from ..model import Model
from ..notes import counted
from ..output import harmless, is_watched, say, say_in_place, warn, write
from . import Interrupts, declare
from .arguments import (
    doubts_of_length,
    find_model,
    lora_option,
    model_option,
    parameters,
    read_text,
    speculative,
    speculative_options,
    text_option,
    verbose_option,
)
from .exits import UsageError

if TYPE_CHECKING:
    from typing import Any, Literal

    from ..chat import ChatDelta, ChatStream

HELP = '''\
"""          begin and end a message of several lines with it; a line that ends with \\ goes on, too
/regenerate  have the last answer again
/clear       begin anew
/system X    begin anew, with X as the system message
/save FILE   write the conversation to a file, as JSON
/load FILE   go on with the one in a file
/tokens      how much of the context is used
/speed       say how fast each answer was, or no longer
/exit        end; so does Ctrl-D, or Ctrl-C twice
Ctrl-C stops an answer.'''

MOST_HISTORY = 1000
"""Lines that are remembered."""


@declare.command("chat")
@declare.argument("prompt", required=False)
@text_option
@model_option
@declare.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@declare.option(
    "--think/--no-think",
    "reasoning",
    default=None,
    help="Whether the model is to think before it answers, if it is one that can.  [default: as its template has it]",
)
@declare.option(
    "--jsonl",
    is_flag=True,
    help="For programs: a request a line on standard input, the answers in lines on standard output, all in JSON.",
)
@parameters("max_tokens", "json_schema", "grammar", "regex", "choices", "sampling", "stop")
@lora_option
@speculative_options
@parameters("session")
@verbose_option
def command(
    prompt: str | None,
    file: str | None,
    model: str | None,
    system: str | None,
    jsonl: bool,
    context_length: int | None,
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    lora: tuple[tuple[str, float], ...],
    draft: str | None,
    lookup: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Talk with a model.

    With PROMPT, or if standard input is a pipe or a file, it is one question, and the answer is written to standard
    output. Else it is a conversation at the terminal: a line is a message, and /help says what else there is. The
    messages reach the model in the form that it was trained for, by the template in its file. What a model thinks
    before it answers is shown at a terminal, and nowhere else.

    When a conversation gets longer than the context, its oldest messages are left out, but not the system's.

    With --jsonl, a request is {"id": "a", "content": "Hello"}: it goes on with the conversation of that id, or begins
    it. The answer comes as lines {"id": "a", "delta": {"content": "Hi"}}, and a last one with "message",
    "finish_reason" and "usage". A request may also have "messages" (to be added, as OpenAI's API has them), "system"
    (begins anew), "stream": false, "close": true, "tools", "tool_choice", and options of this command such as
    "max_tokens".

    \b
      llama-rs chat
      llama-rs chat -n 64 "What is gravity?"
      git diff | llama-rs chat --system "You review code." "What is wrong with this change?"
      echo '{"content": "Hello"}' | llama-rs chat --jsonl
    """
    path = find_model(model)
    if jsonl and (prompt is not None or file is not None):
        raise UsageError("with --jsonl the requests come from standard input: give neither PROMPT nor -f")
    is_conversation = prompt is None and file is None and not jsonl and sys.stdin is not None and sys.stdin.isatty()
    text = None if is_conversation or jsonl else read_text(prompt, file)
    llama = Model(path, threads=threads, context_length=context_length, kv_type=kv_type, lora=lora)
    options["speculative"] = speculative(draft, lookup, threads=threads, context_length=context_length)
    for warning in doubts_of_length(llama, context_length or 0):
        warn(warning)
    options["on_overflow"] = "shift"
    if jsonl:
        from .chat_lines import answer_lines

        answer_lines(llama, system, options)
        return
    conversation = Conversation(llama, system, options, verbose=verbose)
    if text is None:
        conversation.converse()
    else:
        conversation.messages.append({"role": "user", "content": text})
        with conversation.session:
            conversation.show(conversation.stream())


def beginning(system: str | None) -> list[dict[str, Any]]:
    """The messages before the first of the user."""
    return [{"role": "system", "content": system}] if system else []


class Conversation:
    """What was said, and what has been computed of it."""

    def __init__(self, llama: Model, system: str | None, options: dict[str, Any], *, verbose: bool) -> None:
        self.llama = llama
        self.options = options
        self.verbose = verbose
        self.session = llama.session()
        self.system = system
        self.messages = beginning(system)
        self.said_what_is_forgotten = False

    def converse(self) -> None:
        """A message, an answer, and so on."""
        with History(), self.session:
            say("Type a message; /help says what else there is.")
            while (text := read_message()) is not None:
                word, _, rest = text.partition(" ")
                if not text.strip():
                    continue
                if word in ("/exit", "/quit", "/bye"):
                    break
                if word.startswith("/") and word[1:].isalpha():
                    self.obey(word, rest.strip())
                else:
                    self.messages.append({"role": "user", "content": text})
                    if not self.answer():
                        self.messages.pop()

    def obey(self, word: str, rest: str) -> None:
        """Does what a line says that begins with a slash."""
        if word == "/help":
            for line in HELP.splitlines():
                say(line)
        elif word in ("/clear", "/system"):
            self.system = rest if word == "/system" else self.system
            self.begin(beginning(self.system))
        elif word == "/regenerate":
            self.regenerate()
        elif word in ("/save", "/load") and not rest:
            say(f"{word} needs the name of a file")
        elif word == "/save":
            self.save(rest)
        elif word == "/load":
            self.load(rest)
        elif word == "/tokens":
            used, all_ = self.session.position, self.session.context_length
            say(f"{counted(len(self.messages), 'message')}; {used} of {all_} tokens of the context are used")
        elif word == "/speed":
            self.verbose = not self.verbose
            say("the speed is said after each answer" if self.verbose else "the speed is not said any more")
        else:
            say(f"there is no {word}; /help says what there is")

    def begin(self, messages: list[dict[str, Any]]) -> None:
        """Another conversation."""
        self.messages = messages
        self.said_what_is_forgotten = False

    def regenerate(self) -> None:
        """The last answer, anew."""
        last = next((i for i in reversed(range(len(self.messages))) if self.messages[i]["role"] == "user"), None)
        if last is None:
            say("there is no answer yet")
            return
        before = self.messages[last + 1 :]
        del self.messages[last + 1 :]
        if not self.answer():
            self.messages += before

    def save(self, path: str) -> None:
        """Writes the conversation to a file."""
        import json

        try:
            with open(os.path.expanduser(path), "w", encoding="utf-8") as f:
                json.dump({"messages": self.messages}, f, ensure_ascii=False, indent=1)
                f.write("\n")
        except OSError as e:
            say(f"{path}: {e.strerror}")

    def load(self, path: str) -> None:
        """Goes on with a conversation that was saved, or with a list of messages."""
        import json

        from ..chat import checked

        try:
            with open(os.path.expanduser(path), encoding="utf-8") as f:
                loaded = json.load(f)
            messages = [dict(m) for m in checked(loaded["messages"] if isinstance(loaded, dict) else loaded)]
        except OSError as e:
            say(f"{path}: {e.strerror}")
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            say(f"{path}: no conversation: {e}")
        else:
            self.begin(messages)
            say(f"{counted(len(messages), 'message')}")

    def stream(self) -> ChatStream:
        """The answer to what was said."""
        return self.session.stream_chat(self.messages, **self.options)

    def answer(self) -> bool:
        """Answers, and remembers it; what there is of it if it is stopped. Whether there was an answer."""
        stream = None
        try:
            try:
                stream = self.stream()
                self.show(stream)
            except KeyboardInterrupt:
                say("[stopped]")
                Interrupts.forget()
                if stream is None:
                    return False
        except ContextOverflowError as e:
            say(f"{e}; /clear begins anew")
            return False
        except ValueError as e:  # the template of the model refuses
            say(str(e))
            return False
        self.messages.append(stream.message)
        if stream.forgotten and not self.said_what_is_forgotten:
            self.said_what_is_forgotten = True
            say("the conversation is longer than the context: from now on its oldest messages are left out")
        return True

    def show(self, stream: ChatStream) -> None:
        """Writes an answer as it comes."""
        is_terminal = sys.stdout.isatty()
        can_dim = is_terminal and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
        last, dim = "\n", False
        try:
            for delta in awaited(self.llama, stream):
                if delta.reasoning and is_terminal:
                    if can_dim and not dim:
                        write("\x1b[2m")
                    dim = True
                    write(harmless(delta.reasoning))
                    last = delta.reasoning[-1]
                elif delta.content:
                    if dim:
                        write(("\x1b[0m" if can_dim else "") + "\n\n")
                        dim = False
                    write(harmless(delta.content) if is_terminal else delta.content)
                    last = delta.content[-1]
        finally:
            if dim and can_dim:
                write("\x1b[0m")
            if last != "\n" and (is_terminal or stream.finish_reason is not None):
                write("\n")
        if stream.reasoning and not stream.content and stream.finish_reason == "length":
            warn(
                "the answer ended while the model was still thinking: --max-tokens or --context-length has no more room"
            )
        if self.verbose:
            report(stream)


def report(stream: ChatStream) -> None:
    """Says how fast an answer was."""
    t = stream.timings
    parts = []
    if t.prompt_seconds:
        read = t.prompt_tokens - t.cached_tokens
        parts.append(f"{counted(read, 'token')} read at {read / t.prompt_seconds:.0f} tokens/s")
    if t.generation_seconds:
        speed = t.generated_tokens / t.generation_seconds
        parts.append(f"{counted(t.generated_tokens, 'token')} written at {speed:.1f} tokens/s")
    say(f"[{', '.join(parts)}]")


def awaited(llama: Model, stream: ChatStream) -> Iterator[ChatDelta]:
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
    """A message: a line, and more of them after each that ends with a backslash, or between three quotes. None at the
    end."""
    lines: list[str] = []
    quoted = interrupted = False
    shown = sys.stdout.isatty()
    try:
        while True:
            try:
                line = input((". " if lines or quoted else "> ") if shown else "")
            except KeyboardInterrupt:
                # What was typed is forgotten, and the conversation goes on. One at an empty line may have been meant
                # for an answer that ended just before: only the second ends the program.
                is_empty = not (lines or quoted or _typed())
                if is_empty and interrupted:
                    raise
                say("")
                if is_empty:
                    interrupted = True
                    say("Ctrl-C again ends the conversation, as Ctrl-D does")
                Interrupts.forget()
                lines, quoted = [], False
                continue
            if not quoted and not lines and line.startswith('"""'):
                quoted, line = True, line[3:]
                if not line:
                    continue
            if quoted:
                if line.rstrip().endswith('"""'):
                    return "\n".join([*lines, line.rstrip()[:-3]]).removesuffix("\n")
                lines.append(line)
                continue
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)
    except EOFError:
        say("")
        return "\n".join(lines) if lines else None


def _typed() -> bool:
    """Whether something stands in the line that is being typed."""
    try:
        import readline
    except ImportError:
        return False
    return bool(readline.get_line_buffer())


class History:
    """Line editing, and the lines of conversations before: in ``$XDG_STATE_HOME/llama_rs/history``, private."""

    def __init__(self) -> None:
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        self.path = os.path.join(state, "llama_rs", "history")

    def __enter__(self) -> None:
        from contextlib import suppress

        with suppress(ImportError, OSError):
            import readline

            readline.set_history_length(MOST_HISTORY)
            readline.read_history_file(self.path)

    def __exit__(self, *_: object) -> None:
        from contextlib import suppress

        with suppress(ImportError, OSError):
            import readline

            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with open(self.path, "a", opener=lambda path, flags: os.open(path, flags, 0o600)):
                pass  # so that it is made for its owner alone
            readline.write_history_file(self.path)
