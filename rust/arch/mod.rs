//! What differs between models, as data, and the table of architectures.
//!
//! A [`Config`] says which steps a forward pass takes, and how large each is. Its enums hold what runs today and are matched
//! without `_`: a variant that is added does not compile until it runs. An architecture is a file here and a row in the
//! table: it reads the metadata into a `Config`, and says which tensors a layer has beyond those that all have.
//!
//! Every number is checked here, once, and against the others; [`Weights`](crate::weights::Weights) then checks
//! that the tensors have the shapes that follow. Nothing after that doubts them.

mod keys;

use crate::checkpoint::{Checkpoint, Metadata};
use crate::error::{Error, Result};

pub use crate::kernels::{Activation, KeyHead, LinearHeads, Mask, Norm, NormKind, RopeStyle, Rule};
pub use keys::{ExpertDefaults, Keys, MAX_DIM, MAX_VOCAB_SIZE};

/// The longest text of an encoder that we accept: some hundred thousand tokens, of which each sees each.
const MAX_ENCODED: usize = 1 << 17;

/// The hyper-parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family, as the file names it: `llama`.
    pub architecture: String,
    /// Length of the hidden state.
    pub dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest context in training. What the file says, and it may say anything: allocate by request.
    pub context_length: usize,
    /// All norms are of this kind.
    pub norm: Norm,
    /// What token embeddings are multiplied with. 1 for most models.
    pub embedding_scale: f32,
    /// What is added to token embeddings.
    pub embedding_sum: EmbeddingSum,
    /// Length of the embeddings that tokens have for each layer besides (Gemma 3n and 4).
    pub layer_embedding_dim: Option<usize>,
    /// Streams that layers predict and correct, of which they compute with the first (AltUp, Gemma 3n). 1 for most models.
    pub n_streams: usize,
    /// The layers, first to last; there is one at least.
    pub layers: Vec<LayerConfig>,
    /// Layers after those in the file, which predict further tokens (multi-token prediction). We do not run them.
    pub n_predict_layers: usize,
    /// The rotations that layers refer to by index.
    pub ropes: Vec<RopeConfig>,
    /// The name of the norm before the output, if there is one.
    pub output_norm: Option<&'static str>,
    /// Whether there are logits of a next token. An encoder has none.
    pub has_logits: bool,
    /// How the vectors of a text's tokens become one, where the file says so.
    pub pooling: Option<Pooling>,
    /// What a reranker's scores are made of.
    pub ranking: Ranking,
    /// What logits are multiplied with. 1 for most models.
    pub logit_scale: f32,
    /// Logits become `limit * tanh(logit / limit)` (Gemma 2).
    pub logit_softcap: Option<f32>,
}

/// What is added to the embedding of a token, before a norm (BERT, Devlin et al. 2019).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EmbeddingSum {
    /// A vector of its position, learned.
    pub positions: bool,
    /// A vector of the kind of text that it belongs to: always the first one here.
    pub types: bool,
    /// Whether the sum goes through a norm.
    pub normed: bool,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Not at all.
    None,
    /// Their mean.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
    /// What a classifier makes of them: how well a document answers a query.
    Rank,
}

impl Pooling {
    /// In the order of their numbers in GGUF.
    pub const ALL: [Self; 5] = [Self::None, Self::Mean, Self::Cls, Self::Last, Self::Rank];

    /// As llama.cpp calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Rank => "rank",
        }
    }
}

/// What a reranker makes of the vectors of a text's tokens, besides its matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranking {
    /// How they become one.
    pub pooling: Pooling,
    /// What comes out of the first matrix goes through GELU, and else through tanh.
    pub gelu: bool,
    /// Scores are probabilities of the labels.
    pub softmax: bool,
}

/// A layer: a mixer of positions, then a feed-forward network, each a branch that is added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// What looks at other positions.
    pub mixer: Mixer,
    /// What looks at each position by itself.
    pub ffn: Ffn,
    /// The norms around the two.
    pub norms: Norms,
    /// What a branch is multiplied with before it is added. 1 for most models.
    pub residual_scale: f32,
    /// Whether the file has a number that the residual stream is multiplied with in the end (Gemma 4).
    pub has_output_scale: bool,
}

/// The names in GGUF of the norms of a layer, where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Norms {
    /// Of what goes into the mixer.
    pub mixer: Option<&'static str>,
    /// Of what comes out of it, before it is added.
    pub after_mixer: Option<&'static str>,
    /// Of what goes into the feed-forward network. Without it this is what went into the mixer if `parallel`.
    pub ffn: Option<&'static str>,
    /// Of what comes out of it, before it is added.
    pub after_ffn: Option<&'static str>,
    /// Of the residual stream after the mixer was added to it (BERT).
    pub mixer_sum: Option<&'static str>,
    /// Of that with what went into the layer added to it once more (Jina's for code).
    pub mixer_sum_again: Option<&'static str>,
    /// Of the residual stream after the network was added to it.
    pub ffn_sum: Option<&'static str>,
    /// The feed-forward network takes what the mixer takes, and not what it gives.
    pub parallel: bool,
}

impl Norms {
    /// None at all.
    pub const NONE: Self = Self {
        mixer: None,
        after_mixer: None,
        ffn: None,
        after_ffn: None,
        mixer_sum: None,
        mixer_sum_again: None,
        ffn_sum: None,
        parallel: false,
    };
    /// Of the stream, after each branch was added to it: the first Transformers.
    pub const OF_SUMS: Self =
        Self { mixer_sum: Some("attn_output_norm"), ffn_sum: Some("layer_output_norm"), ..Self::NONE };
    /// Before each branch: most models.
    pub const BEFORE: Self = Self { mixer: Some("attn_norm"), ffn: Some("ffn_norm"), ..Self::NONE };
    /// Before and after each branch (Gemma 2).
    pub const AROUND: Self =
        Self { after_mixer: Some("post_attention_norm"), after_ffn: Some("post_ffw_norm"), ..Self::BEFORE };
    /// After each branch, and none before (OLMo 2).
    pub const AFTER: Self = Self { mixer: None, ffn: None, ..Self::AROUND };
    /// One before both branches, which go side by side (Cohere).
    pub const PARALLEL: Self = Self { ffn: None, parallel: true, ..Self::BEFORE };
    /// [`Norms::BEFORE`] in files that name the second one after what is before it.
    pub const BEFORE_AS_POST: Self = Self { ffn: Some("post_attention_norm"), ..Self::BEFORE };
}

/// What of a layer looks at other positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// Attention.
    Attention(AttentionConfig),
    /// Gated DeltaNet.
    DeltaNet(DeltaNetConfig),
    /// A short convolution between two gates.
    ShortConv(ShortConvConfig),
    /// Mamba-2.
    Mamba(MambaConfig),
    /// The two side by side, from one norm; what they give is added (Falcon-H1).
    AttentionAndMamba(AttentionConfig, MambaConfig),
    /// Attention whose queries, keys and values come from short vectors. A head is what is rotated, then the rest.
    Latent(AttentionConfig, LatentConfig),
}

impl Mixer {
    /// Its attention, if it has one.
    pub fn attention(&self) -> Option<&AttentionConfig> {
        match self {
            Mixer::Attention(attention) | Mixer::AttentionAndMamba(attention, _) | Mixer::Latent(attention, _) => {
                Some(attention)
            }
            Mixer::DeltaNet(_) | Mixer::ShortConv(_) | Mixer::Mamba(_) => None,
        }
    }

    fn attention_mut(&mut self) -> Option<&mut AttentionConfig> {
        match self {
            Mixer::Attention(attention) | Mixer::AttentionAndMamba(attention, _) | Mixer::Latent(attention, _) => {
                Some(attention)
            }
            Mixer::DeltaNet(_) | Mixer::ShortConv(_) | Mixer::Mamba(_) => None,
        }
    }

    /// What it remembers besides keys and values, in a model of this `dim`.
    pub fn recurrent(&self, dim: usize) -> Option<RecurrentConfig> {
        match self {
            Mixer::Attention(_) | Mixer::Latent(..) => None,
            Mixer::DeltaNet(c) => {
                let channels = 2 * c.heads.n_key_heads * c.heads.key_dim + c.heads.n_heads * c.heads.value_dim;
                Some(RecurrentConfig { channels, n_taps: c.n_taps, heads: Some(c.heads) })
            }
            Mixer::ShortConv(c) => Some(RecurrentConfig { channels: dim, n_taps: c.n_taps, heads: None }),
            Mixer::Mamba(c) | Mixer::AttentionAndMamba(_, c) => {
                Some(RecurrentConfig { channels: c.channels(), n_taps: c.n_taps, heads: Some(c.heads) })
            }
        }
    }
}

/// What a recurrent layer remembers: the last inputs of a convolution, and a state for each head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecurrentConfig {
    /// Channels of the convolution.
    pub channels: usize,
    /// Its taps, that of the token itself included.
    pub n_taps: usize,
    /// The heads, if there are any.
    pub heads: Option<LinearHeads>,
}

/// Gated DeltaNet (Yang et al. 2024), as Qwen3-Next and Qwen 3.5 have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaNetConfig {
    /// Its heads.
    pub heads: LinearHeads,
    /// Taps of the convolution.
    pub n_taps: usize,
    /// Strengths and decays come from one matrix: for each key head the strengths of its value heads, then their decays.
    pub fused_rates: bool,
    /// Queries, keys, values and gates come from one matrix, those of a key head and its value heads together.
    pub fused_heads: bool,
    /// The file has `log(-a)` for `a`.
    pub log_decays: bool,
}

/// A gated short convolution (LFM2): `out(c * conv(b * x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortConvConfig {
    /// Taps of the convolution.
    pub n_taps: usize,
}

/// Mamba-2 (Dao and Gu 2024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MambaConfig {
    /// Its heads; keys and queries are what the paper calls B and C, and key heads its groups.
    pub heads: LinearHeads,
    /// Taps of the convolution.
    pub n_taps: usize,
    /// What comes out goes through a norm of each group.
    pub normed: bool,
    /// The file has `log(-a)` for `a`.
    pub log_decays: bool,
}

impl MambaConfig {
    /// Channels of the convolution: values, then B, then C.
    pub fn channels(&self) -> usize {
        self.inner_dim() + 2 * self.heads.n_key_heads * self.heads.key_dim
    }

    /// The values of all heads.
    pub fn inner_dim(&self) -> usize {
        self.heads.n_heads * self.heads.value_dim
    }
}

/// Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads are products with one short vector of
/// each token.
///
/// In files that have the matrices of keys and values apart (`absorbed`), queries are multiplied with those of keys instead,
/// and what comes out of the attention with those of values: keys are what is rotated and the short vector itself, the same
/// for all heads, and values are that vector again. In older ones keys and values are expanded before they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentConfig {
    /// Length of the vector that queries come from; `None` if it is the layer's input.
    pub query_rank: Option<usize>,
    /// Length of the vector that keys and values come from.
    pub rank: usize,
    /// Numbers of a head's queries and keys that are rotated. Those of keys are the same for all heads.
    pub rope_dim: usize,
    /// Numbers of a head's queries and keys that are not.
    pub nope_dim: usize,
    /// Numbers of a head's values, as they were meant.
    pub value_dim: usize,
    /// Whether attention runs on the short vectors.
    pub absorbed: bool,
}

/// Attention with keys and values of all positions so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Length of a head's queries and keys.
    pub head_dim: usize,
    /// Length of a head's values.
    pub value_dim: usize,
    /// Where values come from.
    pub values: Values,
    /// The layer whose keys and values are read, if this one has none of its own.
    pub kv_layer: Option<usize>,
    /// Whether the values are the last `value_dim` numbers of the keys (latent attention).
    pub values_in_keys: bool,
    /// The rotation of queries and keys, of [`Config::ropes`], if there is one.
    pub rope: Option<usize>,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Who sees whom.
    pub mask: Mask,
    /// Scores become `limit * tanh(score / limit)` (Gemma 2).
    pub softcap: Option<f32>,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Each head has a score that belongs to no position (gpt-oss).
    pub sinks: bool,
    /// What comes out is multiplied with a sigmoid.
    pub gate: Gate,
    /// Queries of far positions are made longer.
    pub temperature: Option<Temperature>,
    /// The largest slope by which scores fall with the distance (ALiBi).
    pub alibi: Option<f32>,
}

impl AttentionConfig {
    /// Plain causal attention with the first of the ropes.
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads,
            head_dim,
            value_dim: head_dim,
            values: Values::Own,
            kv_layer: None,
            values_in_keys: false,
            rope: Some(0),
            scale: 1.0 / (head_dim as f32).sqrt(),
            mask: Mask::Causal,
            softcap: None,
            qk_norm: QkNorm::None,
            sinks: false,
            gate: Gate::None,
            temperature: None,
            alibi: None,
        }
    }
}

/// Where values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// A matrix of their own.
    Own,
    /// The same, behind a norm of each head, without weights (Gemma 4).
    Normed,
    /// Keys, as they are before their norm and rotation, behind such a norm (Gemma 4).
    NormedKeys,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Of each head, before the rotation.
    Heads,
    /// Of each head with weights of its own, before the rotation.
    OwnHeads,
    /// Of each head, after the rotation.
    RotatedHeads,
    /// Of all heads together, before the rotation.
    All,
}

/// The gate of an attention's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// None.
    None,
    /// As long as the queries, which it follows head by head in one matrix (Qwen3-Next).
    BesideQueries,
}

/// Queries at position `p` are multiplied with `1 + scale * ln(floor(p / length) + 1)` (Llama 4, Ministral 3).
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct Temperature {
    pub scale: f32,
    pub length: usize,
}

/// What of a layer looks at each position by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ffn {
    /// One network for all positions.
    Dense(DenseConfig),
    /// Of many networks, a few for each position.
    Experts(ExpertsConfig),
    /// Both, side by side (Gemma 4).
    Both(DenseConfig, ExpertsConfig),
}

/// A feed-forward network: `w_down(activation(w_gate x) * w_up x)`, or `w_down(activation(w_up x))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseConfig {
    /// Length of the inner vector.
    pub hidden_dim: usize,
    /// What it goes through.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gated: bool,
    /// So many deviations above the mean of a token's gates is what they count from, and those below are 0 (Gemma 3n).
    pub cutoff: Option<f32>,
}

/// A mixture of experts (Shazeer et al. 2017): a router chooses some for each token, whose results are weighted and added.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// Experts that there are.
    pub n_experts: usize,
    /// Experts that a token goes to.
    pub n_used: usize,
    /// Each of them.
    pub expert: DenseConfig,
    /// How the router's logits become weights.
    pub gating: Gating,
    /// Whether the weights of those that were chosen are divided by their sum.
    pub normalized: bool,
    /// What the weights are then multiplied with.
    pub weight_scale: f32,
    /// The expert that every token goes to besides.
    pub shared: Option<SharedConfig>,
    /// Experts come in so many groups, some of which are chosen first.
    pub groups: Groups,
}

/// An expert that every token goes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SharedConfig {
    /// Length of the inner vector.
    pub hidden_dim: usize,
    /// Whether what it gives is multiplied with the sigmoid of a product of its own.
    pub gated: bool,
}

/// How a router's logits become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
    /// Softmax over those that were chosen by their logits.
    SoftmaxOfChosen,
}

/// Groups of experts (DeepSeek-V3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Groups {
    pub n: usize,
    pub used: usize,
    /// Of so many of its best is the sum that a group is chosen by.
    pub best: usize,
}

/// A rotary position embedding (RoPE, Su et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Rotated dimensions of a head, from its start; even, at most `head_dim`.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// Which dimensions form a pair.
    pub style: RopeStyle,
    /// What makes it reach further than it was trained for.
    pub scaling: RopeScaling,
    /// Whether each frequency is divided by a factor of the file, where it has them (`rope_freqs.weight`).
    pub factors: bool,
}

/// How positions beyond those in training are reached. A file may also have factors by which each frequency is divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by this (Chen et al. 2023).
    Linear(f32),
    /// High frequencies stay, low ones are divided by `factor`, with a ramp between; cosines and sines times `magnitude`
    /// (YaRN, Peng et al. 2023).
    #[allow(missing_docs)]
    Yarn { factor: f32, beta_fast: f32, beta_slow: f32, original_length: usize, magnitude: f32 },
    /// A factor of each frequency, one of two: for contexts up to `original_length` and for longer ones; cosines and sines
    /// times `magnitude` (LongRoPE, Ding et al. 2024).
    #[allow(missing_docs)]
    Long { original_length: usize, magnitude: f32 },
}

impl Config {
    /// Reads and checks the hyper-parameters of a model file.
    ///
    /// # Errors
    /// [`Error::Format`] for a missing or senseless value, [`Error::Unsupported`] for an architecture
    /// or a variant that we do not run, and for what is no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let architecture = Architecture::of(&checkpoint.metadata)?;
        let keys = Keys::new(checkpoint, architecture.name);
        let config = (architecture.read)(&keys)?;
        keys.refuse_headless(&config)?;
        keys.refuse_variants(&config)?;
        Ok(config)
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The inner length of the largest feed-forward network.
    pub fn hidden_dim(&self) -> usize {
        let dims = self.layers.iter().map(|layer| match &layer.ffn {
            Ffn::Dense(dense) => dense.hidden_dim,
            Ffn::Experts(experts) => experts.expert.hidden_dim,
            Ffn::Both(dense, experts) => dense.hidden_dim.max(experts.expert.hidden_dim),
        });
        dims.max().unwrap_or(0)
    }

    /// Query heads of the layer that has most.
    pub fn n_heads(&self) -> usize {
        self.attention().map(|a| a.n_heads).max().unwrap_or(0)
    }

    /// Key and value heads of the layer that has most.
    pub fn n_kv_heads(&self) -> usize {
        self.attention().map(|a| a.n_kv_heads).max().unwrap_or(0)
    }

    /// Length of the longest heads.
    pub fn head_dim(&self) -> usize {
        self.attention().map(|a| a.head_dim).max().unwrap_or(0)
    }

    /// The layers that look at all positions.
    pub fn attention(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(|layer| layer.mixer.attention())
    }

    /// Whether a layer remembers more than keys and values: then a sequence cannot forget tokens in its middle.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| layer.mixer.recurrent(self.dim).is_some())
    }

    /// Whether a token sees those after it: then a text has to be computed at once.
    pub fn is_encoder(&self) -> bool {
        self.attention().any(|attention| matches!(attention.mask, Mask::All | Mask::Around(_)))
    }

    /// The most tokens of a sequence, whatever room it has: where positions are learned there are no others, and an encoder
    /// has buffers for all of a text at once.
    pub fn longest(&self) -> usize {
        match (self.is_encoder(), self.embedding_sum.positions) {
            (true, _) => self.context_length.min(MAX_ENCODED),
            (false, true) => self.context_length,
            (false, false) => usize::MAX,
        }
    }

    /// Changes each attention, with the number of its layer.
    fn each_attention(&mut self, mut change: impl FnMut(usize, &mut AttentionConfig)) {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            if let Some(attention) = layer.mixer.attention_mut() {
                change(i, attention);
            }
        }
    }

    /// Changes each feed-forward network, experts included.
    fn each_dense(&mut self, mut change: impl FnMut(&mut DenseConfig)) {
        for layer in &mut self.layers {
            match &mut layer.ffn {
                Ffn::Dense(dense) => change(dense),
                Ffn::Experts(experts) => change(&mut experts.expert),
                Ffn::Both(dense, experts) => {
                    change(dense);
                    change(&mut experts.expert);
                }
            }
        }
    }

    /// Gives attentions with a window a rotation of their own.
    fn give_windows(&mut self, rope: RopeConfig) {
        self.ropes.push(rope);
        let index = self.ropes.len() - 1;
        self.each_attention(|_, attention| {
            if matches!(attention.mask, Mask::Window(_) | Mask::Around(_)) {
                attention.rope = Some(index);
            }
        });
    }

    /// Gives all layers these norms.
    fn set_norms(&mut self, norms: Norms) {
        self.layers.iter_mut().for_each(|layer| layer.norms = norms);
    }
}

/// A family of models: a row in the table.
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Reads the hyper-parameters.
    pub read: fn(&Keys) -> Result<Config>,
}

macro_rules! architectures {
    ($($name:ident)*) => {
        $(mod $name;)*
        /// The architectures that we run.
        pub const ARCHITECTURES: &[Architecture] = &[$($name::ARCHITECTURE),*];
    };
}
architectures! {
    arcee
    bert
    cohere2
    command_r
    deepseek
    deepseek2
    dots1
    ernie4_5
    ernie4_5_moe
    exaone4
    falcon_h1
    gemma
    gemma2
    gemma3
    gemma3n
    gemma4
    gemma_embedding
    glm4
    glm4moe
    gpt_oss
    granite
    granitehybrid
    granitemoe
    hunyuan_dense
    hunyuan_moe
    jina_bert_v2
    lfm2
    lfm2moe
    llama
    minicpm
    minimax_m2
    mistral3
    modern_bert
    nemotron
    nomic_bert
    nomic_bert_moe
    olmo2
    olmoe
    phi2
    phi3
    qwen2
    qwen2moe
    qwen3
    qwen35
    qwen35moe
    qwen3moe
    qwen3next
    seed_oss
    smollm3
    starcoder2
}

/// What a GGUF file may hold that is no model, by its `general.type`.
const NO_MODELS: &[(&str, &str)] = &[
    ("adapter", "a LoRA adapter and no model: give the model that it was made for"),
    ("mmproj", "a projector for images or sound and no model: give the model that it belongs to"),
    ("imatrix", "an importance matrix for quantizing and no model"),
];

impl Architecture {
    /// The architecture called `name`.
    pub fn named(name: &str) -> Option<&'static Architecture> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// The architecture that a file says it is of.
    fn of(metadata: &Metadata) -> Result<&'static Architecture> {
        let unsupported = |what: String| Error::Unsupported { path: metadata.path().into(), what };
        let kind = metadata.str("general.type")?;
        if let Some((_, what)) = NO_MODELS.iter().find(|(name, _)| kind.as_deref() == Some(name)) {
            return Err(unsupported((*what).into()));
        }
        let name = metadata.str("general.architecture")?;
        let name = name.ok_or_else(|| metadata.error("missing key", "general.architecture"))?;
        if name == "clip" {
            return Err(unsupported(NO_MODELS[1].1.into()));
        }
        Self::named(&name).ok_or_else(|| {
            let name: String = name.chars().take(40).flat_map(char::escape_debug).collect();
            let (last, others) = ARCHITECTURES.split_last().expect("there are some");
            let others: Vec<_> = others.iter().map(|architecture| architecture.name).collect();
            unsupported(format!("architecture {name}; {} and {} are supported", others.join(", "), last.name))
        })
    }
}

/// A plain decoder with such layers, for tests.
#[cfg(test)]
pub fn plain(n_layers: usize, dim: usize, attention: AttentionConfig, hidden_dim: usize) -> Config {
    let layer = LayerConfig {
        mixer: Mixer::Attention(attention),
        ffn: Ffn::Dense(DenseConfig { hidden_dim, activation: Activation::Silu, gated: true, cutoff: None }),
        norms: Norms::BEFORE,
        residual_scale: 1.0,
        has_output_scale: false,
    };
    let (style, scaling) = (RopeStyle::Interleaved, RopeScaling::None);
    Config {
        architecture: "plain".into(),
        dim,
        vocab_size: 8,
        context_length: 8,
        norm: Norm { kind: NormKind::Rms, eps: 1e-5, offset: 0.0 },
        embedding_scale: 1.0,
        layer_embedding_dim: None,
        n_streams: 1,
        layers: vec![layer; n_layers],
        n_predict_layers: 0,
        ropes: vec![RopeConfig { dim: attention.head_dim, theta: 1e4, style, scaling, factors: true }],
        embedding_sum: EmbeddingSum::default(),
        output_norm: Some("output_norm"),
        has_logits: true,
        pooling: None,
        ranking: Ranking { pooling: Pooling::Last, gelu: false, softmax: false },
        logit_scale: 1.0,
        logit_softcap: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_here_is_a_row_in_the_table() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("rust/arch");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        files.retain(|name| !["mod", "keys"].contains(&&**name));
        files.sort();
        let mut rows: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.name.replace('-', "_")).collect();
        rows.sort();
        assert_eq!(rows, files);
    }
}
