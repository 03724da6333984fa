"""The forward pass against the exact one of `reference`, on a real model and on tiny ones, with every kernel set."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bad_gguf
import numpy as np
import pytest
import quality
import reference
import tiny_model
from dtypes import FLOAT_TYPES, TYPES
from llama_rs import ContextOverflowError, Model
from numpy.typing import NDArray
from tiny_model import write_tiny_model

Array = NDArray[np.float32]
TinyModels = Callable[[str], Path]

CPUS = quality.available_cpus()
TOKENS = [int(t) for t in np.random.default_rng(7).integers(0, 256, 40)]

# How far logits may be from the reference: the root mean square of the difference, in deviations of the logits.
#
# Float types: keys and values are kept as f16, which rounds by at most 2^-11 = 0.05 %; sums of f32 add less.
#
# Quantised types: activations are int8, 127 steps for the largest of 32. For a normal distribution that is 2.1 standard
# deviations, so rounding errors, uniform in a step, have 2.1 / 127 / sqrt(12) = 0.48 % of the activations' deviation.
# Every product with a matrix takes over that much. Two layers have eight products between input and output that each
# see a fresh rounding; were none of it diluted by the residual stream, that would be sqrt(8) * 0.48 % = 1.4 %.
# One weight in 32 read from the wrong place would be sqrt(2 / 32) = 25 % at once.
#
# The same roundings, summed up in another order (one row and many are not multiplied by the same kernel): f32 only.
FLOAT_TOLERANCE = 0.0005
INT8_TOLERANCE = 0.014


def tolerance(dtype: str) -> float:
    return FLOAT_TOLERANCE if dtype in FLOAT_TYPES else INT8_TOLERANCE


def deviation(ours: Array, exact: Array) -> float:
    """The root mean square of the difference, in standard deviations of the exact logits."""
    assert ours.shape == exact.shape
    assert ours.dtype == np.float32
    return float(np.sqrt(np.mean((ours - exact) ** 2)) / exact.std())


# -- A real model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def exact_prose(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of prose and the reference's logits of them."""
    path = tmp_path_factory.mktemp("quality") / "reference.npz"
    quality.write_reference(smollm2, 1024, path)
    return path


@pytest.mark.parametrize("cpu", CPUS)
def test_smollm2_is_as_close_to_exact_as_llama_cpp(smollm2: Path, exact_prose: Path, cpu: str) -> None:
    positions = 512 if cpu == "scalar" else 1024  # half as much where it is slow
    q = quality.measure(smollm2, exact_prose, cpu, positions=positions)
    assert (q.cpu, q.positions) == (cpu, positions)
    assert q.mean <= 0.0032
    assert q.same_top >= 0.95


@pytest.mark.parametrize("cpu", [cpu for cpu in CPUS if cpu != "scalar"])
def test_a_q8_0_cache_moves_the_logits_a_little(smollm2: Path, exact_prose: Path, cpu: str) -> None:
    half, q8_0 = (quality.measure(smollm2, exact_prose, cpu, positions=512, kv_type=t) for t in ("f16", "q8_0"))
    assert q8_0.kv_type == "q8_0"
    assert half.mean < q8_0.mean < 1.5 * half.mean
    assert q8_0.same_top >= 0.95


# -- Tiny models -------------------------------------------------------------------------------------------------------


def logits_of(models: Sequence[Path], cpu: str, folder: Path) -> dict[str, Array]:
    """Our logits of `TOKENS` by file name, from a process that uses the kernels of `cpu`."""
    code = """
import sys
import numpy as np
from pathlib import Path
from llama_rs import Model, _core

out, cpu, tokens, *models = sys.argv[1:]
assert _core.cpu() == cpu, _core.cpu()
tokens = [int(t) for t in tokens.split(",")]
np.savez(out, **{Path(m).stem: Model(m, threads=2).logits(tokens) for m in models})
"""
    out = folder / f"{cpu}.npz"
    tokens = ",".join(map(str, TOKENS))
    command = [sys.executable, "-c", code, str(out), cpu, tokens, *map(str, models)]
    subprocess.run(command, env=os.environ | {"LLAMA_RS_CPU": cpu}, check=True)
    with np.load(out) as file:
        return dict(file)


@pytest.fixture(scope="session")
def exact(tiny_models: TinyModels) -> dict[str, Array]:
    return {dtype: reference.logits(tiny_models(dtype), TOKENS) for dtype in TYPES}


@pytest.fixture(scope="session", params=CPUS)
def ours(request: pytest.FixtureRequest, tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return logits_of([tiny_models(dtype) for dtype in TYPES], request.param, tmp_path_factory.mktemp("logits"))


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_close_to_exact(ours: dict[str, Array], exact: dict[str, Array], dtype: str) -> None:
    assert deviation(ours[dtype], exact[dtype]) <= tolerance(dtype)


SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "freq_factors": {"rope_freq_factors": True},  # Llama 3.1 and later
    "rope_theta": {"rope_theta": 500_000.0},
    "rope_scale": {"rope_scale": 4.0},
    "half_of_a_head_is_rotated": {"rope_dim": 8},
    "as_many_kv_heads": {"n_kv_heads": 4},
    "one_kv_head": {"n_kv_heads": 1},
    "three_heads_share": {"dim": 96, "n_heads": 3, "n_kv_heads": 1},
    "wide_heads": {"head_dim": 128},
    "one_layer": {"n_layers": 1},
    "five_layers": {"n_layers": 5},
    "layers_that_differ": {"n_layers": 3, "n_heads": [4, 8, 2], "n_kv_heads": [2, 1, 2], "hidden_dim": [160, 64, 288]},
    "mixed": {"dim": 256, "dtypes": {"attn_v": "Q6_K", "ffn_down": "Q5_K", "token_embd": "Q8_0", "output": "F16"}},
}


@pytest.mark.parametrize("dtype", ["F32", "Q4_0"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("arch", tiny_model.ARCHITECTURES)
def test_every_shape_is_close_to_exact(tmp_path: Path, arch: str, shape: str, dtype: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", dtype, arch=arch, **SHAPES[shape])
    # The roundings of more layers add up as their squares do.
    layers = max(SHAPES[shape].get("n_layers", 2) / 2, 1) ** 0.5
    kind = "Q4_0" if shape == "mixed" else dtype
    assert deviation(Model(path).logits(TOKENS), reference.logits(path, TOKENS)) <= layers * tolerance(kind)


@pytest.mark.parametrize("cpu", CPUS)
def test_every_architecture_is_close_to_exact(tmp_path: Path, cpu: str) -> None:
    paths = {
        f"{arch}-{dtype}": write_tiny_model(tmp_path / f"{arch}-{dtype}.gguf", dtype, arch=arch)
        for arch in tiny_model.ARCHITECTURES
        for dtype in ("F32", "Q4_0")
    }
    ours = logits_of(list(paths.values()), cpu, tmp_path)
    for name, path in paths.items():
        assert deviation(ours[name], reference.logits(path, TOKENS)) <= tolerance(name.split("-")[1]), name


def no_weight(name: str) -> Callable[[reference.Decoder], object]:
    return lambda decoder: decoder.weights.pop(name)


def attribute(name: str, value: Any) -> Callable[[reference.Decoder], object]:
    return lambda decoder: setattr(decoder, name, value)


WITHOUT: dict[str, tuple[dict[str, Any], Callable[[reference.Decoder], object]]] = {
    "frequency factors": ({"rope_freq_factors": True}, no_weight("rope_freqs.weight")),
    "rope scale": ({"rope_scale": 4.0}, attribute("rope_scale", 1.0)),
    "rope dim": ({"rope_dim": 8}, attribute("rope_dim", 16)),
    "rope theta": ({"rope_theta": 500_000.0}, attribute("rope_theta", 10_000.0)),
    "interleaved": ({"arch": "llama"}, attribute("rope_style", "half")),
    "half": ({"arch": "qwen2"}, attribute("rope_style", "interleaved")),
    "bias of queries": ({"arch": "qwen2"}, no_weight("blk.1.attn_q.bias")),
    "bias of keys": ({"arch": "qwen2"}, no_weight("blk.1.attn_k.bias")),
    "bias of values": ({"arch": "qwen2"}, no_weight("blk.1.attn_v.bias")),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_what_is_compared_above_matters(tmp_path: Path, what: str) -> None:
    """Else those tests would pass without it."""
    shape, switch_off = WITHOUT[what]
    path = write_tiny_model(tmp_path / "tiny.gguf", "F32", **shape)
    without = reference.Decoder(path)
    switch_off(without)
    assert deviation(without.logits(TOKENS), reference.logits(path, TOKENS)) > 3 * INT8_TOLERANCE


def write_fixed_model(path: Path, arch: str) -> Path:
    """The model of `forward.rs`: its numbers follow from where they stand, see `Gguf::fixed` in `gguf_builder.rs`."""
    file = {"llama": bad_gguf.good, "qwen2": bad_gguf.good_qwen2}[arch]()
    for t, tensor in enumerate(file.tensors.values()):
        n = int(np.prod(tensor.dims))
        numbers = (40503 * np.arange(n) + 7919 * t + 12345) % 65521 / 65521 - 0.5
        name = str(tensor.name)
        numbers = numbers + 1 if name.endswith("norm.weight") else 8 * numbers if name.endswith("bias") else numbers
        tensor.data = numbers.astype("<f4").tobytes()
    path.write_bytes(file.content())
    return path


@pytest.mark.parametrize("arch", tiny_model.ARCHITECTURES)
def test_the_logits_that_cargo_test_knows_are_those_of_the_reference(tmp_path: Path, arch: str) -> None:
    source = Path(__file__).with_name("forward.rs").read_text()
    found = re.search(rf"{arch.upper()}: \[\[f32; 6\]; 4\] = (\[.*?\]);", source, re.DOTALL)
    assert found, f"forward.rs has no logits of {arch}"
    known = np.array(ast.literal_eval(found[1]), np.float32)
    exact = reference.logits(write_fixed_model(tmp_path / "fixed.gguf", arch), [1, 200, 3, 77])[:, :6]
    np.testing.assert_allclose(known, exact, atol=1e-5, err_msg=str(exact.round(5).tolist()))


@pytest.mark.parametrize("arch", tiny_model.ARCHITECTURES)
def test_a_model_in_parts_is_the_model(tmp_path: Path, arch: str) -> None:
    whole = Model(write_tiny_model(tmp_path / "whole.gguf", "Q4_0", arch=arch))
    parts = Model(write_tiny_model(tmp_path / "parts.gguf", "Q4_0", arch=arch, split=5))
    assert len(list(tmp_path.glob("parts-*"))) > 3
    np.testing.assert_array_equal(parts.logits(TOKENS), whole.logits(TOKENS))


def test_a_prompt_longer_than_a_batch_is_close_to_exact(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", "F32", context_length=2048)
    tokens = [int(t) for t in np.random.default_rng(8).integers(0, 256, 1100)]
    exact = reference.logits(path, tokens)
    model = Model(path)
    assert deviation(model.logits(tokens), exact) <= FLOAT_TOLERANCE
    with model.session() as session:
        assert deviation(session.forward(tokens), exact[-1]) <= FLOAT_TOLERANCE


# -- Sessions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", CPUS)
def test_every_cut_of_a_prompt_gives_the_same_bits(tiny_models: TinyModels, smollm2: Path, cpu: str) -> None:
    """One by one, in pieces of any size, all at once: with every kernel set, every type, any number of threads."""
    code = """
import random
import sys
import numpy as np
from llama_rs import Model

rng = random.Random(7)
for path in sys.argv[2:]:
    for kv_type in ("f16", "q8_0") if Model(path).config.head_dim % 32 == 0 else ("f16",):
        tokens = [rng.randrange(256) for _ in range(int(sys.argv[1]))]
        expected = Model(path, threads=2, kv_type=kv_type).logits(tokens)
        for sizes in ([1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 17], [1, 30, 70]):
            with Model(path, threads=rng.choice([1, 2, 3]), kv_type=kv_type).session() as session:
                at = 0
                while at < len(tokens):
                    n = rng.choice(sizes)
                    got = session.logits(tokens[at : at + n])
                    same = got.tobytes() == expected[at : at + n].tobytes()
                    assert same, (path, kv_type, at, n, float(np.abs(got - expected[at : at + n]).max()))
                    at += n
"""
    for n, models in ((90, [tiny_models(dtype) for dtype in TYPES]), (16 if cpu == "scalar" else 400, [smollm2])):
        command = [sys.executable, "-c", code, str(n), *map(str, models)]
        subprocess.run(command, env=os.environ | {"LLAMA_RS_CPU": cpu}, check=True)


def test_forward_is_the_last_of_logits(tiny_models: TinyModels) -> None:
    model = Model(tiny_models("Q4_K"))
    with model.session() as a, model.session() as b:
        np.testing.assert_array_equal(a.forward(TOKENS), b.logits(TOKENS)[-1])


@pytest.mark.parametrize("dtype", ["F32", "Q4_0"])
def test_a_truncated_session_goes_on_as_if_the_rest_had_never_been(tiny_models: TinyModels, dtype: str) -> None:
    model = Model(tiny_models(dtype))
    with model.session() as session, model.session() as fresh:
        session.forward(TOKENS[:20])
        session.forward(TOKENS[20:])
        session.truncate(20)
        assert session.tokens == TOKENS[:20]
        fresh.forward(TOKENS[:20])
        other = TOKENS[:15]
        np.testing.assert_array_equal(session.logits(other), fresh.logits(other))


def test_logits_are_the_same_each_time(tiny_models: TinyModels) -> None:
    model = Model(tiny_models("Q4_0"))
    first = model.logits(TOKENS)
    for _ in range(5):
        np.testing.assert_array_equal(model.logits(TOKENS), first)


def test_sessions_in_threads_do_not_see_each_other(tiny_models: TinyModels) -> None:
    model = Model(tiny_models("Q4_0"))
    prompts = [TOKENS[i:] + TOKENS[:i] for i in range(8)]

    def one_by_one(prompt: list[int]) -> Array:
        with model.session() as session:
            return np.stack([session.forward([t]) for t in prompt])

    alone = [one_by_one(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one_by_one, prompts))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_does_not_matter(tiny_models: TinyModels, exact: dict[str, Array], threads: int) -> None:
    logits = Model(tiny_models("Q8_0"), threads=threads).logits(TOKENS)
    assert deviation(logits, exact["Q8_0"]) <= INT8_TOLERANCE
    np.testing.assert_array_equal(logits, Model(tiny_models("Q8_0"), threads=1).logits(TOKENS))


def test_a_full_context_is_an_error_and_changes_nothing(tiny_models: TinyModels) -> None:
    model = Model(tiny_models("Q4_0"))
    with model.session(context_length=20) as session, model.session() as fresh:
        room = session.context_length  # at least as much as was asked for
        tokens = [t % 256 for t in range(room + 1)]
        session.forward(tokens[: room - 2])
        with pytest.raises(ContextOverflowError):
            session.forward(tokens[room - 2 :])
        assert session.tokens == tokens[: room - 2]
        fresh.forward(tokens[: room - 2])
        last = tokens[room - 2 : room]
        np.testing.assert_array_equal(session.forward(last), fresh.forward(last))


def test_a_token_outside_the_vocabulary_is_an_error_and_changes_nothing(tiny_models: TinyModels) -> None:
    model = Model(tiny_models("Q4_0"))
    with model.session() as session:
        session.forward(TOKENS[:3])
        with pytest.raises(ValueError, match=str(model.config.vocab_size)):
            session.forward([1, model.config.vocab_size])
        assert session.tokens == TOKENS[:3]
