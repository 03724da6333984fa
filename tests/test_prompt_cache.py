"""The prompt cache saves work and decides nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import pytest
from llama_rs import Model, SavedSessionError
from llama_rs.prompt_cache import is_worth_writing

TEXT = "The old lighthouse keeper climbed the stairs every evening and lit the lamp for the ships at sea. "


@pytest.fixture
def model(tiny: Path) -> Model:
    return Model(tiny, threads=1)


@pytest.mark.parametrize(
    ("prompt", "cached", "held", "is_worth_it"),
    [
        (1, 0, 0, True),  # there is no file
        (100, 99, 100, False),  # the same prompt
        (20, 19, 100, False),  # a part of it
        (106, 100, 100, False),  # a sixteenth of 100 is 6.25
        (107, 100, 100, True),
        (2050, 2000, 2060, False),  # another question behind rules of 2,000 tokens
        (3999, 2000, 2060, False),
        (4001, 2000, 2060, True),  # the rules are less than half of the prompt
        (100, 10, 100, True),  # other rules
    ],
)
def test_when_it_is_written_again(prompt: int, cached: int, held: int, is_worth_it: bool) -> None:
    assert is_worth_writing(prompt, cached, held) is is_worth_it


def writes(prompts: list[list[int]]) -> list[int]:
    """Sizes of the files that a run of prompts writes."""
    held: list[int] = []
    sizes = []
    for prompt in prompts:
        common = next(
            (i for i, (a, b) in enumerate(zip(prompt, held, strict=False)) if a != b), min(len(prompt), len(held))
        )
        if is_worth_writing(len(prompt), min(common, len(prompt) - 1), len(held)):
            held = prompt
            sizes.append(len(held))
    return sizes


def test_changing_questions_behind_fixed_rules_write_once() -> None:
    random = Random(1)
    rules = [random.randrange(1000) for _ in range(500)]
    questions = [[random.randrange(1000) for _ in range(random.randrange(1, 400))] for _ in range(100)]
    assert len(writes([rules + question for question in questions])) == 1


def test_a_conversation_writes_a_few_times_what_it_holds() -> None:
    turns = [list(range(n)) for n in range(50, 20_000, 50)]
    assert sum(writes(turns)) < 20 * len(turns[-1])


def test_who_asks_for_a_whole_answer_finds_it_in_the_log(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing" / "prompt.kv"
    expected = model.generate(TEXT, max_tokens=4, temperature=0)
    done = model.generate(TEXT, max_tokens=4, temperature=0, prompt_cache=missing)
    assert done.token_ids == expected.token_ids
    assert [(r.name, r.levelno) for r in caplog.records] == [("llama_rs", logging.WARNING)]
    assert f"{missing}: No such file or directory" in caplog.text
    with model.stream(TEXT, prompt_cache=missing) as stream:
        assert stream.prompt_cache_error is not None


def test_a_folder_that_goes_away_costs_no_answer(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    stream = model.stream(TEXT, max_tokens=8, temperature=0, ignore_eos=True, prompt_cache=folder / "prompt.kv")
    first = next(stream)
    assert stream.prompt_cache_error is None
    folder.rmdir()
    assert first + "".join(stream) == model.generate(TEXT, max_tokens=8, temperature=0, ignore_eos=True).text
    assert stream.prompt_cache_error is not None
    assert "prompt.kv: No such file or directory" in stream.prompt_cache_error


def test_without_an_answer_the_prompt_is_computed_and_kept(model: Model, tmp_path: Path) -> None:
    cache = tmp_path / "prompt.kv"
    n = len(model.tokenizer.encode(TEXT))
    assert model.generate(TEXT, max_tokens=0, prompt_cache=cache).token_ids == []
    assert model.load_session(cache).position == n
    longer = TEXT + "She said that the sea gives."
    model.generate(longer, max_tokens=0, prompt_cache=cache)
    with model.load_session(cache) as session:
        assert session.tokens == model.tokenizer.encode(longer)
    expected = model.generate(longer, max_tokens=8, temperature=0)
    done = model.generate(longer, max_tokens=8, temperature=0, prompt_cache=cache, prompt_cache_readonly=True)
    assert done.token_ids == expected.token_ids
    assert done.timings.cached_tokens == done.prompt_tokens - 1


def test_what_is_no_cache_is_not_replaced(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "diary.txt"
    file.write_text("dear diary")
    with pytest.raises(SavedSessionError, match="not a saved session"):
        model.generate(TEXT, max_tokens=1, prompt_cache=file)
    assert file.read_text() == "dear diary"
