"""The table of cases: an architecture each, or a variant of one, small and with everything in it that its family has.

A case makes a `Tiny`, a model in both worlds. What is odd about it is chosen so that it shows: windows are shorter than
the prompt, soft caps bite, heads are not `dim / n_heads` long, norms are not 1, biases are not 0, every kind of layer
is there. What must then matter is each tensor (`tiny.per_tensor`), each key of `ALTERED`, and what the case adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from oracle.tiny import N_TOKENS, Array, Change, Tiny, key, per_tensor, tensor

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
    """

    @property
    def visible(self) -> float:
        """How far logits have to move for a change to count."""
        return max(0.02, 3 * self.tolerance)

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
    ".expert_used_count": lambda _: 1,
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
                self.norm(f"blk.{i}.{name}", f"model.layers.{i}.{hf}", self.dim, bias=bias)

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
        names = {x: f"{x}_proj" for x in "qkvo"} | {"q_norm": "q_norm", "k_norm": "k_norm"} | dict(names or {})
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
        gain: float = 2.0,
    ) -> None:
        """A router and experts: Hugging Face has a tensor for each, GGUF one for all. `choice_bias` is a name."""
        names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj", **(names or {})}
        for i in range(self.n_layers) if layers is None else layers:
            blk, mlp = f"blk.{i}", f"model.layers.{i}.{part}"
            self.matrix(f"{blk}.ffn_gate_inp", f"{mlp}.{router}", n, self.dim, gain=gain)
            if choice_bias:
                value = self.tiny.vector(f"{mlp}.{choice_bias}", n)
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
            blk, mlp = f"blk.{i}.ffn", f"model.layers.{i}.{part}"
            self.matrix(f"{blk}_gate_shexp", f"{mlp}.gate_proj", hidden, self.dim, gain=1.5)
            self.matrix(f"{blk}_up_shexp", f"{mlp}.up_proj", hidden, self.dim, gain=1.5)
            self.matrix(f"{blk}_down_shexp", f"{mlp}.down_proj", self.dim, hidden, gain=2)
            if gate:
                self.matrix(f"{blk}_gate_inp_shexp", f"model.layers.{i}.{gate}", 1, self.dim, to=lambda w: w[0])

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


@case()
def exaone4() -> Tiny:
    """EXAONE 4.0 1.2B: no windows, all layers rotate."""
    none = {"rope_scaling": None, "sliding_window": None, "sliding_window_pattern": None}
    config = config_of("exaone4", head_dim=16, **none)
    return plain("exaone4", config, norms=POST_NORMS, qk_norm="head").tiny


@case(tolerance=0.005)
def exaone4_window() -> Tiny:
    """EXAONE 4.0 32B: llama.cpp knows it by its 64 layers. Every fourth sees all positions and does not rotate.

    Most layers add little: roundings would add up to too much, and none of the layers matter enough.
    """
    windows = {"rope_scaling": None, "sliding_window": 12, "sliding_window_pattern": "LLLG"}
    shape = {"num_hidden_layers": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = config_of("exaone4", head_dim=16, num_key_value_heads=1, **shape, **windows)
    decoder = plain("exaone4", config, {".attention.sliding_window": 12}, norms=POST_NORMS, qk_norm="head")
    for i in range(58):
        for hf, name in POST_NORMS.items():
            decoder.norm(f"blk.{i}.{name}", f"model.layers.{i}.{hf}", 32, around=0.1, by=0.05)
    return decoder.tiny


LAYER_NORM = {".attention.layer_norm_epsilon": 1e-5, ".attention.layer_norm_rms_epsilon": None}


def cohere_decoder(arch: str, config: Mapping[str, Any], more: Mapping[str, Any]) -> Decoder:
    """One norm, without a bias, feeds attention and network; both are added."""
    decoder = Decoder(arch, config, {**LAYER_NORM, ".logit_scale": 0.5, **more})
    decoder.ends()
    decoder.norms({"input_layernorm": "attn_norm"})
    decoder.attention()
    decoder.mlp()
    return decoder


COHERE = {"head_dim": 16, "layer_norm_eps": 1e-5, "logit_scale": 0.5, "tie_word_embeddings": True}


@case()
def command_r() -> Tiny:
    return cohere_decoder("command-r", config_of("cohere", **COHERE), {}).tiny


@case()
def cohere2() -> Tiny:
    windows = {"sliding_window": 12, "sliding_window_pattern": 4}
    config = config_of("cohere2", num_hidden_layers=5, **COHERE, **windows)
    return cohere_decoder("cohere2", config, {".attention.sliding_window": 12}).tiny


@case()
def glm4() -> Tiny:
    config = config_of("glm4", partial_rotary_factor=0.5, attention_bias=True)
    norms = {
        "input_layernorm": "attn_norm",
        "post_self_attn_layernorm": "post_attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    }
    decoder = Decoder("glm4", config)
    decoder.ends()
    decoder.norms(norms)
    decoder.attention(biases="qkv")
    decoder.mlp(fused=True)
    return decoder.tiny


@case()
def seed_oss() -> Tiny:
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}
    config = config_of("seed_oss", attention_bias=True)
    return plain("seed_oss", config, norms=norms, biases="qkv").tiny


@case()
def ernie4_5() -> Tiny:
    return plain("ernie4_5", config_of("ernie4_5", use_bias=False, tie_word_embeddings=True)).tiny


@case()
def hunyuan_dense() -> Tiny:
    scaling = {"type": "dynamic", "alpha": 50.0, "factor": 1.0}
    config = config_of("hunyuan_v1_dense", rope_scaling=scaling, use_qk_norm=True, tie_word_embeddings=True)
    decoder = Decoder("hunyuan-dense", config, {".rope.freq_base": 10000.0 * 50.0 ** (24 / 22)})
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(qk_norm="head", names={"q_norm": "query_layernorm", "k_norm": "key_layernorm"})
    decoder.mlp()
    return decoder.tiny


MINICPM = {"head_dim": None, "scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 16, "num_hidden_layers": 4}


@case()
def minicpm() -> Tiny:
    keys = {".embedding_scale": 12.0, ".residual_scale": 0.7, ".logit_scale": 4.0}
    return plain("minicpm", config_of("minicpm", **MINICPM), keys, permute=True, embedding_gain=1.0).tiny


@case(
    truth="llama.cpp",
    differs="llama.cpp multiplies by dim / 256 where it is not told a logit scale; Hugging Face divides by that",
    but_for=[key(".logit_scale", 0.25)],
)
def minicpm_old() -> Tiny:
    """A file that does not say the scales."""
    keys = {".logit_scale": None}
    config = config_of("minicpm", **MINICPM | {"dim_model_base": 256})
    return plain("minicpm", config, keys, permute=True, embedding_gain=1.0).tiny


@case(truth="llama.cpp")
def starcoder2() -> Tiny:
    """GELU is approximated with tanh; mlx-lm has the exact one, which is as good as the same."""
    config = config_of("starcoder2", head_dim=None, norm_epsilon=1e-5, tie_word_embeddings=True)
    decoder = Decoder("starcoder2", config, LAYER_NORM)
    decoder.ends(bias=True)
    decoder.norms(LLAMA_NORMS, bias=True)
    decoder.attention(biases="qkvo")
    decoder.mlp(gated=False, biases=True, names={"up": "c_fc", "down": "c_proj"})
    return decoder.tiny


@case(truth="llama.cpp")
def arcee() -> Tiny:
    decoder = Decoder("arcee", config_of("arcee"), permute=True)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention()
    decoder.mlp(gated=False)
    return decoder.tiny


# -- Mixtures of experts -----------------------------------------------------------------------------------------------


def mixture(arch: str, config: Mapping[str, Any], keys: Mapping[str, Any] | None = None, **about: Any) -> Decoder:
    """All of a decoder but its experts."""
    biases, qk_norm = about.pop("biases", ""), about.pop("qk_norm", "")
    n = config.get("num_local_experts") or config.get("num_experts") or config["n_routed_experts"]
    counts = {".expert_count": n, ".expert_used_count": config["num_experts_per_tok"]}
    decoder = Decoder(arch, config, counts | dict(keys or {}), **about)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(biases=biases, qk_norm=qk_norm)
    return decoder


@case()
def mixtral() -> Tiny:
    config = config_of("mixtral", head_dim=None, num_local_experts=8, num_experts_per_tok=2)
    decoder = mixture("llama", config, permute=True)
    decoder.experts(96, part="block_sparse_moe", names={"gate": "w1", "down": "w2", "up": "w3"})
    return decoder.tiny


@case()
def qwen2moe() -> Tiny:
    sizes = {"moe_intermediate_size": 48, "shared_expert_intermediate_size": 80}
    config = config_of("qwen2_moe", head_dim=None, num_experts=8, num_experts_per_tok=3, **sizes)
    keys = {".expert_feed_forward_length": 48, ".expert_shared_feed_forward_length": 80}
    decoder = mixture("qwen2moe", config, keys, biases="qkv")
    decoder.experts(48)
    decoder.shared_expert(80, gate="mlp.shared_expert_gate")
    return decoder.tiny


@case()
def qwen3moe() -> Tiny:
    config = config_of(
        "qwen3_moe",
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=48,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    decoder = mixture("qwen3moe", config, {".expert_feed_forward_length": 48}, qk_norm="head")
    decoder.experts(48)
    return decoder.tiny


@case()
def olmoe() -> Tiny:
    config = config_of(
        "olmoe", head_dim=None, num_key_value_heads=4, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False
    )
    decoder = mixture("olmoe", config, qk_norm="all")
    decoder.experts(96)
    return decoder.tiny


def granitemoe_decoder() -> Decoder:
    scales = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.35,
        "logits_scaling": 2.0,
    }
    config = config_of(
        "granitemoe", head_dim=None, num_local_experts=8, num_experts_per_tok=3, attention_bias=False, **scales
    )
    keys = {".embedding_scale": 3.0, ".residual_scale": 0.4, ".attention.scale": 0.35, ".logit_scale": 2.0}
    decoder = mixture("granitemoe", config, keys, permute=True)
    for i in range(decoder.n_layers):
        blk, moe = f"blk.{i}", f"model.layers.{i}.block_sparse_moe"
        decoder.matrix(f"{blk}.ffn_gate_inp", f"{moe}.router.layer", 8, 64, gain=2)
        both = decoder.tiny.matrix(f"{moe}.input_linear", 8, 2 * 96, 64, gain=1.5)
        decoder.tiny.hf[f"{moe}.input_linear.weight"] = both
        decoder.tiny.tensors[f"{blk}.ffn_gate_exps.weight"] = both[:, :96]
        decoder.tiny.tensors[f"{blk}.ffn_up_exps.weight"] = both[:, 96:]
        decoder.matrix(f"{blk}.ffn_down_exps", f"{moe}.output_linear", 8, 64, 96, gain=3)
    return decoder


@case()
def granitemoe() -> Tiny:
    return granitemoe_decoder().tiny


@case(
    truth="llama.cpp",
    differs="mlx-lm's granitemoe has no shared expert",
    but_for=[tensor(f"blk.{i}.ffn_down_shexp.weight", np.zeros_like) for i in range(2)],
)
def granitemoe_shared() -> Tiny:
    decoder = granitemoe_decoder()
    decoder.tiny.keys[".expert_shared_feed_forward_length"] = 80
    own = dict(decoder.tiny.hf)
    decoder.shared_expert(80)
    decoder.tiny.hf = own
    return decoder.tiny


@case(inert=[f"tensor nextn.{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm")])
def glm4moe() -> Tiny:
    """A dense layer, then mixtures; and a layer that predicts one more token, which is no part of the model."""
    config = config_of(
        "glm4_moe",
        num_hidden_layers=3,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        moe_intermediate_size=48,
        norm_topk_prob=True,
        routed_scaling_factor=1.7,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        use_qk_norm=True,
        attention_bias=True,
        partial_rotary_factor=0.5,
        rope_scaling=None,
    )
    keys = {
        ".block_count": 4,
        ".nextn_predict_layers": 1,
        ".expert_feed_forward_length": 48,
        ".expert_shared_count": 2,
        ".leading_dense_block_count": 1,
        ".expert_gating_func": 2,
        ".expert_weights_scale": 1.7,
        ".expert_weights_norm": True,
    }
    decoder = Decoder("glm4moe", config, {".expert_count": 8, ".expert_used_count": 3, **keys})
    decoder.ends()
    for n in (3, 4):  # first the model, then what only the GGUF has
        decoder.n_layers = n
        new = [0, 1, 2] if n == 3 else [3]
        for i in new:
            decoder.norm(f"blk.{i}.attn_norm", f"model.layers.{i}.input_layernorm", 64)
            decoder.norm(f"blk.{i}.post_attention_norm", f"model.layers.{i}.post_attention_layernorm", 64)
        decoder.attention(layers=new, biases="qkv", qk_norm="head")
        decoder.mlp(layers=[0] if n == 3 else [])
        mixtures = [i for i in new if i]
        decoder.experts(48, layers=mixtures, choice_bias="gate.e_score_correction_bias")
        decoder.shared_expert(96, layers=mixtures, part="mlp.shared_experts")
        if n == 3:
            own = dict(decoder.tiny.hf)
    decoder.matrix("blk.3.nextn.eh_proj", "eh_proj", 64, 128)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        decoder.norm(f"blk.3.nextn.{name}", name, 64)
    decoder.tiny.hf = own
    return decoder.tiny


GPT_OSS_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}


def gpt_oss_decoder(more: Mapping[str, Any], n_layers: int = 4, used: int = 3) -> Decoder:
    """All but the matrices of experts."""
    config = config_of(
        "gpt_oss",
        num_hidden_layers=n_layers,
        intermediate_size=64,
        num_local_experts=8,
        num_experts_per_tok=used,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * (n_layers // 2),
        rope_scaling=GPT_OSS_YARN,
        rope_theta=100.0,
        **more,
    )
    keys = {
        ".expert_count": 8,
        ".expert_used_count": used,
        ".expert_feed_forward_length": 64,
        ".attention.sliding_window": 12,
    }
    decoder = Decoder("gpt-oss", config, keys)
    decoder.ends()
    decoder.norms({"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"})
    decoder.attention(biases="qkvo", gain=1)
    for i in range(decoder.n_layers):
        blk, layer = f"blk.{i}", f"model.layers.{i}"
        sinks = decoder.tiny.vector(f"{layer}.self_attn.sinks", 4, around=1, by=2)
        decoder.put(f"{blk}.attn_sinks.weight", f"{layer}.self_attn.sinks", sinks)
        decoder.matrix(f"{blk}.ffn_gate_inp", f"{layer}.mlp.router", 8, 64, gain=2)
        decoder.bias(f"{blk}.ffn_gate_inp", f"{layer}.mlp.router", 8)
        both = decoder.tiny.vector(f"{layer}.mlp.experts.gate_up_proj_bias", 8, 128, by=1)
        decoder.tiny.hf[f"{layer}.mlp.experts.gate_up_proj_bias"] = both
        decoder.tiny.tensors[f"{blk}.ffn_gate_exps.bias"] = both[:, ::2]
        decoder.tiny.tensors[f"{blk}.ffn_up_exps.bias"] = both[:, 1::2]
        down = f"{layer}.mlp.experts.down_proj_bias"
        decoder.put(f"{blk}.ffn_down_exps.bias", down, decoder.tiny.vector(down, 8, 64, by=2))
    return decoder


@case()
def gpt_oss() -> Tiny:
    """Experts as float32, so that all else can be compared exactly. Gates reach the limit of 7."""
    decoder = gpt_oss_decoder({})
    for i in range(decoder.n_layers):
        blk, experts = f"blk.{i}", f"model.layers.{i}.mlp.experts"
        both = decoder.tiny.matrix(f"{experts}.gate_up_proj", 8, 128, 64, gain=3)
        decoder.tiny.hf[f"{experts}.gate_up_proj.weight"] = both
        decoder.tiny.tensors[f"{blk}.ffn_gate_exps.weight"] = both[:, ::2]
        decoder.tiny.tensors[f"{blk}.ffn_up_exps.weight"] = both[:, 1::2]
        decoder.matrix(f"{blk}.ffn_down_exps", f"{experts}.down_proj", 8, 64, 64)
    return decoder.tiny


Bytes = NDArray[np.uint8]


def mxfp4(tiny: Tiny, name: str, *shape: int, gain: float) -> tuple[Bytes, Bytes]:
    """Random blocks of 32 and their scales, as Hugging Face has them: element 2i in the low half of byte i."""
    blocks = (128 * (tiny.noise(f"{name}_blocks", *shape[:-1], shape[-1] // 32, 16) + 1)).astype(np.uint8)
    # The deviation of a random code is 2.96; scales are powers of two, two around what that needs.
    power = round(math.log2(gain / 2.96 / shape[-1] ** 0.5))
    scales = (127 + power + np.round(tiny.noise(f"{name}_scales", *shape[:-1], shape[-1] // 32))).astype(np.uint8)
    return blocks, scales


def gguf_mxfp4(blocks: Bytes, scales: Bytes) -> Bytes:
    """Rows of blocks: a scale, then element i in the low half of byte i, element 16 + i in the high one."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    halves = codes[..., :16] | codes[..., 16:] << 4
    return np.concatenate([scales[..., None], halves], axis=-1).reshape(*blocks.shape[:-2], -1)


@case(tolerance=0.015)
def gpt_oss_mxfp4() -> Tiny:
    """Experts as they are published. We round what they are multiplied with to 8 bits, as llama.cpp does; all experts
    are used, so that no router has to choose between two that differ by less than that."""
    decoder = gpt_oss_decoder({"quantization_config": {"quant_method": "mxfp4"}}, n_layers=2, used=8)
    tiny = decoder.tiny
    for i in range(decoder.n_layers):
        blk, experts = f"blk.{i}", f"model.layers.{i}.mlp.experts"
        for name, rows, gain in (("gate_up_proj", 128, 1.0), ("down_proj", 64, 1.0)):
            blocks, scales = mxfp4(tiny, f"{experts}.{name}", 8, rows, 64, gain=gain)
            tiny.hf[f"{experts}.{name}_blocks"], tiny.hf[f"{experts}.{name}_scales"] = blocks, scales
            packed = gguf_mxfp4(blocks, scales)
            parts = {"ffn_gate": packed[:, ::2], "ffn_up": packed[:, 1::2]}
            if name == "down_proj":
                parts = {"ffn_down": packed}
            for part, data in parts.items():
                tiny.tensors[f"{blk}.{part}_exps.weight"] = data
                tiny.types[f"{blk}.{part}_exps.weight"] = gguf.GGMLQuantizationType.MXFP4
    return tiny
