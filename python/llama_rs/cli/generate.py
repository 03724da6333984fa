"""``llama-rs generate``: a prompt in, its continuation out, as it comes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator

from .._core import cpu
from ..errors import ModelFileError, SavedSessionError
from ..lazy import TYPE_CHECKING
from ..model import Model
from ..notes import counted
from ..output import harmless, is_watched, percent, say, say_in_place, warn, write, write_json
from . import declare
from .arguments import (
    bulk_options,
    check_bulk_options,
    doubts_of_length,
    find_model,
    json_option,
    lora_option,
    model_option,
    parameters,
    read_text,
    speculative,
    speculative_options,
    text_option,
    verbose_option,
)
from .exits import Failure, UsageError
from .kinds import Choice, Number, Path

if TYPE_CHECKING:
    from typing import Any, Literal

    from ..session import Stream, TokenLogprob, TopLogprob


@declare.command("generate")
@declare.argument("prompt", required=False)
@text_option
@model_option
@declare.option(
    "--chat",
    is_flag=True,
    help="PROMPT is a message: it reaches the model in the form that it was trained for, by the template in its file.",
)
@declare.option(
    "--system", metavar="TEXT", help="What the model is told before the message; with --chat, which it means."
)
@parameters("max_tokens", "json_schema", "grammar", "regex", "choices")
@parameters("sampling", "stop", "ignore_eos", "logprobs", "top_logprobs", "on_overflow", "n_keep", "prompt")
@declare.option(
    "--prompt-cache",
    type=Path(dir_okay=False),
    help="Keep the computed prompt in this file: what a later prompt has in common with it, from the first token on, "
    "is not computed again.",
)
@declare.option(
    "--prompt-cache-ro",
    "prompt_cache_readonly",
    is_flag=True,
    help="Use the prompt cache without ever writing to it; the file must exist.",
)
@lora_option
@speculative_options
@parameters("session")
@declare.option(
    "--load",
    type=Choice(["mmap", "read"]),
    default="mmap",
    help="Map the model, sharing one copy with other processes, or read a copy for this process alone.",
)
@declare.option("--prefault", is_flag=True, help="Read the whole model before starting.")
@declare.option("--lock", is_flag=True, help="Keep the model in memory while this runs, even if memory gets scarce.")
@declare.option("--raw", is_flag=True, help="Print the answer exactly, without adding a newline at its end.")
@bulk_options
@declare.option(
    "--parallel",
    type=Number(int, 1, 2**32 - 1),
    default=16,
    help="With --jsonl, make so many answers at the same time.",
)
@json_option
@verbose_option
def command(
    prompt: str | None,
    file: str | None,
    model: str | None,
    chat: bool,
    system: str | None,
    context_length: int | None,
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    lora: tuple[tuple[str, float], ...],
    draft: str | None,
    lookup: bool,
    load: Literal["mmap", "read"],
    prefault: bool,
    lock: bool,
    raw: bool,
    jsonl: bool,
    output: str | None,
    resume: bool,
    parallel: int,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Continue the text PROMPT.

    The prompt is the argument, or the file given with -f, or else standard input. If standard input is a pipe or a
    file, it is read before an argument, which follows after a newline; with < /dev/null a script keeps its input out.

    The answer, and nothing else, is written to standard output as it comes, and ends with a newline. Control characters
    are shown as \\x1b and the like at a terminal, and written as they are to a pipe or a file. Ctrl-C ends the answer.

    With --jsonl each line of the input is an object with "prompt" (or "messages", for a chat), and may have "id" and
    options by their names in the library: {"id": 7, "prompt": "Once", "max_tokens": 5}. Each line written has "id" and
    "text", or "error". Prompts that begin alike share what was computed.

    \b
      llama-rs generate "Once upon a time"
      llama-rs generate -m model.gguf -n 64 --temperature 0 < prompt.txt
      git diff | llama-rs generate "A summary of these changes:"
      llama-rs generate --prompt-cache rules.kv -f rules-and-question.txt
      llama-rs generate --json-schema person.json "Ada Lovelace as JSON: "
      llama-rs generate --system "You translate to French." --chat "Good morning"
    """
    if options["prompt_cache_readonly"] and not options["prompt_cache"]:
        raise UsageError("--prompt-cache-ro needs --prompt-cache FILE")
    if (options["logprobs"] or options["top_logprobs"]) and not as_json:
        raise UsageError("--logprobs and --top-logprobs need --json, which is where they are written")
    others = prompt is not None or as_json or options["prompt_cache"]
    check_bulk_options(
        output, jsonl=jsonl, resume=resume, others=others, without="PROMPT, no --json and no --prompt-cache"
    )
    if jsonl and (draft is not None or lookup):
        raise UsageError("--draft and --lookup are for one answer at a time: with --jsonl many are made together")
    path = find_model(model)
    text = "" if jsonl else read_text(prompt, file)
    start = time.perf_counter()
    llama = Model(
        path,
        threads=threads,
        context_length=context_length,
        kv_type=kv_type,
        load=load,
        prefault=prefault,
        lock=lock,
        lora=lora,
    )
    guesser = speculative(draft, lookup, threads=threads, context_length=context_length)
    opened = time.perf_counter()
    if jsonl:
        from . import bulk

        options = {name: value for name, value in options.items() if not name.startswith("prompt_cache")}
        bulk.generate(llama, file, options, parallel=parallel, output=output, resume=resume)
        return
    is_chat = chat or system is not None
    system_message = [{"role": "system", "content": system}] if system else []
    asked = llama.chat_prompt([*system_message, {"role": "user", "content": text}]) if is_chat else []
    try:
        stream = llama.stream(asked if is_chat else text, speculative=guesser, **options)
    except (ModelFileError, SavedSessionError) as e:  # of the prompt cache: the model is open
        raise Failure(str(e)) from e
    if verbose:
        encoded = time.perf_counter()
        if (begun := _seconds_of_this_process()) is not None:
            say(f"start: {begun - (encoded - start):.2f} s for Python and its imports")
        say(f"{path}: opened in {1000 * (opened - start):.1f} ms; {counted(llama.threads, 'thread')}, {cpu()}")
        say(f"vocabulary: {counted(stream.prompt_tokens, 'token')} of prompt in {1000 * (encoded - opened):.1f} ms")

    def tokens(text: str) -> list[int]:
        special = {name: options[name] for name in ("add_special", "parse_special")}
        return llama.tokenizer.encode(text, **special) if not is_chat else asked

    for warning in _doubts(llama, text, tokens, context_length):
        warn(warning)
    unsaved = stream.prompt_cache_error
    if unsaved:
        warn(unsaved)
    answer = _Answer(as_json=as_json, raw=raw)
    interrupt: KeyboardInterrupt | None = None
    try:
        for piece in _with_progress(llama, stream) if is_watched() else stream:
            answer.add(piece)
    except KeyboardInterrupt as e:
        interrupt = e  # what there is comes first
    finally:
        answer.end(whole=stream.finish_reason is not None)
    if stream.prompt_cache_error and not unsaved:
        warn(stream.prompt_cache_error)
    if as_json:
        logprobs = {} if stream.logprobs is None else {"logprobs": [_of_token(token) for token in stream.logprobs]}
        write_json(
            {
                "text": "".join(answer.pieces),
                "token_ids": stream.token_ids,
                "finish_reason": stream.finish_reason,
                "prompt_tokens": stream.prompt_tokens,
                "seed": stream.seed,
                "timings": stream.timings._asdict(),
                **logprobs,
            }
        )
    if verbose:
        _report(stream, answer.first, interrupted=interrupt is not None)
    if interrupt:
        raise interrupt
    if _expects_a_template(llama, stream) and not any(map(llama.tokenizer.is_special, tokens(text)[1:])):
        warn(
            "the model ended its answer at once: it is trained for conversations, whose form is in the metadata key "
            "tokenizer.chat_template, and the prompt does not have it; llama-rs chat writes it"
        )


def _of_token(token: TokenLogprob) -> dict[str, Any]:
    """A token as JSON, in the form of OpenAI's API."""

    def shown(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}

    return {**shown(token), "top_logprobs": [shown(other) for other in token.top_logprobs]}


class _Answer:
    """Where the pieces of an answer go: to standard output, or into JSON at the end."""

    def __init__(self, *, as_json: bool, raw: bool) -> None:
        self.as_json = as_json
        self.raw = raw
        self.is_terminal = sys.stdout.isatty()
        self.pieces: list[str] = []
        self.last = "\n"  # character written
        self.first: float | None = None
        """Seconds from the start of this process to the first piece."""

    def add(self, piece: str) -> None:
        if self.first is None:
            self.first = _seconds_of_this_process()
        if self.as_json:
            self.pieces.append(piece)
            return
        write(harmless(piece) if self.is_terminal else piece)
        self.last = piece[-1:] or self.last

    def end(self, *, whole: bool) -> None:
        """Ends the last line: always at a terminal, else that of a whole answer."""
        if self.last != "\n" and not self.raw and (whole or self.is_terminal):
            self.last = "\n"
            write("\n")


def _doubts(llama: Model, text: str, tokens: Callable[[str], list[int]], context_length: int | None) -> Iterator[str]:
    """What is very likely wrong with a question."""
    bos = llama.tokenizer.bos
    if bos is not None and tokens(text[:100])[:2] == [bos, bos]:
        yield (
            f"the prompt begins with the token {_name(llama, bos)} twice: the model expects it once, and it is added; "
            "leave it out of the text, or give --no-add-special"
        )
    yield from doubts_of_length(llama, context_length or 0)
    if text.startswith("\ufeff"):
        yield "the prompt begins with a byte-order mark (U+FEFF), which the model reads as part of the text"


def _name(llama: Model, token: int) -> str:
    return llama.tokenizer.token_bytes(token).decode(errors="backslashreplace")


def _expects_a_template(llama: Model, stream: Stream) -> bool:
    """Whether a model of conversations had nothing to say."""
    return stream.finish_reason == "stop" and not stream.token_ids and "tokenizer.chat_template" in llama.metadata


def _report(stream: Stream, first: float | None, *, interrupted: bool) -> None:
    """Says where the time went."""
    timings = stream.timings
    for name, tokens, seconds, cached in (
        ("prompt", timings.prompt_tokens - timings.cached_tokens, timings.prompt_seconds, timings.cached_tokens),
        ("answer", timings.generated_tokens, timings.generation_seconds, 0),
    ):
        speed = f", {tokens / seconds:.1f} tokens/s" if seconds else ""
        from_cache = f", {cached} from the cache" if cached else ""
        say(f"{name}: {counted(tokens, 'token')} in {seconds:.3f} s{speed}{from_cache}")
    if timings.drafted_tokens:
        right, share = timings.accepted_tokens, percent(timings.accepted_tokens, timings.drafted_tokens)
        say(f"guessed ahead: {counted(timings.drafted_tokens, 'token')}, {right} of them right ({share})")
    if first is not None:
        say(f"first token: {first:.2f} s after the start of this process")
    say(f"seed {stream.seed}; ended by {'Ctrl-C' if interrupted else stream.finish_reason}")


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
    from ..residency import watch

    with watch(llama, say_in_place):
        first = next(stream, None)
    if first is not None:
        yield first
        yield from stream
