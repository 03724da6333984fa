"""Many prompts, a line of JSON each, and a line of JSON for each answer: ``llama-rs generate --jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import click

from .. import Completion, Model, SamplingParams
from ..errors import LlamaError
from ..notes import counted
from ..output import is_watched, json_line, say, say_in_place, write_json

MOST_LINE = 1 << 26
"""Bytes of a line that are read."""
AT_A_TIME = 4
"""Prompts that are taken together, times those that are computed together: the longest answer of them is waited for."""
NOT_OPTIONS = ("id", "prompt", "messages")


class Job(NamedTuple):
    """A line: what is asked for, or what is wrong with it."""

    id: Any
    prompt: list[int] | str = ""
    sampling: SamplingParams | None = None
    error: str | None = None


def run(
    llama: Model,
    blocks: Iterable[list[bytes]],
    options: dict[str, Any],
    *,
    parallel: int,
    output: str | None,
    resume: bool,
) -> int:
    """Answers all lines; gives the number of those that could not be answered."""
    answered: set[str] = set()
    if resume:
        if output is None:
            raise click.UsageError("--resume needs --output FILE, which has the answers so far")
        answered = _answered(output)
    failed = done = 0
    params = SamplingParams(**options)
    index = 0
    with _writer(output, append=resume) as write:
        for block in blocks:
            jobs = (job for job in _jobs(llama, index, block, params) if _key(job.id) not in answered)
            index += len(block)
            while some := list(islice(jobs, parallel * AT_A_TIME)):
                for job, result in zip(some, _results(llama, some, parallel), strict=True):
                    failed += isinstance(result, str)
                    write({"id": job.id, "error": result} if isinstance(result, str) else _record(job.id, result))
                done += len(some)
                if is_watched():
                    say_in_place(f"{counted(done, 'line')} answered")
    if is_watched():
        say_in_place("")
    if failed:
        say(f"{failed} of {counted(done, 'line')} could not be answered: they have an error")
    return failed


def _jobs(llama: Model, first: int, lines: list[bytes], params: SamplingParams) -> Iterator[Job]:
    """The lines that are not empty, checked each by itself. Without an id it is the number of the line, from 0."""
    for index, line in enumerate(lines, first):
        if not line.strip():
            continue
        job_id: Any = index
        try:
            if len(line) > MOST_LINE:
                raise ValueError(f"the line has more than {MOST_LINE >> 20} MiB")
            asked = json.loads(line)
            if isinstance(asked, str):
                asked = {"prompt": asked}
            if not isinstance(asked, dict):
                raise ValueError("the line is neither an object nor a text")
            job_id = asked.get("id", index)
            if ("prompt" in asked) == ("messages" in asked):
                raise ValueError("the line must have either prompt or messages")
            sampling = params.replace(**{k: v for k, v in asked.items() if k not in NOT_OPTIONS})
            prompt = llama.chat_prompt(asked["messages"]) if "messages" in asked else asked["prompt"]
            if not isinstance(prompt, (str, list)):
                raise ValueError("prompt is neither text nor a list of token ids")
            yield Job(job_id, prompt, sampling)
        except (LlamaError, ValueError, TypeError, RecursionError) as e:
            yield Job(job_id, error=_said(e))


def _results(llama: Model, jobs: list[Job], parallel: int) -> Iterator[Completion | str]:
    """The answer of each, or why there is none: computed together, or each by itself if one of them cannot be."""
    good = [job for job in jobs if job.error is None]
    answers: Iterator[Completion | str]
    try:
        sampling = [job.sampling or SamplingParams() for job in good]
        answers = iter(llama.generate_batch([job.prompt for job in good], sampling=sampling, parallel=parallel))
    except (LlamaError, ValueError, TypeError):
        answers = (_alone(llama, job) for job in good)
    for job in jobs:
        yield next(answers) if job.error is None else job.error


def _alone(llama: Model, job: Job) -> Completion | str:
    try:
        return llama.generate(job.prompt, sampling=job.sampling)
    except (LlamaError, ValueError, TypeError) as e:
        return _said(e)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _record(job_id: Any, answer: Completion) -> dict[str, Any]:
    return {
        "id": job_id,
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
                    raise click.ClickException(f"{output}: a line is no answer of --jsonl: {_said(e)}") from e
    except FileNotFoundError:
        pass
    except OSError as e:
        raise click.ClickException(f"{output}: {e.strerror}") from e
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
        raise click.ClickException(f"{output}: {e.strerror}") from e
    with file:
        yield lambda record: _append(file, output, record)


def _append(file: BinaryIO, output: str, record: dict[str, Any]) -> None:
    data = json_line(record).encode()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as e:
        raise click.ClickException(f"{output}: {e.strerror}") from e
