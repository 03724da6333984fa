"""What decoders share: a config, the metadata that follows from it, and tensors under both names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from oracle.tiny import N_TOKENS, Array, Tiny


def permuted(n_heads: int) -> Callable[[Array], Array]:
    """The rows of each head in the order of a GGUF whose pairs are neighbours: 0, d/2, 1, d/2 + 1 ..."""

    def permute(x: Array) -> Array:
        return x.reshape(n_heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return permute


def as_is(x: Array) -> Array:
    return x


def config_of(model_type: str, **more: Any) -> dict[str, Any]:
    """A config as most have it: grouped heads, a head dimension that does not follow from the others."""
    return {
        "model_type": model_type,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "rms_norm_eps": 1e-5,
        "vocab_size": N_TOKENS,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    } | more


def head_dim_of(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def keys_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that follows from a config."""
    head_dim = head_dim_of(config)
    scaling = config.get("rope_scaling") or {}
    keys: dict[str, Any] = {
        ".block_count": config["num_hidden_layers"],
        ".context_length": config["max_position_embeddings"],
        ".embedding_length": config["hidden_size"],
        ".feed_forward_length": config["intermediate_size"],
        ".attention.head_count": config["num_attention_heads"],
        ".attention.head_count_kv": config["num_key_value_heads"],
        ".attention.key_length": head_dim,
        ".attention.value_length": head_dim,
        ".attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        ".rope.dimension_count": int(head_dim * config.get("partial_rotary_factor", 1)),
        ".rope.freq_base": float(config["rope_theta"]),
    }
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        keys[".rope.scaling.type"] = kind
        keys[".rope.scaling.factor"] = float(scaling["factor"])
    if kind == "yarn":
        keys[".rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return keys


LLAMA_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
SANDWICH_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}

LAYER_NORM = {".attention.layer_norm_epsilon": 1e-5, ".attention.layer_norm_rms_epsilon": None}
"""Keys of those that have LayerNorm where others have RMSNorm."""


class Decoder:
    """Fills a `Tiny` with the tensors that decoders have, by parts, so that a case may leave out or add some."""

    def __init__(
        self,
        arch: str,
        config: Mapping[str, Any],
        keys: Mapping[str, Any] | None = None,
        *,
        permute: bool = False,
        offset: float = 0.0,
        stack: str = "model.layers",
        seed: int = 0,
    ) -> None:
        self.config = config
        self.tiny = Tiny(arch, config, keys_of(config) | dict(keys or {}), seed)
        self.permute = permute
        """Whether the GGUF has the rows of queries and keys in pairs."""
        self.offset = offset
        """What is added to the weights of norms: 1 where the Hugging Face file holds them without it."""
        self.stack = stack
        """What the names of layers begin with, at Hugging Face."""
        self.dim = int(config["hidden_size"])
        self.n_layers = int(config["num_hidden_layers"])
        self.n_heads = int(config["num_attention_heads"])
        self.n_kv_heads = int(config["num_key_value_heads"])
        self.head_dim = head_dim_of(config)

    def put(self, gguf: str, hf: str, value: Array, to: Callable[[Array], Array] = as_is) -> None:
        """A tensor that is the same in both, but for `to`."""
        self.tiny.hf[hf] = value
        self.tiny.tensors[gguf] = to(value)

    def matrix(self, gguf: str, hf: str, *shape: int, gain: float = 1.0, to: Callable[[Array], Array] = as_is) -> None:
        self.put(f"{gguf}.weight", f"{hf}.weight", self.tiny.matrix(hf, *shape, gain=gain), to)

    def bias(self, gguf: str, hf: str, *shape: int, by: float = 0.5, to: Callable[[Array], Array] = as_is) -> None:
        self.put(f"{gguf}.bias", f"{hf}.bias", self.tiny.vector(f"{hf}.bias", *shape, by=by), to)

    def norm(self, gguf: str, hf: str, *shape: int, around: float = 1.0, by: float = 0.5, bias: bool = False) -> None:
        value = self.tiny.vector(hf, *shape, around=around - self.offset, by=by)
        self.put(f"{gguf}.weight", f"{hf}.weight", value, lambda w: w + np.float32(self.offset))
        if bias:
            self.bias(gguf, hf, *shape)

    def ends(
        self,
        *,
        embedding: str = "model.embed_tokens",
        norm: str = "model.norm",
        gain: float = 3.0,
        embedding_gain: float | None = None,
        bias: bool = False,
    ) -> None:
        """Embedding, last norm and output. Embeddings have a deviation of 1, outputs give logits one of `gain`."""
        tied = self.config["tie_word_embeddings"]
        embedding_gain = embedding_gain or (gain if tied else self.dim**0.5)
        self.matrix("token_embd", embedding, N_TOKENS, self.dim, gain=embedding_gain)
        self.norm("output_norm", norm, self.dim, bias=bias)
        if not tied:
            self.matrix("output", "lm_head", N_TOKENS, self.dim, gain=gain)

    def norms(self, names: Mapping[str, str], *, bias: bool = False) -> None:
        for i in range(self.n_layers):
            for hf, name in names.items():
                self.norm(f"blk.{i}.{name}", f"{self.stack}.{i}.{hf}", self.dim, bias=bias)

    def attention(
        self,
        *,
        layers: Sequence[int] | None = None,
        biases: str = "",
        fused: bool = False,
        qk_norm: str = "",
        gain: float = 1.5,
        names: Mapping[str, str] | None = None,
        part: str = "self_attn",
    ) -> None:
        """Projections, `biases` for those of the letters "qkvo", norms of queries and keys per "head" or over "all"."""
        names = {x: f"{x}_proj" for x in "qkvo"} | {"q_norm": "q_norm", "k_norm": "k_norm"} | dict(names or {})
        in_gguf = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
        heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        for i in range(self.n_layers) if layers is None else layers:
            blk, attn = f"blk.{i}", f"{self.stack}.{i}.{part}"
            if fused:
                rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
                self.matrix(f"{blk}.attn_qkv", f"{attn}.qkv_proj", rows, self.dim, gain=gain)
            for letter, n in heads.items() if not fused else ():
                to = permuted(n) if self.permute and letter != "v" else as_is
                gguf, hf = f"{blk}.{in_gguf[letter]}", f"{attn}.{names[letter]}"
                self.matrix(gguf, hf, n * self.head_dim, self.dim, gain=gain, to=to)
                if letter in biases:
                    self.bias(gguf, hf, n * self.head_dim, to=to)
            self.matrix(f"{blk}.attn_output", f"{attn}.{names['o']}", self.dim, self.n_heads * self.head_dim, gain=2)
            if "o" in biases:
                self.bias(f"{blk}.attn_output", f"{attn}.{names['o']}", self.dim)
            for letter in "qk" if qk_norm else "":
                length = self.head_dim * (heads[letter] if qk_norm == "all" else 1)
                self.norm(f"{blk}.attn_{letter}_norm", f"{attn}.{names[f'{letter}_norm']}", length, around=1.5)

    def mlp(
        self,
        *,
        layers: Sequence[int] | None = None,
        hidden: int | None = None,
        fused: bool = False,
        gated: bool = True,
        biases: bool = False,
        names: Mapping[str, str] | None = None,
        part: str = "mlp",
    ) -> None:
        """A feed-forward network, gated or plain; `fused` has gate and up in one."""
        hidden = hidden or int(self.config["intermediate_size"])
        names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj", **(names or {})}
        for i in range(self.n_layers) if layers is None else layers:
            blk, mlp = f"blk.{i}.ffn", f"{self.stack}.{i}.{part}"
            if fused:
                self.matrix(f"{blk}_up", f"{mlp}.gate_up_proj", 2 * hidden, self.dim, gain=1.5)
            for name in () if fused else ("gate", "up") if gated else ("up",):
                self.matrix(f"{blk}_{name}", f"{mlp}.{names[name]}", hidden, self.dim, gain=1.5)
                if biases:
                    self.bias(f"{blk}_{name}", f"{mlp}.{names[name]}", hidden)
            self.matrix(f"{blk}_down", f"{mlp}.{names['down']}", self.dim, hidden, gain=2)
            if biases:
                self.bias(f"{blk}_down", f"{mlp}.{names['down']}", self.dim)

    def experts(
        self,
        hidden: int,
        n: int = 8,
        *,
        layers: Sequence[int] | None = None,
        part: str = "mlp",
        router: str = "gate",
        names: Mapping[str, str] | None = None,
        choice_bias: str = "",
        bias_around: float = 0.0,
        gain: float = 2.0,
    ) -> None:
        """A router and experts: Hugging Face has a tensor for each, GGUF one for all. `choice_bias` is a name."""
        names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj", **(names or {})}
        for i in range(self.n_layers) if layers is None else layers:
            blk, mlp = f"blk.{i}", f"{self.stack}.{i}.{part}"
            self.matrix(f"{blk}.ffn_gate_inp", f"{mlp}.{router}", n, self.dim, gain=gain)
            if choice_bias:
                value = self.tiny.vector(f"{mlp}.{choice_bias}", n, around=bias_around)
                self.put(f"{blk}.exp_probs_b.bias", f"{mlp}.{choice_bias}", value)
            for name, hf in names.items():
                rows, columns, scale = (self.dim, hidden, 3.0) if name == "down" else (hidden, self.dim, 1.5)
                each = [f"{mlp}.experts.{e}.{hf}.weight" for e in range(n)]
                self.tiny.hf |= {tensor: self.tiny.matrix(tensor, rows, columns, gain=scale) for tensor in each}
                self.tiny.tensors[f"{blk}.ffn_{name}_exps.weight"] = np.stack([self.tiny.hf[t] for t in each])

    def shared_expert(
        self, hidden: int, *, layers: Sequence[int] | None = None, part: str = "mlp.shared_expert", gate: str = ""
    ) -> None:
        """A network for every token beside the experts; `gate` is the name of what it is weighted by."""
        for i in range(self.n_layers) if layers is None else layers:
            blk, mlp = f"blk.{i}.ffn", f"{self.stack}.{i}.{part}"
            self.matrix(f"{blk}_gate_shexp", f"{mlp}.gate_proj", hidden, self.dim, gain=1.5)
            self.matrix(f"{blk}_up_shexp", f"{mlp}.up_proj", hidden, self.dim, gain=1.5)
            self.matrix(f"{blk}_down_shexp", f"{mlp}.down_proj", self.dim, hidden, gain=2)
            if gate:
                self.matrix(f"{blk}_gate_inp_shexp", f"{self.stack}.{i}.{gate}", 1, self.dim, to=lambda w: w[0])

    def rope_freqs(self, factors: Array) -> None:
        """Factors of the frequencies: only GGUF has them as a tensor."""
        self.tiny.tensors["rope_freqs.weight"] = factors


def plain(arch: str, config: Mapping[str, Any], keys: Mapping[str, Any] | None = None, **about: Any) -> Decoder:
    """All of a decoder that has norms before attention and a gated network."""
    permute, seed = about.pop("permute", False), about.pop("seed", 0)
    biases, qk_norm = about.pop("biases", ""), about.pop("qk_norm", "")
    norms, offset = about.pop("norms", LLAMA_NORMS), about.pop("offset", 0.0)
    embedding_gain = about.pop("embedding_gain", None)
    assert not about, f"unknown: {about}"
    decoder = Decoder(arch, config, keys, permute=permute, seed=seed, offset=offset)
    decoder.ends(embedding_gain=embedding_gain)
    decoder.norms(norms)
    decoder.attention(biases=biases, qk_norm=qk_norm)
    decoder.mlp()
    return decoder
