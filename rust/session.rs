//! A conversation with a model: one sequence on its engine, and the state to go on from.

use std::path::Path;
use std::sync::Arc;

use crate::adapter::{self, Adapter};
use crate::engine::{Engine, Span, Want};
use crate::error::{Error, Result};
use crate::generate::Forward;
use crate::kernels::Changes;
use crate::kv::Sequence;
use crate::kv::saved::{self, Of, Saved, State};
use crate::model::Model;
use crate::quant::DType;
use crate::sampling::Rng;
use crate::threads::{self, Interrupt};

/// How to run a session.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Positions there is room for. Room that is not used costs no memory.
    pub context_length: usize,
    /// Workers, the caller included.
    pub threads: usize,
    /// How keys and values are stored, F16 or Q8_0. Sessions with others are not the same sessions.
    pub kv_type: DType,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { context_length: 4096, threads: threads::available(), kv_type: DType::F16 }
    }
}

/// A sequence of tokens on a model. One owner at a time; any number of them share a [`Model`], and sessions of several
/// threads compute side by side.
pub struct Session {
    model: Arc<Model>,
    engine: Arc<Engine>,
    sequence: Sequence,
    adapters: Arc<Changes>,
    adapters_hash: u64, // what is computed with others is no use here
    threads: usize,
    rng: Option<Rng>, // where the last answer left off
    logits: Vec<f32>, // (vocab_size), of the last pass
}

impl Session {
    /// Starts an empty session.
    ///
    /// # Errors
    /// [`Error::Argument`] if the context length or the number of threads is zero or absurd, [`Error::Changed`] if
    /// the model's file is not what it was, [`Error::Unsupported`] if the model is an encoder.
    pub fn new(model: &Arc<Model>, options: SessionOptions) -> Result<Self> {
        Self::adapted(model, options, &[])
    }

    /// Starts an empty session of the model as these adapters change it, each as much as its number says: 1 is as it was
    /// trained. The model's own weights stay as they are mapped, and other sessions share them.
    ///
    /// # Errors
    /// [`Error::Argument`] if an adapter is one of another model, or if a number is none; as for [`Session::new`].
    pub fn adapted(model: &Arc<Model>, options: SessionOptions, adapters: &[(Arc<Adapter>, f32)]) -> Result<Self> {
        let SessionOptions { context_length, threads, kv_type } = options;
        if !(1..=threads::MAX_THREADS).contains(&threads) {
            return Err(Error::Argument(format!("threads is {threads}, it must be 1 to {}", threads::MAX_THREADS)));
        }
        if context_length == 0 {
            return Err(Error::Argument("context_length is 0, it must be 1 or more".into()));
        }
        if !model.config().has_logits {
            let what =
                format!("text by {}, an encoder, which makes vectors of texts (embed)", model.config().architecture);
            return Err(Error::Unsupported { path: model.checkpoint().path().into(), what });
        }
        model.checkpoint().check()?;
        let engine = Arc::clone(model.engine()?);
        let sequence = Sequence::new(&engine.layout(kv_type)?, context_length)?;
        let (adapters, adapters_hash) = adapter::resolved(adapters, model.checkpoint())?;
        engine.expect_cold();
        let model = Arc::clone(model);
        Ok(Self { model, engine, sequence, adapters, adapters_hash, threads, rng: None, logits: Vec::new() })
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
        self.sequence.position()
    }

    /// Positions there is room for.
    pub fn context_length(&self) -> usize {
        self.sequence.context_length()
    }

    /// The tokens computed so far.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// Another session with the same tokens, which shares what was computed of them: nothing is copied but the last, partly
    /// filled block of 64 positions, when one of the two goes on.
    pub fn fork(&self) -> Self {
        Self {
            model: Arc::clone(&self.model),
            engine: Arc::clone(&self.engine),
            sequence: self.sequence.fork(),
            adapters: Arc::clone(&self.adapters),
            adapters_hash: self.adapters_hash,
            threads: self.threads,
            rng: self.rng.clone(),
            logits: Vec::new(),
        }
    }

    /// Forgets all but the first `n` tokens. A model with recurrent layers goes back to its last snapshot before them, and
    /// computes the tokens from there on again before any that are added.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many.
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        self.sequence.truncate(n)
    }

    /// Keeps what there is of `tokens` already, and forgets the rest: all but the longest common prefix. Gives its length.
    ///
    /// The last of `tokens` is never part of it, so that something is left to compute the logits from. Nor is what
    /// [`Session::shift`] has moved: it was computed with other tokens before it. Of a model with recurrent layers it may be
    /// less, as much as there is a snapshot of.
    pub fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
        self.sequence.keep_prefix(tokens)
    }

    /// Makes room: forgets `n_discard` tokens after the first `n_keep`. Those after them move down, and their keys are
    /// rotated to their new positions, without computing anything again.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many or if the model has recurrent layers, whose state cannot forget,
    /// [`Error::SavedSession`] if they came from a damaged file, [`Error::OutOfMemory`].
    pub fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()> {
        self.engine.shift(&mut self.sequence, n_keep, n_discard)
    }

    /// Saves the session to the file at `path`, which is replaced in one step: the tokens, what was computed of them, and
    /// where the random numbers are. [`Session::load`] brings it back.
    ///
    /// # Errors
    /// [`Error::File`] if the file cannot be written. What was at `path` is still there then.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        let state = State { n: self.position(), shifted_from: self.sequence.shifted_from(), rng: self.rng.as_ref() };
        saved::write(path, of(&self.model, self.adapters_hash), &mut self.sequence, state)
    }

    /// Saves the first `n` tokens alone, to be the start of other sessions, which [`Session::load_prefix`] makes.
    /// Fewer, if [`Session::shift`] has moved some of them.
    ///
    /// # Errors
    /// As for [`Session::save`].
    pub fn save_prefix(&mut self, path: &Path, n: usize) -> Result<()> {
        let state = State { n: n.min(self.sequence.exact()), shifted_from: None, rng: None };
        saved::write(path, of(&self.model, self.adapters_hash), &mut self.sequence, state)
    }

    /// Brings a saved session back. Its keys and values are mapped: they are in memory once for all sessions that come from
    /// the file, in whatever process, and each adds to them for itself.
    ///
    /// # Errors
    /// [`Error::SavedSession`] if the file does not hold a session of this model with these adapters,
    /// [`Error::ContextOverflow`] if it is longer than the context, [`Error::File`] if it cannot be read; as for
    /// [`Session::adapted`].
    pub fn load(
        model: &Arc<Model>,
        path: &Path,
        options: SessionOptions,
        adapters: &[(Arc<Adapter>, f32)],
    ) -> Result<Self> {
        let mut session = Self::adapted(model, options, adapters)?;
        let saved = Saved::open(path, of(model, session.adapters_hash), session.sequence.layout())?;
        let (tokens, context_length) = (saved.n_tokens(), options.context_length);
        if tokens > context_length {
            return Err(Error::ContextOverflow { tokens, context_length });
        }
        session.rng = saved.rng();
        saved.restore(&mut session.sequence, tokens)?;
        Ok(session)
    }

    /// Starts a session with as much of a saved one as fits, and with random numbers of its own.
    ///
    /// # Errors
    /// As for [`Session::load`], but that nothing is too long.
    pub fn load_prefix(
        model: &Arc<Model>,
        path: &Path,
        options: SessionOptions,
        adapters: &[(Arc<Adapter>, f32)],
    ) -> Result<Self> {
        let mut session = Self::adapted(model, options, adapters)?;
        let saved = Saved::open(path, of(model, session.adapters_hash), session.sequence.layout())?;
        let n = saved.exact().min(options.context_length);
        saved.restore(&mut session.sequence, n)?;
        Ok(session)
    }

    /// What was computed, without the session.
    pub(crate) fn into_sequence(self) -> Sequence {
        self.sequence
    }

    /// Computes `tokens` and gives the logits of the last one, `(vocab_size)`.
    ///
    /// # Errors
    /// [`Error::Argument`] for no tokens or one that is not in the vocabulary, [`Error::ContextOverflow`],
    /// [`Error::Interrupted`], [`Error::Changed`], [`Error::OutOfMemory`]. On error nothing has changed.
    pub fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&mut [f32]> {
        self.logits.resize(self.model.config().vocab_size, 0.0);
        let span = Span { sequence: &mut self.sequence, tokens, want: Want::Last, adapters: &self.adapters };
        self.engine.pass(&mut [span], &mut self.logits, self.threads, interrupt)?;
        Ok(&mut self.logits)
    }

    /// Computes `tokens` and gives the logits of each of them, `(tokens, vocab_size)`.
    ///
    /// # Errors
    /// As for [`Session::forward`].
    pub fn forward_all(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<Vec<f32>> {
        // Before there is room for their logits: they may be more than the context has.
        let (before, context_length) = (self.position(), self.context_length());
        if tokens.len() > context_length - before {
            return Err(Error::ContextOverflow { tokens: before + tokens.len(), context_length });
        }
        let n = tokens.len().saturating_mul(self.model.config().vocab_size);
        let bytes = n as u128 * size_of::<f32>() as u128;
        let mut logits =
            bytemuck::allocation::try_zeroed_vec(n).map_err(|()| Error::OutOfMemory { bytes, what: "logits" })?;
        let span = Span { sequence: &mut self.sequence, tokens, want: Want::All, adapters: &self.adapters };
        self.engine.pass(&mut [span], &mut logits, self.threads, interrupt)?;
        Ok(logits)
    }

    /// Computes the next tokens of several sessions of one model together: one pass over the weights for all of them. The
    /// logits of the last token of each, `(sessions, vocab_size)`. Each gets what it would get alone, bit for bit.
    ///
    /// # Errors
    /// [`Error::Argument`] if the sessions are not of one model; as for [`Session::forward`]. On error nothing has changed.
    pub fn forward_batch(sessions: &mut [(&mut Session, &[u32])], interrupt: &Interrupt) -> Result<Vec<f32>> {
        let spans = sessions.iter_mut().map(|(session, tokens)| (&mut **session, *tokens, Want::Last));
        Self::pass(&mut spans.collect::<Vec<_>>(), interrupt)
    }

    /// The same, with what is wanted of each: logits, `(rows, vocab_size)`.
    ///
    /// # Errors
    /// As for [`Session::forward_batch`], and for as many logits as there is no memory for.
    pub(crate) fn pass(spans: &mut [(&mut Session, &[u32], Want)], interrupt: &Interrupt) -> Result<Vec<f32>> {
        let Some((first, ..)) = spans.first() else { return Ok(Vec::new()) };
        let (engine, threads, vocab_size) = (Arc::clone(&first.engine), first.threads, first.model.config().vocab_size);
        let layout = Arc::clone(first.sequence.layout());
        if spans.iter().any(|(s, ..)| !Arc::ptr_eq(&s.engine, &engine) || *s.sequence.layout() != layout) {
            return Err(Error::Argument("sessions of different models or kv_types cannot be computed together".into()));
        }
        let spans = spans.iter_mut().map(|(session, tokens, want)| Span {
            sequence: &mut session.sequence,
            tokens,
            want: *want,
            adapters: &session.adapters,
        });
        let mut spans: Vec<Span> = spans.collect();
        let n = spans.iter().map(Span::n_wanted).sum::<usize>() * vocab_size;
        let bytes = n as u128 * size_of::<f32>() as u128;
        let mut logits =
            bytemuck::allocation::try_zeroed_vec(n).map_err(|()| Error::OutOfMemory { bytes, what: "logits" })?;
        engine.pass(&mut spans, &mut logits, threads, interrupt)?;
        Ok(logits)
    }

    /// Bytes of a block of keys and values, and of what recurrent layers remember: what is copied when a fork goes on.
    pub(crate) fn block_bytes(&self) -> usize {
        self.sequence.layout().block_bytes() + self.sequence.layout().state_bytes()
    }
}

fn of(model: &Model, adapters: u64) -> Of<'_> {
    Of { checkpoint: model.checkpoint(), config: model.config(), adapters }
}

impl Forward for Session {
    fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&[f32]> {
        Session::forward(self, tokens, interrupt).map(|logits| &*logits)
    }

    fn forward_all(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<Vec<f32>> {
        Session::forward_all(self, tokens, interrupt)
    }

    fn truncate(&mut self, n: usize) -> Result<()> {
        Session::truncate(self, n)
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
    fn keep_moved_prefix(&mut self, tokens: &[u32]) -> usize {
        self.sequence.keep_moved_prefix(tokens)
    }

    fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()> {
        Session::shift(self, n_keep, n_discard)
    }

    fn can_shift(&self) -> bool {
        !self.model.config().is_recurrent()
    }

    fn rng(&mut self) -> &mut Option<Rng> {
        &mut self.rng
    }

    fn path(&self) -> &Path {
        self.model.checkpoint().path()
    }
}
