"""Decoders with layers that keep a state instead of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from oracle.case import case
from oracle.decoder import LLAMA_NORMS, Decoder, as_is, config_of
from oracle.tiny import Array, Tiny, fused_experts, not_tied, scaled

# -- Gated delta rule --------------------------------------------------------------------------------------------------

N_K, N_V, STATE = 2, 6, 16
"""Heads of keys and of values, and the length of both: each key is shared by three values."""

QWEN_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"}


def tiled(length: int) -> Callable[[Array], Array]:
    """Rows of the heads of values, of so many each, in the order of a GGUF of qwen35: by the place in a group first."""

    def to(x: Array) -> Array:
        return x.reshape(N_K, N_V // N_K, length, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    return to


def last_rows(to: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """`to`, for the rows of values, which follow those of queries and keys."""
    return lambda x: np.concatenate([x[: 2 * N_K * STATE], to(x[2 * N_K * STATE :])])


class Qwen(Decoder):
    """Three layers with a state, then one that attends and has its output gated."""

    def __init__(self, arch: str, config: Mapping[str, Any], keys: Mapping[str, Any], *, reordered: bool) -> None:
        states = {
            ".ssm.conv_kernel": 4,
            ".ssm.state_size": STATE,
            ".ssm.group_count": N_K,
            ".ssm.time_step_rank": N_V,
            ".ssm.inner_size": N_V * STATE,
            ".full_attention_interval": 4,
        }
        super().__init__(arch, config, {**states, **keys}, offset=1)
        self.reordered = reordered
        """Whether the GGUF has the heads of values in another order than Hugging Face."""

    def layers_of_both_kinds(self) -> None:
        self.ends()
        self.norms(QWEN_NORMS)
        for i in range(self.n_layers):
            if (i + 1) % 4 == 0:
                self.gated_attention(i)
            else:
                self.delta_rule(i)

    def gated_attention(self, i: int) -> None:
        """The rows of queries are those of each head, followed by those of its gate."""
        n, n_kv, length = self.n_heads, self.n_kv_heads, self.head_dim
        blk, attn = f"blk.{i}.attn", f"model.layers.{i}.self_attn"
        self.matrix(f"{blk}_q", f"{attn}.q_proj", 2 * n * length, self.dim, gain=1.5)
        self.matrix(f"{blk}_k", f"{attn}.k_proj", n_kv * length, self.dim, gain=1.5)
        self.matrix(f"{blk}_v", f"{attn}.v_proj", n_kv * length, self.dim, gain=1.5)
        self.matrix(f"{blk}_output", f"{attn}.o_proj", self.dim, n * length, gain=3)
        self.norm(f"{blk}_q_norm", f"{attn}.q_norm", length, around=1.5)
        self.norm(f"{blk}_k_norm", f"{attn}.k_norm", length, around=1.5)

    def delta_rule(self, i: int) -> None:
        blk, part = f"blk.{i}", f"model.layers.{i}.linear_attn"
        rows, one = (tiled(STATE), tiled(1)) if self.reordered else (as_is, as_is)
        qkv, inner = (2 * N_K + N_V) * STATE, N_V * STATE
        if self.reordered:
            to = last_rows(rows)
            self.matrix(f"{blk}.attn_qkv", f"{part}.in_proj_qkv", qkv, self.dim, to=to)
            self.matrix(f"{blk}.attn_gate", f"{part}.in_proj_z", inner, self.dim, gain=1.5, to=rows)
            self.matrix(f"{blk}.ssm_alpha", f"{part}.in_proj_a", N_V, self.dim, to=one)
            self.matrix(f"{blk}.ssm_beta", f"{part}.in_proj_b", N_V, self.dim, to=one)
        else:
            to = as_is
            self.fused(i)
        taps = self.tiny.matrix(f"{part}.conv1d.weight", qkv, 1, 4, gain=2)
        self.put(f"{blk}.ssm_conv1d.weight", f"{part}.conv1d.weight", taps, lambda w: to(w[:, 0]))
        decays = self.tiny.vector(f"{part}.A_log", N_V, around=-1, by=1)
        self.put(f"{blk}.ssm_a", f"{part}.A_log", decays, lambda w: -np.exp(one(w)))
        self.put(f"{blk}.ssm_dt.bias", f"{part}.dt_bias", self.tiny.vector(f"{part}.dt_bias", N_V, by=1), one)
        norm = self.tiny.vector(f"{part}.norm.weight", STATE, around=1)
        self.put(f"{blk}.ssm_norm.weight", f"{part}.norm.weight", norm)
        self.matrix(f"{blk}.ssm_out", f"{part}.out_proj", self.dim, inner, gain=2, to=lambda w: rows(w.T).T)

    def fused(self, i: int) -> None:
        """Queries, keys, values and gates in one matrix, a head of keys after another; and so are decays and rates."""
        blk, part = f"blk.{i}", f"model.layers.{i}.linear_attn"
        shared = N_V // N_K * STATE
        both = self.tiny.matrix(f"{part}.in_proj_qkvz", N_K * (2 * STATE + 2 * shared), self.dim)
        self.tiny.hf[f"{part}.in_proj_qkvz.weight"] = both
        of_heads = both.reshape(N_K, -1, self.dim)
        parts = np.split(of_heads, [STATE, 2 * STATE, 2 * STATE + shared], axis=1)
        q, k, v, z = (p.reshape(-1, self.dim) for p in parts)
        self.tiny.tensors[f"{blk}.attn_qkv.weight"] = np.concatenate([q, k, v])
        self.tiny.tensors[f"{blk}.attn_gate.weight"] = z
        self.matrix(f"{blk}.ssm_ba", f"{part}.in_proj_ba", 2 * N_V, self.dim)


def qwen_config(model_type: str, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    return config_of(
        model_type,
        num_hidden_layers=5,
        head_dim=32,
        linear_num_key_heads=N_K,
        linear_num_value_heads=N_V,
        linear_key_head_dim=STATE,
        linear_value_head_dim=STATE,
        linear_conv_kernel_dim=4,
        full_attention_interval=4,
        partial_rotary_factor=0.25,
        rope_parameters=rope,
        **more,
    )


SECTIONS = {".rope.dimension_sections": [2, 1, 1, 0]}

QWEN_EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
QWEN_EXPERT_KEYS = {
    ".expert_count": 8,
    ".expert_used_count": 3,
    ".expert_feed_forward_length": 48,
    ".expert_shared_feed_forward_length": 80,
}


def recurrent_layers(tiny: Tiny) -> None:
    """Another form: which layers have a state is said of each."""
    n = tiny.keys.pop(".full_attention_interval")
    tiny.keys[".attention.recurrent_layers"] = [(i + 1) % n != 0 for i in range(tiny.keys[".block_count"])]


@case(forms={"form: not tied": not_tied, "form: scales": scaled, "form: a list of layers": recurrent_layers})
def qwen35() -> Tiny:
    decoder = Qwen("qwen35", qwen_config("qwen3_5", tie_word_embeddings=True), SECTIONS, reordered=True)
    decoder.layers_of_both_kinds()
    decoder.mlp()
    return decoder.tiny


@case(inert=[f"tensor nextn.{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm")])
def qwen35_mtp() -> Tiny:
    """As it is published: with a layer that predicts one more token. It attends, whatever its number; it is no part."""
    config = qwen_config("qwen3_5", tie_word_embeddings=True)
    keys = {**SECTIONS, ".block_count": 6, ".nextn_predict_layers": 1}
    decoder = Qwen("qwen35", config, keys, reordered=True)
    decoder.layers_of_both_kinds()
    decoder.mlp()
    own = dict(decoder.tiny.hf)
    for hf, name in QWEN_NORMS.items():
        decoder.norm(f"blk.5.{name}", hf, 64)
    decoder.gated_attention(5)
    decoder.mlp(layers=[5])
    decoder.matrix("blk.5.nextn.eh_proj", "eh_proj", 64, 128)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        decoder.norm(f"blk.5.nextn.{name}", name, 64)
    decoder.tiny.hf = own
    return decoder.tiny


@case(
    forms={
        "form: scales": scaled,
        "form: a list of layers": recurrent_layers,
        "form: gates and ups in one": fused_experts,
    }
)
def qwen35moe() -> Tiny:
    keys = {**SECTIONS, **QWEN_EXPERT_KEYS}
    decoder = Qwen("qwen35moe", qwen_config("qwen3_5_moe", **QWEN_EXPERTS), keys, reordered=True)
    decoder.layers_of_both_kinds()
    decoder.experts(48)
    # Its file has all experts in one tensor.
    for i in range(decoder.n_layers):
        stacked = {n: decoder.tiny.tensors[f"blk.{i}.ffn_{n}_exps.weight"] for n in ("gate", "up", "down")}
        mlp = f"model.layers.{i}.mlp.experts"
        decoder.tiny.hf = {k: v for k, v in decoder.tiny.hf.items() if not k.startswith(f"{mlp}.")}
        decoder.tiny.hf[f"{mlp}.gate_up_proj"] = np.concatenate([stacked["gate"], stacked["up"]], axis=1)
        decoder.tiny.hf[f"{mlp}.down_proj"] = stacked["down"]
    decoder.shared_expert(80, gate="mlp.shared_expert_gate")
    return decoder.tiny


@case(forms={"form: gates and ups in one": fused_experts})
def qwen3next() -> Tiny:
    decoder = Qwen("qwen3next", qwen_config("qwen3_next", **QWEN_EXPERTS), QWEN_EXPERT_KEYS, reordered=False)
    decoder.layers_of_both_kinds()
    decoder.experts(48)
    decoder.shared_expert(80, gate="mlp.shared_expert_gate")
    return decoder.tiny


# -- Short convolutions ------------------------------------------------------------------------------------------------


def lfm2_decoder(arch: str, config: Mapping[str, Any], keys: Mapping[str, Any]) -> Decoder:
    """Convolutions, and attention in the layers 2 and 4."""
    kv_heads = [2 if kind == "full_attention" else 0 for kind in config["layer_types"]]
    decoder = Decoder(arch, config, {".attention.head_count_kv": kv_heads, ".shortconv.l_cache": 3, **keys})
    decoder.matrix("token_embd", "model.embed_tokens", 128, 64, gain=3)
    decoder.norm("token_embd_norm", "model.embedding_norm", 64)
    decoder.norms({"operator_norm": "attn_norm", "ffn_norm": "ffn_norm"})
    names = {"o": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    decoder.attention(layers=[i for i, n in enumerate(kv_heads) if n], qk_norm="head", names=names)
    for i in (i for i, n in enumerate(kv_heads) if not n):
        blk, conv = f"blk.{i}.shortconv", f"model.layers.{i}.conv"
        decoder.matrix(f"{blk}.in_proj", f"{conv}.in_proj", 3 * 64, 64, gain=1.5)
        taps = decoder.tiny.matrix(f"{conv}.conv.weight", 64, 1, 3, gain=1.5)
        decoder.put(f"{blk}.conv.weight", f"{conv}.conv.weight", taps, lambda w: w[:, 0])
        decoder.matrix(f"{blk}.out_proj", f"{conv}.out_proj", 64, 64)
    return decoder


def lfm2_config(model_type: str, **more: Any) -> dict[str, Any]:
    kinds = ["conv", "conv", "full_attention", "conv", "full_attention"]
    convolution = {"conv_bias": False, "conv_L_cache": 3, "norm_eps": 1e-5, "layer_types": kinds}
    return config_of(model_type, num_hidden_layers=5, head_dim=None, tie_word_embeddings=True, **convolution, **more)


LFM2_MLP = {"gate": "w1", "up": "w3", "down": "w2"}


@case(forms={"form: not tied": not_tied})
def lfm2() -> Tiny:
    block = {
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    }
    decoder = lfm2_decoder("lfm2", lfm2_config("lfm2", **block), {})
    decoder.mlp(part="feed_forward", names=LFM2_MLP)
    return decoder.tiny


@case()
def lfm2moe() -> Tiny:
    """A dense layer, then mixtures."""
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "num_dense_layers": 1}
    options = {"norm_topk_prob": True, "use_expert_bias": True}
    keys = {
        ".expert_count": 8,
        ".expert_used_count": 3,
        ".expert_feed_forward_length": 48,
        ".leading_dense_block_count": 1,
        ".expert_gating_func": 2,
    }
    decoder = lfm2_decoder("lfm2moe", lfm2_config("lfm2_moe", **experts, **options), keys)
    decoder.mlp(part="feed_forward", names=LFM2_MLP, layers=[0])
    decoder.experts(48, part="feed_forward", names=LFM2_MLP, layers=[1, 2, 3, 4], choice_bias="expert_bias")
    return decoder.tiny


# -- Mamba 2 -----------------------------------------------------------------------------------------------------------


class Mamba2(NamedTuple):
    """The shape of a state space."""

    n_heads: int
    head_dim: int
    n_groups: int
    state: int

    def keys(self) -> dict[str, Any]:
        return {
            ".ssm.conv_kernel": 4,
            ".ssm.state_size": self.state,
            ".ssm.group_count": self.n_groups,
            ".ssm.inner_size": self.n_heads * self.head_dim,
            ".ssm.time_step_rank": self.n_heads,
        }


def mamba2_layer(
    decoder: Decoder,
    i: int,
    shape: Mamba2,
    *,
    part: str = "mamba",
    norm: bool = True,
    scales: Sequence[float] = (1, 1, 1, 1, 1),
    out: float = 1.0,
) -> None:
    """A state space; `scales` of gate, x, B, C and dt are folded into the GGUF, and `out` of what comes out of it."""
    blk, mamba = f"blk.{i}", f"{decoder.stack}.{i}.{part}"
    n_heads, head_dim, n_groups, state = shape
    inner, groups = n_heads * head_dim, n_groups * state
    lengths = (inner, inner, groups, groups, n_heads)
    folded = np.repeat(np.array(scales, np.float32), lengths)[:, None]
    decoder.matrix(f"{blk}.ssm_in", f"{mamba}.in_proj", sum(lengths), decoder.dim, gain=1.5, to=lambda w: w * folded)
    channels = inner + 2 * groups
    taps = decoder.tiny.matrix(f"{mamba}.conv1d.weight", channels, 1, 4, gain=1.5)
    decoder.put(f"{blk}.ssm_conv1d.weight", f"{mamba}.conv1d.weight", taps, lambda w: w[:, 0])
    decoder.bias(f"{blk}.ssm_conv1d", f"{mamba}.conv1d", channels)
    dt = decoder.tiny.vector(f"{mamba}.dt_bias", n_heads, around=-1, by=1)
    decoder.put(f"{blk}.ssm_dt.bias", f"{mamba}.dt_bias", dt)
    decay = decoder.tiny.vector(f"{mamba}.A_log", n_heads, around=-0.5, by=1)
    decoder.put(f"{blk}.ssm_a", f"{mamba}.A_log", decay, lambda w: -np.exp(w)[:, None])
    skip = decoder.tiny.vector(f"{mamba}.D", n_heads, around=1, by=2)
    decoder.put(f"{blk}.ssm_d", f"{mamba}.D", skip, lambda w: w[:, None])
    if norm:
        weight = decoder.tiny.vector(f"{mamba}.norm.weight", inner, around=1)
        decoder.put(f"{blk}.ssm_norm.weight", f"{mamba}.norm.weight", weight, lambda w: w.reshape(n_groups, -1))
    decoder.matrix(f"{blk}.ssm_out", f"{mamba}.out_proj", decoder.dim, inner, gain=2, to=lambda w: w * np.float32(out))


def granitehybrid_decoder(model: Mapping[str, Any]) -> Decoder:
    """Attention, without rotations, in layers 1 and 3."""
    scales = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.35,
        "logits_scaling": 2.0,
    }
    shape = Mamba2(n_heads=8, head_dim=16, n_groups=1, state=16)
    config = config_of(
        "granitemoehybrid",
        num_hidden_layers=4,
        head_dim=None,
        layer_types=["mamba", "attention"] * 2,
        attention_bias=False,
        position_embedding_type="nope",
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
        mamba_proj_bias=False,
        time_step_limit=[0.0, 1e9],
        tie_word_embeddings=True,
        **scales,
        **model,
    )
    keys = {
        ".attention.head_count_kv": [0, 2, 0, 2],
        ".rope.scaling.finetuned": False,
        ".embedding_scale": 3.0,
        ".residual_scale": 0.4,
        ".attention.scale": 0.35,
        ".logit_scale": 2.0,
        **shape.keys(),
    }
    decoder = Decoder("granitehybrid", config, keys, permute=True)
    decoder.ends()
    decoder.norms(LLAMA_NORMS)
    decoder.attention(layers=[1, 3])
    for i in (0, 2):
        mamba2_layer(decoder, i, shape)
    return decoder


@case(inert=["key .rope.freq_base"])
def granitehybrid() -> Tiny:
    """Granite 4 H Micro: a network in each layer."""
    decoder = granitehybrid_decoder({"num_local_experts": 0, "shared_intermediate_size": 96})
    tiny = decoder.tiny
    for i in range(decoder.n_layers):
        blk, mlp = f"blk.{i}.ffn", f"model.layers.{i}.shared_mlp"
        both = tiny.matrix(f"{mlp}.input_linear", 2 * 96, 64, gain=1.5)
        tiny.hf[f"{mlp}.input_linear.weight"] = both
        tiny.tensors[f"{blk}_gate.weight"], tiny.tensors[f"{blk}_up.weight"] = both[:96], both[96:]
        decoder.matrix(f"{blk}_down", f"{mlp}.output_linear", 64, 96, gain=2)
    return tiny


@case(inert=["key .rope.freq_base"])
def granitehybrid_moe() -> Tiny:
    """Granite 4 H Tiny: experts and a network for all tokens in each layer."""
    experts = {"num_local_experts": 8, "num_experts_per_tok": 3, "shared_intermediate_size": 80}
    decoder = granitehybrid_decoder(experts)
    tiny = decoder.tiny
    tiny.keys |= {".expert_count": 8, ".expert_used_count": 3, ".expert_shared_feed_forward_length": 80}
    for i in range(decoder.n_layers):
        blk, layer = f"blk.{i}", f"model.layers.{i}"
        decoder.matrix(f"{blk}.ffn_gate_inp", f"{layer}.block_sparse_moe.router.layer", 8, 64, gain=2)
        both = tiny.matrix(f"{layer}.block_sparse_moe.input_linear", 8, 2 * 96, 64, gain=1.5)
        tiny.hf[f"{layer}.block_sparse_moe.input_linear.weight"] = both
        tiny.tensors[f"{blk}.ffn_gate_exps.weight"] = both[:, :96]
        tiny.tensors[f"{blk}.ffn_up_exps.weight"] = both[:, 96:]
        decoder.matrix(f"{blk}.ffn_down_exps", f"{layer}.block_sparse_moe.output_linear", 8, 64, 96, gain=3)
        shared = tiny.matrix(f"{layer}.shared_mlp.input_linear", 2 * 80, 64, gain=1.5)
        tiny.hf[f"{layer}.shared_mlp.input_linear.weight"] = shared
        tiny.tensors[f"{blk}.ffn_gate_shexp.weight"] = shared[:80]
        tiny.tensors[f"{blk}.ffn_up_shexp.weight"] = shared[80:]
        decoder.matrix(f"{blk}.ffn_down_shexp", f"{layer}.shared_mlp.output_linear", 64, 80, gain=2)
    return tiny


def falcon_h1_decoder(norm: bool) -> Decoder:
    """Attention and a state space side by side; constants of the config are folded into the matrices of a GGUF."""
    shape = Mamba2(n_heads=8, head_dim=16, n_groups=2, state=16)
    scales = [0.7, 0.9, 1.3, 1.2, 0.8]
    config = config_of(
        "falcon_h1",
        attention_in_multiplier=1.0,  # mlx-lm forgets it for values
        attention_out_multiplier=1.1,
        embedding_multiplier=2.0,
        key_multiplier=1.0,  # mlx-lm forgets it
        lm_head_multiplier=0.5,
        mlp_multipliers=[0.9, 0.8],
        ssm_in_multiplier=1.2,
        ssm_multipliers=scales,
        ssm_out_multiplier=0.6,
        mamba_d_ssm=128,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=2,
        mamba_n_heads=8,
        mamba_rms_norm=norm,
        mamba_norm_before_gate=False,
    )
    decoder = Decoder("falcon-h1", config, shape.keys())
    decoder.ends(norm="model.final_layernorm")
    decoder.norms({"input_layernorm": "attn_norm", "pre_ff_layernorm": "ffn_norm"})
    for i in range(decoder.n_layers):  # its files are the only ones to call it so
        decoder.tiny.tensors[f"blk.{i}.ffn_norm"] = decoder.tiny.tensors.pop(f"blk.{i}.ffn_norm.weight")
    decoder.attention()
    decoder.mlp(part="feed_forward")
    for i in range(decoder.n_layers):
        mamba2_layer(decoder, i, shape, norm=norm, scales=[1.2 * s for s in scales], out=0.6)
    folded = {
        "token_embd": 2.0,
        "output": 0.5,
        "attn_output": 1.1,
        "ffn_gate": 0.9,
        "ffn_down": 0.8,
    }
    for name, value in decoder.tiny.tensors.items():
        if (scale := folded.get(name.removesuffix(".weight").split(".")[-1])) is not None:
            decoder.tiny.tensors[name] = value * np.float32(scale)
    return decoder


@case()
def falcon_h1() -> Tiny:
    return falcon_h1_decoder(norm=False).tiny


@case(truth="llama.cpp", differs="mlx-lm's norm has no groups")
def falcon_h1_norm() -> Tiny:
    """Falcon H1 34B has a norm of what leaves the state space, in groups."""
    return falcon_h1_decoder(norm=True).tiny


@case(forms={"form: scales": scaled})
def mamba2() -> Tiny:
    """State spaces and nothing else."""
    shape = Mamba2(n_heads=8, head_dim=16, n_groups=1, state=16)
    config = config_of(
        "mamba2",
        num_attention_heads=0,
        num_key_value_heads=0,
        num_heads=8,
        head_dim=16,
        state_size=16,
        conv_kernel=4,
        n_groups=1,
        layer_norm_epsilon=1e-5,
        use_bias=False,
        use_conv_bias=True,
        time_step_limit=[0.0, 1e9],
        time_step_rank=8,
        tie_word_embeddings=True,
    )
    keys = {
        ".attention.head_count_kv": None,
        ".attention.key_length": None,
        ".attention.value_length": None,
        ".feed_forward_length": 0,
        ".rope.dimension_count": None,
        ".rope.freq_base": None,
        **shape.keys(),
    }
    decoder = Decoder("mamba2", config, keys, stack="backbone.layers")
    decoder.ends(embedding="backbone.embeddings", norm="backbone.norm_f")
    decoder.norms({"norm": "attn_norm"})
    for i in range(decoder.n_layers):
        mamba2_layer(decoder, i, shape, part="mixer")
    return decoder.tiny


def nemotron_h_decoder(arch: str, pattern: str, keys: Mapping[str, Any], **more: Any) -> Decoder:
    """A norm and one thing a layer: a state space (M), attention without rotations (*), or a network (- or E)."""
    shape = Mamba2(n_heads=8, head_dim=16, n_groups=2, state=16)
    config = config_of(
        "nemotron_h",
        num_hidden_layers=len(pattern),
        hybrid_override_pattern=list(pattern),
        attention_bias=False,
        mamba_num_heads=8,
        mamba_head_dim=16,
        mamba_proj_bias=False,
        ssm_state_size=16,
        conv_kernel=4,
        n_groups=2,
        mlp_bias=False,
        layer_norm_epsilon=1e-5,
        use_bias=False,
        use_conv_bias=True,
        **more,
    )
    every = {
        ".attention.head_count_kv": [2 if kind == "*" else 0 for kind in pattern],
        ".attention.layer_norm_epsilon": 1e-5,
        ".rope.dimension_count": None,
        ".rope.freq_base": None,
        **shape.keys(),
        **keys,
    }
    decoder = Decoder(arch, config, every, stack="backbone.layers")
    decoder.ends(embedding="backbone.embeddings", norm="backbone.norm_f")
    decoder.norms({"norm": "attn_norm"})
    for i, kind in enumerate(pattern):
        if kind == "M":
            mamba2_layer(decoder, i, shape, part="mixer")
        elif kind == "*":
            decoder.attention(layers=[i], part="mixer")
        elif kind == "-":
            decoder.mlp(layers=[i], part="mixer", gated=False)
    return decoder


# The epsilon of LayerNorm has to be there; it is the other one that counts.
@case(inert=["key .attention.layer_norm_epsilon"])
def nemotron_h() -> Tiny:
    pattern = "M-M*-"
    widths = [96 if kind == "-" else 0 for kind in pattern]
    return nemotron_h_decoder("nemotron_h", pattern, {".feed_forward_length": widths}).tiny


@case(inert=["key .attention.layer_norm_epsilon"], forms={"form: scales": scaled})
def nemotron_h_moe() -> Tiny:
    """Nemotron 3: mixtures whose experts work on a shorter vector, and a network for all tokens."""
    pattern = "MEM*E"
    routing = {"num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "norm_topk_prob": True}
    sizes = {"moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 80, "moe_latent_size": 40}
    experts = {"n_routed_experts": 8, "n_shared_experts": 1, "routed_scaling_factor": 1.7}
    keys = {
        ".feed_forward_length": [48 if kind == "E" else 0 for kind in pattern],
        ".expert_count": 8,
        ".expert_used_count": 3,
        ".expert_feed_forward_length": 48,
        ".expert_shared_feed_forward_length": 80,
        ".expert_shared_count": 1,
        ".expert_weights_norm": True,
        ".expert_weights_scale": 1.7,
        ".moe_latent_size": 40,
    }
    decoder = nemotron_h_decoder("nemotron_h_moe", pattern, keys, **routing, **sizes, **experts)
    tiny = decoder.tiny
    for i in (i for i, kind in enumerate(pattern) if kind == "E"):
        blk, mixer = f"blk.{i}", f"backbone.layers.{i}.mixer"
        decoder.matrix(f"{blk}.ffn_gate_inp", f"{mixer}.gate", 8, 64, gain=2)
        bias = f"{mixer}.gate.e_score_correction_bias"
        decoder.put(f"{blk}.exp_probs_b.bias", bias, tiny.vector(bias, 8))
        decoder.matrix(f"{blk}.ffn_latent_down", f"{mixer}.fc1_latent_proj", 40, 64)
        decoder.matrix(f"{blk}.ffn_latent_up", f"{mixer}.fc2_latent_proj", 64, 40)
        for name, rows, columns in (("up", 48, 40), ("down", 40, 48)):
            each = [f"{mixer}.experts.{e}.{name}_proj.weight" for e in range(8)]
            tiny.hf |= {t: tiny.matrix(t, rows, columns, gain=1.5) for t in each}
            tiny.tensors[f"{blk}.ffn_{name}_exps.weight"] = np.stack([tiny.hf[t] for t in each])
        decoder.matrix(f"{blk}.ffn_up_shexp", f"{mixer}.shared_experts.up_proj", 80, 64, gain=1.5)
        decoder.matrix(f"{blk}.ffn_down_shexp", f"{mixer}.shared_experts.down_proj", 64, 80)
    return tiny
