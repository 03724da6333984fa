"""Many answers at once, for programs with an event loop: :class:`AsyncEngine`.

A thread of the engine computes and never waits for Python; the event loop reads what there is and never waits for the
engine. Between them is a pipe, which tells the loop that some answers have something new.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Unpack

from . import _core
from .closing import AsyncClosing
from .errors import LlamaError, ModelClosedError
from .hints import ChatOptions, FinishReason, GenerateOptions, Messages
from .lazy import async_chat as _async_chat
from .lazy import chat as _chat
from .lazy import model as _model
from .options import SamplingParams, merged
from .session import Completion, Timings, TokenLogprob, token_logprobs


class EngineStats(NamedTuple):
    """How an engine is doing, as of its last step. Memory in bytes."""

    running: int
    """Answers that are being made."""
    waiting: int
    """Answers that wait for their turn."""
    queued_tokens: int
    """Tokens of their prompts."""
    kv_used: int
    """Memory of the keys and values in use."""
    kv_cached: int
    """Memory of those that are kept for prompts that begin alike."""
    kv_budget: int
    """The most of both."""
    prompt_tokens: int
    """Tokens of prompts so far."""
    cached_tokens: int
    """How many of them did not have to be computed."""
    generated_tokens: int
    """Tokens generated so far."""
    preemptions: int
    """Answers that had to make room for others, and were taken up again."""
    steps: int
    step_seconds: float
    """The time of all steps."""


class AsyncEngine:
    """Answers many prompts at once, each as if it were alone: to the bit what :meth:`Model.generate` gives.

    All answers that are being made get a token with each pass over the weights, and new prompts are computed between
    them in pieces, so that nobody waits long for the next token. What prompts have in common from the first token on is
    computed once and kept for later ones, as long as there is memory.

    >>> async with AsyncEngine(model) as engine:
    ...     async for piece in engine.stream("Once upon a time"):
    ...         print(piece, end="")

    Cancelling a task, or leaving a stream, frees what it uses with the step that is being computed. An engine can be
    used by any number of event loops and threads. A child of ``fork`` gets a thread of its own when it first asks.

    Args:
        model: the model. Closing it closes the engine.
        parallel: answers that are made at the same time; more wait in a queue.
        max_queue: answers that wait, at most.
        max_queued_tokens: tokens of the prompts that wait, at most.
        kv_memory: bytes for keys and values, those that are kept included; by default half of the memory that is
            available, in the container if there is one.
        step_ms: how long a step may take while answers are being made, in milliseconds: about the time between two
            tokens of an answer while prompts of others are computed. 0 for as long as is good for throughput.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        model: _model.Model,
        *,
        parallel: int = 8,
        max_queue: int = 64,
        max_queued_tokens: int = 65536,
        kv_memory: int | None = None,
        step_ms: float = 50.0,
    ) -> None:
        if not isinstance(model, _model.Model):
            raise TypeError(f"model is a {type(model).__name__}, it must be a Model")
        for name, value, least in (
            ("parallel", parallel, 1),
            ("max_queue", max_queue, 0),
            ("max_queued_tokens", max_queued_tokens, 0),
            ("kv_memory", kv_memory, 1),
        ):
            if value is not None and not least <= value < 1 << 63:
                raise ValueError(f"{name} is {value}, it must be {least} or more")
        self.model = model
        self._limits = (parallel, max_queue, max_queued_tokens, kv_memory, step_ms)
        self._core = _core.Engine(*self._limits)
        self._pid = os.getpid()
        self._closed = False
        self._bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Bell] = weakref.WeakKeyDictionary()
        model._engines.add(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed, or its model."""
        return self._closed

    @property
    def stats(self) -> EngineStats:
        """How it is doing."""
        return EngineStats(**self._core.stats())

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        client: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncStream:
        """Answers a prompt piece by piece: an asynchronous iterator of text.

        Nothing is computed before the first piece is asked for.

        Args:
            prompt: text, or token ids.
            sampling: how the answer is made.
            client: for whom: clients that wait are served in turns, by the tokens that were computed for them.
            priority: -100 to 100: while one with a higher priority waits, lower ones do not begin, and make room.
            timeout: seconds from the first piece asked for to the last one, after which it is a ``TimeoutError``.
            options: the fields of :class:`SamplingParams`. They override ``sampling``.

        Raises:
            EngineFullError: from the first piece, if too many answers or tokens wait.
            ContextOverflowError: from the first piece, if the prompt does not fit in the context.
            ValueError: if an argument is out of range.
        """
        return AsyncStream(self, prompt, merged(sampling, options), client, priority, timeout)

    async def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        client: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answers a prompt, as :meth:`stream` does, and gives the whole answer."""
        stream = self.stream(prompt, sampling=sampling, client=client, priority=priority, timeout=timeout, **options)
        return await stream._completion()

    def stream_chat(
        self,
        messages: Messages,
        *,
        sampling: SamplingParams | None = None,
        client: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> _async_chat.AsyncChatStream:
        """Answers a conversation piece by piece, as :meth:`Model.stream_chat` does, with its options.

        An asynchronous iterator of :class:`ChatDelta`. Nothing is computed before the first piece is asked for.

        Raises:
            ValueError: if the template refuses the messages (from the first piece), or an argument is out of range.
        """
        return _async_chat.AsyncChatStream(self, messages, sampling, options, (client, priority, timeout))

    async def chat(
        self,
        messages: Messages,
        *,
        sampling: SamplingParams | None = None,
        client: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **options: Unpack[ChatOptions],
    ) -> _chat.ChatCompletion:
        """Answers a conversation, as :meth:`Model.chat` does, with its options."""
        about = (client, priority, timeout)
        return await _async_chat.AsyncChatStream(self, messages, sampling, options, about)._completion()

    def _bell(self) -> _Bell:
        loop = asyncio.get_running_loop()
        bell = self._bells.get(loop)
        if bell is None:
            self._bells[loop] = bell = _Bell()
        return bell

    def _check_open(self) -> None:
        if self._closed:
            _ = self.model._handle  # raises if it is that which was closed
            raise ModelClosedError("the engine is closed")
        if self._pid != os.getpid():
            # The thread stayed with the parent, and the descriptors of its event loops are shared with it.
            self._core = _core.Engine(*self._limits)
            self._bells = weakref.WeakKeyDictionary()
            self._pid = os.getpid()

    def close(self) -> None:
        """Ends all answers that are being made or wait: their next piece is a :class:`ModelClosedError`."""
        self._closed = True
        self._core.close()

    async def __aenter__(self) -> AsyncEngine:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{'closed ' if self._closed else ''}AsyncEngine({self.model.path!r})>"


def check_priority(priority: int) -> None:
    """Refuses what is none."""
    if not -100 <= priority <= 100:
        raise ValueError(f"priority is {priority}, it must be from -100 to 100")


class _Bell:
    """Tells the tasks of an event loop that there is something for them."""

    def __init__(self) -> None:
        self._core = _core.Bell()
        self._waiting: dict[int, asyncio.Event] = {}
        self._next = 0

    def new_id(self) -> tuple[int, asyncio.Event]:
        self._next += 1
        rung = asyncio.Event()
        if not self._waiting:
            asyncio.get_running_loop().add_reader(self._core.fileno(), self._ring)
        self._waiting[self._next] = rung
        return self._next, rung

    def drop(self, id: int, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting.pop(id, None) is not None and not self._waiting and not loop.is_closed():
            loop.remove_reader(self._core.fileno())

    def _ring(self) -> None:
        for id in self._core.take():
            if rung := self._waiting.get(id):
                rung.set()


class AsyncStream(AsyncIterator[str], AsyncClosing):
    """The pieces of an answer as they come. What it has so far can be asked for at any time.

    As an asynchronous context manager it is closed at the end of the block, however that ends.
    """

    _ticket: _core.Ticket | None = None
    _drop: tuple[_Bell, int, asyncio.AbstractEventLoop] | None = None

    def __init__(
        self,
        engine: AsyncEngine,
        prompt: str | Sequence[int],
        params: SamplingParams,
        client: str,
        priority: int,
        timeout: float | None,
        *,
        marks: Sequence[int] = (),
        free_until: str | None = None,
    ) -> None:
        check_priority(priority)
        self._engine = engine
        self._marks = (marks, free_until)  # what a parser has to see, and where a grammar begins
        self._prompt = prompt
        self._params = params
        self._about = (hash(client) & ((1 << 64) - 1), priority, timeout)
        self._rung: asyncio.Event | None = None
        self._closed = False
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[tuple[int, float, list[tuple[int, float]]]] = []
        self._finish_reason: FinishReason | None = None
        self._timings = Timings(0, 0.0, 0, 0.0, 0)
        self._seed: int | None = None

    async def _start(self) -> tuple[_core.Ticket, asyncio.Event]:
        """Asks for the answer. What may take long is done by a thread of the loop's."""
        engine, model, params = self._engine, self._engine.model, self._params
        engine._check_open()
        loop, bell = asyncio.get_running_loop(), engine._bell()
        id, rung = bell.new_id()
        self._drop = (bell, id, loop)

        def submit() -> _core.Ticket:
            ids = self._prompt
            if isinstance(ids, str):
                room = model.context_length
                ids = model.tokenizer._encode(ids, params.add_special, params.parse_special, room)
            client, priority, timeout = self._about
            return engine._core.submit(
                model._handle,
                ids,
                dict(params),
                model.context_length,
                model.threads,
                model.kv_type,
                client,
                priority,
                timeout,
                bell._core,
                id,
                model._lora(None),
                *self._marks,
            )

        submitted = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            self._ticket = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            # The thread cannot be stopped: what it gets is dropped, and that cancels it.
            submitted.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        self._rung = rung
        return self._ticket, rung

    async def __anext__(self) -> str:
        if self._closed:
            raise StopAsyncIteration
        try:
            while True:
                ticket, rung = self._ticket, self._rung
                if ticket is None or rung is None:
                    ticket, rung = await self._start()
                rung.clear()
                event = ticket.take()
                if event is None:
                    await rung.wait()
                    continue
                text, token_ids, logprobs, end = event
                self._token_ids += token_ids
                self._logprobs += logprobs
                if text:
                    self._pieces.append(text)
                if end is not None:
                    self._end(*end)
                if text:
                    return text
                if end is not None:
                    raise StopAsyncIteration
        except BaseException:
            self._close()
            raise

    def _end(
        self, how: str, error: BaseException | None, timings: tuple[int, float, int, float, int], seed: int
    ) -> None:
        self._timings, self._seed = Timings(*timings), seed
        self._close()
        if error is not None:
            raise error
        if how in ("stop", "length"):
            self._finish_reason = "stop" if how == "stop" else "length"
        elif how == "deadline":
            raise TimeoutError(f"the answer was not complete after {self._about[2]} s")
        elif how == "cancelled":
            self._engine._closed = True  # nobody else cancels what is read
            self._engine._check_open()
        else:
            raise LlamaError("a bug in llama_rs ended this answer: please report it")

    async def _completion(self) -> Completion:
        async with self:
            async for _ in self:
                pass
        finish_reason, seed = self._finish_reason, self._seed
        assert finish_reason is not None and seed is not None, "the stream has ended"
        return Completion(
            self.text, self.token_ids, finish_reason, self._timings.prompt_tokens, self._timings, seed, self.logprobs
        )

    @property
    def text(self) -> str:
        """The text of the answer so far: all pieces."""
        return "".join(self._pieces)

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the answer so far, without an end token."""
        return list(self._token_ids)

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """How likely each of ``token_ids`` was, if that was asked for; None else."""
        if not self._params._wants_logprobs:
            return None
        return token_logprobs(self._engine.model.tokenizer.token_bytes, self._logprobs)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it has not."""
        return self._finish_reason

    @property
    def timings(self) -> Timings:
        """Where the time went; zeros until the end."""
        return self._timings

    @property
    def seed(self) -> int | None:
        """The seed given, or the one drawn, at the end."""
        return self._seed

    def _close(self) -> None:
        self._closed = True
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
        if self._drop is not None:
            bell, id, loop = self._drop
            bell.drop(id, loop)
            self._drop = None

    async def aclose(self) -> None:
        """Ends the stream, and frees what it uses."""
        self._close()

    def __del__(self) -> None:
        # Dropped by whoever stopped reading. The loop's reader is taken off by the loop's own thread.
        if self._ticket is not None:
            self._ticket.cancel()
        if self._drop is not None:
            bell, id, loop = self._drop
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(bell.drop, id, loop)
