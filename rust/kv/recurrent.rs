//! What recurrent layers remember of a sequence: states and the positions since.
//!
//! A state says all about the positions before a multiple of [`CHUNK`], and nothing writes to it once it is complete: forks
//! share it, and so do snapshots. The positions since are in a *tail*, a row each, as keys and values are in a block: it can
//! be cut short anywhere, and what a pass that fails has written to it is past its end. A pass that completes a chunk writes a
//! new state and a new tail, which become the sequence's own when the pass is done.
//!
//! A state cannot forget. To go back further than the tail reaches, older states are kept, as snapshots: of the last border of
//! blocks of each batch of up to 512 tokens, and in answers one of every block. There are at most [`MOST`] of them, and at
//! most [`BYTES`] of memory, but always two; the further back, the fewer.

use std::ops::Range;
use std::sync::Arc;

use super::layout::RecurrentLayout;
use super::{Block, Layout};
use crate::error::{Error, Result};
use crate::kernels::{BLOCK, CHUNK};
use crate::mapping::Memory;

/// Most snapshots of a sequence.
const MOST: usize = 8;
/// Memory for snapshots of a sequence, in bytes.
const BYTES: usize = 128 << 20;

/// What is known of the positions before `at`.
pub struct State {
    at: usize,
    block: Block,
}

impl State {
    /// So many positions are before it.
    pub fn at(&self) -> usize {
        self.at
    }
}

/// A state and the positions since.
struct Moment {
    state: Arc<State>,
    tail: Arc<Block>,
}

/// See the module.
pub struct Recurrent {
    layout: Arc<Layout>,
    now: Option<Moment>,        // none yet: nothing was computed
    next: Option<Moment>,       // as far as a pass is that is not complete
    batch: Option<Batch>,       // what is being computed
    snapshots: Vec<Arc<State>>, // the earliest first
    taken: Vec<Arc<State>>,     // by a pass that is not complete
    spare: Vec<Block>,          // a state that nobody needs any more
    spare_tail: Vec<Block>,
}

/// A batch of tokens that is being computed.
struct Batch {
    start: usize,
    tokens: usize,
    next: Option<(State, Block)>, // if it completes a chunk
    snapshot: Option<State>,      // if it crosses a border of blocks and goes on
}

impl Recurrent {
    /// Nothing is remembered yet.
    pub fn new(layout: &Arc<Layout>) -> Self {
        Self {
            layout: Arc::clone(layout),
            now: None,
            next: None,
            batch: None,
            snapshots: Vec::new(),
            taken: Vec::new(),
            spare: Vec::new(),
            spare_tail: Vec::new(),
        }
    }

    /// The same, shared.
    pub fn fork(&self) -> Self {
        let now = self.now.as_ref();
        Self {
            now: now.map(|now| Moment { state: Arc::clone(&now.state), tail: Arc::clone(&now.tail) }),
            snapshots: self.snapshots.clone(),
            ..Self::new(&self.layout)
        }
    }

    /// Goes back to the first `n` positions, of which `computed` are known, or to as many as there is a state of. Gives their
    /// number.
    pub fn truncate(&mut self, n: usize, computed: usize) -> usize {
        self.forget_pass();
        self.snapshots.retain(|state| state.at <= n);
        match &self.now {
            Some(now) if now.state.at <= n => return computed.min(n),
            _ => self.now = None,
        }
        let Some(state) = self.snapshots.last() else { return 0 };
        let Ok(tail) = self.spare_tail.pop().map_or_else(|| block(self.layout.tail_bytes()), Ok) else { return 0 };
        self.now = Some(Moment { state: Arc::clone(state), tail: Arc::new(tail) });
        state.at
    }

    /// Forgets what a pass that failed has left.
    fn forget_pass(&mut self) {
        if let Some(Batch { next: Some((state, tail)), .. }) = self.batch.take() {
            self.spare = vec![state.block];
            self.spare_tail = vec![tail];
        }
        self.next = None;
        self.taken.clear();
    }

    /// Starts a pass after the first `computed` positions.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn begin_pass(&mut self, computed: usize) -> Result<()> {
        self.forget_pass();
        if self.now.is_none() {
            debug_assert!(computed == 0, "a state of what was computed");
            let state = State { at: 0, block: block(self.layout.state_bytes())? };
            self.now = Some(Moment { state: Arc::new(state), tail: Arc::new(block(self.layout.tail_bytes())?) });
        }
        let now = self.now.as_mut().expect("made above");
        if Arc::get_mut(&mut now.tail).is_none() {
            let mut own = block(self.layout.tail_bytes())?;
            if computed > now.state.at {
                own.bytes_mut().copy_from_slice(now.tail.bytes());
            }
            now.tail = Arc::new(own);
        }
        Ok(())
    }

    /// Prepares for the next batch of a pass: the positions `start .. start + tokens`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn begin_batch(&mut self, start: usize, tokens: usize) -> Result<()> {
        let at = self.latest().state.at;
        debug_assert!((at..at + CHUNK).contains(&start), "the tail reaches as far");
        let end = start + tokens;
        let last = end / CHUNK * CHUNK;
        let mut batch = Batch { start, tokens, next: None, snapshot: None };
        if last > at {
            let state = self.spare.pop().map_or_else(|| block(self.layout.state_bytes()), Ok)?;
            let tail = self.spare_tail.pop().map_or_else(|| block(self.layout.tail_bytes()), Ok)?;
            batch.next = Some((State { at: last, block: state }, tail));
            let border = end / BLOCK * BLOCK;
            if border > at && border != last {
                batch.snapshot = Some(State { at: border, block: block(self.layout.state_bytes())? });
            }
        }
        self.batch = Some(batch);
        Ok(())
    }

    /// What a layer needs and gives for the batch.
    ///
    /// # Panics
    /// If no batch was begun, or if the layer is not recurrent.
    pub fn layer(&mut self, layer: usize) -> LayerMemory<'_> {
        let layout = self.layout.recurrent(layer).expect("a recurrent layer");
        let Batch { start, tokens, next, snapshot } = self.batch.as_mut().expect("a batch");
        let moment = self.next.as_mut().or(self.now.as_mut()).expect("a state");
        let RecurrentLayout { config, inputs, heads, tail_inputs, tail_heads } = layout;
        let at = moment.state.at;
        let state: &[f32] = bytemuck::cast_slice(moment.state.block.bytes());
        let tail = Arc::get_mut(&mut moment.tail).expect("this sequence's own since the pass began");
        let (tail_inputs_here, tail_here) = split(tail, tail_inputs, tail_heads);
        LayerMemory {
            n_before: config.n_taps - 1,
            channels: config.channels,
            at,
            start: *start,
            tokens: *tokens,
            inputs: &state[inputs.clone()],
            state: &state[heads.clone()],
            tail_inputs: tail_inputs_here,
            tail: tail_here,
            next: next.as_mut().map(|(state, tail)| {
                let (next_inputs, next_state) = split(&mut state.block, inputs, heads);
                let (next_tail_inputs, next_tail) = split(tail, tail_inputs, tail_heads);
                Next {
                    at: state.at,
                    inputs: next_inputs,
                    state: next_state,
                    tail_inputs: next_tail_inputs,
                    tail: next_tail,
                }
            }),
            snapshot: snapshot.as_mut().map(|state| {
                let (inputs, heads) = split(&mut state.block, inputs, heads);
                (state.at, inputs, heads)
            }),
        }
    }

    /// The batch was computed.
    pub fn end_batch(&mut self) {
        let Batch { next, snapshot, .. } = self.batch.take().expect("a batch");
        self.taken.extend(snapshot.map(Arc::new));
        if let Some((state, tail)) = next {
            let next = Moment { state: Arc::new(state), tail: Arc::new(tail) };
            if next.state.at.is_multiple_of(BLOCK) {
                self.taken.push(Arc::clone(&next.state));
            }
            if let Some(before) = self.next.replace(next) {
                self.recycle(before);
            }
        }
    }

    /// The pass is complete.
    pub fn end_pass(&mut self) {
        self.snapshots.append(&mut self.taken);
        self.thin_out();
        if let Some(next) = self.next.take()
            && let Some(before) = self.now.replace(next)
        {
            self.recycle(before);
        }
    }

    /// Keeps the memory of what nobody else uses for the next state.
    fn recycle(&mut self, moment: Moment) {
        if let Some(state) = Arc::into_inner(moment.state) {
            self.spare = vec![state.block];
        }
        if let Some(tail) = Arc::into_inner(moment.tail) {
            self.spare_tail = vec![tail];
        }
    }

    /// Drops snapshots until there are few enough: those whose neighbours are near for how far back they are.
    fn thin_out(&mut self) {
        let most = (BYTES / self.layout.state_bytes().max(1)).clamp(2, MOST);
        while self.snapshots.len() > most {
            let at = |i: usize| self.snapshots[i].at;
            let last = self.snapshots.len() - 1;
            let loss = |i: &usize| {
                let before = if *i == 0 { 0 } else { at(i - 1) };
                (at(i + 1) - before) as f64 / (at(last) - before) as f64
            };
            let least = (0..last).min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("two at least");
            self.snapshots.remove(least);
        }
    }

    fn latest(&self) -> &Moment {
        self.next.as_ref().or(self.now.as_ref()).expect("a pass was begun")
    }

    /// What there is to save for the first `n` positions: a state, its position, and the tail if any of it is wanted.
    #[allow(clippy::type_complexity)] // used in one place
    pub fn saved(&self, n: usize) -> Option<(usize, &[u8], Option<&[u8]>)> {
        if let Some(now) = self.now.as_ref().filter(|now| now.state.at <= n) {
            return Some((now.state.at, now.state.block.bytes(), Some(now.tail.bytes())));
        }
        let state = self.snapshots.iter().rev().find(|state| state.at <= n)?;
        Some((state.at, state.block.bytes(), None))
    }

    /// What is known of just the first `n` positions, if there is a snapshot of it.
    pub fn state_at(&self, n: usize) -> Option<&Arc<State>> {
        self.snapshots.iter().find(|state| state.at == n)
    }

    /// Goes on from a state of others.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn go_on_from(&mut self, state: Arc<State>) -> Result<()> {
        self.forget_pass();
        self.snapshots = vec![Arc::clone(&state)];
        self.now = Some(Moment { state, tail: Arc::new(block(self.layout.tail_bytes())?) });
        Ok(())
    }

    /// Takes over what was saved.
    pub fn restore(&mut self, at: usize, state: Block, tail: Block) {
        let state = Arc::new(State { at, block: state });
        self.forget_pass();
        self.snapshots = vec![Arc::clone(&state)];
        self.now = Some(Moment { state, tail: Arc::new(tail) });
    }

    /// Whether the file that a state came from, if any, is still what it was.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<()> {
        self.now.as_ref().map_or(Ok(()), |now| now.state.block.check().and(now.tail.check()))
    }
}

/// So many zeros.
fn block(bytes: usize) -> Result<Block> {
    let memory = Memory::zeroed(bytes)
        .map_err(|_| Error::OutOfMemory { bytes: bytes as u128, what: "the state of recurrent layers" })?;
    Ok(Block::cut(memory, bytes).next().expect("one block"))
}

/// Two parts of a block that follow one another.
fn split<'a>(block: &'a mut Block, first: &Range<usize>, second: &Range<usize>) -> (&'a mut [f32], &'a mut [f32]) {
    let numbers: &mut [f32] = bytemuck::cast_slice_mut(block.bytes_mut());
    numbers[first.start..second.end].split_at_mut(first.len())
}

/// What a recurrent layer has of a sequence, for a batch of its tokens.
pub struct LayerMemory<'a> {
    n_before: usize, // inputs that a convolution sees before a token's own
    channels: usize,
    at: usize, // the position of the state
    start: usize,
    tokens: usize,
    inputs: &'a [f32],
    tail_inputs: &'a mut [f32],
    /// The state of the heads, the positions since, and those after the last full chunk; see
    /// [`LinearSpan`](crate::kernels::LinearSpan).
    pub state: &'a [f32],
    #[allow(missing_docs)]
    pub tail: &'a mut [f32],
    next: Option<Next<'a>>,
    snapshot: Option<(usize, &'a mut [f32], &'a mut [f32])>,
}

struct Next<'a> {
    at: usize,
    inputs: &'a mut [f32],
    state: &'a mut [f32],
    tail_inputs: &'a mut [f32],
    tail: &'a mut [f32],
}

impl<'a> LayerMemory<'a> {
    /// The inputs of a convolution for the batch: those before it, then its own, which `own` has.
    pub fn inputs<'b>(&'b self, own: impl Fn(usize) -> &'b [f32]) -> Vec<&'b [f32]> {
        let before = (self.start..self.start + self.n_before).map(|i| self.input_before(i));
        before.chain((0..self.tokens).map(own)).collect()
    }

    /// The input of position `i - n_before`, which is before the batch.
    fn input_before(&self, i: usize) -> &[f32] {
        let row = |of: &'_ [f32], i: usize| -> Range<usize> {
            debug_assert!((i + 1) * self.channels <= of.len());
            i * self.channels..(i + 1) * self.channels
        };
        match i.checked_sub(self.at + self.n_before) {
            Some(i) => &self.tail_inputs[row(self.tail_inputs, i)],
            None => &self.inputs[row(self.inputs, i - self.at)],
        }
    }

    /// Remembers the inputs of the batch, for the tokens after it.
    pub fn remember_inputs<'b>(&mut self, own: impl Fn(usize) -> &'b [f32]) {
        let (n_before, channels, start, end) = (self.n_before, self.channels, self.start, self.start + self.tokens);
        let copy = |this: &Self, out: &mut [f32], first: usize, n: usize| {
            // The inputs of the positions `first - n_before ..`, as many as `n`.
            for (out, i) in out.chunks_exact_mut(channels).zip(first..first + n) {
                out.copy_from_slice(if i < start + n_before {
                    this.input_before(i)
                } else {
                    own(i - n_before - start)
                });
            }
        };
        if let Some((at, inputs, heads)) = self.snapshot.take() {
            copy(self, inputs, at, n_before);
            self.snapshot = Some((at, inputs, heads));
        }
        match self.next.take() {
            Some(next) => {
                copy(self, next.inputs, next.at, n_before);
                copy(self, next.tail_inputs, next.at + n_before, end - next.at);
                self.next = Some(next);
            }
            None => {
                let at = (start - self.at) * channels;
                for (t, out) in self.tail_inputs[at..].chunks_exact_mut(channels).take(self.tokens).enumerate() {
                    out.copy_from_slice(own(t));
                }
            }
        }
    }

    /// For linear attention.
    pub fn span(self) -> crate::kernels::LinearSpan<'a> {
        crate::kernels::LinearSpan {
            tokens: self.tokens,
            filled: self.start - self.at,
            state: self.state,
            tail: self.tail,
            next: self.next.map(|next| (next.state, next.tail)),
            keep: self.snapshot.map(|(at, _, state)| ((at - self.at) / CHUNK, state)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{AttentionConfig, Mixer, ShortConvConfig, plain};
    use crate::quant::DType;

    fn recurrent() -> Recurrent {
        let mut config = plain(2, 1024, AttentionConfig::new(2, 2, 16), 64);
        config.layers[0].mixer = Mixer::ShortConv(ShortConvConfig { n_taps: 3 });
        Recurrent::new(&Arc::new(Layout::new(&config, DType::F16).unwrap()))
    }

    /// Adds positions, in batches of these lengths.
    fn go_on(recurrent: &mut Recurrent, mut position: usize, batches: &[usize]) -> usize {
        recurrent.begin_pass(position).unwrap();
        for &tokens in batches {
            recurrent.begin_batch(position, tokens).unwrap();
            recurrent.end_batch();
            position += tokens;
        }
        recurrent.end_pass();
        position
    }

    #[test]
    fn snapshots_are_few_and_rarer_the_further_back() {
        let mut recurrent = recurrent();
        let mut position = go_on(&mut recurrent, 0, &[512, 512, 300]);
        for _ in 0..3000 {
            position = go_on(&mut recurrent, position, &[1]);
            let at: Vec<usize> = recurrent.snapshots.iter().map(|state| state.at).collect();
            assert!(at.len() <= MOST && at.is_sorted() && at.iter().all(|at| at.is_multiple_of(BLOCK)), "{at:?}");
            assert!(*at.last().unwrap() == position / BLOCK * BLOCK);
        }
        // Wherever one goes back to, not much more than that way has to be computed again.
        let at: Vec<usize> = recurrent.snapshots.iter().map(|state| state.at).collect();
        for n in 1..position {
            let found = at.iter().rev().find(|&&at| at <= n).copied().unwrap_or(0);
            assert!(n - found <= 3 * (position - n) + 2 * BLOCK, "{n} of {position}: {at:?}");
        }
    }

    #[test]
    fn what_is_gone_back_to_is_a_snapshot_or_in_the_tail() {
        let mut recurrent = recurrent();
        let position = go_on(&mut recurrent, 0, &[200]);
        assert_eq!(recurrent.truncate(195, position), 195); // in the tail
        assert_eq!(recurrent.truncate(192, 195), 192);
        let fork = recurrent.fork();
        assert_eq!(recurrent.truncate(191, 192), 0); // the snapshot of 192 is too new
        let position = go_on(&mut recurrent, 0, &[100, 90]);
        assert_eq!(recurrent.truncate(150, position), 128);
        assert_eq!(recurrent.truncate(70, 128), 64);
        let mut fork = fork; // which still has its own
        assert_eq!(fork.truncate(192, 192), 192);
        assert_eq!(fork.saved(192).map(|(at, ..)| at), Some(192));
    }
}
