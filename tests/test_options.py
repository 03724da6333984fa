"""The table of parameters, and what Python makes of it."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_rs
import pytest
from llama_rs import GenerateOptions, Model, SamplingParams, Tokenizer
from llama_rs.chat import CHAT_OPTIONS
from llama_rs.options import PARAMETERS

PROMPT = "The old lighthouse keeper"
OF_AN_ANSWER = {name: row for name, row in PARAMETERS.items() if row.group != "session"}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=64)


def out_of_range(name: str) -> list[Any]:
    """Values that the row ``name`` does not take, of any size."""
    row = PARAMETERS[name]
    if row.kind == "int":
        assert isinstance(row.minimum, int)
        assert isinstance(row.maximum, int)
        return [row.minimum - 1, row.maximum + 1, -(10**30), 10**30, 10**400, -(2**128), 2**127]
    if row.kind == "float":
        outside = [] if row.minimum is None else [row.minimum if row.above else row.minimum - 0.01]
        outside += [] if row.maximum is None else [row.maximum + 0.01]
        return [*outside, float("nan"), float("inf"), float("-inf"), 1e39, 10**400]
    others: dict[str, list[Any]] = {
        "bool": [],
        "choice": ["no such word", ""],
        "words": [["no such word"], ["top_k", ""], "top_k;top"],
        "text": [""],
        "strings": ["", ["fine", ""]],
        "json": [""],
        "functions": [],
        "biases": [{0: float("nan")}, {-1: 1.0}],
    }
    return others[row.kind]


# The table


def test_what_type_checkers_see_are_the_rows_of_the_table() -> None:
    types: dict[str, Any] = {"bool": bool, "int": int, "float": float}
    hints = typing.get_type_hints(GenerateOptions)
    fields = typing.get_type_hints(SamplingParams)
    assert hints.keys() == fields.keys() == OF_AN_ANSWER.keys() == set(SamplingParams.__slots__)
    for name, row in OF_AN_ANSWER.items():
        for hint in (hints[name], fields[name]):
            if row.kind in types:
                assert hint == (types[row.kind] | None if row.optional else types[row.kind]), name
            elif row.kind == "choice":
                assert typing.get_args(hint) == row.choices, name
    assert typing.get_args(llama_rs.KvType) == PARAMETERS["kv_type"].choices
    assert typing.get_args(llama_rs.OnOverflow) == PARAMETERS["on_overflow"].choices


def test_docstrings_say_what_the_table_says() -> None:
    said = " ".join((inspect.getdoc(SamplingParams) or "").split())
    for name, row in OF_AN_ANSWER.items():
        assert f"{name}: {' '.join(row.help.split())}." in said


def test_defaults_are_those_of_the_table_and_are_in_range() -> None:
    defaults = dict(SamplingParams())
    held = {name: tuple(d) if isinstance(d := row.default, list) else d for name, row in OF_AN_ANSWER.items()}
    assert defaults == held
    assert defaults["top_p"] == 0.95
    assert SamplingParams(**{name: row.default for name, row in OF_AN_ANSWER.items()}) == SamplingParams()


@pytest.mark.parametrize("name", OF_AN_ANSWER)
def test_values_out_of_range_are_value_errors_with_name_value_and_range(model: Model, name: str) -> None:
    for value in out_of_range(name):
        with pytest.raises(ValueError, match=name) as caught:
            SamplingParams(**{name: value})
        message = str(caught.value)
        row = PARAMETERS[name]
        if row.kind == "int":
            assert f"{name} is {value}, it must be from {row.minimum} to {row.maximum}" in message
        session = model.session()
        uses: list[Callable[..., object]] = [model.generate, model.stream, session.generate, session.stream]
        for use in uses:
            with pytest.raises(ValueError, match=name):
                use(PROMPT, **{name: value})


@pytest.mark.parametrize("name", OF_AN_ANSWER)
def test_values_of_another_type_are_type_errors(name: str) -> None:
    others: dict[str, list[object]] = {
        "int": [1.5, "1"],
        "float": ["0.5"],
        "bool": [1, "yes"],
        "strings": [1, [1]],
        "words": [1, [1]],
        "json": [1, [1], {"a": object()}],
        "functions": [1, "max", [1]],
    }
    wrong = [object(), b"bytes", *others.get(PARAMETERS[name].kind, [1.5])]
    if not PARAMETERS[name].optional:
        wrong.append(None)
    for value in wrong:
        with pytest.raises(TypeError, match=name):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


# SamplingParams


def test_params_never_change_and_are_equal_by_value() -> None:
    params = SamplingParams(temperature=0.2, stop="end", logit_bias={3: -1.0})
    with pytest.raises(AttributeError, match="replace"):
        params.temperature = 1.0
    with pytest.raises(AttributeError):
        del params.temperature
    other = params.replace(temperature=0.2, seed=7).replace(seed=None)
    assert other == params
    assert hash(other) == hash(params)
    assert params != SamplingParams()
    assert params.replace(top_k=1) != params
    assert copy.copy(params) == copy.deepcopy(params) == pickle.loads(pickle.dumps(params)) == params
    assert repr(params) == "SamplingParams(temperature=0.2, logit_bias={3: -1.0}, stop=('end',))"
    assert eval(repr(params)) == params
    assert SamplingParams(**dict(params)) == params
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        SamplingParams(temprature=1)  # type: ignore[call-arg]


def test_keywords_override_params_in_every_method(model: Model) -> None:
    params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    expected = model.generate(PROMPT, max_tokens=6, temperature=0, ignore_eos=True).text
    assert model.generate(PROMPT, sampling=params).text == expected
    assert "".join(model.stream(PROMPT, sampling=params)) == expected
    with model.session() as session:
        assert session.generate(PROMPT, sampling=params).text == expected
        assert "".join(session.stream(PROMPT, sampling=params)) == expected
        assert len(session.generate(PROMPT, sampling=params, max_tokens=3).token_ids) == 3
    assert len(model.generate(PROMPT, sampling=params, max_tokens=2).token_ids) == 2
    for wrong in ({"temperature": 0}, 7):
        with pytest.raises(TypeError, match="sampling is of type"):
            model.generate(PROMPT, sampling=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'no_such'"):
        model.generate(PROMPT, no_such=1)  # type: ignore[call-arg]


def test_a_bias_rules_tokens_out_and_in(model: Model) -> None:
    first = model.generate(PROMPT, max_tokens=1, temperature=0, ignore_eos=True).token_ids[0]
    without = model.generate(PROMPT, max_tokens=1, temperature=0, ignore_eos=True, logit_bias={first: float("-inf")})
    assert without.token_ids[0] != first
    forced = model.generate(PROMPT, max_tokens=3, temperature=0, ignore_eos=True, logit_bias={5: 1000.0})
    assert forced.token_ids == [5, 5, 5]
    with pytest.raises(ValueError, match=f"logit_bias has token {model.config.vocab_size}"):
        model.generate(PROMPT, logit_bias={model.config.vocab_size: 1.0})


# Numbers and types elsewhere


@pytest.mark.parametrize("n", [-1, -(10**30), 10**30, 2**63, 2**64, 10**400], ids=lambda n: f"{n:#x}"[:9])
def test_numbers_of_any_size_are_value_errors_everywhere(tiny: Path, model: Model, n: int) -> None:
    session, tokenizer = model.session(), model.tokenizer
    session.forward([1, 2])
    uses: list[Callable[[], object]] = [
        lambda: Model(tiny, threads=n),
        lambda: Model(tiny, context_length=n),
        lambda: model.session(context_length=n),
        lambda: session.truncate(n),
        lambda: session.shift(n, 2),
        lambda: session.shift(0, n),
        lambda: session.forward([n]),
        lambda: session.logits([n]),
        lambda: model.logits([n]),
        lambda: model.generate([n]),
        lambda: model.score([n], [1]),
        lambda: model.score([1], [n]),
        lambda: model.perplexity([1] * 9 + [n], context_length=10),
        lambda: model.perplexity("the sea", context_length=n),
        lambda: model.bench(prompt_tokens=n),
        lambda: model.bench(max_tokens=n),
        lambda: model.bench(repetitions=n),
        lambda: tokenizer.decode([n]),
        lambda: tokenizer.token_bytes(n),
        lambda: tokenizer.is_special(n),
        lambda: tokenizer.is_end_of_generation(n),
        lambda: model.generate(PROMPT, n_keep=n if n < -1 else 10**30),
    ]
    for i, use in enumerate(uses):
        with pytest.raises(ValueError):  # noqa: PT011
            pytest.fail(f"use {i} gave {use()!r}")
    assert session.tokens == [1, 2]


def test_a_model_is_refused_for_what_its_sessions_could_not_be(tiny: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"threads": 0}, "threads is 0, it must be from 1 to 256"),
        ({"context_length": 0}, "context_length is 0, it must be from 1 to"),
        ({"kv_type": "q4_0"}, 'kv_type is "q4_0", it must be "f16" or "q8_0"'),
        ({"kv_type": "q8_0"}, "kv_type Q8_0 cannot hold the keys of this model"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            Model(tiny, **options)
    wrong: list[dict[str, Any]] = [{"threads": "2"}, {"context_length": 1.5}]
    for options in wrong:
        with pytest.raises(TypeError, match=next(iter(options))):
            Model(tiny, **options)


@pytest.mark.parametrize("value", ["-3", "0", "abc", "1.5", "257", "9" * 5000, "٣"])
def test_a_wrong_environment_variable_names_itself(tiny: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_RS_THREADS", value)
    with pytest.raises(ValueError, match=r"LLAMA_RS_THREADS is .*, it must be a whole number from 1 to 256"):
        Model(tiny)
    assert Model(tiny, threads=1).threads == 1
    monkeypatch.setenv("LLAMA_RS_THREADS", " 2 ")
    assert Model(tiny).threads == 2


def test_what_is_no_prompt_and_no_token_ids_is_a_type_error_with_the_remedy(model: Model) -> None:
    session, tokenizer = model.session(), model.tokenizer
    messages = [{"role": "user", "content": "hello"}]
    uses: list[tuple[Callable[[], object], str]] = [
        (lambda: model.generate(b"the"), r"a prompt is text or token ids, got bytes: decode it to text"),
        (lambda: model.generate(bytearray(b"the")), "got bytearray"),
        (lambda: model.generate(messages), "chat\\(messages\\) answers messages"),  # type: ignore[arg-type]
        (lambda: model.generate({"role": "user"}), "got dict"),  # type: ignore[arg-type]
        (lambda: model.generate(["the"]), "got a sequence of str"),  # type: ignore[list-item]
        (lambda: model.generate([1.5]), "got a sequence of float"),  # type: ignore[list-item]
        (lambda: model.generate(None), "got NoneType"),  # type: ignore[arg-type]
        (lambda: model.generate(7), "got int"),  # type: ignore[arg-type]
        (lambda: model.generate(PROMPT, stop=None), "stop is of type NoneType.*leave it out"),  # type: ignore[arg-type]
        (lambda: model.logits("x"), r"got text: encode it with tokenizer.encode\(text\)"),  # type: ignore[arg-type]
        (lambda: model.logits(b"the"), "got bytes"),
        (lambda: session.forward("x"), "got text"),  # type: ignore[arg-type]
        (lambda: session.logits(b"the"), "got bytes"),
        (lambda: tokenizer.decode("x"), "got text"),  # type: ignore[arg-type]
        (lambda: tokenizer.decode(b"the"), "got bytes"),
        (lambda: tokenizer.token_bytes("x"), "a token id is an int, got str"),  # type: ignore[arg-type]
        (lambda: model.score("x", [1]), "both be text, or both be token ids"),
    ]
    for use, message in uses:
        with pytest.raises(TypeError, match=message):
            use()


def test_memory_that_cannot_be_had_is_a_memory_error(model: Model) -> None:
    code = """
import sys, resource
from llama_rs import ContextOverflowError, Model
model = Model(sys.argv[1], threads=1)
session = model.session(context_length=64)
for n in (65, 200_000_000):
    try:
        session.logits([1] * n if n < 100 else memoryview(bytes(n)))
    except ContextOverflowError as e:
        print(e.tokens, e.context_length)
session = model.session(context_length=2_000_000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
try:
    session.logits([1] * 2_000_000)
except MemoryError as e:
    print(e)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, model.path], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    n_bytes = 2_000_000 * model.config.vocab_size * 4
    assert done.stdout == f"65 64\n200000000 64\nno memory for {n_bytes} bytes of logits\n"


# Types


def test_what_a_conversation_has_beside_an_answer() -> None:
    own = llama_rs.ChatOptions.__annotations__.keys() - GenerateOptions.__annotations__.keys()
    assert own == set(CHAT_OPTIONS)


def test_type_hints_of_everything_public_resolve() -> None:
    for name in llama_rs.__all__:
        thing = getattr(llama_rs, name)
        if not inspect.isclass(thing):
            continue
        typing.get_type_hints(thing)
        for value in vars(thing).values():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(function) and function.__module__.startswith("llama_rs"):  # __new__ of a tuple is not
                typing.get_type_hints(function)


def test_public_types_are_exported() -> None:
    """What methods of public classes take and give can be named by who calls them."""
    exported = {getattr(llama_rs, name) for name in llama_rs.__all__ if inspect.isclass(getattr(llama_rs, name))}
    ours: set[type] = set()
    for thing in exported:
        for value in vars(thing).values():
            function = value.fget if isinstance(value, property) else value
            if inspect.isfunction(function) and not function.__name__.startswith("_"):
                for hint in typing.get_type_hints(function).values():
                    for part in (hint, *typing.get_args(hint)):
                        if inspect.isclass(part) and part.__module__.startswith("llama_rs"):
                            ours.add(part)
    assert {t.__name__ for t in ours - exported} <= {"Residency", "Process"}  # of llama_rs.residency


def test_the_finish_reason_is_a_literal() -> None:
    assert typing.get_type_hints(llama_rs.Completion)["finish_reason"] == llama_rs.FinishReason
    getter: Any = vars(llama_rs.Stream)["finish_reason"]
    assert typing.get_type_hints(getter.fget)["return"] == llama_rs.FinishReason | None
    assert typing.get_args(llama_rs.FinishReason) == ("stop", "length")


# Tokenizer


def test_a_tokenizer_is_pickled_as_its_file(model: Model, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tokenizer in (model.tokenizer, Tokenizer(tiny)):
        data = pickle.dumps(tokenizer)
        assert len(data) < 500
        assert pickle.loads(data).encode(PROMPT) == tokenizer.encode(PROMPT)
    monkeypatch.chdir(tiny.parent)
    data = pickle.dumps(Tokenizer(tiny.name))
    monkeypatch.chdir("/")
    assert pickle.loads(data).vocab_size == model.tokenizer.vocab_size


def test_another_file_at_the_path_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    from tiny_model import write_tiny_model

    path = write_tiny_model(tmp_path / "model.gguf", "Q8_0")
    data = pickle.dumps(Tokenizer(path))
    os.replace(write_tiny_model(tmp_path / "other.gguf", "Q8_0", n_layers=3), path)
    with pytest.raises(llama_rs.ModelChangedError, match="not the one that was pickled"):
        pickle.loads(data)
