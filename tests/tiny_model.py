"""Writes a tiny model with random weights, of any architecture and any type: the model of most tests.

    python tests/tiny_model.py tiny.gguf --dtype Q4_K
    python tests/tiny_model.py tiny.gguf --arch qwen2 --split 7      # tiny-00001-of-0000N.gguf, 7 tensors each

The vocabulary is a small byte-level BPE, trained on the sentences below. The weights are random, and
scaled so that the logits differ: greedy generation is stable, and damage shows.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as DType
from numpy.typing import NDArray

SENTENCES = """
The old lighthouse keeper climbed the stairs every evening and lit the lamp for the ships at sea.
There was a time when the whole village came to the harbour to see the boats return with the wind.
She said that the sea gives and the sea takes, and that there is no use in asking it for the reason.
In the morning the keeper wrote the weather into his book: wind from the west, rain, and then the sun.
"""

SPECIAL_TOKENS = {
    "<|endoftext|>": gguf.TokenType.CONTROL,  # also the beginning of a text, and padding
    "<|im_start|>": gguf.TokenType.CONTROL,
    "<|im_end|>": gguf.TokenType.CONTROL,
    "<note>": gguf.TokenType.USER_DEFINED,
}

N_MERGES = 40


class Architecture(NamedTuple):
    """What the tensors of an architecture have besides those of all."""

    biases: tuple[str, ...] = ()
    """The matrices of a layer that have one."""


ARCHITECTURES = {
    "llama": Architecture(),
    "qwen2": Architecture(biases=("attn_q", "attn_k", "attn_v")),
}

# Types that the gguf package reads and cannot write: where a block keeps its scale, f16 unless said below, and its f16
# minimum, and what the minimum has to be, in scales, to put the mean of the weights near zero.
SCALES: dict[DType, tuple[int, int | None, float]] = {
    DType.Q2_K: (80, 82, 1.5),
    DType.Q3_K: (108, None, 0),
    DType.Q4_K: (0, 2, 7.5),
    DType.Q5_K: (0, 2, 15.5),
    DType.Q6_K: (208, None, 0),
    DType.IQ1_S: (0, None, 0),
    DType.IQ1_M: (49, None, 0),
    DType.IQ2_XXS: (0, None, 0),
    DType.IQ2_XS: (0, None, 0),
    DType.IQ2_S: (0, None, 0),
    DType.IQ3_XXS: (0, None, 0),
    DType.IQ3_S: (0, None, 0),
    DType.IQ4_NL: (0, None, 0),
    DType.IQ4_XS: (0, None, 0),
    DType.NVFP4: (0, None, 0),
}


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and the merges: 256 bytes, 40 merges and four special tokens."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(b if b in printable else next(others)) for b in range(256)]

    words = Counter(tuple(letters[b] for b in word.encode()) for word in SENTENCES.replace(" ", "\n ").split("\n"))
    merges: list[tuple[str, str]] = []
    while len(merges) < N_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({_merged(word, best): count for word, count in words.items()})

    tokens = [*letters, *(a + b for a, b in merges), *SPECIAL_TOKENS]
    types = [int(gguf.TokenType.NORMAL)] * (256 + N_MERGES) + [int(t) for t in SPECIAL_TOKENS.values()]
    return tokens, types, [f"{a} {b}" for a, b in merges]


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return tuple(out)


def write_tiny_model(
    path: str | Path,
    dtype: str = "F32",
    *,
    arch: str = "llama",
    dtypes: Mapping[str, str] | None = None,
    n_layers: int = 2,
    dim: int | None = None,
    hidden_dim: int | Sequence[int] | None = None,
    n_heads: int | Sequence[int] = 4,
    n_kv_heads: int | Sequence[int] = 2,
    head_dim: int | None = None,
    context_length: int = 256,
    rope_dim: int | None = None,
    rope_theta: float = 10_000.0,
    rope_scale: float | None = None,
    rope_freq_factors: bool = False,
    tied: bool = False,
    pre: str = "gpt-2",
    alignment: int | None = None,
    split: int = 0,
    seed: int = 0,
) -> Path:
    """Writes a tiny model to ``path`` and returns the path; with ``split``, that of the first part, of so many tensors.

    ``hidden_dim``, ``n_heads`` and ``n_kv_heads`` may be lists, of a value for each layer. ``dtype`` is the type of
    every matrix, in GGUF's spelling; ``dtypes`` overrules it for tensors whose name contains the key:
    ``{"token_embd": "Q8_0", "attn_v": "Q6_K"}``. Norms and biases stay F32. ``dim`` is 64, or 256 if a type with blocks
    of 256 is used.
    """
    by_name = {name: DType[t] for name, t in (dtypes or {}).items()}
    block = max(gguf.GGML_QUANT_SIZES[t][0] for t in [DType[dtype], *by_name.values()])
    dim = dim or max(64, block)
    hidden_dim = hidden_dim or 2 * dim
    hidden_dims, q_heads, kv_heads = (
        [n] * n_layers if isinstance(n, int) else list(n) for n in (hidden_dim, n_heads, n_kv_heads)
    )
    head_dim = head_dim or dim // q_heads[0]
    rope_dim = rope_dim or head_dim
    tokens, token_types, merges = vocabulary()

    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name(f"tiny {dtype}")
    writer.add_block_count(n_layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(hidden_dim)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(rope_dim)
    writer.add_rope_freq_base(rope_theta)
    if rope_scale is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_scale)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)

    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int, std: float | None = None) -> None:
        matching = (t for part, t in by_name.items() if part in name)
        kind = next(matching, DType[dtype])
        data = random_matrix(rng, rows, columns, kind, columns**-0.5 if std is None else std)
        writer.add_tensor(name, data, raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(name, (1 + 0.1 * rng.standard_normal(dim)).astype(np.float32))

    matrix("token_embd.weight", len(tokens), dim, std=1.0)
    for i, (n_q, n_kv, hidden_dim) in enumerate(zip(q_heads, kv_heads, hidden_dims, strict=True)):
        q_dim, kv_dim = n_q * head_dim, n_kv * head_dim
        norm(f"blk.{i}.attn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", q_dim, dim)
        matrix(f"blk.{i}.attn_k.weight", kv_dim, dim)
        matrix(f"blk.{i}.attn_v.weight", kv_dim, dim)
        matrix(f"blk.{i}.attn_output.weight", dim, q_dim)
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.ffn_gate.weight", hidden_dim, dim)
        matrix(f"blk.{i}.ffn_up.weight", hidden_dim, dim)
        matrix(f"blk.{i}.ffn_down.weight", dim, hidden_dim)
        for name in ARCHITECTURES[arch].biases:
            rows = {"attn_q": q_dim, "attn_k": kv_dim, "attn_v": kv_dim}[name]
            writer.add_tensor(f"blk.{i}.{name}.bias", rng.standard_normal(rows).astype(np.float32))
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", len(tokens), dim, std=3 * dim**-0.5)
    if rope_freq_factors:
        writer.add_tensor("rope_freqs.weight", np.geomspace(1, 8, rope_dim // 2).astype(np.float32))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path) if not split else next(Path(path).parent.glob(f"{Path(path).stem}-00001-of-*.gguf"))


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, dtype: DType, std: float
) -> NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]:
    """A matrix of normally distributed weights, encoded; rows of blocks as bytes for the quantised types."""
    weights = (std * rng.standard_normal((rows, columns))).astype(np.float32)
    if dtype == DType.F32:
        return weights
    if dtype == DType.F16:
        return weights.astype(np.float16)
    if dtype not in SCALES:
        return gguf.quants.quantize(weights, dtype)
    # Random blocks, of which all bits are used, with the scale that gives them this deviation.
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    blocks = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    scale_at, minimum_at, minimum = SCALES[dtype]

    def set_scales(scales: NDArray[np.float64]) -> None:
        if dtype == DType.NVFP4:  # four E4M3
            blocks[:, :4] = gguf.quants.NVFP4.fp32_to_ue4m3(scales)[:, None]
            return
        if dtype == DType.IQ1_M:  # a nibble in each of four words
            bits = scales.astype(np.float16).view(np.uint16)
            for i in range(4):
                blocks[:, scale_at + 2 * i] = blocks[:, scale_at + 2 * i] & 15 | (bits >> 4 * i & 15) << 4
            return
        blocks[:, scale_at : scale_at + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
        if minimum_at is not None:
            blocks[:, minimum_at : minimum_at + 2] = (minimum * scales).astype(np.float16)[:, None].view(np.uint8)

    set_scales(np.ones(len(blocks)))
    deviation = float(gguf.quants.dequantize(blocks.reshape(rows, -1), dtype).std())
    set_scales(std / deviation * rng.uniform(0.5, 1.4, len(blocks)))
    return blocks.reshape(rows, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny model with random weights.")
    parser.add_argument("path")
    parser.add_argument("--arch", default="llama", choices=ARCHITECTURES)
    parser.add_argument("--dtype", default="F32", help="type of the matrices, such as F16, Q8_0, Q4_K (F32)")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dim", type=int)
    parser.add_argument("--tied", action="store_true", help="no output matrix: the embedding is used for both")
    parser.add_argument("--split", type=int, default=0, metavar="N", help="a file for every N tensors")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = {"n_layers": args.layers, "dim": args.dim, "tied": args.tied}
    write_tiny_model(args.path, args.dtype, arch=args.arch, split=args.split, seed=args.seed, **shape)


if __name__ == "__main__":
    main()
