"""The table of cases: an architecture each, or a variant of one, small and with everything in it that its family has.

A case makes a `Tiny`, a model in both worlds. What is odd about it is chosen so that it shows: windows are shorter than
the prompt, soft caps bite, heads are not `dim / n_heads` long, norms are not 1, biases are not 0, every kind of layer is
there. What must then matter is each tensor (`tiny.per_tensor`), each key of `ALTERED`, and what the case adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oracle.tiny import N_TOKENS, Array, Change, Tiny, key, per_tensor

TOKENS = [int(t) for t in np.random.PCG64(7).random_raw(48) % N_TOKENS]
"""The prompt of all cases."""


@dataclass(frozen=True)
class Case:
    """A model and what is known of it."""

    make: Callable[[], Tiny]
    truth: str = "mlx"
    """Whose logits are stored: "mlx" or "llama.cpp"."""
    differs: str = ""
    """Why mlx-lm and llama.cpp disagree, if they do; llama.cpp is right then: it is what people run."""
    context: int = 256
    """Positions that a session is given room for."""
    inert: Sequence[str] = ()
    """Tensors and keys that have no influence here, with the names that `every_change` gives them."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    """What else has an influence, by name."""
    but_for: Sequence[Change] = ()
    """The changes to the GGUF after which they agree."""
    tolerance: float = 0.002
    """How far logits may be from the stored ones: the root mean square of the difference, in deviations of the logits.

    Keys and values are rounded to f16, by 2^-11 = 0.05 % at most, in each of two to seven layers; all else is float32.
    What the tests count as an influence is ten times as much."""

    def every_change(self) -> dict[str, Change]:
        """A change of each tensor and of each key of `ALTERED`, and the case's own, by name."""
        tiny = self.make()
        keys = {
            f"key {name}": key(name, ALTERED[name](value))
            for name, value in tiny.keys.items()
            if name in ALTERED and value is not None
        }
        every = {**per_tensor(tiny), **keys, **self.changes}
        assert set(self.inert) <= set(every), f"inert, and not there: {set(self.inert) - set(every)}"
        return every

    def influences(self) -> dict[str, Change]:
        """Those that logits must show."""
        return {name: change for name, change in self.every_change().items() if name not in self.inert}

    def inert_changes(self) -> dict[str, Change]:
        """Those that logits must not show."""
        return {name: change for name, change in self.every_change().items() if name in self.inert}


CASES: dict[str, Case] = {}


def case(**about: Any) -> Callable[[Callable[[], Tiny]], Callable[[], Tiny]]:
    """Enters a maker into the table, under its name."""

    def enter(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
        CASES[make.__name__.replace("_", "-")] = Case(make, **about)
        return make

    return enter


def times(factor: float) -> Callable[[Any], Any]:
    return lambda value: type(value)(value * factor)


ALTERED: dict[str, Callable[[Any], Any]] = {
    ".attention.layer_norm_rms_epsilon": lambda _: 0.5,
    ".attention.layer_norm_epsilon": lambda _: 0.5,
    ".attention.scale": times(2),
    ".attention.sliding_window": times(2),
    ".attention.temperature_scale": times(3),
    ".attn_logit_softcapping": times(3),
    ".embedding_scale": times(1.5),
    ".expert_used_count": lambda n: n - 1,
    ".expert_weights_norm": lambda on: not on,
    ".expert_weights_scale": times(1.5),
    ".final_logit_softcapping": times(3),
    ".logit_scale": times(1.5),
    ".residual_scale": times(1.5),
    ".rope.freq_base": times(0.02),
    ".rope.freq_base_swa": times(0.02),
    ".rope.scaling.attn_factor": times(1.5),
    ".rope.scaling.factor": times(3),
    ".rope.scaling.original_context_length": times(2),
    ".rope.scaling.type": lambda _: "none",
    ".rope.scaling.yarn_log_multiplier": times(3),
}
"""Another value for each key that says how to compute, not how large things are."""


# -- What families share -----------------------------------------------------------------------------------------------


def permuted(n_heads: int) -> Callable[[Array], Array]:
    """The rows of each head in the order of a GGUF whose pairs are neighbours: 0, d/2, 1, d/2 + 1 ..."""

    def permute(x: Array) -> Array:
        return x.reshape(n_heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return permute


def as_is(x: Array) -> Array:
    return x


def plus_one(x: Array) -> Array:
    return x + 1


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
        seed: int = 0,
    ) -> None:
        self.config = config
        self.tiny = Tiny(arch, config, keys_of(config) | dict(keys or {}), seed)
        self.permute = permute
        """Whether the GGUF has the rows of queries and keys in pairs."""
        self.offset = offset
        """What is added to the weights of norms: 1 where the Hugging Face file holds them without it."""
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

    def norm(self, gguf: str, hf: str, *shape: int, around: float = 1.0) -> None:
        value = self.tiny.vector(hf, *shape, around=around - self.offset)
        self.put(f"{gguf}.weight", f"{hf}.weight", value, lambda w: w + np.float32(self.offset))

    def ends(self, *, embedding: str = "model.embed_tokens", norm: str = "model.norm", gain: float = 3.0) -> None:
        """Embedding, last norm and output. Embeddings have a deviation of 1, outputs give logits one of `gain`."""
        tied = self.config["tie_word_embeddings"]
        self.matrix("token_embd", embedding, N_TOKENS, self.dim, gain=gain if tied else self.dim**0.5)
        self.norm("output_norm", norm, self.dim)
        if not tied:
            self.matrix("output", "lm_head", N_TOKENS, self.dim, gain=gain)

    def norms(self, names: Mapping[str, str]) -> None:
        for i in range(self.n_layers):
            for hf, gguf in names.items():
                self.norm(f"blk.{i}.{gguf}", f"model.layers.{i}.{hf}", self.dim)

    def attention(
        self,
        *,
        layers: Sequence[int] | None = None,
        biases: str = "",
        fused: bool = False,
        qk_norm: str = "",
        gain: float = 1.5,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Projections, `biases` for those of the letters "qkvo", norms of queries and keys per "head" or over "all"."""
        names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj", **(names or {})}
        in_gguf = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
        heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        for i in range(self.n_layers) if layers is None else layers:
            blk, attn = f"blk.{i}", f"model.layers.{i}.self_attn"
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
                self.norm(f"{blk}.attn_{letter}_norm", f"{attn}.{letter}_norm", length, around=1.5)

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
            blk, mlp = f"blk.{i}.ffn", f"model.layers.{i}.{part}"
            if fused:
                self.matrix(f"{blk}_up", f"{mlp}.gate_up_proj", 2 * hidden, self.dim, gain=1.5)
            for name in () if fused else ("gate", "up") if gated else ("up",):
                self.matrix(f"{blk}_{name}", f"{mlp}.{names[name]}", hidden, self.dim, gain=1.5)
                if biases:
                    self.bias(f"{blk}_{name}", f"{mlp}.{names[name]}", hidden)
            self.matrix(f"{blk}_down", f"{mlp}.{names['down']}", self.dim, hidden, gain=2)
            if biases:
                self.bias(f"{blk}_down", f"{mlp}.{names['down']}", self.dim)

    def rope_freqs(self, factors: Array) -> None:
        """Factors of the frequencies: only GGUF has them as a tensor."""
        self.tiny.tensors["rope_freqs.weight"] = factors


def plain(arch: str, config: Mapping[str, Any], keys: Mapping[str, Any] | None = None, **about: Any) -> Decoder:
    """All of a decoder that has norms before attention and a gated network."""
    permute, seed = about.pop("permute", False), about.pop("seed", 0)
    biases, qk_norm = about.pop("biases", ""), about.pop("qk_norm", "")
    norms, offset = about.pop("norms", LLAMA_NORMS), about.pop("offset", 0.0)
    assert not about, f"unknown: {about}"
    decoder = Decoder(arch, config, keys, permute=permute, seed=seed, offset=offset)
    decoder.ends()
    decoder.norms(norms)
    decoder.attention(biases=biases, qk_norm=qk_norm)
    decoder.mlp()
    return decoder


def llama3_factors(dim: int, theta: float, scaling: Mapping[str, Any]) -> Array:
    """What the converter writes into `rope_freqs`."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    smooth = (old / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < old / high, 1, np.where(wavelengths > old / low, factor, between))
    return np.asarray(factors, np.float32)


# -- Dense -------------------------------------------------------------------------------------------------------------


@case()
def llama() -> Tiny:
    return plain("llama", config_of("llama"), permute=True).tiny


@case()
def llama_biases() -> Tiny:
    config = config_of("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    decoder = Decoder("llama", config, permute=True)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(biases="qkvo")
    decoder.mlp(biases=True)
    return decoder.tiny


@case()
def llama_llama3_rope() -> Tiny:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = config_of("llama", rope_scaling=scaling, rope_theta=1000.0, tie_word_embeddings=True)
    decoder = plain("llama", config, permute=True)
    decoder.rope_freqs(llama3_factors(24, 1000.0, scaling))
    return decoder.tiny


@case()
def llama_linear() -> Tiny:
    return plain("llama", config_of("llama", rope_scaling={"type": "linear", "factor": 4.0}), permute=True).tiny


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 100.0}


@case()
def llama_yarn() -> Tiny:
    return plain("llama", config_of("llama", rope_scaling=YARN, rope_theta=100.0), permute=True).tiny


@case()
def qwen2() -> Tiny:
    config = config_of("qwen2", hidden_size=80, head_dim=None, tie_word_embeddings=True)
    return plain("qwen2", config, biases="qkv").tiny


@case()
def qwen3() -> Tiny:
    return plain("qwen3", config_of("qwen3", rope_theta=1e6), qk_norm="head").tiny


def phi3_decoder(config: Mapping[str, Any], keys: Mapping[str, Any]) -> Decoder:
    decoder = Decoder("phi3", config, keys)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(fused=True)
    decoder.mlp(fused=True)
    return decoder


@case(inert=["key .attention.sliding_window"])
def phi3() -> Tiny:
    config = config_of("phi3", head_dim=None, hidden_size=96, original_max_position_embeddings=512)
    return phi3_decoder(config, {".attention.sliding_window": 8}).tiny


LONG_FACTORS = [1.0, 1.1, 1.3, 2.0, 3.0, 5.0, 8.0, 9.0, 11.0]


def phi3_longrope() -> Tiny:
    """Phi-4-mini: three quarters of a head are rotated; two sets of factors."""
    short = [1.0 + 0.1 * i for i in range(9)]
    scaling = {"type": "longrope", "short_factor": short, "long_factor": LONG_FACTORS}
    config = config_of(
        "phi3",
        head_dim=None,
        hidden_size=96,
        partial_rotary_factor=0.75,
        max_position_embeddings=1024,
        original_max_position_embeddings=256,
        rope_scaling=scaling,
        rope_theta=100.0,
        tie_word_embeddings=True,
    )
    attn_factor = math.sqrt(1 + math.log(1024 / 256) / math.log(256))
    keys = {
        ".rope.scaling.original_context_length": 256,
        ".rope.scaling.attn_factor": attn_factor,
    }
    decoder = phi3_decoder(config, keys)
    decoder.tiny.tensors["rope_factors_long.weight"] = np.array(LONG_FACTORS, np.float32)
    decoder.tiny.tensors["rope_factors_short.weight"] = np.array(short, np.float32)
    return decoder.tiny


CASES["phi3-longrope-long"] = Case(
    phi3_longrope,
    context=512,
    inert=["tensor rope_factors_short.weight", "key .rope.scaling.original_context_length"],
)
CASES["phi3-longrope-short"] = Case(
    phi3_longrope,
    truth="llama.cpp",
    differs="mlx-lm has the long factors only",
    context=256,
    inert=["tensor rope_factors_long.weight", "key .rope.scaling.original_context_length"],
)


@case()
def gemma() -> Tiny:
    return plain("gemma", config_of("gemma", tie_word_embeddings=True), offset=1).tiny


@case(truth="llama.cpp", differs="mlx-lm's gemma2 has no windows", but_for=[key(".attention.sliding_window", 512)])
def gemma2() -> Tiny:
    config = config_of(
        "gemma2",
        num_hidden_layers=4,
        tie_word_embeddings=True,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
        query_pre_attn_scalar=24,
    )
    keys = {
        ".attn_logit_softcapping": 3.0,
        ".final_logit_softcapping": 4.0,
        ".attention.sliding_window": 12,
    }
    return plain("gemma2", config, keys, norms=SANDWICH_NORMS, offset=1).tiny


@case()
def gemma3() -> Tiny:
    config = config_of(
        "gemma3_text",
        num_hidden_layers=7,
        tie_word_embeddings=True,
        query_pre_attn_scalar=24,
        sliding_window=12,
        sliding_window_pattern=6,
        rope_theta=1e6,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    keys = {".attention.sliding_window": 12}
    return plain("gemma3", config, keys, norms=SANDWICH_NORMS, offset=1, qk_norm="head").tiny


@case()
def granite() -> Tiny:
    scales = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.35,
        "logits_scaling": 2.0,
    }
    biases = {"attention_bias": False, "mlp_bias": False}
    keys = {".embedding_scale": 3.0, ".residual_scale": 0.4, ".attention.scale": 0.35, ".logit_scale": 2.0}
    config = config_of("granite", head_dim=None, tie_word_embeddings=True, **scales, **biases)
    return plain("granite", config, keys, permute=True).tiny


@case()
def smollm3() -> Tiny:
    config = config_of("smollm3", num_hidden_layers=5, tie_word_embeddings=True)
    return plain("smollm3", config, permute=True).tiny


@case()
def olmo2() -> Tiny:
    return plain("olmo2", config_of("olmo2", head_dim=None), norms=POST_NORMS, qk_norm="all").tiny


@case()
def mistral3() -> Tiny:
    rope = {
        **YARN,
        "original_max_position_embeddings": 16,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.6,
    }
    config = config_of("ministral3", rope_parameters=rope, rope_scaling=rope, rope_theta=100.0)
    keys = {
        ".attention.temperature_scale": 0.6,
        ".rope.scaling.yarn_log_multiplier": 1.0,
        ".rope.scaling.yarn_beta_fast": 32.0,
        ".rope.scaling.yarn_beta_slow": 1.0,
    }
    return plain("mistral3", config, keys, permute=True).tiny
