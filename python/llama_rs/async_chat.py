"""Conversations for programs with an event loop: the answers of :class:`AsyncEngine`, taken apart as all are."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator

from .chat import ChatAnswer, ChatCompletion, ChatDelta, Question
from .closing import AsyncClosing
from .engine import AsyncEngine, AsyncStream, check_priority
from .hints import ChatOptions, Messages
from .options import SamplingParams


class AsyncChatStream(ChatAnswer[AsyncStream], AsyncIterator[ChatDelta], AsyncClosing):
    """The pieces of an answer as they come. What it has so far can be asked for at any time.

    As an asynchronous context manager it is closed at the end of the block, however that ends.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        messages: Messages,
        sampling: SamplingParams | None,
        options: ChatOptions,
        about: tuple[str, int, float | None],
    ) -> None:
        super().__init__()
        if options.get("speculative") is not None:
            what = "speculative is for answers that are made one by one, by generate, stream and chat"
            raise ValueError(f"{what}: an engine makes several at a time, and leaves it away")
        self._engine = engine
        self._client, self._priority, timeout = about
        self._timeout = timeout
        self._deadline: float | None = None
        check_priority(self._priority)
        # What is wrong with an argument is said here; what takes long is done when the first piece is asked for.
        length = engine.model.context_length
        self._asked = Question(engine.model, messages, sampling, options, context_length=length)

    async def __anext__(self) -> ChatDelta:
        try:
            while not self._coming:
                if self._ended:
                    raise StopAsyncIteration
                if not self._streams:
                    await self._ask()
                piece = await anext(self._streams[-1], None)
                if piece is not None:
                    self._push(piece)
                elif not await self._went_on():
                    self._finish()
        except BaseException:
            self._close()
            raise
        return self._coming.popleft()

    async def _ask(self) -> None:
        """Makes the prompt, in a thread of the loop's, and asks for the answer to it."""
        self._engine._check_open()
        if self._timeout is not None:
            self._deadline = time.monotonic() + self._timeout
        question = await asyncio.to_thread(self._asked.prepared)
        seed = question.params.seed
        self._begin(
            question,
            self._stream(question, question.prompt, question.params),
            random.getrandbits(64) if seed is None else seed,
        )

    def _stream(self, question: Question, prompt: list[int], params: SamplingParams) -> AsyncStream:
        marks, free_until = question.marks(params)
        timeout = None if self._deadline is None else self._deadline - time.monotonic()
        about = (self._client, self._priority, timeout)
        return AsyncStream(self._engine, prompt, params, *about, marks=marks, free_until=free_until)

    async def _went_on(self) -> bool:
        params = await asyncio.to_thread(self._made_room)
        question = self._question
        if params is None or question is None:
            return False
        self._streams.append(self._stream(question, [*question.prompt, *self.token_ids], params))
        return True

    async def _completion(self) -> ChatCompletion:
        async with self:
            async for _ in self:
                pass
            return self._whole()

    @property
    def seed(self) -> int | None:
        """The seed given, or the one drawn, at the end."""
        return self._streams[0].seed if self._streams else None

    def _close(self) -> None:
        self._ended = True
        self._coming.clear()
        for stream in self._streams[-1:]:
            stream._close()

    async def aclose(self) -> None:
        """Ends the stream, and frees what it uses."""
        self._close()
