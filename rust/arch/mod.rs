//! What differs between models, as data, and the table of architectures.
//!
//! A [`Config`] says which steps a forward pass takes, and how large each is. Its enums hold what runs today and are matched
//! without `_`: a variant that is added does not compile until it runs. An architecture is a file here and a row in the
//! table: it reads the metadata into a `Config`, and says which tensors a layer has beyond those that all have.
//!
//! Every number is checked here, once, and against the others; [`Weights`](crate::weights::Weights) then checks
//! that the tensors have the shapes that follow. Nothing after that doubts them.

mod keys;
mod llama;
mod qwen2;

use crate::checkpoint::{Checkpoint, Metadata};
use crate::error::{Error, Result};

pub use crate::kernels::RopeStyle;
pub use keys::{Keys, MAX_DIM, MAX_VOCAB_SIZE};

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
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// The layers, first to last; there is one at least.
    pub layers: Vec<LayerConfig>,
    /// The rotations that layers refer to by index.
    pub ropes: Vec<RopeConfig>,
}

/// A layer: a mixer of positions, then a feed-forward network, each behind a norm and added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// What looks at other positions.
    pub mixer: Mixer,
    /// What looks at each position by itself.
    pub ffn: Ffn,
}

/// What of a layer looks at other positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// Attention over all positions so far.
    Attention(AttentionConfig),
}

/// Causal attention with scores divided by the root of `head_dim`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// The rotation of queries and keys, of [`Config::ropes`].
    pub rope: usize,
}

/// A gated feed-forward network: `w_down(activation(w_gate x) * w_up x)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ffn {
    /// Length of the inner vector.
    pub hidden_dim: usize,
    /// What the gate goes through.
    pub activation: Activation,
}

/// What a gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
}

/// A rotary position embedding (RoPE, Su et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Rotated dimensions of a head, from its start; even, at most `head_dim`.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f32,
    /// Linear scaling: positions are divided by it. 1 for most models.
    pub scale: f32,
    /// Which dimensions form a pair.
    pub style: RopeStyle,
}

impl Config {
    /// Reads and checks the hyper-parameters of a model file.
    ///
    /// # Errors
    /// [`Error::Format`] for a missing or senseless value, [`Error::Unsupported`] for an architecture
    /// or a variant that we do not run, and for what is no model.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let architecture = Architecture::of(&checkpoint.metadata)?;
        (architecture.read)(&Keys::new(checkpoint, architecture.name))
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// The inner length of the largest feed-forward network.
    pub fn hidden_dim(&self) -> usize {
        self.layers.iter().map(|layer| layer.ffn.hidden_dim).max().unwrap_or(0)
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
        self.layers.iter().map(|layer| match &layer.mixer {
            Mixer::Attention(attention) => attention,
        })
    }
}

/// A family of models: a row in the table.
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Reads the hyper-parameters.
    pub read: fn(&Keys) -> Result<Config>,
    /// The tensors that its layers have beyond those that every layer has, by their names in GGUF.
    pub tensors: &'static [&'static str],
    /// Matrices whose rows its files keep in one tensor, one after another: the tensor, and those that it holds.
    pub fused: &'static [(&'static str, &'static [&'static str])],
}

/// The architectures that we run.
pub const ARCHITECTURES: &[Architecture] = &[llama::ARCHITECTURE, qwen2::ARCHITECTURE];

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
        let mut rows: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        rows.sort();
        assert_eq!(rows, files);
    }
}
