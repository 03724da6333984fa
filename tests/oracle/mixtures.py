"""Decoders whose networks are mixtures of experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from oracle.case import case
from oracle.decoder import LLAMA_NORMS, Decoder, config_of
from oracle.tiny import Tiny, scaled, tensor


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


@case(forms={"form: scales": scaled})
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


@case(forms={"form: scales": scaled})
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


@case(truth="llama.cpp", differs="mlx-lm does not divide the weights of the chosen experts by their sum")
def hunyuan_moe() -> Tiny:
    config = config_of(
        "hunyuan",
        head_dim=None,
        attention_bias=False,
        num_experts=8,
        num_experts_per_tok=3,
        moe_topk=3,
        moe_intermediate_size=48,
        num_shared_expert=1,
        use_mixed_mlp_moe=True,
        use_qk_norm=True,
        tie_word_embeddings=True,
        use_cla=False,
        cla_share_factor=2,
        rope_scaling={"type": "dynamic", "alpha": 50.0, "factor": 1.0},
    )
    keys = {
        ".expert_count": 8,
        ".expert_used_count": 3,
        ".expert_feed_forward_length": 48,
        ".expert_shared_feed_forward_length": 96,
        ".feed_forward_length": 48,
        ".rope.freq_base": 10000.0 * 50.0 ** (16 / 14),
    }
    decoder = Decoder("hunyuan-moe", config, keys)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(qk_norm="head", names={"q_norm": "query_layernorm", "k_norm": "key_layernorm"})
    decoder.experts(48, router="gate.wg")
    decoder.shared_expert(96, part="mlp.shared_mlp")
    return decoder.tiny


def after_a_dense_layer(arch: str, config: Mapping[str, Any], keys: Mapping[str, Any], **about: Any) -> Tiny:
    """One dense layer, then two mixtures with a shared expert. `choice_bias` is a name."""
    choice_bias = about.pop("choice_bias", "")
    sizes = {
        "num_hidden_layers": 3,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
    }
    lengths = {".expert_feed_forward_length": 48, ".expert_shared_count": 2, ".leading_dense_block_count": 1}
    decoder = mixture(arch, {**config, **sizes}, {**lengths, **keys}, **about)
    decoder.mlp(layers=[0])
    decoder.experts(48, layers=[1, 2], choice_bias=choice_bias)
    decoder.shared_expert(96, layers=[1, 2], part="mlp.shared_experts")
    return decoder.tiny


@case()
def deepseek() -> Tiny:
    return after_a_dense_layer("deepseek", config_of("deepseek", head_dim=None), {}, permute=True)


@case()
def dots1() -> Tiny:
    config = config_of(
        "dots1", num_key_value_heads=4, norm_topk_prob=True, routed_scaling_factor=1.7, n_group=1, topk_group=1
    )
    keys = {".expert_gating_func": 2, ".expert_weights_scale": 1.7, ".expert_weights_norm": True}
    return after_a_dense_layer("dots1", config, keys, qk_norm="head", choice_bias="gate.e_score_correction_bias")


@case()
def minimax_m2() -> Tiny:
    config = config_of(
        "minimax",
        num_local_experts=8,
        num_experts_per_tok=3,
        shared_intermediate_size=0,
        rotary_dim=16,
        scoring_func="sigmoid",
        use_qk_norm=True,
    )
    keys = {".expert_feed_forward_length": 96, ".expert_gating_func": 2, ".rope.dimension_count": 16}
    decoder = mixture("minimax-m2", config, keys, qk_norm="all")
    names = {"gate": "w1", "down": "w2", "up": "w3"}
    decoder.experts(96, part="block_sparse_moe", names=names, choice_bias="e_score_correction_bias")
    return decoder.tiny


def ernie4_5_moe_decoder() -> Decoder:
    """A dense layer, then mixtures."""
    config = config_of(
        "ernie4_5_moe",
        num_hidden_layers=3,
        use_bias=False,
        moe_num_experts=8,
        num_local_experts=8,
        num_experts_per_tok=3,
        moe_k=3,
        moe_layer_start_index=1,
        moe_layer_interval=1,
        moe_intermediate_size=48,
        moe_num_shared_experts=2,
    )
    keys = {
        ".expert_feed_forward_length": 48,
        ".expert_shared_feed_forward_length": 96,
        ".interleave_moe_layer_step": 1,
        ".leading_dense_block_count": 1,
    }
    decoder = mixture("ernie4_5-moe", config, keys)
    decoder.mlp(layers=[0])
    decoder.experts(48, layers=[1, 2])
    decoder.shared_expert(96, layers=[1, 2], part="mlp.shared_experts")
    return decoder


@case()
def ernie4_5_moe() -> Tiny:
    return ernie4_5_moe_decoder().tiny


@case(
    truth="llama.cpp",
    differs="mlx-lm's ernie4_5_moe has no biases of choice",
    but_for=[tensor(f"blk.{i}.exp_probs_b.bias", np.zeros_like) for i in (1, 2)],
)
def ernie4_5_moe_bias() -> Tiny:
    tiny = ernie4_5_moe_decoder().tiny
    for i in (1, 2):
        tiny.tensors[f"blk.{i}.exp_probs_b.bias"] = tiny.vector(f"blk.{i}.exp_probs_b.bias", 8, by=0.2)
    return tiny


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
