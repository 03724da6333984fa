"""Gemma 4: layers of two sizes, embeddings for each layer, layers that read the keys and values of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oracle.case import case
from oracle.decoder import SANDWICH_NORMS, Decoder, config_of
from oracle.tiny import N_TOKENS, Tiny, tensor

HEAD_DIM, FULL_HEAD_DIM = 16, 32
"""Of windowed layers and of those that see all positions."""


def gemma4_decoder(config: Mapping[str, Any], keys: Mapping[str, Any]) -> Decoder:
    """All but the networks. Two windowed layers, then one that sees all positions, of whose heads a quarter rotates."""
    windowed = [kind == "sliding_attention" for kind in config["layer_types"]]
    n_layers, shared = len(windowed), config["num_kv_shared_layers"]
    n_kv_heads = [2 if w else config["num_global_key_value_heads"] or 2 for w in windowed]
    decoder = Decoder(
        "gemma4",
        config,
        {
            ".attention.head_count_kv": n_kv_heads,
            ".attention.key_length": FULL_HEAD_DIM,
            ".attention.value_length": FULL_HEAD_DIM,
            ".attention.key_length_swa": HEAD_DIM,
            ".attention.value_length_swa": HEAD_DIM,
            ".attention.sliding_window": 12,
            ".attention.sliding_window_pattern": windowed,
            ".attention.shared_kv_layers": shared,
            ".embedding_length_per_layer_input": config["hidden_size_per_layer_input"],
            ".final_logit_softcapping": 4.0,
            ".rope.dimension_count": FULL_HEAD_DIM,
            ".rope.dimension_count_swa": HEAD_DIM,
            ".rope.freq_base": 1e6,
            ".rope.freq_base_swa": 1e4,
            **keys,
        },
    )
    decoder.ends()
    decoder.norms(SANDWICH_NORMS)
    for i, (is_windowed, n_kv) in enumerate(zip(windowed, n_kv_heads, strict=True)):
        blk, layer = f"blk.{i}", f"model.layers.{i}"
        length = HEAD_DIM if is_windowed else FULL_HEAD_DIM
        decoder.matrix(f"{blk}.attn_q", f"{layer}.self_attn.q_proj", 4 * length, 64)
        decoder.norm(f"{blk}.attn_q_norm", f"{layer}.self_attn.q_norm", length, around=0.7, by=0.4)
        if i < n_layers - shared:
            decoder.matrix(f"{blk}.attn_k", f"{layer}.self_attn.k_proj", n_kv * length, 64)
            decoder.norm(f"{blk}.attn_k_norm", f"{layer}.self_attn.k_norm", length, around=0.7, by=0.4)
            if is_windowed or not config["attention_k_eq_v"]:
                decoder.matrix(f"{blk}.attn_v", f"{layer}.self_attn.v_proj", n_kv * length, 64)
        decoder.matrix(f"{blk}.attn_output", f"{layer}.self_attn.o_proj", 64, 4 * length)
        scale = decoder.tiny.vector(f"{layer}.layer_scalar", 1, around=0.8, by=0.3)
        decoder.put(f"{blk}.layer_output_scale.weight", f"{layer}.layer_scalar", scale)
    factors = [1.0] * (FULL_HEAD_DIM // 8) + [1e30] * (FULL_HEAD_DIM * 3 // 8)
    decoder.rope_freqs(np.array(factors, np.float32))
    return decoder


def gemma4_config(**more: Any) -> dict[str, Any]:
    full = {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"}
    windowed = {"partial_rotary_factor": 1.0, "rope_theta": 1e4, "rope_type": "default"}
    return config_of(
        "gemma4_text",
        num_hidden_layers=6,
        head_dim=HEAD_DIM,
        global_head_dim=FULL_HEAD_DIM,
        sliding_window=12,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        final_logit_softcapping=4.0,
        tie_word_embeddings=True,
        vocab_size_per_layer_input=N_TOKENS,
        rope_parameters={"full_attention": full, "sliding_attention": windowed},
        **more,
    )


# The scale of the last layer is lost in the norm that follows it.
LAYER_SCALE: dict[str, Any] = {
    "inert": ["tensor layer_output_scale.weight"],
    "changes": {"scale of a layer": tensor("blk.2.layer_output_scale.weight", lambda x: x * np.float32(1.5))},
}


@case(**LAYER_SCALE)
def gemma4() -> Tiny:
    """Gemma 4 E2B: the second half of the layers reads the keys and values of the first, and is twice as wide."""
    config = gemma4_config(
        num_kv_shared_layers=3,
        num_global_key_value_heads=None,
        hidden_size_per_layer_input=8,
        attention_k_eq_v=False,
        use_double_wide_mlp=True,
    )
    decoder = gemma4_decoder(config, {".feed_forward_length": [96] * 3 + [192] * 3})
    decoder.mlp(layers=[0, 1, 2])
    decoder.mlp(layers=[3, 4, 5], hidden=192)
    decoder.matrix("per_layer_token_embd", "model.embed_tokens_per_layer", N_TOKENS, 6 * 8, gain=3)
    decoder.matrix("per_layer_model_proj", "model.per_layer_model_projection", 6 * 8, 64)
    decoder.norm("per_layer_proj_norm", "model.per_layer_projection_norm", 8)
    for i in range(6):
        blk, layer = f"blk.{i}", f"model.layers.{i}"
        decoder.matrix(f"{blk}.inp_gate", f"{layer}.per_layer_input_gate", 8, 64)
        decoder.matrix(f"{blk}.proj", f"{layer}.per_layer_projection", 64, 8)
        decoder.norm(f"{blk}.post_norm", f"{layer}.post_per_layer_input_norm", 64)
    return decoder.tiny


@case(**LAYER_SCALE)
def gemma4_moe() -> Tiny:
    """Gemma 4 26B: a network and a mixture side by side; layers that see all positions have keys for values."""
    config = gemma4_config(
        num_kv_shared_layers=0,
        num_global_key_value_heads=1,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        use_double_wide_mlp=False,
        enable_moe_block=True,
        num_experts=8,
        top_k_experts=3,
        moe_intermediate_size=48,
    )
    keys = {".expert_count": 8, ".expert_used_count": 3, ".expert_feed_forward_length": 48}
    decoder = gemma4_decoder(config, keys)
    decoder.mlp()
    decoder.norms(
        {
            "post_feedforward_layernorm_1": "post_ffw_norm_1",
            "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
            "post_feedforward_layernorm_2": "post_ffw_norm_2",
        }
    )
    tiny = decoder.tiny
    for i in range(6):
        blk, layer = f"blk.{i}", f"model.layers.{i}"
        decoder.matrix(f"{blk}.ffn_gate_inp", f"{layer}.router.proj", 8, 64, gain=16)
        scale = tiny.vector(f"{layer}.router.scale", 64, around=1)
        decoder.put(f"{blk}.ffn_gate_inp.scale", f"{layer}.router.scale", scale)
        of_experts = tiny.vector(f"{layer}.router.per_expert_scale", 8, around=1)
        decoder.put(f"{blk}.ffn_down_exps.scale", f"{layer}.router.per_expert_scale", of_experts)
        both, down = f"{layer}.experts.gate_up_proj", f"{layer}.experts.down_proj"
        decoder.put(f"{blk}.ffn_gate_up_exps.weight", both, tiny.matrix(both, 8, 96, 64))
        decoder.put(f"{blk}.ffn_down_exps.weight", down, tiny.matrix(down, 8, 64, 48))
    return tiny
