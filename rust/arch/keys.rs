//! Reading hyper-parameters: the keys under the architecture's name, each checked when it is read.

use super::{Activation, AttentionConfig, Config, Ffn, LayerConfig, Mixer, RopeConfig, RopeStyle};
use crate::checkpoint::{Checkpoint, Metadata, Value};
use crate::error::{Error, FormatError, Result};

/// Longest vector that we accept: `dim`, `hidden_dim`, all heads together. A buffer has this length.
pub const MAX_DIM: usize = 1 << 20;
/// Largest vocabulary that we accept. The logits have this length.
pub const MAX_VOCAB_SIZE: usize = 1 << 24;

const DEFAULT_ROPE_THETA: f32 = 10_000.0;

const N_LAYERS: &str = "block_count";
const DIM: &str = "embedding_length";
const HIDDEN_DIM: &str = "feed_forward_length";
const N_HEADS: &str = "attention.head_count";
const N_KV_HEADS: &str = "attention.head_count_kv"; // as many as query heads when absent
const KEY_LENGTH: &str = "attention.key_length"; // dim / n_heads when absent
const VALUE_LENGTH: &str = "attention.value_length";
const NORM_EPS: &str = "attention.layer_norm_rms_epsilon";
const CAUSAL: &str = "attention.causal"; // false for encoders
const SLIDING_WINDOW: &str = "attention.sliding_window"; // keys that a position sees
const CONTEXT_LENGTH: &str = "context_length"; // longest in training
const VOCAB_SIZE: &str = "vocab_size"; // the length of the vocabulary when absent
const N_EXPERTS: &str = "expert_count";
const ROPE_THETA: &str = "rope.freq_base";
const ROPE_DIM: &str = "rope.dimension_count"; // all of a head when absent
const ROPE_SCALING_TYPE: &str = "rope.scaling.type"; // none, linear, yarn, longrope
const ROPE_SCALING_FACTOR: &str = "rope.scaling.factor";
const ROPE_SCALE_LINEAR: &str = "rope.scale_linear"; // the same, in files of 2023
const ROPE_ATTN_FACTOR: &str = "rope.scaling.attn_factor"; // multiplies the rotated values

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

    /// A decoder whose layers are all attention and a gated feed-forward network, each behind an RMSNorm.
    ///
    /// # Errors
    /// [`Error::Format`] for a missing or senseless value, [`Error::Unsupported`] for a variant that we do not run.
    pub fn decoder(&self, style: RopeStyle) -> Result<Config> {
        let n_layers = self.n_layers()?;
        let dim = self.required_size(DIM).and_then(|n| self.at_most(DIM, n, MAX_DIM))?;
        let attention = self.attention(dim, n_layers)?;
        let hidden_dims = self.required(HIDDEN_DIM, self.per_layer(HIDDEN_DIM, n_layers)?)?;
        let layers = attention.into_iter().zip(hidden_dims).map(|(attention, hidden_dim)| LayerConfig {
            mixer: Mixer::Attention(attention),
            ffn: Ffn { hidden_dim, activation: Activation::Silu },
        });
        let layers: Vec<_> = layers.collect();
        let Mixer::Attention(first) = layers[0].mixer;
        let ropes = vec![self.rope(first.head_dim, style)?];

        let norm_eps = self.required(NORM_EPS, self.f32(NORM_EPS)?)?;
        self.check(NORM_EPS, norm_eps, norm_eps > 0.0 && norm_eps < 1.0, "a number between 0 and 1")?;
        let context_length = self.required_size(CONTEXT_LENGTH)?;
        let vocab_size = self.vocab_size()?;
        self.refuse_variants(context_length)?;
        Ok(Config { architecture: self.architecture.into(), dim, vocab_size, context_length, norm_eps, layers, ropes })
    }

    /// Refuses what would be run wrongly.
    fn refuse_variants(&self, context_length: usize) -> Result<()> {
        if let Some(n @ 1..) = self.usize(N_EXPERTS)? {
            return Err(self.unsupported(format!("a mixture of {n} experts; dense models are supported")));
        }
        if self.metadata().bool(&self.full(CAUSAL))? == Some(false) {
            return Err(self.unsupported("attention without a causal mask (an encoder)".into()));
        }
        if let Some(n @ 1..) = self.usize(SLIDING_WINDOW)?
            && n < context_length
        {
            return Err(self.unsupported(format!("sliding-window attention over {n} of {context_length} positions")));
        }
        Ok(())
    }

    /// The number of layers. Each has a tensor, or more.
    fn n_layers(&self) -> Result<usize> {
        let (n, most) = (self.required_size(N_LAYERS)?, self.checkpoint.tensors().len());
        if n > most {
            let e = self.error("more layers than the file has tensors", N_LAYERS).got(n);
            return Err(e.limit(format!("at most {most}")).into());
        }
        Ok(n)
    }

    /// The heads of each layer.
    fn attention(&self, dim: usize, n_layers: usize) -> Result<Vec<AttentionConfig>> {
        let n_heads = self.required(N_HEADS, self.per_layer(N_HEADS, n_layers)?)?;
        let n_kv_heads = self.per_layer(N_KV_HEADS, n_layers)?.unwrap_or_else(|| n_heads.clone());
        for (&n_heads, &n_kv_heads) in n_heads.iter().zip(&n_kv_heads) {
            if !n_heads.is_multiple_of(n_kv_heads) {
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
        if let Some(n) = self.size(VALUE_LENGTH)?
            && n != head_dim
        {
            return Err(self.unsupported(format!("heads with values of length {n} and keys of length {head_dim}")));
        }
        let heads = n_heads.into_iter().zip(n_kv_heads);
        Ok(heads.map(|(n_heads, n_kv_heads)| AttentionConfig { n_heads, n_kv_heads, head_dim, rope: 0 }).collect())
    }

    fn rope(&self, head_dim: usize, style: RopeStyle) -> Result<RopeConfig> {
        let dim = self.size(ROPE_DIM)?.unwrap_or(head_dim);
        if dim > head_dim || !dim.is_multiple_of(2) {
            let e = self.error("bad number of rotated dimensions", ROPE_DIM).got(dim);
            return Err(e.limit(format!("an even number up to the head's {head_dim}")).into());
        }
        let theta = self.f32(ROPE_THETA)?.unwrap_or(DEFAULT_ROPE_THETA);
        self.check(ROPE_THETA, theta, theta >= 1.0 && theta.is_finite(), "a number from 1 up")?;
        Ok(RopeConfig { dim, theta, scale: self.rope_scale()?, style })
    }

    fn rope_scale(&self) -> Result<f32> {
        let factor = match self.f32(ROPE_SCALING_FACTOR)? {
            Some(factor) => Some((ROPE_SCALING_FACTOR, factor)),
            None => self.f32(ROPE_SCALE_LINEAR)?.map(|factor| (ROPE_SCALE_LINEAR, factor)),
        };
        if let Some((name, factor)) = factor {
            self.check(name, factor, factor > 0.0 && factor.is_finite(), "a number above 0")?;
        }
        if let Some(factor) = self.f32(ROPE_ATTN_FACTOR)?
            && factor != 1.0
        {
            return Err(self.unsupported(format!("{} = {factor}", self.full(ROPE_ATTN_FACTOR))));
        }
        // A file without a type and with a factor means linear scaling, as llama.cpp reads it.
        match self.metadata().str(&self.full(ROPE_SCALING_TYPE))?.as_deref() {
            Some("none") => Ok(1.0),
            Some("linear") | None => Ok(factor.map_or(1.0, |(_, factor)| factor)),
            Some(other) => {
                let name: String = other.chars().take(40).flat_map(char::escape_debug).collect();
                Err(self.unsupported(format!("rope scaling {name}; none and linear are supported")))
            }
        }
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

    /// A size up to [`MAX_DIM`] of each layer, which the file may give once or layer by layer.
    fn per_layer(&self, name: &str, n_layers: usize) -> Result<Option<Vec<usize>>> {
        let full = self.full(name);
        let Some(Value::Array(array)) = self.metadata().get(&full) else {
            let n = self.size(name)?.map(|n| self.at_most(name, n, MAX_DIM)).transpose()?;
            return Ok(n.map(|n| vec![n; n_layers]));
        };
        if array.len != n_layers {
            let e = self.error("not one value per layer", name).got(array.len);
            return Err(e.limit(format!("{n_layers} values")).into());
        }
        let values = array.iter().map(|value| match value {
            Value::Unsigned(n) if (1..=MAX_DIM as u64).contains(&n) => Ok(n as usize),
            Value::Signed(n) if (1..=MAX_DIM as i64).contains(&n) => Ok(n as usize),
            Value::Unsigned(n) => {
                Err(self.error("bad value", name).got(n as i64).limit(format!("1 to {MAX_DIM}")).into())
            }
            Value::Signed(n) => Err(self.error("bad value", name).got(n).limit(format!("1 to {MAX_DIM}")).into()),
            other => Err(self.metadata().wrong(&full, &other, "integers")),
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        // Fewer only if the file changed meanwhile, which is found out later.
        if values.len() < n_layers { Err(self.error("missing values", name).into()) } else { Ok(Some(values)) }
    }
}
