//! What is computed together: the answers that are being made with one model and one type of keys and values.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use super::core::{About, Answering, Running, RunningTexts, expected};
use super::cost::Cost;
use super::prefix::{Place, Prefixes};
use crate::error::Result;
use crate::kernels::BLOCK;
use crate::kv::{Layout, Sequence};
use crate::model::Model;
use crate::quant::DType;
use crate::session::SessionOptions;

/// Tokens in common with another that are worth waiting for, see [`Group::cached`].
const IN_COMMON: usize = 16;

/// States that a sequence with recurrent layers has for itself, more or less.
const OWN_STATES: usize = 4;

/// What requests have to agree in to be computed together.
#[derive(Clone)]
pub(super) struct Key {
    model: Weak<Model>, // the address is nobody else's as long as there is one of these
    kv_type: DType,
    threads: usize,
}

impl Key {
    pub fn new(model: &Arc<Model>, session: &SessionOptions) -> Self {
        Self { model: Arc::downgrade(model), kv_type: session.kv_type, threads: session.threads }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let of = |key: &Self| (key.kv_type, key.threads);
        self.model.ptr_eq(&other.model) && of(self) == of(other)
    }
}

pub(super) struct Group {
    pub key: Key,
    pub model: Weak<Model>,
    pub path: PathBuf,
    pub layout: Arc<Layout>,
    pub cost: Cost,
    pub prefixes: Prefixes,
    pub running: Vec<Running>, // by rank
    pub texts: Vec<RunningTexts>,
}

impl Group {
    /// # Errors
    /// As for [`Model::engine`] and [`Engine::layout`](crate::engine::Engine::layout).
    pub fn new(key: Key, model: &Arc<Model>) -> Result<Self> {
        let engine = model.engine()?;
        engine.expect_cold();
        let layout = engine.layout(key.kv_type)?;
        Ok(Self {
            model: Arc::downgrade(model),
            path: model.checkpoint().path().to_path_buf(),
            cost: Cost::new(model.checkpoint().size(), layout.block_bytes() / BLOCK),
            prefixes: Prefixes::new(&layout),
            layout,
            key,
            running: Vec::new(),
            texts: Vec::new(),
        })
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.texts.is_empty()
    }

    pub fn abouts(&self) -> impl Iterator<Item = &About> {
        self.running.iter().map(Running::about).chain(self.texts.iter().map(RunningTexts::about))
    }

    /// Where an answer is among those that are being made.
    pub fn index(&self, number: u64) -> Option<usize> {
        self.running.iter().position(|running| running.number() == number)
    }

    /// The numbers of those of which it is true, in the order of their rank.
    pub fn in_order(&self, of: impl Fn(&Running) -> bool) -> Vec<u64> {
        self.running.iter().filter(|running| of(running)).map(Running::number).collect()
    }

    /// Bytes that a sequence has for itself besides its blocks.
    pub fn own_bytes(&self) -> u64 {
        own_bytes(&self.layout)
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> u64 {
        let own = |running: &Running| {
            let in_tree = if running.shares { running.place.n_blocks } else { 0 };
            (running.sequence.position().div_ceil(BLOCK) - in_tree) as u64 * self.layout.block_bytes() as u64
        };
        self.prefixes.bytes() + self.running.iter().map(|running| own(running) + self.own_bytes()).sum::<u64>()
    }

    /// Bytes that those that are being made are expected to need besides.
    pub fn promised_bytes(&self) -> u64 {
        let blocks = |running: &Running| {
            let expected = expected(&running.of.answer).min(running.sequence.context_length());
            expected.div_ceil(BLOCK).saturating_sub(running.sequence.position().div_ceil(BLOCK))
        };
        self.running.iter().map(blocks).sum::<usize>() as u64 * self.layout.block_bytes() as u64
    }

    /// How many tokens of one that waits are there already; `None` if it should wait, because more of them are being
    /// computed for another.
    pub fn cached(&mut self, of: &Answering, about: &About) -> Option<usize> {
        let tokens = &of.answer.tokens()[..of.most_cached()];
        let found = self.prefixes.find(about.salt, tokens, None).n;
        let (mut now, mut soon) = (found, found);
        for running in self.of_salt(about.salt) {
            let common = in_common(tokens, running);
            now = now.max(common.min(running.sequence.position()));
            // What it will have when its prompt is computed.
            soon = soon.max(common);
        }
        (soon < now + IN_COMMON).then_some(now)
    }

    /// Blocks of one that waits that others have, who are being made.
    pub fn in_use(&self, of: &Answering, about: &About) -> usize {
        let tokens = &of.answer.tokens()[..of.most_cached()];
        let common = |running: &Running| in_common(tokens, running).min(running.sequence.position());
        self.of_salt(about.salt).map(common).max().unwrap_or_default() / BLOCK
    }

    /// A sequence to begin with for one that waited: what the tree has of it, or another that is being made.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn begin(
        &mut self,
        of: &Answering,
        about: &About,
        context_length: usize,
        now: u64,
    ) -> Result<(Sequence, Place)> {
        let tokens = &of.answer.tokens()[..of.most_cached()];
        let found = self.prefixes.find(about.salt, tokens, Some(now));
        let common = |running: &&Running| in_common(tokens, running).min(running.sequence.position());
        let best = self.of_salt(about.salt).max_by_key(common);
        if let Some(best) = best.filter(|best| common(best) > found.n && best.sequence.check().is_ok()) {
            let mut fork = best.sequence.fork();
            let n = fork.keep_prefix(&of.answer.tokens()[..of.most_cached() + 1]);
            if n > found.n && fork.context_length() == context_length {
                let place = self.prefixes.locate(about.salt, fork.tokens());
                return Ok((fork, place));
            }
        }
        self.prefixes.sequence(found, tokens, context_length)
    }

    /// Those whose blocks can be shared by others with this salt.
    fn of_salt(&self, salt: u64) -> impl Iterator<Item = &Running> {
        self.running.iter().filter(move |running| running.shares && running.salt() == salt)
    }
}

/// Bytes that a sequence of this layout has for itself besides its blocks.
pub(super) fn own_bytes(layout: &Layout) -> u64 {
    (OWN_STATES * (layout.state_bytes() + layout.tail_bytes())) as u64
}

/// How many of `tokens` are the first of an answer that is being made.
fn in_common(tokens: &[u32], running: &Running) -> usize {
    let theirs = running.of.answer.tokens();
    tokens.iter().zip(theirs).take_while(|(a, b)| a == b).count()
}
