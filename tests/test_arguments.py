"""What becomes of arguments: the parser for what most people write gives what click gives, or leaves them to click."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from llama_rs.cli import COMMANDS, find_command
from llama_rs.cli.clicked import Command
from llama_rs.cli.declare import Parameter

REQUIRED = {
    "perf": ["http://localhost"],
    "classify": ["-l", "a,b"],
    "convert": ["directory", "output"],
    "quantize": ["source", "target", "--type", "Q4_0"],
    "imatrix": ["-o", "output"],
    "split": ["model", "prefix"],
    "merge": ["part", "output"],
}
"""What a command does not go without."""

GOOD = ("1", "20", "0.5", "a.gguf", "a.gguf:0.5", "a,b", "2G", "1,2", "ttft=200ms,itl=1s", "ffn=Q6_K", "vllm", "{}")
ODD = ("", "x", "-1", "-5.5", "nan", "1e400", "9" * 30, "\udce9", "日本", "a=b", "=", "-", "--", "--json", "-n", "-x")
WORDS = (*ODD, "--help", "-h", "-hello", "-n5", "-vn5", "-n=5", "--nope", "--te", "--temp", "--json=", "--json=1")


@cache
def clicked(name: str) -> Command:
    return Command(find_command(name))


def by_click(name: str, words: list[str]) -> dict[str, Any] | None:
    """What click makes of arguments; None where it raises."""
    try:
        context = clicked(name).make_context(name, words[:], help_option_names=["-h", "--help"])
    except (click.ClickException, click.exceptions.Exit):
        return None
    with context:
        return context.params


def agreed(name: str, words: list[str]) -> dict[str, Any] | None:
    """What the ordinary parser makes of arguments: either what click does, or nothing."""
    ours = find_command(name).parse(words)
    if ours is not None:
        theirs = by_click(name, words)
        assert theirs is not None, (name, words, "click refuses them")
        assert sorted(ours) == sorted(theirs)
        for key, value in ours.items():
            assert (type(value), value) == (type(theirs[key]), theirs[key]) or value != value, (name, words, key)
    return ours


def values(option: Parameter, files: list[str]) -> list[str]:
    return [*GOOD, *ODD, *files, *option.kind.choices, *(choice.lower() for choice in option.kind.choices[:3])]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A file, one that may not be read, a folder, and none."""
    (tmp_path / "file").write_text("text\n")
    (tmp_path / "closed").write_text("text\n")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "bytes").write_bytes(b"\xff")
    return [str(tmp_path / name) for name in ("file", "closed", "bytes", "", "none")]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_means_what_it_means_to_click(name: str, files: list[str]) -> None:
    base = REQUIRED.get(name, [])
    assert agreed(name, base) is not None
    for option in [p for p in find_command(name).parameters if p.is_option]:
        for spelling, constant in option.spellings():
            if option.is_flag:
                found = agreed(name, [*base, spelling])
                assert found is not None and found[option.name] is constant
                assert agreed(name, [*base, f"{spelling}=1"]) is None
                assert agreed(name, [*base, f"{spelling}="]) is None
                continue
            every = values(option, files)
            taken = [value for value in every if agreed(name, [*base, spelling, value]) is not None]
            assert taken, (spelling, "has a good value")
            if not option.kind.reads:
                good = [value for value in every if by_click(name, [*base, spelling, value]) is not None]
                assert taken == good, (spelling, "nothing is left to click")
            assert agreed(name, [*base, spelling]) is None
            assert agreed(name, [*base, spelling + taken[0]]) is None
            if spelling.startswith("--"):
                assert taken == [v for v in every if agreed(name, [*base, f"{spelling}={v}"]) is not None]
                assert agreed(name, [*base, spelling[:-1], taken[0]]) is None, "only whole names"
            twice = agreed(name, [spelling, taken[-1], *base, spelling, taken[0]])
            once = agreed(name, [*base, spelling, taken[0]])
            assert twice is not None and once is not None
            assert option.is_list == (twice != once)


@pytest.mark.parametrize("name", COMMANDS)
def test_any_words_mean_what_they_mean_to_click_or_are_left_to_it(name: str, files: list[str]) -> None:
    chosen = random.Random(name)
    options = [p for p in find_command(name).parameters if p.is_option]
    n = 0
    for _ in range(150):
        words = REQUIRED.get(name, [])[:]
        for _ in range(chosen.randrange(4)):
            if options and chosen.random() < 0.7:
                option = chosen.choice(options)
                spelling = chosen.choice([spelling for spelling, _ in option.spellings()])
                value = chosen.choice(values(option, files))
                with_value = [f"{spelling}={value}"] if chosen.random() < 0.4 else [spelling, value]
                words += [spelling] if option.is_flag and chosen.random() < 0.9 else with_value
            else:
                words.insert(chosen.randrange(len(words) + 1), chosen.choice(WORDS))
        n += agreed(name, words) is not None
    assert n >= 10, "they are not all left to click"


def test_a_pipe_is_read_by_one_parser_only() -> None:
    code = (
        "import sys; from llama_rs.cli import find_command;"
        "print(find_command('generate').parse(['--grammar', '/dev/stdin', 'x']), sys.stdin.read())"
    )
    done = subprocess.run([sys.executable, "-c", code], input="there", capture_output=True, text=True, check=True)
    assert done.stdout == "None there\n"


SLOW = ("click", "typing", "re", "enum", "contextlib", "functools", "importlib", "inspect", "json", "numpy")
"""Modules that take a good part of the time to the first token to import."""


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_first_token_waits_for_no_slow_module(command: str, tiny: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); from llama_rs.__main__ import main; code = main();"
        f"print(code, [name for name in {SLOW} if name in sys.modules.keys() - before], file=sys.stderr)"
    )
    words = [command, "-m", str(tiny), "-n", "1", "the sea"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stderr == "0 []\n"


def test_ordinary_arguments_need_no_click(tiny: Path) -> None:
    code = (
        "import sys; from llama_rs.cli import main; code = main(sys.argv[1:]);"
        "print(code, 'click' in sys.modules, file=sys.stderr)"
    )
    run = [sys.executable, "-c", code, "generate", "-m", str(tiny), "-n", "1"]
    for words, said in ((["the sea"], "0 False"), (["-n2", "the sea"], "0 True")):
        done = subprocess.run([*run, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert done.stderr == f"{said}\n"
    done = subprocess.run([*run, "-m", "", "x"], capture_output=True, text=True, check=True)
    assert done.stderr == "error: the name of the model is empty (see llama-rs generate --help)\n2 False\n"
