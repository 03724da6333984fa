//! The transformer: what a model is ([`Config`], [`Weights`]), and how it computes ([`Session`]).
//!
//! A [`Model`] is immutable: a mapped file, what its header says, and views of its weights. Any number of threads share
//! it. What changes while tokens are computed is a [`Session`].

pub mod config;
mod forward;
mod kv_cache;
pub mod names;
mod rope;
pub mod session;
pub mod weights;

pub use config::{Config, RopeStyle};
pub use session::{Session, SessionOptions};
pub use weights::{LayerWeights, Weights};

use std::path::Path;

use crate::error::Result;
use crate::formats::{self, Checkpoint};

/// A model, ready to run: nothing of its weights has been read.
#[derive(Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    config: Config,
    weights: Weights,
}

impl Model {
    /// Opens the model file at `path`: reads and checks its header.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), [`Error::Format`](crate::Error::Format) or
    /// [`Error::Unsupported`](crate::Error::Unsupported), by what is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = formats::open(path)?;
        let config = Config::from_checkpoint(&checkpoint)?;
        let weights = Weights::from_checkpoint(&checkpoint, &config)?;
        Ok(Self { checkpoint, config, weights })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights, as views of the file.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The file: metadata and tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}
