"""The compiled part of llama_rs. Private: use the classes of `llama_rs`."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, final

__all__ = [
    "Adapter",
    "Array",
    "Asking",
    "Bell",
    "Chat",
    "ChatParser",
    "Checkpoint",
    "Collector",
    "Engine",
    "Floats",
    "Generation",
    "Model",
    "Order",
    "Quantizer",
    "Sampler",
    "Server",
    "Session",
    "Tensor",
    "Ticket",
    "Tokenizer",
    "available_threads",
    "check",
    "content_free",
    "convert_directory",
    "cpu",
    "encodable_types",
    "generate_batch",
    "label_prior",
    "label_probabilities",
    "merge",
    "mixes",
    "parameters",
    "perf",
    "split",
]

def cpu() -> str: ...
def mixes() -> list[tuple[str, str]]: ...
def encodable_types() -> list[str]: ...
def available_threads() -> int: ...
def parameters() -> list[tuple[Any, ...]]: ...
def check(values: dict[str, Any]) -> None: ...
def convert_directory(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    output_type: str,
    n_threads: int | None,
    on_progress: Callable[[int, int], object] | None,
) -> None: ...
def perf(
    host: str,
    port: int,
    path: str,
    key: str | None,
    bodies: Sequence[str],
    requests: int,
    *,
    clients: int | None,
    rate: float | None,
    cancel: float,
    timeout: float,
    seed: int,
) -> list[tuple[float, list[float], float, int, int, int, int, bool, str | None]]: ...
def split(
    source: str | os.PathLike[str],
    prefix: str | os.PathLike[str],
    max_tensors: int | None,
    max_size: int | None,
    on_progress: Callable[[int, int], object] | None,
) -> list[Path]: ...
def merge(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    on_progress: Callable[[int, int], object] | None,
) -> None: ...

@final
class Array:
    def __len__(self, /) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...

@final
class Checkpoint:
    def __new__(cls, path: str | os.PathLike[str]) -> Checkpoint: ...
    def tensor_names(self) -> list[str]: ...
    def tensor_spans(self) -> list[tuple[str, int, int]]: ...
    def tensor(self, name: str) -> Tensor | None: ...
    def metadata_keys(self) -> list[str]: ...
    def metadata_value(self, key: str) -> Any: ...
    def views(self) -> int: ...
    def fingerprint(self) -> tuple[int, int, int]: ...
    def files(self) -> list[tuple[str, int, int, int]]: ...
    def size(self) -> int: ...
    def note(self) -> str | None: ...
    def residency_known(self) -> bool: ...
    def resident(self, start: int, end: int) -> int: ...
    def read_in(self, start: int, end: int) -> None: ...
    def enlarge_pages(self, start: int, end: int, drop: bool) -> None: ...
    def sync(self) -> None: ...
    def lock(self) -> None: ...

@final
class Tensor:
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def offset(self) -> int: ...
    def dequantize(self) -> Floats: ...
    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class Floats:
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

@final
class Tokenizer:
    def __new__(cls, path: str | os.PathLike[str]) -> Tokenizer: ...
    @staticmethod
    def entries(directory: str | os.PathLike[str]) -> list[tuple[str, Any]]: ...
    def checkpoint(self) -> Checkpoint: ...
    def encode(self, text: str, add_special: bool, parse_special: bool, at_most: int | None) -> list[int]: ...
    def take_notes(self) -> list[str]: ...
    def decode(self, ids: Sequence[int], skip_special: bool) -> str: ...
    def token_bytes(self, id: int) -> bytes: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    def is_special(self, id: int) -> bool: ...
    def is_end_of_generation(self, id: int) -> bool: ...

@final
class Model:
    def __new__(cls, path: str | os.PathLike[str], load: str, prefault: bool, lock: bool) -> Model: ...
    def config(self) -> dict[str, Any]: ...
    def checkpoint(self) -> Checkpoint: ...
    def tokenizer(self) -> Tokenizer: ...
    def check(self, context_length: int, threads: int, kv_type: str) -> None: ...
    def has_tokens_of(self, other: Model) -> bool: ...
    def adapter(self, path: str | os.PathLike[str]) -> Adapter: ...
    def session(
        self, context_length: int, threads: int, kv_type: str, lora: Sequence[tuple[Adapter, float]]
    ) -> Session: ...
    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        pooling: str | None,
        normalize: bool,
        dimensions: int | None,
        truncate: bool,
        context_length: int,
        threads: int,
        kv_type: str,
        lora: Sequence[tuple[Adapter, float]],
    ) -> tuple[Floats, list[int]]: ...
    def pairs(self, query: str, documents: list[str]) -> list[list[int]]: ...
    def rank(
        self,
        texts: Sequence[Sequence[int]],
        context_length: int,
        threads: int,
        kv_type: str,
        lora: Sequence[tuple[Adapter, float]],
    ) -> list[list[float]]: ...
    def load_session(
        self,
        path: str | os.PathLike[str],
        context_length: int,
        threads: int,
        kv_type: str,
        prefix: bool,
        lora: Sequence[tuple[Adapter, float]],
    ) -> Session: ...

@final
class Adapter:
    @property
    def n_matrices(self) -> int: ...

@final
class Session:
    @property
    def position(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    @property
    def tokens(self) -> list[int]: ...
    def close(self, with_model: bool) -> None: ...
    def truncate(self, n: int) -> None: ...
    def fork(self) -> Session: ...
    def shift(self, n_keep: int, n_discard: int) -> None: ...
    def save(self, path: str | os.PathLike[str], prefix: int | None) -> None: ...
    def forward(self, tokens: Sequence[int]) -> Floats: ...
    def forward_all(self, tokens: Sequence[int]) -> Floats: ...
    def bench(self, n: int, generate: bool, rounds: int) -> list[float]: ...
    def label_scores(
        self, choices: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], with_end: bool, by_sum: bool
    ) -> list[list[float]]: ...
    def negative_log_likelihood(self, tokens: Sequence[int], first: int) -> list[float]: ...

@final
class Server:
    def __new__(
        cls,
        models: Sequence[tuple[str, str, Model, int, int, str]],
        *,
        host: str,
        port: int,
        unix: str | os.PathLike[str] | None,
        api_keys: Sequence[str],
        admin_key: str | None,
        cors: Sequence[str],
        allowed_hosts: Sequence[str],
        strict: bool,
        strict_model: bool,
        share_prefixes: bool,
        access_log: bool,
        metrics_names: Sequence[str],
        traces: bool,
        request_timeout: float | None,
        parallel: int,
        max_queue: int,
        max_queued_tokens: int,
        kv_bytes: int,
        step: float,
        defaults: dict[str, Any],
    ) -> Server: ...
    @property
    def address(self) -> str: ...
    @property
    def has_crashed(self) -> bool: ...
    def wait(self, seconds: float) -> bool: ...
    def drain(self, grace: float, patience: float) -> None: ...
    def stop(self) -> None: ...
    def put(
        self,
        name: str,
        number: str,
        model: Model,
        context_length: int,
        threads: int,
        kv_type: str,
        defaults: dict[str, Any],
        is_default: bool,
    ) -> None: ...
    def remove(self, name: str, number: str | None) -> bool: ...
    def fail(self, name: str, number: str, why: str) -> None: ...
    def next_order(self, seconds: float) -> Order | None: ...
    def next_span(self, seconds: float) -> str | None: ...
    def pin(self, path: str | os.PathLike[str]) -> int: ...

@final
class Order:
    @property
    def load(self) -> bool: ...
    @property
    def model(self) -> str: ...
    @property
    def number(self) -> str | None: ...
    def done(self, error: str | None) -> None: ...

@final
class Chat:
    def __new__(
        cls,
        tokenizer: Tokenizer,
        source: str | None,
        path: str | os.PathLike[str],
        for_tools: str | None = None,
    ) -> Chat: ...
    def render(self, trusted: dict[str, Any], written: dict[str, Any], now: int) -> str: ...
    def encode(self, trusted: dict[str, Any], written: dict[str, Any], now: int, at_most: int) -> list[int]: ...
    def prompt(
        self,
        messages: Any,
        tools: Any | None,
        variables: dict[str, Any],
        now: int,
        at_most: int,
        add_generation_prompt: bool,
        continue_final: bool,
    ) -> tuple[list[int], str]: ...
    def parser(
        self,
        tools: Any | None,
        calls: str,
        reasoning: bool,
        family: str | None,
        end: str,
        seed: int,
    ) -> ChatParser: ...
    def marks(self, with_tools: bool, family: str | None) -> tuple[list[int], str | None]: ...

@final
class ChatParser:
    def push(self, text: str) -> list[tuple[str, int, str, str]]: ...
    def finish(self, cut_off: bool) -> list[tuple[str, int, str, str]]: ...
    @property
    def in_reasoning(self) -> bool: ...

@final
class Asking:
    def __new__(
        cls,
        tokenizer: Tokenizer,
        chat: Chat | None,
        answers: Sequence[str],
        instructions: str | None,
        template: str | None,
        examples: Sequence[tuple[str, str]],
        options: dict[str, Any],
    ) -> Asking: ...
    @property
    def is_chat(self) -> bool: ...
    def choices(self, text: str) -> tuple[list[int], list[list[int]]]: ...

def content_free() -> list[str]: ...
def label_prior(rows: Sequence[Sequence[float]]) -> list[float]: ...
def label_probabilities(
    rows: Sequence[Sequence[float]], prior: Sequence[float], multi_label: bool
) -> list[list[float]]: ...

@final
class Generation:
    def __new__(
        cls,
        session: Session,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: dict[str, Any],
        lookup: bool = False,
        draft: Session | None = None,
        free_until: tuple[Sequence[str], bool] | None = None,
        marks: Sequence[int] = ...,
        moved: bool = False,
    ) -> Generation: ...
    def next(self, session: Session) -> str | None: ...
    def finish(self, session: Session) -> None: ...
    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[tuple[int, float, list[tuple[int, float]]]]: ...
    @property
    def finish_reason(self) -> Literal["stop", "length"] | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def timings(self) -> tuple[int, float, int, float, int, int, int]: ...

_Logprobs = list[tuple[int, float, list[tuple[int, float]]]]

def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: Sequence[dict[str, Any]],
    context_length: int,
    threads: int,
    kv_type: str,
    parallel: int,
    lora: Sequence[tuple[Adapter, float]],
) -> list[tuple[str, list[int], Literal["stop", "length"], tuple[int, float, int, float, int], int, _Logprobs]]: ...

@final
class Engine:
    def __new__(
        cls, parallel: int, max_queue: int, max_queued_tokens: int, kv_memory: int | None, step_ms: float
    ) -> Engine: ...
    def submit(
        self,
        model: Model,
        prompt: Sequence[int],
        options: dict[str, Any],
        context_length: int,
        threads: int,
        kv_type: str,
        client: int,
        priority: int,
        timeout: float | None,
        bell: Bell,
        id: int,
        lora: Sequence[tuple[Adapter, float]],
        marks: Sequence[int],
        free_until: str | None,
    ) -> Ticket: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...

@final
class Ticket:
    def take(
        self,
    ) -> (
        tuple[
            str, list[int], _Logprobs, tuple[str, BaseException | None, tuple[int, float, int, float, int], int] | None
        ]
        | None
    ): ...
    def cancel(self) -> None: ...

@final
class Bell:
    def __new__(cls) -> Bell: ...
    def fileno(self) -> int: ...
    def take(self) -> list[int]: ...

@final
class Sampler:
    def __new__(cls, tokenizer: Tokenizer, options: dict[str, Any]) -> Sampler: ...
    def sample(self, logits: Any, tokens: Sequence[int]) -> int | None: ...
    @property
    def seed(self) -> int: ...

@final
class Collector:
    def __new__(cls, model: Model) -> Collector: ...
    def write(self, path: str | os.PathLike[str], dataset: str, chunks: int, chunk_size: int) -> None: ...

@final
class Quantizer:
    def __new__(
        cls,
        checkpoint: Checkpoint,
        mix: str,
        *,
        output: str | None,
        token_embedding: str | None,
        tensors: dict[str, str],
        imatrix: str | os.PathLike[str] | None,
        pure: bool,
        allow_requantize: bool,
        dry: bool,
    ) -> Quantizer: ...
    def tensors(self) -> list[tuple[str, str, int]]: ...
    def write(
        self, path: str | os.PathLike[str], n_threads: int, on_progress: Callable[[int, int], object] | None
    ) -> None: ...
