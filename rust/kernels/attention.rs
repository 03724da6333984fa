//! Attention over blocks of keys and values, and the types that they can have.
//!
//! Keys and values lie in blocks of [`BLOCK`] positions, each head's keys and each head's values by themselves:
//!
//! ```text
//! keys of a head     [dimension][position]    F16; a query times 64 keys needs no transposing
//!                    [dimension / 32][scale per position, then 32 x position]    Q8_0
//! values of a head   [position][dimension]
//! ```
//!
//! Where the values are the end of the keys (latent attention), there are the keys alone.
//!
//! A query's result does not depend on who else is in the batch: the order of every sum follows from its own position.
//! Scores are summed over the dimensions one after another, positions are cut into parts of [`PART`], each part is a
//! softmax of its own, and parts are put together from the first to the last. Whether a worker does all parts of many
//! queries or one part of a few is a matter of speed only.
//!
//! One body for each operation, over a [`Vector`], as in [`ops`](super::ops).

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::cell::RefCell;
use std::ops::Range;

use half::f16;

use super::Context;
use super::vector::{Number, Vector, exp, prefetch};
use crate::quant::DType;
use crate::threads::Disjoint;

/// The types that keys and values can be stored in. Q8_0 takes 53 % of the memory of F16.
pub const KV_TYPES: [DType; 2] = [DType::F16, DType::Q8_0];

/// Positions of a block of keys and values.
pub const BLOCK: usize = 64;

/// Bytes of a block of 32 numbers of that type: an f16 scale and integers.
const Q8_0: usize = DType::Q8_0.block_bytes();

/// Positions that are one softmax before they are put together with others: enough tasks for many workers where the
/// context is long, though there may be few heads.
const PART: usize = 4 * BLOCK;
/// Queries (tokens times heads of a group) that share unpacked keys and values.
const QUERIES: usize = 96;
/// From this many queries on, unpacking keys and values to floats once pays; fewer convert them on the way.
const UNPACKED_QUERIES: usize = TILE_ROWS + 1;
/// From this many queries on, a task takes all parts; of fewer, a part is a task.
const TILE_QUERIES: usize = 6;
/// If a span has fewer tasks than this (few heads of keys, few tokens), a part is one, too: there are other workers.
const FEW_TASKS: usize = 4;

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads; `n_heads / n_kv_heads` query heads share one.
    pub n_kv_heads: usize,
    /// Numbers of a head's queries and keys.
    pub head_dim: usize,
    /// Numbers of a head's values.
    pub value_dim: usize,
    /// Whether the values are the last `value_dim` numbers of the keys, and not stored besides.
    pub values_in_keys: bool,
    /// Type of keys and values, one of [`KV_TYPES`].
    pub kv_type: DType,
}

impl Heads {
    /// Bytes of the keys of one head in a block, and of its values; `None` if a head is not whole blocks of the type.
    fn head_bytes(&self) -> Option<[usize; 2]> {
        let bytes = |n: usize| self.kv_type.row_bytes(n)?.checked_mul(BLOCK);
        Some([bytes(self.head_dim)?, if self.values_in_keys { 0 } else { bytes(self.value_dim)? }])
    }

    /// Bytes of a layer in a block: the keys of all heads, then the values of all heads. `None` as above.
    pub fn layer_bytes(&self) -> Option<usize> {
        let [keys, values] = self.head_bytes()?;
        keys.checked_add(values)?.checked_mul(self.n_kv_heads)
    }

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Where the keys of a head are in the bytes of a layer, and where its values are.
    fn at(&self, kv_head: usize) -> [Range<usize>; 2] {
        let [key_bytes, value_bytes] = self.head_bytes().expect("checked when the job was made");
        let (keys, values) = (kv_head * key_bytes, self.n_kv_heads * key_bytes + kv_head * value_bytes);
        [keys..keys + key_bytes, values..values + value_bytes]
    }
}

/// Which positions a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All up to its own.
    Causal,
    /// Its own and those before it, so many in all.
    Window(usize),
    /// Those up to its own of the same chunk of so many (Llama 4).
    Chunk(usize),
    /// All, also those after it: an encoder.
    All,
    /// Those that are at most half of this away, before it and after it: an encoder.
    Around(usize),
}

impl Mask {
    /// The positions that a token sees, of `end`. Neither bound falls from one token to the next.
    pub fn visible(self, position: usize, end: usize) -> Range<usize> {
        match self {
            Mask::Causal => 0..position + 1,
            Mask::Window(n) => (position + 1).saturating_sub(n)..position + 1,
            Mask::Chunk(n) => position - position % n..position + 1,
            Mask::All => 0..end,
            Mask::Around(n) => position.saturating_sub(n / 2)..end.min(position + n / 2 + 1),
        }
    }
}

/// What becomes of the scores.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// What `q . k` is multiplied with.
    pub scale: f32,
    /// `x -> softcap * tanh(x / softcap)`, before masking (Gemma 2).
    pub softcap: Option<f32>,
    /// The largest slope of a bias that falls with the distance, by head (ALiBi, Press et al. 2022).
    pub alibi: Option<f32>,
    /// Who sees whom.
    pub mask: Mask,
    /// A score of each head that belongs to no position, `(n_heads)` (gpt-oss).
    pub sinks: Option<&'a [f32]>,
}

impl Scores<'_> {
    fn sink(&self, head: usize) -> Option<f32> {
        Some(self.sinks?[head])
    }

    /// By what the score falls with each position of distance.
    fn slope(&self, head: usize, n_heads: usize) -> Option<f32> {
        let largest = self.alibi?;
        // Heads up to the power of two have a geometric series; the others the odd members of the next one.
        let power = 1 << n_heads.ilog2();
        Some(match head.checked_sub(power) {
            None => (-largest * (head + 1) as f32 / power as f32).exp2(),
            Some(i) => (-largest / 2.0 * (2 * i + 1) as f32 / power as f32).exp2(),
        })
    }
}

/// Tokens of one sequence in the batch, and its keys and values: those of the tokens are there already.
pub struct AttentionSpan<'a> {
    /// How many tokens, one after another.
    pub tokens: usize,
    /// Position of the first. There are no positions after the last.
    pub start: usize,
    /// The layer in each block of the sequence, see [`Heads::layer_bytes`]; at least as many as the tokens see.
    pub blocks: Vec<&'a [u8]>,
}

impl AttentionSpan<'_> {
    fn end(&self) -> usize {
        self.start + self.tokens
    }

    /// The parts that its tokens see.
    fn parts(&self, mask: Mask) -> Range<usize> {
        mask.visible(self.start, self.end()).start / PART..self.end().div_ceil(PART)
    }
}

/// Attention of a batch of tokens over one layer: `out = softmax(scale q k^T) v` for each query head, see [`Scores`].
pub struct Attention<'a> {
    q: &'a [f32],           // (tokens, n_heads * head_dim), rotated
    out: Disjoint<'a, f32>, // (tokens, n_heads * value_dim)
    heads: Heads,
    scores: Scores<'a>,
    spans: Vec<AttentionSpan<'a>>,
    first: Vec<usize>,            // the first token of each span in the batch
    parts: Disjoint<'a, f32>, // results of parts, (query, part, value_dim + 2), of the spans that are cut into such tasks
    parts_at: Vec<Option<usize>>, // where those of each span start; None if its tasks take all parts
    tasks: Vec<AttentionTask>,
}

/// One piece of the work: a key-value head and some tokens of a span, all parts of the positions or one.
#[derive(Debug, Clone, Copy)]
struct AttentionTask {
    span: usize,
    kv_head: usize,
    first_token: usize,
    end_token: usize,
    part: Option<usize>,
}

impl<'a> Attention<'a> {
    /// Attention of the spans' tokens, which follow one another in `q` and `out`. `parts` is scratch, and grows.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn new(
        heads: Heads,
        scores: Scores<'a>,
        q: &'a [f32],
        spans: Vec<AttentionSpan<'a>>,
        out: &'a mut [f32],
        parts: &'a mut Vec<f32>,
    ) -> Self {
        let Heads { n_heads, n_kv_heads, head_dim, value_dim, values_in_keys, kv_type } = heads;
        assert!(!values_in_keys || value_dim <= head_dim, "values that are part of the keys");
        let layer_bytes = heads.layer_bytes().expect("heads are whole blocks");
        assert!(KV_TYPES.contains(&kv_type) && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "heads");
        let tokens: usize = spans.iter().map(|span| span.tokens).sum();
        let numbers = |dim: usize| n_heads.checked_mul(dim).and_then(|n| n.checked_mul(tokens)).expect("a size");
        let fit = q.len() == numbers(head_dim) && out.len() == numbers(value_dim);
        assert!(fit, "queries and results of {tokens} tokens");
        assert!(scores.sinks.is_none_or(|sinks| sinks.len() == n_heads), "a sink of each head");
        for span in &spans {
            let needed = span.end().div_ceil(BLOCK);
            assert!(span.blocks.len() >= needed && span.blocks.iter().all(|b| b.len() == layer_bytes), "blocks");
        }

        let (mut first, mut parts_at, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        let (mut token, mut scratch) = (0, 0);
        for (i, span) in spans.iter().enumerate() {
            first.push(token);
            token += span.tokens;
            let task = |kv_head, tokens: Range<usize>, part| AttentionTask {
                span: i,
                kv_head,
                first_token: tokens.start,
                end_token: tokens.end,
                part,
            };
            let of_span = span.parts(scores.mask);
            let block = (QUERIES / heads.group()).max(1);
            let few =
                span.tokens * heads.group() < TILE_QUERIES || n_kv_heads * span.tokens.div_ceil(block) < FEW_TASKS;
            if few && of_span.len() > 1 {
                parts_at.push(Some(scratch));
                scratch += span.tokens * n_heads * of_span.len() * (value_dim + 2);
                for part in of_span {
                    tasks.extend((0..n_kv_heads).map(|head| task(head, 0..span.tokens, Some(part))));
                }
            } else {
                parts_at.push(None);
                // The longest, those of the last tokens, come first.
                for start in (0..span.tokens).step_by(block).rev() {
                    let tokens = start..(start + block).min(span.tokens);
                    tasks.extend((0..n_kv_heads).map(|head| task(head, tokens.clone(), None)));
                }
            }
        }
        if parts.len() < scratch {
            *parts = vec![0.0; scratch];
        }
        Self { q, out: Disjoint::new(out), heads, scores, spans, first, parts: Disjoint::new(parts), parts_at, tasks }
    }

    /// Computes it. When the interrupt says stop, the results are incomplete.
    pub fn run(&self, cx: &Context) {
        // SAFETY: each task is run once, and no two write the same results.
        cx.each(self.tasks.len(), &|i| unsafe { cx.kernels.attention(self, i) });
        let cut: Vec<usize> = (0..self.spans.len()).filter(|&i| self.parts_at[i].is_some()).collect();
        // SAFETY: the tasks are done, and spans have their own results.
        cx.each(cut.len(), &|i| unsafe { self.put_together(cut[i]) });
    }

    /// The keys that a task reads first.
    fn first_keys(&self, task: &AttentionTask) -> &[u8] {
        let span = &self.spans[task.span];
        let start = self.scores.mask.visible(span.start + task.first_token, span.end()).start;
        let first = task.part.map_or(start, |part| start.max(part * PART));
        &span.blocks[first / BLOCK][self.heads.at(task.kv_head)[0].clone()]
    }

    /// Where the result of a part is for query `i` (token times heads) of a span that is cut: the sum of weighted values,
    /// the largest score and the sum of the weights relative to it.
    fn part_at(&self, span: usize, query: usize, part: usize) -> Range<usize> {
        let (width, parts) = (self.heads.value_dim + 2, self.spans[span].parts(self.scores.mask));
        let index = query * parts.len() + (part - parts.start);
        let start = self.parts_at[span].expect("a span that is cut") + index * width;
        start..start + width
    }

    /// Puts the parts of a span together.
    ///
    /// # Safety
    /// - All tasks of the span are done, and no other worker writes its results.
    unsafe fn put_together(&self, span: usize) {
        let (dim, n_heads) = (self.heads.value_dim, self.heads.n_heads);
        let AttentionSpan { tokens, start, .. } = self.spans[span];
        for query in 0..tokens * n_heads {
            let at = (self.first[span] * n_heads + query) * dim;
            // SAFETY: the caller's promise: these results are its own.
            let out = unsafe { self.out.slice(at..at + dim) };
            out.fill(0.0);
            let mut sum = PartSum::EMPTY;
            let seen = self.scores.mask.visible(start + query / n_heads, start + tokens);
            for part in seen.start / PART..seen.end.div_ceil(PART) {
                // SAFETY: as above; nobody writes parts any more.
                let part = unsafe { self.parts.slice(self.part_at(span, query, part)) };
                let (acc, scale) = part.split_at(dim);
                sum.add(out, acc, PartSum { largest: scale[0], total: scale[1] });
            }
            sum.finish(out, self.scores.sink(query % n_heads));
        }
    }
}

/// What belongs to a sum of weighted values: the largest score, and the sum of the weights relative to it.
#[derive(Clone, Copy)]
struct PartSum {
    largest: f32,
    total: f32,
}

impl PartSum {
    const EMPTY: Self = Self { largest: f32::NEG_INFINITY, total: 0.0 };

    /// Adds the next part's sum `acc` to `out`. The same instructions for all who call it: not fused, not reordered.
    #[inline(always)]
    fn add(&mut self, out: &mut [f32], acc: &[f32], next: Self) {
        let now = next.largest.max(self.largest);
        let (shrink, grow) = ((self.largest - now).exp(), (next.largest - now).exp());
        (self.largest, self.total) = (now, self.total * shrink + next.total * grow);
        for (out, acc) in out.iter_mut().zip(acc) {
            *out = *out * shrink + acc * grow;
        }
    }

    /// Divides the whole sum, `out`, by its weights and that of the sink.
    #[inline(always)]
    fn finish(mut self, out: &mut [f32], sink: Option<f32>) {
        let mut weight = 1.0;
        if let Some(sink) = sink {
            let now = self.largest.max(sink);
            weight = (self.largest - now).exp();
            self.total = self.total * weight + (sink - now).exp();
        }
        out.iter_mut().for_each(|out| *out = *out * weight / self.total);
    }
}

thread_local! {
    /// Scratch of a worker: it grows to what the largest task needs.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Task `i` of an attention: online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) over parts of the positions.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - No other worker runs the same task.
#[inline(always)]
pub unsafe fn attention<V: Vector>(job: &Attention, i: usize) {
    let AttentionTask { span: index, kv_head, first_token, end_token, part } = job.tasks[i];
    let span = &job.spans[index];
    let Heads { n_heads, head_dim: hd, value_dim: vd, values_in_keys, .. } = job.heads;
    let Scores { scale, softcap, mask, .. } = job.scores;
    let group = job.heads.group();
    let (wide, wide_v) = (hd.next_multiple_of(16), vd.next_multiple_of(16)); // registers are whole in scratch
    let queries = (end_token - first_token) * group;
    let [keys_at, values_at] = job.heads.at(kv_head);
    // Query i of the task is this one of the span, token times heads.
    let query_of = |i: usize| (first_token + i / group) * n_heads + kv_head * group + i % group;
    let batch = job.first[index] * n_heads;
    let position_of = |i: usize| span.start + first_token + i / group;
    let visible = |i: usize| mask.visible(position_of(i), span.end());

    let mut scratch = SCRATCH.take();
    let wide_q = queries.next_multiple_of(16);
    let turned = if values_in_keys { (PART + vd) * wide_q } else { 0 };
    let sizes = [queries * wide, queries * wide_v, queries * wide_v, queries * PART, wide.max(wide_v) * BLOCK, turned];
    let needed = sizes.iter().sum::<usize>();
    if scratch.len() < needed {
        scratch = vec![0.0; needed];
    }
    let mut rest = &mut scratch[..needed];
    let mut take = |n: usize| {
        let (first, others) = std::mem::take(&mut rest).split_at_mut(n);
        rest = others;
        first
    };
    let [q, acc, whole, scores, floats, turned] = sizes.map(&mut take);
    // q: [query][dim], scaled; acc and whole: [query][dim], of a part and of all; scores: [query][position of the part];
    // floats: a block of keys [dim][position] or of values [position][dim]; turned, where values are part of the keys: the
    // weights of a part [position][query], and what acc is to have, [dim][query]
    for i in 0..queries {
        let from = &job.q[(batch + query_of(i)) * hd..][..hd];
        let q = &mut q[i * wide..(i + 1) * wide];
        q.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        q[hd..].fill(0.0);
    }
    whole.fill(0.0);
    let mut sums = vec![PartSum::EMPTY; 2 * queries];
    let (sums, states) = sums.split_at_mut(queries); // of all parts, of this part

    // What any of the tokens sees.
    let (start, end) = (visible(0).start, visible(queries - 1).end);
    let parts = part.map_or(start / PART..end.div_ceil(PART), |part| part..part + 1);
    for part_index in parts {
        let origin = part_index * PART;
        let first = origin.max(start - start % BLOCK);
        let last = (origin + PART).min(end);
        let blocks = || (first..last).step_by(BLOCK);
        let keys_of = |position: usize| &span.blocks[position / BLOCK][keys_at.clone()];
        let values_of = |position: usize| &span.blocks[position / BLOCK][values_at.clone()];
        for at in blocks() {
            // What is read next is asked for: the keys of the next block, or the first values.
            let ahead = if at + BLOCK < last { keys_of(at + BLOCK) } else { values_of(first) };
            // SAFETY: a block has BLOCK positions, the scratch has the shapes given above, and the features are the
            // caller's promise.
            unsafe {
                times_keys::<V>(&mut scores[at - origin..], q, (queries, wide), job.heads, keys_of(at), floats, ahead)
            };
        }
        for i in 0..queries {
            let seen = visible(i);
            let seen = seen.start.clamp(first, last) - origin..seen.end.clamp(first, last) - origin;
            // Those of its own blocks, whoever else is there: what it does not see is nothing for it to add.
            let (from, to) = (seen.start / BLOCK * BLOCK, seen.end.next_multiple_of(BLOCK));
            let row = &mut scores[i * PART..(i + 1) * PART];
            if !seen.is_empty() {
                // SAFETY: BLOCK is whole registers; the features are the caller's promise.
                unsafe {
                    if let Some(limit) = softcap {
                        super::ops::softcap::<V>(&mut row[from..to], limit);
                    }
                    if let Some(slope) = job.scores.slope(kv_head * group + i % group, n_heads) {
                        for (position, score) in (origin + from..).zip(&mut row[from..to]) {
                            *score -= slope * position.abs_diff(position_of(i)) as f32;
                        }
                    }
                    row[from..seen.start].fill(f32::NEG_INFINITY);
                    row[seen.end..to].fill(f32::NEG_INFINITY);
                    states[i] = soften::<V>(&mut row[from..to]);
                }
            }
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
        }
        let next_task = || job.tasks.get(i + 1).map_or(&[][..], |next| job.first_keys(next));
        if values_in_keys {
            // Values lie as [dim][position]: it is the weights that are turned, which are fewer, and acc.
            let (weights, sums) = turned.split_at_mut(PART * wide_q);
            weights.fill(0.0);
            for (i, scores) in scores.chunks_exact(PART).enumerate() {
                for p in first - origin..last - origin {
                    weights[p * wide_q + i] = scores[p];
                }
            }
            sums.fill(0.0);
            for at in blocks() {
                let ahead = if at + BLOCK < last { keys_of(at + BLOCK) } else { next_task() };
                let shape = (vd, wide_q, BLOCK.min(last - at));
                // SAFETY: as above.
                unsafe {
                    unpack_keys::<V>(floats, job.heads.kv_type, keys_of(at));
                    let values = floats[(hd - vd) * BLOCK..hd * BLOCK].as_ptr();
                    let weights = Rows::floats(&weights[(at - origin) * wide_q..], wide_q);
                    gemm::<V, _>(sums.as_mut_ptr(), wide_q, values, BLOCK, weights, shape, true, ahead);
                }
            }
            for (i, acc) in acc.chunks_exact_mut(wide_v).enumerate() {
                for (dim, acc) in acc[..vd].iter_mut().enumerate() {
                    *acc = sums[dim * wide_q + i];
                }
            }
        } else {
            acc.fill(0.0);
            for at in blocks() {
                let ahead = if at + BLOCK < last { values_of(at + BLOCK) } else { next_task() };
                let (scores, shape) = (&scores[at - origin..], (queries, wide_v, BLOCK.min(last - at)));
                // SAFETY: as above.
                unsafe { times_values::<V>(acc, scores, shape, job.heads, values_of(at), floats, ahead) };
            }
        }
        for i in 0..queries {
            let seen = visible(i);
            if seen.end <= origin || origin + PART <= seen.start {
                continue; // it sees nothing of this part
            }
            let acc = &acc[i * wide_v..][..vd];
            if part.is_some() {
                // SAFETY: this part of this query is the caller's own.
                let part = unsafe { job.parts.slice(job.part_at(index, query_of(i), part_index)) };
                part[..vd].copy_from_slice(acc);
                (part[vd], part[vd + 1]) = (states[i].largest, states[i].total);
            } else {
                sums[i].add(&mut whole[i * wide_v..][..vd], acc, states[i]);
            }
        }
    }
    if part.is_none() {
        for i in 0..queries {
            let query = query_of(i);
            let at = (batch + query) * vd;
            // SAFETY: the results of this query are the caller's own.
            let out = unsafe { job.out.slice(at..at + vd) };
            out.copy_from_slice(&whole[i * wide_v..][..vd]);
            sums[i].finish(out, job.scores.sink(query % n_heads));
        }
    }
    SCRATCH.set(scratch);
}

/// Turns scores into weights relative to the largest of them.
///
/// # Safety
/// - The CPU has the features of `V`; `scores` are whole registers.
#[inline(always)]
unsafe fn soften<V: Vector>(scores: &mut [f32]) -> PartSum {
    // SAFETY: whole registers; the features are the caller's promise.
    unsafe {
        let mut max = V::splat(f32::NEG_INFINITY);
        for s in scores.chunks_exact(V::LANES) {
            max = max.max(V::load(s.as_ptr()));
        }
        let largest = max.largest();
        let mut sum = V::splat(0.0);
        for s in scores.chunks_exact_mut(V::LANES) {
            let p = exp(V::load(s.as_ptr()).sub(V::splat(largest)));
            p.store(s.as_mut_ptr());
            sum = sum.add(p);
        }
        PartSum { largest, total: sum.sum() }
    }
}

/// `scores = q keys`: of a block of keys and some queries `(n, stride)`. `scores` has rows of [`PART`].
///
/// # Safety
/// - The CPU has the features of `V`; `keys` are those of a head of a block.
/// - `q`, `scores` and `floats` are as large as an attention makes them.
#[inline(always)]
unsafe fn times_keys<V: Vector>(
    scores: &mut [f32],
    q: &[f32],
    (queries, wide): (usize, usize),
    heads: Heads,
    keys: &[u8],
    floats: &mut [f32],
    ahead: &[u8],
) {
    let (scores, q, shape) = (scores.as_mut_ptr(), q.as_ptr(), (queries, BLOCK, heads.head_dim));
    // SAFETY: the caller's promises.
    unsafe {
        if heads.values_in_keys || queries >= UNPACKED_QUERIES {
            unpack_keys::<V>(floats, heads.kv_type, keys);
            gemm::<V, _>(scores, PART, q, wide, Rows::floats(floats, BLOCK), shape, false, ahead);
        } else if heads.kv_type == DType::F16 {
            gemm::<V, _>(scores, PART, q, wide, Rows::halves(keys, BLOCK), shape, false, ahead);
        } else {
            gemm::<V, _>(scores, PART, q, wide, KeysQ8(keys.as_ptr()), shape, false, ahead);
        }
    }
}

/// `acc += scores values`: of the first `n` positions of a block and some queries, `(queries, stride of acc, n)`.
///
/// # Safety
/// - As for [`times_keys`].
#[inline(always)]
unsafe fn times_values<V: Vector>(
    acc: &mut [f32],
    scores: &[f32],
    (queries, wide, n): (usize, usize, usize),
    heads: Heads,
    values: &[u8],
    floats: &mut [f32],
    ahead: &[u8],
) {
    let Heads { value_dim: vd, kv_type, .. } = heads;
    let (acc, scores) = (acc.as_mut_ptr(), scores.as_ptr());
    let (shape, padded) = ((queries, vd, n), (queries, wide, n));
    // SAFETY: the caller's promises.
    unsafe {
        if queries >= UNPACKED_QUERIES || !vd.is_multiple_of(V::LANES) {
            unpack_values::<V>(floats, kv_type, values, n, vd, wide);
            gemm::<V, _>(acc, wide, scores, PART, Rows::floats(floats, wide), padded, true, ahead);
        } else if kv_type == DType::F16 {
            gemm::<V, _>(acc, wide, scores, PART, Rows::halves(values, vd), shape, true, ahead);
        } else {
            let values = ValuesQ8(values.as_ptr(), values.len() / BLOCK);
            gemm::<V, _>(acc, wide, scores, PART, values, shape, true, ahead);
        }
    }
}

/// Stores the key (rotated) and the value of one position of a block, see [`super::Kernels::store_kv`].
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn store<V: Vector>(heads: Heads, layer: &mut [u8], slot: usize, key: &[f32], value: Option<&[f32]>) {
    let Heads { n_kv_heads, head_dim: hd, value_dim: vd, values_in_keys, kv_type, .. } = heads;
    let fits = key.len() == n_kv_heads * hd && value.is_none_or(|v| !values_in_keys && v.len() == n_kv_heads * vd);
    assert!(slot < BLOCK && fits, "a position of a block");
    assert!(Some(layer.len()) == heads.layer_bytes(), "a layer of a block");
    let row = if values_in_keys { 0 } else { kv_type.row_bytes(vd).expect("heads are whole blocks") };
    let mut staged = [0u16; 272]; // a piece of a key, as a row
    let staged: &mut [u8] = bytemuck::cast_slice_mut(&mut staged);
    for head in 0..n_kv_heads {
        let [keys_at, values_at] = heads.at(head);
        if let Some(value) = value {
            // SAFETY: the features are the caller's promise.
            unsafe { round_to::<V>(kv_type, &mut layer[values_at][slot * row..][..row], &value[head * vd..][..vd]) };
        }
        let (key, keys) = (&key[head * hd..][..hd], &mut layer[keys_at]);
        // Long heads go piece by piece, of whole groups of 32 as Q8_0 has them.
        for (piece, key) in key.chunks(256).enumerate() {
            let staged = &mut staged[..kv_type.row_bytes(key.len()).expect("whole blocks")];
            // SAFETY: as above.
            unsafe { round_to::<V>(kv_type, staged, key) };
            let keys = &mut keys[kv_type.row_bytes(256 * piece).expect("whole blocks") * BLOCK..];
            match kv_type {
                DType::F16 => {
                    for (to, from) in keys.as_chunks_mut::<{ 2 * BLOCK }>().0.iter_mut().zip(staged.as_chunks::<2>().0)
                    {
                        to[2 * slot..2 * slot + 2].copy_from_slice(from);
                    }
                }
                _ => {
                    for (to, from) in keys.chunks_exact_mut(Q8_0 * BLOCK).zip(staged.as_chunks::<Q8_0>().0) {
                        let (scales, numbers) = to.split_at_mut(2 * BLOCK);
                        scales[2 * slot..2 * slot + 2].copy_from_slice(&from[..2]);
                        for (to, q) in numbers.as_chunks_mut::<BLOCK>().0.iter_mut().zip(&from[2..]) {
                            to[slot] = *q;
                        }
                    }
                }
            }
        }
    }
}

/// Reads the key of one head and position back, as floats: the slow twin of how the kernel reads it.
pub fn load_key(heads: Heads, layer: &[u8], kv_head: usize, slot: usize, out: &mut [f32]) {
    let keys = &layer[heads.at(kv_head)[0].clone()];
    for (dim, out) in out.iter_mut().enumerate() {
        *out = match heads.kv_type {
            DType::F16 => {
                let at = 2 * (dim * BLOCK + slot);
                f16::from_le_bytes([keys[at], keys[at + 1]]).to_f32()
            }
            _ => {
                let group = &keys[dim / 32 * Q8_0 * BLOCK..];
                let d = f16::from_le_bytes([group[2 * slot], group[2 * slot + 1]]).to_f32();
                d * f32::from(group[2 * BLOCK + dim % 32 * BLOCK + slot] as i8)
            }
        };
    }
}

/// Makes the key of one head and position zero.
pub fn zero_key(heads: Heads, layer: &mut [u8], kv_head: usize, slot: usize) {
    let keys = &mut layer[heads.at(kv_head)[0].clone()];
    match heads.kv_type {
        DType::F16 => keys.as_chunks_mut::<{ 2 * BLOCK }>().0.iter_mut().for_each(|dim| dim[2 * slot..][..2].fill(0)),
        _ => {
            for group in keys.chunks_exact_mut(Q8_0 * BLOCK) {
                let (scales, numbers) = group.split_at_mut(2 * BLOCK);
                scales[2 * slot..][..2].fill(0);
                numbers.as_chunks_mut::<BLOCK>().0.iter_mut().for_each(|dim| dim[slot] = 0);
            }
        }
    }
}

/// Where in the layer's part of a block the value of one head and position is; nowhere if it is part of the key.
pub fn value_row(heads: Heads, kv_head: usize, slot: usize) -> Range<usize> {
    let row = heads.head_bytes().expect("heads are whole blocks")[1] / BLOCK;
    let start = heads.at(kv_head)[1].start + slot * row;
    start..start + row
}

/// The keys of a head in a block to floats: `[dim][position]`.
///
/// # Safety
/// - The CPU has the features of `V`; `out` has room for them.
#[inline(always)]
unsafe fn unpack_keys<V: Vector>(out: &mut [f32], dtype: DType, keys: &[u8]) {
    // SAFETY: BLOCK numbers are whole registers; the features are the caller's promise.
    unsafe {
        match dtype {
            DType::F16 => {
                let keys = keys.as_chunks::<{ 2 * BLOCK }>().0;
                for (out, keys) in out.as_chunks_mut::<BLOCK>().0.iter_mut().zip(keys) {
                    for i in (0..BLOCK).step_by(V::LANES) {
                        V::load_f16(keys.as_ptr().add(2 * i).cast()).store(out.as_mut_ptr().add(i));
                    }
                }
            }
            _ => {
                for (out, group) in out.chunks_exact_mut(32 * BLOCK).zip(keys.chunks_exact(Q8_0 * BLOCK)) {
                    let (scales, numbers) = group.split_at(2 * BLOCK);
                    for i in (0..BLOCK).step_by(V::LANES) {
                        let d = V::load_f16(scales.as_ptr().add(2 * i).cast());
                        for dim in 0..32 {
                            let q = V::load_i8(numbers.as_ptr().add(dim * BLOCK + i).cast());
                            q.mul(d).store(out.as_mut_ptr().add(dim * BLOCK + i));
                        }
                    }
                }
            }
        }
    }
}

/// The values of a head in a block, the first `n`, to floats: rows of `wide`.
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn unpack_values<V: Vector>(out: &mut [f32], dtype: DType, values: &[u8], n: usize, hd: usize, wide: usize) {
    let row = values.len() / BLOCK;
    // SAFETY: whole registers of a row, or of a block of it; the features are the caller's promise.
    unsafe {
        for (out, row) in out.chunks_exact_mut(wide).zip(values.chunks_exact(row)).take(n) {
            match dtype {
                DType::F16 => {
                    let whole = hd - hd % V::LANES;
                    for dim in (0..whole).step_by(V::LANES) {
                        V::load_f16(row[2 * dim..].as_ptr().cast()).store(out[dim..].as_mut_ptr());
                    }
                    for dim in whole..hd {
                        out[dim] = f16::from_le_bytes([row[2 * dim], row[2 * dim + 1]]).to_f32();
                    }
                }
                _ => {
                    for (out, block) in out.chunks_exact_mut(32).zip(row.as_chunks::<Q8_0>().0) {
                        let d = V::splat(f16::from_le_bytes([block[0], block[1]]).to_f32());
                        for i in (0..32).step_by(V::LANES) {
                            V::load_i8(block[2 + i..].as_ptr().cast()).mul(d).store(out[i..].as_mut_ptr());
                        }
                    }
                }
            }
            out[hd..].fill(0.0);
        }
    }
}

/// Rounds to one of [`KV_TYPES`], to nearest even.
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn round_to<V: Vector>(dtype: DType, out: &mut [u8], x: &[f32]) {
    assert!(dtype.row_bytes(x.len()) == Some(out.len()));
    match dtype {
        // SAFETY: the features are the caller's promise.
        DType::F16 => unsafe { to_f16::<V>(bytemuck::cast_slice_mut(out), x) },
        DType::Q8_0 => {
            for (block, x) in out.chunks_exact_mut(Q8_0).zip(x.as_chunks::<32>().0) {
                let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let d = f16::from_f32(max / 127.0);
                let inverse = if d > f16::ZERO { 1.0 / d.to_f32() } else { 0.0 };
                // A NaN or infinity must not vanish, and neither a maximum nor an integer tells.
                let d = if x.iter().all(|x| x.is_finite()) { d } else { f16::NAN };
                block[..2].copy_from_slice(&d.to_le_bytes());
                for (q, x) in block[2..].iter_mut().zip(x) {
                    *q = (x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
                }
            }
        }
        other => unreachable!("{other} is not a type of the cache"),
    }
}

/// Rounds to f16.
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn to_f16<V: Vector>(out: &mut [u16], x: &[f32]) {
    let n = out.len();
    assert!(x.len() == n);
    let whole = n - n % V::LANES;
    // SAFETY: `i + LANES <= whole <= n`; the features are the caller's promise.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            V::load(x.as_ptr().add(i)).store_f16(out.as_mut_ptr().add(i));
        }
    }
    for i in whole..n {
        out[i] = half::f16::from_f32(x[i]).to_bits();
    }
}

/// The second matrix of [`gemm`] as it lies in memory, at any alignment: read a register at a time.
trait Columns: Copy {
    /// Rows that share scales.
    const GROUP: usize;
    /// The scales of `N` registers of row `k` from column `j` on, a multiple of that many.
    ///
    /// # Safety
    /// - The CPU has the features of `V`, and the matrix these numbers.
    unsafe fn scales<V: Vector, const N: usize>(self, k: usize, j: usize) -> [V; N];
    /// The numbers of row `k` from column `j` on, times their scale.
    ///
    /// # Safety
    /// - As above.
    unsafe fn load<V: Vector>(self, k: usize, j: usize, scale: V) -> V;
}

/// Numbers without scales, in rows.
#[derive(Clone, Copy)]
struct Rows<B> {
    p: *const B,
    stride: usize,
}

impl Rows<f32> {
    fn floats(numbers: &[f32], stride: usize) -> Self {
        Self { p: numbers.as_ptr(), stride }
    }
}

impl Rows<u16> {
    fn halves(bytes: &[u8], stride: usize) -> Self {
        Self { p: bytes.as_ptr().cast(), stride }
    }
}

impl<B: Number> Columns for Rows<B> {
    const GROUP: usize = usize::MAX;
    #[inline(always)]
    unsafe fn scales<V: Vector, const N: usize>(self, _k: usize, _j: usize) -> [V; N] {
        // SAFETY: the caller's promise.
        unsafe { [V::splat(1.0); N] }
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(self, k: usize, j: usize, _scale: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { B::load::<V>(self.p.add(k * self.stride + j)) }
    }
}

/// Keys in Q8_0, `[dimension / 32][scale per position, then 32 x position]`.
#[derive(Clone, Copy)]
struct KeysQ8(*const u8);

impl Columns for KeysQ8 {
    const GROUP: usize = 32;
    #[inline(always)]
    unsafe fn scales<V: Vector, const N: usize>(self, k: usize, j: usize) -> [V; N] {
        // SAFETY: the caller's promise.
        unsafe {
            let group = self.0.add(k / 32 * Q8_0 * BLOCK).cast::<u16>();
            let mut scales = [V::splat(0.0); N];
            for i in 0..N {
                scales[i] = V::load_f16(group.add(j + i * V::LANES));
            }
            scales
        }
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(self, k: usize, j: usize, scale: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_i8(self.0.add(k / 32 * Q8_0 * BLOCK + 2 * BLOCK + k % 32 * BLOCK + j).cast()).mul(scale) }
    }
}

/// Values in Q8_0, rows of so many bytes, of blocks.
#[derive(Clone, Copy)]
struct ValuesQ8(*const u8, usize);

impl Columns for ValuesQ8 {
    const GROUP: usize = 1;
    #[inline(always)]
    unsafe fn scales<V: Vector, const N: usize>(self, k: usize, j: usize) -> [V; N] {
        // SAFETY: the caller's promise.
        unsafe {
            let row = self.0.add(k * self.1 + j / 32 * Q8_0);
            let mut scales = [V::splat(0.0); N];
            for i in 0..N {
                // `j` is a multiple of N registers: one block has them all, or they begin with one.
                scales[i] = V::splat_f16(row.add(i * V::LANES / 32 * Q8_0).cast());
            }
            scales
        }
    }
    #[inline(always)]
    unsafe fn load<V: Vector>(self, k: usize, j: usize, scale: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_i8(self.0.add(k * self.1 + j / 32 * Q8_0 + 2 + j % 32).cast()).mul(scale) }
    }
}

/// What is read next, and asked for from memory meanwhile: the hardware does not know.
#[derive(Clone, Copy)]
struct Ahead {
    p: *const u8,
    step: usize, // bytes for each step of a tile
}

impl Ahead {
    /// These bytes, in so many steps.
    fn of(bytes: &[u8], steps: usize) -> Self {
        Self { p: bytes.as_ptr(), step: bytes.len() / steps.max(1) }
    }

    #[inline(always)]
    fn ask<const LINES: usize>(self, step: usize) {
        for line in 0..LINES {
            prefetch(self.p.wrapping_add(step * self.step + 64 * line));
        }
    }
}

/// Rows of a tile, at most.
const TILE_ROWS: usize = 8;

/// `c (+)= a b` with `(m, n, k)`: `a` is m x k, `b` is k x n and n a multiple of 16, all row-major with a stride.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - The matrices are there, with these sizes and strides.
#[allow(clippy::too_many_arguments)] // BLAS has them, too
#[inline(always)]
unsafe fn gemm<V: Vector, B: Columns>(
    c: *mut f32,
    c_stride: usize,
    a: *const f32,
    a_stride: usize,
    b: B,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
    ahead: &[u8],
) {
    let mut i = 0;
    while i < m {
        // Where there are many rows: six and four registers of columns, or six and two; eight if one register has them all.
        let rows = match m - i {
            left @ ..=TILE_ROWS => left,
            _ if n == V::LANES => TILE_ROWS,
            _ => 6,
        };
        // SAFETY: the rows lie within the matrices that the caller has.
        unsafe {
            let (c, a) = (c.add(i * c_stride), a.add(i * a_stride));
            let ahead = if i == 0 { ahead } else { &[] };
            // Sums in registers, where there are 32 and where there are 16; besides one or more of b and one of a.
            macro_rules! tiles {
                ($rows:literal, $of_32:literal, $of_16:literal) => {
                    if V::REGISTERS == 32 {
                        gemm_rows::<V, B, $rows, $of_32>(c, c_stride, a, a_stride, b, (n, k), accumulate, ahead)
                    } else {
                        gemm_rows::<V, B, $rows, $of_16>(c, c_stride, a, a_stride, b, (n, k), accumulate, ahead)
                    }
                };
            }
            match rows {
                1 => tiles!(1, 4, 4),
                2 => tiles!(2, 4, 4),
                3 => tiles!(3, 4, 2),
                4 => tiles!(4, 4, 2),
                5 => tiles!(5, 4, 2),
                6 => tiles!(6, 4, 2),
                7 => tiles!(7, 2, 1),
                _ => tiles!(8, 2, 1),
            }
        }
        i += rows;
    }
}

/// `R` rows of [`gemm`], in tiles of `N` registers of columns as long as there are so many.
///
/// # Safety
/// - As there.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn gemm_rows<V: Vector, B: Columns, const R: usize, const N: usize>(
    c: *mut f32,
    c_stride: usize,
    a: *const f32,
    a_stride: usize,
    b: B,
    (n, k): (usize, usize),
    accumulate: bool,
    ahead: &[u8],
) {
    // Where there is nothing to ask for, what is there anyway: a branch in the loop would cost more.
    let steps = n.div_ceil(N * V::LANES) * k;
    let mut ahead = if ahead.is_empty() { Ahead { p: a.cast(), step: 0 } } else { Ahead::of(ahead, steps) };
    let mut j = 0;
    while j < n {
        // SAFETY: the tile lies within the matrices that the caller has.
        unsafe {
            if j + N * V::LANES <= n {
                gemm_tile::<V, B, R, N>(c, c_stride, a, a_stride, b, (j, k), accumulate, ahead);
                j += N * V::LANES;
            } else {
                gemm_tile::<V, B, R, 1>(c, c_stride, a, a_stride, b, (j, k), accumulate, ahead);
                j += V::LANES;
            }
        }
        ahead.p = ahead.p.wrapping_add(k * ahead.step);
    }
}

/// A tile of `R` rows and `N` registers of columns from `j` on of [`gemm`].
///
/// # Safety
/// - As there.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn gemm_tile<V: Vector, B: Columns, const R: usize, const N: usize>(
    c: *mut f32,
    c_stride: usize,
    a: *const f32,
    a_stride: usize,
    b: B,
    (j, k_end): (usize, usize),
    accumulate: bool,
    ahead: Ahead,
) {
    // SAFETY: the caller has R rows and N registers of columns.
    unsafe {
        let c = c.add(j);
        let mut sums = [[V::splat(0.0); N]; R];
        if accumulate {
            for i in 0..R {
                for n in 0..N {
                    sums[i][n] = V::load(c.add(i * c_stride + n * V::LANES));
                }
            }
        }
        let mut k = 0;
        while k < k_end {
            let scales = b.scales::<V, N>(k, j);
            let end = k_end.min(k.saturating_add(B::GROUP));
            while k < end {
                // As many lines as halves of these columns would be.
                if N * V::LANES > 32 {
                    ahead.ask::<2>(k)
                } else {
                    ahead.ask::<1>(k)
                }
                let mut columns = [V::splat(0.0); N];
                for n in 0..N {
                    columns[n] = b.load::<V>(k, j + n * V::LANES, scales[n]);
                }
                for i in 0..R {
                    let a = V::splat(*a.add(i * a_stride + k));
                    for n in 0..N {
                        sums[i][n] = a.mul_add(columns[n], sums[i][n]);
                    }
                }
                k += 1;
            }
        }
        for i in 0..R {
            for n in 0..N {
                sums[i][n].store(c.add(i * c_stride + n * V::LANES));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kernels, all};
    use super::*;
    use crate::sampling::Rng;
    use crate::threads::Interrupt;

    /// The keys and values of a sequence in blocks; positions that nobody wrote are NaN.
    struct Cache {
        heads: Heads,
        blocks: Vec<Vec<u8>>,
    }

    impl Cache {
        fn new(kernels: &dyn Kernels, heads: Heads, keys: &[f32], values: &[f32]) -> Self {
            let [width, value_width] = [heads.head_dim, heads.value_dim].map(|dim| heads.n_kv_heads * dim);
            let n = keys.len() / width;
            let blocks = vec![vec![0xff; heads.layer_bytes().unwrap()]; n.div_ceil(BLOCK)];
            let mut cache = Self { heads, blocks };
            for (p, (key, value)) in keys.chunks(width).zip(values.chunks(value_width)).enumerate() {
                let value = Some(value).filter(|_| !heads.values_in_keys);
                kernels.store_kv(heads, &mut cache.blocks[p / BLOCK], p % BLOCK, key, value);
            }
            cache
        }

        /// Key and value of a position, as they were rounded.
        fn get(&self, head: usize, position: usize) -> [Vec<f32>; 2] {
            let Heads { head_dim, value_dim, kv_type, .. } = self.heads;
            let block = &self.blocks[position / BLOCK];
            let (mut key, mut value) = (vec![0.0; head_dim], vec![0.0; value_dim]);
            load_key(self.heads, block, head, position % BLOCK, &mut key);
            if self.heads.values_in_keys {
                value.copy_from_slice(&key[head_dim - value_dim..]);
            } else {
                crate::quant::dequantize(kv_type, &block[value_row(self.heads, head, position % BLOCK)], &mut value);
            }
            [key, value]
        }

        fn span(&self, start: usize, tokens: usize) -> AttentionSpan<'_> {
            let blocks = self.blocks[..(start + tokens).div_ceil(BLOCK)].iter().map(|b| &b[..]).collect();
            AttentionSpan { tokens, start, blocks }
        }
    }

    fn random(rng: &mut Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| (rng.next_f64() * 4.0 - 2.0) as f32).collect()
    }

    fn run(
        kernels: &'static dyn Kernels,
        threads: usize,
        heads: Heads,
        scores: Scores,
        q: &[f32],
        spans: Vec<AttentionSpan>,
    ) -> Vec<f32> {
        let (mut out, mut parts) = (vec![f32::NAN; q.len() / heads.head_dim * heads.value_dim], Vec::new());
        let interrupt = Interrupt::never();
        let cx = Context { kernels, threads, interrupt: &interrupt, observer: None, adapted: &[] };
        Attention::new(heads, scores, q, spans, &mut out, &mut parts).run(&cx);
        out
    }

    /// Plain attention, and one of each option.
    fn options(i: usize, sinks: &[f32]) -> Scores<'_> {
        let plain = Scores { scale: 0.1, softcap: None, alibi: None, mask: Mask::Causal, sinks: None };
        match i % 7 {
            0 => plain,
            1 => Scores { mask: Mask::Window(90), ..plain },
            2 => Scores { mask: Mask::Chunk(70), softcap: Some(1.5), ..plain },
            3 => Scores { sinks: Some(sinks), mask: Mask::Window(1), ..plain },
            4 => Scores { mask: Mask::All, alibi: Some(8.0), ..plain },
            5 => Scores { mask: Mask::Around(40), softcap: Some(2.0), ..plain },
            _ => Scores { sinks: Some(sinks), alibi: Some(4.0), ..plain },
        }
    }

    // length of keys and of values, heads, heads of keys and values, their type
    const CASES: [(usize, usize, usize, usize, DType); 17] = [
        (64, 64, 9, 3, DType::F16),
        (64, 32, 9, 3, DType::Q8_0),
        (128, 128, 4, 4, DType::F16),
        (96, 96, 4, 4, DType::Q8_0),
        (80, 48, 4, 1, DType::F16),
        (36, 36, 2, 1, DType::F16),
        (5, 7, 3, 3, DType::F16),
        (32, 32, 2, 1, DType::Q8_0),
        (288, 288, 2, 2, DType::Q8_0), // longer than a piece of `store`
        (16, 16, 100, 1, DType::F16),  // more heads in a group than queries in a task
        // each number of rows of a tile
        (32, 64, 5, 1, DType::Q8_0),
        (64, 64, 6, 1, DType::F16),
        (64, 96, 7, 1, DType::F16),
        (64, 64, 8, 1, DType::Q8_0),
        // values that are part of the keys, see `heads`
        (97, 85, 7, 1, DType::F16),
        (97, 40, 2, 1, DType::F16),
        (160, 128, 14, 2, DType::Q8_0),
    ];

    fn heads((head_dim, value_dim, n_heads, n_kv_heads, kv_type): (usize, usize, usize, usize, DType)) -> Heads {
        let values_in_keys = [97, 160].contains(&head_dim);
        Heads { n_heads, n_kv_heads, head_dim, value_dim, values_in_keys, kv_type }
    }

    #[test]
    fn attention_equals_plain_arithmetic() {
        let mut rng = Rng::new(6);
        let shapes = [(0, 70), (200, 1), (63, 2), (130, 5), (511, 3), (256, 1), (1, 33)];
        for (i, (head_dim, value_dim, n_heads, n_kv_heads, kv_type)) in (0..7).flat_map(|i| CASES.map(|case| (i, case)))
        {
            let heads = heads((head_dim, value_dim, n_heads, n_kv_heads, kv_type));
            let (start, tokens) = shapes[(i + head_dim) % 7];
            let keys = random(&mut rng, (start + tokens) * n_kv_heads * head_dim);
            let values = random(&mut rng, (start + tokens) * n_kv_heads * value_dim);
            let (q, sinks) = (random(&mut rng, tokens * n_heads * head_dim), random(&mut rng, n_heads));
            let scores = options(i, &sinks);
            for kernels in all() {
                let cache = Cache::new(kernels, heads, &keys, &values);
                let out = run(kernels, 2, heads, scores, &q, vec![cache.span(start, tokens)]);
                for (t, h) in (0..tokens).flat_map(|t| (0..n_heads).map(move |h| (t, h))) {
                    let expected = plain(
                        &cache,
                        &scores,
                        &q[(t * n_heads + h) * head_dim..][..head_dim],
                        h,
                        start + t,
                        start + tokens,
                    );
                    for (got, expected) in out[(t * n_heads + h) * value_dim..].iter().zip(expected) {
                        let error = (f64::from(*got) - expected).abs() / expected.abs().max(1.0);
                        let name = kernels.name();
                        assert!(error < 6e-6, "{name} {heads:?} {scores:?} head {h} token {t}: {got} {expected}");
                    }
                }
            }
        }
    }

    /// What a query at a position gets, in plain arithmetic.
    fn plain(cache: &Cache, scores: &Scores, q: &[f32], head: usize, position: usize, end: usize) -> Vec<f64> {
        let Heads { n_heads, n_kv_heads, value_dim, .. } = cache.heads;
        let mut weights = Vec::new();
        for p in 0..end {
            let distance = position.abs_diff(p);
            let sees = match scores.mask {
                Mask::Causal => p <= position,
                Mask::Window(n) => p <= position && distance < n,
                Mask::Chunk(n) => p <= position && p / n == position / n,
                Mask::All => true,
                Mask::Around(n) => distance <= n / 2,
            };
            if !sees {
                continue;
            }
            let [key, value] = cache.get(head / (n_heads / n_kv_heads), p);
            let dot = q.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
            let mut score = dot * f64::from(scores.scale);
            if let Some(limit) = scores.softcap.map(f64::from) {
                score = limit * (score / limit).tanh();
            }
            if let Some(largest) = scores.alibi.map(f64::from) {
                // the slopes of the paper, as its code has them
                let power = 1 << n_heads.ilog2();
                let slopes = |n: usize| (1..=n).map(move |i| 2f64.powf(-largest * i as f64 / n as f64));
                let slopes: Vec<f64> = slopes(power).chain(slopes(2 * power).step_by(2)).collect();
                score -= slopes[head] * distance as f64;
            }
            weights.push((score, value));
        }
        let sink = scores.sinks.map(|sinks| f64::from(sinks[head]));
        let max = weights.iter().map(|(s, _)| *s).chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = weights.iter().map(|(s, _)| *s).chain(sink).map(|s| (s - max).exp()).sum();
        let sum = |i: usize| weights.iter().map(|(s, v)| (s - max).exp() * f64::from(v[i])).sum::<f64>();
        (0..value_dim).map(|i| sum(i) / total).collect()
    }

    /// See the top of this file.
    #[test]
    fn a_token_gets_the_same_bits_in_any_company() {
        let mut rng = Rng::new(7);
        for (i, (head_dim, value_dim, n_heads, n_kv_heads, kv_type)) in CASES.into_iter().chain(CASES).enumerate() {
            let heads = heads((head_dim, value_dim, n_heads, n_kv_heads, kv_type));
            let [width, out_width] = [head_dim, value_dim].map(|dim| n_heads * dim);
            for kernels in all() {
                let n = if kernels.name() == "scalar" { 290 } else { 600 };
                let keys = random(&mut rng, n * n_kv_heads * head_dim);
                let values = random(&mut rng, n * n_kv_heads * value_dim);
                let (cache, q) = (Cache::new(kernels, heads, &keys, &values), random(&mut rng, n * width));
                let sinks = random(&mut rng, n_heads);
                let scores = options(i, &sinks);
                if matches!(scores.mask, Mask::All | Mask::Around(_)) {
                    continue; // it depends on what comes after
                }
                let all = run(kernels, 3, heads, scores, &q, vec![cache.span(0, n)]);
                let mut at = 0;
                while at < n {
                    let tokens = [1, 1, 2, 3, 7, 40, 150][rng.next_u64() as usize % 7].min(n - at);
                    // beside another part of the same keys and values, before or after
                    let other = rng.next_u64() as usize % (n - 8);
                    let m = 1 + rng.next_u64() as usize % 7;
                    let (a, b) = (&q[at * width..(at + tokens) * width], &q[other * width..(other + m) * width]);
                    let threads = 1 + rng.next_u64() as usize % 3;
                    let (first, second) = (cache.span(at, tokens), cache.span(other, m));
                    let together = if at % 2 == 0 {
                        run(kernels, threads, heads, scores, &[a, b].concat(), vec![first, second])
                    } else {
                        let mut out = run(kernels, threads, heads, scores, &[b, a].concat(), vec![second, first]);
                        out.rotate_left(m * out_width);
                        out
                    };
                    let expected =
                        [at..at + tokens, other..other + m].map(|r| &all[r.start * out_width..r.end * out_width]);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(
                        bits(&together) == bits(&expected.concat()),
                        "{} {heads:?} {scores:?} {tokens} from {at}",
                        kernels.name()
                    );
                    at += tokens;
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "queries and results")]
    fn fewer_queries_than_the_spans_have_are_refused() {
        let heads = Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 16,
            value_dim: 16,
            values_in_keys: false,
            kv_type: DType::F16,
        };
        let block = vec![0; heads.layer_bytes().unwrap()];
        let span = AttentionSpan { tokens: 2, start: 0, blocks: vec![&block] };
        let (mut out, mut parts) = (vec![0.0; 16], Vec::new());
        Attention::new(heads, options(0, &[]), &[0.0; 16], vec![span], &mut out, &mut parts);
    }

    #[test]
    #[should_panic(expected = "blocks")]
    fn fewer_blocks_than_the_tokens_see_are_refused() {
        let heads = Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 16,
            value_dim: 16,
            values_in_keys: false,
            kv_type: DType::F16,
        };
        let block = vec![0; heads.layer_bytes().unwrap()];
        let span = AttentionSpan { tokens: 1, start: 64, blocks: vec![&block] };
        let (mut out, mut parts) = (vec![0.0; 16], Vec::new());
        Attention::new(heads, options(0, &[]), &[0.0; 16], vec![span], &mut out, &mut parts);
    }

    #[test]
    fn every_set_rounds_keys_and_values_alike_and_hides_nothing() {
        let mut rng = Rng::new(7);
        for kv_type in KV_TYPES {
            let heads =
                Heads { n_heads: 1, n_kv_heads: 1, head_dim: 96, value_dim: 96, values_in_keys: false, kv_type };
            for magnitude in [0.0f32, 1e-6, 1.0, 3e4] {
                let mut x = random(&mut rng, 96);
                x.iter_mut().for_each(|x| *x *= magnitude / 2.0);
                let expected = Cache::new(&super::super::scalar::Scalar, heads, &x, &x);
                let [key, value] = expected.get(0, 0);
                assert_eq!(key, value);
                for (x, key) in x.chunks(32).zip(key.chunks(32)) {
                    // Half a step of the integer; a scale of 11 bits; of the smallest scales even fewer.
                    let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    let most = max * (0.5 / 127.0 + 1.0 / 2048.0) + 127.0 * 6e-8;
                    assert!(x.iter().zip(key).all(|(x, back)| (x - back).abs() <= most), "{x:?} {key:?}");
                }
                for kernels in all() {
                    assert_eq!(
                        Cache::new(kernels, heads, &x, &x).blocks,
                        expected.blocks,
                        "{} {kv_type}",
                        kernels.name()
                    );
                    for bad in [f32::NAN, f32::INFINITY] {
                        let good = std::mem::replace(&mut x[40], bad);
                        let [key, value] = Cache::new(kernels, heads, &x, &x).get(0, 0);
                        assert!(!key[40].is_finite() && !value[40].is_finite(), "{} hides {bad}", kernels.name());
                        x[40] = good;
                    }
                }
            }
        }
    }
}
