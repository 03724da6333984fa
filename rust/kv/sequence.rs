//! One sequence of tokens, and what was computed of them.

use std::sync::Arc;

use super::{Block, LayerMemory, Layout, Recurrent, State};
use crate::error::{Error, Result};
use crate::hash::checksum;
use crate::kernels::{BLOCK, Context, Kernels, load_key, value_row};
use crate::mapping::Memory;

/// Largest run of blocks that is mapped at once, in bytes, where a block is not larger.
const RUN_BYTES: usize = 64 << 20;

/// Tokens with their keys and values.
///
/// The blocks may reach past the tokens: what was truncated is overwritten.
pub struct Sequence {
    layout: Arc<Layout>,
    context_length: usize,
    tokens: Vec<u32>,
    computed: usize,             // of the tokens; the others are computed again before any that are added
    shifted_from: Option<usize>, // from here on keys and values still know of tokens that were discarded
    blocks: Vec<Arc<Block>>,
    recurrent: Option<Recurrent>, // if the model has recurrent layers
    spare: Vec<Block>,            // the rest of the last run, its first block last
    unverified: Vec<Unverified>,  // blocks of a file that nobody has looked at yet
}

/// A block that came from a file, and what is known of it.
#[derive(Clone)]
pub(super) struct Unverified {
    pub index: usize,
    pub checksum: u64,
    pub path: Arc<std::path::Path>,
}

/// What recurrent layers remember, to be saved.
pub(super) struct SavedState<'a> {
    /// Tokens that they know.
    pub computed: usize,
    /// Those of them that the state knows.
    pub at: usize,
    pub state: &'a [u8],
    pub tail: Vec<u8>,
}

impl Sequence {
    /// An empty one, with room for `context_length` positions. Room that is not used costs nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if no memory could ever hold so many.
    pub fn new(layout: &Arc<Layout>, context_length: usize) -> Result<Self> {
        let bytes = context_length.div_ceil(BLOCK) as u128 * layout.block_bytes() as u128;
        if bytes > 1 << 46 {
            return Err(Error::OutOfMemory { bytes, what: "keys and values: choose a shorter context" });
        }
        Ok(Self {
            layout: Arc::clone(layout),
            context_length,
            tokens: Vec::new(),
            computed: 0,
            shifted_from: None,
            blocks: Vec::new(),
            recurrent: layout.is_recurrent().then(|| Recurrent::new(layout)),
            spare: Vec::new(),
            unverified: Vec::new(),
        })
    }

    /// Positions there is room for.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// How its blocks look.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The tokens computed so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Their number: the position of the next one.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// So many tokens, from the first, are just as computing them again would have them.
    pub fn exact(&self) -> usize {
        self.shifted_from.unwrap_or(self.position())
    }

    /// The first token that was computed with others before it than there are now.
    pub fn shifted_from(&self) -> Option<usize> {
        self.shifted_from
    }

    /// Another sequence with the same tokens. They share the blocks; who goes on copies the last one, if it is not full.
    pub fn fork(&self) -> Self {
        let blocks = self.blocks[..self.position().div_ceil(BLOCK)].to_vec();
        let mut unverified = self.unverified.clone();
        unverified.retain(|block| block.index < blocks.len());
        Self {
            layout: Arc::clone(&self.layout),
            context_length: self.context_length,
            tokens: self.tokens.clone(),
            computed: self.computed,
            shifted_from: self.shifted_from,
            blocks,
            recurrent: self.recurrent.as_ref().map(Recurrent::fork),
            spare: Vec::new(),
            unverified,
        }
    }

    /// A sequence of tokens that others have computed: `blocks` hold them, the last one perhaps more than that. `state` is
    /// what recurrent layers remember of just so many tokens, if there are such layers.
    ///
    /// # Errors
    /// As for [`Sequence::new`].
    pub(crate) fn from_blocks(
        layout: &Arc<Layout>,
        context_length: usize,
        tokens: &[u32],
        blocks: Vec<Arc<Block>>,
        state: Option<Arc<State>>,
    ) -> Result<Self> {
        debug_assert!(blocks.len() == tokens.len().div_ceil(BLOCK) && tokens.len() <= context_length);
        let mut sequence = Self::new(layout, context_length)?;
        if let (Some(recurrent), Some(state)) = (&mut sequence.recurrent, state) {
            debug_assert!(state.at() == tokens.len(), "the state of these tokens");
            recurrent.go_on_from(state)?;
        }
        Ok(Self { tokens: tokens.to_vec(), computed: tokens.len(), blocks, ..sequence })
    }

    /// How many of its blocks are full, and as computing their tokens again would have them.
    pub(crate) fn n_full(&self) -> usize {
        self.exact().min(self.computed) / BLOCK
    }

    /// Block `i`, to be used by others too: whoever goes on in it copies it.
    pub(crate) fn share(&self, i: usize) -> &Arc<Block> {
        &self.blocks[i]
    }

    /// Uses a block for its block `i` that holds the same of the same tokens, so that there is one of them.
    pub(crate) fn adopt(&mut self, i: usize, block: &Arc<Block>) {
        self.blocks[i] = Arc::clone(block);
    }

    /// What recurrent layers remember of just the first `n` tokens, if that was kept.
    pub(crate) fn state_at(&self, n: usize) -> Option<&Arc<State>> {
        self.recurrent.as_ref()?.state_at(n)
    }

    /// Forgets all but the first `n` tokens. What recurrent layers remember goes back to the nearest snapshot; the tokens
    /// from there on are computed again before any that are added.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many.
    pub fn truncate(&mut self, n: usize) -> Result<()> {
        let have = self.position();
        if n > have {
            return Err(Error::Argument(format!("cannot truncate to {n} tokens: the session has {have}")));
        }
        if n < have {
            self.computed = match &mut self.recurrent {
                Some(recurrent) => recurrent.truncate(n, self.computed),
                None => self.computed.min(n),
            };
        }
        self.tokens.truncate(n);
        self.shifted_from = self.shifted_from.filter(|&from| n > from);
        // What is this sequence's own will be overwritten; what is shared is left to the others.
        let needed = n.div_ceil(BLOCK);
        while self.blocks.len() > needed && self.blocks.last_mut().is_some_and(|last| Arc::get_mut(last).is_none()) {
            self.blocks.pop();
        }
        self.unverified.retain(|block| block.index < needed);
        Ok(())
    }

    /// Keeps what there is of `tokens` already, and forgets the rest: all but the longest common prefix. Gives its length.
    ///
    /// The last of `tokens` is never part of it, so that something is left to compute the logits from. Nor is what
    /// [`Sequence::shift`] has moved: it was computed with other tokens before it. And with recurrent layers it may be less:
    /// it ends where there is a snapshot.
    pub fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
        self.keep_at_most(self.exact(), tokens)
    }

    /// The same, what was moved included: it counts as if it had been computed where it is.
    pub fn keep_moved_prefix(&mut self, tokens: &[u32]) -> usize {
        self.keep_at_most(self.position(), tokens)
    }

    fn keep_at_most(&mut self, most: usize, tokens: &[u32]) -> usize {
        let most = most.min(tokens.len().saturating_sub(1));
        let n = self.tokens[..most].iter().zip(tokens).take_while(|(have, wanted)| have == wanted).count();
        self.truncate(n).expect("no more than there are");
        self.tokens.truncate(self.computed);
        self.computed
    }

    /// Takes the tokens away that have to be computed again, to be computed.
    pub(crate) fn take_owed(&mut self) -> Vec<u32> {
        self.tokens.split_off(self.computed)
    }

    /// Gives back those that were not.
    pub(crate) fn give_back(&mut self, owed: &[u32]) {
        self.tokens.extend_from_slice(owed);
    }

    /// Sees to it that `n` more tokens have blocks that nobody else uses.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn reserve(&mut self, n: usize) -> Result<()> {
        let start = self.position();
        debug_assert!(self.computed == start, "what is owed was taken");
        self.own(start / BLOCK, (start + n).div_ceil(BLOCK), start)?;
        self.recurrent.as_mut().map_or(Ok(()), |recurrent| recurrent.begin_pass(start))
    }

    /// Prepares for a batch of the tokens that were reserved: `tokens` from position `start` on.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn begin_batch(&mut self, start: usize, tokens: usize) -> Result<()> {
        self.recurrent.as_mut().map_or(Ok(()), |recurrent| recurrent.begin_batch(start, tokens))
    }

    /// The batch was computed.
    pub(crate) fn end_batch(&mut self) {
        if let Some(recurrent) = &mut self.recurrent {
            recurrent.end_batch();
        }
    }

    /// What a recurrent layer has of the batch.
    ///
    /// # Panics
    /// If no batch was begun, or if the layer is not recurrent.
    pub(crate) fn memory(&mut self, layer: usize) -> LayerMemory<'_> {
        self.recurrent.as_mut().expect("a recurrent layer").layer(layer)
    }

    /// Makes the blocks `first .. end` this sequence's own: those that are missing are made, and those that are shared are
    /// copied as far as they hold one of the first `used` positions.
    fn own(&mut self, first: usize, end: usize, used: usize) -> Result<()> {
        for i in first..end {
            if i == self.blocks.len() {
                let block = self.new_block()?;
                self.blocks.push(Arc::new(block));
            } else if Arc::get_mut(&mut self.blocks[i]).is_none() {
                let mut block = self.new_block()?;
                if used > i * BLOCK {
                    block.bytes_mut().copy_from_slice(self.blocks[i].bytes());
                }
                self.blocks[i] = Arc::new(block);
            }
        }
        Ok(())
    }

    fn new_block(&mut self) -> Result<Block> {
        if let Some(block) = self.spare.pop() {
            return Ok(block);
        }
        // Each run as large as all before it: a few maps for a long context, and little too much for a short one.
        let bytes = self.layout.block_bytes();
        let left = self.context_length.div_ceil(BLOCK).saturating_sub(self.blocks.len());
        let n = self.blocks.len().min(RUN_BYTES / bytes).min(left).max(1);
        let memory = Memory::zeroed(n * bytes)
            .map_err(|_| Error::OutOfMemory { bytes: (n * bytes) as u128, what: "keys and values" })?;
        self.spare.extend(Block::cut(memory, bytes).rev());
        Ok(self.spare.pop().expect("at least one"))
    }

    /// The blocks that hold the first `n` positions.
    pub(crate) fn blocks(&self, n: usize) -> impl Iterator<Item = &[u8]> {
        self.blocks[..n.div_ceil(BLOCK)].iter().map(|block| block.bytes())
    }

    /// Block `i`, to write to.
    ///
    /// # Panics
    /// If it is not this sequence's own, see [`Sequence::reserve`].
    pub(crate) fn blocks_mut(&mut self, first: usize, end: usize) -> impl Iterator<Item = &mut [u8]> {
        let own = "reserved, and so this sequence's own";
        self.blocks[first..end].iter_mut().map(move |block| Arc::get_mut(block).expect(own).bytes_mut())
    }

    /// Adds tokens that were computed.
    pub(crate) fn push(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.computed = self.tokens.len();
        if let Some(recurrent) = &mut self.recurrent {
            recurrent.end_pass();
        }
    }

    /// Makes room: forgets `n_discard` tokens after the first `n_keep`. Those after them move down, and their keys are
    /// rotated to their new positions, without computing anything again.
    ///
    /// A key is stored rotated by its position, so one that moves is rotated back; `rotate(layer, key)` does that for a
    /// head's key: by what `n_discard` positions make, turned the other way. It is rounded a second time by this. Against
    /// keys that are computed at their new position from the start, the largest error found with f16 is 1.0e-3 of the
    /// largest key of its head (2^-10; half of it is what f16 has anyway). It does not grow: with half of the rest
    /// discarded each time, no key is there long enough to be moved twice.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are not so many or if the model has recurrent layers, [`Error::SavedSession`] if they came
    /// from a damaged file, [`Error::OutOfMemory`].
    pub(crate) fn shift(
        &mut self,
        kernels: &dyn Kernels,
        n_keep: usize,
        n_discard: usize,
        rotate: &dyn Fn(usize, &mut [f32]),
    ) -> Result<()> {
        let end = self.position();
        let gap = n_keep.saturating_add(n_discard);
        if gap > end {
            return Err(Error::Argument(format!("cannot discard {n_discard} tokens after {n_keep}: there are {end}")));
        }
        if gap == end || n_discard == 0 {
            return self.truncate(end - n_discard);
        }
        if self.recurrent.is_some() {
            let what = "cannot discard tokens before others: this model has recurrent layers, whose state cannot forget them; \
                        start again with fewer, or with a longer context_length";
            return Err(Error::Argument(what.into()));
        }
        self.verify()?;
        self.own(n_keep / BLOCK, (end - n_discard).div_ceil(BLOCK), end)?;
        let layout = Arc::clone(&self.layout);
        for (layer, heads, _) in layout.attention() {
            let mut key = vec![0.0; heads.n_kv_heads * heads.head_dim];
            let mut values = Vec::new();
            for to in n_keep..end - n_discard {
                let from = to + n_discard;
                let source = &self.blocks[from / BLOCK].bytes()[layout.at(layer)];
                values.clear();
                for (head, key) in key.chunks_exact_mut(heads.head_dim).enumerate() {
                    load_key(heads, source, head, from % BLOCK, key);
                    rotate(layer, key);
                    values.extend_from_slice(&source[value_row(heads, head, from % BLOCK)]);
                }
                let block = Arc::get_mut(&mut self.blocks[to / BLOCK]).expect("made this sequence's own above");
                let target = &mut block.bytes_mut()[layout.at(layer)];
                kernels.store_kv(heads, target, to % BLOCK, &key, None);
                let row = values.len() / heads.n_kv_heads; // empty where values are part of the keys
                for head in 0..heads.n_kv_heads {
                    target[value_row(heads, head, to % BLOCK)].copy_from_slice(&values[head * row..(head + 1) * row]);
                }
            }
        }
        self.tokens.drain(n_keep..gap);
        self.computed = self.tokens.len();
        self.shifted_from = Some(self.shifted_from.map_or(n_keep, |from| from.min(n_keep)));
        Ok(())
    }

    /// What recurrent layers remember of the first `n` tokens, or of fewer, to be saved.
    pub(super) fn saved_state(&self, n: usize) -> Option<SavedState<'_>> {
        let n = n.min(self.computed);
        let (at, state, tail) = self.recurrent.as_ref()?.saved(n)?;
        let (computed, mut tail) = match tail {
            None => (at, vec![0; self.layout.tail_bytes()]),
            Some(tail) => (n, tail.to_vec()),
        };
        // What was cut off is nobody's business.
        let numbers: &mut [f32] = bytemuck::cast_slice_mut(&mut tail);
        self.layout.tail_rest(computed - at).into_iter().for_each(|range| numbers[range].fill(0.0));
        (computed > 0).then_some(SavedState { computed, at, state, tail })
    }

    /// Takes over what a file holds: `blocks` are those of `tokens`; `state` is what recurrent layers remember: of how many
    /// tokens, the position of the state, the state, the tail.
    pub(super) fn restore(
        &mut self,
        tokens: Vec<u32>,
        shifted_from: Option<usize>,
        blocks: Vec<Block>,
        unverified: Vec<Unverified>,
        state: Option<(usize, usize, Block, Block)>,
    ) {
        self.computed = match (&mut self.recurrent, state) {
            (None, _) => tokens.len(),
            (Some(_), None) => 0,
            (Some(recurrent), Some((computed, at, state, tail))) => {
                recurrent.restore(at, state, tail);
                computed
            }
        };
        self.tokens = tokens;
        self.shifted_from = shifted_from;
        self.blocks = blocks.into_iter().map(Arc::new).collect();
        self.unverified = unverified;
    }

    /// Whether the file that blocks came from, if any, is still what it was.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub(crate) fn check(&self) -> Result<()> {
        // Each map once: it has one state.
        let mut last: Option<&Block> = None;
        for block in &self.blocks {
            if !last.is_some_and(|last| last.is_beside(block)) {
                block.check()?;
            }
            last = Some(block);
        }
        self.recurrent.as_ref().map_or(Ok(()), Recurrent::check)
    }

    /// Compares the blocks of a file with their checksums, once: before anything is computed with them.
    ///
    /// # Errors
    /// [`Error::SavedSession`].
    pub(crate) fn verify(&mut self) -> Result<()> {
        let wrong = self.unverified.iter().find(|block| !self.is_intact(block)).cloned();
        self.verified(wrong)
    }

    /// The same with several workers.
    pub(crate) fn verify_with(&mut self, cx: &Context) -> Result<()> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        if self.unverified.is_empty() {
            return Ok(());
        }
        let first_wrong = AtomicUsize::new(usize::MAX);
        cx.each(self.unverified.len(), &|i| {
            if !self.is_intact(&self.unverified[i]) {
                first_wrong.fetch_min(i, Ordering::Relaxed);
            }
        });
        if cx.interrupt.poll(0) {
            return Err(Error::Interrupted); // not all were looked at
        }
        let wrong = self.unverified.get(first_wrong.into_inner()).cloned();
        self.verified(wrong)
    }

    fn is_intact(&self, block: &Unverified) -> bool {
        checksum(self.blocks[block.index].bytes()) == block.checksum
    }

    fn verified(&mut self, wrong: Option<Unverified>) -> Result<()> {
        if let Some(block) = wrong {
            self.check()?; // it may have changed just now, which says more
            let (first, last) = (block.index * BLOCK, (block.index + 1) * BLOCK - 1);
            let what =
                format!("a damaged saved session: what it has of tokens {first} to {last} is not what was saved");
            return Err(Error::SavedSession { path: block.path.to_path_buf(), what });
        }
        self.unverified.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{AttentionConfig, Config, plain};
    use crate::kernels::{self, KV_TYPES, RopeStyle};
    use crate::quant::{self, DType};
    use crate::sampling::Rng;

    fn config(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> Config {
        plain(n_layers, 64, AttentionConfig::new(n_kv_heads, n_kv_heads, head_dim), 64)
    }

    fn sequence(n_layers: usize, heads: usize, head_dim: usize, kv_type: DType, context_length: usize) -> Sequence {
        let layout = Layout::new(&config(n_layers, heads, head_dim), kv_type).unwrap();
        Sequence::new(&Arc::new(layout), context_length).unwrap()
    }

    /// Adds tokens; what is stored of each tells which it is.
    fn go_on(sequence: &mut Sequence, tokens: &[u32]) {
        let layout = Arc::clone(&sequence.layout);
        sequence.reserve(tokens.len()).unwrap();
        for (position, &token) in (sequence.position()..).zip(tokens) {
            let block = sequence.blocks_mut(position / BLOCK, position / BLOCK + 1).next().unwrap();
            for (layer, heads, _) in layout.attention() {
                let key = vec![(1000 * layer) as f32 + token as f32; heads.n_kv_heads * heads.head_dim];
                let bytes = &mut block[layout.at(layer)];
                kernels::best().unwrap().store_kv(heads, bytes, position % BLOCK, &key, Some(&key));
            }
        }
        sequence.push(tokens);
    }

    fn holds(sequence: &Sequence, tokens: &[u32]) {
        assert_eq!(sequence.tokens(), tokens);
        let layout = &sequence.layout;
        for (position, &token) in tokens.iter().enumerate() {
            let block = sequence.blocks[position / BLOCK].bytes();
            for (layer, heads, at) in layout.attention() {
                let bytes = &block[at];
                let expected = half::f16::from_f32((1000 * layer) as f32 + token as f32).to_f32();
                for head in 0..heads.n_kv_heads {
                    let mut numbers = vec![0.0; heads.head_dim];
                    load_key(heads, bytes, head, position % BLOCK, &mut numbers);
                    assert!(numbers.iter().all(|&x| x == expected), "key of position {position}, layer {layer}");
                    quant::dequantize(layout.kv_type(), &bytes[value_row(heads, head, position % BLOCK)], &mut numbers);
                    assert!(numbers.iter().all(|&x| x == expected), "value of position {position}, layer {layer}");
                }
            }
        }
    }

    #[test]
    fn a_layout_has_whole_pages_and_every_head_its_own_bytes() {
        for (head_dim, kv_type) in [(64, DType::F16), (80, DType::F16), (5, DType::F16), (64, DType::Q8_0)] {
            let layout = Layout::new(&config(3, 2, head_dim), kv_type).unwrap();
            assert!(layout.block_bytes().is_multiple_of(crate::mapping::page_size()));
            let layer = 2 * 2 * BLOCK * kv_type.row_bytes(head_dim).unwrap();
            let at: Vec<_> = (0..3).map(|i| layout.at(i)).collect();
            assert_eq!(at, [0..layer, layer..2 * layer, 2 * layer..3 * layer]);
        }
        assert!(Layout::new(&config(2, 3, 80), DType::Q8_0).is_none());
        let layout = Arc::new(Layout::new(&config(2, 3, 64), DType::F16).unwrap());
        assert!(Sequence::new(&layout, usize::MAX).is_err());
    }

    #[test]
    fn forks_share_blocks_and_never_see_what_others_add() {
        let mut rng = Rng::new(1);
        let mut all: Vec<(Sequence, Vec<u32>)> = vec![(sequence(2, 2, 16, DType::F16, 1000), vec![])];
        for _ in 0..400 {
            let i = rng.next_u64() as usize % all.len();
            match rng.next_u64() % 8 {
                0 if all.len() < 6 => {
                    let fork = (all[i].0.fork(), all[i].1.clone());
                    all.push(fork);
                }
                1 if all.len() > 1 => drop(all.swap_remove(i)),
                2 => {
                    let n = rng.next_u64() as usize % (all[i].1.len() + 1);
                    all[i].0.truncate(n).unwrap();
                    all[i].1.truncate(n);
                }
                _ => {
                    let n = rng.next_u64() as usize % 90;
                    let n = n.min(1000 - all[i].1.len());
                    let tokens: Vec<u32> = (0..n).map(|_| (rng.next_u64() % 1000) as u32).collect();
                    go_on(&mut all[i].0, &tokens);
                    all[i].1.extend(tokens);
                }
            }
            all.iter().for_each(|(sequence, tokens)| holds(sequence, tokens));
        }
        // What a fork has in common with its origin is there once.
        let mut origin = sequence(1, 1, 16, DType::F16, 1000);
        go_on(&mut origin, &[7; 200]);
        let mut fork = origin.fork();
        go_on(&mut fork, &[8]);
        let same = |i: usize| Arc::ptr_eq(&origin.blocks[i], &fork.blocks[i]);
        assert!((0..3).all(same) && !same(3));
    }

    #[test]
    fn a_shift_of_a_fork_leaves_its_origin_alone() {
        let kernels = kernels::best().unwrap();
        let mut origin = sequence(2, 2, 16, DType::F16, 1000);
        let tokens: Vec<u32> = (0..300).collect();
        go_on(&mut origin, &tokens);
        for (n_keep, n_discard) in [(0, 64), (3, 100), (100, 1), (70, 229), (290, 10)] {
            let mut fork = origin.fork();
            fork.shift(kernels, n_keep, n_discard, &|_, _| {}).unwrap();
            let expected = [&tokens[..n_keep], &tokens[n_keep + n_discard..]].concat();
            holds(&fork, &expected);
            assert_eq!(fork.exact(), n_keep);
            holds(&origin, &tokens);
        }
        assert!(origin.shift(kernels, 200, 101, &|_, _| {}).is_err());
        assert!(origin.shift(kernels, usize::MAX, 2, &|_, _| {}).is_err());
    }

    /// See `Sequence::shift`.
    #[test]
    fn shifted_keys_are_those_of_their_new_positions() {
        let (hd, n_keep, n_discard, end) = (64, 4, 1998, 4000);
        let turns = |position: f64| -> Vec<[f32; 2]> {
            let angles = (0..hd / 2).map(|i| position * 10_000f64.powf(-2.0 * i as f64 / hd as f64));
            angles.map(|a| [a.cos() as f32, a.sin() as f32]).collect()
        };
        // Of the largest number in a key.
        let largest_error = |dtype| if dtype == DType::F16 { 1.0 / 1024.0 } else { 1.0 / 100.0 };
        for (kernels, dtype) in kernels::all().into_iter().flat_map(|k| KV_TYPES.map(|dtype| (k, dtype))) {
            let mut sequence = sequence(1, 2, hd, dtype, end);
            let layout = Arc::clone(&sequence.layout);
            let heads = layout.heads(0);
            let mut rng = Rng::new(1);
            let raw: Vec<f32> = (0..end * hd).map(|_| (rng.next_f64() * 8.0 - 4.0) as f32).collect();
            let rotated = |position: usize, at: usize| {
                let mut key = raw[position * hd..(position + 1) * hd].to_vec();
                kernels.rope(&mut key, &turns(at as f64), RopeStyle::Interleaved);
                key
            };
            sequence.reserve(end).unwrap();
            for position in 0..end {
                let block = sequence.blocks_mut(position / BLOCK, position / BLOCK + 1).next().unwrap();
                let value = vec![position as f32; 2 * hd];
                let key = rotated(position, position).repeat(2);
                kernels.store_kv(heads, &mut block[layout.at(0)], position % BLOCK, &key, Some(&value));
            }
            sequence.push(&vec![1; end]);
            let back = turns(-(n_discard as f64));
            let rotate = |_: usize, key: &mut [f32]| kernels.rope(key, &back, RopeStyle::Interleaved);
            sequence.shift(kernels, n_keep, n_discard, &rotate).unwrap();
            let mut worst = 0.0f32;
            for at in 0..end - n_discard {
                let position = if at < n_keep { at } else { at + n_discard };
                let expected = rotated(position, at);
                let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let block = &sequence.blocks[at / BLOCK].bytes()[layout.at(0)];
                for head in 0..2 {
                    let (mut key, mut value) = (vec![0.0; hd], vec![0.0; hd]);
                    load_key(heads, block, head, at % BLOCK, &mut key);
                    quant::dequantize(dtype, &block[value_row(heads, head, at % BLOCK)], &mut value);
                    assert!(value.iter().all(|x| (x - position as f32).abs() <= position as f32 / 100.0));
                    for (x, expected) in key.iter().zip(&expected) {
                        worst = worst.max((x - expected).abs() / largest);
                    }
                }
            }
            let most = largest_error(dtype);
            assert!(worst < most && worst > most / 8.0, "{} {dtype}: {worst}", kernels.name());
        }
    }
}
