"""The model: what applications use."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence

from . import _core
from .checkpoint import Checkpoint, Metadata, Tensor, Tensors
from .closing import Closing
from .errors import ModelChangedError, ModelClosedError, ModelNotFoundError
from .lazy import TYPE_CHECKING, NamedTuple, hints, np, npt, typing
from .lazy import async_chat as _async_chat
from .lazy import chat as _chat
from .lazy import classify as _classify
from .lazy import engine as _engine
from .lazy import residency as _residency
from .notes import counted, note
from .options import SamplingParams, adapters, default_threads, merged
from .prompt_cache import PromptCache
from .session import Completion, Session, Stream, Timings, token_logprobs
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import Literal, overload

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


class Perplexity(NamedTuple):
    """How well a model predicts a text."""

    perplexity: float
    """The exponential of the mean negative log-likelihood per token: the lower, the better."""
    stderr: float
    """Its standard error."""
    tokens: int
    """Tokens that were scored: the second half of each window, or its last ``stride`` ones."""
    windows: int
    context_length: int
    """Tokens per window."""


class Score(NamedTuple):
    """How likely a continuation is to a model."""

    token_ids: list[int]
    """The tokens of the continuation."""
    logprobs: list[float]
    """The natural logarithm of the probability of each, given all before it."""

    @property
    def total(self) -> float:
        """The logarithm of the probability of the whole continuation."""
        return sum(self.logprobs)


class Benchmark(NamedTuple):
    """How fast a model is here."""

    test: str
    """As in llama.cpp's llama-bench: ``pp512`` reads a prompt of 512 tokens, ``tg128`` generates 128."""
    tokens: int
    seconds: list[float]
    """The time of each round."""

    @property
    def tokens_per_second(self) -> float:
        """The mean over the rounds."""
        return sum(self.tokens / s for s in self.seconds) / len(self.seconds)

    @property
    def stddev(self) -> float:
        """The standard deviation of the tokens per second; 0 of one round."""
        mean = self.tokens_per_second
        squares = sum((self.tokens / s - mean) ** 2 for s in self.seconds)
        return float((squares / max(len(self.seconds) - 1, 1)) ** 0.5)


class Model(Closing):
    """A model, mapped and ready. Opening it reads the header and nothing else.

    A model never changes: any number of threads may use one at the same time.

    Args:
        path: a GGUF file, any part of one that is split, or a directory as Hugging Face has them: ``config.json``,
            safetensors of BF16, F16 or F32, the files of a tokenizer. Nothing is converted.
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
        lora: adapters, as ``lora`` of :meth:`session` takes them: what every session has unless asked for others.

    A model can be pickled, as its path, these arguments and a fingerprint of the file: whoever unpickles it maps the
    same file, in milliseconds. Copies share the map.

    When the file is cut short or written over while it is in use, the call that notices raises
    :class:`ModelChangedError`, and nothing that was computed from it is returned. Replacing or deleting the file by
    name changes nothing. Arrays that are views of the file (:meth:`Tensor.numpy`) read zeros where it was cut off.

    Raises:
        ModelFileError: if the file cannot be opened, mapped, read or locked.
        ModelFormatError: if it is not a valid model file.
        UnsupportedModelError: if it holds something that this version cannot run.
        ValueError: if an argument is out of range: its name, the value and the range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        context_length: int | None = None,
        kv_type: hints.KvType = "f16",
        load: hints.Load = "mmap",
        prefault: bool = False,
        lock: bool = False,
        lora: hints.Lora = (),
    ) -> None:
        self.path = os.fspath(path)
        self._open: _core.Model | None = _core.Model(path, load, prefault, lock)
        self._load = {"load": load, "prefault": prefault, "lock": lock}
        if text := self._open.checkpoint().note():
            note(text)
        self.config = Config(**self._open.config())
        self.threads = default_threads() if threads is None else threads
        if context_length is None:
            context_length = min(DEFAULT_CONTEXT_LENGTH, self.config.context_length)
        self._open.check(context_length, self.threads, kv_type)
        self.context_length = context_length
        self.kv_type = kv_type
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._adapters: dict[str, _core.Adapter] = {}  # those that were opened, by their paths
        self.lora = adapters(lora)
        self._lora(None)  # opened now: who has a bad one hears of it here
        self._engines: weakref.WeakSet[_engine.AsyncEngine] = weakref.WeakSet()
        self._engine: _engine.AsyncEngine | None = None  # of the asynchronous methods
        self._tokenizer: Tokenizer | None = None
        self._chat_template: _chat.ChatTemplate | None = None

    @property
    def _handle(self) -> _core.Model:
        if self._open is None:
            raise ModelClosedError(f"{self.path}: the model is closed")
        return self._open

    @property
    def checkpoint(self) -> Checkpoint:
        """The file of the model, to look into."""
        return Checkpoint._of(self._handle.checkpoint(), self.path)

    @property
    def metadata(self) -> Mapping[str, typing.Any]:
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
            self._tokenizer = Tokenizer._of(core.tokenizer(), self.path)
        return self._tokenizer

    def session(self, *, context_length: int | None = None, lora: hints.Lora | None = None) -> Session:
        """Starts an empty session: an explicit key-value cache.

        Args:
            context_length: positions there is room for; default that of the model.
            lora: adapters (LoRA) of this model: the path of one, a GGUF file or a directory as PEFT writes it; a pair
                of a path and how strong it is, 1 as it was trained; or a list of such. Default those of the model;
                ``[]`` is none. They are mapped and never merged: sessions with different ones share the model's
                weights. A file is opened once a model.

        Raises:
            ModelFormatError: if a file is no adapter, or not one of this model.
            UnsupportedModelError: if it changes what cannot be changed: embeddings, the output, experts.
        """
        length = self.context_length if context_length is None else context_length
        core = self._handle.session(length, self.threads, self.kv_type, self._lora(lora))
        session = Session(self, core, self.lora if lora is None else adapters(lora))
        self._sessions.add(session)
        return session

    def _lora(self, lora: hints.Lora | None) -> list[tuple[_core.Adapter, float]]:
        """Adapters, open."""
        handle, found = self._handle, []
        for path, scale in self.lora if lora is None else adapters(lora):
            key = os.path.abspath(path)
            if key not in self._adapters:
                self._adapters[key] = handle.adapter(path)
            found.append((self._adapters[key], scale))
        return found

    def load_session(
        self, path: str | os.PathLike[str], *, context_length: int | None = None, lora: hints.Lora | None = None
    ) -> Session:
        """Brings back a session that :meth:`Session.save` saved, ready to go on.

        Nothing is read: the file is mapped, and its pages are in memory once for all sessions that come from it, in
        whatever process. What a session adds is its own; the file never changes by it.

        Raises:
            SavedSessionError: if the file is not a saved session, or one of another model or with other adapters.
            ContextOverflowError: if it is longer than ``context_length``.
            ModelFileError: if it cannot be read.
        """
        length = self.context_length if context_length is None else context_length
        return self._load_session(path, length, prefix=False, lora=lora)

    def _load_session(
        self, path: str | os.PathLike[str], context_length: int, *, prefix: bool, lora: hints.Lora | None
    ) -> Session:
        core = self._handle.load_session(
            path, context_length, self.threads, self.kv_type, prefix, self._lora(lora)
        )  # fmt: skip
        session = Session(self, core, self.lora if lora is None else adapters(lora))
        self._sessions.add(session)
        return session

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        prompt_cache_readonly: bool = False,
        lora: hints.Lora | None = None,
        speculative: hints.Speculative | None = None,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> Completion:
        """Answers a prompt. The same seed, file and build give the same answer.

        Args:
            prompt: text, or token ids.
            sampling: how the answer is made.
            prompt_cache: a file that holds the computed prompt. What it has of this prompt, from the first token on, is
                not computed again; any number of processes share it in memory. It is made when it is not there, and
                replaced by one with this prompt when that has a sixteenth more, or when less than half of the prompt
                was in it. When it cannot be used or written (it is damaged, of another model, or no such file at all)
                it is left as it is, the answer comes all the same, and the logger ``llama_rs`` says so, or
                :attr:`Stream.prompt_cache_error`.
            prompt_cache_readonly: use the file as it is: it has to be there, and to be a cache of this model.
            lora: adapters, see :meth:`session`; default those of the model.
            speculative: guess tokens ahead, and compute several in one pass: ``"prompt-lookup"`` guesses that what
                followed the last tokens before follows them again, as in summaries, edits and code; a smaller
                :class:`Model` of the same vocabulary guesses what it finds most likely. It changes the time and nothing
                else: the answer is the same, to the token, also with sampling. :class:`Timings` say how many guesses
                were right.
            options: the fields of :class:`SamplingParams`, which says what they mean: ``max_tokens``, ``temperature``,
                ``seed``, ``stop`` and so on. They override ``sampling``.

        Raises:
            ContextOverflowError: if the prompt does not fit in the context.
            SavedSessionError: if the prompt cache may only be read, and is not one, or is one of another model.
            ValueError: if an argument is out of range.
        """
        stream = self.stream(
            prompt,
            sampling=sampling,
            prompt_cache=prompt_cache,
            prompt_cache_readonly=prompt_cache_readonly,
            lora=lora,
            speculative=speculative,
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
        lora: hints.Lora | None = None,
        speculative: hints.Speculative | None = None,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> Stream:
        """Answers a prompt piece by piece, as :meth:`generate` does: an iterator of text."""
        params = merged(sampling, options)
        if prompt_cache is None:
            return self.session(lora=lora)._stream(prompt, params, owned=True, speculative=speculative)
        cache = PromptCache(prompt_cache, readonly=prompt_cache_readonly)
        return cache.open(self, lora)._stream(prompt, params, owned=True, prompt_cache=cache, speculative=speculative)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        parallel: int = 16,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> list[Completion]:
        """Answers several prompts together: one pass over the weights gives each answer a token.

        Each answer is the one that :meth:`generate` gives, to the bit. What prompts have in common from the first token
        on is computed once.

        Args:
            prompts: texts, or lists of token ids.
            sampling: how the answers are made, or how each of them is.
            parallel: how many answers are made at the same time. More take more memory.
            options: the fields of :class:`SamplingParams`. They override ``sampling``.

        Raises:
            ContextOverflowError: if a prompt does not fit in the context.
            ValueError: if a prompt is empty, or an argument is out of range.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts is a str, it must be a sequence of texts: generate(prompt) answers one")
        if not 1 <= parallel < 1 << 32:
            raise ValueError(f"parallel is {parallel}, it must be from 1 to {(1 << 32) - 1}")
        if sampling is None or isinstance(sampling, SamplingParams):
            params = [merged(sampling, options)] * len(prompts)
        else:
            params = [merged(each, options) for each in sampling]
            if len(params) != len(prompts):
                raise ValueError(f"sampling has {len(params)} items for {counted(len(prompts), 'prompt')}")
        ids: list[Sequence[int]] = []
        for prompt, given in zip(prompts, params, strict=True):
            if isinstance(prompt, str):
                room = self.context_length
                prompt = self.tokenizer._encode(prompt, given.add_special, given.parse_special, room)
            ids.append(prompt)
        done = _core.generate_batch(
            self._handle,
            ids,
            [dict(given) for given in params],
            self.context_length,
            self.threads,
            self.kv_type,
            parallel,
            self._lora(None),
        )
        completions = []
        for (text, token_ids, reason, timings, seed, found), given in zip(done, params, strict=True):
            logprobs = token_logprobs(self.tokenizer.token_bytes, found) if given._wants_logprobs else None
            completions.append(Completion(text, token_ids, reason, timings[0], Timings(*timings), seed, logprobs))
        return completions

    async def agenerate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> Completion:
        """Answers a prompt, for programs with an event loop, which goes on meanwhile.

        Answers that are asked for at the same time are made together, by an :class:`AsyncEngine` that the model keeps;
        one of your own has limits, priorities and timeouts. Cancelling the task frees what it uses.
        """
        return await self.astream(prompt, sampling=sampling, **options)._completion()

    def astream(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingParams | None = None,
        **options: typing.Unpack[hints.GenerateOptions],
    ) -> _engine.AsyncStream:
        """Answers a prompt piece by piece, as :meth:`agenerate` does: ``async for piece in model.astream(prompt)``."""
        return self._async_engine().stream(prompt, sampling=sampling, **options)

    async def achat(
        self,
        messages: hints.Messages,
        *,
        sampling: SamplingParams | None = None,
        **options: typing.Unpack[hints.ChatOptions],
    ) -> _chat.ChatCompletion:
        """Answers a conversation, as :meth:`chat` does, for programs with an event loop; see :meth:`agenerate`."""
        return await self.astream_chat(messages, sampling=sampling, **options)._completion()

    def astream_chat(
        self,
        messages: hints.Messages,
        *,
        sampling: SamplingParams | None = None,
        **options: typing.Unpack[hints.ChatOptions],
    ) -> _async_chat.AsyncChatStream:
        """Answers a conversation piece by piece: ``async for delta in model.astream_chat(messages)``."""
        return self._async_engine().stream_chat(messages, sampling=sampling, **options)

    def _async_engine(self) -> _engine.AsyncEngine:
        _ = self._handle  # raises if it is closed
        if self._engine is None:
            # As many as are asked for wait: whoever wants limits has an engine of their own.
            self._engine = _engine.AsyncEngine(self, max_queue=1 << 40, max_queued_tokens=1 << 40)
        return self._engine

    def chat(
        self,
        messages: hints.Messages,
        *,
        sampling: SamplingParams | None = None,
        lora: hints.Lora | None = None,
        **options: typing.Unpack[hints.ChatOptions],
    ) -> _chat.ChatCompletion:
        """Answers a conversation, in the form that the model was trained for: by the chat template in its file.

        Nothing that a message says becomes a control token. What the model thinks and which tools it calls are told
        apart from what it says, in the ways of its family. To go on with a conversation without computing it again, use
        :meth:`Session.chat`.

        >>> done = model.chat("Is it warm in Lisbon?", tools=[weather])
        >>> messages += [done.message, *run_tools(done.tool_calls, [weather])]

        Args:
            messages: dicts with ``role`` (``system``, ``user``, ``assistant``, ``tool``, ...) and ``content``, as in
                OpenAI's API; or text, which is one message of the user.
            sampling: how the answer is made.
            lora: adapters, see :meth:`session`; default those of the model.
            options: the fields of :class:`SamplingParams`, which override ``sampling``, and these:

                ``tools``: what the model may call: functions, whose signature and docstring describe them, or
                descriptions as OpenAI's API has them. A model whose template knows nothing of tools is told in words.

                ``tool_choice``: ``"auto"``, ``"none"``, ``"required"``, or the name of the tool that is to be called.

                ``reasoning``: whether the model is to think before it answers, or how much: ``"low"``, ``"medium"``,
                ``"high"``; where its template can say so. By default as the template has it.

                ``reasoning_format``: ``"none"`` leaves what it thinks in the content, marks and all.

                ``continue_final``: the last message is the beginning of the answer, and is gone on with.

                ``chat_family``: how calls are marked, if the template does not tell: ``"hermes"``, ``"llama3"``,
                ``"mistral"`` and so on.

                ``speculative``: guess tokens ahead, see :meth:`generate`.

                ``template_options``: other variables of the template.

                With ``on_overflow="shift"`` the oldest messages are left out when the context is full, but not what
                the system says; nothing of the others is computed again.

        Raises:
            ContextOverflowError: if the conversation does not fit in the context.
            UnsupportedModelError: if the model has no chat template, or one that cannot be used.
            ValueError: if the template refuses the messages, or an argument is out of range.
        """
        return self.stream_chat(messages, sampling=sampling, lora=lora, **options)._completion()

    def stream_chat(
        self,
        messages: hints.Messages,
        *,
        sampling: SamplingParams | None = None,
        lora: hints.Lora | None = None,
        **options: typing.Unpack[hints.ChatOptions],
    ) -> _chat.ChatStream:
        """Answers a conversation piece by piece, as :meth:`chat` does: an iterator of :class:`ChatDelta`."""
        session = self.session(lora=lora)
        try:
            return session._stream_chat(messages, sampling, options, owned=True)
        except BaseException:
            session.close()
            raise

    def chat_prompt(self, messages: hints.Messages, **options: typing.Unpack[hints.ChatOptions]) -> list[int]:
        """The tokens that :meth:`chat` asks with; ``tokenizer.decode`` shows them as text."""
        return _chat.Question(self, messages, None, options, context_length=1 << 32).prepared().prompt

    @property
    def _template(self) -> _chat.ChatTemplate:
        _ = self._handle  # raises if it is closed
        if self._chat_template is None:
            self._chat_template = _chat.ChatTemplate(self)
        return self._chat_template

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of every token given those before it, ``(n_tokens, vocab_size)``.

        Raises:
            MemoryError: if there is no memory for so many.
        """
        n = 1 if isinstance(token_ids, (str, bytes, bytearray)) else len(token_ids)
        with self.session(context_length=max(n, 1)) as session:
            return session.logits(token_ids)

    if TYPE_CHECKING:

        @overload
        def embed(
            self,
            texts: str | Sequence[str] | Sequence[Sequence[int]],
            *,
            pooling: Literal["mean", "cls", "last"] | None = None,
            normalize: bool = True,
            dimensions: int | None = None,
            truncate: bool = False,
        ) -> npt.NDArray[np.float32]: ...
        @overload
        def embed(
            self,
            texts: str | Sequence[str] | Sequence[Sequence[int]],
            *,
            pooling: Literal["none"],
            normalize: bool = True,
            dimensions: int | None = None,
            truncate: bool = False,
        ) -> list[npt.NDArray[np.float32]]: ...

    def embed(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        pooling: hints.Pooling | None = None,
        normalize: bool = True,
        dimensions: int | None = None,
        truncate: bool = False,
    ) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]:
        """Vectors of texts, ``(n, dim)``: texts that mean something similar have similar ones.

        Any model gives some; those that were made for it (BERT and its kin, EmbeddingGemma, Qwen3 Embedding) give good
        ones. What their authors want before a text (``"query: "``) is yours to write. Each text's vector is the same,
        to the bit, in any company. Nothing in a text is read as a special token.

        Args:
            texts: texts, or lists of token ids; or one text, whose vector is then all there is, ``(1, dim)``.
            pooling: how the vectors of tokens become one: ``"mean"``, ``"cls"`` (that of the first), ``"last"``. By
                default as the file says, or else the mean in an encoder and the last in others. ``"none"`` gives those
                of the tokens, an array ``(n_tokens, dim)`` for each text.
            normalize: make vectors of length 1, so that the product of two is their cosine.
            dimensions: the first so many numbers of each, for models that were trained to have them say most.
            truncate: cut texts that are longer than the context. They still end with the token that ends all texts.

        Raises:
            ContextOverflowError: if a text is longer than the context, or than the model has positions for.
            UnsupportedModelError: if the model is a reranker, and ``pooling`` is not given.
            ValueError: if a text has no tokens, or an argument is out of range.
        """
        several: list[str | Sequence[int]] = [texts] if isinstance(texts, str) else [*texts]
        data, counts = self._handle.embed(
            several,
            pooling,
            normalize,
            dimensions,
            truncate,
            self.context_length,
            self.threads,
            self.kv_type,
            self._lora(None),
        )
        vectors = np.asarray(data)
        if pooling != "none":
            return vectors
        return np.split(vectors, np.cumsum(counts)[:-1]) if counts else []

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers a query, by a reranker: a BERT or ModernBERT with a classifier, or Qwen3's.

        The higher, the better: a logit, or of Qwen3 the probability of "yes". Nothing in query or documents is read as
        a special token.

        Raises:
            ContextOverflowError: if a query and a document are together longer than the context.
            UnsupportedModelError: if the model is no reranker.
        """
        if isinstance(documents, str):
            raise TypeError("documents is a str, it must be a sequence of texts")
        handle = self._handle
        ids = handle.pairs(query, list(documents))
        return [
            scores[0] for scores in handle.rank(ids, self.context_length, self.threads, self.kv_type, self._lora(None))
        ]

    def classify(
        self,
        texts: str | Sequence[str],
        labels: Sequence[str] | Mapping[str, str],
        **options: typing.Unpack[_classify.ClassifyOptions],
    ) -> list[_classify.Classification]:
        """Which of some labels each text has, by how likely the model finds them as the answer.

        The options are the arguments of :meth:`classifier`, which is faster for more than one call: it keeps what all
        prompts have in common.

        >>> model.classify(["The food was cold."], ["positive", "negative"])[0].label
        'negative'

        Raises:
            ContextOverflowError: if a text is too long; nothing is cut.
            UnsupportedModelError: if the model makes no text, or with ``chat=True`` has no chat template.
            ValueError: if an argument is out of range.
        """
        with self.classifier(labels, **options) as classifier:
            return classifier([texts] if isinstance(texts, str) else texts)

    def classifier(
        self,
        labels: Sequence[str] | Mapping[str, str],
        *,
        instructions: str | None = None,
        template: str | None = None,
        examples: Sequence[tuple[str, str]] = (),
        chat: bool | None = None,
        template_options: Mapping[str, typing.Any] | None = None,
        calibration: hints.CalibrationKind | _classify.Calibration = "content_free",
        normalize: hints.ScoreNormalization = "mean",
        multi_label: bool = False,
    ) -> _classify.Classifier:
        """What classifies any number of texts: call it with a list of them.

        Args:
            labels: at least two names; or names and the answers that stand for them.
            instructions: what the model is told to do; ``{labels}`` in it is all of them. Default: to classify.
            template: what it is asked about a text, with ``{text}`` in it once. Without a chat it ends where the answer
                begins. Default ``"Text: {text}"``, and then without a chat ``"\\nLabel:"``.
            examples: texts with their labels, which are shown to the model first.
            chat: whether to ask as a conversation; by default if the model has a template for it.
            template_options: other variables of the chat template.
            calibration: what of the model's preferences is taken out: ``"content_free"``, what it says to texts without
                content; ``"batch"``, what it says on average to the texts of a call; ``"none"``; or what
                :meth:`Classifier.fit` gave.
            normalize: whether the score of a label is the ``"mean"`` of the log-probabilities of its tokens, or their
                ``"sum"``.
            multi_label: a text may have several labels, or none: each is held against the mean of the others alone, and
                the probabilities do not sum to 1. :meth:`Classification.labels` are those that are likely.

        Raises:
            UnsupportedModelError, ValueError: as for :meth:`classify`.
        """
        from .classify import Classifier

        return Classifier(
            self,
            labels,
            instructions=instructions,
            template=template,
            examples=examples,
            chat=chat,
            template_options=template_options,
            calibration=calibration,
            normalize=normalize,
            multi_label=multi_label,
        )

    def score(self, prompt: str | Sequence[int], continuation: str | Sequence[int]) -> Score:
        """How likely ``continuation`` is after ``prompt``. Nothing is drawn: options of sampling play no part.

        Both are text, or both are token ids. Text is tokenized as one, if the tokens of the whole then begin with those
        of the prompt.

        Raises:
            ValueError: if one of the two is empty.
        """
        if isinstance(prompt, str) and isinstance(continuation, str):
            encode = self.tokenizer.encode
            before, whole = encode(prompt), encode(prompt + continuation)
            if whole[: len(before)] != before:
                whole = before + encode(continuation, add_special=False)
        elif isinstance(prompt, str) or isinstance(continuation, str):
            raise TypeError("prompt and continuation must both be text, or both be token ids")
        else:
            before, whole = list(prompt), [*prompt, *continuation]
        if not before or len(whole) == len(before):
            which = "continuation" if before else "prompt"
            raise ValueError(f"the {which} is empty: it must have at least one token")
        with self.session(context_length=len(whole)) as session:
            nll = session._handle.negative_log_likelihood(whole, len(before))
        return Score(whole[len(before) :], [-x for x in nll])

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        context_length: int = 512,
        stride: int | None = None,
        on_window: Callable[[int, int, float], object] | None = None,
    ) -> Perplexity:
        """Measures how well the model predicts a text, as llama.cpp's llama-perplexity does.

        The text is cut into windows, and the second half of each is scored, given what stands before it in the window.
        What does not fill a window is left out.

        Args:
            text: text, in which nothing is read as a special token, or token ids.
            context_length: tokens per window.
            stride: a window begins so many tokens after the one before, and its last ``stride`` tokens are scored: each
                token of the text once, but for those of the first window, given at least ``context_length - stride``
                before it. Half of ``context_length`` scores every token as the windows of the default score half of
                them; less takes longer, and is closer to what the model knows with a full context.
            on_window: called after each window with its number, from 1, the number of windows, and the perplexity up to
                there.

        Raises:
            ValueError: if the text does not fill one window.
            LlamaError: if the logits are not finite: a weight is damaged.
        """
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text, parse_special=False) if isinstance(text, str) else text
        if context_length < 4:
            raise ValueError(f"context_length is {context_length}, it must be 4 or more")
        if stride is not None and not 1 <= stride < context_length:
            raise ValueError(f"stride is {stride}, it must be from 1 to {context_length - 1}")
        if len(ids) < context_length:
            raise ValueError(
                f"the text has {counted(len(ids), 'token')}, too few for a window of {context_length}: "
                "choose a smaller one"
            )
        begin = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos] else []
        step, first = (context_length, context_length // 2 + 1) if stride is None else (stride, context_length - stride)
        n_windows = (len(ids) - context_length) // step + 1
        scores: list[float] = []
        with self.session(context_length=context_length) as session:
            for i in range(n_windows):
                window = [*begin, *ids[i * step + len(begin) : i * step + context_length]]
                scores += session._handle.negative_log_likelihood(window, first)
                if on_window:
                    on_window(i + 1, n_windows, _exp(sum(scores) / len(scores)))
        n, mean = len(scores), sum(scores) / len(scores)
        variance = sum((s - mean) ** 2 for s in scores) / (n - 1) if n > 1 else 0.0
        return Perplexity(_exp(mean), _exp(mean) * (variance / n) ** 0.5, n, n_windows, context_length)

    def bench(
        self,
        *,
        prompt_tokens: int = 512,
        max_tokens: int = 128,
        repetitions: int = 5,
        on_test: Callable[[str], object] | None = None,
    ) -> list[Benchmark]:
        """Measures how fast the model is here, as llama.cpp's llama-bench does.

        Both tests start from an empty context with random tokens, and run once to warm up.

        Args:
            prompt_tokens: length of the prompt that is read in one go; 0 for no such test.
            max_tokens: how many tokens are generated one after another; 0 for no such test.
            repetitions: how often each test is run.
            on_test: called with the name of each test before it runs.
        """
        for name, value, least in (
            ("prompt_tokens", prompt_tokens, 0),
            ("max_tokens", max_tokens, 0),
            ("repetitions", repetitions, 1),
        ):
            if not least <= value < 1 << 32:
                raise ValueError(f"{name} is {value}, it must be from {least} to {(1 << 32) - 1}")
        results = []
        for test, n, is_generation in (("pp", prompt_tokens, False), ("tg", max_tokens, True)):
            if n:
                if on_test:
                    on_test(f"{test}{n}")
                with self.session(context_length=n) as session:
                    seconds = session._handle.bench(n, is_generation, repetitions)
                results.append(Benchmark(f"{test}{n}", n, seconds))
        return results

    def residency(self) -> _residency.Residency:
        """What of the file is in memory now, by layer and by tensor."""
        return self.checkpoint.residency()

    def __reduce__(self) -> tuple[typing.Any, ...]:
        options = {
            "threads": self.threads,
            "context_length": self.context_length,
            "kv_type": self.kv_type,
            "lora": [(os.path.abspath(path), scale) for path, scale in self.lora],
            **self._load,
        }
        return _reopen, (os.path.abspath(self.path), options, self._handle.checkpoint().fingerprint())

    def __copy__(self) -> Model:
        handle = self._handle
        copy = Model.__new__(Model)
        own: dict[str, typing.Any] = {"_sessions": weakref.WeakSet(), "_engines": weakref.WeakSet(), "_engine": None}
        copy.__dict__.update(self.__dict__, _open=handle, **own)
        return copy

    def __deepcopy__(self, memo: dict[int, typing.Any]) -> Model:
        return self.__copy__()

    def close(self) -> None:
        """Unmaps the file. Every later use is a :class:`ModelClosedError`; closing again does nothing.

        A call that uses one of its sessions ends with a :class:`ModelClosedError`. What was taken out of the model
        before (its tokenizer, metadata, a checkpoint) can still be used, and keeps the file mapped for as long as it
        lives.

        Raises:
            BufferError: if arrays are alive that are views of the file.
        """
        if self._open is not None:
            views = self._handle.checkpoint().views()
            if views:
                what = f"{counted(views, 'view')} of its tensors in use"
                raise BufferError(f"{self.path}: cannot close the model, {what}")
            for session in list(self._sessions):
                session._handle.close(True)
            for engine in list(self._engines):
                engine.close()
            self._open = self._engine = None
            self._adapters = {}
            self._tokenizer = None
            self._chat_template = None

    def __enter__(self) -> typing.Self:
        _ = self._handle  # raises if it is closed
        return self

    def __repr__(self) -> str:
        if self._open is None:
            return f"<closed Model({self.path!r})>"
        return f"Model({self.path!r}, threads={self.threads}, context_length={self.context_length})"


def _reopen(path: str, options: dict[str, typing.Any], fingerprint: tuple[int, int, int]) -> Model:
    """A model as it was pickled."""
    try:
        model = Model(path, **options)
    except ModelNotFoundError as e:
        raise ModelNotFoundError(f"{e.message} (on host {os.uname().nodename})", path, e.errno) from None
    if model._handle.checkpoint().fingerprint() != fingerprint:
        raise ModelChangedError(f"{path}: the model file is not the one that was pickled", path)
    return model


def _exp(x: float) -> float:
    """The exponential, infinite where Python's raises."""
    from math import exp

    return exp(x) if x < 709 else float("inf")
