"""Every architecture against somebody else's logits, and everything that it has shown to matter.

The models are those of `oracle.cases`, made again from their names; the logits are mlx-lm's and llama.cpp's, stored.
`python tests/oracle/compare.py NAME` says more about a case that fails here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import pytest
import quality
from llama_rs import Model, UnsupportedModelError
from oracle import compare, stored
from oracle.cases import CASES, ENCODERS, TOKENS
from oracle.compare import deviation, our_logits
from oracle.tiny import in_blocks, unpacked

NOT_YET = {
    "mamba2",
    "nemotron_h",
    "nemotron_h_moe",
}
"""Architectures, and cases of others, that we do not run yet. They are refused; one that runs has to leave."""

ARCHITECTURES = {name: case.make().arch for name, case in CASES.items()}
RUN = [name for name, arch in ARCHITECTURES.items() if NOT_YET.isdisjoint({name, arch})]


@pytest.mark.parametrize("name", RUN)
def test_logits_are_those_of_others(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.make().write_gguf(tmp_path / "tiny.gguf")
    assert deviation(our_logits(path, case), stored.read(name)) <= case.tolerance


@pytest.mark.parametrize("cpu", quality.available_cpus())
def test_every_kernel_set_gives_them(cpu: str) -> None:
    command = [sys.executable, compare.__file__, *RUN]
    result = subprocess.run(
        command, env=os.environ | {"LLAMA_RS_CPU": cpu}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", RUN)
def test_everything_in_a_model_has_influence(tmp_path: Path, name: str) -> None:
    """Each tensor and each key: what is left out of a pass, or read from the wrong place, is seen above."""
    case, exact = CASES[name], stored.read(name)
    tiny = case.make()
    for what, change in case.influences().items():
        path = tiny.changed(change).write_gguf(tmp_path / "tiny.gguf")
        assert deviation(our_logits(path, case), exact) > case.visible, what


@pytest.mark.parametrize("name", RUN)
def test_what_is_no_part_of_a_model_and_other_forms_of_it_change_nothing(tmp_path: Path, name: str) -> None:
    case, exact = CASES[name], stored.read(name)
    tiny = case.make()
    for what, change in case.without_influence().items():
        path = tiny.changed(change).write_gguf(tmp_path / "tiny.gguf")
        assert deviation(our_logits(path, case), exact) <= case.tolerance, what


@pytest.mark.parametrize("name", RUN)
def test_matrices_in_blocks_are_those_matrices(tmp_path: Path, name: str) -> None:
    """Rows, experts and heads are cut out of blocks as they are cut out of floats.

    Activations are rounded to 8 bits then, by half a percent at each product, and attention is sharp here; now and then
    a router chooses another expert for it, which is why it is the median of the positions that counts. A row from the
    wrong place would change all of them, by about 1.
    """
    case = CASES[name]
    blocks = case.make().changed(in_blocks(gguf.GGMLQuantizationType.Q8_0))
    ours = our_logits(blocks.write_gguf(tmp_path / "blocks.gguf"), case)
    exact = our_logits(blocks.changed(unpacked).write_gguf(tmp_path / "floats.gguf"), case)
    apart = np.sqrt(np.mean((ours - exact) ** 2, axis=1)) / exact.std()
    assert 0 < np.median(apart) <= 0.2


@pytest.mark.parametrize("name", RUN)
def test_a_prompt_in_pieces_has_the_same_bits(tmp_path: Path, name: str) -> None:
    """Whether they end in a batch, at its end or beyond it."""
    tiny = CASES[name].make()
    tiny.keys[".context_length"] = 4096
    model = Model(tiny.write_gguf(tmp_path / "tiny.gguf"))
    tokens = (TOKENS * 15)[:700]
    with model.session(context_length=1024) as session:
        whole = session.logits(tokens)
    with model.session(context_length=1024) as session:
        at = 0
        for n in (1, 1, 7, 2, 37, 1, 16, 449, 1, 185):
            np.testing.assert_array_equal(session.logits(tokens[at : at + n]), whole[at : at + n], f"{n} at {at}")
            at += n
    assert at == len(tokens)


def test_every_architecture_that_we_run_has_a_case_and_every_case_runs(tmp_path: Path) -> None:
    tiny = CASES["llama"].make()
    tiny.arch = "nobody"
    with pytest.raises(UnsupportedModelError) as error:
        Model(tiny.write_gguf(tmp_path / "tiny.gguf"))
    names = re.search(r"architecture nobody; (.*)", str(error.value))
    assert names
    supported = set(re.findall(r"[\w-]+", names[1])) - {"and", "are", "supported"}
    encoders = {case.make().arch for case in ENCODERS.values()}
    assert supported == (set(ARCHITECTURES.values()) | encoders) - NOT_YET


@pytest.mark.parametrize("name", [name for name in CASES if name not in RUN])
def test_what_we_do_not_run_yet_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        Model(CASES[name].make().write_gguf(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("name", ENCODERS)
def test_vectors_and_scores_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    case = ENCODERS[name]
    assert compare.apart(case.make().write_gguf(tmp_path / "tiny.gguf"), name, case) <= case.tolerance


@pytest.mark.parametrize("name", ENCODERS)
def test_everything_in_an_encoder_has_influence(tmp_path: Path, name: str) -> None:
    case = ENCODERS[name]
    tiny = case.make()
    for what, change in case.influences().items():
        path = tiny.changed(change).write_gguf(tmp_path / "tiny.gguf")
        assert compare.apart(path, name, case) > case.visible, what
    for what, change in case.without_influence().items():
        path = tiny.changed(change).write_gguf(tmp_path / "tiny.gguf")
        assert compare.apart(path, name, case) <= case.tolerance, what


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_among_others_has_the_same_bits(tmp_path: Path, name: str) -> None:
    """Short and long ones, beyond a batch too, in blocks and with several threads."""
    tiny = ENCODERS[name].make().changed(in_blocks(gguf.GGMLQuantizationType.Q8_0))
    tiny.keys[".context_length"] = 1024
    if "position_embd.weight" in tiny.tensors:
        tiny.tensors["position_embd.weight"] = tiny.matrix("position_embd", 1024, 64, gain=8)
        tiny.types.pop("position_embd.weight", None)
    lengths = (3, 1, 700, 48, 2, 500, 13, 64, 65, 1, 300, 512, 9)
    texts = [(TOKENS * 15)[at : at + n] for at, n in enumerate(lengths)]
    poolings: list[Literal["mean", "cls", "last"]] = ["mean", "cls", "last"]
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    alone = Model(path, threads=1, context_length=1024)
    for threads in (1, 3):
        model = Model(path, threads=threads, context_length=1024)
        for pooling in poolings:
            together = model.embed(texts, pooling=pooling)
            assert together.shape == (len(texts), together.shape[1])
            for text, vector in zip(texts, together, strict=True):
                np.testing.assert_array_equal(alone.embed([text], pooling=pooling)[0], vector)


def test_stored_logits_are_those_of_a_case() -> None:
    assert {path.stem for path in stored.FOLDER.iterdir()} == {*CASES, *ENCODERS}
