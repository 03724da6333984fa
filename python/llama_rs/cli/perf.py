"""``llama-rs perf``: how fast a server is."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import Model, Server
from ..output import is_watched, say_in_place, table, warn, write, write_json
from ..perf import Load, bodies, measure, prompts
from . import declare
from .arguments import json_option
from .exits import Failure, UsageError
from .kinds import Kind, Number, Path


class Limits(Kind):
    """``ttft=200ms,itl=50ms``."""

    name = "limits"

    def convert(self, value: Any) -> Any:
        found: dict[str, float] = {}
        for part in str(value).split(","):
            limit = re.fullmatch(r"(ttft|itl)=(\d+(?:\.\d+)?)(ms|s)", part.strip())
            if not limit:
                raise ValueError(f"{part!r} is not a limit such as ttft=200ms or itl=50ms")
            found[limit[1]] = float(limit[2]) / (1000 if limit[3] == "ms" else 1)
        return found


class Numbers(Kind):
    """Numbers between commas."""

    name = "numbers"

    def __init__(self, number: Number) -> None:
        self.number = number

    def convert(self, value: Any) -> Any:
        if isinstance(value, list):
            return value
        return [self.number.convert(part) for part in str(value).split(",")]


@declare.command("perf")
@declare.argument("target", metavar="URL|MODEL")
@declare.option(
    "-c",
    "--concurrency",
    type=Numbers(Number(int, 1, 512)),
    default="1,2,4,8",
    help="Clients, each with a request at a time: a round for each number.",
)
@declare.option(
    "--rate",
    type=Numbers(Number(float, 0, 1e6, above=True)),
    help="Instead, requests that come at random times, so many a second: a round for each number.",
)
@declare.option(
    "-n",
    "--requests",
    type=Number(int, 1, 1 << 24),
    help="Requests of a round.  [default: four a client, and at least eight]",
)
@declare.option("-p", "--prompt-words", type=Number(int, 1, 1 << 20), default=64, help="Words of a prompt.")
@declare.option("-o", "--max-tokens", type=Number(int, 1, 1 << 20), default=64, help="Tokens of an answer.")
@declare.option(
    "--shared", type=Number(float, 0, 1), default=0.0, help="The share of a prompt that all have in common."
)
@declare.option("--cancel", type=Number(float, 0, 1), default=0.0, help="The share of clients that go away meanwhile.")
@declare.option(
    "--slo",
    type=Limits(),
    metavar="LIMITS",
    help="What is good: ttft=200ms,itl=50ms (first token, mean between tokens).",
)
@declare.option("--search", is_flag=True, help="Find the most requests per second of which 95 % are within --slo.")
@declare.option("--completions", is_flag=True, help="Ask /v1/completions, without the chat template.")
@declare.option("--model", help="The name of the model in requests.")
@declare.option("--api-key", help="The key to send.")
@declare.option("--timeout", type=Number(float, 0, 86400, above=True), default=600.0, help="Seconds for an answer.")
@declare.option("--seed", type=Number(int, 0, (1 << 64) - 1), default=0, help="Of prompts and of times.")
@declare.option("--csv", "as_csv", is_flag=True, help="Print CSV: a line for each round, times in seconds.")
@declare.option(
    "--plot",
    type=Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write a picture, too (SVG): tokens per second against the 99th percentiles.",
)
@json_option
def command(
    target: str,
    concurrency: list[int],
    rate: list[float] | None,
    requests: int | None,
    prompt_words: int,
    max_tokens: int,
    shared: float,
    cancel: float,
    slo: dict[str, float] | None,
    search: bool,
    completions: bool,
    model: str | None,
    api_key: str | None,
    timeout: float,
    seed: int,
    as_csv: bool,
    plot: str | None,
    as_json: bool,
) -> None:
    """Measure a server that speaks OpenAI's API, at URL; or what llama-rs serve would make of the file MODEL.

    A round with each number of clients, or with each rate of requests. Times are to the first token, between tokens,
    and of whole requests; what is called p99, 99 % of them are at most.

    \b
      llama-rs perf http://localhost:8080
      llama-rs perf http://localhost:8080 --rate 2,4,8 --slo ttft=500ms,itl=100ms
      llama-rs perf model.gguf -c 1,2,4,8,16 --plot model.svg
    """
    if as_csv and as_json:
        raise UsageError("give --csv or --json, not both")
    if search and not slo:
        raise UsageError("--search needs --slo, such as --slo ttft=500ms,itl=100ms")
    if api_key is None:
        api_key = os.environ.get("LLAMA_RS_API_KEY") or None
    path = "/v1/completions" if completions else "/v1/chat/completions"
    limits = slo or {}

    def ask(n: int, **load: Any) -> Load:
        texts = prompts(n, prompt_words, shared, seed + n)
        asked = bodies(texts, model=model, max_tokens=max_tokens, is_chat=not completions)
        if is_watched():
            say_in_place(f"{n} requests, {', '.join(f'{name} {value:g}' for name, value in load.items())}")
        done = measure(
            url,
            asked,
            n,
            path=path,
            key=api_key,
            cancel=cancel,
            timeout=timeout,
            seed=seed,
            slo_first=limits.get("ttft"),
            slo_between=limits.get("itl"),
            **load,
        )
        if is_watched():
            say_in_place("")
        if not done.good and not any(s.is_cancelled for s in done.samples):
            sample = done.samples[0]
            raise Failure(f"{url}: no request was answered: {sample.error or f'status {sample.status}'}")
        return done

    with _server_of(target, max(concurrency)) as url:
        loads = _search(ask, requests or 32) if search else []
        if not search and rate:
            loads = [ask(requests or max(8, int(10 * r)), rate=r) for r in rate]
        elif not search:
            loads = [ask(requests or max(8, 4 * c), clients=c) for c in concurrency]
    if plot is not None:
        from ..plot import svg

        with open(plot, "w", encoding="utf-8") as file:
            file.write(svg(loads, f"llama-rs perf {target}"))
    if as_json:
        write_json({"url": url, "load_average": os.getloadavg(), "rounds": [load.summary() for load in loads]})
        return
    if as_csv:
        write(in_csv(loads))
    else:
        show(loads, has_limits=bool(slo))
    failed = sum(bool(s.error) or s.status != 200 for load in loads for s in load.samples)
    if failed:
        warn(f"{failed} requests failed; --json says how")


@contextmanager
def _server_of(target: str, clients: int) -> Iterator[str]:
    """The URL that was named, or that of a server of the file that was."""
    if "://" in target or not os.path.lexists(target):
        yield target
        return
    with Server(Model(target), port=0, max_queue=max(64, clients)) as server:
        yield server.url


def in_csv(loads: list[Load]) -> str:
    """The numbers of each round in a line; of times a column for each quantile."""
    rows: list[dict[str, object]] = []
    for load in loads:
        of = load.summary()
        failed = sum(of.pop("errors").values())  # type: ignore[attr-defined]
        row: dict[str, object] = {}
        for key, value in of.items():
            if isinstance(value, dict):
                row |= {f"{key.removesuffix('_seconds')}_{quantile}": time for quantile, time in value.items()}
            else:
                row[key] = value
            if key == "cancelled":
                row["failed"] = failed
        rows.append(row)
    text = io.StringIO()
    lines = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue()


def _search(ask: Any, n: int) -> list[Load]:
    """Rates that double until too many are late, and then halves between."""
    loads: list[Load] = []

    def is_good(rate: float) -> bool:
        load = ask(n, rate=rate)
        loads.append(load)
        within = sum(map(load.is_within, load.good))
        return bool(within >= 0.95 * len(load.samples))

    low, high = 0.0, 0.5
    while is_good(high) and high < 4096:
        low, high = high, 2 * high
    for _ in range(4):
        middle = (low + high) / 2
        if is_good(middle):
            low = middle
        else:
            high = middle
    return loads


def show(loads: list[Load], *, has_limits: bool) -> None:
    def ms(value: Any) -> str:
        return "-" if value is None else f"{1000 * value:.1f}"

    good = ["good/s"] if has_limits else []
    heads = [
        "load",
        "requests/s",
        *good,
        "tokens/s",
        "first ms p50",
        "p99",
        "between ms p50",
        "p99",
        "request ms p50",
        "p99",
    ]
    rows = [heads]
    for load in loads:
        of = load.summary()
        row = [load.name, f"{load.requests_per_second:.2f}"]
        row += [f"{load.goodput:.2f}"] if has_limits else []
        row += [f"{load.tokens_per_second:.1f}"]
        for key in ("first_token_seconds", "inter_token_seconds", "request_seconds"):
            times: Any = of[key]
            row += [ms(times["p50"]), ms(times["p99"])]
        rows.append(row)
    table(rows, right=range(1, len(heads)))
