//! A model: a checkpoint, what its header says, and views of its weights.
//!
//! Immutable: any number of threads share it. What changes while tokens are computed is a [`Session`](crate::Session).

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::adapter::Adapter;
use crate::arch::Config;
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::error::Result;
use crate::formats;
use crate::mapping::LoadOptions;
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;

/// A model, ready to run: nothing of its weights has been read.
pub struct Model {
    checkpoint: Arc<Checkpoint>,
    config: Arc<Config>,
    weights: Arc<Weights>,
    tokenizer: OnceLock<Arc<Tokenizer>>,
    engine: OnceLock<Arc<Engine>>,
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
    /// As for [`Model::open`]; those of `options`, see [`LoadOptions`].
    pub fn open_with(path: &Path, options: LoadOptions, interrupt: &Interrupt) -> Result<Self> {
        let (checkpoint, (config, weights)) = formats::open_with(path, options, interrupt, |checkpoint| {
            let config = Config::from_checkpoint(checkpoint)?;
            let weights = Weights::from_checkpoint(checkpoint, &config)?;
            Ok((config, weights))
        })?;
        Ok(Self {
            checkpoint: Arc::new(checkpoint),
            config: Arc::new(config),
            weights: Arc::new(weights),
            tokenizer: OnceLock::new(),
            engine: OnceLock::new(),
        })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tokenizer of the file's vocabulary. A model can run without one.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_metadata`].
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let metadata = self.checkpoint.tokenizer_metadata()?;
        let made = Arc::new(self.checkpoint.checked(|| Tokenizer::from_metadata(metadata))?);
        Ok(self.tokenizer.get_or_init(|| made))
    }

    /// What computes with its weights; made when first used.
    ///
    /// # Errors
    /// As for [`Engine::new`].
    pub(crate) fn engine(&self) -> Result<&Arc<Engine>> {
        if let Some(engine) = self.engine.get() {
            return Ok(engine);
        }
        let made = Arc::new(Engine::new(&self.checkpoint, &self.config, &self.weights)?);
        Ok(self.engine.get_or_init(|| made))
    }

    /// An adapter (LoRA) for this model: a GGUF file, or a directory as PEFT writes it. It is mapped, and so shared like the
    /// model; nothing is merged.
    ///
    /// # Errors
    /// As for [`Adapter::open`].
    pub fn adapter(&self, path: &Path) -> Result<Adapter> {
        Adapter::open(path, &self.checkpoint, &self.config, &self.weights)
    }

    /// The file: metadata and tensors.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({})", self.checkpoint.path().display())
    }
}
