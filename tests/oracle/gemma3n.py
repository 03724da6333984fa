"""Gemma 3n: four streams, one of which each layer computes with; vectors for each layer; a second, low-rank residual.

llama.cpp takes much of it for granted: that the first 20 layers have keys and values of their own, that the first 10
cut off 95 % of their gates, that there are 4 streams, that the vectors of a layer are 256 long, that the rank of the
residual is 64, and that logits are capped at 30.
"""

from __future__ import annotations

import numpy as np

from oracle.case import case
from oracle.decoder import SANDWICH_NORMS, Decoder, config_of
from oracle.tiny import N_TOKENS, Tiny, tensor

DIM, N_LAYERS, N_SHARED, PER_LAYER, RANK, STREAMS = 32, 25, 5, 256, 64, 4
STACK = "model.language_model"


@case(
    truth="llama.cpp",
    differs="the variance that gates are cut by: mlx-lm divides by n, llama.cpp by n - 1; else they are 0.0006 apart",
    tolerance=0.004,
    inert=[f"tensor attn_{name}.weight" for name in ("k", "v", "k_norm")],
    changes={
        f"{name} of layer {i}": tensor(f"blk.{i}.{name}.weight", lambda x: x[::-1].copy())
        for i in (18, 19)
        for name in ("attn_k", "attn_v", "attn_k_norm")
    }
    | {"gates that are cut off": tensor("blk.9.ffn_gate.weight", lambda x: x[::-1].copy())},
)
def gemma3n() -> Tiny:
    """Layers 18 and 19 are the last with keys and values of their own: one has a window, one sees all positions."""
    kinds = ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(N_LAYERS)]
    config = config_of(
        "gemma3n",
        hidden_size=DIM,
        num_hidden_layers=N_LAYERS,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        num_kv_shared_layers=N_SHARED,
        vocab_size_per_layer_input=N_TOKENS,
        sliding_window=12,
        rope_local_base_freq=1e4,
        rope_theta=1e6,
        final_logit_softcapping=30.0,
        layer_types=kinds,
        activation_sparsity_pattern=[0.95] * 10 + [0.0] * (N_LAYERS - 10),
        hidden_size_per_layer_input=PER_LAYER,
        altup_num_inputs=STREAMS,
        altup_coef_clip=120.0,
        altup_correct_scale=True,
        altup_active_idx=0,
        laurel_rank=RANK,
    )
    keys = {
        ".altup.active_idx": 0,
        ".altup.num_inputs": STREAMS,
        ".embedding_length_per_layer_input": PER_LAYER,
        ".attention.shared_kv_layers": N_SHARED,
        ".attention.sliding_window": 12,
        ".attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds],
        ".activation_sparsity_scale": [1.6448536] * 10 + [float("-inf")] * (N_LAYERS - 10),
        ".rope.freq_base_swa": 1e4,
    }
    decoder = Decoder("gemma3n", config, keys, stack=f"{STACK}.layers")
    tiny = decoder.tiny
    decoder.ends(embedding=f"{STACK}.embed_tokens", norm=f"{STACK}.norm", gain=8)
    decoder.norms(SANDWICH_NORMS)
    for i in range(18, N_LAYERS):
        for name in ("post_attention", "post_ffw"):
            hf = f"{STACK}.layers.{i}.{name.replace('ffw', 'feedforward')}_layernorm"
            decoder.norm(f"blk.{i}.{name}_norm", hf, DIM, around=1, by=0.5)
    decoder.attention(gain=1)
    decoder.mlp()
    for name, hf in (("altup_proj", "altup_projections"), ("altup_unembd_proj", "altup_unembed_projections")):
        each = [f"{STACK}.{hf}.{i}.weight" for i in range(STREAMS - 1)]
        tiny.hf |= {t: tiny.matrix(t, DIM, DIM) for t in each}
        tiny.tensors[f"{name}.weight"] = np.stack([tiny.hf[t] for t in each])
    n = N_LAYERS * PER_LAYER
    decoder.matrix("per_layer_token_embd", f"{STACK}.embed_tokens_per_layer", N_TOKENS, n, gain=n**0.5 / 16)
    decoder.matrix("per_layer_model_proj", f"{STACK}.per_layer_model_projection", n, DIM)
    decoder.norm("per_layer_proj_norm", f"{STACK}.per_layer_projection_norm", PER_LAYER)
    for i in range(N_LAYERS):
        blk, layer = f"blk.{i}", f"{STACK}.layers.{i}"
        small = 0.2 if i < 18 else 1.0
        if i < 18:  # most layers add little: see exaone4-window
            decoder.norm(f"{blk}.post_attention_norm", f"{layer}.post_attention_layernorm", DIM, around=0.4, by=0.2)
            decoder.norm(f"{blk}.post_ffw_norm", f"{layer}.post_feedforward_layernorm", DIM, around=0.4, by=0.2)
        for letter in "qk":
            name = f"{letter}_norm"
            decoder.norm(f"{blk}.attn_{name}", f"{layer}.self_attn.{name}", 16, around=0.7, by=0.4)
        decoder.matrix(f"{blk}.inp_gate", f"{layer}.per_layer_input_gate", PER_LAYER, DIM)
        decoder.matrix(f"{blk}.proj", f"{layer}.per_layer_projection", DIM, PER_LAYER)
        decoder.norm(f"{blk}.post_norm", f"{layer}.post_per_layer_input_norm", DIM, around=small, by=small / 2)
        decoder.matrix(f"{blk}.altup_correct_coef", f"{layer}.altup.correction_coefs", STREAMS, STREAMS, gain=0.2)
        decoder.matrix(f"{blk}.altup_predict_coef", f"{layer}.altup.prediction_coefs", STREAMS**2, STREAMS, gain=0.1)
        decoder.matrix(f"{blk}.altup_router", f"{layer}.altup.modality_router", STREAMS, DIM, gain=DIM)
        decoder.norm(f"{blk}.altup_router_norm", f"{layer}.altup.router_norm", DIM)
        scale = tiny.vector(f"{layer}.altup.correct_output_scale", DIM, around=1)
        decoder.put(f"{blk}.altup_correct_scale.weight", f"{layer}.altup.correct_output_scale", scale)
        decoder.matrix(f"{blk}.laurel_l", f"{layer}.laurel.linear_left", RANK, DIM)
        decoder.matrix(f"{blk}.laurel_r", f"{layer}.laurel.linear_right", DIM, RANK)
        decoder.norm(f"{blk}.laurel_post_norm", f"{layer}.laurel.post_laurel_norm", DIM, around=small, by=small / 2)
    tiny.config = {"model_type": "gemma3n", "text_config": config}
    return tiny
