"""Functions of the caller that change logits, and log-probabilities of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_rs
import numpy as np
import numpy.typing as npt
import pytest
from llama_rs import Model, SamplingParams

PROMPT = "The old lighthouse keeper"
Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1, context_length=256)


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64)
    shifted: npt.NDArray[np.float64] = x - x.max()
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


# Log-probabilities


def test_logprobs_are_those_of_the_model_whatever_chooses(model: Model) -> None:
    options: dict[str, Any] = {"temperature": 1.7, "repeat_penalty": 1.5, "logit_bias": {5: 3.0}, "regex": "[a-z ]{30}"}
    done = model.generate(PROMPT, max_tokens=20, seed=1, top_logprobs=3, **options)
    assert done.logprobs is not None
    assert [token.token_id for token in done.logprobs] == done.token_ids
    prompt = model.tokenizer.encode(PROMPT)
    rows = model.logits([*prompt, *done.token_ids])[len(prompt) - 1 :]
    for row, token in zip(rows, done.logprobs, strict=False):
        expected = log_softmax(row)
        assert token.logprob == pytest.approx(expected[token.token_id], abs=1e-4)
        best = np.argsort(-expected, kind="stable")[:3]
        assert [top.token_id for top in token.top_logprobs] == list(best)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(expected[best], abs=1e-4)
        assert token.bytes == model.tokenizer.token_bytes(token.token_id)
        assert token.token == token.bytes.decode(errors="replace")
    assert b"".join(token.bytes for token in done.logprobs).decode() == done.text


def test_a_stream_has_them_as_the_text_comes(model: Model) -> None:
    with model.stream(PROMPT, max_tokens=12, seed=2, logprobs=True, ignore_eos=True) as stream:
        assert stream.logprobs == []
        for _ in stream:
            assert stream.logprobs is not None
            assert [token.token_id for token in stream.logprobs] == stream.token_ids
            assert all(token.top_logprobs == [] for token in stream.logprobs)
    assert stream.logprobs == model.generate(PROMPT, max_tokens=12, seed=2, logprobs=True, ignore_eos=True).logprobs


def test_nobody_has_them_who_did_not_ask(model: Model) -> None:
    assert model.generate(PROMPT, max_tokens=2).logprobs is None
    assert model.stream(PROMPT, max_tokens=2).logprobs is None


# Functions that change logits


def test_a_function_changes_logits_in_place_or_gives_others(model: Model) -> None:
    seen: list[tuple[list[int], tuple[int, ...]]] = []

    def in_place(token_ids: Ids, logits: Logits) -> None:
        seen.append((token_ids.tolist(), logits.shape))
        assert logits.dtype == np.float32
        assert logits.flags.writeable
        logits[7] = 100.0

    def others(token_ids: Ids, logits: Logits) -> Logits:
        changed = np.full_like(logits, -10.0)
        changed[5 + len(token_ids) % 2] = 1.0
        return changed

    prompt = model.tokenizer.encode(PROMPT)
    done = model.generate(prompt, max_tokens=3, temperature=0, logits_processor=in_place)
    assert done.token_ids == [7, 7, 7]
    assert seen == [([*prompt, *[7] * i], (model.config.vocab_size,)) for i in range(3)]
    expected = [5 + (len(prompt) + i) % 2 for i in range(3)]
    assert model.generate(prompt, max_tokens=3, temperature=0, logits_processor=others).token_ids == expected
    # One after the other, before bias and grammar; the text of a stream is the same.
    both = SamplingParams(max_tokens=3, temperature=0, logits_processor=[in_place, others])
    assert model.generate(prompt, sampling=both).token_ids == expected
    assert model.generate(prompt, sampling=both, logit_bias={9: 50.0}).token_ids == [9, 9, 9]
    assert model.generate(prompt, sampling=both, choices=["x"]).text == "x"
    assert "".join(model.stream(prompt, sampling=both)) == model.generate(prompt, sampling=both).text


def test_an_array_that_is_kept_changes_nothing_any_more(model: Model) -> None:
    kept: list[Logits] = []

    def keep(_: Ids, logits: Logits) -> None:
        if kept:
            kept[-1][:] = 1e9
        kept.append(logits)

    plain = model.generate(PROMPT, max_tokens=5, temperature=0, ignore_eos=True)
    assert model.generate(PROMPT, max_tokens=5, temperature=0, ignore_eos=True, logits_processor=keep)[:2] == plain[:2]
    for array in kept:
        array += 1  # it is memory of its own, for as long as there is the array


def test_what_a_function_raises_comes_out_and_the_stream_goes_on(model: Model) -> None:
    class Odd(Exception):
        pass

    calls = 0

    def sometimes(_: Ids, __: Logits) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 4, 5):
            raise Odd(calls)

    plain = model.generate(PROMPT, max_tokens=6, temperature=0, ignore_eos=True).text
    with model.session() as session:
        stream = session.stream(PROMPT, max_tokens=6, temperature=0, ignore_eos=True, logits_processor=sometimes)
        pieces, raised = [], []
        while True:
            try:
                pieces.append(next(stream))
            except Odd as e:
                raised.append(e.args[0])
            except StopIteration:
                break
    assert raised == [1, 4, 5]
    assert "".join(pieces) == plain
    with pytest.raises(Odd):
        model.generate(PROMPT, logits_processor=lambda _, __: (_ for _ in ()).throw(Odd()))


def test_a_function_that_uses_the_session_is_told_that_it_is_in_use(model: Model) -> None:
    session = model.session()

    def use(_: Ids, __: Logits) -> None:
        session.generate(PROMPT)

    with pytest.raises(llama_rs.SessionBusyError):
        session.generate(PROMPT, max_tokens=2, logits_processor=use)
    assert session.generate(PROMPT, max_tokens=2).token_ids


def test_logits_that_are_no_numbers_or_rule_all_out_are_an_error(model: Model) -> None:
    def ruin(_: Ids, logits: Logits) -> None:
        logits[:] = np.nan

    with pytest.raises(ValueError, match="no token is left to choose from"):
        model.generate(PROMPT, logits_processor=ruin)
    with pytest.raises(ValueError, match="could not broadcast"):
        model.generate(PROMPT, logits_processor=lambda _, logits: logits[:-1])


# Samplers


def test_samplers_come_in_the_order_that_one_says(model: Model) -> None:
    names = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
    assert SamplingParams().samplers == names
    assert SamplingParams(samplers="top_k;temperature") == SamplingParams(samplers=["top_k", "temperature"])
    options: dict[str, Any] = {"temperature": 5.0, "top_p": 0.5, "top_k": 0, "min_p": 0, "seed": 1, "max_tokens": 12}
    cut_first = model.generate(PROMPT, **options).token_ids
    heated_first = model.generate(PROMPT, samplers=["temperature", "top_p"], **options).token_ids
    assert cut_first == model.generate(PROMPT, samplers=["top_p", "temperature"], **options).token_ids
    assert cut_first != heated_first
    only = model.generate(PROMPT, samplers=["top_k"], top_k=1, temperature=3.0, max_tokens=5, ignore_eos=True)
    assert only.token_ids == model.generate(PROMPT, temperature=0, max_tokens=5, ignore_eos=True).token_ids


def test_dry_breaks_a_loop(model: Model) -> None:
    loop = model.tokenizer.encode("the sea and the wind, the sea and the wind, the sea and the")
    bias = dict.fromkeys(model.tokenizer.encode(" wind", add_special=False)[:1], 60.0)
    first = model.generate(loop, max_tokens=1, temperature=0, logit_bias=bias).token_ids
    assert first == list(bias)
    dry: dict[str, Any] = {"dry_multiplier": 20.0, "dry_penalty_last_n": -1}
    assert model.generate(loop, max_tokens=1, temperature=0, logit_bias=bias, **dry).token_ids != first
    # Not across a breaker: here the last space is one.
    broken = model.generate(loop, max_tokens=1, temperature=0, logit_bias=bias, **dry, dry_sequence_breakers="the")
    assert broken.token_ids == first
