//! Reading hyper-parameters: the keys under the architecture's name, each checked when it is read.

use super::{
    Activation, AttentionConfig, Config, DeltaNetConfig, DenseConfig, EmbeddingSum, ExpertsConfig, Ffn, Gate, Gating,
    Groups, KeyHead, LatentConfig, LayerConfig, LinearHeads, MambaConfig, Mask, Mixer, Norm, NormKind, Norms, Pooling,
    QkNorm, Ranking, RopeConfig, RopeScaling, RopeStyle, Rule, SharedConfig, ShortConvConfig, Temperature, Values,
};
use crate::checkpoint::{Checkpoint, Metadata, Value, ValueType};
use crate::error::{Error, FormatError, Result};
use crate::kernels::MAX_TAPS;

/// Longest vector that we accept: `dim`, `hidden_dim`, all heads together. A buffer has this length.
pub const MAX_DIM: usize = 1 << 20;
/// Most experts of a layer that we accept.
const MAX_EXPERTS: usize = 1 << 12;
/// Largest vocabulary that we accept. The logits have this length.
pub const MAX_VOCAB_SIZE: usize = 1 << 24;

const DEFAULT_ROPE_THETA: f32 = 10_000.0;

const N_LAYERS: &str = "block_count";
const N_PREDICT_LAYERS: &str = "nextn_predict_layers"; // the last of them
const DIM: &str = "embedding_length";
const HIDDEN_DIM: &str = "feed_forward_length";
const N_HEADS: &str = "attention.head_count";
const N_KV_HEADS: &str = "attention.head_count_kv"; // as many as query heads when absent
const KEY_LENGTH: &str = "attention.key_length"; // dim / n_heads when absent
const KEY_LENGTH_WINDOWED: &str = "attention.key_length_swa"; // of layers with a window
const N_SHARED_KV_LAYERS: &str = "attention.shared_kv_layers"; // the last ones, which have none of their own
const N_STREAMS: &str = "altup.num_inputs";
const ACTIVE_STREAM: &str = "altup.active_idx"; // the first
const CUTOFFS: &str = "activation_sparsity_scale"; // of the gates of each layer; -inf for none
const LAYER_EMBEDDING_DIM: &str = "embedding_length_per_layer_input";
const VALUE_LENGTH: &str = "attention.value_length"; // dim / n_heads when absent
const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
const LAYER_NORM_EPS: &str = "attention.layer_norm_epsilon";
const CAUSAL: &str = "attention.causal"; // false for encoders
const SCALE: &str = "attention.scale";
const SOFTCAP: &str = "attn_logit_softcapping";
const SLIDING_WINDOW: &str = "attention.sliding_window"; // keys that a position sees
const WINDOW_PATTERN: &str = "attention.sliding_window_pattern"; // which layers have it
const TEMPERATURE_SCALE: &str = "attention.temperature_scale";
const TEMPERATURE_LENGTH: &str = "attention.temperature_length";
const CONTEXT_LENGTH: &str = "context_length"; // longest in training
const VOCAB_SIZE: &str = "vocab_size"; // the length of the vocabulary when absent
const EMBEDDING_SCALE: &str = "embedding_scale";
const RESIDUAL_SCALE: &str = "residual_scale";
const LOGIT_SCALE: &str = "logit_scale";
const LOGIT_SOFTCAP: &str = "final_logit_softcapping";
const POOLING: &str = "pooling_type"; // 0 none, 1 mean, 2 cls, 3 last, 4 rank
const N_EXPERTS: &str = "expert_count";
const N_EXPERTS_USED: &str = "expert_used_count";
const EXPERT_HIDDEN_DIM: &str = "expert_feed_forward_length";
const EXPERT_SHARED_HIDDEN_DIM: &str = "expert_shared_feed_forward_length";
const N_EXPERTS_SHARED: &str = "expert_shared_count";
const EXPERT_GATING: &str = "expert_gating_func"; // 1 softmax, 2 sigmoid, 3 softmax of the chosen
const EXPERT_NORM: &str = "expert_weights_norm";
const EXPERT_SCALE: &str = "expert_weights_scale";
const N_GROUPS: &str = "expert_group_count";
const N_GROUPS_USED: &str = "expert_group_used_count";
const QUERY_RANK: &str = "attention.q_lora_rank"; // none when absent
const RANK: &str = "attention.kv_lora_rank";
const KEY_LENGTH_MLA: &str = "attention.key_length_mla"; // key_length when absent
const VALUE_LENGTH_MLA: &str = "attention.value_length_mla"; // value_length when absent
const RECURRENT_LAYERS: &str = "attention.recurrent_layers"; // which do not attend
const ATTENTION_INTERVAL: &str = "full_attention_interval"; // each such layer does, where the file does not say which
const N_TAPS: &str = "ssm.conv_kernel";
const N_GROUPS_OF_HEADS: &str = "ssm.group_count"; // heads of keys and queries
const STATE_SIZE: &str = "ssm.state_size"; // length of a key
const N_VALUE_HEADS: &str = "ssm.time_step_rank";
const INNER_SIZE: &str = "ssm.inner_size"; // values of all heads
const SHORT_CONV_TAPS: &str = "shortconv.l_cache";
const ROPE_THETA: &str = "rope.freq_base";
const ROPE_THETA_WINDOWED: &str = "rope.freq_base_swa"; // of layers with a window
const ROPE_DIM_WINDOWED: &str = "rope.dimension_count_swa";
const ROPE_FINETUNED: &str = "rope.scaling.finetuned"; // false in Granite models without rotation
const ROPE_DIM: &str = "rope.dimension_count"; // all of a head when absent
const ROPE_SCALING_TYPE: &str = "rope.scaling.type"; // none, linear, yarn, longrope
const ROPE_SCALING_FACTOR: &str = "rope.scaling.factor";
const ROPE_SCALE_LINEAR: &str = "rope.scale_linear"; // the same, in files of 2023
const ROPE_ORIGINAL_LENGTH: &str = "rope.scaling.original_context_length"; // context_length when absent
const ROPE_ATTN_FACTOR: &str = "rope.scaling.attn_factor"; // multiplies the rotated values
const YARN_ATTN_FACTOR: &str = "rope.scaling.yarn_attn_factor"; // the same
const YARN_BETA_FAST: &str = "rope.scaling.yarn_beta_fast";
const YARN_BETA_SLOW: &str = "rope.scaling.yarn_beta_slow";
const YARN_LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";

// What files of other formats say that differ from GGUF's of the same architecture.
const OUR_ROPE_STYLE: &str = "llama_rs.rope_style"; // half, interleaved
const OUR_NORM_OFFSET: &str = "llama_rs.norm_offset"; // what is added to the weights of norms
const OUR_DECAYS: &str = "llama_rs.ssm_a"; // log, where it is log(-a)
const OUR_VALUE_HEADS: &str = "llama_rs.ssm_v_heads"; // grouped, where neighbours share a key head

/// What a mixture of experts has where its file does not say, see [`Keys::experts`].
pub struct ExpertDefaults {
    /// [`ExpertsConfig::gating`].
    pub gating: Gating,
    /// [`ExpertsConfig::normalized`].
    pub normalized: bool,
}

/// The hyper-parameters of a file, under the name of its architecture.
pub struct Keys<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'static str,
}

impl<'a> Keys<'a> {
    /// Those of a file that says it is of `architecture`.
    pub(super) fn new(checkpoint: &'a Checkpoint, architecture: &'static str) -> Self {
        Self { checkpoint, architecture }
    }

    /// A decoder whose layers are all attention and a gated feed-forward network, each behind a norm of this kind: what
    /// an architecture changes where it differs. The attentions have the first of the ropes.
    ///
    /// # Errors
    /// [`Error::Format`] for a missing or senseless value, [`Error::Unsupported`] for a variant that we do not run.
    pub fn decoder(&self, style: RopeStyle, kind: NormKind) -> Result<Config> {
        let (n_layers, n_predict_layers) = self.n_layers()?;
        let dim = self.required_size(DIM).and_then(|n| self.at_most(DIM, n, MAX_DIM))?;
        let attention = self.attention(dim, n_layers)?;
        let context_length = self.required_size(CONTEXT_LENGTH)?;
        let hidden_dims = self.per_layer(HIDDEN_DIM, n_layers)?;
        let hidden_dims = match hidden_dims {
            Some(dims) => dims,
            None => {
                self.per_layer(EXPERT_HIDDEN_DIM, n_layers)?.ok_or_else(|| self.error("missing key", HIDDEN_DIM))?
            }
        };
        let layers = attention.into_iter().zip(hidden_dims).map(|(attention, hidden_dim)| LayerConfig {
            mixer: Mixer::Attention(attention),
            ffn: Ffn::Dense(DenseConfig { hidden_dim, activation: Activation::Silu, gated: true, cutoff: None }),
            norms: Norms::BEFORE,
            residual_scale: 1.0,
            has_output_scale: false,
        });
        let layers: Vec<_> = layers.collect();
        let head_dim = layers[0].mixer.attention().expect("all are attention yet").head_dim;
        let ropes = vec![self.rope(head_dim, style, context_length)?];

        let vocab_size = self.vocab_size()?;
        Ok(Config {
            architecture: self.architecture.into(),
            dim,
            vocab_size,
            context_length,
            norm: self.norm(kind)?,
            embedding_scale: 1.0,
            layer_embedding_dim: None,
            n_streams: 1,
            layers,
            n_predict_layers,
            ropes,
            embedding_sum: EmbeddingSum::default(),
            output_norm: Some("output_norm"),
            has_logits: true,
            pooling: self.pooling()?,
            ranking: Ranking { pooling: Pooling::Last, gelu: false, softmax: false },
            logit_scale: 1.0,
            logit_softcap: None,
        })
    }

    /// Has each token see all others, or those around it where there was a window; there are no logits then.
    pub fn see_all(&self, config: &mut Config) -> Result<()> {
        if self.bool(CAUSAL)? == Some(true) {
            return Err(self.unsupported(format!("a causal mask in an encoder, {}", self.architecture)));
        }
        config.has_logits = false;
        config.ranking.pooling = Pooling::Cls;
        config.each_attention(|_, attention| {
            attention.mask = match attention.mask {
                Mask::Window(n) => Mask::Around(n),
                Mask::Causal | Mask::Chunk(_) | Mask::All | Mask::Around(_) => Mask::All,
            }
        });
        Ok(())
    }

    /// An encoder as BERT is: embeddings of tokens and of the kind of a text are added and normed, and so is what each
    /// branch of a layer is added to. Plain networks go through GELU.
    ///
    /// # Errors
    /// As for [`Keys::decoder`].
    pub fn bert(&self) -> Result<Config> {
        let mut config = self.decoder(RopeStyle::Half, NormKind::Layer)?;
        self.see_all(&mut config)?;
        config.embedding_sum =
            EmbeddingSum { positions: false, types: self.has_tensor("token_types.weight"), normed: true };
        config.output_norm = None;
        config.set_norms(Norms::OF_SUMS);
        config.each_dense(|dense| (dense.activation, dense.gated) = (Activation::Gelu, false));
        Ok(config)
    }

    /// How the vectors of a text's tokens become one.
    fn pooling(&self) -> Result<Option<Pooling>> {
        let Some(n) = self.usize(POOLING)? else { return Ok(None) };
        let pooling = Pooling::ALL.get(n).copied();
        pooling.map(Some).ok_or_else(|| self.error("unknown pooling", POOLING).got(n).limit("0 to 4").into())
    }

    /// The kind of all norms.
    fn norm(&self, kind: NormKind) -> Result<Norm> {
        let name = match kind {
            NormKind::Rms => RMS_EPS,
            NormKind::Layer => LAYER_NORM_EPS,
        };
        let eps = self.required(name, self.f32(name)?)?;
        self.check(name, eps, eps > 0.0 && eps < 1.0, "a number between 0 and 1")?;
        Ok(Norm { kind, eps, offset: self.metadata().f32(OUR_NORM_OFFSET)?.unwrap_or(0.0) })
    }

    /// Refuses a layer that attends and has no heads to attend with.
    pub(super) fn refuse_headless(&self, config: &Config) -> Result<()> {
        match config.layers.iter().position(|layer| layer.mixer.attention().is_some_and(|a| a.n_kv_heads == 0)) {
            None => Ok(()),
            Some(i) => {
                let e = self.error("bad number of key-value heads", N_KV_HEADS).got(format!("0 in layer {i}"));
                Err(e.limit("at least 1").into())
            }
        }
    }

    /// The hybrids of Qwen: most layers are Gated DeltaNets, the others attend and gate what they give.
    pub fn qwen_hybrid(&self, key_head: KeyHead, fused_rates: bool) -> Result<Config> {
        let mut config = self.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.set_norms(Norms::BEFORE_AS_POST);
        config
            .each_attention(|_, attention| (attention.qk_norm, attention.gate) = (QkNorm::Heads, Gate::BesideQueries));
        let heads = self.linear_heads(Rule::Delta, key_head)?;
        let (n_taps, log_decays) = (self.n_taps(N_TAPS)?, self.log_decays()?);
        let recurrent = match self.flags(RECURRENT_LAYERS, config.n_layers())? {
            Some(flags) => flags,
            None => {
                let every = self.size(ATTENTION_INTERVAL)?.unwrap_or(4);
                (1..=config.n_layers()).map(|i| !i.is_multiple_of(every)).collect()
            }
        };
        for (i, (layer, _)) in config.layers.iter_mut().zip(recurrent).enumerate().filter(|(_, (_, flag))| *flag) {
            let fused_heads = fused_rates && self.has_tensor(&format!("blk.{i}.ssm_in.weight"));
            layer.mixer = Mixer::DeltaNet(DeltaNetConfig { heads, n_taps, fused_rates, fused_heads, log_decays });
        }
        Ok(config)
    }

    /// Queries, keys and values of all layers come from short vectors, and their heads are those of the file (DeepSeek-V2).
    /// With YaRN it is the scores that are multiplied with the square of a magnitude, not cosines and sines.
    pub fn latent(&self, config: &mut Config) -> Result<()> {
        let size = |name: &str| self.size(name)?.map(|n| self.at_most(name, n, MAX_DIM)).transpose();
        let query_rank = match self.usize(QUERY_RANK)? {
            Some(0) => None,
            _ => size(QUERY_RANK)?,
        };
        let rank = self.required(RANK, size(RANK)?)?;
        let (key_length, value_length) = (size(KEY_LENGTH_MLA)?, size(VALUE_LENGTH_MLA)?);
        let absorbed = self.has_tensor("blk.0.attn_k_b.weight");
        let rope_dim = config.ropes[0].dim;
        let mut magnitude = 1.0;
        if let RopeScaling::Yarn { factor, magnitude: of_turns, .. } = &mut config.ropes[0].scaling
            && let Some(multiplier) = self.f32(YARN_LOG_MULTIPLIER)?.filter(|&multiplier| multiplier != 0.0)
        {
            magnitude = 1.0 + multiplier * factor.max(1.0).ln();
            *of_turns = 1.0;
        }
        for layer in &mut config.layers {
            let Mixer::Attention(a) = layer.mixer else { continue };
            let (name, head_dim) = key_length.map_or((KEY_LENGTH, a.head_dim), |n| (KEY_LENGTH_MLA, n));
            let value_dim = value_length.unwrap_or(a.value_dim);
            let most = MAX_DIM / a.n_heads;
            if !(rope_dim + 1..=most).contains(&head_dim) {
                let e = self.error("bad length of heads", name).got(head_dim);
                return Err(e.limit(format!("more than the {rope_dim} that are rotated, at most {most}")).into());
            }
            self.at_most(VALUE_LENGTH_MLA, value_dim, most)?;
            self.at_most(RANK, rank, most.saturating_sub(rope_dim))?;
            let latent =
                LatentConfig { query_rank, rank, rope_dim, nope_dim: head_dim - rope_dim, value_dim, absorbed };
            let scale = magnitude * magnitude / (head_dim as f32).sqrt();
            let heads = if absorbed {
                let heads = AttentionConfig::new(a.n_heads, 1, rope_dim + rank);
                AttentionConfig { value_dim: rank, values_in_keys: true, ..heads }
            } else {
                AttentionConfig { value_dim, ..AttentionConfig::new(a.n_heads, a.n_heads, head_dim) }
            };
            layer.mixer = Mixer::Latent(AttentionConfig { scale, ..heads }, latent);
        }
        Ok(())
    }

    /// Layers without key-value heads are short convolutions, the others norm queries and keys (LFM2).
    pub fn short_convs(&self, config: &mut Config) -> Result<()> {
        let n_taps = self.n_taps(SHORT_CONV_TAPS)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        for layer in config.layers.iter_mut().filter(|layer| layer.mixer.attention().is_some_and(|a| a.n_kv_heads == 0))
        {
            layer.mixer = Mixer::ShortConv(ShortConvConfig { n_taps });
        }
        Ok(())
    }

    /// The Mamba-2 of a model.
    pub fn mamba(&self) -> Result<MambaConfig> {
        let heads = self.linear_heads(Rule::Plain, KeyHead::Divide)?;
        let normed = self.checkpoint.tensors().iter().any(|tensor| tensor.name().ends_with(".ssm_norm.weight"));
        Ok(MambaConfig { heads, n_taps: self.n_taps(N_TAPS)?, normed, log_decays: self.log_decays()? })
    }

    /// The heads of recurrent layers.
    fn linear_heads(&self, rule: Rule, key_head: KeyHead) -> Result<LinearHeads> {
        let size = |name: &str| self.required_size(name).and_then(|n| self.at_most(name, n, MAX_DIM));
        let (n_heads, n_key_heads) = (size(N_VALUE_HEADS)?, size(N_GROUPS_OF_HEADS)?);
        let (key_dim, inner) = (size(STATE_SIZE)?, size(INNER_SIZE)?);
        let wrong = |name: &str, got: usize, limit: String| -> Result<LinearHeads> {
            Err(self.error("bad size of recurrent layers", name).got(got).limit(limit).into())
        };
        if !n_heads.is_multiple_of(n_key_heads) {
            return wrong(N_GROUPS_OF_HEADS, n_key_heads, format!("a divisor of the {n_heads} heads"));
        }
        if !inner.is_multiple_of(n_heads) {
            return wrong(INNER_SIZE, inner, format!("a multiple of the {n_heads} heads"));
        }
        if n_key_heads > MAX_DIM / key_dim {
            return wrong(STATE_SIZE, key_dim, format!("at most {} for {n_key_heads} heads", MAX_DIM / n_key_heads));
        }
        let key_head = match self.metadata().str(OUR_VALUE_HEADS)?.as_deref() {
            None => key_head,
            Some("grouped") => KeyHead::Divide,
            Some(_) => return Err(self.metadata().error("bad value", OUR_VALUE_HEADS).limit("grouped").into()),
        };
        Ok(LinearHeads { n_heads, n_key_heads, key_dim, value_dim: inner / n_heads, rule, key_head })
    }

    /// The taps of a convolution.
    fn n_taps(&self, name: &str) -> Result<usize> {
        self.required_size(name).and_then(|n| self.at_most(name, n, MAX_TAPS))
    }

    /// Whether decays are stored as logarithms.
    fn log_decays(&self) -> Result<bool> {
        match self.metadata().str(OUR_DECAYS)?.as_deref() {
            None => Ok(false),
            Some("log") => Ok(true),
            Some(_) => Err(self.metadata().error("bad value", OUR_DECAYS).limit("log").into()),
        }
    }

    /// Refuses a file that says what the config, as it was read, does not have.
    pub(super) fn refuse_variants(&self, config: &Config) -> Result<()> {
        let has_experts = config.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Experts(_) | Ffn::Both(..)));
        if let Some(n @ 1..) = self.usize(N_EXPERTS)?
            && !has_experts
        {
            return Err(self.unsupported(format!("a mixture of {n} experts in the architecture {}", self.architecture)));
        }
        let masks: Vec<Mask> = config.attention().map(|attention| attention.mask).collect();
        if self.metadata().bool(&self.full(CAUSAL))? == Some(false)
            && masks.iter().any(|mask| matches!(mask, Mask::Causal | Mask::Window(_) | Mask::Chunk(_)))
        {
            return Err(self.unsupported("attention without a causal mask (an encoder)".into()));
        }
        if let Some(n @ 1..) = self.usize(SLIDING_WINDOW)?
            && n < config.context_length
            && !self.ignores_windows()
            && masks.iter().all(|mask| *mask == Mask::Causal)
        {
            let of = config.context_length;
            return Err(self.unsupported(format!("sliding-window attention over {n} of {of} positions")));
        }
        Ok(())
    }

    /// Phi-3 files name a window that the models were not trained with in the end; llama.cpp takes no notice either.
    fn ignores_windows(&self) -> bool {
        self.architecture == "phi3"
    }

    /// The length of the window of each layer that has one. Where the file does not say which have one, of each `pattern`
    /// layers all but the last do, or all but the first if `full_first`; a pattern of 0 means all.
    pub fn windows(&self, n_layers: usize, pattern: usize, full_first: bool) -> Result<Vec<Option<usize>>> {
        let Some(n @ 1..) = self.usize(SLIDING_WINDOW)? else { return Ok(vec![None; n_layers]) };
        let full = |i: usize, pattern: usize| i % pattern == if full_first { 0 } else { pattern - 1 };
        let every = |pattern: usize| (0..n_layers).map(|i| pattern == 0 || !full(i, pattern)).collect();
        let windowed: Vec<bool> = match self.flags(WINDOW_PATTERN, n_layers)? {
            Some(flags) => flags,
            None => every(self.usize(WINDOW_PATTERN)?.unwrap_or(pattern)),
        };
        Ok(windowed.into_iter().map(|windowed| windowed.then_some(n)).collect())
    }

    /// Gives attentions the windows of [`Keys::windows`]. Whether any has one.
    pub fn set_windows(&self, config: &mut Config, pattern: usize) -> Result<bool> {
        self.set_windows_but(config, pattern, false)
    }

    /// The same; `full_first` as there.
    pub fn set_windows_but(&self, config: &mut Config, pattern: usize, full_first: bool) -> Result<bool> {
        let windows = self.windows(config.n_layers(), pattern, full_first)?;
        config.each_attention(|i, attention| attention.mask = windows[i].map_or(Mask::Causal, Mask::Window));
        Ok(windows.iter().any(Option::is_some))
    }

    /// Experts in place of a network with this inner length, if the file has any. The length of the inner vector of an
    /// expert is that of the file or else `hidden_dim`.
    pub fn experts(&self, dense: DenseConfig, defaults: ExpertDefaults) -> Result<Option<ExpertsConfig>> {
        let Some(n_experts @ 1..) = self.usize(N_EXPERTS)? else { return Ok(None) };
        self.at_most(N_EXPERTS, n_experts, MAX_EXPERTS)?;
        let n_used = self.required_size(N_EXPERTS_USED).and_then(|n| self.at_most(N_EXPERTS_USED, n, n_experts))?;
        let hidden_dim = self.size(EXPERT_HIDDEN_DIM)?.unwrap_or(dense.hidden_dim);
        let hidden_dim = self.at_most(EXPERT_HIDDEN_DIM, hidden_dim, MAX_DIM)?;
        let gating = match self.usize(EXPERT_GATING)? {
            None | Some(0) => defaults.gating,
            Some(1) => Gating::Softmax,
            Some(2) => Gating::Sigmoid,
            Some(3) => Gating::SoftmaxOfChosen,
            Some(n) => {
                let what = format!("gating function {n} of experts; 1 (softmax), 2 (sigmoid) and 3 are supported");
                return Err(self.unsupported(what));
            }
        };
        let weight_scale = self.f32(EXPERT_SCALE)?.filter(|&scale| scale != 0.0).unwrap_or(1.0);
        self.check(EXPERT_SCALE, weight_scale, weight_scale.is_finite(), "a finite number")?;
        let n = self.usize(N_GROUPS)?.unwrap_or(1).max(1);
        let used = self.usize(N_GROUPS_USED)?.unwrap_or(n).clamp(1, n);
        if !n_experts.is_multiple_of(n) || n_experts / n * used < n_used {
            let e = self.error("bad number of groups of experts", N_GROUPS).got(n);
            return Err(e.limit(format!("a divisor of the {n_experts} experts, of which {n_used} are used")).into());
        }
        Ok(Some(ExpertsConfig {
            n_experts,
            n_used,
            expert: DenseConfig { hidden_dim, ..dense },
            gating,
            normalized: self.metadata().bool(&self.full(EXPERT_NORM))?.unwrap_or(defaults.normalized),
            weight_scale,
            shared: None,
            groups: Groups { n, used, best: if gating == Gating::Softmax { 1 } else { 2 } },
        }))
    }

    /// Puts experts into the layers for which `has` says so, if the file has any.
    pub fn mixture(&self, config: &mut Config, defaults: ExpertDefaults, has: impl Fn(usize) -> bool) -> Result<()> {
        let of = |layer: &LayerConfig| match layer.ffn {
            Ffn::Dense(dense) => dense,
            Ffn::Experts(experts) | Ffn::Both(_, experts) => experts.expert,
        };
        let Some(experts) = self.experts(of(&config.layers[0]), defaults)? else { return Ok(()) };
        for (_, layer) in config.layers.iter_mut().enumerate().filter(|(i, _)| has(*i)) {
            layer.ffn = Ffn::Experts(experts);
        }
        Ok(())
    }

    /// Gives the experts a shared one beside them, if the file has it.
    pub fn share(&self, config: &mut Config, gated: bool) -> Result<()> {
        let own = self.size(EXPERT_SHARED_HIDDEN_DIM)?;
        let count = self.usize(N_EXPERTS_SHARED)?.filter(|&n| n > 0);
        for layer in &mut config.layers {
            let Ffn::Experts(experts) = &mut layer.ffn else { continue };
            let of_count = count.map(|n| experts.expert.hidden_dim.saturating_mul(n));
            let Some(hidden_dim) = own.or(of_count) else { continue };
            let hidden_dim = self.at_most(EXPERT_SHARED_HIDDEN_DIM, hidden_dim, MAX_DIM)?;
            experts.shared = Some(SharedConfig { hidden_dim, gated });
        }
        Ok(())
    }

    /// What queries of far positions are multiplied with, if the file says so.
    pub fn temperature(&self, context_length: usize) -> Result<Option<Temperature>> {
        let Some(scale) = self.f32(TEMPERATURE_SCALE)?.filter(|&scale| scale != 0.0) else { return Ok(None) };
        self.check(TEMPERATURE_SCALE, scale, scale.is_finite(), "a finite number")?;
        let length = match self.size(TEMPERATURE_LENGTH)? {
            Some(n) => n,
            None => self.original_length(context_length)?,
        };
        Ok(Some(Temperature { scale, length }))
    }

    /// The file's `embedding_scale`, and so on: a number other than zero.
    pub fn factor(&self, name: &str) -> Result<Option<f32>> {
        let Some(x) = self.f32(name)?.filter(|&x| x != 0.0) else { return Ok(None) };
        self.check(name, x, x.is_finite(), "a finite number")?;
        Ok(Some(x))
    }

    /// Embedding, residual, attention and logit scales as Granite has them: those of the file, which divide logits; and no
    /// rotation where the file says so.
    pub fn granite(&self, config: &mut Config) -> Result<()> {
        config.embedding_scale = self.factor(EMBEDDING_SCALE)?.unwrap_or(config.embedding_scale);
        let residual_scale = self.factor(RESIDUAL_SCALE)?;
        for layer in &mut config.layers {
            layer.residual_scale = residual_scale.unwrap_or(layer.residual_scale);
        }
        let rotated = self.bool(ROPE_FINETUNED)? != Some(false);
        config.each_attention(|_, attention| attention.rope = attention.rope.filter(|_| rotated));
        if let Some(divisor) = self.factor(LOGIT_SCALE)? {
            config.logit_scale = 1.0 / divisor;
        }
        Ok(())
    }

    /// The scale of attention scores in the 27B models of Gemma, which have so many layers and whose GGUF files do not say it.
    pub fn gemma_27b(&self, config: &mut Config, n_layers: usize) -> Result<()> {
        if config.n_layers() == n_layers && self.factor(SCALE)?.is_none() {
            let dim = config.dim as f32;
            config.each_attention(|_, attention| attention.scale = 1.0 / (dim / attention.n_heads as f32).sqrt());
        }
        Ok(())
    }

    /// What all models of the Gemma family share.
    pub fn gemma(&self) -> Result<Config> {
        let mut config = self.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.embedding_scale = (config.dim as f32).sqrt();
        config.each_dense(|dense| dense.activation = Activation::Gelu);
        Ok(config)
    }

    /// What Gemma 4 has beyond its predecessors: heads of another length in windows, keys and values of other layers,
    /// keys for values, embeddings for each layer, a network and experts side by side.
    /// So many of the last layers read what others have, where the file does not say it.
    pub fn gemma4(&self, config: &mut Config, n_shared: usize) -> Result<()> {
        let n_layers = config.n_layers();
        let short = self.size(KEY_LENGTH_WINDOWED)?;
        let short = short.map(|n| self.at_most(KEY_LENGTH_WINDOWED, n, MAX_DIM / config.n_heads())).transpose()?;
        if let Some(head_dim) = short {
            config.each_attention(|_, attention| {
                if attention.mask != Mask::Causal {
                    (attention.head_dim, attention.value_dim) = (head_dim, head_dim);
                }
            });
        }
        self.rotate_windows(config)?;
        let windowed = config.attention().find(|a| a.mask != Mask::Causal).map(|a| a.head_dim);
        if let (Some(head_dim), Some(rope)) = (windowed, config.ropes.get_mut(1)) {
            rope.dim = self.size(ROPE_DIM_WINDOWED)?.unwrap_or(head_dim);
            if rope.dim > head_dim || !rope.dim.is_multiple_of(2) {
                let e = self.error("bad number of rotated dimensions", ROPE_DIM_WINDOWED).got(rope.dim);
                return Err(e.limit(format!("an even number up to the head's {head_dim}")).into());
            }
        }
        let scale = self.factor(SCALE)?.unwrap_or(1.0);
        config.each_attention(|_, attention| (attention.scale, attention.qk_norm) = (scale, QkNorm::Heads));

        // The last layers read what the last of either kind before them has.
        let n_shared = self.usize(N_SHARED_KV_LAYERS)?.unwrap_or(n_shared);
        let own = n_layers.saturating_sub(n_shared);
        let masks: Vec<Mask> = config.attention().map(|attention| attention.mask).collect();
        for (i, layer) in config.layers.iter_mut().enumerate() {
            let Some(attention) = layer.mixer.attention_mut() else { continue };
            let is_windowed = attention.mask != Mask::Causal;
            if i >= own {
                let of_its_kind = |j: &usize| (masks[*j] != Mask::Causal) == is_windowed;
                let source = (0..own).rev().find(of_its_kind).ok_or_else(|| {
                    let e = self.error("too many layers without keys and values", N_SHARED_KV_LAYERS).got(n_shared);
                    e.limit("one of each kind that has them")
                })?;
                attention.kv_layer = Some(source);
            }
            let has_values = self.has_tensor(&format!("blk.{i}.attn_v.weight"));
            let has_values = has_values || self.has_tensor(&format!("blk.{i}.attn_qkv.weight"));
            attention.values = if has_values || i >= own { Values::Normed } else { Values::NormedKeys };
            layer.has_output_scale = self.has_tensor(&format!("blk.{i}.layer_output_scale.weight"));
            if self.has_tensor(&format!("blk.{i}.ffn_gate_inp.weight"))
                && let Ffn::Dense(dense) = layer.ffn
            {
                let defaults = ExpertDefaults { gating: Gating::Softmax, normalized: true };
                let experts = self.experts(dense, defaults)?;
                layer.ffn = Ffn::Both(dense, self.required(N_EXPERTS, experts)?);
            }
        }
        config.layer_embedding_dim = self.usize(LAYER_EMBEDDING_DIM)?.filter(|&n| n > 0);
        if let Some(n) = config.layer_embedding_dim {
            self.at_most(LAYER_EMBEDDING_DIM, n, MAX_DIM / n_layers)?;
        }
        config.logit_softcap = self.softcaps()?[1];
        Ok(())
    }

    /// What Gemma 3n has that Gemma 4 has not: streams, and gates that are cut off. In files that do not say it, as in the
    /// published models, these are 95 % of the gates of the first 10 layers.
    pub fn gemma3n(&self, config: &mut Config) -> Result<()> {
        const MAX_STREAMS: usize = 16;
        let n_streams = self.required_size(N_STREAMS).and_then(|n| self.at_most(N_STREAMS, n, MAX_STREAMS))?;
        config.n_streams = n_streams;
        if let Some(active @ 1..) = self.usize(ACTIVE_STREAM)? {
            return Err(self
                .error("layers that compute with another stream than the first", ACTIVE_STREAM)
                .got(active)
                .into());
        }
        let cutoffs = match self.metadata().array(&self.full(CUTOFFS), ValueType::F32)? {
            Some(cutoffs) if cutoffs.len != config.n_layers() => {
                let e = self.error("not one value per layer", CUTOFFS).got(cutoffs.len);
                return Err(e.limit(format!("{} values", config.n_layers())).into());
            }
            Some(cutoffs) => cutoffs.iter().map(|x| if let Value::F32(x) = x { x } else { f32::NAN }).collect(),
            None => {
                (0..config.n_layers()).map(|i| if i < 10 { 1.644_853_6 } else { f32::NEG_INFINITY }).collect::<Vec<_>>()
            }
        };
        for (layer, cutoff) in config.layers.iter_mut().zip(cutoffs) {
            if let Ffn::Dense(dense) = &mut layer.ffn {
                dense.cutoff = Some(cutoff).filter(|cutoff| cutoff.is_finite());
            }
        }
        config.logit_softcap = config.logit_softcap.or(Some(30.0));
        Ok(())
    }

    /// Gives attentions with a window the rotation that Gemma's have: another base, and no scaling.
    pub fn rotate_windows(&self, config: &mut Config) -> Result<()> {
        let theta = self.theta(ROPE_THETA_WINDOWED)?.unwrap_or(DEFAULT_ROPE_THETA);
        config.give_windows(RopeConfig { theta, scaling: RopeScaling::None, factors: false, ..config.ropes[0] });
        Ok(())
    }

    /// The file's `logit_scale`, which multiplies logits.
    pub fn logit_scale(&self) -> Result<Option<f32>> {
        self.factor(LOGIT_SCALE)
    }

    /// Limits of attention scores and of logits.
    pub fn softcaps(&self) -> Result<[Option<f32>; 2]> {
        let cap = |name: &str| {
            let cap = self.factor(name)?;
            self.check(name, cap.unwrap_or(1.0), cap.is_none_or(|cap| cap > 0.0), "a number above 0")?;
            Ok::<_, Error>(cap)
        };
        Ok([cap(SOFTCAP)?, cap(LOGIT_SOFTCAP)?])
    }

    /// A number of the file under the architecture's name.
    pub fn number(&self, name: &str) -> Result<Option<usize>> {
        self.usize(name)
    }

    /// A bool of the file under the architecture's name.
    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        self.metadata().bool(&self.full(name))
    }

    /// Whether the file has a tensor.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// The style of the rotation: the file's, if its format has another one than GGUF.
    fn style(&self, style: RopeStyle) -> Result<RopeStyle> {
        match self.metadata().str(OUR_ROPE_STYLE)?.as_deref() {
            None => Ok(style),
            Some("half") => Ok(RopeStyle::Half),
            Some("interleaved") => Ok(RopeStyle::Interleaved),
            Some(_) => Err(self.metadata().error("bad value", OUR_ROPE_STYLE).limit("half or interleaved").into()),
        }
    }

    /// The number of layers, and of those after them that predict further tokens. Each has a tensor, or more.
    fn n_layers(&self) -> Result<(usize, usize)> {
        let (n, most) = (self.required_size(N_LAYERS)?, self.checkpoint.tensors().len());
        if n > most {
            let e = self.error("more layers than the file has tensors", N_LAYERS).got(n);
            return Err(e.limit(format!("at most {most}")).into());
        }
        let n_predict = self.usize(N_PREDICT_LAYERS)?.unwrap_or(0);
        if n_predict >= n {
            let e = self.error("not fewer than all layers", N_PREDICT_LAYERS).got(n_predict);
            return Err(e.limit(format!("less than {n}")).into());
        }
        Ok((n - n_predict, n_predict))
    }

    /// The heads of each layer.
    fn attention(&self, dim: usize, n_layers: usize) -> Result<Vec<AttentionConfig>> {
        let n_heads = self.required(N_HEADS, self.per_layer(N_HEADS, n_layers)?)?;
        // None in layers that do not attend; see `refuse_headless`.
        let n_kv_heads = self.per_layer_from(0, N_KV_HEADS, n_layers)?.unwrap_or_else(|| n_heads.clone());
        for (&n_heads, &n_kv_heads) in n_heads.iter().zip(&n_kv_heads) {
            if n_kv_heads > 0 && !n_heads.is_multiple_of(n_kv_heads) {
                let e = self.error("bad number of key-value heads", N_KV_HEADS).got(n_kv_heads);
                return Err(e.limit(format!("a divisor of the {n_heads} heads")).into());
            }
        }
        // Where heads have no length of their own, it is that of the first layer, as llama.cpp reads it.
        let head_dim = match self.size(KEY_LENGTH)? {
            Some(n) => n,
            None if dim.is_multiple_of(n_heads[0]) => dim / n_heads[0],
            None => {
                let e = self.error("bad number of heads", N_HEADS).got(n_heads[0]);
                return Err(e.limit(format!("a divisor of the embedding length {dim}")).into());
            }
        };
        let most = *n_heads.iter().max().expect("one at least");
        if head_dim > MAX_DIM / most {
            let e = self.error("heads too long", KEY_LENGTH).got(head_dim);
            return Err(e.limit(format!("at most {} for {most} heads", MAX_DIM / most)).into());
        }
        let value_dim = match self.size(VALUE_LENGTH)? {
            Some(n) => self.at_most(VALUE_LENGTH, n, MAX_DIM / most)?,
            None => head_dim,
        };
        let scale = self.factor(SCALE)?;
        let heads = n_heads.into_iter().zip(n_kv_heads).map(|(n_heads, n_kv_heads)| AttentionConfig {
            value_dim,
            scale: scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            ..AttentionConfig::new(n_heads, n_kv_heads, head_dim)
        });
        Ok(heads.collect())
    }

    /// The rotation of heads of this length, as the file has it for all layers.
    pub fn rope(&self, head_dim: usize, style: RopeStyle, context_length: usize) -> Result<RopeConfig> {
        let dim = self.size(ROPE_DIM)?.unwrap_or(head_dim);
        if dim > head_dim || !dim.is_multiple_of(2) {
            let e = self.error("bad number of rotated dimensions", ROPE_DIM).got(dim);
            return Err(e.limit(format!("an even number up to the head's {head_dim}")).into());
        }
        let theta = self.theta(ROPE_THETA)?.unwrap_or(DEFAULT_ROPE_THETA);
        Ok(RopeConfig {
            dim,
            theta,
            style: self.style(style)?,
            scaling: self.rope_scaling(context_length)?,
            factors: true,
        })
    }

    /// The base of a rotation's frequencies.
    pub fn theta(&self, name: &str) -> Result<Option<f32>> {
        let theta = self.f32(name)?;
        self.check(name, theta.unwrap_or(1.0), theta.is_none_or(|t| t >= 1.0 && t.is_finite()), "a number from 1 up")?;
        Ok(theta)
    }

    fn original_length(&self, context_length: usize) -> Result<usize> {
        Ok(self.size(ROPE_ORIGINAL_LENGTH)?.unwrap_or(context_length))
    }

    fn rope_scaling(&self, context_length: usize) -> Result<RopeScaling> {
        let factor = match self.f32(ROPE_SCALING_FACTOR)? {
            Some(factor) => Some((ROPE_SCALING_FACTOR, factor)),
            None => self.f32(ROPE_SCALE_LINEAR)?.map(|factor| (ROPE_SCALE_LINEAR, factor)),
        };
        if let Some((name, factor)) = factor {
            self.check(name, factor, factor > 0.0 && factor.is_finite(), "a number above 0")?;
        }
        let positive = |name: &str, default: f32| {
            let x = self.f32(name)?.unwrap_or(default);
            self.check(name, x, x > 0.0 && x.is_finite(), "a number above 0")?;
            Ok::<_, Error>(x)
        };
        let magnitude = match self.f32(ROPE_ATTN_FACTOR)? {
            Some(_) => positive(ROPE_ATTN_FACTOR, 1.0)?,
            None => positive(YARN_ATTN_FACTOR, 1.0)?,
        };
        let original_length = self.original_length(context_length)?;
        // A file without a type and with a factor means linear scaling, as llama.cpp reads it.
        let scaling = match self.metadata().str(&self.full(ROPE_SCALING_TYPE))?.as_deref() {
            Some("none") => RopeScaling::None,
            Some("linear") | None => match factor {
                Some((_, factor)) if factor != 1.0 => RopeScaling::Linear(factor),
                _ if self.has_tensor("rope_factors_long.weight") => RopeScaling::Long { original_length, magnitude },
                _ => RopeScaling::None,
            },
            Some("yarn") => {
                let (_, factor) = factor.ok_or_else(|| self.error("missing key", ROPE_SCALING_FACTOR))?;
                let ln = factor.max(1.0).ln();
                let less = match self.f32(YARN_LOG_MULTIPLIER)?.filter(|&multiplier| multiplier != 0.0) {
                    Some(multiplier) => 0.1 * multiplier * ln + 1.0,
                    None => 1.0,
                };
                RopeScaling::Yarn {
                    factor,
                    beta_fast: positive(YARN_BETA_FAST, 32.0)?,
                    beta_slow: positive(YARN_BETA_SLOW, 1.0)?,
                    original_length,
                    magnitude: magnitude * (0.1 * ln + 1.0) / less,
                }
            }
            Some("longrope") => RopeScaling::Long { original_length, magnitude },
            Some(other) => {
                let name: String = other.chars().take(40).flat_map(char::escape_debug).collect();
                let what = format!("rope scaling {name}; none, linear, yarn and longrope are supported");
                return Err(self.unsupported(what));
            }
        };
        if matches!(scaling, RopeScaling::None | RopeScaling::Linear(_)) && magnitude != 1.0 {
            return Err(self.unsupported(format!("{} = {magnitude}", self.full(ROPE_ATTN_FACTOR))));
        }
        Ok(scaling)
    }

    /// The number of tokens: key, vocabulary and embedding have to agree where they are there.
    fn vocab_size(&self) -> Result<usize> {
        let declared = self.size(VOCAB_SIZE)?;
        let tokens = self.metadata().strings("tokenizer.ggml.tokens")?.map(|tokens| tokens.len);
        if let (Some(declared), Some(tokens)) = (declared, tokens)
            && declared != tokens
        {
            let e = self.error("not the length of the vocabulary", VOCAB_SIZE);
            return Err(e.got(declared).limit(format!("{tokens}, the length of tokenizer.ggml.tokens")).into());
        }
        // A file without a vocabulary may still have weights: then the embedding knows.
        let rows = self.checkpoint.tensor("token_embd.weight").map(|t| t.n_rows());
        let n = self.required(VOCAB_SIZE, tokens.or(declared).or(rows))?;
        if n == 0 {
            return Err(self.metadata().error("empty vocabulary", "tokenizer.ggml.tokens").into());
        }
        self.at_most(VOCAB_SIZE, n, MAX_VOCAB_SIZE)
    }

    fn metadata(&self) -> &'a Metadata {
        &self.checkpoint.metadata
    }

    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn error(&self, what: &str, name: &str) -> FormatError {
        self.metadata().error(what, &self.full(name))
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.metadata().path().into(), what }
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error("missing key", name).into())
    }

    fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.metadata().usize(&self.full(name))
    }

    fn f32(&self, name: &str) -> Result<Option<f32>> {
        self.metadata().f32(&self.full(name))
    }

    /// A number of things, of which there is at least one.
    fn size(&self, name: &str) -> Result<Option<usize>> {
        match self.usize(name)? {
            Some(0) => Err(self.error("zero", name).got(0).limit("at least 1").into()),
            n => Ok(n),
        }
    }

    fn required_size(&self, name: &str) -> Result<usize> {
        self.required(name, self.size(name)?)
    }

    fn at_most(&self, name: &str, n: usize, limit: usize) -> Result<usize> {
        if n > limit {
            return Err(self.error("too large", name).got(n).limit(format!("at most {limit}")).into());
        }
        Ok(n)
    }

    fn check(&self, name: &str, got: f32, ok: bool, limit: &str) -> Result<()> {
        if ok { Ok(()) } else { Err(self.error("bad value", name).got(got).limit(limit).into()) }
    }

    /// A bool of each layer; `None` if the file has none, or no array of them.
    fn flags(&self, name: &str, n_layers: usize) -> Result<Option<Vec<bool>>> {
        let full = self.full(name);
        let Some(Value::Array(array)) = self.metadata().get(&full) else { return Ok(None) };
        let flag = |value| match value {
            Value::Bool(flag) => Ok(flag),
            Value::Unsigned(n) => Ok(n != 0),
            Value::Signed(n) => Ok(n != 0),
            other => Err(self.metadata().wrong(&full, &other, "bools")),
        };
        let flags = array.iter().take(n_layers).map(flag).collect::<Result<Vec<_>>>()?;
        if flags.len() < n_layers {
            let e = self.error("not one value per layer", name).got(array.len);
            return Err(e.limit(format!("{n_layers} values")).into());
        }
        Ok(Some(flags))
    }

    /// A size up to [`MAX_DIM`] of each layer, which the file may give once or layer by layer.
    fn per_layer(&self, name: &str, n_layers: usize) -> Result<Option<Vec<usize>>> {
        self.per_layer_from(1, name, n_layers)
    }

    /// The same where arrays may have values from `least` up.
    fn per_layer_from(&self, least: u8, name: &str, n_layers: usize) -> Result<Option<Vec<usize>>> {
        let full = self.full(name);
        let Some(Value::Array(array)) = self.metadata().get(&full) else {
            let n = self.size(name)?.map(|n| self.at_most(name, n, MAX_DIM)).transpose()?;
            return Ok(n.map(|n| vec![n; n_layers]));
        };
        let all = self.required_size(N_LAYERS)?; // also those that we do not run
        if array.len != all {
            let e = self.error("not one value per layer", name).got(array.len);
            return Err(e.limit(format!("{all} values")).into());
        }
        let values = array.iter().take(n_layers).map(|value| match value {
            Value::Unsigned(n) if (least.into()..=MAX_DIM as u64).contains(&n) => Ok(n as usize),
            Value::Signed(n) if (least.into()..=MAX_DIM as i64).contains(&n) => Ok(n as usize),
            Value::Unsigned(n) => {
                Err(self.error("bad value", name).got(n as i64).limit(format!("{least} to {MAX_DIM}")).into())
            }
            Value::Signed(n) => Err(self.error("bad value", name).got(n).limit(format!("{least} to {MAX_DIM}")).into()),
            other => Err(self.metadata().wrong(&full, &other, "integers")),
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        // Fewer only if the file changed meanwhile, which is found out later.
        if values.len() < n_layers { Err(self.error("missing values", name).into()) } else { Ok(Some(values)) }
    }
}
