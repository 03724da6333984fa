"""Models that turn a text into a vector: each position sees all others.

mlx-lm has none of them, so all that is stored is llama.cpp's: the vector of each token, and what pooling makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oracle.case import encoder
from oracle.decoder import SANDWICH_NORMS, Decoder, config_of, plain
from oracle.tiny import N_TOKENS, Array, Tiny

DIM, HIDDEN = 64, 96


class Encoder(Tiny):
    """A GGUF alone: tensors are put in by their names there."""

    def __init__(self, arch: str, pooling: int, keys: Mapping[str, Any], n_layers: int = 2) -> None:
        shape = {
            ".block_count": n_layers,
            ".context_length": 64,
            ".embedding_length": DIM,
            ".feed_forward_length": HIDDEN,
            ".attention.head_count": 4,
            ".attention.causal": False,
            ".attention.layer_norm_epsilon": 1e-5,
            ".pooling_type": pooling,
        }
        super().__init__(arch, {}, {**shape, **keys})
        self.n_layers = n_layers

    def put(self, name: str, value: Array) -> None:
        self.tensors[name] = value

    def linear(self, name: str, rows: int, columns: int = DIM, *, gain: float = 1.0, bias: bool = False) -> None:
        self.put(f"{name}.weight", self.matrix(name, rows, columns, gain=gain))
        if bias:
            self.put(f"{name}.bias", self.vector(f"{name}.bias", rows))

    def norm(self, name: str, *, bias: bool = True) -> None:
        self.put(f"{name}.weight", self.vector(name, DIM, around=1))
        if bias:
            self.put(f"{name}.bias", self.vector(f"{name}.bias", DIM))

    def embeddings(self, *, types: bool = True, norm_bias: bool = True) -> None:
        self.linear("token_embd", N_TOKENS, gain=DIM**0.5)
        if types:
            self.keys["tokenizer.ggml.token_type_count"] = 2
            self.linear("token_types", 2, gain=DIM**0.5)
        self.norm("token_embd_norm", bias=norm_bias)

    def attention(self, i: int, *, fused: bool = False, bias: bool = False) -> None:
        blk = f"blk.{i}.attn"
        if fused:
            self.linear(f"{blk}_qkv", 3 * DIM, gain=1.5, bias=bias)
        for letter in () if fused else "qkv":
            self.linear(f"{blk}_{letter}", DIM, gain=1.5, bias=bias)
        self.linear(f"{blk}_output", DIM, gain=2, bias=bias)

    def post_norms(self, i: int) -> None:
        self.norm(f"blk.{i}.attn_output_norm")
        self.norm(f"blk.{i}.layer_output_norm")

    def network(self, i: int, *, gate: bool = False, bias: bool = False, up_rows: int = HIDDEN) -> None:
        blk = f"blk.{i}.ffn"
        if gate:
            self.linear(f"{blk}_gate", HIDDEN, gain=1.5)
        self.linear(f"{blk}_up", up_rows, gain=1.5, bias=bias)
        self.linear(f"{blk}_down", DIM, HIDDEN, gain=2, bias=bias)


def bert_encoder(pooling: int) -> Encoder:
    e = Encoder("bert", pooling, {})
    e.embeddings()
    e.linear("position_embd", 64, gain=DIM**0.5)
    for i in range(e.n_layers):
        e.attention(i, bias=True)
        e.network(i, bias=True)
        e.post_norms(i)
    return e


# A bias of keys adds the same to all scores of a query, where nothing rotates.
@encoder(["none", "mean", "cls"], inert=["tensor attn_k.bias"])
def bert() -> Tiny:
    return bert_encoder(1)


@encoder(["rank"], only="tensor cls")
def bert_rerank() -> Tiny:
    e = bert_encoder(4)
    e.linear("cls", DIM, bias=True)
    e.linear("cls.output", 1, gain=3, bias=True)
    return e


@encoder(["none", "mean"])
def nomic_bert() -> Tiny:
    e = Encoder("nomic-bert", 1, {".rope.freq_base": 1000.0})
    e.embeddings()
    for i in range(e.n_layers):
        e.attention(i, fused=True)
        e.network(i, gate=True)
        e.post_norms(i)
    return e


@encoder(["none", "mean"])
def nomic_bert_moe() -> Tiny:
    """Every second layer is a mixture."""
    keys = {".rope.freq_base": 1000.0, ".expert_count": 8, ".expert_used_count": 2, ".moe_every_n_layers": 2}
    e = Encoder("nomic-bert-moe", 1, keys, n_layers=4)
    e.embeddings()
    for i in range(e.n_layers):
        e.attention(i, fused=True, bias=True)
        if i % 2 == 0:
            e.network(i, bias=True)
        else:
            e.linear(f"blk.{i}.ffn_gate_inp", 8, gain=2)
            e.put(f"blk.{i}.ffn_up_exps.weight", e.matrix(f"blk.{i}.ffn_up_exps", 8, HIDDEN, DIM, gain=1.5))
            e.put(f"blk.{i}.ffn_down_exps.weight", e.matrix(f"blk.{i}.ffn_down_exps", 8, DIM, HIDDEN, gain=3))
        e.post_norms(i)
    return e


@encoder(["none", "mean"], inert=["tensor attn_k.bias"])
def jina_bert_v2() -> Tiny:
    """Distances lower the scores; gates go through GELU."""
    e = Encoder("jina-bert-v2", 1, {})
    e.embeddings()
    for i in range(e.n_layers):
        e.attention(i, bias=True)
        e.network(i, gate=True)
        e.put(f"blk.{i}.ffn_down.bias", e.vector(f"blk.{i}.ffn_down.bias", DIM))
        e.post_norms(i)
    return e


@encoder(["none", "mean"], inert=["tensor attn_k_norm.bias"])
def jina_bert_v2_code() -> Tiny:
    """Norms of queries and keys, a second norm after attention, gate and up in one matrix."""
    e = Encoder("jina-bert-v2", 1, {})
    e.embeddings()
    for i in range(e.n_layers):
        e.attention(i, bias=True)
        e.put(f"blk.{i}.attn_k.bias", e.vector(f"blk.{i}.attn_k.bias", DIM, by=1))
        e.network(i, up_rows=2 * HIDDEN)
        e.put(f"blk.{i}.ffn_down.bias", e.vector(f"blk.{i}.ffn_down.bias", DIM))
        e.post_norms(i)
        for name in ("attn_q_norm", "attn_k_norm", "attn_norm_2"):
            e.norm(f"blk.{i}.{name}")
    return e


def modern_bert_encoder(pooling: int) -> Encoder:
    """The first of three layers sees all positions, the others a window to both sides; gate and up are one matrix."""
    keys = {
        ".attention.sliding_window": 12,
        ".rope.freq_base": 160000.0,
        ".rope.freq_base_swa": 10000.0,
    }
    e = Encoder("modern-bert", pooling, keys, n_layers=5)
    e.embeddings(types=False, norm_bias=False)
    e.norm("output_norm", bias=False)
    for i in range(e.n_layers):
        if i > 0:
            e.norm(f"blk.{i}.attn_norm", bias=False)
        e.attention(i, fused=True)
        e.norm(f"blk.{i}.ffn_norm", bias=False)
        e.network(i, up_rows=2 * HIDDEN)
    return e


@encoder(["none", "mean", "cls"])
def modern_bert() -> Tiny:
    return modern_bert_encoder(1)


@encoder(["rank"], only="tensor cls")
def modern_bert_rerank() -> Tiny:
    e = modern_bert_encoder(4)
    e.linear("cls", DIM, gain=2)
    e.norm("cls.norm", bias=False)
    e.linear("cls.output", 1, gain=3, bias=True)
    return e


@encoder(["none", "mean"])
def gemma_embedding() -> Tiny:
    """Gemma 3 that sees to both sides, and two matrices after pooling."""
    config = config_of("gemma3_text", num_hidden_layers=7, tie_word_embeddings=True, rope_theta=1e6)
    keys = {
        ".attention.sliding_window": 12,
        ".pooling_type": 1,
        ".rope.freq_base_swa": 10000.0,
        ".dense_2_feat_in": 64,
        ".dense_2_feat_out": 96,
        ".dense_3_feat_in": 96,
        ".dense_3_feat_out": 64,
    }
    decoder = plain("gemma-embedding", config, keys, norms=SANDWICH_NORMS, offset=1, qk_norm="head")
    decoder.matrix("dense_2", "dense_2", 96, 64)
    decoder.matrix("dense_3", "dense_3", 64, 96)
    return decoder.tiny


def qwen3_encoder(pooling: int) -> Decoder:
    config = config_of("qwen3", rope_theta=1e6, tie_word_embeddings=True)
    return plain("qwen3", config, {".pooling_type": pooling}, qk_norm="head")


@encoder(["none", "last"])
def qwen3_embedding() -> Tiny:
    """A decoder: what the last token knows."""
    return qwen3_encoder(3).tiny


@encoder(["rank"], only="tensor cls")
def qwen3_rerank() -> Tiny:
    """The probability of "yes"."""
    decoder = qwen3_encoder(4)
    decoder.tiny.keys[".classifier.output_labels"] = ["yes", "no"]
    decoder.matrix("cls.output", "score", 2, 64, gain=0.5)
    return decoder.tiny
