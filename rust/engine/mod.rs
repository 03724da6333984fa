//! What computes: one engine per model.
//!
//! [`Engine::pass`] takes a batch of spans, each some tokens of a sequence. Only four places of it know of a sequence: the
//! positions that a token is rotated by, where its keys and values go, what it attends to, and which logits are wanted.
//! All else goes row by row, and a row's result does not depend on the rows beside it.
//!
//! Buffers, tables and the reading ahead of a cold file belong to the engine; a sequence is its tokens and its blocks. One
//! set of buffers is kept from pass to pass. Sessions of several threads each get one while they compute.

mod attention;
mod delta_net;
mod dense;
mod experts;
mod head;
mod latent;
mod layer_embedding;
mod mamba;
mod pass;
mod pooled;
mod read_ahead;
mod recurrent;
mod rope;
mod short_conv;
mod streams;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::arch::Config;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernels::{self, Adapted, Changes, Context, Kernels, Observer};
use crate::kv::{Layout, Sequence};
use crate::mapping::guarded;
use crate::quant::DType;
use crate::threads::{self, Interrupt};
use crate::weights::Weights;
use pass::{Buffers, Pass};
use read_ahead::ReadAhead;
use rope::Rope;

/// Most tokens that are computed together: enough that each unpacked weight is used often, few enough that the buffers stay
/// in the caches.
pub const BATCH: usize = 512;

/// Some tokens of a sequence, to be computed after those that it has.
pub struct Span<'a> {
    /// The sequence. No other span of the batch has the same.
    pub sequence: &'a mut Sequence,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// What to give of them.
    pub want: Want,
    /// What is changed in the matrices of layers for them, and by how much. A sequence has the same all along.
    pub adapters: &'a Changes,
}

/// What a pass gives of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Keys and values alone.
    Nothing,
    /// Logits of the last token.
    Last,
    /// Logits of every token.
    All,
    /// The vector of the last token: what logits would be made of, behind the last norm.
    LastHidden,
    /// The vector of every token.
    Hidden,
}

impl Want {
    /// Whether vectors are wanted.
    fn is_hidden(self) -> bool {
        matches!(self, Want::LastHidden | Want::Hidden)
    }

    /// Whether logits are wanted.
    fn is_logits(self) -> bool {
        matches!(self, Want::Last | Want::All)
    }
}

impl Span<'_> {
    /// Rows of logits or vectors that a pass gives of it.
    pub fn n_wanted(&self) -> usize {
        match self.want {
            Want::Nothing => 0,
            Want::Last | Want::LastHidden => 1,
            Want::All | Want::Hidden => self.tokens.len(),
        }
    }
}

/// A model's weights, ready to compute.
pub struct Engine {
    checkpoint: Arc<Checkpoint>,
    config: Arc<Config>,
    weights: Arc<Weights>,
    kernels: &'static dyn Kernels,
    ropes: Vec<Rope>,
    buffers: Mutex<Option<Box<Buffers>>>, // of the last pass
    ahead: Mutex<ReadAhead>,              // held for a whole pass: only ever tried
    expect_cold: AtomicBool,
    experts_are_cold: AtomicBool, // until a pass finds all that it chose in memory
    expert_was_cold: AtomicBool,  // in this pass
    observer: OnceLock<Arc<dyn Observer>>,
}

impl Engine {
    /// An engine for a model. Reads no weights.
    ///
    /// # Errors
    /// [`Error::Argument`] if the environment asks for kernels that there are not.
    pub fn new(checkpoint: &Arc<Checkpoint>, config: &Arc<Config>, weights: &Arc<Weights>) -> Result<Self> {
        Ok(Self {
            checkpoint: Arc::clone(checkpoint),
            config: Arc::clone(config),
            weights: Arc::clone(weights),
            kernels: kernels::best()?,
            ropes: config.ropes.iter().map(|rope| Rope::new(rope, &weights.rope_factors)).collect(),
            buffers: Mutex::new(None),
            ahead: Mutex::new(ReadAhead::new(weights)),
            expect_cold: AtomicBool::new(false),
            experts_are_cold: AtomicBool::new(false),
            expert_was_cold: AtomicBool::new(false),
            observer: OnceLock::new(),
        })
    }

    /// Has `observer` see what every matrix is multiplied with, from now on; gives whether it is the first one.
    pub fn observe(&self, observer: Arc<dyn Observer>) -> bool {
        self.observer.set(observer).is_ok()
    }

    /// How blocks of keys and values of this type look for the model.
    ///
    /// # Errors
    /// [`Error::Argument`] if its heads are not whole blocks of the type.
    pub fn layout(&self, kv_type: DType) -> Result<Arc<Layout>> {
        let layout = Some(kv_type).filter(|t| kernels::KV_TYPES.contains(t)).and_then(|t| Layout::new(&self.config, t));
        layout.map(Arc::new).ok_or_else(|| {
            let head_dim = self.config.attention().map(|attention| attention.head_dim).min().unwrap_or(0);
            let what =
                format!("kv_type {kv_type} cannot hold the keys of this model, {head_dim} numbers per head: use F16");
            Error::Argument(what)
        })
    }

    /// Looks at the file again before the next pass: what of it is not in memory is read ahead.
    pub fn expect_cold(&self) {
        self.expect_cold.store(true, Ordering::Relaxed);
        self.experts_are_cold.store(true, Ordering::Relaxed);
    }

    /// Computes the tokens of all spans and writes the logits that they want to `out`, a row of `vocab_size` each, or the
    /// vectors, a row of `dim` each, in the order of the spans. The sequences then have the tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token that is not in the vocabulary, a span of none or tokens after those that an encoder
    /// has, [`Error::ContextOverflow`], [`Error::Interrupted`], [`Error::Changed`], [`Error::SavedSession`],
    /// [`Error::OutOfMemory`]. On error no sequence has changed.
    ///
    /// # Panics
    /// If `out` does not have as many numbers as the spans want, if some want logits and others vectors, or if logits are
    /// wanted of a model that has none.
    pub fn pass(&self, spans: &mut [Span], out: &mut [f32], threads: usize, interrupt: &Interrupt) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        let wants_logits = spans.iter().any(|span| span.want.is_logits());
        let row = if wants_logits { vocab_size } else { self.config.dim };
        assert_eq!(out.len(), spans.iter().map(Span::n_wanted).sum::<usize>() * row, "room for what is wanted");
        assert!(!(wants_logits && spans.iter().any(|span| span.want.is_hidden())), "logits or vectors");
        assert!(!wants_logits || self.config.has_logits, "logits of a model that has some");
        let (_busy, _guarded) = (threads::busy(), guarded());
        let observer = self.observer.get().map(|observer| &**observer);
        let cx = Context { kernels: self.kernels, threads, interrupt, observer, adapted: &[] };
        for Span { sequence, adapters, .. } in spans.iter_mut() {
            self.settle(sequence, adapters, threads, interrupt)?;
        }
        for Span { sequence, tokens, .. } in spans.iter_mut() {
            if tokens.is_empty() {
                return Err(Error::Argument("no tokens to compute".into()));
            }
            if let Some(bad) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
                return Err(Error::Argument(format!("token {bad} is not in the vocabulary of {vocab_size}")));
            }
            let before = sequence.position();
            if before > 0 && self.config.is_encoder() {
                return Err(Error::Argument(format!(
                    "an encoder computes a text at once, and has {before} tokens of it"
                )));
            }
            let context_length = sequence.context_length().min(self.config.longest());
            if tokens.len() > context_length - before {
                return Err(Error::ContextOverflow { tokens: before + tokens.len(), context_length });
            }
            sequence.verify_with(&cx)?;
            sequence.reserve(tokens.len())?;
        }

        let kept = self.buffers.try_lock().ok().and_then(|mut kept| kept.take());
        let mut buffers = kept.unwrap_or_default();
        let done = self.pieces(spans, (out, row), &cx, &mut buffers);
        if let Ok(mut kept) = self.buffers.try_lock() {
            *kept = Some(buffers);
        }
        done?;
        for Span { sequence, tokens, .. } in spans {
            sequence.push(tokens);
        }
        Ok(())
    }

    /// Computes the tokens that a sequence has and that have to be computed again, see [`Sequence::truncate`]. On error they
    /// still have to be.
    ///
    /// # Errors
    /// As for [`Engine::pass`].
    pub fn settle(
        &self,
        sequence: &mut Sequence,
        adapters: &Changes,
        threads: usize,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let tokens = sequence.take_owed();
        if tokens.is_empty() {
            return Ok(());
        }
        let span = Span { sequence, tokens: &tokens, want: Want::Nothing, adapters };
        self.pass(&mut [span], &mut [], threads, interrupt).inspect_err(|_| sequence.give_back(&tokens))
    }

    /// Goes through the spans in pieces of up to [`BATCH`] tokens together. A span of an encoder is one piece, of any
    /// length. `out` has rows of the given length.
    fn pieces(
        &self,
        spans: &mut [Span],
        (mut out, row): (&mut [f32], usize),
        cx: &Context,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let whole = self.config.is_encoder();
        let (mut span, mut token) = (0, 0);
        while span < spans.len() {
            let first = span;
            let mut pieces = Vec::new();
            let mut room = BATCH;
            while span < spans.len() && room > 0 {
                let left = spans[span].tokens.len() - token;
                if whole && left > room && !pieces.is_empty() {
                    break;
                }
                let n = if whole { left } else { left.min(room) };
                pieces.push((span - first, token..token + n));
                room = room.saturating_sub(n);
                token += n;
                if token == spans[span].tokens.len() {
                    (span, token) = (span + 1, 0);
                }
            }
            let last = first + pieces.len();
            for (span, (_, range)) in spans[first..last].iter_mut().zip(&pieces) {
                span.sequence.begin_batch(span.sequence.position() + range.start, range.len())?;
            }
            let mut at = 0;
            let adapted = spans[first..last].iter().zip(&pieces).filter_map(|(span, (_, range))| {
                let rows = at..at + range.len();
                at = rows.end;
                (!span.adapters.is_empty()).then_some(Adapted { rows, changes: span.adapters })
            });
            let adapted: Vec<Adapted> = adapted.collect();
            let &Context { kernels, threads, interrupt, observer, .. } = cx;
            let cx = &Context { kernels, threads, interrupt, observer, adapted: &adapted };
            let mut pass = Pass::new(self, cx, buffers, &mut spans[first..last], &pieces);
            let (now, later) = std::mem::take(&mut out).split_at_mut(pass.n_wanted() * row);
            pass.run(now)?;
            out = later;
            // The files were what they were up to here, or nothing of this gets out.
            self.checkpoint.check()?;
            spans[first..last].iter().try_for_each(|span| span.sequence.check())?;
            spans[first..last].iter().flat_map(|span| span.adapters).try_for_each(|(adapter, _)| adapter.check())?;
            spans[first..last].iter_mut().for_each(|span| span.sequence.end_batch());
        }
        Ok(())
    }

    /// Forgets `n_discard` tokens of a sequence after the first `n_keep`; those after them move down, and their keys are
    /// rotated to their new positions.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many, [`Error::SavedSession`], [`Error::OutOfMemory`].
    pub fn shift(&self, sequence: &mut Sequence, n_keep: usize, n_discard: usize) -> Result<()> {
        if n_discard > sequence.context_length() {
            let have = sequence.position();
            return Err(Error::Argument(format!("cannot discard {n_discard} tokens: there are {have}")));
        }
        let context_length = sequence.context_length();
        let turns: Vec<_> = self.ropes.iter().map(|rope| rope.turns_back(n_discard, context_length)).collect();
        sequence.shift(self.kernels, n_keep, n_discard, &|layer, key| {
            let attention = self.config.layers[layer].mixer.attention();
            let Some(index) = attention.and_then(|attention| attention.rope) else { return };
            let rope = &self.ropes[index];
            self.kernels.rope(&mut key[..2 * rope.pairs()], &turns[index], rope.style());
        })
    }
}
