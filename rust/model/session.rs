//! A conversation with a model: what has been computed, and the state to go on from.

use std::path::Path;
use std::sync::Arc;

use super::Model;
use super::forward::{Buffers, Context, forward};
use super::kv_cache::KvCache;
use super::read_ahead::ReadAhead;
use super::rope::Rope;
use crate::error::{Error, Result};
use crate::generate::Forward;
use crate::kernels::{self, Kernels};
use crate::threads::{self, Interrupt};

/// Tokens that are computed together: enough that each unpacked weight is used often, few enough that the
/// buffers stay in the caches.
const BATCH: usize = 512;

/// How to run a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Positions there is room for. Room that is not used costs no memory.
    pub context_length: usize,
    /// Workers, the caller included.
    pub threads: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { context_length: 4096, threads: threads::available() }
    }
}

/// A key-value cache with its position and buffers. One owner at a time; any number of them share a [`Model`].
pub struct Session {
    model: Arc<Model>,
    kernels: &'static dyn Kernels,
    threads: usize,
    rope: Rope,
    cache: KvCache,
    tokens: Vec<u32>, // in the cache
    buffers: Buffers,
    ahead: ReadAhead,
    logits: Vec<f32>, // (vocab_size)
}

impl Session {
    /// Starts an empty session.
    ///
    /// # Errors
    /// [`Error::Argument`] if the context length or the number of threads is zero or absurd, [`Error::Changed`] if
    /// the model's file is not what it was.
    pub fn new(model: &Arc<Model>, options: SessionOptions) -> Result<Self> {
        let SessionOptions { context_length, threads } = options;
        if !(1..=threads::MAX_THREADS).contains(&threads) {
            return Err(Error::Argument(format!("threads must be 1 to {}, got {threads}", threads::MAX_THREADS)));
        }
        if context_length == 0 {
            return Err(Error::Argument("context_length must be at least 1, got 0".into()));
        }
        model.checkpoint().mapping().check()?;
        let too_long = || Error::Argument(format!("no memory for a context_length of {context_length}"));
        Ok(Self {
            model: Arc::clone(model),
            kernels: kernels::best()?,
            threads,
            rope: Rope::new(model.config(), model.weights()),
            cache: KvCache::new(model.config(), context_length).ok_or_else(too_long)?,
            tokens: Vec::new(),
            buffers: Buffers::default(),
            ahead: ReadAhead::new(model.weights()),
            logits: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Workers, the caller included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Number of tokens computed so far: the position of the next one.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Positions there is room for.
    pub fn context_length(&self) -> usize {
        self.cache.capacity
    }

    /// The tokens computed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all but the first `n` tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many.
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        if n > self.position() {
            let have = self.position();
            return Err(Error::Argument(format!("cannot truncate to {n} tokens: the session has {have}")));
        }
        self.tokens.truncate(n);
        Ok(())
    }

    /// Computes `tokens` and gives the logits of the last one, `(vocab_size)`.
    ///
    /// # Errors
    /// [`Error::Argument`] for no tokens or one that is not in the vocabulary, [`Error::ContextOverflow`],
    /// [`Error::Interrupted`], [`Error::Changed`]. On error nothing has changed.
    pub fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&[f32]> {
        let mut logits = std::mem::take(&mut self.logits);
        logits.resize(self.model.config().vocab_size, 0.0);
        let done = self.run(tokens, interrupt, Wanted::Last(&mut logits));
        self.logits = logits;
        done.map(|()| &*self.logits)
    }

    /// Computes `tokens` and gives the logits of each of them, `(tokens, vocab_size)`.
    ///
    /// # Errors
    /// As for [`Session::forward`].
    pub fn forward_all(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; tokens.len() * self.model.config().vocab_size];
        self.run(tokens, interrupt, Wanted::All(&mut logits))?;
        Ok(logits)
    }

    fn run(&mut self, tokens: &[u32], interrupt: &Interrupt, mut wanted: Wanted) -> Result<()> {
        let config = self.model.config();
        let vocab_size = config.vocab_size;
        if tokens.is_empty() {
            return Err(Error::Argument("no tokens to compute".into()));
        }
        if let Some(bad) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Argument(format!("token {bad} is not in the vocabulary of {vocab_size}")));
        }
        let (before, capacity) = (self.position(), self.context_length());
        if tokens.len() > capacity - before {
            return Err(Error::ContextOverflow { tokens: before + tokens.len(), context_length: capacity });
        }
        let mapping = self.model.checkpoint().mapping();
        let cx = Context { kernels: self.kernels, threads: self.threads, interrupt, mapping };
        let mut done = 0;
        for batch in tokens.chunks(BATCH) {
            let logits = match &mut wanted {
                Wanted::All(logits) => &mut logits[done * vocab_size..(done + batch.len()) * vocab_size],
                Wanted::Last(logits) if done + batch.len() == tokens.len() => logits,
                Wanted::Last(_) => &mut [],
            };
            forward(
                &cx,
                config,
                self.model.weights(),
                &self.rope,
                &mut self.cache,
                &mut self.buffers,
                &mut self.ahead,
                batch,
                before + done,
                logits,
            )?;
            done += batch.len();
            mapping.check()?; // the file was the model up to here, or nothing of this gets out
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }
}

enum Wanted<'a> {
    Last(&'a mut [f32]),
    All(&'a mut [f32]),
}

impl Forward for Session {
    fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&[f32]> {
        Session::forward(self, tokens, interrupt)
    }

    fn position(&self) -> usize {
        Session::position(self)
    }

    fn context_length(&self) -> usize {
        Session::context_length(self)
    }

    fn path(&self) -> &Path {
        self.model.checkpoint().mapping().path()
    }
}
