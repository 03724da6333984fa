"""A tiny model in both worlds: what Hugging Face calls its tensors and what GGUF does, with the same weights.

Weights follow from the names of tensors, so a model can be made again anywhere: of a model only its logits are stored.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Change = Callable[["Tiny"], object]

N_TOKENS = 128
"""Size of all vocabularies. They have no texts: nobody tokenizes here."""


class Tiny:
    """A model: keys and tensors of a GGUF, and the config and tensors of the directory that it was converted from."""

    def __init__(self, arch: str, config: Mapping[str, Any], keys: Mapping[str, Any], seed: int = 0) -> None:
        self.arch = arch
        self.config = dict(config)
        self.keys = dict(keys)
        """Metadata; a name that begins with a dot belongs to the architecture: `.block_count`."""
        self.seed = seed
        self.hf: dict[str, Any] = {}
        """Tensors as Hugging Face has them."""
        self.tensors: dict[str, Any] = {}
        """Tensors of the GGUF."""
        self.types: dict[str, gguf.GGMLQuantizationType] = {}
        """The types of those that are not float32."""

    # -- Weights -------------------------------------------------------------------------------------------------------

    def noise(self, name: str, *shape: int) -> Array:
        """Uniform in [-1, 1); raw bits of a generator, which no version of numpy changes."""
        bits = np.random.PCG64(zlib.crc32(f"{self.seed} {name}".encode())).random_raw(int(np.prod(shape)))
        return ((bits >> np.uint64(40)) / np.float64(2**23) - 1).astype(np.float32).reshape(shape)

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> Array:
        """Weights that keep the deviation of what they are multiplied with, times `gain`; rows are last."""
        return self.noise(name, *shape) * np.float32(gain * (3 / shape[-1]) ** 0.5)

    def vector(self, name: str, *shape: int, around: float = 0.0, by: float = 0.5) -> Array:
        """Numbers of [around - by, around + by): norms around 1, biases around 0."""
        return np.float32(around) + np.float32(by) * self.noise(name, *shape)

    # -- Changes -------------------------------------------------------------------------------------------------------

    def changed(self, *changes: Change) -> Tiny:
        """A copy of the GGUF's side with changes made to it."""
        other = Tiny(self.arch, self.config, self.keys, self.seed)
        other.tensors = dict(self.tensors)
        other.types = dict(self.types)
        for change in changes:
            change(other)
        return other

    # -- Files ---------------------------------------------------------------------------------------------------------

    def write_gguf(self, path: str | Path) -> Path:
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_tokenizer_model("none")
        for name, value in ({".vocab_size": N_TOKENS} | self.keys).items():
            if value is not None:
                _add_key(writer, f"{self.arch}{name}" if name.startswith(".") else name, value)
        for name, tensor in self.tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(tensor), raw_dtype=self.types.get(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Path(path)

    def write_directory(self, folder: Path) -> Path:
        """`config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        header: dict[str, Any] = {}
        at = 0
        types = {"float32": "F32", "uint8": "U8", "uint32": "U32"}
        for name, tensor in self.hf.items():
            header[name] = {
                "dtype": types[tensor.dtype.name],
                "shape": tensor.shape,
                "data_offsets": [at, at + tensor.nbytes],
            }
            at += tensor.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in self.hf.values():
                file.write(tensor.tobytes())
        return folder


def _add_key(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


# -- Changes to a model ------------------------------------------------------------------------------------------------


def key(name: str, value: Any) -> Change:
    """Another value of a key that is there; `None` for none."""

    def change(tiny: Tiny) -> None:
        assert name in tiny.keys, f"no key {name}"
        assert tiny.keys[name] != value, f"{name} is {value} already"
        tiny.keys[name] = value

    return change


def a_new_key(name: str, value: Any) -> Change:
    """A key that was not there."""

    def change(tiny: Tiny) -> None:
        assert name not in tiny.keys, f"{name} is there already"
        tiny.keys[name] = value

    return change


def tensor(name: str, to: Callable[[Array], Array] | None = None) -> Change:
    """Another content of a tensor; none without `to`."""

    def change(tiny: Tiny) -> None:
        assert name in tiny.tensors, f"no tensor {name}"
        if to is None:
            del tiny.tensors[name]
        else:
            tiny.tensors[name] = to(tiny.tensors[name])

    return change


def per_tensor(tiny: Tiny) -> dict[str, Change]:
    """A change for each kind of tensor, by its name without the number of the layer: in the last layer that has it.

    Layers that predict further tokens are the last resort: they are no part of the model.
    """
    trunk = tiny.keys.get(".block_count", 0) - tiny.keys.get(".nextn_predict_layers", 0)
    last = {_kind(name): name for name in sorted(tiny.tensors, key=lambda name: _layer(name) < trunk)}
    return {f"tensor {kind}": tensor(name, _disturbed) for kind, name in last.items() if name not in tiny.types}


def fused_qkv(tiny: Tiny) -> None:
    """Another form: queries, keys and values of a layer in one tensor."""
    for i in range(tiny.keys[".block_count"]):
        for suffix in ("weight", "bias"):
            _fuse(tiny, f"blk.{i}.attn_qkv.{suffix}", [f"blk.{i}.attn_{x}.{suffix}" for x in "qkv"], axis=0)


def fused_experts(tiny: Tiny) -> None:
    """Another form: gates and ups of the experts of a layer in one tensor."""
    for i in range(tiny.keys[".block_count"]):
        parts = [f"blk.{i}.ffn_{name}_exps.weight" for name in ("gate", "up")]
        _fuse(tiny, f"blk.{i}.ffn_gate_up_exps.weight", parts, axis=1)


def _fuse(tiny: Tiny, name: str, parts: list[str], axis: int) -> None:
    if all(part in tiny.tensors for part in parts):
        tiny.tensors[name] = np.concatenate([tiny.tensors.pop(part) for part in parts], axis)


SCALED = {
    *(f"attn_{name}" for name in ("q", "k", "v", "output", "gate")),
    *(f"ffn_{name}{kind}" for name in ("gate", "up", "down") for kind in ("", "_shexp", "_exps")),
    *(f"ssm_{name}" for name in ("in", "out", "alpha", "beta")),
}
"""Matrices that files may have a scale of."""


def scaled(tiny: Tiny) -> None:
    """Another form, that of NVFP4: numbers by which what comes out of matrices is multiplied, one an expert."""
    for name in list(tiny.tensors):
        parts = name.split(".")
        if name.startswith("blk.") and parts[2] in SCALED and parts[-1] == "weight":
            n = tiny.tensors[name].shape[0] if parts[2].endswith("exps") else 1
            scales = 2.0 ** (np.arange(n, dtype=np.float32) % 3 - 2)
            tiny.tensors[name] = tiny.tensors[name] / scales.reshape(-1, *[1] * (tiny.tensors[name].ndim - 1))
            tiny.tensors[name.removesuffix("weight") + "scale"] = scales


def not_tied(tiny: Tiny) -> None:
    """Another form: a matrix of outputs that is that of the embeddings."""
    tiny.tensors.setdefault("output.weight", tiny.tensors["token_embd.weight"])


def without_defaults(tiny: Tiny) -> None:
    """Another form: what says only what is so anyway is left out."""
    keys = tiny.keys
    n_heads = keys[".attention.head_count"]
    of_heads = keys[".embedding_length"] // max(n_heads, 1)
    defaults = {
        ".attention.head_count_kv": n_heads,
        ".rope.dimension_count": keys.get(".attention.key_length", of_heads),
        ".attention.key_length": of_heads,
        ".attention.value_length": of_heads,
        ".rope.freq_base": 10000.0,
    }
    for name, value in defaults.items():
        if keys.get(name) == value:
            del keys[name]


def in_blocks(dtype: gguf.GGMLQuantizationType) -> Change:
    """Matrices as blocks of a type, those whose rows are long enough and that files have so."""

    def change(tiny: Tiny) -> None:
        block, _ = gguf.GGML_QUANT_SIZES[dtype]
        for name, tensor in tiny.tensors.items():
            fits = tensor.ndim > 1 and tensor.shape[-1] % block == 0 and name not in tiny.types
            if fits and not any(part in name for part in FLOATS):
                tiny.tensors[name] = gguf.quants.quantize(np.ascontiguousarray(tensor), dtype)
                tiny.types[name] = dtype

    return change


def unpacked(tiny: Tiny) -> None:
    """What is in blocks as float32."""
    for name, dtype in tiny.types.items():
        tiny.tensors[name] = gguf.quants.dequantize(tiny.tensors[name], dtype)
    tiny.types = {}


FLOATS = ("norm", "ffn_gate_inp", "conv", "altup", "laurel", "per_layer_model_proj", "ssm_norm", "exp_probs_b", ".bias")
"""Parts of the names of tensors that stay floats when a file is quantized."""

FORMS = {"form: one tensor for queries, keys and values": fused_qkv, "form: no defaults": without_defaults}
"""Other forms of any file."""


def _kind(name: str) -> str:
    parts = name.split(".")
    return ".".join(p for p in parts if not p.isdigit() and p != "blk")


def _layer(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _disturbed(x: Array) -> Array:
    """As unlike `x` as can be, and of its size: in the opposite order, with the opposite sign in places."""
    if x.size == 1:
        return x * np.float32(2)
    flat = x.reshape(-1)[::-1].copy()
    if flat.min() < 0:
        flat[::3] *= -1
    return flat.reshape(x.shape)
