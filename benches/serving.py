"""The server beside llama.cpp's, in turns: how soon it answers, how much at once, and what many clients cost.

    python benches/serving.py model.gguf --peer-python /venv/with/xllamacpp/bin/python

Both serve the same file with the same number of threads. They take turns within each round, and the one whose turn it
is not is stopped (SIGSTOP); figures are medians of the rounds. ``--tests`` names what is measured:

    start     from the start of the process to the first 200 of /health, and to the first token of an answer
    byte      to the first token of a short prompt, on an idle server, and of one of 1,500 tokens that was seen before
    clients   tokens per second of all, with 1, 4, 8 and 16 clients
    arrival   between two tokens of seven running answers, before and while a prompt of 2,000 tokens arrives
    memory    of 32 clients at once whose prompts begin with the same 1,500 tokens

The machine must be quiet. llama-server comes prebuilt in the package xllamacpp.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llama_rs import Tokenizer
from llama_rs.perf import bodies, measure, prompts

PROSE = Path(__file__).parent.parent / "tests" / "data" / "botchan.txt"
TESTS = ("start", "byte", "clients", "arrival", "memory")
SLOT = 2560
"""Positions that each answer has room for."""

PEER = """
import sys, time, xllamacpp
path, port, threads, parallel, context = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = path, parallel, context
params.hostnames, params.port, params.warmup = ["127.0.0.1"], port, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
while True:
    time.sleep(1)
"""


class Server:
    """A process that serves, ours or the other."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Gives the seconds until it says that it is ready."""
        begin, quiet = time.perf_counter(), subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdin=quiet, stdout=quiet, stderr=quiet)
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}: {self._command}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                    if response.status == 200:
                        return time.perf_counter() - begin
            except OSError:
                if time.perf_counter() - begin > 120:
                    raise
                time.sleep(0.001)

    def end(self) -> None:
        if self._process:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, yes: bool) -> None:
        if self._process:
            self._process.send_signal(signal.SIGSTOP if yes else signal.SIGCONT)

    def memory(self) -> int:
        """Bytes of its own: what it shares with the page cache does not count."""
        assert self._process
        with open(f"/proc/{self._process.pid}/smaps_rollup") as f:
            of = {line.split(":")[0]: int(line.split()[1]) << 10 for line in f if "kB" in line}
        return of["Private_Dirty"] + of["Shared_Dirty"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def servers(arguments: argparse.Namespace, parallel: int) -> list[Server]:
    port, threads = free_port(), str(arguments.threads)
    ours = [sys.executable, "-m", "llama_rs", "serve", arguments.model, "--port", str(port), "--no-access-log"]
    ours += ["--threads", threads, "--context-length", str(SLOT), "--parallel", str(parallel)]
    found = [Server("llama-rs", [*ours, "--kv-memory", "4G"], port)]
    if arguments.peer_python:
        port = free_port()
        numbers = [str(n) for n in (port, threads, parallel, parallel * SLOT)]
        command = [arguments.peer_python, "-c", PEER, arguments.model, *numbers]
        found.append(Server("llama-server", command, port))
    return found


@contextmanager
def running(all_of: list[Server]) -> Iterator[None]:
    try:
        for server in all_of:
            server.start()
            answer(server.url, "warm up", 4)
            server.stop(True)
        yield
    finally:
        for server in all_of:
            server.end()


@contextmanager
def turn(server: Server) -> Iterator[None]:
    server.stop(False)
    try:
        yield
    finally:
        server.stop(True)


def body(prompt: str | list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}


def answer(url: str, prompt: str | list[int], max_tokens: int) -> float:
    """Seconds to the end of an answer."""
    data = json.dumps(body(prompt, max_tokens)).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})
    begin = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()
    return time.perf_counter() - begin


async def stream(url: str, of: dict[str, Any], times: list[float]) -> None:
    """Asks, and notes when each token comes."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        data = json.dumps({**of, "stream": True}).encode()
        head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        head += [f"Content-Length: {len(data)}", "Connection: close", "", ""]
        writer.write("\r\n".join(head).encode() + data)
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
    finally:
        writer.close()


async def arrival(url: str, texts: list[str], prompt: list[int]) -> dict[str, float]:
    """What those who are being answered notice of a long prompt."""
    seen: list[list[float]] = [[] for _ in texts]
    tasks = [
        asyncio.ensure_future(stream(url, body(text, 2000), times)) for text, times in zip(texts, seen, strict=True)
    ]
    while min(map(len, seen)) < 20:
        await asyncio.sleep(0.01)
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError("an answer ended too soon")
    first: list[float] = []
    start = time.perf_counter()
    await stream(url, body(prompt, 1), first)
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    found = {"first token of the long prompt, s": first[0] - start}
    for name, low, high in (("before", 0.0, start), ("while", start, first[0])):
        # A gap counts where it ends; one that reaches beyond the arrival is its doing.
        gaps = sorted((b - a) * 1e3 for times in seen for a, b in pairwise(times) if b >= low and a <= high)
        found[f"between tokens {name}, p50, ms"] = gaps[len(gaps) // 2]
        found[f"between tokens {name}, p99, ms"] = gaps[int(0.99 * (len(gaps) - 1))]
    return found


class Figures:
    """Of each server, by what was measured: a figure a round."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, list[float]]] = {}

    def add(self, server: Server, what: str, value: float) -> None:
        self._found.setdefault(what, {}).setdefault(server.name, []).append(value)

    def table(self) -> str:
        names = list(dict.fromkeys(name for of in self._found.values() for name in of))
        lines = [f"| median | {' | '.join(names)} | ratio |", "|---" * (len(names) + 2) + "|"]
        for what, of in self._found.items():
            medians = [statistics.median(of[name]) if name in of else None for name in names]
            cells = ["" if m is None else f"{m:.3g}" if m < 100 else f"{m:.0f}" for m in medians]
            both = [m for m in medians if m]
            ratio = f"{both[0] / both[1]:.2f}" if len(both) == 2 else ""
            lines.append(f"| {what} | {' | '.join(cells)} | {ratio} |")
        return "\n".join(lines)

    def samples(self) -> dict[str, dict[str, list[float]]]:
        return self._found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer-python", default=os.environ.get("PEERS_PYTHON"), help="a Python that has xllamacpp")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, in the test of clients")
    parser.add_argument("--clients", type=int, default=32, help="in the test of memory")
    parser.add_argument(
        "--patience", type=float, default=600, help="seconds that those have; then what was seen counts"
    )
    parser.add_argument("--tests", default=",".join(TESTS))
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    arguments = parser.parse_args()
    tests = arguments.tests.split(",")
    if unknown := set(tests) - set(TESTS):
        parser.error(f"there are no tests {sorted(unknown)}, they are {TESTS}")
    figures, rounds = Figures(), range(arguments.rounds)
    prose = Tokenizer(arguments.model).encode(PROSE.read_text(encoding="utf-8"), add_special=False)

    if "start" in tests:
        for _ in rounds:
            for server in servers(arguments, 8):
                try:
                    figures.add(server, "start to first 200, ms", 1e3 * server.start())
                finally:
                    server.end()
                begin = time.perf_counter()
                try:
                    server.start()
                    answer(server.url, "Once upon a time", 1)
                    figures.add(server, "start to first token, ms", 1e3 * (time.perf_counter() - begin))
                finally:
                    server.end()

    steps: list[Callable[[Server, int], None]] = []

    def first_byte(server: Server, i: int) -> None:
        of = bodies(prompts(20, 8, 0.0, i), model=None, max_tokens=2, is_chat=False)
        load = measure(server.url, of, 20, path="/v1/completions", clients=1)
        firsts = sorted(sample.first or 0.0 for sample in load.samples)
        figures.add(server, "first token, short prompt, p50, ms", 1e3 * firsts[10])
        figures.add(server, "first token, short prompt, worst of 20, ms", 1e3 * firsts[-1])
        seen = prose[10 * i : 10 * i + 1500]
        answer(server.url, seen, 1)
        figures.add(server, "1,500 tokens seen before, ms", 1e3 * answer(server.url, seen, 1))

    def clients(server: Server, i: int) -> None:
        for n in (1, 4, 8, 16):
            texts = prompts(2 * n, 24, 0.0, 100 * i + n)

            async def client(texts: list[str]) -> None:
                for text in texts:
                    times: list[float] = []
                    await stream(server.url, body(text, arguments.tokens), times)
                    if not times:
                        raise RuntimeError(f"{server.name}: no answer")

            async def together(texts: list[str] = texts, n: int = n) -> None:
                await asyncio.gather(*(client(texts[2 * j : 2 * j + 2]) for j in range(n)))

            begin = time.perf_counter()
            asyncio.run(together())
            # Every answer has all its tokens: nobody asks for an end before.
            figures.add(server, f"{n} clients, tokens/s", 2 * n * arguments.tokens / (time.perf_counter() - begin))

    def arrivals(server: Server, i: int) -> None:
        prompt = prose[3000 + 2000 * i : 5000 + 2000 * i]
        for what, value in asyncio.run(arrival(server.url, prompts(7, 16, 0.0, i), prompt)).items():
            figures.add(server, what, value)

    steps += [first_byte] * ("byte" in tests) + [clients] * ("clients" in tests) + [arrivals] * ("arrival" in tests)
    if steps:
        both = servers(arguments, 16)
        with running(both):
            for step in steps:
                for i in rounds:
                    for server in both if i % 2 == 0 else reversed(both):
                        with turn(server):
                            step(server, i)

    if "memory" in tests:
        both = servers(arguments, arguments.clients)
        with running(both):
            for server in both:
                with turn(server):
                    before = server.memory()
                    most = before
                    prompt = prose[:1500]
                    answer(server.url, prompt, 1)
                    figures.add(server, "memory of 1 client with 1,500 tokens, MiB", (server.memory() - before) / 2**20)

                    async def together(url: str, prompt: list[int], server: Server) -> int:
                        n, begin = arguments.clients, time.perf_counter()
                        times: list[list[float]] = [[] for _ in range(n)]
                        tails = [prompt + prose[5000 + 8 * i : 5008 + 8 * i] for i in range(n)]
                        asking = [stream(url, body(tail, 40), mine) for tail, mine in zip(tails, times, strict=True)]
                        task = asyncio.gather(*asking)
                        most = 0
                        while not task.done() and time.perf_counter() - begin < arguments.patience:
                            await asyncio.sleep(0.05)
                            most = max(most, server.memory())
                        seconds, answered = time.perf_counter() - begin, sum(map(bool, times))
                        if not task.done():
                            task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
                        figures.add(server, f"seconds until {n} clients have 40 tokens each, or no patience", seconds)
                        figures.add(server, "clients of these that have had a token by then", answered)
                        return most

                    most = asyncio.run(together(server.url, prompt, server))
                    figures.add(server, "memory of these clients, MiB", (most - before) / 2**20)

    load1 = os.getloadavg()[0]
    name = os.path.basename(arguments.model)
    print(f"{name}, {arguments.threads} threads, {arguments.rounds} rounds, load {load1:.1f}\n")
    print(figures.table())
    if arguments.json:
        arguments.json.write_text(json.dumps(figures.samples(), indent=1))


if __name__ == "__main__":
    main()
