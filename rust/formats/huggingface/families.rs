//! The models that a directory may hold: a row in the table for each family, by `model_type`.
//!
//! A row says what GGUF calls the family, what it calls the tensors, what its keys are, and in what the weights differ from
//! those of a GGUF file. Facts of names and keys are those of llama.cpp's converters, which made the files that exist.

use super::config::Config;
use super::keys::Keys;
use crate::error::Result;
use crate::formats::one_line;

/// A family of models.
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// What GGUF calls it.
    pub architecture: fn(&Config) -> Result<&'static str>,
    /// What stands before the number of a layer in the names of its tensors.
    pub layers: &'static str,
    /// The tensors: the first that fits counts.
    pub names: &'static [&'static [Name]],
    /// Adds the keys that not all models have.
    pub keys: fn(&mut Keys) -> Result<()>,
    /// Whether GGUF files have the rows of a head in another order: what is rotated together stands in the two halves of a
    /// head here, and side by side there.
    pub pairs: bool,
    /// Whether norms hold `w` where `1 + w` is meant; GGUF files hold the sum.
    pub norm_offset: bool,
    /// Why it has to be converted first, if so.
    pub convert_first: Option<&'static str>,
}

/// A tensor by its two names.
pub struct Name {
    /// What it is called here, after the number of its layer; `*` stands for a number.
    pub from: &'static str,
    /// What GGUF calls it.
    pub to: &'static str,
    /// How one becomes the other.
    pub how: How,
}

/// How a tensor becomes one of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// `.weight` and `.bias` stay what they are; what has neither is a weight.
    Part,
    /// The names are whole.
    Whole,
    /// The names are whole, and there is a dimension of length 1 before the others.
    Column,
    /// As `Part`, without the dimensions of length 1 inside.
    Squeezed,
    /// As `Part`; the vector is cut in rows, one for each group of the state.
    Groups,
    /// As `Part`; the first half of the rows is this tensor, the second the next of the list.
    Halves,
    /// Nobody needs it.
    Ignored,
}

const fn part(from: &'static str, to: &'static str) -> Name {
    Name { from, to, how: How::Part }
}

const fn whole(from: &'static str, to: &'static str) -> Name {
    Name { from, to, how: How::Whole }
}

const fn with(how: How, from: &'static str, to: &'static str) -> Name {
    Name { from, to, how }
}

/// What a decoder has beside its layers, and in them.
const DECODER: &[Name] = &[
    part("embed_tokens", "token_embd"),
    part("norm", "output_norm"),
    part("lm_head", "output"),
    part("input_layernorm", "attn_norm"),
    part("self_attn.q_proj", "attn_q"),
    part("self_attn.k_proj", "attn_k"),
    part("self_attn.v_proj", "attn_v"),
    part("self_attn.qkv_proj", "attn_qkv"),
    part("self_attn.o_proj", "attn_output"),
    part("self_attn.q_norm", "attn_q_norm"),
    part("self_attn.k_norm", "attn_k_norm"),
    part("post_attention_layernorm", "ffn_norm"),
    part("mlp.gate_proj", "ffn_gate"),
    part("mlp.up_proj", "ffn_up"),
    part("mlp.gate_up_proj", "ffn_up"), // the gate first
    part("mlp.down_proj", "ffn_down"),
];

const EXPERTS: &[Name] = &[
    part("mlp.gate", "ffn_gate_inp"),
    whole("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
    whole("mlp.moe_statics.e_score_correction_bias", "exp_probs_b.bias"),
    part("mlp.experts.*.gate_proj", "ffn_gate.*"),
    part("mlp.experts.*.up_proj", "ffn_up.*"),
    part("mlp.experts.*.down_proj", "ffn_down.*"),
    part("mlp.experts.gate_up_proj", "ffn_gate_up_exps"),
    part("mlp.experts.down_proj", "ffn_down_exps"),
    part("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    part("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    part("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    part("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    part("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    part("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    part("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
];

const MIXTRAL: &[Name] = &[
    part("block_sparse_moe.gate", "ffn_gate_inp"),
    part("block_sparse_moe.experts.*.w1", "ffn_gate.*"),
    part("block_sparse_moe.experts.*.w2", "ffn_down.*"),
    part("block_sparse_moe.experts.*.w3", "ffn_up.*"),
];

/// Norms on both sides of what a layer adds.
const SANDWICH: &[Name] = &[
    part("post_attention_layernorm", "post_attention_norm"),
    part("pre_feedforward_layernorm", "ffn_norm"),
    part("post_feedforward_layernorm", "post_ffw_norm"),
];

/// Where GGUF calls the norm before the feed-forward network by the name that it has here.
const POST_ATTENTION: &[Name] = &[part("post_attention_layernorm", "post_attention_norm")];

const LINEAR_ATTENTION: &[Name] = &[
    part("linear_attn.in_proj_qkvz", "ssm_in"),
    part("linear_attn.in_proj_ba", "ssm_ba"),
    part("linear_attn.in_proj_qkv", "attn_qkv"),
    part("linear_attn.in_proj_z", "attn_gate"),
    part("linear_attn.in_proj_b", "ssm_beta"),
    part("linear_attn.in_proj_a", "ssm_alpha"),
    with(How::Squeezed, "linear_attn.conv1d", "ssm_conv1d"),
    whole("linear_attn.A_log", "ssm_a"),
    whole("linear_attn.dt_bias", "ssm_dt.bias"),
    part("linear_attn.norm", "ssm_norm"),
    part("linear_attn.out_proj", "ssm_out"),
];

const MAMBA2: &[Name] = &[
    part("mamba.in_proj", "ssm_in"),
    with(How::Squeezed, "mamba.conv1d", "ssm_conv1d"),
    with(How::Column, "mamba.A_log", "ssm_a"),
    with(How::Column, "mamba.D", "ssm_d"),
    whole("mamba.dt_bias", "ssm_dt.bias"),
    with(How::Groups, "mamba.norm", "ssm_norm"),
    part("mamba.out_proj", "ssm_out"),
];

/// Without experts, what they share is the whole network, see the tensors of a family.
const GRANITE_EXPERTS: &[Name] = &[
    part("block_sparse_moe.router.layer", "ffn_gate_inp"),
    part("block_sparse_moe.input_linear", "ffn_gate_up_exps"),
    part("block_sparse_moe.output_linear", "ffn_down_exps"),
    with(How::Halves, "shared_mlp.input_linear", "ffn_gate_shexp"),
    with(How::Halves, "", "ffn_up_shexp"),
    part("shared_mlp.output_linear", "ffn_down_shexp"),
];

const DEEPSEEK: &[Name] = &[
    part("self_attn.q_a_proj", "attn_q_a"),
    part("self_attn.q_a_layernorm", "attn_q_a_norm"),
    part("self_attn.q_b_proj", "attn_q_b"),
    part("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    part("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    part("self_attn.kv_b_proj", "attn_kv_b"),
];

const MINIMAX: &[Name] = &[whole("block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias")];

const PHI: &[Name] = &[
    part("final_layernorm", "output_norm"),
    part("self_attn.dense", "attn_output"),
    part("mlp.fc1", "ffn_up"),
    part("mlp.fc2", "ffn_down"),
];

const HUNYUAN: &[Name] =
    &[part("self_attn.query_layernorm", "attn_q_norm"), part("self_attn.key_layernorm", "attn_k_norm")];

const GLM4: &[Name] =
    &[part("post_self_attn_layernorm", "post_attention_norm"), part("post_mlp_layernorm", "post_ffw_norm")];

const STARCODER2: &[Name] = &[part("mlp.c_fc", "ffn_up"), part("mlp.c_proj", "ffn_down")];

const FALCON_H1: &[Name] = &[
    part("final_layernorm", "output_norm"),
    whole("pre_ff_layernorm.weight", "ffn_norm"), // so it is called, without an end
    part("feed_forward.gate_proj", "ffn_gate"),
    part("feed_forward.up_proj", "ffn_up"),
    part("feed_forward.down_proj", "ffn_down"),
];

const LFM2: &[Name] = &[
    part("embedding_norm", "token_embd_norm"), // the last norm, whatever GGUF calls it
    part("operator_norm", "attn_norm"),
    part("ffn_norm", "ffn_norm"),
    part("self_attn.out_proj", "attn_output"),
    part("self_attn.q_layernorm", "attn_q_norm"),
    part("self_attn.k_layernorm", "attn_k_norm"),
    with(How::Squeezed, "conv.conv", "shortconv.conv"),
    part("conv.in_proj", "shortconv.in_proj"),
    part("conv.out_proj", "shortconv.out_proj"),
    part("feed_forward.w1", "ffn_gate"),
    part("feed_forward.w2", "ffn_down"),
    part("feed_forward.w3", "ffn_up"),
    part("feed_forward.gate", "ffn_gate_inp"),
    whole("feed_forward.expert_bias", "exp_probs_b.bias"),
    part("feed_forward.experts.*.w1", "ffn_gate.*"),
    part("feed_forward.experts.*.w2", "ffn_down.*"),
    part("feed_forward.experts.*.w3", "ffn_up.*"),
];

const GEMMA4: &[Name] = &[
    part("embed_tokens_per_layer", "per_layer_token_embd"),
    part("per_layer_model_projection", "per_layer_model_proj"),
    part("per_layer_projection_norm", "per_layer_proj_norm"),
    part("per_layer_input_gate", "inp_gate"),
    part("per_layer_projection", "proj"),
    part("post_per_layer_input_norm", "post_norm"),
    whole("layer_scalar", "layer_output_scale.weight"),
    part("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
    part("post_feedforward_layernorm_1", "post_ffw_norm_1"),
    part("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    part("router.proj", "ffn_gate_inp"),
    whole("router.scale", "ffn_gate_inp.scale"),
    whole("router.per_expert_scale", "ffn_down_exps.scale"),
    part("experts.gate_up_proj", "ffn_gate_up_exps"),
    part("experts.down_proj", "ffn_down_exps"),
];

const BERT: &[Name] = &[
    part("embeddings.word_embeddings", "token_embd"),
    part("embeddings.position_embeddings", "position_embd"),
    part("embeddings.token_type_embeddings", "token_types"),
    part("embeddings.LayerNorm", "token_embd_norm"),
    part("attention.self.query", "attn_q"),
    part("attention.self.key", "attn_k"),
    part("attention.self.value", "attn_v"),
    part("attention.output.dense", "attn_output"),
    part("attention.output.LayerNorm", "attn_output_norm"),
    part("intermediate.dense", "ffn_up"),
    part("output.dense", "ffn_down"),
    part("output.LayerNorm", "layer_output_norm"),
    with(How::Ignored, "embeddings.position_ids", ""),
    with(How::Ignored, "pooler.dense", ""),
];

const NOMIC_BERT: &[Name] = &[
    part("emb_ln", "token_embd_norm"),
    part("attn.Wqkv", "attn_qkv"),
    part("attn.out_proj", "attn_output"),
    part("norm1", "attn_output_norm"),
    part("mlp.fc11", "ffn_up"),
    part("mlp.fc12", "ffn_gate"),
    part("mlp.fc2", "ffn_down"),
    part("norm2", "layer_output_norm"),
];

const MODERN_BERT: &[Name] = &[
    part("embeddings.tok_embeddings", "token_embd"),
    part("embeddings.norm", "token_embd_norm"),
    part("final_norm", "output_norm"),
    part("attn_norm", "attn_norm"),
    part("attn.Wqkv", "attn_qkv"),
    part("attn.Wo", "attn_output"),
    part("mlp_norm", "ffn_norm"),
    part("mlp.Wi", "ffn_up"),
    part("mlp.Wo", "ffn_down"),
    with(How::Ignored, "head.dense", ""),
    with(How::Ignored, "head.norm", ""),
    with(How::Ignored, "decoder", ""),
];

/// A family whose directory runs as GGUF files of this architecture do.
const fn family(
    model_types: &'static [&'static str],
    architecture: fn(&Config) -> Result<&'static str>,
    names: &'static [&'static [Name]],
    keys: fn(&mut Keys) -> Result<()>,
) -> Family {
    let layers = "layers.";
    Family { model_types, architecture, layers, names, keys, pairs: false, norm_offset: false, convert_first: None }
}

/// The table.
pub const FAMILIES: &[Family] = &[
    Family { pairs: true, ..family(&["llama", "mistral"], |_| Ok("llama"), &[DECODER], |k| k.all_windowed()) },
    Family { pairs: true, ..family(&["mixtral"], |_| Ok("llama"), &[MIXTRAL, DECODER], mixtral) },
    Family { pairs: true, ..family(&["ministral3", "mistral3"], mistral, &[DECODER], mistral3) },
    family(&["qwen2"], |_| Ok("qwen2"), &[DECODER], |k| k.windowed()),
    family(&["qwen3"], |_| Ok("qwen3"), &[DECODER], |k| k.windowed()),
    family(&["qwen2_moe"], |_| Ok("qwen2moe"), &[EXPERTS, DECODER], |k| k.windowed()),
    family(&["qwen3_moe"], |_| Ok("qwen3moe"), &[EXPERTS, DECODER], |k| k.windowed()),
    Family {
        norm_offset: true,
        ..family(
            &["qwen3_next"],
            |_| Ok("qwen3next"),
            &[POST_ATTENTION, LINEAR_ATTENTION, EXPERTS, DECODER],
            gated_delta,
        )
    },
    Family {
        norm_offset: true,
        ..family(&["qwen3_5", "qwen3_5_text"], |_| Ok("qwen35"), &[POST_ATTENTION, LINEAR_ATTENTION, DECODER], qwen35)
    },
    Family {
        norm_offset: true,
        ..family(
            &["qwen3_5_moe", "qwen3_5_moe_text"],
            |_| Ok("qwen35moe"),
            &[POST_ATTENTION, LINEAR_ATTENTION, EXPERTS, DECODER],
            qwen35,
        )
    },
    family(&["phi3"], |_| Ok("phi3"), &[DECODER], phi3),
    Family { norm_offset: true, ..family(&["gemma"], |_| Ok("gemma"), &[DECODER], |_| Ok(())) },
    Family { norm_offset: true, ..family(&["gemma2"], |_| Ok("gemma2"), &[SANDWICH, DECODER], gemma2) },
    Family { norm_offset: true, ..family(&["gemma3", "gemma3_text"], |_| Ok("gemma3"), &[SANDWICH, DECODER], gemma3) },
    family(&["gemma4", "gemma4_text"], |_| Ok("gemma4"), &[GEMMA4, SANDWICH, DECODER], gemma4),
    Family { pairs: true, ..family(&["granite"], |_| Ok("granite"), &[DECODER], granite) },
    Family {
        pairs: true,
        ..family(&["granitemoe", "granitemoeshared"], |_| Ok("granitemoe"), &[GRANITE_EXPERTS, DECODER], granite)
    },
    Family {
        pairs: true,
        ..family(&["granitemoehybrid"], granite_hybrid, &[MAMBA2, GRANITE_EXPERTS, DECODER], granitehybrid)
    },
    Family { pairs: true, ..family(&["smollm3"], |_| Ok("smollm3"), &[DECODER], |k| k.windowed()) },
    Family { pairs: true, ..family(&["arcee"], |_| Ok("arcee"), &[DECODER], |_| Ok(())) },
    Family { pairs: true, ..family(&["minicpm"], |_| Ok("minicpm"), &[DECODER], minicpm) },
    family(&["olmo2", "olmo3"], |_| Ok("olmo2"), &[SANDWICH, DECODER], olmo),
    family(
        &["olmoe"],
        |_| Ok("olmoe"),
        &[EXPERTS, DECODER],
        |k| {
            k.f32("attention.layer_norm_rms_epsilon", 1e-5);
            Ok(())
        },
    ),
    family(&["exaone4"], |_| Ok("exaone4"), &[SANDWICH, DECODER], exaone4),
    family(&["cohere"], |_| Ok("command-r"), &[DECODER], cohere),
    family(&["cohere2"], |_| Ok("cohere2"), &[DECODER], cohere2),
    family(&["glm4"], |_| Ok("glm4"), &[GLM4, DECODER], |k| k.rotated(0.5)),
    family(&["glm4_moe"], |_| Ok("glm4moe"), &[POST_ATTENTION, EXPERTS, DECODER], glm4moe),
    family(&["seed_oss"], |_| Ok("seed_oss"), &[POST_ATTENTION, DECODER], |_| Ok(())),
    family(&["ernie4_5"], |_| Ok("ernie4_5"), &[DECODER], |_| Ok(())),
    family(&["ernie4_5_moe"], |_| Ok("ernie4_5-moe"), &[EXPERTS, DECODER], ernie_moe),
    family(&["hunyuan_v1_dense"], |_| Ok("hunyuan-dense"), &[HUNYUAN, DECODER], hunyuan),
    family(&["starcoder2"], |_| Ok("starcoder2"), &[STARCODER2, DECODER], |k| k.all_windowed()),
    family(&["lfm2"], |_| Ok("lfm2"), &[LFM2, DECODER], lfm2),
    family(&["lfm2_moe"], |_| Ok("lfm2moe"), &[LFM2, DECODER], lfm2moe),
    Family {
        convert_first: Some("its multipliers, which a GGUF file has in its weights"),
        ..family(&["falcon_h1"], |_| Ok("falcon-h1"), &[FALCON_H1, MAMBA2, DECODER], mamba2)
    },
    family(
        &["deepseek_v2", "deepseek_v3", "glm4_moe_lite"],
        |_| Ok("deepseek2"),
        &[DEEPSEEK, EXPERTS, DECODER],
        deepseek,
    ),
    Family { pairs: true, ..family(&["deepseek"], |_| Ok("deepseek"), &[EXPERTS, DECODER], mixture) },
    family(&["dots1"], |_| Ok("dots1"), &[EXPERTS, DECODER], dots1),
    family(&["minimax_m2", "minimax"], |_| Ok("minimax-m2"), &[MINIMAX, MIXTRAL, DECODER], minimax),
    Family { norm_offset: true, ..family(&["nemotron"], |_| Ok("nemotron"), &[DECODER], nemotron) },
    family(&["phi"], |_| Ok("phi2"), &[PHI, DECODER], |_| Ok(())),
    Family { layers: "encoder.layer.", ..family(&["bert"], |_| Ok("bert"), &[BERT], bert) },
    Family {
        layers: "encoder.layers.",
        ..family(&["nomic_bert"], |_| Ok("nomic-bert"), &[NOMIC_BERT, BERT], nomic_bert)
    },
    family(&["modernbert"], |_| Ok("modern-bert"), &[MODERN_BERT], modern_bert),
];

/// Whether GGUF files of an architecture have the rows of a head in another order, see [`Family::pairs`].
pub fn has_pairs(architecture: &str) -> bool {
    const PAIRS: &[&str] =
        &["llama", "mistral3", "granite", "granitemoe", "granitehybrid", "smollm3", "arcee", "minicpm", "deepseek"];
    PAIRS.contains(&architecture)
}

/// The row of a model.
pub fn find(config: &Config) -> Result<&'static Family> {
    let name = config.required("model_type", config.str("model_type")?)?;
    // A picture model has the type of its text part in there.
    let text = config.text_model_type()?.unwrap_or(name);
    let row = FAMILIES.iter().find(|row| row.model_types.contains(&name));
    let row = row.or_else(|| FAMILIES.iter().find(|row| row.model_types.contains(&text)));
    row.ok_or_else(|| {
        let name = one_line(name);
        let mut known: Vec<_> = FAMILIES.iter().flat_map(|row| row.model_types).copied().collect();
        known.sort_unstable();
        config.unsupported(format!("model_type {name}; supported are {}", known.join(", ")))
    })
}

fn mixtral(k: &mut Keys) -> Result<()> {
    k.freq_base_default(1e6);
    k.all_windowed()
}

fn mistral(config: &Config) -> Result<&'static str> {
    Ok(if config.text_model_type()? == Some("mistral") { "llama" } else { "mistral3" })
}

fn mistral3(k: &mut Keys) -> Result<()> {
    if let Some(mscale) = k.config.float("rope_parameters.mscale_all_dim")? {
        k.f32("rope.scaling.yarn_log_multiplier", mscale);
    }
    if let Some(beta) = k.config.float("rope_parameters.llama_4_scaling_beta")? {
        k.f32("attention.temperature_scale", beta);
    }
    k.all_windowed()
}

/// Gated delta rule in three of four layers.
fn gated_delta(k: &mut Keys) -> Result<()> {
    let c = k.config;
    let n_v = c.required_int("linear_num_value_heads")?;
    let d = c.required_int("linear_value_head_dim")?;
    k.u32("ssm.conv_kernel", c.required_int("linear_conv_kernel_dim")?);
    k.u32("ssm.state_size", c.required_int("linear_key_head_dim")?);
    k.u32("ssm.group_count", c.required_int("linear_num_key_heads")?);
    k.u32("ssm.time_step_rank", n_v);
    k.u32("ssm.inner_size", k.product("linear_value_head_dim", d, n_v)?);
    if let Some(types) = c.strs("layer_types")? {
        let recurrent: Vec<_> = types.iter().map(|kind| *kind == "linear_attention").collect();
        k.bools("attention.recurrent_layers", &recurrent);
    }
    k.u32("full_attention_interval", c.int("full_attention_interval")?.unwrap_or(4));
    k.log_a();
    k.rotated(0.25)
}

fn qwen35(k: &mut Keys) -> Result<()> {
    gated_delta(k)?;
    k.grouped_heads();
    let mut sections = k.config.ints("rope_parameters.mrope_section")?.unwrap_or_else(|| vec![11, 11, 10]);
    sections.resize(4, 0);
    k.u32s("rope.dimension_sections", &sections);
    Ok(())
}

fn phi3(k: &mut Keys) -> Result<()> {
    k.u32("attention.sliding_window", k.config.int("sliding_window")?.unwrap_or(0));
    Ok(())
}

/// Scores are divided by the root of a number of its own, where that is not the length of a head.
fn gemma_scale(k: &mut Keys) -> Result<()> {
    if let Some(scalar) = k.config.float("query_pre_attn_scalar")?
        && scalar > 0.0
        && scalar != f64::from(k.config.int("head_dim")?.unwrap_or(256))
    {
        k.f32("attention.scale", scalar.powf(-0.5));
    }
    Ok(())
}

fn gemma2(k: &mut Keys) -> Result<()> {
    gemma_scale(k)?;
    k.u32("attention.sliding_window", k.config.int("sliding_window")?.unwrap_or(4096));
    for (name, key) in
        [("attn_logit_softcapping", "attn_logit_softcapping"), ("final_logit_softcapping", "final_logit_softcapping")]
    {
        if let Some(cap) = k.config.float(name)? {
            k.f32(key, cap);
        }
    }
    k.windowed()
}

/// What a configuration leaves out is what its class has.
fn gemma3(k: &mut Keys) -> Result<()> {
    gemma_scale(k)?;
    let c = k.config;
    k.u32("context_length", c.int("max_position_embeddings")?.unwrap_or(131_072));
    k.u32("attention.head_count", c.int("num_attention_heads")?.unwrap_or(8));
    k.u32("attention.head_count_kv", c.int("num_key_value_heads")?.unwrap_or(4));
    let head_dim = c.int("head_dim")?.unwrap_or(256);
    k.u32("attention.key_length", head_dim);
    k.u32("attention.value_length", head_dim);
    k.u32("rope.dimension_count", head_dim);
    k.f32("attention.layer_norm_rms_epsilon", c.float("rms_norm_eps")?.unwrap_or(1e-6));
    k.freq_base_default(1e6);
    if let Some(cap) = c.float("final_logit_softcapping")? {
        k.f32("final_logit_softcapping", cap);
    }
    k.windowed()
}

fn gemma4(k: &mut Keys) -> Result<()> {
    let c = k.config;
    let shared = c.int("num_kv_shared_layers")?.unwrap_or(0);
    k.u32("attention.shared_kv_layers", shared);
    k.u32("embedding_length_per_layer_input", c.int("hidden_size_per_layer_input")?.unwrap_or(0));
    let windowed: Vec<_> =
        c.required("layer_types", c.strs("layer_types")?)?.iter().map(|kind| *kind == "sliding_attention").collect();
    k.u32("attention.sliding_window", c.required_int("sliding_window")?);
    k.bools("attention.sliding_window_pattern", &windowed);
    let (full, swa) = (k.at_most("global_head_dim", c.required_int("global_head_dim")?)?, k.head_dim()?);
    k.u32("attention.key_length", full);
    k.u32("attention.value_length", full);
    k.u32("attention.key_length_swa", swa);
    k.u32("attention.value_length_swa", swa);
    k.u32("rope.dimension_count", full);
    k.u32("rope.dimension_count_swa", swa);
    if let Some(n) = c.first_int(&["expert_intermediate_size", "moe_intermediate_size"])? {
        k.u32("expert_feed_forward_length", n);
    }
    let ff = c.required_int("intermediate_size")?;
    if c.bool("use_double_wide_mlp")?.unwrap_or(false) {
        let first = k.n_layers.saturating_sub(shared);
        let lengths: Vec<_> = (0..k.n_layers).map(|i| if i < first { ff } else { 2 * ff }).collect();
        k.u32s("feed_forward_length", &lengths);
    }
    if let (Some(full), Some(swa)) = (c.int("num_global_key_value_heads")?, c.int("num_key_value_heads")?) {
        let heads: Vec<_> = windowed.iter().map(|&windowed| if windowed { swa } else { full }).collect();
        k.u32s("attention.head_count_kv", &heads);
    }
    if let Some(cap) = c.float("final_logit_softcapping")? {
        k.f32("final_logit_softcapping", cap);
    }
    // The first share of the pairs turns, the others do not.
    let share = c.float("rope_parameters.full_attention.partial_rotary_factor")?.unwrap_or(1.0);
    let (pairs, turning) = (full as usize / 2, (f64::from(full) * share / 2.0) as usize);
    k.tensor("rope_freqs.weight", (0..pairs).map(|i| if i < turning { 1.0 } else { 1e30 }).collect());
    Ok(())
}

fn granite(k: &mut Keys) -> Result<()> {
    for (name, key) in [
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        if let Some(scale) = k.config.float(name)? {
            k.f32(key, scale);
        }
    }
    if let Some(n) = k.config.int("shared_intermediate_size")? {
        k.u32("expert_shared_feed_forward_length", n);
    }
    Ok(())
}

fn granite_attention(config: &Config) -> Result<Vec<bool>> {
    let types = config.required("layer_types", config.strs("layer_types")?)?;
    Ok(types.iter().map(|kind| *kind == "attention").collect())
}

fn granite_hybrid(config: &Config) -> Result<&'static str> {
    let experts = config.int("num_local_experts")?.unwrap_or(0) > 0;
    let plain = granite_attention(config)?.iter().all(|&attention| attention);
    Ok(if !plain { "granitehybrid" } else { ["granite", "granitemoe"][usize::from(experts)] })
}

fn granitehybrid(k: &mut Keys) -> Result<()> {
    granite(k)?;
    let c = k.config;
    if c.int("num_local_experts")?.unwrap_or(0) == 0 {
        k.u32("feed_forward_length", c.required_int("shared_intermediate_size")?); // what experts share is all there is
    }
    let attention = granite_attention(c)?;
    if attention.contains(&false) {
        mamba2(k)?;
        let heads = c.required_int("num_key_value_heads")?;
        let heads: Vec<_> = attention.iter().map(|&attention| if attention { heads } else { 0 }).collect();
        k.u32s("attention.head_count_kv", &heads);
    }
    k.bool("rope.scaling.finetuned", c.str("position_embedding_type")? == Some("rope"));
    Ok(())
}

/// The keys of Mamba 2's state.
fn mamba2(k: &mut Keys) -> Result<()> {
    let c = k.config;
    let (n, d) = (c.required_int("mamba_n_heads")?, c.required_int("mamba_d_head")?);
    k.u32("ssm.conv_kernel", c.int("mamba_d_conv")?.unwrap_or(4));
    k.u32("ssm.state_size", c.required_int("mamba_d_state")?);
    k.u32("ssm.group_count", c.int("mamba_n_groups")?.unwrap_or(1));
    k.u32("ssm.time_step_rank", n);
    k.u32("ssm.inner_size", k.product("mamba_n_heads", n, d)?);
    k.log_a();
    Ok(())
}

fn minicpm(k: &mut Keys) -> Result<()> {
    let c = k.config;
    k.f32("embedding_scale", c.required_float("scale_emb")?);
    k.f32("residual_scale", c.required_float("scale_depth")? / f64::from(k.n_layers).sqrt());
    k.f32("logit_scale", c.required_float("hidden_size")? / c.required_float("dim_model_base")?);
    Ok(())
}

fn olmo(k: &mut Keys) -> Result<()> {
    if k.config.has("sliding_window") && !k.config.has("layer_types") {
        k.u32("attention.sliding_window", k.config.required_int("sliding_window")?);
        let pattern: Vec<_> = (0..k.n_layers).map(|i| !(i + 1).is_multiple_of(4)).collect();
        k.bools("attention.sliding_window_pattern", &pattern);
    }
    k.windowed()
}

fn exaone4(k: &mut Keys) -> Result<()> {
    let c = k.config;
    if let Some(window) = c.int("sliding_window")? {
        k.u32("attention.sliding_window", window);
        let pattern: Option<Vec<bool>> = if c.has("layer_types") {
            None
        } else if let Some(letters) = c.get("sliding_window_pattern").and_then(|value| value.as_str()) {
            let letters: Vec<char> = letters.chars().collect(); // LLLG
            (!letters.is_empty()).then(|| (0..k.n_layers).map(|i| letters[i as usize % letters.len()] == 'L').collect())
        } else {
            let n = c.int("sliding_window_pattern")?.filter(|&n| n > 0);
            n.map(|n| (0..k.n_layers).map(|i| !(i + 1).is_multiple_of(n)).collect())
        };
        if let Some(pattern) = pattern {
            k.bools("attention.sliding_window_pattern", &pattern);
        }
    }
    k.windowed()
}

fn cohere(k: &mut Keys) -> Result<()> {
    let c = k.config;
    if let Some(n) = c.first_int(&["model_max_length", "max_position_embeddings"])? {
        k.u32("context_length", n);
    }
    k.f32("logit_scale", c.float("logit_scale")?.unwrap_or(0.0625));
    k.str("rope.scaling.type", "none");
    Ok(())
}

fn cohere2(k: &mut Keys) -> Result<()> {
    k.f32("logit_scale", k.config.float("logit_scale")?.unwrap_or(0.0625));
    k.str("rope.scaling.type", "none");
    k.rotated(k.config.float("rotary_pct")?.unwrap_or(1.0))?;
    if let Some(window) = k.config.int("sliding_window")? {
        k.u32("attention.sliding_window", window);
    }
    k.windowed()
}

fn glm4moe(k: &mut Keys) -> Result<()> {
    k.rotated(0.5)?;
    k.u32("expert_gating_func", 2);
    mixture(k)
}

/// How weights of experts come about, where the file says so.
fn mixture(k: &mut Keys) -> Result<()> {
    let c = k.config;
    if let Some(n) = c.int("n_shared_experts")? {
        k.u32("expert_shared_count", n);
    }
    if let Some(n) = c.int("first_k_dense_replace")? {
        k.u32("leading_dense_block_count", n);
    }
    if let Some(scale) = c.float("routed_scaling_factor")? {
        k.f32("expert_weights_scale", scale);
    }
    if let Some(norm) = c.bool("norm_topk_prob")? {
        k.bool("expert_weights_norm", norm);
    }
    Ok(())
}

fn ernie_moe(k: &mut Keys) -> Result<()> {
    let c = k.config;
    k.u32("expert_count", c.required_int("moe_num_experts")?);
    k.u32("expert_used_count", c.required_int("moe_k")?);
    k.u32("interleave_moe_layer_step", c.int("moe_layer_interval")?.unwrap_or(1));
    k.u32("leading_dense_block_count", c.int("moe_layer_start_index")?.unwrap_or(1));
    if let Some(n) = c.int("moe_num_shared_experts")? {
        k.u32("expert_shared_count", n);
        if n > 0 {
            let length = k.product("moe_num_shared_experts", n, c.required_int("moe_intermediate_size")?)?;
            k.u32("expert_shared_feed_forward_length", length);
        }
    }
    Ok(())
}

fn hunyuan(k: &mut Keys) -> Result<()> {
    let scaling = ["rope_parameters", "rope_scaling"].into_iter().find(|name| k.config.has(name));
    let Some(scaling) = scaling else { return Ok(()) };
    let (c, kind) = (k.config, format!("{scaling}.rope_type"));
    let kind = if c.has(&kind) { kind } else { format!("{scaling}.type") };
    if c.str(&kind)? == Some("dynamic") {
        let alpha = c.float(&format!("{scaling}.alpha"))?.unwrap_or(50.0);
        let base = c.first_float(&[&format!("{scaling}.rope_theta"), "rope_theta"])?.unwrap_or(10_000.0);
        let dim = f64::from(k.head_dim()?);
        k.f32("rope.freq_base", base * alpha.powf(dim / (dim - 2.0)));
        k.str("rope.scaling.type", "none");
    }
    Ok(())
}

fn lfm2(k: &mut Keys) -> Result<()> {
    let c = k.config;
    let types = c.required("layer_types", c.strs("layer_types")?)?;
    let heads = c.required_int("num_key_value_heads")?;
    let heads: Vec<_> = types.iter().map(|kind| if *kind == "full_attention" { heads } else { 0 }).collect();
    k.u32s("attention.head_count_kv", &heads);
    k.u32("shortconv.l_cache", c.required_int("conv_L_cache")?);
    let length = c.first_int(&["block_ff_dim", "intermediate_size"])?;
    let mut length = f64::from(c.required("intermediate_size", length)?);
    if c.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) && !c.has("moe_intermediate_size") {
        let multiple = f64::from(c.int("block_multiple_of")?.unwrap_or(256).max(1));
        length = (2.0 * length / 3.0).floor();
        length = (c.float("block_ffn_dim_multiplier")?.unwrap_or(1.0) * length).floor();
        length = (length / multiple).ceil() * multiple;
    }
    k.u32("feed_forward_length", length as u32);
    Ok(())
}

fn lfm2moe(k: &mut Keys) -> Result<()> {
    k.u32("leading_dense_block_count", k.config.int("num_dense_layers")?.unwrap_or(0));
    k.u32("expert_gating_func", 2);
    lfm2(k)
}

fn deepseek(k: &mut Keys) -> Result<()> {
    let c = k.config;
    let (lora, rope) = (c.required_int("kv_lora_rank")?, c.required_int("qk_rope_head_dim")?);
    let sum = |a: u32, b: u32| -> Result<u32> {
        let too_large = || c.error("too large", "qk_rope_head_dim").got(rope).limit("some hundreds").into();
        a.checked_add(b).ok_or_else(too_large)
    };
    k.u32("attention.head_count_kv", 1);
    if let Some(n) = c.int("q_lora_rank")? {
        k.u32("attention.q_lora_rank", n);
    }
    k.u32("attention.kv_lora_rank", lora);
    k.u32("attention.key_length", sum(lora, rope)?);
    k.u32("attention.value_length", lora);
    k.u32("attention.key_length_mla", sum(c.required_int("qk_nope_head_dim")?, rope)?);
    k.u32("attention.value_length_mla", c.required_int("v_head_dim")?);
    k.u32("rope.dimension_count", rope);
    k.f32("attention.layer_norm_rms_epsilon", c.float("rms_norm_eps")?.unwrap_or(1e-6));
    let dense = if c.has("n_routed_experts") { 0 } else { k.n_layers };
    k.u32("leading_dense_block_count", c.int("first_k_dense_replace")?.unwrap_or(dense));
    k.u32("expert_shared_count", c.int("n_shared_experts")?.unwrap_or(0));
    if let Some(n) = c.first_int(&["moe_intermediate_size", "intermediate_size"])? {
        k.u32("expert_feed_forward_length", n);
    }
    if let Some(scale) = c.first_float(&["rope_parameters.mscale_all_dim", "rope_scaling.mscale_all_dim"])? {
        k.f32("rope.scaling.yarn_log_multiplier", 0.1 * scale);
    }
    if !c.has("scoring_func") && c.str("model_type")? != Some("deepseek_v2") {
        k.u32("expert_gating_func", 2);
    }
    if c.bool("norm_topk_prob")? == Some(false) {
        k.skip("expert_weights_norm"); // what says no is left out, as converters do
    }
    mixture(k)
}

fn dots1(k: &mut Keys) -> Result<()> {
    k.u32("expert_gating_func", 2);
    mixture(k)
}

fn minimax(k: &mut Keys) -> Result<()> {
    if let Some(n) = k.config.int("rotary_dim")? {
        k.u32("rope.dimension_count", n);
    }
    k.u32("expert_gating_func", 2);
    k.u32("expert_feed_forward_length", k.config.required_int("intermediate_size")?);
    Ok(())
}

fn nemotron(k: &mut Keys) -> Result<()> {
    if let Some(epsilon) = k.config.float("norm_eps")? {
        k.f32("attention.layer_norm_epsilon", epsilon);
    }
    k.rotated(0.5)
}

fn encoder(k: &mut Keys) -> Result<()> {
    k.bool("attention.causal", false);
    if let Some(n) = k.config.int("type_vocab_size")? {
        k.token_types(n);
    }
    k.pooling()
}

fn bert(k: &mut Keys) -> Result<()> {
    k.absolute();
    encoder(k)
}

fn nomic_bert(k: &mut Keys) -> Result<()> {
    let c = k.config;
    if c.has("moe_every_n_layers") && c.int("moe_every_n_layers")?.unwrap_or(0) > 0 {
        return Err(c.unsupported("nomic-bert with experts in a directory; convert it with llama.cpp".into()));
    }
    let (positions, trained) = (c.int("n_positions")?, c.int("max_trained_positions")?.unwrap_or(2048));
    k.u32("context_length", positions.map_or(trained, |n| if n == 8192 { trained } else { n }));
    k.u32("embedding_length", c.required_int("n_embd")?);
    k.u32("feed_forward_length", c.required_int("n_inner")?);
    k.u32("attention.head_count", c.required_int("n_head")?);
    k.f32("rope.freq_base", c.float("rotary_emb_base")?.unwrap_or(1000.0));
    encoder(k)
}

fn modern_bert(k: &mut Keys) -> Result<()> {
    let c = k.config;
    k.f32("attention.layer_norm_epsilon", c.first_float(&["norm_eps", "layer_norm_eps"])?.unwrap_or(1e-5));
    k.skip("attention.layer_norm_rms_epsilon");
    if let Some(window) = c.int("local_attention")? {
        k.u32("attention.sliding_window", window);
    }
    if let Some(n) = c.int("global_attn_every_n_layers")? {
        k.u32("attention.sliding_window_pattern", n);
    }
    k.str("rope.scaling.type", "none");
    if let Some(activation) = c.str("hidden_activation")? {
        k.str("hidden_activation", activation);
    }
    encoder(k)
}
