"""Measures a server that speaks OpenAI's API: this one or any other.

The client is written in Rust and is one thread, since it often shares the machine with what it measures. Of each
answer it keeps when which piece came. Latencies of an open loop count from when a request should have been sent: a
server that is late makes itself look no better by delaying the questions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple
from urllib.parse import urlsplit

from . import _core

WORDS = [
    "the",
    "sea",
    "gives",
    "and",
    "takes",
    "while",
    "a",
    "keeper",
    "of",
    "some",
    "lighthouse",
    "writes",
    "every",
    "morning",
    "about",
    "wind",
    "rain",
    "ships",
    "boats",
]


class Sample(NamedTuple):
    """What became of a request; times in seconds since the beginning."""

    intended: float
    pieces: list[float]
    """When each piece of text came."""
    end: float
    status: int
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    is_cancelled: bool
    error: str | None

    @property
    def first(self) -> float | None:
        """Seconds to the first piece."""
        return self.pieces[0] - self.intended if self.pieces else None

    @property
    def between(self) -> list[float]:
        """Seconds between pieces."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


class Load(NamedTuple):
    """A round: how it was asked, and what came of it."""

    clients: int | None
    """Of a closed loop."""
    rate: float | None
    """Of an open one, requests per second."""
    seconds: float
    samples: list[Sample]
    slo_first: float | None = None
    slo_between: float | None = None

    @property
    def name(self) -> str:
        """How it was asked."""
        return f"{self.clients} clients" if self.clients else f"{self.rate:g}/s"

    @property
    def good(self) -> list[Sample]:
        return [s for s in self.samples if s.status == 200 and not s.error and not s.is_cancelled]

    @property
    def requests_per_second(self) -> float:
        return len(self.good) / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers."""
        return sum(s.tokens or len(s.pieces) for s in self.samples) / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Requests per second within the limits, see ``slo_first`` and ``slo_between``."""
        return sum(map(self.is_within, self.good)) / self.seconds if self.seconds else 0.0

    def is_within(self, sample: Sample) -> bool:
        """Whether the first piece came in time, and the others did on the average."""
        if self.slo_first is not None and (sample.first is None or sample.first > self.slo_first):
            return False
        between = sample.between
        return self.slo_between is None or not between or sum(between) / len(between) <= self.slo_between

    def summary(self) -> dict[str, object]:
        """All numbers, for JSON."""
        good = self.good
        errors: dict[str, int] = {}
        for sample in self.samples:
            if sample.status != 200 or sample.error:
                key = f"{sample.status}: {sample.error}"
                errors[key] = errors.get(key, 0) + 1
        return {
            "clients": self.clients,
            "rate": self.rate,
            "seconds": round(self.seconds, 3),
            "requests": len(self.samples),
            "answered": len(good),
            "cancelled": sum(s.is_cancelled for s in self.samples),
            "errors": errors,
            "requests_per_second": self.requests_per_second,
            "goodput": self.goodput,
            "tokens_per_second": self.tokens_per_second,
            "prompt_tokens": sum(s.prompt_tokens for s in good),
            "cached_tokens": sum(s.cached_tokens for s in good),
            "tokens": sum(s.tokens for s in good),
            "first_token_seconds": quantiles([s.first for s in good if s.first is not None]),
            "inter_token_seconds": quantiles([x for s in good for x in s.between]),
            "request_seconds": quantiles([s.end - s.intended for s in good]),
        }


QUANTILES = (50, 90, 95, 99)


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """The values that so many percent are at most as large as."""
    ordered = sorted(values)
    found: dict[str, float | None] = {
        f"p{q}": ordered[max(ceil(len(ordered) * q / 100) - 1, 0)] if ordered else None for q in QUANTILES
    }
    return found | {"max": ordered[-1] if ordered else None}


def prompts(n: int, words: int, shared: float, seed: int) -> list[str]:
    """Texts of some words, which begin alike for the share ``shared`` of their length."""
    rng = random.Random(seed)
    prefix = [rng.choice(WORDS) for _ in range(int(words * shared))]
    return [" ".join([*prefix, *(rng.choice(WORDS) for _ in range(words - len(prefix))), f"({i})"]) for i in range(n)]


def bodies(
    texts: Sequence[str], *, model: str | None, max_tokens: int, is_chat: bool, temperature: float = 0.0
) -> list[str]:
    """Requests for the texts. That an answer goes on to ``max_tokens`` is asked in each server's words."""
    common: dict[str, object] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    if model:
        common["model"] = model
    return [
        json.dumps(
            {**common, "messages": [{"role": "user", "content": text}]} if is_chat else {**common, "prompt": text}
        )
        for text in texts
    ]


def measure(
    url: str,
    requests: Sequence[str],
    n: int,
    *,
    path: str = "/v1/chat/completions",
    key: str | None = None,
    clients: int | None = None,
    rate: float | None = None,
    cancel: float = 0.0,
    timeout: float = 600.0,
    seed: int = 0,
    slo_first: float | None = None,
    slo_between: float | None = None,
) -> Load:
    """Asks ``n`` times, by so many clients or so often a second.

    Args:
        url: ``http://host:port``, perhaps with a path before that of the API.
        requests: bodies, which are used in turns.
        cancel: the share of clients that go away in the middle of an answer.
        timeout: seconds that an answer may take.

    Raises:
        ValueError: if the URL is none, or not of http.
        OSError: if its host is not known.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not a URL such as http://localhost:8080")
    rows = _core.perf(
        parts.hostname,
        parts.port or 80,
        parts.path.rstrip("/").removesuffix("/v1") + path,
        key,
        list(requests),
        n,
        clients=clients,
        rate=rate,
        cancel=cancel,
        timeout=timeout,
        seed=seed,
    )
    samples = [Sample(*row) for row in rows]
    return Load(clients, rate, max((s.end for s in samples), default=0.0), samples, slo_first, slo_between)
