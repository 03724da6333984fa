//! What differs between models, as data.
//!
//! Every number is checked here, once, and against the others; [`Weights`](super::Weights) then checks
//! that the tensors have the shapes that follow. Nothing after that doubts them.

use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Metadata, Value, ValueType};
pub use crate::kernels::RopeStyle;
use crate::model::names::{self, key};

/// Longest vector that we accept: `dim`, `hidden_dim`, all heads together. A buffer has this length.
pub const MAX_DIM: usize = 1 << 20;
/// Largest vocabulary that we accept. The logits have this length.
pub const MAX_VOCAB_SIZE: usize = 1 << 24;

const DEFAULT_ROPE_THETA: f32 = 10_000.0;

/// The hyper-parameters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family, as the file names it: `llama`.
    pub architecture: String,
    /// Length of the hidden state.
    pub dim: usize,
    /// Length of the feed-forward's inner vector.
    pub hidden_dim: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Longest context in training. What the file says, and it may say anything: allocate by request.
    pub context_length: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// Base of the rotation's frequencies.
    pub rope_theta: f32,
    /// Rotated dimensions of a head, from its start; even, at most `head_dim`.
    pub rope_dim: usize,
    /// Which dimensions form a pair.
    pub rope: RopeStyle,
    /// Linear scaling: positions are divided by it. 1 for most models.
    pub rope_scale: f32,
}

impl Config {
    /// Reads and checks the hyper-parameters of a model file.
    ///
    /// # Errors
    /// [`Error::Format`] for a missing or senseless value, [`Error::Unsupported`] for an architecture
    /// or a variant that we do not run.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let metadata = &checkpoint.metadata;
        let unsupported = |what: String| Error::Unsupported { path: metadata.path().to_path_buf(), what };

        let architecture = metadata.str("general.architecture")?;
        let architecture = architecture.ok_or_else(|| metadata.error("missing key", "general.architecture"))?;
        if architecture != "llama" {
            let name: String = architecture.chars().take(40).flat_map(char::escape_debug).collect();
            return Err(unsupported(format!("architecture {name}; llama is supported")));
        }
        let keys = Keys { metadata, architecture };

        let n_layers = keys.required_size(key::N_LAYERS)?;
        let most = checkpoint.tensors().len() / names::layer::ALL.len();
        if n_layers > most {
            let e = keys.error("more layers than the file has tensors for", key::N_LAYERS);
            return Err(e.got(n_layers).limit(format!("at most {most}")).into());
        }
        let size = |name| keys.required_size(name).and_then(|n| keys.at_most(name, n, MAX_DIM));
        let dim = size(key::DIM)?;
        let hidden_dim = keys.required(key::HIDDEN_DIM, keys.per_layer(key::HIDDEN_DIM, n_layers)?)?;
        let hidden_dim = keys.at_most(key::HIDDEN_DIM, hidden_dim, MAX_DIM)?;

        let n_heads = keys.required(key::N_HEADS, keys.per_layer(key::N_HEADS, n_layers)?)?;
        let n_heads = keys.at_most(key::N_HEADS, n_heads, MAX_DIM)?;
        let n_kv_heads = keys.per_layer(key::N_KV_HEADS, n_layers)?.unwrap_or(n_heads);
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            let e = keys.error("bad number of key-value heads", key::N_KV_HEADS).got(n_kv_heads);
            return Err(e.limit(format!("a divisor of the {n_heads} heads")).into());
        }
        let head_dim = match keys.size(key::KEY_LENGTH)? {
            Some(n) => n,
            None if dim.is_multiple_of(n_heads) => dim / n_heads,
            None => {
                let e = keys.error("bad number of heads", key::N_HEADS).got(n_heads);
                return Err(e.limit(format!("a divisor of the embedding length {dim}")).into());
            }
        };
        if head_dim > MAX_DIM / n_heads {
            let e = keys.error("heads too long", key::KEY_LENGTH).got(head_dim);
            return Err(e.limit(format!("at most {} for {n_heads} heads", MAX_DIM / n_heads)).into());
        }
        if let Some(n) = keys.size(key::VALUE_LENGTH)?
            && n != head_dim
        {
            return Err(unsupported(format!("heads with values of length {n} and keys of length {head_dim}")));
        }

        let rope_dim = keys.size(key::ROPE_DIM)?.unwrap_or(head_dim);
        if rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
            let e = keys.error("bad number of rotated dimensions", key::ROPE_DIM).got(rope_dim);
            return Err(e.limit(format!("an even number up to the head's {head_dim}")).into());
        }
        let rope_theta = keys.f32(key::ROPE_THETA)?.unwrap_or(DEFAULT_ROPE_THETA);
        keys.check(key::ROPE_THETA, rope_theta, rope_theta >= 1.0 && rope_theta.is_finite(), "a number from 1 up")?;
        let rope_scale = keys.rope_scale()?;

        let norm_eps = keys.required(key::NORM_EPS, keys.f32(key::NORM_EPS)?)?;
        keys.check(key::NORM_EPS, norm_eps, norm_eps > 0.0 && norm_eps < 1.0, "a number between 0 and 1")?;
        let context_length = keys.required_size(key::CONTEXT_LENGTH)?;
        let vocab_size = keys.vocab_size(checkpoint)?;

        if let Some(n @ 1..) = keys.usize(key::N_EXPERTS)? {
            return Err(unsupported(format!("a mixture of {n} experts; dense models are supported")));
        }
        if metadata.bool(&keys.full(key::CAUSAL))? == Some(false) {
            return Err(unsupported("attention without a causal mask (an encoder)".into()));
        }
        if let Some(n @ 1..) = keys.usize(key::SLIDING_WINDOW)?
            && n < context_length
        {
            return Err(unsupported(format!("sliding-window attention over {n} of {context_length} positions")));
        }

        Ok(Self {
            architecture: architecture.into(),
            dim,
            hidden_dim,
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size,
            context_length,
            norm_eps,
            rope_theta,
            rope_dim,
            rope: RopeStyle::Interleaved,
            rope_scale,
        })
    }
}

/// The hyper-parameters under the architecture's name.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn error(&self, what: &str, name: &str) -> crate::FormatError {
        self.metadata.error(what, &self.full(name))
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error("missing key", name).into())
    }

    fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.usize(&self.full(name))
    }

    fn f32(&self, name: &str) -> Result<Option<f32>> {
        self.metadata.f32(&self.full(name))
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

    /// A size that the file may give once or once a layer; we run models where all layers agree.
    fn per_layer(&self, name: &str, n_layers: usize) -> Result<Option<usize>> {
        let full = self.full(name);
        let Some(Value::Array(array)) = self.metadata.get(&full) else { return self.size(name) };
        if !matches!(array.element, ValueType::U32 | ValueType::I32) {
            let got = format!("an array of {:?}", array.element);
            return Err(self.error("wrong value type", name).got(got).limit("integers").into());
        }
        if array.len != n_layers {
            let e = self.error("not one value a layer", name).got(array.len);
            return Err(e.limit(format!("{n_layers} values")).into());
        }
        let mut values = array.bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("a chunk of 4")));
        let first = values.next().expect("at least one layer") as usize;
        if first == 0 || first > i32::MAX as usize {
            return Err(self.error("bad value", name).got(first as i32).limit("at least 1").into());
        }
        if let Some(other) = values.find(|&v| v as usize != first) {
            return Err(Error::Unsupported {
                path: self.metadata.path().to_path_buf(),
                what: format!("layers that differ: {full} is {first} and {other}"),
            });
        }
        Ok(Some(first))
    }

    fn rope_scale(&self) -> Result<f32> {
        let unsupported = |what| Error::Unsupported { path: self.metadata.path().to_path_buf(), what };
        let factor = match self.f32(key::ROPE_SCALING_FACTOR)? {
            Some(factor) => Some((key::ROPE_SCALING_FACTOR, factor)),
            None => self.f32(key::ROPE_SCALE_LINEAR)?.map(|factor| (key::ROPE_SCALE_LINEAR, factor)),
        };
        if let Some((name, factor)) = factor {
            self.check(name, factor, factor > 0.0 && factor.is_finite(), "a number above 0")?;
        }
        if let Some(factor) = self.f32(key::ROPE_ATTN_FACTOR)?
            && factor != 1.0
        {
            return Err(unsupported(format!("{} = {factor}", self.full(key::ROPE_ATTN_FACTOR))));
        }
        // A file without a type and with a factor means linear scaling, as llama.cpp reads it.
        match self.metadata.str(&self.full(key::ROPE_SCALING_TYPE))? {
            Some("none") => Ok(1.0),
            Some("linear") | None => Ok(factor.map_or(1.0, |(_, factor)| factor)),
            Some(other) => {
                let name: String = other.chars().take(40).flat_map(char::escape_debug).collect();
                Err(unsupported(format!("rope scaling {name}; none and linear are supported")))
            }
        }
    }

    /// The number of tokens: key, vocabulary and embedding have to agree where they are there.
    fn vocab_size(&self, checkpoint: &Checkpoint) -> Result<usize> {
        let declared = self.size(key::VOCAB_SIZE)?;
        let tokens = self.metadata.strings("tokenizer.ggml.tokens")?.map(|tokens| tokens.len);
        if let (Some(declared), Some(tokens)) = (declared, tokens)
            && declared != tokens
        {
            let e = self.error("not the length of the vocabulary", key::VOCAB_SIZE);
            return Err(e.got(declared).limit(format!("{tokens}, the length of tokenizer.ggml.tokens")).into());
        }
        // A file without a vocabulary may still have weights: then the embedding knows.
        let rows = checkpoint.tensor(names::TOKEN_EMBEDDING).map(|t| t.n_rows());
        let n = self.required(key::VOCAB_SIZE, tokens.or(declared).or(rows))?;
        if n == 0 {
            return Err(self.metadata.error("empty vocabulary", "tokenizer.ggml.tokens").into());
        }
        self.at_most(key::VOCAB_SIZE, n, MAX_VOCAB_SIZE)
    }
}
