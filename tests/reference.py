"""The decoders that we run, in numpy, float32 throughout: the answer that ours is held against.

Slow and obvious. Nothing here is ours but this page: the `gguf` package reads the file and dequantizes the
weights, which are then multiplied as floats, so what differs from these logits is what an engine adds by
rounding activations, keys, values and sums.

    logits("model.gguf", [1, 2, 3])        # (3, vocab_size)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

Array = NDArray[np.float32]

ROPE_STYLES = {"llama": "interleaved", "qwen2": "half"}


class Decoder:
    """A model with its weights in memory as float32."""

    def __init__(self, path: str | Path) -> None:
        reader = GGUFReader(path)
        all_keys = {name: field.contents() for name, field in reader.fields.items()}
        arch = str(all_keys["general.architecture"])
        meta: dict[str, Any] = {k.removeprefix(f"{arch}."): v for k, v in all_keys.items() if k.startswith(f"{arch}.")}
        self.weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
        scaling = meta.get("rope.scaling.type", "none")
        if scaling not in ("none", "linear") or meta.get("expert_count", 0) > 0:
            raise NotImplementedError(f"{path}: {scaling} scaling and experts are not in the reference")

        self.n_layers = int(meta["block_count"])
        self.n_heads = self._per_layer(meta["attention.head_count"])
        self.n_kv_heads = self._per_layer(meta.get("attention.head_count_kv", self.n_heads))
        self.head_dim = meta.get("attention.key_length", meta["embedding_length"] // self.n_heads[0])
        self.norm_eps = np.float32(meta["attention.layer_norm_rms_epsilon"])
        self.rope_style = ROPE_STYLES[arch]
        self.rope_dim = meta.get("rope.dimension_count", self.head_dim)
        self.rope_theta = meta.get("rope.freq_base", 10_000.0)
        self.rope_scale = meta.get("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0

    def _per_layer(self, value: int | list[int]) -> list[int]:
        return value if isinstance(value, list) else [value] * self.n_layers

    def logits(self, tokens: Sequence[int]) -> Array:
        """Logits of each token given those before it, ``(n_tokens, vocab_size)``."""
        w = self.weights
        x = w["token_embd.weight"][np.asarray(tokens)]  # (n, dim)
        for i in range(self.n_layers):
            x = x + self._attention(i, self._norm(x, f"blk.{i}.attn_norm"))
            x = x + self._feed_forward(i, self._norm(x, f"blk.{i}.ffn_norm"))
        output = w.get("output.weight", w["token_embd.weight"])  # (vocab_size, dim)
        return self._norm(x, "output_norm") @ output.T

    def _attention(self, i: int, x: Array) -> Array:
        n = len(x)
        q = self._rope(self._heads(x, f"blk.{i}.attn_q"))  # (n_heads, n, head_dim)
        k = self._rope(self._heads(x, f"blk.{i}.attn_k"))  # (n_kv_heads, n, head_dim)
        v = self._heads(x, f"blk.{i}.attn_v")  # (n_kv_heads, n, head_dim)
        # Query heads share keys and values: 0, 1, 2 the first, 3, 4, 5 the second ...
        k, v = (np.repeat(a, self.n_heads[i] // self.n_kv_heads[i], axis=0) for a in (k, v))

        scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(self.head_dim))  # (n_heads, n, n)
        scores[:, np.triu(np.ones((n, n), dtype=bool), 1)] = -np.inf  # nobody sees the future
        out = _softmax(scores) @ v  # (n_heads, n, head_dim)
        return self._linear(out.transpose(1, 0, 2).reshape(n, -1), f"blk.{i}.attn_output")

    def _feed_forward(self, i: int, x: Array) -> Array:
        gate = self._linear(x, f"blk.{i}.ffn_gate")
        silu = gate / (1 + np.exp(-gate))
        return self._linear(silu * self._linear(x, f"blk.{i}.ffn_up"), f"blk.{i}.ffn_down")

    def _norm(self, x: Array, name: str) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        out: Array = x / np.sqrt(mean_square + self.norm_eps) * self.weights[f"{name}.weight"]
        return out

    def _linear(self, x: Array, name: str) -> Array:
        out: Array = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")  # Qwen2's queries, keys and values have one
        return out if bias is None else out + bias

    def _heads(self, x: Array, name: str) -> Array:
        return self._linear(x, name).reshape(len(x), -1, self.head_dim).transpose(1, 0, 2)

    def _rope(self, x: Array) -> Array:
        """Turns the pairs of each head by angles that grow with the position.

        A pair is (0, 1), (2, 3) ... or, half-split, (0, d / 2), (1, d / 2 + 1) ...
        """
        pairs = np.arange(self.rope_dim // 2)
        frequencies = self.rope_theta ** (-2.0 * pairs / self.rope_dim)
        if "rope_freqs.weight" in self.weights:  # Llama 3.1 and later
            frequencies = frequencies / self.weights["rope_freqs.weight"]
        angles = np.outer(np.arange(x.shape[1]) / self.rope_scale, frequencies)  # (n, rope_dim / 2), float64 up to here
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        half, end = self.rope_dim // 2, self.rope_dim
        interleaved = self.rope_style == "interleaved"
        first, second = (slice(0, end, 2), slice(1, end, 2)) if interleaved else (slice(0, half), slice(half, end))
        a, b = x[..., first], x[..., second]
        out = x.copy()
        out[..., first] = a * cos - b * sin
        out[..., second] = a * sin + b * cos
        return out


def logits(path: str | Path, tokens: Sequence[int]) -> Array:
    """Logits of each token given those before it, ``(n_tokens, vocab_size)``, of the model at ``path``."""
    return Decoder(path).logits(tokens)


def kl_divergence(reference: Array, logits: Array) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of each position's prediction from the reference's, in nats, ``(n,)``."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    return np.asarray(np.sum(np.exp(p) * (p - q), axis=-1))


def _softmax(x: Array) -> Array:
    e: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    out: Array = e / e.sum(axis=-1, keepdims=True)
    return out


def _log_softmax(x: Array) -> NDArray[np.float64]:
    x64 = x.astype(np.float64)
    x64 -= x64.max(axis=-1, keepdims=True)
    return np.asarray(x64 - np.log(np.exp(x64).sum(axis=-1, keepdims=True)))
