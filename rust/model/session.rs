//! A conversation with a model: what has been computed, and the state to go on from.

use std::path::Path;
use std::sync::Arc;

use super::Model;
use super::forward::{Buffers, Context, forward};
use super::kv_cache::KvCache;
use super::read_ahead::ReadAhead;
use super::rope::Rope;
use super::saved::{self, Saved, State};
use crate::error::{Error, Result};
use crate::generate::Forward;
use crate::kernels::{self, KV_TYPES, Kernels};
use crate::quant::DType;
use crate::sampling::Rng;
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
    /// How keys and values are stored, one of [`KV_TYPES`]. Sessions with others are not the same sessions.
    pub kv_type: DType,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { context_length: 4096, threads: threads::available(), kv_type: DType::F16 }
    }
}

/// A key-value cache with its position and buffers. One owner at a time; any number of them share a [`Model`].
pub struct Session {
    model: Arc<Model>,
    kernels: &'static dyn Kernels,
    threads: usize,
    rope: Rope,
    context_length: usize,
    cache: KvCache,
    tokens: Vec<u32>,            // in the cache
    shifted_from: Option<usize>, // from here on the cache still knows of tokens that were discarded
    rng: Option<Rng>,            // where the last answer left off
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
        let SessionOptions { context_length, threads, kv_type } = options;
        if !(1..=threads::MAX_THREADS).contains(&threads) {
            return Err(Error::Argument(format!("threads must be 1 to {}, got {threads}", threads::MAX_THREADS)));
        }
        if context_length == 0 {
            return Err(Error::Argument("context_length must be at least 1, got 0".into()));
        }
        let head_dim = model.config().head_dim;
        if !KV_TYPES.contains(&kv_type) || kv_type.row_bytes(head_dim).is_none() {
            let what =
                format!("kv_type {kv_type} cannot hold the keys of this model, {head_dim} numbers a head: use F16");
            return Err(Error::Argument(what));
        }
        model.checkpoint().mapping().check()?;
        let too_long = || Error::Argument(format!("no memory for a context_length of {context_length}"));
        Ok(Self {
            model: Arc::clone(model),
            kernels: kernels::best()?,
            threads,
            rope: Rope::new(model.config(), model.weights()),
            cache: KvCache::new(model.config(), kv_type, context_length).ok_or_else(too_long)?,
            context_length,
            tokens: Vec::new(),
            shifted_from: None,
            rng: None,
            buffers: Buffers::default(),
            ahead: ReadAhead::new(model.checkpoint().mapping(), model.weights()),
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
        self.context_length
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
        self.shifted_from = self.shifted_from.filter(|&from| n > from);
        Ok(())
    }

    /// Keeps what there is of `tokens` already, and forgets the rest: all but the longest common prefix. Gives its length.
    ///
    /// The last of `tokens` is never part of it, so that something is left to compute the logits from. Nor is what
    /// [`Session::shift`] has moved: it was computed with other tokens before it.
    pub fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
        let most = self.exact().min(tokens.len().saturating_sub(1));
        let n = self.tokens[..most].iter().zip(tokens).take_while(|(have, wanted)| have == wanted).count();
        self.truncate(n).expect("no more than there are");
        n
    }

    /// Makes room: forgets `n_discard` tokens after the first `n_keep`. Those after them move down, and their keys are
    /// rotated to their new positions, without computing anything again.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many.
    pub fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()> {
        let have = self.position();
        let gap = n_keep.saturating_add(n_discard);
        if gap > have {
            return Err(Error::Argument(format!("cannot discard {n_discard} tokens after {n_keep}: there are {have}")));
        }
        if gap == have || n_discard == 0 {
            return self.truncate(have - n_discard);
        }
        let mut turns = Vec::new();
        self.rope.turns_back(&mut turns, n_discard);
        self.cache.shift(self.kernels, &turns, n_keep, n_discard, have);
        self.tokens.drain(n_keep..gap);
        self.shifted_from = Some(self.shifted_from.map_or(n_keep, |from| from.min(n_keep)));
        Ok(())
    }

    /// So many tokens, from the first, are in the cache just as computing them again would have them.
    fn exact(&self) -> usize {
        self.shifted_from.unwrap_or(self.position())
    }

    /// Saves the session to the file at `path`, which is replaced in one step: the tokens, the cache, and where the
    /// random numbers are. [`Session::load`] brings it back.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written. What was at `path` is still there then.
    pub fn save(&self, path: &Path) -> Result<()> {
        let state = State { tokens: &self.tokens, shifted_from: self.shifted_from, rng: self.rng.as_ref() };
        saved::write(path, &self.model, &self.cache, state)
    }

    /// Saves the first `n` tokens alone, to be the start of other sessions, which [`Session::load_prefix`] makes.
    /// Fewer, if [`Session::shift`] has moved some of them.
    ///
    /// # Errors
    /// As for [`Session::save`].
    pub fn save_prefix(&self, path: &Path, n: usize) -> Result<()> {
        let tokens = &self.tokens[..n.min(self.exact())];
        saved::write(path, &self.model, &self.cache, State { tokens, shifted_from: None, rng: None })
    }

    /// Brings a saved session back. Its cache is mapped: it is in memory once for all sessions that come from the file,
    /// in whatever process, and each adds to it for itself.
    ///
    /// # Errors
    /// [`Error::SavedSession`] if the file does not hold a session of this model, [`Error::ContextOverflow`] if
    /// it is longer than the context, [`Error::File`] if it cannot be read; as for [`Session::new`].
    pub fn load(model: &Arc<Model>, path: &Path, options: SessionOptions) -> Result<Self> {
        let mut session = Self::new(model, options)?;
        let saved = Saved::open(path, model, options.kv_type)?;
        let (tokens, context_length) = (saved.tokens().len(), options.context_length);
        if tokens > context_length {
            return Err(Error::ContextOverflow { tokens, context_length });
        }
        (session.shifted_from, session.rng) = (saved.shifted_from(), saved.rng());
        (session.cache, session.tokens) = saved.lay(session.cache, tokens)?;
        Ok(session)
    }

    /// Starts a session with as much of a saved one as fits, and with random numbers of its own.
    ///
    /// # Errors
    /// As for [`Session::load`], but that nothing is too long.
    pub fn load_prefix(model: &Arc<Model>, path: &Path, options: SessionOptions) -> Result<Self> {
        let mut session = Self::new(model, options)?;
        let saved = Saved::open(path, model, options.kv_type)?;
        let exact = saved.shifted_from().unwrap_or(saved.tokens().len());
        (session.cache, session.tokens) = saved.lay(session.cache, exact.min(options.context_length))?;
        Ok(session)
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
        let (before, context_length) = (self.position(), self.context_length());
        if tokens.len() > context_length - before {
            return Err(Error::ContextOverflow { tokens: before + tokens.len(), context_length });
        }
        let n = tokens.len() * self.model.config().vocab_size;
        let mut logits = Vec::new();
        let bytes = n as u128 * 4;
        logits.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { bytes, what: "logits" })?;
        logits.resize(n, 0.0);
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
            self.cache.check()?; // and so is that of a saved session
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

    fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
        Session::keep_prefix(self, tokens)
    }

    fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()> {
        Session::shift(self, n_keep, n_discard)
    }

    fn rng(&mut self) -> &mut Option<Rng> {
        &mut self.rng
    }

    fn path(&self) -> &Path {
        self.model.checkpoint().mapping().path()
    }
}
