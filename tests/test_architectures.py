"""Every architecture against somebody else's logits, and everything that it has shown to matter.

The models are those of `oracle.cases`, made again from their names; the logits are mlx-lm's and llama.cpp's, stored.
`python tests/oracle/compare.py NAME` says more about a case that fails here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from llama_rs import Model, UnsupportedModelError
from oracle import stored
from oracle.cases import CASES, TOKENS
from oracle.compare import deviation, our_logits

NOT_YET: set[str] = {
    "llama-biases",
    "llama-yarn",
    "qwen3",
    "phi3",
    "phi3-longrope-long",
    "phi3-longrope-short",
    "gemma",
    "gemma2",
    "gemma3",
    "granite",
    "smollm3",
    "olmo2",
    "mistral3",
    "mixtral",
    "qwen2moe",
    "qwen3moe",
    "olmoe",
    "granitemoe",
    "granitemoe-shared",
    "glm4moe",
    "gpt-oss",
    "gpt-oss-mxfp4",
    "exaone4",
    "exaone4-window",
    "command-r",
    "cohere2",
    "glm4",
    "seed-oss",
    "ernie4-5",
    "hunyuan-dense",
    "minicpm",
    "minicpm-old",
    "starcoder2",
    "arcee",
}
"""Cases that we do not run yet. They are refused; one that runs has to leave."""

RUN = [name for name in CASES if name not in NOT_YET]


@pytest.mark.parametrize("name", RUN)
def test_logits_are_those_of_others(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.make().write_gguf(tmp_path / "tiny.gguf")
    assert deviation(our_logits(path, case), stored.read(name)) <= case.tolerance


@pytest.mark.parametrize("name", RUN)
def test_everything_in_a_model_has_influence(tmp_path: Path, name: str) -> None:
    """Each tensor and each key: what is left out of a pass, or read from the wrong place, is seen above."""
    case, exact = CASES[name], stored.read(name)
    for what, change in case.influences().items():
        path = case.make().changed(change).write_gguf(tmp_path / "tiny.gguf")
        assert deviation(our_logits(path, case), exact) > case.visible, what


@pytest.mark.parametrize("name", RUN)
def test_what_is_said_to_have_no_influence_has_none(tmp_path: Path, name: str) -> None:
    case, exact = CASES[name], stored.read(name)
    for what, change in case.inert_changes().items():
        path = case.make().changed(change).write_gguf(tmp_path / "tiny.gguf")
        assert deviation(our_logits(path, case), exact) <= case.tolerance, what


@pytest.mark.parametrize("name", RUN)
def test_a_prompt_in_pieces_has_the_same_bits(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.make().write_gguf(tmp_path / "tiny.gguf")
    whole = our_logits(path, case)
    with Model(path).session(context_length=case.context) as session:
        at = 0
        for n in (1, 1, 7, 2, 16, 1, 20):
            np.testing.assert_array_equal(session.logits(TOKENS[at : at + n]), whole[at : at + n])
            at += n
    assert at == len(TOKENS)


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_what_we_do_not_run_yet_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        Model(CASES[name].make().write_gguf(tmp_path / "tiny.gguf"))


def test_every_architecture_that_we_run_has_a_case(tmp_path: Path) -> None:
    tiny = CASES["llama"].make()
    tiny.arch = "nobody"
    with pytest.raises(UnsupportedModelError, match=r"architecture nobody; .*") as error:
        Model(tiny.write_gguf(tmp_path / "tiny.gguf"))
    names = re.search(r"nobody; (.*) (?:is|are) supported", str(error.value))
    assert names
    assert set(re.split(r", | and ", names[1])) <= {case.make().arch for case in CASES.values()}


def test_stored_logits_are_those_of_a_case() -> None:
    assert {path.stem for path in stored.FOLDER.iterdir()} == set(CASES)
