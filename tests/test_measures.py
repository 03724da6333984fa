"""What a model can be asked besides an answer: scores, perplexity, speed, and what of its file is in memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from llama_rs import Checkpoint, Model
from tiny_model import write_tiny_model

TEXT = "The sea gives and the sea takes, and there is no use in asking. " * 20


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1)


def logprobs(model: Model, ids: list[int]) -> np.ndarray:
    """Of every token but the first, in float64 from the logits."""
    logits = model.logits(ids).astype(np.float64)[:-1]
    logits -= logits.max(1, keepdims=True)
    logs: np.ndarray = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return logs[np.arange(len(logs)), ids[1:]]


def test_scores_are_log_probabilities(model: Model) -> None:
    before, after = model.tokenizer.encode("the sea is"), model.tokenizer.encode(" cold and wide", add_special=False)
    exact = logprobs(model, before + after)[len(before) - 1 :]
    score = model.score(before, after)
    assert score.token_ids == after
    np.testing.assert_allclose(score.logprobs, exact, atol=0.05)
    assert score.total == pytest.approx(sum(score.logprobs))
    assert model.score("the sea is", " cold and wide") == score
    nothing: list[int] = []
    for prompt, continuation in ((nothing, [1]), ([1], nothing)):
        with pytest.raises(ValueError, match="is empty"):
            model.score(prompt, continuation)


def test_of_two_continuations_the_likelier_has_the_higher_score(smollm2: Path) -> None:
    model = Model(smollm2)
    right, wrong = (model.score("The capital of France is", f" {city}").total for city in ("Paris", "Banana"))
    assert right > wrong


def test_perplexity_scores_the_second_half_of_each_window(model: Model) -> None:
    ids = model.tokenizer.encode(TEXT, parse_special=False)[:200]
    windows: list[tuple[int, int, float]] = []
    result = model.perplexity(ids, context_length=64, on_window=lambda *window: windows.append(window))
    begin = model.tokenizer.encode("")[:1]
    nll = []
    for i in range(3):
        window = begin + ids[i * 64 + len(begin) : (i + 1) * 64]
        nll += list(-logprobs(model, window)[32:])
    assert (result.tokens, result.windows, result.context_length) == (len(nll), 3, 64)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=0.02)
    assert result.stderr == pytest.approx(result.perplexity * np.std(nll, ddof=1) / math.sqrt(len(nll)), rel=0.05)
    assert [window[:2] for window in windows] == [(1, 3), (2, 3), (3, 3)]
    assert windows[-1][2] == result.perplexity
    text = model.perplexity(TEXT, context_length=64)
    assert text.windows == len(model.tokenizer.encode(TEXT, parse_special=False)) // 64
    with pytest.raises(ValueError, match="has 200 tokens, too few for a window of 201"):
        model.perplexity(ids, context_length=201)


def test_a_stride_scores_every_token_after_the_first_window(model: Model) -> None:
    ids = model.tokenizer.encode(TEXT, parse_special=False)[:150]
    result = model.perplexity(ids, context_length=64, stride=20)
    begin = model.tokenizer.encode("")[:1]
    nll = []
    for start in range(0, 150 - 64 + 1, 20):
        nll += list(-logprobs(model, begin + ids[start + len(begin) : start + 64])[-20:])
    assert (result.windows, result.tokens) == (5, 100)
    assert result.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=0.02)
    for stride in (0, 64):
        with pytest.raises(ValueError, match=f"stride is {stride}, it must be from 1 to 63"):
            model.perplexity(ids, context_length=64, stride=stride)


def test_a_benchmark_is_data(model: Model) -> None:
    tests: list[str] = []
    results = model.bench(prompt_tokens=20, max_tokens=3, repetitions=4, on_test=tests.append)
    assert tests == [r.test for r in results] == ["pp20", "tg3"]
    for result, n in zip(results, (20, 3), strict=True):
        assert result.tokens == n
        assert len(result.seconds) == 4
        speeds = [n / s for s in result.seconds]
        assert result.tokens_per_second == pytest.approx(np.mean(speeds))
        assert result.stddev == pytest.approx(np.std(speeds, ddof=1))
    (only,) = model.bench(prompt_tokens=0, max_tokens=2, repetitions=1)
    assert (only.test, only.stddev) == ("tg2", 0.0)
    assert model.bench(prompt_tokens=0, max_tokens=0) == []


def test_small_pages_become_large_ones_where_the_system_has_such(tmp_path: Path) -> None:
    """A file that was just written lies in memory in small pages."""
    path = write_tiny_model(tmp_path / "written.gguf", "F16", dim=1024, hidden_dim=4096, n_layers=2)
    contents = path.read_bytes()
    assert len(contents) > 40 << 20
    checkpoint = Checkpoint(path)
    first, second = checkpoint.warm(), checkpoint.warm()
    (process,) = checkpoint.processes()
    assert first.resident_before == second.resident_before == checkpoint.resident() == len(contents)
    assert first.enlarged <= process.large <= len(contents)
    assert second.enlarged <= 8 << 20, "what could be mended was"
    assert path.read_bytes() == contents


def test_a_file_is_warmed_and_says_how_far(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    steps: list[tuple[int, int]] = []
    warmed = checkpoint.warm(lambda done, size: steps.append((done, size)))
    assert warmed.bytes == checkpoint.size == tiny.stat().st_size
    assert 0 <= warmed.resident_before <= warmed.bytes
    assert steps[-1] == (warmed.bytes, warmed.bytes)
    assert checkpoint.resident() == checkpoint.residency().resident == checkpoint.size
    assert checkpoint.resident(0, 10) == checkpoint.resident(-(10**30), 10) == 10
    assert checkpoint.resident(checkpoint.size - 5, 10**30) == 5
    assert Model(tiny).checkpoint.size == checkpoint.size
    assert any(process.pid for process in checkpoint.processes())
