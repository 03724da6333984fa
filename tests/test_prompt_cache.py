"""The prompt cache saves work and decides nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from llama_rs import Model, SavedSessionError
from llama_rs.prompt_cache import is_worth_writing
from tiny_model import write_tiny_model

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


def useless(model: Model, folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that are no caches of this model, and what is wrong with each."""
    file = folder / "diary.txt"
    file.write_text("dear diary")
    yield file, "not a saved session"
    good = folder / "good.kv"
    model.generate(TEXT, max_tokens=0, prompt_cache=good)
    old, cut, another = (folder / name for name in ("old.kv", "cut.kv", "another.kv"))
    content = good.read_bytes()
    old.write_bytes(content[:8] + b"\x01" + content[9:])
    yield old, "version 1"
    cut.write_bytes(content[:-1])
    yield cut, "cut short"
    Model(write_tiny_model(folder / "another.gguf", "Q8_0", seed=2)).generate(TEXT, max_tokens=0, prompt_cache=another)
    yield another, "another model"
    yield Path("/dev/null"), "not a file"
    os.mkfifo(folder / "pipe")
    yield folder / "pipe", "not a file"


def test_what_is_no_cache_of_this_model_costs_no_answer_and_is_not_replaced(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = model.generate(TEXT, max_tokens=4, temperature=0)
    for path, what in useless(model, tmp_path):
        before = path.stat()
        caplog.clear()
        done = model.generate(TEXT, max_tokens=4, temperature=0, prompt_cache=path)
        assert done.token_ids == expected.token_ids
        assert done.timings.cached_tokens == 0
        assert len(caplog.records) == 1
        assert f"{path}: " in caplog.text
        assert what in caplog.text
        assert "not replaced" in caplog.text
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        with pytest.raises(SavedSessionError, match=what):
            model.generate(TEXT, max_tokens=1, prompt_cache=path, prompt_cache_readonly=True)


def test_a_damaged_block_of_a_cache_costs_no_answer(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "prompt.kv"
    expected = model.generate(TEXT, max_tokens=4, temperature=0, prompt_cache=cache)
    content = bytearray(cache.read_bytes())
    content[4096:4160] = bytes(64)  # keys of the first block
    cache.write_bytes(content)
    for n in (4, 0):
        caplog.clear()
        with model.stream(TEXT, max_tokens=n, temperature=0, prompt_cache=cache) as stream:
            assert "".join(stream) == expected.text[: len(expected.text) if n else 0]
        assert stream.prompt_cache_error is not None
        assert "not replaced" in stream.prompt_cache_error
        assert stream.timings.cached_tokens == 0
    done = model.generate(TEXT, max_tokens=4, temperature=0, prompt_cache=cache)
    assert done.token_ids == expected.token_ids
    assert "damaged" in caplog.text
    assert cache.read_bytes() == content
    with pytest.raises(SavedSessionError, match="damaged"):
        model.generate(TEXT, max_tokens=4, prompt_cache=cache, prompt_cache_readonly=True)


def test_a_link_stays_a_link(model: Model, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.kv", tmp_path / "folder" / "prompt.kv"
    link.symlink_to("folder/prompt.kv")
    for _ in range(2):  # to nothing, then to a cache
        model.generate(TEXT, max_tokens=0, prompt_cache=link)
        assert link.is_symlink()
        assert target.stat().st_size > 0
