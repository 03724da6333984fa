"""An HTTP server: many clients of one model, in the words of OpenAI's API and of llama.cpp's server.

It is written in Rust and needs no thread of Python's: the process may do something else meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, Unpack

from . import _core
from .closing import Closing
from .hints import GenerateOptions
from .model import Model

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from .otel import Spans
    from .repository import Repository
else:
    Tracer = Any  # of a package that need not be there

LEAST_KV_BYTES = 64 << 20

IDLE_LOOK = 1.0
"""How often who waits for a server looks whether it has ended by itself, in seconds."""


class Server(Closing):
    """Serves a model over HTTP from when it is made until it is closed.

    >>> with Server(Model("model.gguf"), port=8080) as server:
    ...     server.wait()                 # http://127.0.0.1:8080/v1/chat/completions

    Args:
        model: the model, whose ``context_length``, ``threads`` and ``kv_type`` are those of every answer; or its path,
            and it is opened for this server. None for those of ``repository``.
        name: what clients call it; by default the name of its file.
        repository: a folder of models, each a folder of numbered versions or a file, see :mod:`llama_rs.repository`.
            They can be loaded, unloaded and rolled back while requests are answered.
        reload: look every so many seconds for what is new there.
        host: the address to listen on. With one that others can reach, set ``api_keys``.
        port: the port; 0 for one that is free, see :attr:`url`.
        unix: a socket file to listen on, instead of host and port.
        api_keys: a client must have one of them; by default everybody may ask who can reach it, but no page of another
            site in a browser.
        admin_key: who has it may load and unload models; without any keys everybody may.
        cors: origins whose pages may ask, ``"*"`` for all.
        allowed_hosts: names by which clients reach it, besides ``localhost`` and addresses, if there are no keys.
        parallel: answers that are made at the same time.
        max_queue: answers that wait, at most; more are refused (429).
        max_queued_tokens: tokens of their prompts, at most.
        kv_bytes: memory for keys and values; by default half of what is free.
        step_ms: how long a step of the engine should take, so that answers flow while prompts are read; 0 for as long
            as is good for throughput.
        request_timeout: seconds that an answer may take.
        strict: fields of requests that are not known are errors, and not ignored.
        strict_model: requests must name the model as it is called.
        share_prefixes: what was computed of a prompt is found by clients with other keys, too. They could tell from the
            time that it takes what others have asked.
        prefixes: files of saved prompts (:meth:`Session.save`, ``--prompt-cache``) of this model: a prompt that begins
            with one is not computed from its start. They are mapped, so all processes that use one share its memory.
        metrics_names: names beside its own that ``/metrics`` has: ``"vllm"``, ``"llamacpp"``.
        tracer: gets a span of each request that computes something, see :mod:`llama_rs.otel`.
        threads: workers of a model that is opened here: by its path, or of a repository.
        access_log: write a line of JSON for each request to standard error.
        options: sampling and generation, for requests that do not say.

    Raises:
        OSError: if the address cannot be listened on.
        ValueError: if an argument is out of range.
        SavedSessionError: if a file of ``prefixes`` is damaged, or of another model.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str] | None = None,
        *,
        name: str | None = None,
        repository: str | os.PathLike[str] | None = None,
        reload: float | None = None,
        host: str = "127.0.0.1",
        port: int = 8080,
        unix: str | os.PathLike[str] | None = None,
        api_keys: Sequence[str] = (),
        admin_key: str | None = None,
        cors: Sequence[str] = (),
        allowed_hosts: Sequence[str] = (),
        parallel: int = 8,
        max_queue: int = 64,
        max_queued_tokens: int = 65536,
        kv_bytes: int | None = None,
        step_ms: float = 50.0,
        request_timeout: float | None = None,
        strict: bool = False,
        strict_model: bool = False,
        share_prefixes: bool = False,
        prefixes: Sequence[str | os.PathLike[str]] = (),
        metrics_names: Sequence[str] = (),
        tracer: Tracer | None = None,
        access_log: bool = False,
        threads: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> None:
        for what, number in (("parallel", parallel), ("port", port + 1)):
            if not 1 <= number <= 65536:
                raise ValueError(f"{what} is {number}, it is out of range")
        if any(not key or not key.isascii() or not key.isprintable() for key in api_keys):
            raise ValueError("an API key is empty or has characters that a header cannot carry")
        if (model is None) == (repository is None):
            raise ValueError("give a model or a repository of models, one of them")
        if prefixes and model is None:
            raise ValueError("prefixes are saved prompts of one model, which a repository is not")
        self.model = model if model is None or isinstance(model, Model) else Model(model, threads=threads)
        self._owned = None if self.model is model else self.model
        given: dict[str, Any] = dict(options)
        models = []
        if (of := self.model) is not None:
            name = name or os.path.basename(os.path.abspath(of.path)).removesuffix(".gguf")
            models.append((name, "1", of._handle, of.context_length, of.threads, of.kv_type))
        self._core = _core.Server(
            models,
            host=host,
            port=port,
            unix=unix,
            api_keys=list(api_keys),
            admin_key=admin_key,
            cors=list(cors),
            allowed_hosts=list(allowed_hosts),
            strict=strict,
            strict_model=strict_model,
            share_prefixes=share_prefixes,
            access_log=access_log,
            metrics_names=list(metrics_names),
            traces=tracer is not None,
            request_timeout=request_timeout,
            parallel=parallel,
            max_queue=max_queue,
            max_queued_tokens=max_queued_tokens,
            kv_bytes=kv_bytes or free_memory() // 2,
            step=step_ms / 1000,
            defaults=given,
        )
        self.name = name or ""
        self._ending = Lock()  # held until the end begins
        self._ending.acquire()
        self.repository: Repository | None = None
        self._spans: Spans | None = None
        try:
            for path in prefixes:
                self._core.pin(path)
            if tracer is not None:
                from .otel import Spans

                self._spans = Spans(self._core, tracer)
            if repository is not None:
                from .repository import Repository

                self.repository = Repository(repository, self._core, given, threads=threads)
                self.repository.load_all()
                self.name = ", ".join(self.repository.names)
                self.repository.keep(reload)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8080``, or ``unix:`` and the path of a socket file."""
        return self._core.address

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the server has ended, at most so many seconds; gives whether it has."""
        if seconds is not None:
            return self._core.wait(seconds)
        # The core looks ten times a second whether there are signals to handle: half a thousandth of a core, and more
        # on a busy machine. Who waits for a lock is interrupted by them.
        while not self._core.wait(0.0):
            if self._ending.acquire(timeout=IDLE_LOOK):
                self._ending.release()
                return self._core.wait(3e9)
        return True

    def drain(self, *, grace: float = 0.0, patience: float = 30.0) -> None:
        """Begins to end it, and returns at once: see :meth:`wait`.

        Args:
            grace: seconds for which it says that it will end (``/readyz`` is 503) and still takes requests.
            patience: seconds that answers have to be finished after that.
        """
        self._end_begins()
        self._core.drain(grace, patience)

    def close(self) -> None:
        """Ends it at once. What is being answered ends with an error."""
        self._end_begins()
        self._core.stop()
        self._core.wait(5.0)
        if self.repository is not None:
            self.repository.close()
        if self._spans is not None:
            self._spans.close()
        if self._owned is not None:
            self._owned.close()

    def _end_begins(self) -> None:
        """Lets those who wait look often. May be called by a handler of signals in the midst of anything."""
        with suppress(RuntimeError):  # it was before
            self._ending.release()

    def __repr__(self) -> str:
        return f"Server({self.url!r}, {self.name!r})"


def free_memory() -> int:
    """Bytes that this process may still use: what the system has, or its control group lets it have."""
    available = [_number("/proc/meminfo", "MemAvailable:", 1024)]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            available.append(max(most - now, 0))
    known = [n for n in available if n is not None]
    return max(min(known, default=2 << 30), 2 * LEAST_KV_BYTES)


def _number(path: str, name: str = "", unit: int = 1) -> int | None:
    """A number out of a file of the kernel's."""
    try:
        with open(path) as f:
            for line in f:
                if line.startswith(name):
                    return int(line.removeprefix(name).split()[0]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
