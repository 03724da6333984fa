"""A session: what has been computed of a text, and answers that go on from there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from . import _core
from .closing import Closing
from .errors import SavedSessionError
from .lazy import NamedTuple, hints, np, npt, typing
from .lazy import chat as _chat
from .lazy import model as _model
from .notes import note
from .options import SamplingParams, merged
from .prompt_cache import PromptCache


class Timings(NamedTuple):
    """Where the time of an answer went, in tokens and seconds."""

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    cached_tokens: int
    """Tokens of the prompt that were in the session already and took no time."""
    drafted_tokens: int = 0
    """Tokens that were guessed ahead, see ``speculative`` of :meth:`Model.generate`."""
    accepted_tokens: int = 0
    """How many of them were right."""


class TopLogprob(NamedTuple):
    """A token that might have come, and the natural logarithm of its probability."""

    token_id: int
    token: str
    """Its text; bytes that are no whole characters are U+FFFD."""
    logprob: float
    bytes: bytes


class TokenLogprob(NamedTuple):
    """How likely a token of an answer was to the model: before penalties, temperature, grammar and whatever else."""

    token_id: int
    token: str
    logprob: float
    bytes: bytes
    top_logprobs: list[TopLogprob]
    """The most likely tokens in its place, as many as were asked for."""


class Completion(NamedTuple):
    """An answer.

    ``finish_reason`` is ``"stop"`` if the model, a stop string or a grammar ended it, ``"length"`` at ``max_tokens`` or
    at the end of the context. ``seed`` is the one given, or the one drawn: with it the same answer comes again.
    ``logprobs`` are those of ``token_ids``, if they were asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: hints.FinishReason
    prompt_tokens: int
    timings: Timings
    seed: int
    logprobs: list[TokenLogprob] | None = None


def token_logprobs(
    token_bytes: Callable[[int], bytes], found: list[tuple[int, float, list[tuple[int, float]]]]
) -> list[TokenLogprob]:
    """Log-probabilities with what the tokens stand for."""

    def named(token_id: int, logprob: float) -> TopLogprob:
        return TopLogprob(token_id, *_spelt(token_bytes(token_id), logprob))

    return [
        TokenLogprob(*named(token_id, logprob), [named(*other) for other in top]) for token_id, logprob, top in found
    ]


_ALIKE = 16
"""Tokens in a row that have to be those of a prompt for what is computed of them to be moved to it."""


class Session(Closing):
    """A key-value cache and its position: what has been computed, and the state to go on from.

    Made by :meth:`Model.session`. One call at a time may use it. A second one, of another thread or of a signal
    handler, is a :class:`SessionBusyError` at once; only ``position``, ``context_length``, ``closed`` and ``close`` can
    be used meanwhile.
    """

    def __init__(self, model: _model.Model, core: _core.Session, lora: tuple[tuple[str, float], ...]) -> None:
        self.model = model
        self.lora = lora
        """The adapters that it computes with, each with how strong it is."""
        self._handle = core
        self._forgotten: _chat.Forgotten | None = None  # of the conversation
        self._guesser: Session | None = None  # of a smaller model

    @property
    def position(self) -> int:
        """Number of tokens computed so far. While a call computes, as it was before that."""
        return self._handle.position

    @property
    def context_length(self) -> int:
        """Positions there is room for."""
        return self._handle.context_length

    @property
    def tokens(self) -> list[int]:
        """The tokens computed so far."""
        return self._handle.tokens

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle.closed

    def forward(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Computes tokens after those already there.

        Returns:
            Logits of the last one, ``(vocab_size,)``.

        Raises:
            ContextOverflowError: if they do not fit. Nothing has changed then.
            SessionBusyError: if another call uses the session.
        """
        return np.asarray(self._handle.forward(token_ids))

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Computes tokens after those already there.

        Returns:
            Logits of each of them, ``(n_tokens, vocab_size)``.

        Raises:
            ContextOverflowError: if they do not fit. Nothing has changed then.
            MemoryError: if there is no memory for so many logits.
            SessionBusyError: if another call uses the session.
        """
        return np.asarray(self._handle.forward_all(token_ids))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        speculative: hints.Speculative | None = None,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> Completion:
        """Answers a prompt, as :meth:`Model.generate` does, with the same options.

        The prompt is the whole text from the beginning. What the session has of it already is not computed again, the
        rest of the session is forgotten. So in a conversation each prompt is the one before, its answer, and what comes
        next. Without a seed the random numbers go on where the last answer left off.
        """
        return self.stream(prompt, sampling=sampling, speculative=speculative, **options)._completion()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        speculative: hints.Speculative | None = None,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> Stream:
        """Answers a prompt piece by piece, as :meth:`generate` does: an iterator of text.

        Whoever uses the session for something else before the last piece ends the stream: its next piece is a
        :class:`SessionBusyError`.
        """
        return self._stream(prompt, merged(sampling, options), owned=False, speculative=speculative)

    def chat(
        self,
        messages: hints.Messages,
        *,
        sampling: SamplingParams | None = None,
        **options: typing.Unpack[hints.ChatOptions],
    ) -> _chat.ChatCompletion:
        """Answers a conversation, as :meth:`Model.chat` does; what the session has of it is not computed again."""
        return self.stream_chat(messages, sampling=sampling, **options)._completion()

    def stream_chat(
        self,
        messages: hints.Messages,
        *,
        sampling: SamplingParams | None = None,
        **options: typing.Unpack[hints.ChatOptions],
    ) -> _chat.ChatStream:
        """Answers a conversation piece by piece, as :meth:`chat` does: an iterator of :class:`ChatDelta`."""
        return self._stream_chat(messages, sampling, options, owned=False)

    def _stream_chat(
        self, messages: hints.Messages, sampling: SamplingParams | None, options: hints.ChatOptions, *, owned: bool
    ) -> _chat.ChatStream:
        length = self.context_length
        question = _chat.Question(
            self.model, messages, sampling, options, context_length=length, forgotten=self._forgotten
        )
        return _chat.ChatStream(question.prepared(), self, owned=owned)

    def _realign(self, prompt: Sequence[int]) -> None:
        """Moves what the session has of a prompt further on to where that has it: what is between is forgotten."""
        have = self.tokens
        common = next((i for i, (a, b) in enumerate(zip(have, prompt, strict=False)) if a != b), None)
        if common is None:
            return
        sought = list(prompt[common : common + _ALIKE])
        if len(sought) < _ALIKE:
            return
        at = common + 1
        while at + len(sought) <= len(have):
            if have[at] == sought[0] and have[at : at + len(sought)] == sought:
                pairs = zip(have[at:], prompt[common:], strict=False)
                n = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(have) - at, len(prompt) - common))
                self.truncate(at + n)
                from contextlib import suppress

                with suppress(ValueError):  # a state that cannot forget: it is read again
                    self.shift(common, at - common)
                return
            at += 1

    def _stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        owned: bool,
        prompt_cache: PromptCache | None = None,
        speculative: hints.Speculative | None = None,
        **more: typing.Any,
    ) -> Stream:
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            # A text that is far too long is not read to its end.
            prompt = tokenizer._encode(prompt, params.add_special, params.parse_special, self.context_length)
        options = dict(params)
        if params.logits_processor:
            options["logits_processor"] = [_with_arrays(function) for function in params.logits_processor]
        draft = self._draft(speculative)
        is_lookup = speculative == "prompt-lookup"
        generation = _core.Generation(self._handle, tokenizer._core, prompt, options, is_lookup, draft, **more)
        stream = Stream(self, generation, owned=owned)
        stream._has_logprobs = params._wants_logprobs
        if prompt_cache:
            stream._prompt_cache = prompt_cache
            if params.max_tokens == 0:
                prompt_cache.compute(self, prompt)
        return stream

    def _draft(self, speculative: hints.Speculative | None) -> _core.Session | None:
        """A session of the model that guesses, if one does."""
        if speculative is None or speculative == "prompt-lookup":
            return None
        if isinstance(speculative, str) or not hasattr(speculative, "session"):
            raise ValueError(f'speculative is {speculative!r}, it must be "prompt-lookup" or a smaller Model')
        if not self.model._handle.has_tokens_of(speculative._handle):
            raise ValueError(
                f"{speculative.path}: cannot guess tokens for {self.model.path}, whose vocabulary is another"
            )
        if self._guesser is None or self._guesser.model is not speculative or self._guesser.closed:
            self._guesser = speculative.session(context_length=self.context_length)
        return self._guesser._handle  # what it has of the prompt is not computed again

    def fork(self) -> Session:
        """Another session with the same tokens, at no cost: they share what was computed, and each goes on alone."""
        session = Session(self.model, self._handle.fork(), self.lora)
        self.model._sessions.add(session)
        return session

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the session to a file: its tokens, all that was computed of them, and where the random numbers are.

        :meth:`Model.load_session` brings it back. The file is replaced in one step: whoever uses the one before keeps
        it, and if something goes wrong it is still there.
        """
        self._handle.save(path, None)

    def truncate(self, n: int) -> None:
        """Forgets all but the first ``n`` tokens.

        A model with recurrent layers (Qwen 3.5, LFM2, Granite 4) goes back to its last snapshot before them, and
        computes the tokens from there on again before any that are added.

        Raises:
            ValueError: if there are not so many.
        """
        self._handle.truncate(n)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Makes room: forgets ``n_discard`` tokens after the first ``n_keep``; those after them move down.

        Nothing is computed again, so what moved was computed with the forgotten tokens before it. A later prompt is
        compared with the tokens that did not move only.

        Raises:
            ValueError: if there are not so many, or if the model has recurrent layers, whose state cannot forget them.
        """
        self._handle.shift(n_keep, n_discard)

    def __reduce__(self) -> typing.NoReturn:
        raise TypeError("a session cannot be pickled: save it to a file, and load it where that arrives")

    def close(self) -> None:
        """Frees the cache. A call that uses it ends with a :class:`ModelClosedError`, as every later one does."""
        self._handle.close(False)
        if self._guesser is not None:
            self._guesser.close()

    def __enter__(self) -> typing.Self:
        _ = self._handle.position  # raises if it is closed
        return self

    def __repr__(self) -> str:
        if self.closed:
            return "<closed Session>"
        return f"<Session at {self.position} of {self.context_length} tokens>"


class Stream(Iterator[str], Closing):
    """The pieces of an answer as they come. What it has so far can be asked for at any time, from any thread.

    As a context manager it is closed at the end of the block:

    >>> with model.stream("Once upon a time") as stream:
    ...     for piece in stream:
    ...         print(piece, end="")
    """

    def __init__(self, session: Session, generation: _core.Generation, *, owned: bool) -> None:
        self._session = session
        self._generation = generation
        self._owned = owned  # the session is this stream's alone
        self._closed = False
        self._prompt_cache: PromptCache | None = None
        self._has_logprobs = False
        self._logprobs: list[TokenLogprob] = []  # as far as they were asked for

    def __next__(self) -> str:
        if self._closed:
            raise StopIteration
        self._save_prompt()
        try:
            piece = self._generation.next(self._session._handle)
        except SavedSessionError as e:
            if self._prompt_cache is None or not self._prompt_cache.is_dispensable(e):
                raise
            self._session.truncate(0)  # and anew, without it
            piece = self._generation.next(self._session._handle)
        if piece is None:
            self.close()
            raise StopIteration
        return piece

    def _save_prompt(self) -> None:
        """Writes the prompt cache once the prompt is computed: the first piece does not wait for it."""
        if self._prompt_cache and not self._session.closed and (timings := self.timings).prompt_seconds:
            self._prompt_cache.keep(self._session, timings.prompt_tokens, timings.cached_tokens)

    @property
    def prompt_cache_error(self) -> str | None:
        """Why the prompt cache could not be written, if so; the answer does not suffer from it."""
        return self._prompt_cache.error if self._prompt_cache else None

    def _completion(self) -> Completion:
        if self._prompt_cache:
            next(self, None)  # with what is to be done about the cache
            self._save_prompt()
        if not self._closed:
            self._generation.finish(self._session._handle)
            self.close()
        if self.prompt_cache_error:
            note(self.prompt_cache_error)
        finish_reason = self.finish_reason
        assert finish_reason is not None, "the stream has ended"
        return Completion(
            self.text, self.token_ids, finish_reason, self.prompt_tokens, self.timings, self.seed, self.logprobs
        )

    @property
    def text(self) -> str:
        """The text of the answer so far: all pieces."""
        return self._generation.text

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the answer so far, without an end token. While a piece is computed, as they were before it."""
        return self._generation.token_ids

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """How likely each of ``token_ids`` was, if that was asked for; None else."""
        if not self._has_logprobs:
            return None
        token_bytes = self._session.model.tokenizer.token_bytes
        self._logprobs += token_logprobs(token_bytes, self._generation.logprobs[len(self._logprobs) :])
        return list(self._logprobs)

    @property
    def finish_reason(self) -> hints.FinishReason | None:
        """Why the answer ended; None while it has not."""
        return self._generation.finish_reason

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return self.timings.prompt_tokens

    @property
    def timings(self) -> Timings:
        """Where the time went so far."""
        return Timings(*self._generation.timings)

    @property
    def seed(self) -> int:
        """The seed given, or the one drawn."""
        return self._generation.seed

    def __reduce__(self) -> typing.NoReturn:
        raise TypeError("a stream cannot be pickled: pickle its model, or the text that it gave")

    def close(self) -> None:
        """Ends the stream, and frees the cache if it is not that of an explicit session."""
        self._closed = True
        try:
            self._save_prompt()
        finally:
            if self._owned:
                self._session.close()


def _spelt(text: bytes, logprob: float) -> tuple[str, float, bytes]:
    return text.decode(errors="replace"), logprob, text


def _with_arrays(function: hints.LogitsProcessor) -> Callable[[list[int], typing.Any], None]:
    """A function of arrays as one that the compiled part can call."""

    def call(token_ids: list[int], logits: typing.Any) -> None:
        array = np.asarray(logits)
        others: typing.Any = function(np.asarray(token_ids), array)
        if others is not None and others is not array:
            array[:] = others

    return call
