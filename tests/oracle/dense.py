"""Decoders that attend and have one network in each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from oracle.case import CASES, Case, case
from oracle.decoder import (
    LAYER_NORM,
    LLAMA_NORMS,
    POST_NORMS,
    SANDWICH_NORMS,
    Decoder,
    config_of,
    plain,
)
from oracle.tiny import N_TOKENS, Array, Tiny, a_new_key, key, not_tied, scaled


def llama3_factors(dim: int, theta: float, scaling: Mapping[str, Any]) -> Array:
    """What the converter writes into `rope_freqs`."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factor, old = scaling["factor"], scaling["original_max_position_embeddings"]
    smooth = (old / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < old / high, 1, np.where(wavelengths > old / low, factor, between))
    return np.asarray(factors, np.float32)


def unused_factor(tiny: Tiny) -> None:
    tiny.keys |= {".rope.scaling.type": "none", ".rope.scaling.factor": 4.0}


@case(forms={"form: scales": scaled})
def llama() -> Tiny:
    return plain("llama", config_of("llama"), permute=True).tiny


@case(forms={"form: a factor that is not used": unused_factor})
def llama_biases() -> Tiny:
    config = config_of("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    decoder = Decoder("llama", config, permute=True)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(biases="qkvo")
    decoder.mlp(biases=True)
    return decoder.tiny


@case(forms={"form: not tied": not_tied})
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


def old_scale(tiny: Tiny) -> None:
    tiny.keys[".rope.scale_linear"] = tiny.keys.pop(".rope.scaling.factor")
    del tiny.keys[".rope.scaling.type"]


@case(forms={"form: the old key": old_scale})
def llama_linear() -> Tiny:
    return plain("llama", config_of("llama", rope_scaling={"type": "linear", "factor": 4.0}), permute=True).tiny


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 100.0}


@case()
def llama_yarn() -> Tiny:
    return plain("llama", config_of("llama", rope_scaling=YARN, rope_theta=100.0), permute=True).tiny


def as_granite_swa(tiny: Tiny) -> None:
    """The same in a family that llama.cpp knows to have windows; its sinks are too low to count."""
    tiny.arch = "granite_swa"
    n_layers, n_heads = tiny.keys[".block_count"], tiny.keys[".attention.head_count"]
    tiny.keys |= {".attention.sliding_window_pattern": [True] * n_layers, ".logit_scale": 1.0}
    sinks = np.full(n_heads, -1e9, np.float32)
    tiny.tensors |= {f"blk.{i}.attn_sinks.weight": sinks for i in range(n_layers)}


@case(truth="llama.cpp", differs="mlx-lm is not told of the window", as_if=[as_granite_swa])
def llama_window() -> Tiny:
    """Mistral 7B: its window is in some files, and llama.cpp does not look."""
    return plain("llama", config_of("llama"), {".attention.sliding_window": 12}, permute=True).tiny


@case(forms={"form: not tied": not_tied})
def qwen2() -> Tiny:
    config = config_of("qwen2", hidden_size=80, head_dim=None, tie_word_embeddings=True)
    return plain("qwen2", config, biases="qkv").tiny


@case(forms={"form: scales": scaled})
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
    inert=["tensor rope_factors_short.weight"],
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


MANY_LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def quiet(decoder: Decoder, n: int, names: Mapping[str, str]) -> Decoder:
    """Lets the first layers add little, so that the few last ones matter, and roundings do not add up."""
    for i in range(n):
        for hf, name in names.items():
            decoder.norm(f"blk.{i}.{name}", f"model.layers.{i}.{hf}", decoder.dim, around=0.1, by=0.05)
    return decoder


def gemma2_decoder(**more: Any) -> Decoder:
    caps = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
    config = config_of("gemma2", tie_word_embeddings=True, **caps, **more)
    keys = {".attn_logit_softcapping": 3.0, ".final_logit_softcapping": 4.0, ".attention.sliding_window": 12}
    return plain("gemma2", config, keys, norms=SANDWICH_NORMS, offset=1)


@case(
    truth="llama.cpp",
    differs="mlx-lm's gemma2 has no windows",
    but_for=[key(".attention.sliding_window", 512)],
    forms={"form: pattern": a_new_key(".attention.sliding_window_pattern", 2)},
)
def gemma2() -> Tiny:
    return gemma2_decoder(num_hidden_layers=4, query_pre_attn_scalar=24).tiny


@case(
    truth="llama.cpp",
    differs="mlx-lm's gemma2 has no windows",
    but_for=[key(".attention.sliding_window", 512)],
    tolerance=0.005,
)
def gemma2_27b() -> Tiny:
    """llama.cpp knows it by its 46 layers; its scores are divided by the root of `dim / n_heads`."""
    decoder = gemma2_decoder(num_hidden_layers=46, query_pre_attn_scalar=16, **MANY_LAYERS)
    return quiet(decoder, 40, POST_NORMS).tiny


def gemma3_decoder(**more: Any) -> Decoder:
    config = config_of(
        "gemma3_text",
        tie_word_embeddings=True,
        sliding_window=12,
        sliding_window_pattern=6,
        rope_theta=1e6,
        rope_local_base_freq=10000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        **more,
    )
    keys = {".attention.sliding_window": 12}
    return plain("gemma3", config, keys, norms=SANDWICH_NORMS, offset=1, qk_norm="head")


@case(
    forms={
        "form: pattern": a_new_key(".attention.sliding_window_pattern", 6),
        "form: windows of each layer": a_new_key(".attention.sliding_window_pattern", [True] * 5 + [False, True]),
        "form: not tied": not_tied,
    }
)
def gemma3() -> Tiny:
    return gemma3_decoder(num_hidden_layers=7, query_pre_attn_scalar=24).tiny


@case(tolerance=0.005)
def gemma3_27b() -> Tiny:
    """llama.cpp knows it by its 62 layers; its scores are divided by the root of `dim / n_heads`."""
    decoder = gemma3_decoder(num_hidden_layers=62, query_pre_attn_scalar=16, **MANY_LAYERS)
    return quiet(decoder, 56, POST_NORMS).tiny


@case(forms={"form: not tied": not_tied})
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


@case(truth="llama.cpp", differs="mlx-lm's granite always rotates", inert=["key .rope.freq_base"])
def granite_without_rotations() -> Tiny:
    tiny = granite()
    tiny.keys[".rope.scaling.finetuned"] = False
    return tiny


@case()
def smollm3() -> Tiny:
    config = config_of("smollm3", num_hidden_layers=5, tie_word_embeddings=True)
    return plain("smollm3", config, permute=True).tiny


@case()
def olmo2() -> Tiny:
    return plain("olmo2", config_of("olmo2", head_dim=None), norms=POST_NORMS, qk_norm="all").tiny


@case(forms={"form: pattern": a_new_key(".attention.sliding_window_pattern", [True, True, True, False, True])})
def olmo3() -> Tiny:
    """OLMo 3: windows in three layers of four; only the fourth has its rotations scaled."""
    scaling = {**YARN, "original_max_position_embeddings": 32}
    config = config_of(
        "olmo3", num_hidden_layers=5, head_dim=None, sliding_window=12, rope_scaling=scaling, rope_theta=100.0
    )
    keys = {".attention.sliding_window": 12}
    return plain("olmo2", config, keys, norms=POST_NORMS, qk_norm="all").tiny


@case(forms={"form: scales": scaled})
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


@case(
    changes={
        "beta fast": key(".rope.scaling.yarn_beta_fast", 64.0),
        "beta slow": key(".rope.scaling.yarn_beta_slow", 6.0),
    }
)
def mistral3_betas() -> Tiny:
    """A context so long that both ends of the ramp are inside the head. llama.cpp reads them of this family alone."""
    betas = {"beta_fast": 16.0, "beta_slow": 1.5, "mscale": 1.0, "mscale_all_dim": 0.0}
    rope = {**YARN, **betas, "original_max_position_embeddings": 512, "llama_4_scaling_beta": 0.0}
    config = config_of(
        "ministral3", rope_parameters=rope, rope_scaling=rope, rope_theta=100.0, max_position_embeddings=4096
    )
    keys = {".rope.scaling.yarn_beta_fast": 16.0, ".rope.scaling.yarn_beta_slow": 1.5}
    return plain("mistral3", config, keys, permute=True).tiny


@case()
def exaone4() -> Tiny:
    """EXAONE 4.0 1.2B: no windows, all layers rotate."""
    none = {"rope_scaling": None, "sliding_window": None, "sliding_window_pattern": None}
    config = config_of("exaone4", head_dim=16, **none)
    return plain("exaone4", config, norms=POST_NORMS, qk_norm="head").tiny


@case(tolerance=0.005)
def exaone4_window() -> Tiny:
    """EXAONE 4.0 32B: llama.cpp knows it by its 64 layers. Every fourth sees all positions and does not rotate."""
    windows = {"rope_scaling": None, "sliding_window": 12, "sliding_window_pattern": "LLLG"}
    config = config_of("exaone4", head_dim=16, num_hidden_layers=64, **MANY_LAYERS, **windows)
    decoder = plain("exaone4", config, {".attention.sliding_window": 12}, norms=POST_NORMS, qk_norm="head")
    return quiet(decoder, 58, POST_NORMS).tiny


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


@case(tolerance=0.005)
def command_r_plus() -> Tiny:
    """llama.cpp knows it by its 64 layers, or more: queries and keys go through a LayerNorm of each head's own."""
    config = config_of("cohere", num_hidden_layers=64, use_qk_norm=True, **MANY_LAYERS, **COHERE)
    decoder = cohere_decoder("command-r", config, {})
    tiny = decoder.tiny
    for i in range(64):
        for letter, n in (("q", 2), ("k", 1)):
            hf = f"model.layers.{i}.self_attn.{letter}_norm.weight"
            decoder.put(f"blk.{i}.attn_{letter}_norm.weight", hf, tiny.vector(hf, n, 16, around=1))
        for name, hf in (("attn_output", "self_attn.o_proj"), ("ffn_down", "mlp.down_proj")) if i < 58 else ():
            loud = tiny.hf[f"model.layers.{i}.{hf}.weight"]
            decoder.put(f"blk.{i}.{name}.weight", f"model.layers.{i}.{hf}.weight", loud * np.float32(0.03))
    return tiny


@case(forms={"form: scales": scaled, "form: pattern": a_new_key(".attention.sliding_window_pattern", 4)})
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
    differs="where it is not told a logit scale, llama.cpp takes 256 / dim, and divides by it: the wrong way round",
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
    decoder = Decoder("arcee", config_of("arcee", hidden_act="relu2"), permute=True)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention()
    decoder.mlp(gated=False)
    return decoder.tiny


@case()
def nemotron() -> Tiny:
    config = config_of("nemotron", head_dim=None, hidden_act="relu2", norm_eps=1e-5, partial_rotary_factor=0.5)
    decoder = Decoder("nemotron", config, LAYER_NORM, offset=1)
    decoder.ends(bias=True)
    decoder.norms(LLAMA_NORMS, bias=True)
    decoder.attention()
    decoder.mlp(gated=False)
    return decoder.tiny


@case()
def phi2() -> Tiny:
    config = config_of("phi", head_dim=None, layer_norm_eps=1e-5, partial_rotary_factor=0.5)
    decoder = Decoder("phi2", config, LAYER_NORM)
    decoder.ends(norm="model.final_layernorm", bias=True)
    decoder.bias("output", "lm_head", N_TOKENS)
    decoder.norms({"input_layernorm": "attn_norm"}, bias=True)
    decoder.attention(biases="qkvo", names={"o": "dense"})
    decoder.mlp(gated=False, biases=True, names={"up": "fc1", "down": "fc2"})
    return decoder.tiny
