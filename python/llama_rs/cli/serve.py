"""``llama-rs serve``: a model over HTTP."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Set
from types import FrameType
from typing import Any, Literal

from .. import Model, otel
from ..output import say, warn
from ..server import Server
from . import declare
from .arguments import doubts_of_length, find_model, model_argument, parameters
from .exits import Exit, UsageError
from .kinds import Kind, Number, Path

EXIT_CRASHED = 70
LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost")
METRICS_NAMES = ("vllm", "llamacpp")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Bytes(Kind):
    """A number of bytes: 500M, 4G."""

    name = "size"

    def convert(self, value: Any) -> Any:
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([kmgt]?)(?:i?b)?", str(value).lower())
        n = int(float(found[1]) * UNITS[found[2]]) if found else 0
        if not n:
            raise ValueError(f"{value!r} is not a size such as 500M or 4G")
        return n


class Keys(Kind):
    """The lines of a file that have something in them; - is standard input."""

    name = "filename"
    completed = "file"
    reads = True

    def convert(self, value: Any) -> Any:
        try:
            with open(0 if value == "-" else value, closefd=value != "-") as file:
                return [line.strip() for line in file if line.strip()]
        except OSError as e:
            raise ValueError(f"'{os.fsencode(value).decode(errors='replace')}': {e.strerror}") from None


class Names(Kind):
    """Names between commas."""

    def convert(self, value: Any) -> Any:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if unknown := [name for name in names if name not in METRICS_NAMES]:
            raise ValueError(f"there are no names of {unknown[0]!r}, only of {' and '.join(METRICS_NAMES)}")
        return list(dict.fromkeys(names))


@declare.command("serve", with_given=True)
@model_argument
@declare.option(
    "--repository",
    type=Path(exists=True, file_okay=False),
    metavar="DIR",
    help="Serve the models in this folder: DIR/NAME/1/model.gguf, DIR/NAME/2/model.gguf, DIR/OTHER.gguf.",
)
@declare.option(
    "--reload",
    type=Number(float, 0, 86400, above=True),
    metavar="SECONDS",
    help="Look so often for what is new there; SIGHUP has it look at once.",
)
@declare.option("--host", default="127.0.0.1", help="The address to listen on; 0.0.0.0 for every one of this machine.")
@declare.option("--port", type=Number(int, 0, 65535), default=8080, help="The port; 0 for one that is free.")
@declare.option("--unix", type=Path(), metavar="PATH", help="Listen on this socket file instead.")
@declare.option(
    "--api-key",
    "api_keys",
    multiple=True,
    help="Clients must have this key. May be given several times.  [default: $LLAMA_RS_API_KEY, else none]",
    show_default=False,
)
@declare.option("--api-key-file", type=Keys(), help="Keys, one a line.")
@declare.option("--admin-key", help="Who has this key may load and unload models.")
@declare.option("--alias", metavar="NAME", help="What clients call the model.  [default: the name of its file]")
@declare.option("--cors", multiple=True, metavar="ORIGIN", help="Pages of this origin may ask; * for all.")
@declare.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Clients may reach the server by this name, besides localhost and addresses. With a key, by any.",
)
@declare.option("--parallel", type=Number(int, 1, 4096), default=8, help="Answers that are made at the same time.")
@declare.option("--max-queue", type=Number(int, 0, 1 << 20), default=64, help="Answers that wait; more are refused.")
@declare.option("--max-queued-tokens", type=Number(int, 1, 1 << 40), default=65536, help="Tokens of their prompts.")
@declare.option(
    "--kv-memory",
    type=Bytes(),
    metavar="SIZE",
    help="Memory for keys and values, such as 4G.  [default: half of what is free]",
)
@declare.option(
    "--step-ms",
    type=Number(float, 0, 60000),
    default=50.0,
    help="How long a step may take while answers flow; 0 for the most tokens per second.",
)
@declare.option(
    "--request-timeout",
    type=Number(float, 0, None, above=True),
    metavar="SECONDS",
    help="The longest that an answer may take.",
)
@declare.option(
    "--drain",
    type=Number(float, 0, 86400),
    default=30.0,
    metavar="SECONDS",
    help="At the end, how long answers have to be finished.",
)
@declare.option(
    "--drain-grace",
    type=Number(float, 0, 3600),
    default=2.0,
    metavar="SECONDS",
    help="At SIGTERM, how long requests are still taken while /readyz says no.",
)
@declare.option("--strict", is_flag=True, help="Fields of requests that are not known are errors.")
@declare.option("--strict-model", is_flag=True, help="Requests must name the model as it is called.")
@declare.option(
    "--prefix",
    "prefixes",
    multiple=True,
    type=Path(),
    metavar="FILE",
    help="A saved prompt (--prompt-cache) that prompts begin with. May be given several times.",
)
@declare.option(
    "--metrics-names",
    type=Names(),
    default="",
    show_default=False,
    metavar="NAMES",
    help="Names that /metrics has beside its own: vllm, llamacpp, or both, with a comma.",
)
@declare.option("--share-prefixes", is_flag=True, help="Clients with different keys share what is computed of prompts.")
@declare.option("--access-log/--no-access-log", default=True, help="A line of JSON a request on standard error.")
@parameters("max_tokens", "sampling", "session")
def command(
    given: Set[str],
    file: str | None,
    model: str | None,
    api_keys: tuple[str, ...],
    api_key_file: list[str] | None,
    alias: str | None,
    repository: str | None,
    reload: float | None,
    kv_memory: int | None,
    context_length: int | None,
    kv_type: Literal["f16", "q8_0"],
    threads: int | None,
    drain: float,
    drain_grace: float,
    **options: Any,
) -> None:
    """Serve a model over HTTP, as OpenAI's API and as llama.cpp's server do.

    Options of sampling are for requests that do not say. SIGTERM and Ctrl-C let answers be finished; a second one ends
    the server at once.

    \b
      llama-rs serve
      llama-rs serve model.gguf --port 8000 --api-key secret
      curl http://localhost:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hello!"}]}'
    """
    if repository and (file or model):
        raise UsageError("give a model or --repository, not both")
    if repository and options["prefixes"]:
        raise UsageError("--prefix is for one model, not for a --repository")
    keys = [*api_keys, *(api_key_file or ())] or [key for key in [os.environ.get("LLAMA_RS_API_KEY", "")] if key]
    llama = None
    if repository is None:
        llama = Model(find_model(model, file), threads=threads, context_length=context_length, kv_type=kv_type)
        for warning in doubts_of_length(llama, context_length or 0):
            warn(warning)
    host = options["host"]
    settings = {name: options.pop(name) for name in _SETTINGS}
    said = {name: value for name, value in options.items() if name in given}  # else the file of the model may say
    with Signals(drain=drain, grace=drain_grace) as signals:
        try:
            tracer = otel.tracer()
        except ImportError as e:
            message = f"OTEL_EXPORTER_OTLP_ENDPOINT is set, but {e}: pip install 'llama_rs[otel]'"
            raise UsageError(message) from None
        server = Server(
            llama,
            tracer=tracer,
            name=alias,
            repository=repository,
            reload=reload,
            threads=threads,
            api_keys=keys,
            kv_bytes=kv_memory,
            **settings,
            **said,
        )
        signals.server = server
        if not keys and not settings["unix"] and not LOOPBACK.fullmatch(host):
            warn(f"others can reach {host}, and no --api-key is set: whoever does may use the model")
        say(f"serving {server.name} at {server.url}")
        try:
            signals.wait()
        finally:
            server.close()
    if server._core.has_crashed:
        say("error: the engine has stopped because of an error in it")
        raise Exit(EXIT_CRASHED)
    raise Exit(signals.code)


_SETTINGS = (
    "host",
    "port",
    "unix",
    "admin_key",
    "cors",
    "allowed_hosts",
    "parallel",
    "max_queue",
    "max_queued_tokens",
    "step_ms",
    "request_timeout",
    "strict",
    "strict_model",
    "share_prefixes",
    "prefixes",
    "metrics_names",
    "access_log",
)


class Signals:
    """The first SIGINT or SIGTERM has answers be finished; a later one ends the server."""

    def __init__(self, *, drain: float, grace: float) -> None:
        self.server: Server | None = None
        self.code = 0
        self._drain, self._grace = drain, grace
        self._first: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.getsignal(number)
            if self._before[number] != signal.SIG_IGN:
                signal.signal(number, self._reload if number == signal.SIGHUP else self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self) -> None:
        assert self.server is not None
        if self._first is not None:  # a signal came while it started
            self.server.close()
        self.server.wait()

    def _end(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            if self.server is not None:
                # Whoever presses Ctrl-C waits.
                grace = self._grace if number == signal.SIGTERM else 0.0
                self.server.drain(grace=grace, patience=self._drain)
        elif now > self._first + 1:  # some programs send every signal twice
            self.code = 128 + number
            if self.server is not None:
                self.server._core.stop()

    def _reload(self, number: int, _: FrameType | None) -> None:
        if self.server is None or self.server.repository is None:
            self._end(number, None)  # the terminal has gone
        else:
            self.server.repository.look_soon()
