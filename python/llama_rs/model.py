"""The model: what applications use."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Unpack

from . import _core
from .checkpoint import Metadata, Tensor, Tensors
from .errors import ModelChangedError, ModelClosedError, ModelNotFoundError
from .options import FinishReason, GenerateOptions, Load, SamplingParams, default_threads, merged
from .options import KvType as KvType
from .prompt_cache import PromptCache
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .residency import Residency

DEFAULT_CONTEXT_LENGTH = 4096
"""Positions of a session, unless asked for otherwise or the model was trained for fewer."""


class Config(NamedTuple):
    """The hyper-parameters of a model."""

    architecture: str
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float


class Timings(NamedTuple):
    """Where the time of an answer went, in tokens and seconds."""

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    cached_tokens: int
    """Of the prompt: they were in the session already and took no time."""


class Completion(NamedTuple):
    """An answer.

    ``finish_reason`` is ``"stop"`` if the model or a stop string ended it, ``"length"`` at ``max_tokens`` or at the end
    of the context. ``seed`` is the one given, or the one drawn: with it the same answer comes again.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings
    seed: int


class Model:
    """A model file, mapped and ready. Opening it reads the header and nothing else.

    A model never changes: any number of threads may use one at the same time.

    Args:
        path: a GGUF file.
        threads: workers of a session; default ``LLAMA_RS_THREADS``, else the cores that this process may use.
        context_length: positions of a session; default 4096, or less if the model was trained for less. Positions that
            are not used cost no memory.
        kv_type: how a session stores keys and values: ``"f16"``, or ``"q8_0"``, which takes 53 % of that. Its logits
            are a little farther from exact ones: for SmolLM2 Q4_1, a KL divergence of 0.0030 a token instead of 0.0024.
        load: ``"mmap"`` maps the file: all processes share one copy, which is read when it is first touched. ``"read"``
            reads all of it into memory of this process alone, for file systems on which maps are slow or break; where a
            file cannot be mapped at all that happens by itself, and the logger ``llama_rs`` says so.
        prefault: read the file now, so that a disk error is an exception here.
        lock: keep the file in memory for as long as the model is open (mlock); it is read now.

    A model can be pickled, as its path, these arguments and a fingerprint of the file: whoever unpickles it maps the
    same file, in milliseconds. Copies share the map.

    When the file is cut short or written over while it is in use, the call that notices raises
    :class:`ModelChangedError`, and nothing that was computed from it is returned. Replacing or deleting the file by
    name changes nothing. Arrays that are views of the file (:meth:`Tensor.numpy`) read zeros where it was cut off.

    Raises:
        ModelFileError: if the file cannot be opened, mapped, read or locked.
        ModelFormatError: if it is not a valid model file.
        UnsupportedModelError: if it holds something that this version cannot run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        context_length: int | None = None,
        kv_type: KvType = "f16",
        load: Load = "mmap",
        prefault: bool = False,
        lock: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._open: _core.Model | None = _core.Model(path, load, prefault, lock)
        self._load = {"load": load, "prefault": prefault, "lock": lock}
        if note := self._open.checkpoint().note():
            import logging

            logging.getLogger("llama_rs").warning(note)
        self.config = Config(**self._open.config())
        self.threads = default_threads() if threads is None else threads
        if context_length is None:
            context_length = min(DEFAULT_CONTEXT_LENGTH, self.config.context_length)
        self.context_length = context_length
        self.kv_type = kv_type
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._tokenizer: Tokenizer | None = None

    @property
    def _handle(self) -> _core.Model:
        if self._open is None:
            raise ModelClosedError(f"{self.path}: the model is closed")
        return self._open

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The key-value pairs of the file."""
        return Metadata(self._handle.checkpoint())

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the file by name, as views of it."""
        return Tensors(self._handle.checkpoint())

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's vocabulary, which is indexed when first used."""
        core = self._handle
        if self._tokenizer is None:
            self._tokenizer = Tokenizer._of(core.tokenizer())
        return self._tokenizer

    def session(self, *, context_length: int | None = None) -> Session:
        """Starts an empty session: an explicit key-value cache."""
        length = self.context_length if context_length is None else context_length
        session = Session(self, self._handle.session(length, self.threads, self.kv_type))
        self._sessions.add(session)
        return session

    def load_session(self, path: str | os.PathLike[str], *, context_length: int | None = None) -> Session:
        """Brings back a session that :meth:`Session.save` saved, ready to go on.

        Nothing is read: the file is mapped, and its pages are in memory once for all sessions that come from it, in
        whatever process. What a session adds is its own; the file never changes by it.

        Raises:
            SavedSessionError: if the file is not a saved session, or one of another model.
            ContextOverflowError: if it is longer than ``context_length``.
            ModelFileError: if it cannot be read.
        """
        length = self.context_length if context_length is None else context_length
        return self._load_session(path, length, prefix=False)

    def _load_session(self, path: str | os.PathLike[str], context_length: int, *, prefix: bool) -> Session:
        session = Session(self, self._handle.load_session(path, context_length, self.threads, self.kv_type, prefix))
        self._sessions.add(session)
        return session

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        prompt_cache_readonly: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answers a prompt. The same seed, file and build give the same answer.

        Args:
            prompt: text, or token ids.
            sampling: how the answer is made.
            prompt_cache: a file that holds the computed prompt. What it has of this prompt, from the first token on, is
                not computed again; any number of processes share it in memory. It is made when it is not there, and
                replaced by one with this prompt when that has a sixteenth more, or when less than half of the prompt
                was in it. When it cannot be written the answer comes all the same, and the logger ``llama_rs`` says so,
                or :attr:`Stream.prompt_cache_error`.
            prompt_cache_readonly: use the file as it is: it has to be there.
            options: the fields of :class:`SamplingParams`, which says what they mean: ``max_tokens``, ``temperature``,
                ``seed``, ``stop`` and so on. They override ``sampling``.

        Raises:
            ContextOverflowError: if the prompt does not fit in the context.
            SavedSessionError: if the prompt cache is not one, or is one of another model.
            ValueError: if an argument is out of range.
        """
        stream = self.stream(
            prompt,
            sampling=sampling,
            prompt_cache=prompt_cache,
            prompt_cache_readonly=prompt_cache_readonly,
            **options,
        )
        return stream._completion()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        prompt_cache_readonly: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Answers a prompt piece by piece, as :meth:`generate` does: an iterator of text."""
        params = merged(sampling, options)
        if prompt_cache is None:
            return self.session()._stream(prompt, params, owned=True)
        cache = PromptCache(prompt_cache, readonly=prompt_cache_readonly)
        return cache.open(self)._stream(prompt, params, owned=True, prompt_cache=cache)

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every token given those before it, ``(n_tokens, vocab_size)``."""
        with self.session(context_length=max(len(token_ids), 1)) as session:
            return session.logits(token_ids)

    def residency(self) -> Residency:
        """What of the file is in memory now, by layer and by tensor."""
        from .residency import residency

        return residency(self._handle.checkpoint())

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "threads": self.threads,
            "context_length": self.context_length,
            "kv_type": self.kv_type,
            **self._load,
        }
        return _reopen, (os.path.abspath(self.path), options, self._handle.checkpoint().fingerprint())

    def __copy__(self) -> Model:
        handle = self._handle
        copy = Model.__new__(Model)
        copy.__dict__.update(self.__dict__, _open=handle, _sessions=weakref.WeakSet())
        return copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self.__copy__()

    def close(self) -> None:
        """Unmaps the file. Every later use is a :class:`ModelClosedError`; closing again does nothing.

        Raises:
            BufferError: if arrays are alive that are views of the file.
        """
        if self._open is not None:
            views = self._open.checkpoint().views()
            if views:
                raise BufferError(f"{self.path}: cannot close the model, {views} views of its tensors are alive")
            for session in list(self._sessions):
                session.close()
            self._open = None
            self._tokenizer = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._open is None:
            return f"<closed Model({self.path!r})>"
        return f"Model({self.path!r}, threads={self.threads}, context_length={self.context_length})"


def _reopen(path: str, options: dict[str, Any], fingerprint: tuple[int, int, int]) -> Model:
    """A model as it was pickled."""
    try:
        model = Model(path, **options)
    except ModelNotFoundError as e:
        raise ModelNotFoundError(f"{e.message} (on host {os.uname().nodename})", path, e.errno) from None
    if model._handle.checkpoint().fingerprint() != fingerprint:
        raise ModelChangedError(f"{path}: the model file is not the one that was pickled", path)
    return model


class Session:
    """A key-value cache and its position: what has been computed, and the state to go on from.

    Made by :meth:`Model.session`. One thread at a time may use it; others wait.
    """

    def __init__(self, model: Model, core: _core.Session) -> None:
        self.model = model
        self._open: _core.Session | None = core

    @property
    def _handle(self) -> _core.Session:
        if self._open is None:
            raise ModelClosedError("the session is closed")
        return self._open

    @property
    def position(self) -> int:
        """Number of tokens computed so far."""
        return self._handle.position

    @property
    def context_length(self) -> int:
        """Positions there is room for."""
        return self._handle.context_length

    @property
    def tokens(self) -> list[int]:
        """The tokens computed so far."""
        return self._handle.tokens

    def forward(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Computes tokens after those already there; logits of the last one, ``(vocab_size,)``.

        Raises:
            ContextOverflowError: if they do not fit. Nothing has changed then.
        """
        import numpy as np

        return np.asarray(self._handle.forward(token_ids))

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Computes tokens after those already there; logits of each, ``(n_tokens, vocab_size)``."""
        import numpy as np

        return np.asarray(self._handle.forward_all(token_ids))

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Answers a prompt, as :meth:`Model.generate` does, with the same options.

        The prompt is the whole text from the beginning. What the session has of it already is not computed again, the
        rest of the session is forgotten. So in a conversation each prompt is the one before, its answer, and what comes
        next. Without a seed the random numbers go on where the last answer left off.
        """
        return self.stream(prompt, sampling=sampling, **options)._completion()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Answers a prompt piece by piece, as :meth:`generate` does: an iterator of text."""
        return self._stream(prompt, merged(sampling, options), owned=False)

    def _stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        owned: bool,
        prompt_cache: PromptCache | None = None,
    ) -> Stream:
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            prompt = tokenizer.encode(prompt, add_special=params.add_special, parse_special=params.parse_special)
        stream = Stream(self, _core.Generation(tokenizer._core, prompt, dict(params)), owned=owned)
        if prompt_cache:
            stream._prompt_cache = prompt_cache
            if params.max_tokens == 0:
                prompt_cache.compute(self, prompt)
        return stream

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the session to a file: its tokens, all that was computed of them, and where the random numbers are.

        :meth:`Model.load_session` brings it back. The file is replaced in one step: whoever uses the one before keeps
        it, and if something goes wrong it is still there.
        """
        self._handle.save(path, None)

    def truncate(self, n: int) -> None:
        """Forgets all but the first ``n`` tokens."""
        self._handle.truncate(n)

    def shift(self, n_keep: int, n_discard: int) -> None:
        """Makes room: forgets ``n_discard`` tokens after the first ``n_keep``; those after them move down.

        Nothing is computed again, so what moved was computed with the forgotten tokens before it. A later prompt is
        compared with the tokens that did not move only.
        """
        self._handle.shift(n_keep, n_discard)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session cannot be pickled: save it to a file, and load it where that arrives")

    def close(self) -> None:
        """Frees the cache."""
        self._open = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._open is None:
            return "<closed Session>"
        return f"<Session at {self.position} of {self.context_length} tokens>"


class Stream(Iterator[str]):
    """The pieces of an answer as they come. What it has so far can be asked for at any time."""

    def __init__(self, session: Session, generation: _core.Generation, *, owned: bool) -> None:
        self._session = session
        self._generation = generation
        self._owned = owned  # the session is this stream's alone
        self._prompt_cache: PromptCache | None = None

    def __next__(self) -> str:
        if self._session._open is None and (self._generation.finish_reason or self._session.model._open is not None):
            raise StopIteration
        self._save_prompt()
        piece = self._generation.next(self._session._handle)
        if piece is None:
            self.close()
            raise StopIteration
        return piece

    def _save_prompt(self) -> None:
        """Writes the prompt cache once the prompt is computed: the first piece does not wait for it."""
        if self._prompt_cache and self._session._open and (timings := self.timings).prompt_seconds:
            self._prompt_cache.keep(self._session, timings.prompt_tokens, timings.cached_tokens)

    @property
    def prompt_cache_error(self) -> str | None:
        """Why the prompt cache could not be written, if so; the answer does not suffer from it."""
        return self._prompt_cache.error if self._prompt_cache else None

    def _completion(self) -> Completion:
        text = "".join(self)
        assert self.finish_reason is not None, "the stream has ended"
        if self.prompt_cache_error:
            import logging

            logging.getLogger("llama_rs").warning(self.prompt_cache_error)
        return Completion(text, self.token_ids, self.finish_reason, self.prompt_tokens, self.timings, self.seed)

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the answer so far, without an end token."""
        return self._generation.token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended: ``"stop"`` or ``"length"``; None while it has not."""
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

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream cannot be pickled: pickle its model, or the text that it gave")

    def close(self) -> None:
        """Stops, and frees the cache if it is not that of an explicit session."""
        self._save_prompt()
        if self._owned:
            self._session.close()
