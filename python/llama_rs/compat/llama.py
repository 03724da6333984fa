"""``Llama``: the class of llama-cpp-python over a mapped model.

What it computes with is a :class:`_Sequence`: a session, its tokens, the logits after the last of them. A call takes
the sequence of the object, or one of its own while another thread has that: calls never wait for each other and never
mix, and a stream that somebody forgot blocks nobody. ``generate`` is the one loop: it computes, chooses and yields, and
both completions and whoever drives it by hand use it.
"""

from __future__ import annotations

import fnmatch
import os
import random
import tempfile
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _core
from ..errors import LlamaError, ModelClosedError, ModelNotFoundError, UnsupportedModelError
from ..model import Model
from ..notes import note
from ..tokenizer import Tokenizer
from .llama_cache import BaseLlamaCache, common_prefix
from .llama_chat_format import OF_THE_MODEL, get_chat_completion_handler, handler_of_model
from .llama_grammar import LlamaGrammar
from .llama_tokenizer import BaseLlamaTokenizer, LlamaTokenizer
from .text import Text

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..session import Session
    from .llama_types import CreateEmbeddingResponse

    Ids = npt.NDArray[np.intc]
    Scores = npt.NDArray[np.single]

LLAMA_DEFAULT_SEED = 0xFFFFFFFF
KV_TYPES: dict[int | None, Literal["f16", "q8_0"]] = {None: "f16", 1: "f16", 8: "q8_0"}
"""Types of keys and values by ggml's numbers."""
POOLINGS: dict[int, Literal["mean", "cls", "last", "none"]] = {0: "none", 1: "mean", 2: "cls", 3: "last"}

# What has no meaning here: there is one device, weights stay where they lie, and batches are made by the engine.
IGNORED = {
    "n_gpu_layers": (0, -1),
    "split_mode": (1,),
    "main_gpu": (0,),
    "tensor_split": (None,),
    "offload_kqv": (True, False),
    "flash_attn": (False, True),
    "op_offload": (None, True, False),
    "swa_full": (None, True, False),
    "no_perf": (False, True),
    "numa": (False,),
    "draft_model": (None,),
}
# What would change the answer and cannot be had.
REFUSED = {
    "kv_overrides": (None, {}),
    "rope_scaling_type": (None, -1),
    "rope_freq_base": (0, None, 10_000),  # which LangChain gives to every model, whatever that was trained with
    "rope_freq_scale": (0, None, 1),
    "yarn_ext_factor": (-1.0,),
    "yarn_attn_factor": (1.0,),
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_orig_ctx": (0,),
    "attention_type": (-1,),
    "lora_base": (None,),
}

LogitsProcessor = Callable[["Ids", "Scores"], "Scores"]
StoppingCriteria = Callable[["Ids", "Scores"], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Processors, one after the other."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Criteria, one of which is enough."""

    def __call__(self, input_ids: Ids, logits: Scores) -> bool:
        return any([criterion(input_ids, logits) for criterion in self])  # noqa: C419  # all are asked, they may count


class MinTokensLogitsProcessor:
    """Has an answer not end before it has some tokens."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens, self.token_eos = min_tokens, token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


class LlamaState:
    """What was computed of a text, to go on from: a fork of a session, or the file that it is saved in.

    It can be pickled: it takes the bytes of the file along.
    """

    def __init__(
        self,
        input_ids: Ids,
        scores: Scores | None,
        n_tokens: int,
        llama_state: bytes | Path | Session,
        llama_state_size: int,
        seed: int,
    ) -> None:
        self.input_ids = input_ids
        self.scores = scores
        self.n_tokens = n_tokens
        self.llama_state_size = llama_state_size
        self.seed = seed
        self._state = llama_state

    @classmethod
    def _in_file(cls, path: Path, tokens: Sequence[int]) -> LlamaState:
        ids = np.array(tokens, dtype=np.intc)
        return cls(ids, None, len(ids), path, path.stat().st_size, LLAMA_DEFAULT_SEED)

    @property
    def llama_state(self) -> bytes:
        """A saved session, as bytes."""
        if isinstance(self._state, bytes):
            return self._state
        if isinstance(self._state, Path):
            return self._state.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state")
            self._state.save(path)
            return path.read_bytes()

    def _save(self, path: Path) -> None:
        """Into a file."""
        if isinstance(self._state, (bytes, Path)):
            path.write_bytes(self.llama_state)
        else:
            self._state.save(path)

    def _session(self, model: Model, n_ctx: int) -> Session:
        """A session that is where the state is."""
        if isinstance(self._state, Path):
            return model.load_session(self._state, context_length=n_ctx)
        if not isinstance(self._state, bytes) and self._state.model is model and self._state.context_length == n_ctx:
            return self._state.fork()
        with tempfile.TemporaryDirectory() as folder:  # what is mapped outlives its name
            path = Path(folder, "state")
            self._save(path)
            return model.load_session(path, context_length=n_ctx)

    def __reduce__(self) -> tuple[Any, ...]:
        facts = (self.input_ids, self.scores, self.n_tokens, self.llama_state, self.llama_state_size, self.seed)
        return LlamaState, facts


class _Sequence:
    """One sequence of tokens and what is computed of it."""

    def __init__(self, session: Session, n_vocab: int, *, logits_all: bool) -> None:
        n_ctx = session.context_length
        self.session = session
        self.ids: Ids = np.zeros(n_ctx, dtype=np.intc)
        self.n = 0
        self.logits: Scores | None = None
        """After the last token; None if that has to be computed again for them."""
        # Not touched, and so no memory, before it is written.
        self.rows: Scores | None = np.empty((n_ctx, n_vocab), dtype=np.single) if logits_all else None
        self.is_busy = False

    @property
    def tokens(self) -> Ids:
        return self.ids[: self.n]

    def eval(self, tokens: Sequence[int], batch: int) -> None:
        """Computes tokens after those there are."""
        if not len(tokens):
            return
        if self.rows is None:
            self.logits = self.session.forward(tokens)
        else:
            for at in range(0, len(tokens), batch):
                rows = self.session.logits(tokens[at : at + batch])
                self.rows[self.n + at : self.n + at + len(rows)] = rows
            self.logits = self.rows[self.n + len(tokens) - 1]
        self.ids[self.n : self.n + len(tokens)] = tokens
        self.n += len(tokens)

    def truncate(self, n: int) -> None:
        """Forgets all but the first tokens."""
        if n < self.n:
            self.session.truncate(n)
            self.n, self.logits = n, None

    def common(self, tokens: Sequence[int]) -> int:
        """How many of the first tokens are the same."""
        n = min(self.n, len(tokens))
        differ = np.flatnonzero(self.ids[:n] != np.asarray(tokens[:n], dtype=np.intc))
        return int(differ[0]) if len(differ) else n


class _Sampling:
    """How tokens are chosen, and what it remembers from one to the next: llama-cpp-python's chain."""

    def __init__(
        self,
        llama: Llama,
        *,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        temp: float,
        repeat_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        mirostat_mode: int,
        mirostat_eta: float,
        mirostat_tau: float,
        logits_processor: LogitsProcessorList | None,
        grammar: LlamaGrammar | None,
        logit_bias: dict[int, float] | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "repeat_penalty": repeat_penalty,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "repeat_last_n": llama.last_n_tokens_size,
            "logit_bias": logit_bias or {},
            "seed": None if llama._seed & 0xFFFFFFFF == LLAMA_DEFAULT_SEED else llama._seed & 0xFFFFFFFFFFFFFFFF,
        }
        if temp < 0:  # draws from what the model says, uncut
            options |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        elif temp == 0:
            options |= {"temperature": 0.0}
        elif mirostat_mode:
            options |= {"temperature": temp, "mirostat": mirostat_mode}
            options |= {"mirostat_tau": mirostat_tau, "mirostat_eta": mirostat_eta}
        else:
            options |= {
                "temperature": temp,
                "top_k": max(top_k, 0),
                "top_p": min(max(top_p, 0.0), 1.0),
                "min_p": min(max(min_p, 0.0), 1.0),
                "typical_p": min(max(typical_p, 0.0), 1.0),
            }
        if grammar is not None:
            options |= grammar._options()
        self._sampler = _core.Sampler(llama._tokenizer._core, options)
        self._processors = logits_processor
        self._penalties = repeat_penalty != 1 or frequency_penalty != 0 or presence_penalty != 0
        self._recent: deque[int] = deque(maxlen=max(llama.last_n_tokens_size, 0) or None)

    def choose(self, ids: Ids, logits: Scores) -> int:
        """The next token, by the logits after ``ids``. Penalties are for what was chosen before, not for the prompt."""
        if self._processors:
            writable = logits.copy()
            writable[:] = self._processors(ids, writable)
            logits = writable
        token = self._sampler.sample(logits, list(self._recent) if self._penalties else ())
        if token is None:
            raise LlamaError(f"no logit after token {len(ids)} is a number: a weight is damaged")
        if self._penalties:
            self._recent.append(token)
        return token


class Llama:
    """A model with the interface of llama-cpp-python's ``Llama``.

    All its parameters are known. Those of devices and of batches mean nothing here, and a note says so where one asks
    for something; those that would change the answer and cannot be had are an error. ``verbose`` prints nothing. Other
    than there: ``logprobs`` need no ``logits_all``; any number of threads may use one object at a time; the weights are
    never copied; what a message says cannot become a control token.

    Raises:
        ValueError: if the file does not exist or cannot be loaded.
        UnsupportedModelError: for an option that would change the answer and cannot be had.
    """

    def __init__(
        self,
        model_path: str,
        *,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        seed: int = LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        pooling_type: int = -1,
        logits_all: bool = False,
        embedding: bool = False,
        last_n_tokens_size: int = 64,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        chat_format: str | None = None,
        chat_handler: Callable[..., Any] | None = None,
        tokenizer: BaseLlamaTokenizer | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        **others: Any,
    ) -> None:
        self._arguments: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "others")
        } | others
        path = os.fspath(model_path)
        for name, value in others.items():
            if name in IGNORED and value not in IGNORED[name]:
                note(f"{path}: {name}={value!r} means nothing here and is ignored")
            elif name in REFUSED and value not in REFUSED[name]:
                raise UnsupportedModelError(f"{path}: {name} is {value!r}, which cannot be had: leave it out", path)
        if type_k not in KV_TYPES or type_k != type_v:
            raise ValueError(
                f"type_k is {type_k} and type_v is {type_v}: both must be 1 (GGML_TYPE_F16), or both 8 (GGML_TYPE_Q8_0)"
            )
        if not os.path.exists(path):
            raise ValueError(f"Model path does not exist: {path}")
        self.model_path = path
        self.verbose = verbose
        self.chat_format, self.chat_handler = chat_format, chat_handler
        self.last_n_tokens_size = last_n_tokens_size
        self.lora_scale, self.lora_path, self.lora_base = lora_scale, lora_path, None
        self.draft_model = others.get("draft_model")
        self.spm_infill = spm_infill
        self.cache: BaseLlamaCache | None = None
        self._embedding, self._logits_all = embedding, logits_all
        self._seed = seed or LLAMA_DEFAULT_SEED
        self._model: Model | None = None
        try:
            if vocab_only:
                self._tokenizer = Tokenizer(path)
            else:
                self._model = Model(
                    path,
                    threads=n_threads,
                    kv_type=KV_TYPES[type_k],
                    load="mmap" if use_mmap else "read",
                    lock=use_mlock,
                    lora=() if lora_path is None else [(lora_path, lora_scale)],
                )
                self._tokenizer = self._model.tokenizer
        except (LlamaError, ModelNotFoundError) as e:
            raise ValueError(f"Failed to load model from file: {path} ({e})") from e
        trained = self._model.config.context_length if self._model else n_ctx
        self._n_ctx = n_ctx or trained
        self.n_batch = min(self._n_ctx, n_batch)
        self.n_ubatch, self.n_threads_batch = min(self.n_batch, n_ubatch), n_threads_batch
        self.n_threads = self._model.threads if self._model else n_threads
        # What other packages read of them.
        self.context_params = SimpleNamespace(
            n_ctx=self._n_ctx,
            n_batch=self.n_batch,
            n_ubatch=self.n_ubatch,
            n_threads=self.n_threads,
            n_threads_batch=self.n_threads_batch or self.n_threads,
            embeddings=embedding,
            pooling_type=pooling_type,
        )
        self.model_params = SimpleNamespace(n_gpu_layers=0, vocab_only=vocab_only, use_mmap=use_mmap)
        self.tokenizer_: BaseLlamaTokenizer = tokenizer or LlamaTokenizer(self)
        self._is_end = self._tokenizer.is_end_of_generation
        self._pooling = pooling_type
        self._guard = threading.Lock()  # held for a moment, while a sequence changes hands
        self._sequence: _Sequence | None = None
        self._sampling: _Sampling | None = None
        if self.chat_format is None and self.chat_handler is None:
            self.chat_format = OF_THE_MODEL if "tokenizer.chat_template" in self.metadata else "llama-2"

    # The sequence

    @property
    def _opened(self) -> Model:
        if self._model is None:
            raise ModelClosedError(f"{self.model_path}: only the vocabulary was loaded, or the model is closed")
        return self._model

    def _new(self, session: Session | None = None) -> _Sequence:
        session = session or self._opened.session(context_length=self._n_ctx)
        return _Sequence(session, self.n_vocab(), logits_all=self._logits_all)

    @property
    def _current(self) -> _Sequence:
        """The sequence of the object, whoever uses it."""
        with self._guard:
            if self._sequence is None:
                self._sequence = self._new()
            return self._sequence

    def _take(self) -> _Sequence:
        """A sequence to compute with: that of the object, or a new one if another call has that."""
        sequence = self._current
        with self._guard:
            if sequence.is_busy:
                sequence = self._new()
            sequence.is_busy = True
            return sequence

    def _give(self, sequence: _Sequence) -> None:
        """What was used last is the sequence of the object, unless another call has that still."""
        with self._guard:
            sequence.is_busy = False
            other = self._sequence
            if other is None or sequence is other:
                self._sequence = sequence
            elif other.is_busy:
                sequence.session.close()
            else:
                other.session.close()
                self._sequence = sequence

    @property
    def n_tokens(self) -> int:
        """Tokens that are computed."""
        return self._current.n

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        self._current.truncate(n)

    @property
    def input_ids(self) -> Ids:
        """The tokens that are computed, and room for those to come."""
        return self._current.ids

    @property
    def _input_ids(self) -> Ids:
        return self._current.tokens

    @property
    def scores(self) -> Scores:
        """Logits of each token, with ``logits_all``; else one row, of the last."""
        sequence = self._current
        if sequence.rows is not None:
            return sequence.rows
        return np.zeros((1, self.n_vocab()), np.single) if sequence.logits is None else sequence.logits[None]

    @property
    def _scores(self) -> Scores:
        sequence = self._current
        return self.scores if sequence.rows is None else sequence.rows[: sequence.n]

    @property
    def eval_tokens(self) -> deque[int]:
        """The tokens that are computed."""
        return deque(self._input_ids.tolist(), maxlen=self._n_ctx)

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Logits of each of them, with ``logits_all``; else of the last."""
        return deque(self._scores.tolist(), maxlen=self._n_ctx if self._logits_all else 1)

    def reset(self) -> None:
        """Forgets all tokens."""
        self._current.truncate(0)

    def eval(self, tokens: Sequence[int]) -> None:
        """Computes tokens after those there are."""
        self._current.eval(list(tokens), self.n_batch)

    def _init_sampler(self, **options: Any) -> _Sampling:
        return _Sampling(self, **options)

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,  # noqa: ARG002
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,  # noqa: ARG002
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        idx: int | None = None,
    ) -> int:
        """Chooses a token by the logits after the last one, or after that at ``idx``, which takes ``logits_all``."""
        sequence = self._current
        if not sequence.n:
            raise ValueError("nothing was evaluated to sample from: eval(tokens) first")
        if idx is not None and idx != sequence.n - 1:
            if sequence.rows is None:
                raise ValueError(f"idx is {idx}, of whose logits there are none: it takes logits_all=True")
            logits, ids = sequence.rows[idx], sequence.ids[: idx + 1]
        else:
            logits, ids = self._logits_of(sequence), sequence.tokens
        sampling = self._init_sampler(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta,
            mirostat_tau=mirostat_tau,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        return sampling.choose(ids, logits)

    def _logits_of(self, sequence: _Sequence) -> Scores:
        """The logits after the last token, which is computed again if they are not there: in a state there are none."""
        if sequence.logits is None:
            last = int(sequence.ids[sequence.n - 1])
            sequence.truncate(sequence.n - 1)
            sequence.eval([last], self.n_batch)
        assert sequence.logits is not None
        return sequence.logits

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,  # noqa: ARG002
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,  # noqa: ARG002
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        grammar: LlamaGrammar | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Tokens after a prompt, without end: whoever wants no more leaves. What is sent is computed before the next.

        With ``reset`` the prompt is the whole text, of which what is there already is not computed again; without, it
        follows what is there.
        """
        sampling = self._init_sampler(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            temp=temp,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            mirostat_mode=mirostat_mode,
            mirostat_eta=mirostat_eta,
            mirostat_tau=mirostat_tau,
            logits_processor=logits_processor,
            grammar=grammar,
        )
        sequence = self._take()
        try:
            yield from self._generate(sequence, list(tokens), sampling, stopping_criteria, reset=reset)
        finally:
            self._give(sequence)

    def _generate(
        self,
        sequence: _Sequence,
        tokens: list[int],
        sampling: _Sampling,
        stopping_criteria: StoppingCriteriaList | None,
        *,
        reset: bool = True,
    ) -> Generator[int, Sequence[int] | None, None]:
        if reset:
            common = sequence.common(tokens)
            if common < len(tokens) or common < sequence.n or sequence.logits is None:
                common = min(common, len(tokens) - 1)  # the logits after the last token are needed
            sequence.truncate(common)
            tokens = tokens[common:]
        while True:
            sequence.eval(tokens, self.n_batch)
            logits = self._logits_of(sequence)
            token = sampling.choose(sequence.tokens, logits)
            if stopping_criteria is not None and stopping_criteria(sequence.tokens, logits):
                return
            more = yield token
            tokens = [token, *(more or ())]

    # States

    def save_state(self) -> LlamaState:
        """What is computed: a fork of it, which copies nothing."""
        return self._state_of(self._current)

    def _state_of(self, sequence: _Sequence) -> LlamaState:
        config = self._opened.config
        of_a_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 2
        scores = None if sequence.rows is None else sequence.rows[: sequence.n].copy()
        session = sequence.session.fork()
        return LlamaState(sequence.ids.copy(), scores, sequence.n, session, of_a_token * sequence.n, self._seed)

    def load_state(self, state: LlamaState) -> None:
        """Goes back to a state."""
        self._seed = state.seed
        sequence = self._take()
        self._load(sequence, state)
        self._give(sequence)

    def _load(self, sequence: _Sequence, state: LlamaState) -> None:
        session = state._session(self._opened, self._n_ctx)
        sequence.session.close()
        sequence.session = session
        sequence.n = min(state.n_tokens, session.position)
        sequence.ids[: sequence.n] = state.input_ids[: sequence.n]
        sequence.logits = None
        if sequence.rows is not None and state.scores is not None:
            sequence.rows[: sequence.n] = state.scores[: sequence.n]

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Has states be kept, and gone on from when a prompt begins like one of them."""
        self.cache = cache

    def set_seed(self, seed: int) -> None:
        """The seed of what comes."""
        self._seed = seed

    # Completions

    def create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None = None,
        max_tokens: int | None = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        logprobs: int | None = None,
        echo: bool = False,
        stop: str | list[str] | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: int | None = None,
        tfs_z: float = 1.0,  # noqa: ARG002
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
    ) -> Any:
        """Continues a text: a ``CreateCompletionResponse``, or with ``stream`` an iterator of them.

        Raises:
            ValueError: if the prompt does not fit in the context, or an argument is out of range.
        """
        chunks = self._create_completion(
            prompt,
            suffix,
            -1 if max_tokens is None else max_tokens,
            logprobs,
            echo,
            [stop] if isinstance(stop, str) else stop or [],
            stream,
            seed,
            model,
            stopping_criteria,
            {
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "typical_p": typical_p,
                "temp": temperature,
                "repeat_penalty": repeat_penalty,
                "frequency_penalty": frequency_penalty,
                "presence_penalty": presence_penalty,
                "mirostat_mode": mirostat_mode,
                "mirostat_eta": mirostat_eta,
                "mirostat_tau": mirostat_tau,
                "logits_processor": logits_processor,
                "grammar": grammar,
                "logit_bias": logit_bias,
            },
        )
        if stream:
            return chunks
        with closing(chunks):
            return next(chunks)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """:meth:`create_completion`."""
        return self.create_completion(*args, **kwargs)

    def _create_completion(
        self,
        prompt: str | list[int],
        suffix: str | None,
        max_tokens: int,
        logprobs: int | None,
        echo: bool,
        stops: list[str],
        stream: bool,
        seed: int | None,
        model: str | None,
        stopping_criteria: StoppingCriteriaList | None,
        options: dict[str, Any],
    ) -> Generator[dict[str, Any], None, None]:
        fixed = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model_path if model is None else model,
        }

        def made(text: str, of_tokens: Any, finish_reason: str | None) -> dict[str, Any]:
            choice = {"text": text, "index": 0, "logprobs": of_tokens, "finish_reason": finish_reason}
            return {**fixed, "choices": [choice]}

        bos = self._tokenizer.bos
        ids = self._prompt(prompt, suffix)
        n_ctx, n_prompt = self._n_ctx, len(ids)
        if not ids:
            raise ValueError("the prompt is empty: it must have at least one token")
        if bos is not None and ids[:2] == [bos, bos]:
            name = self.detokenize([bos], special=True).decode("utf-8", "ignore")
            warnings.warn(
                f'Detected duplicate leading "{name}" in prompt, this will likely reduce response quality, consider '
                "removing it...",
                RuntimeWarning,
                stacklevel=3,
            )
        if n_prompt >= n_ctx:
            raise ValueError(f"Requested tokens ({n_prompt}) exceed context window of {n_ctx}")
        room = n_ctx - n_prompt
        max_tokens = min(max_tokens, room) if max_tokens > 0 else room
        bias = {int(token): float(x) for token, x in (options.pop("logit_bias") or {}).items()}
        if unknown := next((token for token in bias if not 0 <= token < self.n_vocab()), None):
            raise ValueError(f"logit_bias has token {unknown}, which is not in the vocabulary of {self.n_vocab()}")
        self._seed = random.Random(self._seed).randint(0, 2**32) if seed is None else seed
        sampling = self._init_sampler(**options, logit_bias=bias)
        text = Text(stops)
        answer: list[int] = []
        piece = self._piece
        finish_reason = "length"
        shown = prompt if isinstance(prompt, str) else self._text(prompt)
        scored: list[dict[str, Any]] = []
        sequence = self._take()
        try:
            if self.cache is not None:
                self._from_cache(sequence, ids)
            if echo and logprobs is not None:
                scored = self._score_prompt(sequence, ids, logprobs)
            with closing(self._generate(sequence, ids, sampling, stopping_criteria)) as tokens:
                for token in tokens:
                    if self._is_end(token):
                        finish_reason = "stop"
                        break
                    answer.append(token)
                    entry = None
                    if logprobs is not None:
                        assert sequence.logits is not None, "the token was chosen by them"
                        at = len(text.text) + (0 if echo and not stream else len(shown))
                        entry = self._score(token, sequence.logits, logprobs, at + (len(shown) if echo else 0))
                        scored.append(entry)
                    text.push(piece(token, ids, answer), entry)
                    if text.stopped:
                        finish_reason = "stop"
                        break
                    if stream:
                        for out, of_token in text.released():
                            yield made(out, _lists(of_token), None)
                    # A character is not cut: it has four bytes at most, and as many tokens.
                    n = len(answer)
                    if n >= max_tokens and (text.is_whole or n >= max_tokens + 3 or n > room):
                        break
                else:  # a criterion ended it
                    finish_reason = "stop"
            if self.cache is not None:
                self.cache[ids + answer] = self._state_of(sequence)
        finally:
            self._give(sequence)
        if stream:
            for out, of_token in text.released(final=True):
                yield made(out, _lists(of_token), None)
            yield made("", None, finish_reason)
            return
        whole = (shown if echo else "") + text.text
        if suffix is not None and self._fill_in() is None:
            whole += suffix
        completion = made(whole, None if logprobs is None else _joined(scored), finish_reason)
        completion["usage"] = {
            "prompt_tokens": n_prompt,
            "completion_tokens": len(answer),
            "total_tokens": n_prompt + len(answer),
        }
        yield completion

    def _prompt(self, prompt: str | list[int], suffix: str | None) -> list[int]:
        """The tokens of a prompt, and of what the answer is to fill in the middle of."""
        if not isinstance(prompt, str):
            return list(prompt)
        marks = self._fill_in() if suffix is not None else None
        if marks is None:
            return self.tokenizer_.tokenize(prompt.encode("utf-8", "replace"), True, True)
        before, after, middle = marks
        encode = self._tokenizer.encode
        begin, end = encode(prompt, parse_special=False), encode(suffix or "", add_special=False, parse_special=False)
        first = begin[:1] if begin and begin[0] == self._tokenizer.bos else []
        begin = begin[len(first) :]
        begin, end = [before, *begin], [after, *end]
        return [*first, *((end + begin) if self.spm_infill else (begin + end)), middle]

    def _fill_in(self) -> tuple[int, int, int] | None:
        """The tokens before a text, before what follows it and before what is in between, if the model has such."""
        names = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
        metadata = self._metadata
        found = [
            next((int(metadata[k]) for n in of if (k := f"tokenizer.ggml.{n}_token_id") in metadata), None)
            for of in names
        ]
        before, after, middle = found
        return None if before is None or after is None or middle is None else (before, after, middle)

    def _piece(self, token: int, prompt: list[int], answer: list[int]) -> bytes:
        """What the last token of an answer adds to its text."""
        tokenizer = self.tokenizer_
        if isinstance(tokenizer, LlamaTokenizer):
            return tokenizer._piece(token)
        return tokenizer.detokenize([token], prev_tokens=prompt + answer[:-1])

    def _text(self, tokens: Sequence[int]) -> str:
        return self.detokenize(list(tokens)).decode("utf-8", "ignore")

    def _score(self, token: int, logits: Scores, n: int, at: int) -> dict[str, Any]:
        """How likely a token was, and the most likely ones."""
        logprobs = logits.astype(np.float64)
        logprobs -= logprobs.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        best = np.argpartition(logprobs, -n)[-n:] if n else np.array([], dtype=int)
        best = best[np.argsort(-logprobs[best], kind="stable")]
        top = {self._text([int(i)]): float(logprobs[i]) for i in best}
        name, own = self._text([token]), float(logprobs[token])
        return {"tokens": name, "text_offset": at, "token_logprobs": own, "top_logprobs": top | {name: own}}

    def _score_prompt(self, sequence: _Sequence, ids: list[int], n: int) -> list[dict[str, Any]]:
        """The same of the tokens of a prompt, which is computed anew; the first has none."""
        sequence.truncate(0)
        scored: list[dict[str, Any]] = []
        at = 0
        last: Scores | None = None
        for begin in range(0, len(ids), self.n_batch):
            some = ids[begin : begin + self.n_batch]
            rows = sequence.session.logits(some)
            if sequence.rows is not None:
                sequence.rows[begin : begin + len(rows)] = rows
            for token, row in zip(some, rows, strict=True):
                if token != self._tokenizer.bos:
                    if last is None or not scored:
                        name = self._text([token])
                        entry = _NOTHING | {"tokens": name, "text_offset": at}
                    else:
                        entry = self._score(token, last, n, at)
                    scored.append(entry)
                    at += len(str(entry["tokens"]))
                last = row
            sequence.ids[begin : begin + len(some)] = some
        sequence.n, sequence.logits = len(ids), last
        return scored

    def _from_cache(self, sequence: _Sequence, ids: list[int]) -> None:
        """Goes to the state of the cache that has most of a prompt, if that has more than is there."""
        assert self.cache is not None
        try:
            state = self.cache[ids]
        except KeyError:
            return
        if common_prefix(state.input_ids[: state.n_tokens].tolist(), ids) > sequence.common(ids):
            self._load(sequence, state)

    def create_chat_completion(
        self,
        messages: list[Any],
        functions: list[Any] | None = None,
        function_call: Any = None,
        tools: list[Any] | None = None,
        tool_choice: Any = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        stream: bool = False,
        stop: str | list[str] | None = None,
        seed: int | None = None,
        response_format: Any = None,
        max_tokens: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        model: str | None = None,
        logits_processor: LogitsProcessorList | None = None,
        grammar: LlamaGrammar | None = None,
        logit_bias: dict[int, float] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Any:
        """Answers messages: a ``CreateChatCompletionResponse``, or with ``stream`` an iterator of its chunks."""
        options = {name: value for name, value in locals().items() if name != "self"}
        handler = self.chat_handler
        if handler is None:
            assert self.chat_format is not None
            is_own = self.chat_format == OF_THE_MODEL
            handler = handler_of_model if is_own else get_chat_completion_handler(self.chat_format)
        return handler(llama=self, **options)

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """The same as objects of the ``openai`` package."""
        try:
            from openai.types.chat import ChatCompletion, ChatCompletionChunk  # type: ignore[import-not-found, unused-ignore]
        except ImportError as e:
            raise ImportError(
                "To use create_chat_completion_openai_v1, you must install the openai package. "
                "You can install it with `pip install openai`."
            ) from e
        answer = self.create_chat_completion(*args, **kwargs)
        if kwargs.get("stream", False):
            return (ChatCompletionChunk(**chunk) for chunk in answer)
        return ChatCompletion(**answer)

    # Embeddings

    def create_embedding(self, input: str | list[str], model: str | None = None) -> CreateEmbeddingResponse:
        """Vectors of texts, in OpenAI's shape."""
        vectors, count = self.embed([input] if isinstance(input, str) else input, return_count=True)
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": v, "index": i} for i, v in enumerate(vectors)],
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """Vectors of texts; of each token, if neither the file nor ``pooling_type`` says how they become one."""
        if not self._embedding:
            raise RuntimeError("Llama model must be created with embedding=True to call this method")
        texts = [input] if isinstance(input, str) else input
        ids = [self.tokenize(text.encode("utf-8")) for text in texts]
        if truncate:
            ids = [of[: self.n_batch] for of in ids]
        count = sum(map(len, ids))
        if longest := max((len(of) for of in ids if len(of) > self.n_batch), default=0):
            raise ValueError(f"Requested tokens ({longest}) exceed batch size of {self.n_batch}")
        pooling = POOLINGS.get(self.pooling_type())
        if pooling is None:
            raise UnsupportedModelError(f"{self.model_path}: pooling_type {self.pooling_type()}", self.model_path)
        made: Any = self._opened.embed(ids, pooling=pooling, normalize=normalize)
        vectors: list[Any] = [vector.tolist() for vector in made]
        output = vectors[0] if isinstance(input, str) else vectors
        return (output, count) if return_count else output

    # What the model is

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Ids of a text in UTF-8."""
        return self.tokenizer_.tokenize(text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """The text of ids, in UTF-8; that of control tokens only if ``special``."""
        return self.tokenizer_.detokenize(tokens, prev_tokens=prev_tokens, special=special)

    def tokenizer(self) -> LlamaTokenizer:
        """The tokenizer of the file."""
        return LlamaTokenizer(self)

    @property
    def _metadata(self) -> Any:
        return self._model.metadata if self._model else {}

    @property
    def metadata(self) -> dict[str, str]:
        """The keys of the file that are no arrays, their values as text."""
        return {
            key: _said(value) for key, value in self._metadata.items() if isinstance(value, (bool, int, float, str))
        }

    def n_ctx(self) -> int:
        """Positions of the context."""
        return self._n_ctx

    def n_embd(self) -> int:
        """Numbers of a vector."""
        return self._opened.config.dim

    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self._tokenizer.vocab_size

    def token_eos(self) -> int:
        """The end-of-text token; -1 if there is none."""
        return -1 if self._tokenizer.eos is None else self._tokenizer.eos

    def token_bos(self) -> int:
        """The beginning-of-text token; -1 if there is none."""
        return -1 if self._tokenizer.bos is None else self._tokenizer.bos

    def token_nl(self) -> int:
        """The token of a newline; -1 if it takes several."""
        ids = self._tokenizer.encode("\n", add_special=False)
        return ids[-1] if ids else -1

    def pooling_type(self) -> int:
        """How the vectors of tokens become one: as asked for, or as the file says, or not at all."""
        if self._pooling != -1:
            return self._pooling
        value = self._metadata.get(f"{self._opened.config.architecture}.pooling_type", 0)
        return value if isinstance(value, int) else 0

    def close(self) -> None:
        """Frees the model."""
        with self._guard:
            model, self._model, self._sequence = self._model, None, None
        if model is not None:
            model.close()

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments | {"seed": self._seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, **state)

    @staticmethod
    def logits_to_logprobs(logits: Scores | list[float], axis: int = -1) -> Scores:
        """Log-probabilities, float32."""
        x = np.asarray(logits, dtype=np.single)
        most = np.amax(x, axis=axis, keepdims=True)
        x = x - np.where(np.isfinite(most), most, 0)
        with np.errstate(divide="ignore"):
            made: Scores = x - np.log(np.sum(np.exp(x), axis=axis, keepdims=True))
        return made

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens two sequences begin with alike."""
        return common_prefix(a, b)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: list[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",  # noqa: ARG003  # the hub has no such any more
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """A model of the Hugging Face hub, by a pattern of its file name. It takes the ``huggingface-hub`` package."""
        try:
            from huggingface_hub import (  # type: ignore[import-not-found, unused-ignore]
                HfFileSystem,
                hf_hub_download,
            )
        except ImportError as e:
            raise ImportError(
                "Llama.from_pretrained requires the huggingface-hub package. "
                "You can install it with `pip install huggingface-hub`."
            ) from e
        local, cache = (None if where is None else os.fspath(where) for where in (local_dir, cache_dir))
        listed = HfFileSystem().ls(repo_id, recursive=True)
        names = [f["name"] if isinstance(f, dict) else f for f in listed]
        files = [os.path.relpath(name, repo_id) for name in names]

        def download(pattern: str) -> str:
            matching = [file for file in files if fnmatch.fnmatch(file, pattern)]
            if len(matching) != 1:
                what = "No file found in" if not matching else "Multiple files found in"
                how = "that match" if not matching else "matching"
                raise ValueError(f"{what} {repo_id} {how} {pattern}\n\nAvailable Files:\n{files}")
            path: str = hf_hub_download(repo_id=repo_id, filename=matching[0], local_dir=local, cache_dir=cache)
            return path

        path = download(filename or "*.gguf")
        for name in additional_files or ():
            download(name)
        return cls(model_path=path, **kwargs)


_NOTHING: dict[str, Any] = {"tokens": "", "text_offset": 0, "token_logprobs": None, "top_logprobs": None}
"""What is known of a token that has none before it."""


def _said(value: bool | int | float | str) -> str:
    """A value of the metadata, as llama.cpp writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _lists(entry: dict[str, Any] | None) -> dict[str, list[Any]] | None:
    """The log-probabilities of one token."""
    return None if entry is None else {name: [value] for name, value in entry.items()}


def _joined(entries: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Those of several."""
    names = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    return {name: [entry[name] for entry in entries] for name in names}
