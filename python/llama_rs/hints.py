"""The types of what methods take and give, for annotations; imported when somebody asks what those mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from .lazy import np, npt
from .model import Model

FinishReason = Literal["stop", "length"]
"""Why an answer ended: the model or a stop string ended it, or ``max_tokens`` or the context did."""

KvType = Literal["f16", "q8_0"]
"""How keys and values are stored."""

Load = Literal["mmap", "read"]
"""How a model file is brought into memory."""

OnOverflow = Literal["stop", "shift"]
"""What to do when the context is full."""

Pooling = Literal["mean", "cls", "last", "none"]
"""How the vectors of a text's tokens become one."""

LogitsProcessor = Callable[["npt.NDArray[np.int64]", "npt.NDArray[np.float32]"], object]
"""A function that changes logits: it is called with the token ids so far, the prompt's among them, and the logits,
``(vocab_size,)``. It changes these in place, or gives an array of others."""

Schema = Mapping[str, Any] | bool | str
"""A JSON schema, or its text."""

Messages = str | Sequence[Mapping[str, Any]]
"""A conversation: mappings with ``role`` and ``content``, and whatever else the template of the model uses. Text alone
is one message of the user."""

Tools = Sequence[Mapping[str, Any] | Callable[..., Any]]
"""What a model may call: functions, or descriptions of them as OpenAI's API has them."""


Lora = (
    str
    | os.PathLike[str]
    | tuple[str | os.PathLike[str], float]
    | Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], float]]
)
"""Adapters: the path of one, a pair of a path and how strong it is, or a list of such."""

ParameterGroup = Literal["sampling", "generation", "prompt", "session"]
"""What a parameter is about."""

ParameterKind = Literal["bool", "int", "float", "choice", "words", "text", "strings", "json", "biases", "functions"]
"""What a parameter's values are."""

Speculative = Literal["prompt-lookup"] | Model
"""What guesses tokens ahead."""

CalibrationKind = Literal["content_free", "batch", "none"]
"""What of a model's preferences is taken out of a classification."""

ScoreNormalization = Literal["mean", "sum"]
"""How log-probabilities of a label's tokens become its score."""

ChatFinishReason = Literal["stop", "length", "tool_calls"]
"""Why an answer ended: as :data:`FinishReason`, or because the model calls tools and waits for what they give."""


class GenerateOptions(TypedDict, total=False):
    """The options of an answer, as keywords; :class:`SamplingParams` says what they mean."""

    max_tokens: int | None
    temperature: float
    dynatemp_range: float
    dynatemp_exponent: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: str | Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    samplers: str | Sequence[str]
    logit_bias: Mapping[int, float]
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, Any] | str | None
    json_schema: Schema | None
    grammar: str | None
    regex: str | None
    choices: str | Sequence[str]
    on_overflow: OnOverflow
    n_keep: int
    add_special: bool
    parse_special: bool


class ChatOptions(GenerateOptions, total=False):
    """The options of an answer to a conversation, as keywords; :meth:`Model.chat` says what they mean."""

    tools: Tools | None
    tool_choice: str | Mapping[str, Any] | None
    reasoning: bool | Literal["low", "medium", "high"] | None
    reasoning_format: Literal["auto", "none"]
    continue_final: bool
    speculative: Speculative | None
    chat_family: str | None
    template_options: Mapping[str, Any] | None
