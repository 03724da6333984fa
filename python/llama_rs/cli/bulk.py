"""``--jsonl``: much work, a line of JSON for each piece of it, and a line of JSON for each result.

A line has an "id", or else its number is that; what is wrong with one is its result, and the others are done. Results
are written as they come, to a file if one likes, and a run that was stopped goes on after what that file has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from .. import Completion, Model, SamplingParams
from ..errors import LlamaError
from ..notes import counted
from ..output import is_watched, json_line, say, say_in_place, write_json
from .exits import EXIT_FAILURE, Exit, Failure
from .lines import lines_of

MOST_LINE = 1 << 26
"""Bytes of a line that are read."""
AT_A_TIME = 4
"""Prompts that are taken together, times those that are computed together: the longest answer of them is waited for."""
ERRORS = (LlamaError, ValueError, TypeError)
"""What may be wrong with one line and not with the next."""


class Job(NamedTuple):
    """A line: what is asked for, or what is wrong with it."""

    id: Any
    asked: Any = None
    error: str | None = None


Result = dict[str, Any] | str
"""The fields of a result, or why there is none."""


def run(
    file: str | None,
    parse: Callable[[Any], Any],
    results: Callable[[list[Any]], Iterable[Result]],
    *,
    at_a_time: int,
    output: str | None,
    resume: bool,
) -> None:
    """Does the work of all lines of a file or of standard input, and fails if some could not be done.

    Args:
        file: where the lines are.
        parse: what of a line, an object or a text, is asked for; raises what is wrong with it.
        results: of some that are asked for, in their order.
        at_a_time: how many it is given at most.
        output: the file for the results, or None for standard output.
        resume: whether what that has already is left away.
    """
    answered = _answered(output) if resume and output is not None else set()
    failed = done = index = 0
    with _writer(output, append=resume) as write:
        for block in lines_of(file):
            jobs = (job for job in _jobs(index, block, parse) if _key(job.id) not in answered)
            index += len(block)
            while some := list(islice(jobs, at_a_time)):
                found = iter(results([job.asked for job in some if job.error is None]))
                for job in some:
                    result = next(found) if job.error is None else job.error
                    failed += isinstance(result, str)
                    write({"id": job.id, **({"error": result} if isinstance(result, str) else result)})
                done += len(some)
                if is_watched():
                    say_in_place(f"{counted(done, 'line')} answered")
    if is_watched():
        say_in_place("")
    if failed:
        say(f"{failed} of {counted(done, 'line')} could not be answered: they have an error")
        raise Exit(EXIT_FAILURE)


def _jobs(first: int, lines: list[bytes], parse: Callable[[Any], Any]) -> Iterator[Job]:
    """The lines that are not empty, checked each by itself. Without an id it is the number of the line, from 0."""
    for index, line in enumerate(lines, first):
        if not line.strip():
            continue
        job_id: Any = index
        try:
            if len(line) > MOST_LINE:
                raise ValueError(f"the line has more than {MOST_LINE >> 20} MiB")
            asked = json.loads(line)
            if not isinstance(asked, (dict, str)):
                raise ValueError("the line is neither an object nor a text")
            if isinstance(asked, dict):
                job_id = asked.pop("id", index)
            yield Job(job_id, parse(asked))
        except (*ERRORS, RecursionError) as e:
            yield Job(job_id, error=_said(e))


def together(work: Callable[[list[Any]], Iterable[Result]], asked: list[Any]) -> Iterable[Result]:
    """The results of all, or of each by itself if one of them cannot be: then its is why."""
    try:
        return list(work(asked)) if asked else []
    except ERRORS:
        return list(each_alone(lambda one: next(iter(work([one]))), asked))


def alone(work: Callable[[Any], Result], asked: Any) -> Result:
    """The result of one, or why there is none."""
    try:
        return work(asked)
    except ERRORS as e:
        return _said(e)


def each_alone(work: Callable[[Any], Result], asked: list[Any]) -> Iterator[Result]:
    """The results of all, one after another."""
    return (alone(work, one) for one in asked)


def field(asked: dict[str, Any], name: str) -> str:
    """A field of a line that is text."""
    value = asked.get(name)
    if not isinstance(value, str):
        raise TypeError(f"the line has no text in {name}")
    return value


def text(asked: Any) -> str:
    """A line that is a text, or an object that has one and nothing else."""
    return asked if isinstance(asked, str) else field(only(asked, "text"), "text")


def texts(asked: dict[str, Any], name: str) -> list[str]:
    """A field of a line that is a list of texts."""
    value = asked.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"the line has no list of texts in {name}")
    return value


def only(asked: dict[str, Any] | str, *names: str) -> dict[str, Any]:
    """A line that is an object, and has no other fields than these."""
    if isinstance(asked, str):
        raise TypeError("the line is a text, it must be an object")
    if unknown := sorted(set(asked) - set(names)):
        raise ValueError(f"a line has no {unknown[0]!r}, it may have {', '.join(names)}")
    return asked


def generate(
    llama: Model, file: str | None, options: dict[str, Any], *, parallel: int, output: str | None, resume: bool
) -> None:
    """Answers prompts: ``llama-rs generate --jsonl``."""
    params = SamplingParams(**options)

    def parse(asked: Any) -> tuple[list[int] | str, SamplingParams]:
        asked = {"prompt": asked} if isinstance(asked, str) else asked
        if ("prompt" in asked) == ("messages" in asked):
            raise ValueError("the line must have either prompt or messages")
        sampling = params.replace(**{k: v for k, v in asked.items() if k not in ("prompt", "messages")})
        prompt = llama.chat_prompt(asked["messages"]) if "messages" in asked else asked["prompt"]
        if not isinstance(prompt, (str, list)):
            raise ValueError("prompt is neither text nor a list of token ids")
        return prompt, sampling

    def answers(asked: list[tuple[list[int] | str, SamplingParams]]) -> Iterator[Result]:
        prompts, sampling = [prompt for prompt, _ in asked], [params for _, params in asked]
        return map(_record, llama.generate_batch(prompts, sampling=sampling, parallel=parallel))

    run(
        file,
        parse,
        lambda asked: together(answers, asked),
        at_a_time=parallel * AT_A_TIME,
        output=output,
        resume=resume,
    )


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _record(answer: Completion) -> Result:
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": answer.timings.generated_tokens,
        "seed": answer.seed,
    }


def _key(job_id: Any) -> str:
    """An id, to be compared: it may be any JSON."""
    return json.dumps(job_id, sort_keys=True)


def _answered(output: str) -> set[str]:
    """The ids that a file has answers of. What is no whole line at its end is cut off: writing ended there."""
    found = set()
    whole = 0
    try:
        with open(output, "r+b") as f:
            for line in f:
                if not line.endswith(b"\n"):
                    f.truncate(whole)
                    break
                whole += len(line)
                try:
                    record = json.loads(line)
                    if "error" not in record:
                        found.add(_key(record["id"]))
                except (ValueError, TypeError, KeyError) as e:
                    raise Failure(f"{output}: a line is no answer of --jsonl: {_said(e)}") from e
    except FileNotFoundError:
        pass
    except OSError as e:
        raise Failure(f"{output}: {e.strerror}") from e
    return found


@contextmanager
def _writer(output: str | None, *, append: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes an answer, to a file or to standard output; each is there once it is known."""
    if output is None:
        yield write_json
        return
    try:
        file = open(output, "ab" if append else "wb", buffering=0)  # noqa: SIM115  # an error of it names the file
    except OSError as e:
        raise Failure(f"{output}: {e.strerror}") from e
    with file:
        yield lambda record: _append(file, output, record)


def _append(file: BinaryIO, output: str, record: dict[str, Any]) -> None:
    data = json_line(record).encode()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as e:
        raise Failure(f"{output}: {e.strerror}") from e
