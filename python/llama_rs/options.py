"""What can be said about an answer: the parameters, their checks and their defaults.

All of it comes from one table in Rust, which :data:`PARAMETERS` has as data. What is written out here is what a type
checker has to see; a test holds it against the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from . import _core
from .lazy import NamedTuple, hints, np, npt, typing  # noqa: F401  # hints name numpy


class Parameter(NamedTuple):
    """A row of the table of parameters."""

    group: hints.ParameterGroup
    """What it is about. Those of the first three groups are the fields of :class:`SamplingParams`."""
    name: str
    kind: hints.ParameterKind
    """``words``: some of the choices, in an order. ``strings``: one or several texts. ``json``: a mapping or its text.
    ``biases``: a mapping of floats by token id."""
    default: typing.Any
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


class SamplingParams:
    """How an answer is made: checked, and never changed afterwards.

    >>> careful = SamplingParams(temperature=0.2, max_tokens=200)
    >>> model.generate("Once upon a time", sampling=careful, seed=7)

    Args:
        max_tokens: the most tokens to generate; by default until the model ends its answer or the context is
            full.
        temperature: divides the logits: below 1 the choice is more predictable, above 1 more varied; 0 always
            takes the most likely token.
        dynatemp_range: the temperature goes this far down where the model is sure of the next token, and this
            far up where it is not; 0 keeps it.
        dynatemp_exponent: how a dynamic temperature follows from how unsure the model is, a number from 0 to 1:
            as its power.
        top_k: choose among this many of the most likely tokens; 0 for all.
        top_p: choose among the most likely tokens whose probabilities add up to this; 1 for all.
        min_p: choose among tokens that are at least this likely relative to the most likely one; 0 for all.
        typical_p: choose among the tokens that are about as surprising as is to be expected, whose
            probabilities add up to this; 1 for all.
        top_n_sigma: choose among tokens whose logit is at most this many standard deviations below the largest;
            0 or less for all.
        xtc_probability: how often the most likely tokens are left out, where others are likely enough; 0 for
            never.
        xtc_threshold: how likely is likely enough for that: of the tokens that are, all but the least likely
            are left out; above 0.5 never.
        repeat_penalty: divides the logits of tokens already seen, or multiplies them if negative: above 1 they
            become less likely.
        repeat_last_n: how many of the last tokens the penalties look at; 0 for none, -1 for all.
        presence_penalty: subtracted from the logit of each token already seen.
        frequency_penalty: subtracted from the logit of each token already seen, once per occurrence.
        dry_multiplier: the DRY penalty of a token that goes on with a sequence which was there before: this,
            times dry_base to the power of how much longer than dry_allowed_length the sequence is; 0 for none.
        dry_base: what the DRY penalty is multiplied by for each token of the sequence.
        dry_allowed_length: how long such a sequence may be without a DRY penalty.
        dry_penalty_last_n: how many of the last tokens are searched for such sequences; 0 for none, -1 for all.
        dry_sequence_breakers: strings that such a sequence does not go across.
        mirostat: version 1 or 2 of Mirostat, which keeps the text as surprising as mirostat_tau says, instead
            of top_k, top_p and the like; 0 for none.
        mirostat_tau: the surprise that Mirostat keeps, in bits a token.
        mirostat_eta: how fast Mirostat corrects itself.
        samplers: which steps choose a token, in which order; each does what its own parameters say.
        logit_bias: added to the logits of these token ids before anything else; minus infinity rules a token
            out.
        logits_processor: a function, or several, that change the logits before a token is chosen: it is called
            with the token ids so far and the logits, a numpy array to change in place, which is of no use after
            the call.
        seed: where the random numbers start: the same seed gives the same answer; by default a new one is drawn
            each time.
        stop: strings that end the answer; they are not part of it.
        ignore_eos: go on when the model wants to end its answer.
        logprobs: keep the logarithm of the probability of each token of the answer, as the model has it, before
            any penalty, temperature or grammar.
        top_logprobs: keep those of so many of the most likely tokens beside each, too.
        response_format: the form of the answer, as OpenAI's API has it: of the type text, json_object or
            json_schema.
        json_schema: the answer is JSON that is valid by this schema.
        grammar: the answer follows this grammar, in llama.cpp's GBNF or in Lark as llguidance has it.
        regex: the whole answer matches this regular expression.
        choices: the answer is one of these.
        on_overflow: what to do when the context is full: stop ends the answer; shift keeps the first n_keep
            tokens, forgets the older half of the others and goes on.
        n_keep: how many tokens from the start a shift keeps; -1 for the whole prompt.
        add_special: put the tokens around the text that the model expects, such as a beginning-of-text.
        parse_special: read <|im_start|> and the like in the text as the special tokens that they name.

    Raises:
        ValueError: if a value is out of range: its name, the value and the range.
        TypeError: if a value is of another type.
    """

    __slots__ = tuple(name for name, row in PARAMETERS.items() if row.group != "session")

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
    dry_sequence_breakers: Sequence[str]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    samplers: Sequence[str]
    logit_bias: Mapping[int, float]
    logits_processor: Sequence[hints.LogitsProcessor] | None
    seed: int | None
    stop: Sequence[str]
    ignore_eos: bool
    logprobs: bool
    top_logprobs: int
    response_format: Mapping[str, typing.Any] | str | None
    json_schema: hints.Schema | None
    grammar: str | None
    regex: str | None
    choices: Sequence[str]
    on_overflow: hints.OnOverflow
    n_keep: int
    add_special: bool
    parse_special: bool

    def __init__(self, **options: typing.Unpack[hints.GenerateOptions]) -> None:
        for name in options:
            if name not in self.__slots__:
                raise TypeError(f"got an unexpected keyword argument {name!r}")
        values: dict[str, typing.Any] = {name: PARAMETERS[name].default for name in self.__slots__} | options
        _core.check(values)
        for name, value in values.items():
            object.__setattr__(self, name, _held(PARAMETERS[name].kind, value))

    def replace(self, **options: typing.Unpack[hints.GenerateOptions]) -> SamplingParams:
        """The same with other values for some of them."""
        values: typing.Any = dict(self)
        return SamplingParams(**values | options) if options else self

    __replace__ = replace  # for copy.replace

    @property
    def _wants_logprobs(self) -> bool:
        return self.logprobs or self.top_logprobs > 0

    def __iter__(self) -> Iterator[tuple[str, typing.Any]]:
        """Names and values: ``dict(params)`` are the keywords that make it."""
        return ((name, getattr(self, name)) for name in self.__slots__)

    def __setattr__(self, name: str, value: object) -> typing.NoReturn:
        raise AttributeError(f"cannot set {name}: SamplingParams never change, use replace({name}=...)")

    def __delattr__(self, name: str) -> typing.NoReturn:
        raise AttributeError(f"cannot delete {name}: SamplingParams never change")

    def __eq__(self, other: object) -> bool:
        return dict(self) == dict(other) if isinstance(other, SamplingParams) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(repr(v) if isinstance(v, dict) else v for _, v in self))

    def __reduce__(self) -> tuple[typing.Any, ...]:
        return _sampling_params, (dict(self),)

    def __repr__(self) -> str:
        said = (
            f"{name}={value!r}"
            for name, value in self
            if value != _held(PARAMETERS[name].kind, PARAMETERS[name].default)
        )
        return f"SamplingParams({', '.join(said)})"


def _held(kind: str, value: typing.Any) -> typing.Any:
    """A value as it is kept: nobody else's, and the same in whatever way it was given."""
    if kind == "biases":
        return dict(sorted(value.items()))
    if kind == "words" and isinstance(value, str):
        return tuple(filter(None, value.split(";")))
    if kind in ("strings", "words", "functions") and value is not None:
        return (value,) if isinstance(value, str) or callable(value) else tuple(value)
    if kind == "json" and isinstance(value, Mapping):
        from copy import deepcopy

        return deepcopy(dict(value))
    return value


def _sampling_params(options: hints.GenerateOptions) -> SamplingParams:
    """As it was pickled."""
    return SamplingParams(**options)


def merged(sampling: SamplingParams | None, options: hints.GenerateOptions) -> SamplingParams:
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


def adapters(lora: hints.Lora) -> tuple[tuple[str, float], ...]:
    """Adapters as pairs of a path and how strong each is.

    Raises:
        TypeError: if one is neither a path nor such a pair.
    """
    if isinstance(lora, (str, os.PathLike)) or _is_pair(lora):
        lora = [lora]  # type: ignore[list-item]
    if not isinstance(lora, Sequence):
        raise TypeError(f"lora is of type {type(lora).__name__}, it must be a path, a path and a number, or a list")
    found = []
    for item in lora:
        path, scale = item if isinstance(item, tuple) and _is_pair(item) else (item, 1.0)
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"an adapter is of type {type(path).__name__}, it must be a path, or a path and a number")
        found.append((os.fspath(path), float(scale)))
    return tuple(found)


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], (int, float))
