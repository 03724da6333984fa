"""Hugging Face directories, as they lie and converted: the models of `oracle.cases` are there in both forms.

A case has the keys and tensors of a GGUF beside its directory. So what is read from the directory has to be those, but
for what the keys under `llama_rs.` say; and what is converted has to be those.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_rs import (
    Checkpoint,
    Model,
    ModelChangedError,
    ModelFileError,
    ModelFormatError,
    ModelNotFoundError,
    SavedSessionError,
    UnsupportedModelError,
    convert,
    merge,
    split,
)
from llama_rs.cli import main
from numpy.typing import NDArray
from oracle.cases import CASES, TOKENS
from oracle.compare import deviation, our_logits
from oracle.tiny import N_TOKENS, Tiny
from test_architectures import RUN

Array = NDArray[np.float32]


def directory_of(name: str, folder: Path) -> tuple[Tiny, Path]:
    tiny = CASES[name].make()
    return tiny, tiny.write_directory(folder / "model")


NOT_IN_THE_CONFIG = {
    "gemma2": ["attention.sliding_window"],
    "granite": ["rope.scaling.finetuned"],
    "phi3": ["attention.sliding_window"],
}
"""What mlx-lm does not have, so that a case has it in its keys alone."""


def plain(value: Any) -> Any:
    return list(value) if not isinstance(value, (str, int, float, bool)) else value


def assert_has_keys(metadata: Mapping[str, Any], tiny: Tiny) -> None:
    """What the GGUF says, the metadata says; what it adds does not contradict."""
    assert metadata["general.architecture"] == tiny.arch
    assert metadata[f"{tiny.arch}.vocab_size"] == N_TOKENS
    missing = {}
    # Layers after the last, which predict tokens further ahead, are no part of the model, and are left out.
    n_more = tiny.keys.get(".nextn_predict_layers", 0)
    keys = {**tiny.keys, ".block_count": tiny.keys[".block_count"] - n_more, ".nextn_predict_layers": None}
    for name, value in keys.items():
        key = f"{tiny.arch}{name}" if name.startswith(".") else name
        got = plain(metadata[key]) if key in metadata else None
        if value is None or name.removeprefix(".") in NOT_IN_THE_CONFIG.get(tiny.arch, ()):
            continue
        if isinstance(value, list) and isinstance(got, (int, float)):
            got = [got] * len(value)
        if got != (value if isinstance(value, str) else pytest.approx(plain(value), rel=1e-6)):
            missing[key] = (got, value)
    assert not missing


def assert_same_tensors(found: Mapping[str, Array], tiny: Tiny) -> None:
    n_layers = tiny.keys[".block_count"] - tiny.keys.get(".nextn_predict_layers", 0)
    more = tuple(f"blk.{n_layers + i}." for i in range(tiny.keys.get(".nextn_predict_layers", 0)))
    tensors = {name: x for name, x in tiny.tensors.items() if not (more and name.startswith(more))}
    assert {name: x.size for name, x in found.items()} == {name: x.size for name, x in tensors.items()}
    for name, expected in tensors.items():
        got = found[name]
        shape = [n for n in expected.shape if n != 1]
        assert [n for n in got.shape if n != 1] == shape, name
        np.testing.assert_allclose(got.reshape(shape), expected.reshape(shape), rtol=2e-6, err_msg=name)


def as_gguf(checkpoint: Checkpoint) -> dict[str, Array]:
    """The tensors, with everything done to them that the metadata asks for."""
    metadata = checkpoint.metadata
    arch = metadata["general.architecture"]
    n_heads = metadata[f"{arch}.attention.head_count"]
    n_kv_heads = metadata.get(f"{arch}.attention.head_count_kv", n_heads)
    n_kv_heads = n_kv_heads if isinstance(n_kv_heads, int) else max(n_kv_heads)
    out: dict[str, Array] = {}
    experts: dict[str, list[Array]] = {}
    for name, tensor in checkpoint.tensors.items():
        x = np.array(tensor.numpy())
        at = name.index(".", 4) + 1 if name.startswith("blk.") else 0
        layer, part = name[:at], name[at:]
        if metadata.get("llama_rs.rope_style") == "half" and part.startswith(("attn_q.", "attn_k.")):
            n = n_heads if part.startswith("attn_q.") else n_kv_heads
            x = x.reshape(n, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        if part.endswith("norm.weight") and part != "ssm_norm.weight":
            x = x + np.float32(metadata.get("llama_rs.norm_offset", 0))
        if part == "ssm_a" and metadata.get("llama_rs.ssm_a") == "log":
            x = -np.exp(x)
        if metadata.get("llama_rs.ssm_v_heads") == "grouped":
            x = in_turns(metadata, arch, part, x)
        pieces = part.split(".")
        if len(pieces) == 3 and pieces[1].isdigit():
            each = experts.setdefault(f"{layer}{pieces[0]}_exps.weight", [])
            assert len(each) == int(pieces[1])
            each.append(x)
        elif part == "ffn_gate_up_exps.weight" and arch != "gemma4":
            out[f"{layer}ffn_gate_exps.weight"], out[f"{layer}ffn_up_exps.weight"] = np.split(x, 2, axis=1)
        elif part == "ssm_in.weight" and arch == "qwen3next":
            k_dim, n_k = metadata[f"{arch}.ssm.state_size"], metadata[f"{arch}.ssm.group_count"]
            values = metadata[f"{arch}.ssm.inner_size"] // n_k
            q, k, v, z = np.split(x.reshape(n_k, -1, x.shape[1]), np.cumsum([k_dim, k_dim, values]), axis=1)
            out[f"{layer}attn_qkv.weight"] = np.concatenate([y.reshape(-1, x.shape[1]) for y in (q, k, v)])
            out[f"{layer}attn_gate.weight"] = z.reshape(-1, x.shape[1])
        elif part == "attn_kv_b.weight":
            nope = metadata[f"{arch}.attention.key_length_mla"] - metadata[f"{arch}.rope.dimension_count"]
            heads = x.reshape(n_heads, -1, x.shape[1])
            out[f"{layer}attn_k_b.weight"] = heads[:, :nope].swapaxes(1, 2)
            out[f"{layer}attn_v_b.weight"] = heads[:, nope:]
        else:
            out[name] = x
    return out | {name: np.stack(each) for name, each in experts.items()}


def in_turns(metadata: Mapping[str, Any], arch: str, part: str, x: Array) -> Array:
    """The value heads of a gated delta rule in turns, not by key heads: of what has a row for each, or a column."""
    n_k, n_v = metadata[f"{arch}.ssm.group_count"], metadata[f"{arch}.ssm.time_step_rank"]
    v_dim = metadata[f"{arch}.ssm.inner_size"] // n_v
    keys = 2 * n_k * metadata[f"{arch}.ssm.state_size"]

    def reordered(x: Array, dim: int) -> Array:
        return x.reshape(n_k, n_v // n_k, dim, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    if part in ("attn_qkv.weight", "ssm_conv1d.weight"):
        return np.concatenate([x[:keys], reordered(x[keys:], v_dim)])
    if part == "attn_gate.weight":
        return reordered(x, v_dim)
    if part in ("ssm_beta.weight", "ssm_alpha.weight", "ssm_a", "ssm_dt.bias"):
        return reordered(x, 1)
    return reordered(x.T, v_dim).T if part == "ssm_out.weight" else x


UNKNOWN = {"gemma3n", "hunyuan", "mamba2", "nemotron_h", "gpt_oss"}
"""Families whose directories we do not open."""
ONLY_GGUF = {
    "granitemoe-shared",  # mlx-lm does not know it, so the case has no directory
    "deepseek2-kv-b",  # an older form, which nobody writes now
    "ernie4-5-moe-bias",  # the bias is in the GGUF alone
    "llama-window",  # its directory does not say it
}
SUPPORTED = [name for name in CASES if name not in ONLY_GGUF and CASES[name].make().config["model_type"] not in UNKNOWN]
CONVERT_FIRST = {"falcon_h1"}


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_directory_is_what_its_gguf_is(tmp_path: Path, name: str) -> None:
    tiny, folder = directory_of(name, tmp_path)
    if tiny.config["model_type"] in CONVERT_FIRST:
        with pytest.raises(UnsupportedModelError, match="convert it first"):
            Checkpoint(folder)
        return
    checkpoint = Checkpoint(folder)
    assert_has_keys(checkpoint.metadata, tiny)
    assert_same_tensors(as_gguf(checkpoint), tiny)


WITH_LOGITS = [
    name
    for name in SUPPORTED
    if name in RUN
    and name not in ("gemma2", "gemma2-27b", "granite-without-rotations")
    and CASES[name].make().config["model_type"] not in CONVERT_FIRST
]
"""Without those of which mlx-lm does not know something, so that the directory does not say it: `NOT_IN_THE_CONFIG`."""


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_a_directory_has_the_logits_of_its_gguf(tmp_path: Path, name: str) -> None:
    """Of which other tests know that they are right."""
    case = CASES[name]
    tiny, folder = directory_of(name, tmp_path)
    ours, theirs = our_logits(folder, case), our_logits(tiny.write_gguf(tmp_path / "tiny.gguf"), case)
    # Sums are in another order where heads are. A directory's latent attention has keys and values of all heads.
    assert deviation(ours, theirs) < (case.tolerance if tiny.arch == "deepseek2" else 2e-4)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_converted_directory_is_its_gguf(tmp_path: Path, name: str) -> None:
    tiny, folder = directory_of(name, tmp_path)
    convert(folder, tmp_path / "converted.gguf")
    checkpoint = Checkpoint(tmp_path / "converted.gguf")
    assert not [key for key in checkpoint.metadata if key.startswith("llama_rs.")]
    assert_has_keys(checkpoint.metadata, tiny)
    assert_same_tensors({name: np.array(t.numpy()) for name, t in checkpoint.tensors.items()}, tiny)


# -- Sharing, saving, looking into -------------------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return directory_of("llama", tmp_path)[1]


def shards(folder: Path, n: int) -> Path:
    """The same model with its tensors in `n` files and an index."""
    header, data = read_safetensors(folder / "model.safetensors")
    names = sorted(header)
    weight_map: dict[str, str] = {}
    for i in range(n):
        part = {name: header[name] for name in names[i::n]}
        file = f"model-{i + 1:05}-of-{n:05}.safetensors"
        write_safetensors(folder / file, part, data)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def write_safetensors(path: Path, header: Mapping[str, Any], data: bytes) -> None:
    """The tensors of `header`, whose bytes are in `data`, one after another."""
    packed, out = {}, b""
    for name, about in header.items():
        start, end = about["data_offsets"]
        packed[name] = {**about, "data_offsets": [len(out), len(out) + end - start]}
        out += data[start:end]
    text = json.dumps(packed).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + out)


def test_shards_are_one_model(llama: Path) -> None:
    whole = Model(llama).logits(TOKENS)
    np.testing.assert_array_equal(Model(shards(llama, 3)).logits(TOKENS), whole)
    (llama / "model.safetensors.index.json").unlink()  # then the names of the files say it
    np.testing.assert_array_equal(Model(llama).logits(TOKENS), whole)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "qwen35"])
def test_weights_of_two_bytes_run_where_they_lie(tmp_path: Path, name: str, dtype: str) -> None:
    """Vectors too: a directory has one type for all."""
    case = CASES[name]
    tiny = case.make()
    narrow: dict[str, Callable[[Any], Any]] = {
        "F16": lambda x: x.astype(np.float16),
        "BF16": lambda x: (x.view(np.uint32) >> 16).astype(np.uint16),
    }
    wide: dict[str, Callable[[Any], Any]] = {
        "F16": lambda x: x.astype(np.float32),
        "BF16": lambda x: (x.astype(np.uint32) << 16).view(np.float32),
    }
    halves = {key: narrow[dtype](x) for key, x in tiny.hf.items()}
    tiny.hf = {key: wide[dtype](x) for key, x in halves.items()}
    exact = our_logits(tiny.write_directory(tmp_path / "model"), case)
    header, data = {}, b""
    for key, x in halves.items():
        header[key] = {"dtype": dtype, "shape": x.shape, "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    write_safetensors(tmp_path / "model" / "model.safetensors", header, data)
    assert deviation(our_logits(tmp_path / "model", case), exact) < case.tolerance


def test_a_pickled_directory_is_the_same_or_refused(llama: Path) -> None:
    model = Model(llama)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.logits(TOKENS), model.logits(TOKENS))
    pickled = pickle.dumps(model)
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    with pytest.raises(ModelChangedError):
        pickle.loads(pickled)


def test_a_saved_session_belongs_to_a_directory(llama: Path, tmp_path: Path) -> None:
    model = Model(llama)
    with model.session() as session:
        session.forward(TOKENS[:-1])
        session.save(tmp_path / "session")
        expected = session.forward(TOKENS[-1:])
    np.testing.assert_array_equal(model.load_session(tmp_path / "session").forward(TOKENS[-1:]), expected)
    other = directory_of("llama-linear", tmp_path / "other")[1]
    with pytest.raises(SavedSessionError):
        Model(other).load_session(tmp_path / "session")


def test_what_of_a_directory_is_in_memory(llama: Path) -> None:
    shards(llama, 2)
    checkpoint = Checkpoint(llama)
    checkpoint.warm()
    residency = checkpoint.residency()
    assert residency.resident == residency.bytes == checkpoint.size
    names = [Path(path).name for path, _ in residency.files]
    assert names == ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert {part.name for part in residency.layers} >= {"header", "token_embd", "blk.0", "blk.1", "output"}
    assert [process.pid for process in checkpoint.processes()] == [os.getpid()]


@pytest.mark.parametrize("command", ["inspect", "status", "warm"])
def test_commands_take_a_directory(llama: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(llama)]) == 0
    assert str(llama) in capsys.readouterr().out


# -- What is wrong with a directory ------------------------------------------------------------------------------------


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def index(folder: Path, **files: Any) -> None:
    shards(folder, 2)
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"] |= files
    path.write_text(json.dumps(content))


def rename_tensor(folder: Path, old: str, new: str, **about: Any) -> None:
    header, data = read_safetensors(folder / "model.safetensors")
    renamed = {new if name == old else name: entry | (about if name == old else {}) for name, entry in header.items()}
    write_safetensors(folder / "model.safetensors", renamed, data)


def twice_in_two_files(folder: Path) -> None:
    header, data = read_safetensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i in (1, 2):
        write_safetensors(folder / f"model-{i}.safetensors", {"model.norm.weight": header["model.norm.weight"]}, data)


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def a_gguf_beside_nothing(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "some.gguf").touch()


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
WRONG: dict[str, tuple[type[Exception], Callable[[Path], object], str]] = {
    "no config": (ModelFormatError, lambda f: (f / "config.json").unlink(), "a directory without config.json"),
    "only a gguf": (ModelFormatError, a_gguf_beside_nothing, "it holds some.gguf: name that"),
    "no JSON": (ModelFormatError, lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON: EOF"),
    "no object": (ModelFormatError, lambda f: (f / "config.json").write_text("[]"), "config.json: not a JSON object"),
    "endless": (ModelFormatError, lambda f: (f / "config.json").write_text("[" * 10_000), "recursion limit"),
    "huge": (ModelFormatError, lambda f: (f / "config.json").write_bytes(bytes(17 << 20)), "config.json: too long"),
    "no type": (ModelFormatError, lambda f: change_config(f, model_type=...), r"missing key \(model_type\)"),
    "its type": (
        UnsupportedModelError,
        lambda f: change_config(f, model_type="rwkv"),
        "model_type rwkv; supported are",
    ),
    "no width": (ModelFormatError, lambda f: change_config(f, hidden_size=None), r"missing key \(hidden_size\)"),
    "width": (ModelFormatError, lambda f: change_config(f, hidden_size="64"), r'wrong value \(hidden_size\): got "64"'),
    "layers": (ModelFormatError, lambda f: change_config(f, num_hidden_layers=-1), r"wrong value \(num_hidden_layers"),
    "too many layers": (ModelFormatError, lambda f: change_config(f, num_hidden_layers=2**32 - 1), "too many layers"),
    "long heads": (ModelFormatError, lambda f: change_config(f, head_dim=2**31), "heads too long"),
    "no heads": (ModelFormatError, lambda f: change_config(f, head_dim=None, num_attention_heads=0), "zero"),
    "heads": (
        ModelFormatError,
        lambda f: change_config(f, num_attention_heads=1e99),
        "an integer from 0 to 4294967295",
    ),
    "rope": (UnsupportedModelError, lambda f: change_config(f, rope_scaling={"type": "ntk"}), "rope scaling ntk"),
    "index out": (
        ModelFormatError,
        lambda f: index(f, x="../x.safetensors"),
        r"not the name of a file beside it \(x\)",
    ),
    "index root": (ModelFormatError, lambda f: index(f, x="/x.safetensors"), "not the name of a file beside it"),
    "index kind": (ModelFormatError, lambda f: index(f, x="x.bin"), "not the name of a file beside it"),
    "index value": (ModelFormatError, lambda f: index(f, x=[1]), "not the name of a file beside it"),
    "index file": (ModelNotFoundError, lambda f: index(f, x="gone.safetensors"), "gone.safetensors: No such file"),
    "index tensor": (
        ModelFormatError,
        lambda f: index(f, x="model-00001-of-00002.safetensors"),
        r"a tensor is not in the file that the index names \(x\): got model-00001",
    ),
    "twice": (ModelFormatError, twice_in_two_files, r"tensor name used twice \(output_norm.weight\)"),
    "pickles": (ModelFormatError, only_pickles, "the weights are Python pickles"),
    "no weights": (ModelFormatError, lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "unknown": (
        UnsupportedModelError,
        lambda f: rename_tensor(f, Q_PROJ, "model.layers.0.x"),
        "tensor model.layers.0.x;",
    ),
    "layer 7": (
        UnsupportedModelError,
        lambda f: rename_tensor(f, Q_PROJ, "model.layers.7.self_attn.q_proj.weight"),
        "tensor model.layers.7.self_attn.q_proj.weight; what it is for",
    ),
    "integers": (
        UnsupportedModelError,
        lambda f: rename_tensor(f, Q_PROJ, Q_PROJ, dtype="I32"),
        "of type I32; BF16, F16",
    ),
    "shape": (
        ModelFormatError,
        lambda f: rename_tensor(f, Q_PROJ, Q_PROJ, shape=[3]),
        "not the bytes that type and shape",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_directory_is_said_in_a_line(llama: Path, what: str) -> None:
    kind, change, message = WRONG[what]
    change(llama)
    with pytest.raises(kind, match=message) as error:
        Checkpoint(llama)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["fp8", "awq", "gptq", "bitsandbytes", "mxfp4", "compressed-tensors"])
def test_quantized_directories_are_refused_by_name(llama: Path, method: str) -> None:
    change_config(llama, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedModelError, match=f"weights quantized as {method}"):
        Checkpoint(llama)


def test_a_safetensors_file_is_told_from_its_directory(llama: Path) -> None:
    with pytest.raises(ModelFormatError, match="a safetensors file: name the directory that it is in"):
        Checkpoint(llama / "model.safetensors")


# -- Converting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", ["f32", "f16", "bf16", "q8_0"])
def test_matrices_get_the_type_that_is_asked_for(llama: Path, tmp_path: Path, output_type: Any) -> None:
    path = tmp_path / "converted.gguf"
    told: list[tuple[int, int]] = []
    convert(llama, path, output_type=output_type, on_progress=lambda *at: told.append(at))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    original = as_gguf(Checkpoint(llama))
    for name, tensor in Checkpoint(path).tensors.items():
        exact = tensor.shape.__len__() == 1 or name.endswith("_norm.weight")
        assert tensor.dtype == ("F32" if exact else output_type.upper()), name
        error = np.abs(tensor.dequantize() - original[name]).max() / np.abs(original[name]).max()
        assert (
            error
            <= {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11}["f32" if exact else output_type]
        )


def test_nothing_stays_of_a_conversion_that_fails(llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "converted.gguf"
    path.write_text("what was there")

    def stop(done: int, whole: int) -> None:
        raise KeyError(f"{done} of {whole}")

    with pytest.raises(KeyError):
        convert(llama, path, on_progress=stop)
    assert path.read_text() == "what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["converted.gguf", "model"]
    with pytest.raises(ValueError, match=r"output_type must be auto or one of f32, f16, bf16, q8_0, got .q4"):
        convert(llama, path, output_type="q4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes the directory of a model"):
        convert(path, path)


# -- Parts -------------------------------------------------------------------------------------------------------------


def test_parts_are_joined_to_what_was_cut(llama: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    convert(llama, whole)
    n = len(Checkpoint(whole).tensors)
    parts = split(whole, tmp_path / "part", max_tensors=4)
    assert [Path(p).name for p in parts] == [f"part-{i + 1:05}-of-{len(parts):05}.gguf" for i in range(-(-n // 4))]
    merge(parts[1], tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()
    np.testing.assert_array_equal(Model(parts[0]).logits(TOKENS), Model(whole).logits(TOKENS))
    # Parts can be cut again, by size: none is larger, unless one tensor is.
    sizes = {name: t.nbytes for name, t in Checkpoint(whole).tensors.items()}
    most = 2 * max(sizes.values())
    again = split(parts[0], tmp_path / "again", max_size=most)
    assert 1 < len(again) < n
    reader = [gguf.GGUFReader(path) for path in again]
    assert all(sum(int(t.n_bytes) for t in r.tensors) <= most for r in reader)
    assert [t.name for r in reader for t in r.tensors] == list(sizes)
    merge(again[0], tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()


def test_what_cannot_be_cut_or_joined_is_refused(llama: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    convert(llama, whole)
    with pytest.raises(ValueError, match="is one file already"):
        merge(whole, tmp_path / "joined.gguf")
    with pytest.raises(ValueError, match="one of the two"):
        split(whole, tmp_path / "part")
    with pytest.raises(ValueError, match="the limit is 0"):
        split(whole, tmp_path / "part", max_size=0)
    with pytest.raises(ValueError, match="is a directory"):
        split(llama, tmp_path / "part", max_size=1)
    with pytest.raises(ModelFileError):
        split(whole, tmp_path / "no" / "part", max_size=1)
    (tmp_path / f"part-00003-of-{len(Checkpoint(whole).tensors):05}.gguf").mkdir()
    with pytest.raises(ModelFileError, match="is not a regular file"):
        split(whole, tmp_path / "part", max_tensors=1)
    next(tmp_path.glob("part-*")).rmdir()  # the parts before it are gone again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "whole.gguf"]


def test_commands_make_files(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = str(tmp_path / "whole.gguf")
    assert main(["convert", str(llama), whole, "--output-type", "f16"]) == 0
    assert capsys.readouterr().out.startswith(f"{whole}: ")
    assert main(["split", whole, str(tmp_path / "part"), "--max-size", "20k"]) == 0
    parts = capsys.readouterr().out.split()
    assert len(parts) > 1
    assert main(["merge", parts[-1], str(tmp_path / "joined.gguf")]) == 0
    assert (tmp_path / "joined.gguf").read_bytes() == Path(whole).read_bytes()
    assert main(["split", whole, "x", "--max-size", "2X"]) == 2
    assert main(["split", whole, "x"]) == 2
    assert main(["merge", whole, "x"]) == 2
    assert main(["convert", str(tmp_path / "none"), whole]) == 3
    errors = capsys.readouterr().err
    assert "'2X' is not a size such as 2G or 500M" in errors
    assert "No such file" in errors
