"""Decoders that keep a compressed vector for keys and values of all heads (multi-head latent attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oracle.case import case
from oracle.decoder import LLAMA_NORMS, Decoder, config_of
from oracle.tiny import Array, Tiny, fused_experts

NOPE, ROPE, VALUE, LORA, Q_LORA = 16, 8, 20, 24, 28
"""Lengths: of a head without and with rotation, of a value, of what is kept, of what queries come from."""

YARN = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def latent_config(model_type: str, **more: Any) -> dict[str, Any]:
    lengths = {
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROPE,
        "v_head_dim": VALUE,
        "kv_lora_rank": LORA,
        "q_lora_rank": Q_LORA,
    }
    experts = {"n_routed_experts": 8, "n_shared_experts": 2, "moe_intermediate_size": 48, "first_k_dense_replace": 1}
    defaults = {
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "head_dim": NOPE + ROPE,
        "rms_norm_eps": 1e-6,
        "rope_theta": 100.0,
        "rope_scaling": YARN,
    }
    return config_of(model_type, **lengths | experts | defaults | more)


def latent_decoder(config: Mapping[str, Any], *, absorbed: bool = True, keys: Mapping[str, Any]) -> Decoder:
    """`absorbed` has the matrices in the form in which attention runs on what is kept."""
    lengths = {
        ".attention.head_count_kv": 1 if absorbed else 4,
        ".attention.key_length": LORA + ROPE if absorbed else NOPE + ROPE,
        ".attention.value_length": LORA if absorbed else VALUE,
        ".attention.kv_lora_rank": LORA,
        ".attention.q_lora_rank": config["q_lora_rank"],
        ".rope.dimension_count": ROPE,
        ".rope.scaling.yarn_log_multiplier": 0.1 * config["rope_scaling"]["mscale_all_dim"],
    }
    if absorbed:
        lengths |= {".attention.key_length_mla": NOPE + ROPE, ".attention.value_length_mla": VALUE}
    experts = {
        ".expert_count": 8,
        ".expert_used_count": 3,
        ".expert_feed_forward_length": config["moe_intermediate_size"],
        ".expert_shared_count": 2,
        ".leading_dense_block_count": 1,
    }
    decoder = Decoder("deepseek2", config, {**lengths, **experts, **keys})
    dim, n_heads = decoder.dim, decoder.n_heads
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    for i in range(decoder.n_layers):
        blk, attn = f"blk.{i}.attn", f"model.layers.{i}.self_attn"
        if config["q_lora_rank"]:
            decoder.matrix(f"{blk}_q_a", f"{attn}.q_a_proj", Q_LORA, dim)
            decoder.norm(f"{blk}_q_a_norm", f"{attn}.q_a_layernorm", Q_LORA)
            decoder.matrix(f"{blk}_q_b", f"{attn}.q_b_proj", n_heads * (NOPE + ROPE), Q_LORA)
        else:
            decoder.matrix(f"{blk}_q", f"{attn}.q_proj", n_heads * (NOPE + ROPE), dim)
        decoder.matrix(f"{blk}_kv_a_mqa", f"{attn}.kv_a_proj_with_mqa", LORA + ROPE, dim)
        decoder.norm(f"{blk}_kv_a_norm", f"{attn}.kv_a_layernorm", LORA)
        both: Array = decoder.tiny.matrix(f"{attn}.kv_b_proj.weight", n_heads * (NOPE + VALUE), LORA)
        decoder.tiny.hf[f"{attn}.kv_b_proj.weight"] = both
        if absorbed:
            of_heads = both.reshape(n_heads, NOPE + VALUE, LORA)
            decoder.tiny.tensors[f"{blk}_k_b.weight"] = of_heads[:, :NOPE].swapaxes(1, 2)
            decoder.tiny.tensors[f"{blk}_v_b.weight"] = of_heads[:, NOPE:]
        else:
            decoder.tiny.tensors[f"{blk}_kv_b.weight"] = both
        decoder.matrix(f"{blk}_output", f"{attn}.o_proj", dim, n_heads * VALUE, gain=2)
    decoder.mlp(layers=[0])
    return decoder


def deepseek_v3(absorbed: bool) -> Tiny:
    """Experts in groups, chosen by biased scores."""
    routing = {
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.7,
    }
    keys = {
        ".expert_gating_func": 2,
        ".expert_group_count": 4,
        ".expert_group_used_count": 2,
        ".expert_weights_norm": True,
        ".expert_weights_scale": 1.7,
    }
    decoder = latent_decoder(latent_config("deepseek_v3", **routing), absorbed=absorbed, keys=keys)
    # Biases are positive: mlx-lm lets a group that is out compete with a score of 0.
    decoder.experts(48, layers=[1, 2], choice_bias="gate.e_score_correction_bias", bias_around=0.5)
    decoder.shared_expert(96, layers=[1, 2], part="mlp.shared_experts")
    return decoder.tiny


@case(forms={"form: gates and ups in one": fused_experts})
def deepseek2() -> Tiny:
    """DeepSeek V3."""
    return deepseek_v3(absorbed=True)


@case()
def deepseek2_kv_b() -> Tiny:
    """The same in an older file: keys and values are expanded."""
    return deepseek_v3(absorbed=False)


@case(differs="llama.cpp chooses groups by the sum of the best two of each, which is how V3 does it")
def deepseek2_groups() -> Tiny:
    """DeepSeek V2: groups are chosen by their best, and weights are those of a softmax over all experts."""
    routing = {
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 3.0,
    }
    keys = {".expert_group_count": 4, ".expert_group_used_count": 2, ".expert_weights_scale": 3.0}
    decoder = latent_decoder(latent_config("deepseek_v2", **routing), keys=keys)
    decoder.experts(48, layers=[1, 2])
    decoder.shared_expert(96, layers=[1, 2], part="mlp.shared_experts")
    return decoder.tiny


@case(tolerance=0.004)
def deepseek2_lite() -> Tiny:
    """DeepSeek V2 Lite: llama.cpp knows by its 26 or 27 layers that queries come from one matrix."""
    shape = {"num_hidden_layers": 26, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    routing = {"num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
    yarn = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}
    config = latent_config("deepseek_v2", **shape, **routing, q_lora_rank=None, rope_scaling=yarn)
    decoder = latent_decoder(config, keys={".expert_weights_scale": 1.0})
    mixtures = list(range(1, 26))
    decoder.experts(16, layers=mixtures)
    decoder.shared_expert(32, layers=mixtures, part="mlp.shared_experts")
    # Most layers add little: see exaone4-window.
    for i in range(22):
        for name in ("attn_output", "ffn_down", "ffn_down_exps", "ffn_down_shexp"):
            if (found := decoder.tiny.tensors.get(f"blk.{i}.{name}.weight")) is not None:
                decoder.tiny.tensors[f"blk.{i}.{name}.weight"] = 0.1 * found
    for name, value in decoder.tiny.hf.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) and int(name.split(".")[2]) < 22:
            decoder.tiny.hf[name] = 0.1 * value
    return decoder.tiny
