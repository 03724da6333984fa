"""Speculation changes no answer: not a token of it, whatever guesses and however the answer is sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from llama_rs import ContextOverflowError, Model
from oracle.cases import CASES
from test_cli import bad, good, run

SUMMARY = """The lighthouse keeper wrote the weather into his book: wind from the west, rain, and then the sun. He lit
the lamp for the ships at sea every evening. Say the same again: The lighthouse keeper wrote"""

CODE = """def area(width, height):
    return width * height

def volume(width, height, depth):
    return width * height * depth

Rename width to w:

def area(w, height):
    return w"""


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """A tiny model, and a smaller one of the same vocabulary whose guesses are mostly wrong."""
    folder = tmp_path_factory.mktemp("draft")
    return Model(tiny), Model(tiny_model.write_tiny_model(folder / "draft.gguf", "F16", n_layers=1, seed=5))


def same(model: Model, guesser: Any, prompt: str | list[int], **options: Any) -> tuple[int, int]:
    """Asserts that the answer is the same with guesses; gives how many there were, and how many were right."""
    plain = model.generate(prompt, **options)
    guessed = model.generate(prompt, speculative=guesser, **options)
    assert (guessed.text, guessed.token_ids) == (plain.text, plain.token_ids)
    assert (guessed.finish_reason, guessed.prompt_tokens) == (plain.finish_reason, plain.prompt_tokens)
    assert guessed.timings.generated_tokens == plain.timings.generated_tokens
    return guessed.timings.drafted_tokens, guessed.timings.accepted_tokens


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.5, "seed": 3},
    {"temperature": 0, "repeat_penalty": 1.3, "ignore_eos": True},
    {"temperature": 0.7, "seed": 9, "stop": ["e", "sea"]},
    {"temperature": 0.7, "seed": 4, "top_k": 0, "top_p": 1, "min_p": 0, "ignore_eos": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_answer_is_the_same_to_the_token(models: tuple[Model, Model], options: dict[str, Any]) -> None:
    model, draft = models
    for prompt in ("The sea", SUMMARY[:120], "a b c a b c a b", "x"):
        for guesser in ("prompt-lookup", draft, model):
            for max_tokens in (1, 2, 40):
                same(model, guesser, prompt, max_tokens=max_tokens, **options)


def test_sampled_answers_have_the_distribution_of_the_model(models: tuple[Model, Model]) -> None:
    """Three tokens of five hundred answers, against softmax of the logits by numpy (chi-squared)."""
    model, draft = models
    prompt, most, n = model.tokenizer.encode("a b c a b c a b"), 3, 500
    expected: dict[tuple[int, ...], float] = {(): float(n)}
    for _ in range(3):
        for before, count in list(expected.items()):
            logits = model.logits([*prompt, *before])[-1].astype(np.float64) / 4
            likely = np.argsort(-logits)[:most]
            p = np.exp(logits[likely] - logits.max())
            for token, share in zip(likely, p / p.sum(), strict=True):
                expected[(*before, int(token))] = count * share
            del expected[before]
    assert len(expected) == most**3 and min(expected.values()) > 5  # enough of each for the test
    sampling: Any = {"temperature": 4.0, "top_k": most, "top_p": 1.0, "min_p": 0.0, "ignore_eos": True}
    for guesser in (draft, model):
        seen = dict.fromkeys(expected, 0)
        right = wrong = 0
        for seed in range(n):
            done = model.generate(prompt, max_tokens=3, seed=seed, speculative=guesser, **sampling)
            seen[tuple(done.token_ids)] += 1
            right += done.timings.accepted_tokens
            wrong += done.timings.drafted_tokens - done.timings.accepted_tokens
        assert wrong > n / 10 and right > (n / 10 if guesser is model else -1)
        chi_squared = sum((seen[k] - e) ** 2 / e for k, e in expected.items())
        assert chi_squared < 66, guesser  # 26 degrees of freedom: more once in 25,000 times


def test_guesses_of_the_model_itself_are_right(models: tuple[Model, Model]) -> None:
    model, _ = models
    drafted, accepted = same(model, model, "The sea gives and", max_tokens=60, temperature=0, ignore_eos=True)
    assert accepted == drafted > 0 or accepted >= drafted - 16  # the last guesses may reach past the end


def test_a_full_context_ends_or_shifts_as_it_does_without(tiny: Path, models: tuple[Model, Model]) -> None:
    _, draft = models
    model = Model(tiny, context_length=48)
    for overflow in ("stop", "shift"):
        for guesser in ("prompt-lookup", draft, model):
            same(model, guesser, "the sea " * 4, max_tokens=90, temperature=0, on_overflow=overflow, ignore_eos=True)
    with pytest.raises(ContextOverflowError):
        model.generate("the sea " * 40, speculative="prompt-lookup")


def test_a_session_goes_on_as_it_does_without(models: tuple[Model, Model]) -> None:
    model, draft = models
    for guesser in ("prompt-lookup", draft):
        with model.session() as one, model.session() as other:
            text = "The old keeper"
            for turn in range(3):
                plain = one.generate(text, max_tokens=15, temperature=0.8, seed=turn, ignore_eos=True)
                guessed = other.generate(
                    text, max_tokens=15, temperature=0.8, seed=turn, ignore_eos=True, speculative=guesser
                )
                assert guessed.token_ids == plain.token_ids
                assert other.tokens == one.tokens  # nothing of the guesses is left
                assert guessed.timings.cached_tokens == plain.timings.cached_tokens
                text += plain.text + " and"
            assert (one.forward([3]) == other.forward([3])).all()


@pytest.mark.parametrize("name", ["qwen35", "lfm2", "granitehybrid", "falcon-h1"])
def test_recurrent_layers_forget_wrong_guesses(name: str, tmp_path: Path) -> None:
    """Across many borders of chunks, where what they remember has to be computed again."""
    model = Model(CASES[name].make().write_gguf(tmp_path / "model.gguf"), context_length=300)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8] * 6
    with model.session() as plain, model.session() as guessed:
        logits = plain.logits(tokens)
        at = 0
        for right in (0, 1, 3, 0, 2, 5, 4, 0, 1, 6, 2, 3):
            guess = [*tokens[at : at + 1 + right], 9, 9, 9]
            rows = guessed.logits(guess)
            assert (rows[: right + 1] == logits[at : at + right + 1]).all()
            at += right + 1
            guessed.truncate(at)


def test_what_cannot_guess_says_so(models: tuple[Model, Model], smollm2: Path) -> None:
    model, _ = models
    with pytest.raises(ValueError, match='it must be "prompt-lookup" or a smaller Model'):
        model.generate("x", speculative="lookup")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whose vocabulary is another"):
        model.generate("x", speculative=Model(smollm2))


def test_a_real_model_repeats_a_text_in_fewer_passes(smollm2: Path) -> None:
    model = Model(smollm2)
    for prompt in (SUMMARY, CODE):
        drafted, accepted = same(model, "prompt-lookup", prompt, max_tokens=32, temperature=0)
        assert accepted >= 8, (drafted, accepted)


def test_the_command_line_guesses(tiny: Path, models: tuple[Model, Model]) -> None:
    _, draft = models
    ask = ("generate", "-m", tiny, "-n", "24", "--temp", "0", "--raw", "--ignore-eos", "the sea the sea the sea")
    expected = good(*ask)
    assert good(*ask, "--lookup") == good(*ask, "--draft", draft.path) == expected
    verbose = run(*ask, "--draft", tiny, "-v").stderr.decode()
    assert "guessed ahead: " in verbose
    assert "not both" in bad(2, *ask, "--lookup", "--draft", tiny)


def test_a_conversation_on_the_command_line_guesses(tiny: Path, models: tuple[Model, Model]) -> None:
    _, draft = models
    ask = ("chat", "-m", tiny, "-n", "40", "--temp", "0")
    expected = good(*ask, "the sea the sea the sea")
    for way in (("--lookup",), ("--draft", draft.path), ("--draft", tiny)):
        assert good(*ask, *way, "the sea the sea the sea") == expected
    turns = "".join(json.dumps({"content": text, "stream": False}) + "\n" for text in ("the sea", "and the wind"))
    said = run(*ask, "--jsonl", stdin=turns.encode()).stdout
    assert len(said.splitlines()) == 2
    for way in (("--lookup",), ("--draft", draft.path)):
        assert run(*ask, "--jsonl", *way, stdin=turns.encode()).stdout == said
    assert "not both" in bad(2, *ask, "--lookup", "--draft", tiny, "x")
    assert "nowhere" in bad(3, *ask, "--draft", "nowhere", "x")
