//! The transformer: a model, and how it computes ([`Session`]).
//!
//! A [`Model`] is immutable: a mapped file, what its header says, and views of its weights. Any number of threads share
//! it. What changes while tokens are computed is a [`Session`].

mod forward;
mod kv_cache;
mod read_ahead;
mod rope;
pub mod saved;
pub mod session;

pub use session::{Session, SessionOptions};

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::arch::Config;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::formats;
use crate::mapping::LoadOptions;
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// A model, ready to run: nothing of its weights has been read.
#[derive(Debug)]
pub struct Model {
    checkpoint: Arc<Checkpoint>,
    config: Config,
    weights: Weights,
    tokenizer: OnceLock<Arc<Tokenizer>>,
}

impl Model {
    /// Opens the model file at `path`: reads and checks its header.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File), [`Error::Format`](crate::Error::Format) or
    /// [`Error::Unsupported`](crate::Error::Unsupported), by what is wrong.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, LoadOptions::default(), &Interrupt::never())
    }

    /// Opens the model file at `path`, and brings it into memory as `options` say.
    ///
    /// # Errors
    /// As for [`Model::open`] and [`Mapping::open_with`](crate::mapping::Mapping::open_with).
    pub fn open_with(path: &Path, options: LoadOptions, interrupt: &Interrupt) -> Result<Self> {
        let (checkpoint, (config, weights)) = formats::open_with(path, options, interrupt, |checkpoint| {
            let config = Config::from_checkpoint(checkpoint)?;
            let weights = Weights::from_checkpoint(checkpoint, &config)?;
            Ok((config, weights))
        })?;
        Ok(Self { checkpoint: Arc::new(checkpoint), config, weights, tokenizer: OnceLock::new() })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The weights, as views of the file.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The tokenizer of the file's vocabulary. A model can run without one.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_metadata`].
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let metadata = &self.checkpoint.metadata;
        let made = Arc::new(self.checkpoint.checked(|| Tokenizer::from_metadata(metadata))?);
        Ok(self.tokenizer.get_or_init(|| made))
    }

    /// The file: metadata and tensors.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }
}
