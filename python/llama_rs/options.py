"""What can be said about an answer: the parameters, their checks and their defaults.

All of it comes from one table in Rust, which :data:`PARAMETERS` has as data. What is written out here is what a type
checker has to see; a test holds it against the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypedDict, Unpack

from . import _core

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

Messages = str | Sequence[Mapping[str, Any]]
"""A conversation: mappings with ``role`` and ``content``, and whatever else the template of the model uses. Text alone
is one message of the user."""

Tools = Sequence[Mapping[str, Any] | Callable[..., Any]]
"""What a model may call: functions, or descriptions of them as OpenAI's API has them."""


class Parameter(NamedTuple):
    """A row of the table of parameters."""

    group: Literal["sampling", "generation", "prompt", "session"]
    """What it is about. Those of the first three groups are the fields of :class:`SamplingParams`."""
    name: str
    kind: Literal["bool", "int", "float", "choice", "strings", "biases"]
    """``strings``: one or several texts. ``biases``: a mapping of floats by token id."""
    default: Any
    optional: bool
    """Whether it may be None, which leaves it open."""
    minimum: int | float | None
    """The least value; None for no limit."""
    maximum: int | float | None
    """The largest value; None for no limit."""
    above: bool
    """Whether the least value itself is out of range."""
    choices: tuple[str, ...]
    help: str
    """What it does: a phrase without a capital or a full stop."""


PARAMETERS: Mapping[str, Parameter] = {row[1]: Parameter(*row) for row in _core.parameters()}
"""The table of parameters by name."""


class GenerateOptions(TypedDict, total=False):
    """The options of an answer, as keywords; :class:`SamplingParams` says what they mean."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: str | Sequence[str]
    ignore_eos: bool
    on_overflow: OnOverflow
    n_keep: int
    add_special: bool
    parse_special: bool


class SamplingParams:
    """How an answer is made: checked, and never changed afterwards.

    >>> careful = SamplingParams(temperature=0.2, max_tokens=200)
    >>> model.generate("Once upon a time", sampling=careful, seed=7)

    Args:
        max_tokens: the most tokens to generate; by default until the model ends its answer or the context is full.
        temperature: divides the logits: below 1 the choice is more predictable, above 1 more varied; 0 always takes the
            most likely token.
        top_k: choose among this many of the most likely tokens; 0 for all.
        top_p: choose among the most likely tokens whose probabilities add up to this; 1 for all.
        min_p: choose among tokens that are at least this likely relative to the most likely one; 0 for all.
        repeat_penalty: divides the logits of tokens already seen, or multiplies them if negative: above 1 they become
            less likely.
        repeat_last_n: how many of the last tokens the penalties look at; 0 for none.
        presence_penalty: subtracted from the logit of each token already seen.
        frequency_penalty: subtracted from the logit of each token already seen, once per occurrence.
        logit_bias: added to the logits of these token ids before anything else; minus infinity rules a token out.
        seed: where the random numbers start: the same seed gives the same answer; by default a new one is drawn each
            time.
        stop: strings that end the answer; they are not part of it.
        ignore_eos: go on when the model wants to end its answer.
        on_overflow: what to do when the context is full: stop ends the answer; shift keeps the first n_keep tokens,
            forgets the older half of the others and goes on.
        n_keep: how many tokens from the start a shift keeps; -1 for the whole prompt.
        add_special: put the tokens around the text that the model expects, such as a beginning-of-text.
        parse_special: read <|im_start|> and the like in the text as the special tokens that they name.

    Raises:
        ValueError: if a value is out of range: its name, the value and the range.
        TypeError: if a value is of another type.
    """

    __slots__ = tuple(GenerateOptions.__annotations__)

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: Sequence[str]
    ignore_eos: bool
    on_overflow: OnOverflow
    n_keep: int
    add_special: bool
    parse_special: bool

    def __init__(self, **options: Unpack[GenerateOptions]) -> None:
        for name in options:
            if name not in self.__slots__:
                raise TypeError(f"got an unexpected keyword argument {name!r}")
        values: dict[str, Any] = {name: PARAMETERS[name].default for name in self.__slots__} | options
        _core.check(values)
        values["stop"] = (values["stop"],) if isinstance(values["stop"], str) else tuple(values["stop"])
        values["logit_bias"] = dict(values["logit_bias"])
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def replace(self, **options: Unpack[GenerateOptions]) -> SamplingParams:
        """The same with other values for some of them."""
        values: Any = dict(self)
        return SamplingParams(**values | options) if options else self

    __replace__ = replace  # for copy.replace

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Names and values: ``dict(params)`` are the keywords that make it."""
        return ((name, getattr(self, name)) for name in self.__slots__)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"cannot set {name}: SamplingParams never change, use replace({name}=...)")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"cannot delete {name}: SamplingParams never change")

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, SamplingParams) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(tuple(sorted(v.items())) if isinstance(v, dict) else v for _, v in self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _sampling_params, (dict(self),)

    def __repr__(self) -> str:
        said = (f"{name}={value!r}" for name, value in self if value != PARAMETERS[name].default)
        return f"SamplingParams({', '.join(said)})"


def _sampling_params(options: GenerateOptions) -> SamplingParams:
    """As it was pickled."""
    return SamplingParams(**options)


def merged(sampling: SamplingParams | None, options: GenerateOptions) -> SamplingParams:
    """What ``sampling`` says, but for what the keywords say."""
    if sampling is None:
        return SamplingParams(**options)
    if not isinstance(sampling, SamplingParams):
        raise TypeError(f"sampling is of type {type(sampling).__name__}, it must be SamplingParams or None")
    return sampling.replace(**options)


def default_threads() -> int:
    """``LLAMA_RS_THREADS``, else the cores that this process may use.

    Raises:
        ValueError: if the variable is no such number.
    """
    text = os.environ.get("LLAMA_RS_THREADS", "").strip()
    if not text:
        return _core.available_threads()
    most = PARAMETERS["threads"].maximum
    assert isinstance(most, int), "the table has it"
    if text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= most:
        return int(text)
    raise ValueError(f"LLAMA_RS_THREADS is {text!r}, it must be a whole number from 1 to {most}")
