"""Quantising files: against the gguf package and what llama.cpp was seen to do; files whole or not at all."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import mix_cases
import numpy as np
import pytest
import reference
import tiny_model
from gguf import GGMLQuantizationType as DType
from llama_rs import Checkpoint, Model, ModelFormatError, ModelNotFoundError, Tokenizer
from llama_rs.quantization import MIXES, TYPES, quantize
from llama_rs.quantization import imatrix as imatrix_of
from numpy.typing import NDArray
from test_cli import bad, data, good, sees_interrupts, warned

ROUNDED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16"]
"""Types that gguf writes too, and in one way only."""


def weights(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Weights as models have them: a few are large."""
    x = np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.03
    return x.astype(np.float32)


def write(path: Path, tensors: Mapping[str, NDArray[Any]], **pairs: Any) -> Path:
    """A GGUF file of these tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    for key, value in pairs.items():
        writer.add_string(key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def imatrix(path: Path, entries: Mapping[str, NDArray[Any]], counts: Mapping[str, Any] | None = None) -> Path:
    """An importance matrix as llama.cpp writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["a text"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums in entries.items():
        count = np.array((counts or {}).get(name, [[512.0]]), dtype=np.float32)
        writer.add_tensor(f"{name}.in_sum2", np.atleast_2d(sums).astype(np.float32))
        writer.add_tensor(f"{name}.counts", count)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def raw(path: Path, name: str) -> NDArray[np.uint8]:
    return np.asarray(Checkpoint(path).tensors[name].numpy()).copy().view(np.uint8)


def error(path: Path, name: str, x: NDArray[np.float32]) -> float:
    lost = Checkpoint(path).tensors[name].dequantize() - x
    return float(np.mean(lost.astype(np.float64) ** 2))


def mix_of(dtype: str) -> str:
    """A mix whose base type it is."""
    return next(mix for mix, base in MIXES.items() if base == dtype)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_types_that_are_rounded_have_the_bytes_of_gguf(dtype: str, tmp_path: Path) -> None:
    x = weights(9, 512)
    x[1] = 0
    x[2, :300] = -1e-7
    x[3] = np.linspace(-1, 1, 512)
    x[4, 5] = 6e4
    source = write(tmp_path / "source.gguf", {"a.weight": x})
    target = tmp_path / "target.gguf"
    quantize(source, target, mix_of(dtype), pure=True)
    assert np.array_equal(raw(target, "a.weight").ravel(), gguf.quantize(x, DType[dtype]).view(np.uint8).ravel())


@pytest.mark.parametrize("dtype", [t for t in TYPES if t not in (*ROUNDED, "F32")])
def test_types_that_are_searched_for_lose_what_their_bits_must(dtype: str, tmp_path: Path) -> None:
    # Mean squared error of a normal distribution at so many bits, with some room: the theory has 4^-bits, codes
    # that can be decoded quickly have two to four times that.
    block, size = gguf.GGML_QUANT_SIZES[DType[dtype]]
    bits = 8 * size / block
    x = np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32) * 0.02
    source = write(tmp_path / "source.gguf", {"token_embd.weight": x})
    target = tmp_path / "target.gguf"
    quantize(source, target, mix_of(dtype), pure=True)
    relative = error(target, "token_embd.weight", x) / float(np.mean(x**2))
    assert 4.0**-bits < relative < 5 * 4.0**-bits, (bits, relative)
    # What gguf reads is what we read.
    lost = gguf.dequantize(raw(target, "token_embd.weight").reshape(16, -1), DType[dtype])
    assert np.array_equal(lost, Checkpoint(target).tensors["token_embd.weight"].dequantize())


@pytest.mark.parametrize(
    "dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_XS", "IQ1_S"]
)
def test_what_is_important_loses_less(dtype: str, tmp_path: Path) -> None:
    x = weights(32, 256)
    important = np.ones(256, dtype=np.float32)
    important[::8] = 100
    source = write(tmp_path / "source.gguf", {"blk.0.ffn_up.weight": x})
    matrix = imatrix(tmp_path / "imatrix.gguf", {"blk.0.ffn_up.weight": important * 512})
    targets = tmp_path / "with.gguf", tmp_path / "without.gguf"
    quantize(source, targets[0], mix_of(dtype), pure=True, imatrix=matrix)
    even = imatrix(tmp_path / "even.gguf", {"blk.0.ffn_up.weight": np.full(256, 512, dtype=np.float32)})
    quantize(source, targets[1], mix_of(dtype), pure=True, imatrix=even)
    lost = [(Checkpoint(t).tensors["blk.0.ffn_up.weight"].dequantize() - x) ** 2 for t in targets]
    assert lost[0][:, ::8].mean() < 0.9 * lost[1][:, ::8].mean()
    assert (lost[0] * important).mean() < (lost[1] * important).mean()


CASES = mix_cases.CASES


@pytest.mark.parametrize("case", CASES)
def test_each_mix_has_the_types_that_llama_cpp_gives_it(case: str, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    mix_cases.write(source, CASES[case])
    shapes = mix_cases.tensors(CASES[case])
    ones = {n: np.ones((*s[:-2], s[-1])) for n, s in shapes.items() if len(s) > 1 and "gate_inp" not in n}
    matrix = imatrix(
        tmp_path / "imatrix.gguf",
        {n: x.reshape(-1, x.shape[-1]) for n, x in ones.items()},
        {n: np.ones((x.size // x.shape[-1], 1)) for n, x in ones.items()},
    )
    stored = mix_cases.stored()[case]
    assert {mix.rstrip("+") for mix in stored} == set(MIXES)
    for mix, expected in stored.items():
        done = quantize(source, None, mix.rstrip("+"), imatrix=matrix if mix.endswith("+") else None)
        assert mix_cases.by_kind({t.name: t.type for t in done.tensors}) == expected, mix


def test_a_quantised_model_answers_as_its_source(smollm2: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "f16.gguf", tmp_path / "q6_k.gguf"
    quantize(smollm2, whole, "F16", allow_requantize=True)
    told: list[tuple[int, int]] = []
    done = quantize(whole, half, "Q6_K", on_progress=lambda n, of: told.append((n, of)))
    assert done.bits_per_weight < 9  # rows of 576: most are Q8_0
    assert told == sorted(told) and told[-1] == (half.stat().st_size,) * 2
    metadata = Checkpoint(half).metadata
    assert (metadata["general.file_type"], metadata["general.quantization_version"]) == (18, 2)
    tokens = Tokenizer(whole).encode("The keeper wrote the weather into his book: wind from the west, and rain.")
    exact, ours = (Model(path).logits(tokens) for path in (whole, half))
    # Of a few words; the weights alone cost 0.026, the rounding of activations 0.009.
    assert 0 < reference.kl_divergence(exact, ours).mean() < 0.05


def test_the_same_bytes_with_any_number_of_threads_and_instruction_set(tmp_path: Path) -> None:
    x = weights(64, 512)
    source = write(tmp_path / "source.gguf", {f"blk.0.{n}.weight": x for n in ("attn_q", "attn_v", "ffn_down")})
    for dtype in ("Q4_K", "IQ4_XS", "IQ3_S"):
        files = []
        for threads in (1, 7):
            files.append(tmp_path / f"{threads}.gguf")
            quantize(source, files[-1], mix_of(dtype), threads=threads, pure=True)
        assert len({file.read_bytes() for file in files}) == 1


def test_wishes_come_before_rules(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    mix_cases.write(source, CASES["untied"])

    def types(**wishes: Any) -> dict[str, str]:
        return {t.name: t.type for t in quantize(source, None, "Q4_K_M", **wishes).tensors}

    plain = types()
    assert plain["output.weight"] == "Q6_K"
    assert types(output_type="Q8_0") == plain | {"output.weight": "Q8_0"}
    assert types(token_embedding_type="f16") == plain | {"token_embd.weight": "F16"}
    downs = {f"blk.{i}.ffn_down.weight": "Q5_0" for i in range(mix_cases.LAYERS)}
    chosen = [(r"blk\.3\.ffn_down", "IQ4_NL"), ("ffn_down", "Q5_0")]
    assert types(tensor_types=chosen) == plain | downs | {"blk.3.ffn_down.weight": "IQ4_NL"}
    assert set(types(pure=True).values()) == {"Q4_K", "F32"}
    tied = tmp_path / "tied.gguf"
    mix_cases.write(tied, CASES["plain"])
    done = quantize(tied, None, "Q4_K_M", output_type="Q8_0")
    assert done.tensors[0].type == "Q8_0"


def test_both_formats_of_importance_matrices_say_the_same(tmp_path: Path) -> None:
    x, important = weights(8, 256), np.random.default_rng(3).gamma(1.0, size=256).astype(np.float32)
    name = "blk.0.ffn_up.weight"
    source = write(tmp_path / "source.gguf", {name: x})
    new = imatrix(tmp_path / "new.gguf", {name: important * 64}, {name: [[64.0]]})
    encoded = name.encode()
    old = tmp_path / "old.dat"
    old.write_bytes(
        struct.pack("<ii", 1, len(encoded))
        + encoded
        + struct.pack("<ii", 64, 256)
        + (important * 64).tobytes()
        + struct.pack("<ii", 7, 6)
        + b"a text"
    )
    files = []
    for matrix in (new, old):
        files.append(tmp_path / f"{matrix.name}.out")
        quantize(source, files[-1], "IQ2_XS", imatrix=matrix, pure=True)
        assert Checkpoint(files[-1]).metadata["quantize.imatrix.dataset"] == "a text"
    assert np.array_equal(raw(files[0], name), raw(files[1], name))


def test_importance_matrices_that_are_wrong_are_refused(tmp_path: Path) -> None:
    name = "blk.0.ffn_up.weight"
    source = write(tmp_path / "source.gguf", {name: weights(2, 256)})

    def refused(matrix: Path, words: str, kind: type[Exception] = ModelFormatError) -> None:
        with pytest.raises(kind, match=words):
            quantize(source, tmp_path / "target.gguf", "IQ2_XS", imatrix=matrix, pure=True)

    def dat(content: bytes) -> Path:
        path = tmp_path / "bad.dat"
        path.write_bytes(content)
        return path

    for bad_value in (np.nan, np.inf, -1.0):
        values = np.ones(256)
        values[7] = bad_value
        refused(imatrix(tmp_path / "bad.gguf", {name: values}), "not a number of 0 or more")
    refused(imatrix(tmp_path / "small.gguf", {name: np.ones(128)}), "128 importances .* expected 256", ValueError)
    refused(imatrix(tmp_path / "other.gguf", {"blk.1.ffn_up.weight": np.ones(256)}), "has nothing for it", ValueError)
    refused(imatrix(tmp_path / "counts.gguf", {name: np.ones(256)}, {name: [[1.0]] * 3}), "counts do not fit")
    refused(source, "no importance matrix")
    refused(dat(b""), "ends early")
    refused(dat(struct.pack("<i", 2**31 - 1)), "not an importance matrix")
    refused(dat(struct.pack("<i", -1)), "not an importance matrix")
    refused(dat(struct.pack("<iii", 1, 1, 0)), "ends early")
    refused(dat(struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 28)), "ends early")
    with pytest.raises(ModelNotFoundError):
        quantize(source, tmp_path / "target.gguf", "IQ2_XS", imatrix=tmp_path / "absent", pure=True)
    assert not (tmp_path / "target.gguf").exists()


def test_weights_that_no_block_holds_are_refused(tmp_path: Path) -> None:
    for value, words in (
        (np.nan, "not a number"),
        (np.inf, "not a number"),
        (-70000.0, "70000, and Q4_K holds none above"),
    ):
        x = weights(4, 256)
        x[3, 200] = value
        source = write(tmp_path / "source.gguf", {"a.weight": x})
        with pytest.raises(Exception, match=f"row 3 of a.weight has .*{words}"):
            quantize(source, tmp_path / "target.gguf", "Q4_K_S", pure=True)
    quantize(source, tmp_path / "target.gguf", "BF16")
    assert sorted(os.listdir(tmp_path)) == ["source.gguf", "target.gguf"]


def test_a_quantised_source_is_refused_unless_it_is_allowed(smollm2: Path, tmp_path: Path) -> None:
    words = r"is quantized already.*allow it to be requantized \(from Q4_1 to Q5_K\)"
    with pytest.raises(ValueError, match=words):
        quantize(smollm2, tmp_path / "a.gguf", "Q4_K_S")
    assert "is quantized already" in bad(2, "quantize", smollm2, tmp_path / "a.gguf", "--type", "q4_k_s")
    assert quantize(smollm2, None, "Q4_K_S", allow_requantize=True).tensors
    assert not os.listdir(tmp_path)


def test_the_command_writes_what_it_says(tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    mix_cases.write(source, CASES["untied"])
    done = good("quantize", source, target, "--type", "q4_k_m", "--tensor-type", "attn_q=Q8_0", "--threads", "2")
    assert done.startswith(f"{target}: ") and "bits a weight, in " in done
    types = {name: t.dtype for name, t in Checkpoint(target).tensors.items()}
    assert types["blk.5.attn_q.weight"] == "Q8_0"
    plan = good("quantize", source, "--type", "Q4_K_M", "--dry-run", "--tensor-type", "attn_q=Q8_0")
    assert "blk.5.attn_q.weight" in plan and "-> Q8_0" in plan
    facts = data("quantize", source, "--type", "Q4_K_M", "--dry-run", "--tensor-type", "attn_q=Q8_0")
    assert {t["name"]: t["type"] for t in facts["tensors"]} == types
    odd = tmp_path / "odd.gguf"
    mix_cases.write(odd, CASES["odd rows"])
    _, message = warned("quantize", odd, target, "--type", "Q4_K_M")
    assert "rows of 288, not whole blocks of 256" in message


def test_wrong_usage_is_said(tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    mix_cases.write(source, CASES["plain"])
    assert "--dry-run" in bad(2, "quantize", source, "--type", "Q4_K_M")
    assert "--type" in bad(2, "quantize", source, target)
    assert "Q9" in bad(2, "quantize", source, target, "--type", "Q9")
    assert "pattern and a type" in bad(2, "quantize", source, target, "--type", "Q8_0", "--tensor-type", "Q8_0")
    assert "regular expression" in bad(2, "quantize", source, target, "--type", "Q8_0", "--tensor-type", "(=Q8_0")
    patterns = "--tensor-type", "ffn_down=Q6_K", "--tensor-type", "nothing=Q8_0"
    assert "whose name 'nothing' is found" in bad(2, "quantize", source, target, "--type", "Q8_0", *patterns)
    assert "no importance matrix: llama-rs imatrix makes one" in bad(2, "quantize", source, target, "--type", "IQ2_XS")
    assert "in use by this process" in bad(3, "quantize", source, source, "--type", "Q8_0")
    assert "absent" in bad(3, "quantize", tmp_path / "absent", target, "--type", "Q8_0")
    assert "No such file" in bad(3, "quantize", source, tmp_path / "absent" / "target.gguf", "--type", "Q8_0")
    assert not target.exists()


def test_a_disk_that_is_full_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on the size of files is as good as a full disk.
    source, target = write(tmp_path / "source.gguf", {"a.weight": weights(512, 512)}), tmp_path / "target.gguf"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from llama_rs.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "quantize", str(source), str(target), "--type", "Q8_0"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode == 3 and b"File too large" in done.stderr, done.stderr
    assert os.listdir(tmp_path) == ["source.gguf"]


def _started(source: Path, target: Path) -> subprocess.Popen[bytes]:
    """A process in the middle of it."""
    command = [
        sys.executable,
        "-m",
        "llama_rs",
        "quantize",
        str(source),
        str(target),
        "--type",
        "Q8_0",
        "--tensor-type",
        ".=IQ1_M",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=sees_interrupts)
    usage = Path(f"/proc/{process.pid}/stat")
    while int(usage.read_text().rsplit(")", 1)[1].split()[11]) < 100:  # a second of work, start included
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_stopped_leaves_nothing(how: int, tmp_path: Path) -> None:
    source, target = (
        write(tmp_path / "source.gguf", {"token_embd.weight": weights(4096, 2048)}),
        tmp_path / "target.gguf",
    )
    target.write_bytes(b"what was there")
    process = _started(source, target)
    process.send_signal(how)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert said == b""
    assert sorted(os.listdir(tmp_path)) == ["source.gguf", "target.gguf"]
    assert target.read_bytes() == b"what was there"


def test_a_callback_that_fails_stops_it(tmp_path: Path) -> None:
    source, target = write(tmp_path / "source.gguf", {"a.weight": weights(64, 256)}), tmp_path / "target.gguf"

    def fail(done: int, whole: int) -> None:  # noqa: ARG001
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        quantize(source, target, "Q8_0", on_progress=fail)
    # It had been told that all is there: then it is. What matters is that the error is not lost.
    assert set(os.listdir(tmp_path)) <= {"source.gguf", "target.gguf"}


def test_parts_become_one_file_and_alignment_is_ours(tiny_models: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny_models("F32")
    target = tmp_path / "target.gguf"
    quantize(source, target, "Q8_0")
    old, new = Checkpoint(source), Checkpoint(target)
    assert list(old.tensors) == list(new.tensors)
    changed = {"general.file_type", "general.quantization_version", "general.alignment"}
    kept = [key for key in old.metadata if key not in changed]
    assert all(old.metadata[key] == new.metadata[key] for key in kept)


def test_importances_are_mean_squares_of_what_matrices_are_multiplied_with(
    tiny_models: Callable[[str], Path], tmp_path: Path
) -> None:
    path, target = tiny_models("F32"), tmp_path / "imatrix.gguf"
    model = Model(path)
    text = (tiny_model.SENTENCES * 2).strip()
    told: list[tuple[int, int]] = []
    done = imatrix_of(
        model,
        text,
        target,
        dataset="sentences",
        chunk_length=32,
        max_chunks=3,
        on_chunk=lambda n, of: told.append((n, of)),
    )
    assert (done.chunks, done.tokens, told) == (3, 96, [(1, 3), (2, 3), (3, 3)])
    file = Checkpoint(target)
    assert file.metadata["general.type"] == "imatrix" and list(file.metadata["imatrix.datasets"]) == ["sentences"]
    assert (file.metadata["imatrix.chunk_count"], file.metadata["imatrix.chunk_size"]) == (3, 32)
    matrices = {name for name, t in model.tensors.items() if name.startswith("blk.") and len(t.shape) > 1}
    assert set(file.tensors) == {f"{name}.{suffix}" for name in matrices for suffix in ("in_sum2", "counts")}

    ids = model.tokenizer.encode(text, parse_special=False)[:96]
    bos = model.tokenizer.bos
    if bos is not None and model.tokenizer.encode("")[:1] == [bos]:
        ids[0] = ids[32] = ids[64] = bos
    x = model.tensors["token_embd.weight"].dequantize()[ids].astype(np.float64)
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + model.config.norm_eps)
    x *= model.tensors["blk.0.attn_norm.weight"].dequantize()
    for name in ("attn_q", "attn_k", "attn_v"):
        sums = file.tensors[f"blk.0.{name}.weight.in_sum2"].numpy()
        assert np.allclose(sums, np.sum(x**2, axis=0), rtol=1e-5)
        assert file.tensors[f"blk.0.{name}.weight.counts"].numpy().tolist() == [[96.0]]
    with pytest.raises(ValueError, match="measured already"):
        imatrix_of(model, text, target, chunk_length=32)


def test_the_command_measures_and_quantize_takes_it(tiny_models: Callable[[str], Path], tmp_path: Path) -> None:
    source, matrix, text = tiny_models("F32"), tmp_path / "imatrix.gguf", tmp_path / "text.txt"
    text.write_text(tiny_model.SENTENCES * 4)
    said = good("imatrix", "-m", source, "-f", text, "-o", matrix, "-c", "64", "--chunks", "2")
    assert said.startswith(f"{matrix}: 128 tokens in 2 chunks, ")
    done = data("quantize", source, tmp_path / "small.gguf", "--type", "Q4_0", "--imatrix", matrix, "--pure")
    assert {t["type"] for t in done["tensors"]} <= {"Q4_0", "F32", "F16"}
    metadata = Checkpoint(tmp_path / "small.gguf").metadata
    assert (metadata["quantize.imatrix.dataset"], metadata["quantize.imatrix.chunks_count"]) == ("text.txt", 2)
    assert "too few for a chunk of 512" in bad(1, "imatrix", "-m", source, "-o", matrix, stdin=b"Once upon a time")
