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
//! A query's result does not depend on who else is in the batch: the order of every sum follows from its own position.
//! Scores are summed over the dimensions one after another, positions are cut into parts of [`PART`], each part is a
//! softmax of its own (online over its blocks), and parts are put together from the first to the last. Whether a worker
//! does all parts of many queries or one part of a few is a matter of speed only.
//!
//! One body for each operation, over a [`Vector`], as in [`ops`](super::ops).

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::cell::RefCell;
use std::ops::Range;

use half::f16;

use super::Context;
use super::vector::{Number, Vector, exp};
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
const UNPACKED_QUERIES: usize = 7;
/// From this many queries on, a task takes all parts; of fewer, a part is a task.
const TILE_QUERIES: usize = 6;

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads; `n_heads / n_kv_heads` query heads share one.
    pub n_kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Type of keys and values, one of [`KV_TYPES`].
    pub kv_type: DType,
}

impl Heads {
    /// Bytes of the keys of one head in a block, and as many of its values; `None` if a head is not whole blocks of the
    /// type.
    pub fn head_bytes(&self) -> Option<usize> {
        self.kv_type.row_bytes(self.head_dim)?.checked_mul(BLOCK)
    }

    /// Bytes of a layer in a block: the keys of all heads, then the values of all heads.
    pub fn layer_bytes(&self) -> Option<usize> {
        self.head_bytes()?.checked_mul(2)?.checked_mul(self.n_kv_heads)
    }

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Where the keys of a head are in the bytes of a layer, and where its values are.
    fn at(&self, kv_head: usize) -> [Range<usize>; 2] {
        let len = self.head_bytes().expect("checked when the job was made");
        let (keys, values) = (kv_head * len, (self.n_kv_heads + kv_head) * len);
        [keys..keys + len, values..values + len]
    }
}

/// Tokens of one sequence in the batch, and its keys and values: those of the tokens are there already.
pub struct AttentionSpan<'a> {
    /// How many tokens, one after another.
    pub tokens: usize,
    /// Position of the first. Token `t` sees the positions `0 ..= start + t`.
    pub start: usize,
    /// The layer in each block of the sequence, see [`Heads::layer_bytes`]; at least as many as the tokens see.
    pub blocks: Vec<&'a [u8]>,
}

impl AttentionSpan<'_> {
    fn parts(&self) -> usize {
        (self.start + self.tokens).div_ceil(PART)
    }
}

/// Causal attention of a batch of tokens over one layer: `out = softmax(q k^T / sqrt(head_dim)) v` for each query head.
pub struct Attention<'a> {
    q: &'a [f32],           // (tokens, n_heads * head_dim), rotated
    out: Disjoint<'a, f32>, // (tokens, n_heads * head_dim)
    heads: Heads,
    spans: Vec<AttentionSpan<'a>>,
    first: Vec<usize>,            // the first token of each span in the batch
    parts: Disjoint<'a, f32>, // results of parts, (query, part, head_dim + 2), of the spans that are cut into such tasks
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
        q: &'a [f32],
        spans: Vec<AttentionSpan<'a>>,
        out: &'a mut [f32],
        parts: &'a mut Vec<f32>,
    ) -> Self {
        let Heads { n_heads, n_kv_heads, head_dim, kv_type } = heads;
        let layer_bytes = heads.layer_bytes().expect("heads are whole blocks");
        assert!(KV_TYPES.contains(&kv_type) && n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "heads");
        let tokens: usize = spans.iter().map(|span| span.tokens).sum();
        let numbers = n_heads.checked_mul(head_dim).and_then(|n| n.checked_mul(tokens)).expect("a size");
        assert!(q.len() == numbers && out.len() == numbers, "queries and results of {tokens} tokens");
        for span in &spans {
            let needed = (span.start + span.tokens).div_ceil(BLOCK);
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
            if span.tokens * heads.group() < TILE_QUERIES && span.parts() > 1 {
                parts_at.push(Some(scratch));
                scratch += span.tokens * n_heads * span.parts() * (head_dim + 2);
                for part in 0..span.parts() {
                    tasks.extend((0..n_kv_heads).map(|head| task(head, 0..span.tokens, Some(part))));
                }
            } else {
                parts_at.push(None);
                // The longest, those of the last tokens, come first.
                let block = (QUERIES / heads.group()).max(1);
                for start in (0..span.tokens).step_by(block).rev() {
                    let tokens = start..(start + block).min(span.tokens);
                    tasks.extend((0..n_kv_heads).map(|head| task(head, tokens.clone(), None)));
                }
            }
        }
        if parts.len() < scratch {
            *parts = vec![0.0; scratch];
        }
        Self { q, out: Disjoint::new(out), heads, spans, first, parts: Disjoint::new(parts), parts_at, tasks }
    }

    /// Computes it. When the interrupt says stop, the results are incomplete.
    pub fn run(&self, cx: &Context) {
        // SAFETY: each task is run once, and no two write the same results.
        cx.each(self.tasks.len(), &|i| unsafe { cx.kernels.attention(self, i) });
        let cut: Vec<usize> = (0..self.spans.len()).filter(|&i| self.parts_at[i].is_some()).collect();
        // SAFETY: the tasks are done, and spans have their own results.
        cx.each(cut.len(), &|i| unsafe { self.put_together(cut[i]) });
    }

    /// Where the result of a part is for query `i` (token times heads) of a span that is cut: the sum of weighted values,
    /// the largest score and the sum of the weights relative to it.
    fn part_at(&self, span: usize, query: usize, part: usize) -> Range<usize> {
        let width = self.heads.head_dim + 2;
        let start =
            self.parts_at[span].expect("a span that is cut") + (query * self.spans[span].parts() + part) * width;
        start..start + width
    }

    /// Puts the parts of a span together.
    ///
    /// # Safety
    /// - All tasks of the span are done, and no other worker writes its results.
    unsafe fn put_together(&self, span: usize) {
        let (hd, n_heads) = (self.heads.head_dim, self.heads.n_heads);
        let AttentionSpan { tokens, start, .. } = self.spans[span];
        for query in 0..tokens * n_heads {
            let at = (self.first[span] * n_heads + query) * hd;
            // SAFETY: the caller's promise: these results are its own.
            let out = unsafe { self.out.slice(at..at + hd) };
            out.fill(0.0);
            let mut sum = PartSum::EMPTY;
            for part in 0..=(start + query / n_heads) / PART {
                // SAFETY: as above; nobody writes parts any more.
                let part = unsafe { self.parts.slice(self.part_at(span, query, part)) };
                let (acc, scale) = part.split_at(hd);
                sum.add(out, acc, PartSum { largest: scale[0], total: scale[1] });
            }
            out.iter_mut().for_each(|out| *out /= sum.total);
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
}

thread_local! {
    /// Scratch of a worker: it grows to what the largest task needs.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Task `i` of an attention: online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) over blocks of keys.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - No other worker runs the same task.
#[inline(always)]
pub unsafe fn attention<V: Vector>(job: &Attention, i: usize) {
    let AttentionTask { span: index, kv_head, first_token, end_token, part } = job.tasks[i];
    let span = &job.spans[index];
    let Heads { n_heads, head_dim: hd, kv_type, .. } = job.heads;
    let group = job.heads.group();
    let wide = hd.next_multiple_of(16); // registers are whole in scratch
    let queries = (end_token - first_token) * group;
    let [keys_at, values_at] = job.heads.at(kv_head);
    let scale = 1.0 / (hd as f32).sqrt();
    // Query i of the task is this one of the span, token times heads.
    let query_of = |i: usize| (first_token + i / group) * n_heads + kv_head * group + i % group;
    let batch = job.first[index] * n_heads;

    let mut scratch = SCRATCH.take();
    let sizes = [queries * wide, queries * wide, queries * wide, queries * BLOCK, wide * BLOCK];
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
    let [q, acc, whole, scores, floats] = sizes.map(&mut take);
    // q: [query][dim], scaled; acc and whole: [query][dim], of a part and of all; scores: [query][position of the block];
    // floats: a block of keys [dim][position] or of values [position][dim]
    for i in 0..queries {
        let from = &job.q[(batch + query_of(i)) * hd..][..hd];
        let q = &mut q[i * wide..(i + 1) * wide];
        q.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        q[hd..].fill(0.0);
    }
    whole.fill(0.0);
    let mut sums = vec![PartSum::EMPTY; 2 * queries];
    let (sums, states) = sums.split_at_mut(queries); // of all parts, of this part

    let end = span.start + end_token; // one past the last position that any of the tokens sees
    let parts = part.map_or(0..end.div_ceil(PART), |part| part..part + 1);
    for part_index in parts {
        acc.fill(0.0);
        states.fill(PartSum::EMPTY);
        for first in (part_index * PART..end.min((part_index + 1) * PART)).step_by(BLOCK) {
            let n = BLOCK.min(end - first);
            let block = span.blocks[first / BLOCK];
            let (keys, values) = (&block[keys_at.clone()], &block[values_at.clone()]);
            // SAFETY: a block has BLOCK positions of head_dim, the scratch has the shapes given above, and the features
            // are the caller's promise.
            unsafe {
                let (s, q) = (scores.as_mut_ptr(), q.as_ptr());
                if queries < UNPACKED_QUERIES && kv_type == DType::F16 {
                    let keys = keys.as_ptr().cast::<u16>();
                    gemm::<V, u16>(s, BLOCK, q, wide, keys, BLOCK, (queries, BLOCK, hd), false);
                } else {
                    unpack_keys::<V>(floats, kv_type, keys);
                    gemm::<V, f32>(s, BLOCK, q, wide, floats.as_ptr(), BLOCK, (queries, BLOCK, hd), false);
                }
                for i in 0..queries {
                    // Causal: this query sees positions up to its own.
                    let seen = (span.start + first_token + i / group + 1).saturating_sub(first).min(n);
                    let scores = &mut scores[i * BLOCK..(i + 1) * BLOCK];
                    scores[seen..].fill(f32::NEG_INFINITY);
                    if seen > 0 {
                        soften::<V>(scores, &mut states[i], &mut acc[i * wide..(i + 1) * wide]);
                    }
                    scores[seen..].fill(0.0);
                }
                let (acc, scores) = (acc.as_mut_ptr(), scores.as_ptr());
                if queries < UNPACKED_QUERIES && kv_type == DType::F16 && hd.is_multiple_of(V::LANES) {
                    let values = values.as_ptr().cast::<u16>();
                    gemm::<V, u16>(acc, wide, scores, BLOCK, values, hd, (queries, hd, n), true);
                } else {
                    unpack_values::<V>(floats, kv_type, values, n, hd, wide);
                    gemm::<V, f32>(acc, wide, scores, BLOCK, floats.as_ptr(), wide, (queries, wide, n), true);
                }
            }
        }
        for i in 0..queries {
            if span.start + first_token + i / group < part_index * PART {
                continue; // it sees nothing of this part
            }
            let acc = &acc[i * wide..][..hd];
            if part.is_some() {
                // SAFETY: this part of this query is the caller's own.
                let part = unsafe { job.parts.slice(job.part_at(index, query_of(i), part_index)) };
                part[..hd].copy_from_slice(acc);
                (part[hd], part[hd + 1]) = (states[i].largest, states[i].total);
            } else {
                sums[i].add(&mut whole[i * wide..][..hd], acc, states[i]);
            }
        }
    }
    if part.is_none() {
        for i in 0..queries {
            let at = (batch + query_of(i)) * hd;
            // SAFETY: the results of this query are the caller's own.
            let out = unsafe { job.out.slice(at..at + hd) };
            for (out, acc) in out.iter_mut().zip(&whole[i * wide..]) {
                *out = acc / sums[i].total;
            }
        }
    }
    SCRATCH.set(scratch);
}

/// One step of the online softmax: turns a block of scores into weights relative to the largest score so far, and
/// scales what was summed before to it.
///
/// # Safety
/// - The CPU has the features of `V`; `scores` and `acc` are whole registers.
#[inline(always)]
unsafe fn soften<V: Vector>(scores: &mut [f32], state: &mut PartSum, acc: &mut [f32]) {
    // SAFETY: BLOCK and the padded head are whole registers; the features are the caller's promise.
    unsafe {
        let mut max = V::splat(state.largest);
        for s in scores.chunks_exact(V::LANES) {
            max = max.max(V::load(s.as_ptr()));
        }
        let now = max.largest();
        let shrink = (state.largest - now).exp();
        let mut sum = V::splat(0.0);
        for s in scores.chunks_exact_mut(V::LANES) {
            let p = exp(V::load(s.as_ptr()).sub(V::splat(now)));
            p.store(s.as_mut_ptr());
            sum = sum.add(p);
        }
        let wide = V::splat(shrink);
        for a in acc.chunks_exact_mut(V::LANES) {
            V::load(a.as_ptr()).mul(wide).store(a.as_mut_ptr());
        }
        *state = PartSum { largest: now, total: state.total * shrink + sum.sum() };
    }
}

/// Stores the key (rotated) and the value of one position of a block, see [`super::Kernels::store_kv`].
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn store<V: Vector>(heads: Heads, layer: &mut [u8], slot: usize, key: &[f32], value: Option<&[f32]>) {
    let Heads { n_kv_heads, head_dim: hd, kv_type, .. } = heads;
    let all = n_kv_heads * hd;
    assert!(slot < BLOCK && key.len() == all && value.is_none_or(|v| v.len() == all), "a position of a block");
    assert!(Some(layer.len()) == heads.layer_bytes(), "a layer of a block");
    let row = kv_type.row_bytes(hd).expect("heads are whole blocks");
    let mut staged = [0u16; 272]; // a piece of a key, as a row
    let staged: &mut [u8] = bytemuck::cast_slice_mut(&mut staged);
    for head in 0..n_kv_heads {
        let [keys_at, values_at] = heads.at(head);
        if let Some(value) = value {
            // SAFETY: the features are the caller's promise.
            unsafe { round_to::<V>(kv_type, &mut layer[values_at][slot * row..][..row], &value[head * hd..][..hd]) };
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

/// Where in the layer's part of a block the value of one head and position is.
pub fn value_row(heads: Heads, kv_head: usize, slot: usize) -> Range<usize> {
    let row = heads.kv_type.row_bytes(heads.head_dim).expect("heads are whole blocks");
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

/// `c (+)= a b` with `(m, n, k)`: `a` is m x k, `b` is k x n and n a multiple of 16, all row-major with a stride.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - The matrices are there, with these sizes and strides.
#[allow(clippy::too_many_arguments)] // BLAS has them, too
#[inline(always)]
unsafe fn gemm<V: Vector, B: Number>(
    c: *mut f32,
    c_stride: usize,
    a: *const f32,
    a_stride: usize,
    b: *const B,
    b_stride: usize,
    (m, n, k): (usize, usize, usize),
    accumulate: bool,
) {
    // A tile of 6 rows and up to 4 registers (2 where there are only 16): sums, one of b, one of a.
    let wide = if V::LANES == 16 { 4 } else { 2 };
    let mut j = 0;
    while j < n {
        let vectors = if j + wide * V::LANES <= n { wide } else { 1 };
        let mut i = 0;
        while i < m {
            let rows = (m - i).min(6);
            // SAFETY: the tile lies within the matrices that the caller has.
            unsafe {
                let (c, a, b) = (c.add(i * c_stride + j), a.add(i * a_stride), b.add(j));
                macro_rules! tile {
                    ($rows:literal) => {
                        match vectors {
                            4 => gemm_tile::<V, B, $rows, 4>(c, c_stride, a, a_stride, b, b_stride, k, accumulate),
                            2 => gemm_tile::<V, B, $rows, 2>(c, c_stride, a, a_stride, b, b_stride, k, accumulate),
                            _ => gemm_tile::<V, B, $rows, 1>(c, c_stride, a, a_stride, b, b_stride, k, accumulate),
                        }
                    };
                }
                match rows {
                    1 => tile!(1),
                    2 => tile!(2),
                    3 => tile!(3),
                    4 => tile!(4),
                    5 => tile!(5),
                    _ => tile!(6),
                }
            }
            i += rows;
        }
        j += vectors * V::LANES;
    }
}

/// A tile of `R` rows and `N` registers of columns of [`gemm`].
///
/// # Safety
/// - As there.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn gemm_tile<V: Vector, B: Number, const R: usize, const N: usize>(
    c: *mut f32,
    c_stride: usize,
    a: *const f32,
    a_stride: usize,
    b: *const B,
    b_stride: usize,
    k: usize,
    accumulate: bool,
) {
    // SAFETY: the caller has R rows and N registers of columns.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        if accumulate {
            for i in 0..R {
                for j in 0..N {
                    sums[i][j] = V::load(c.add(i * c_stride + j * V::LANES));
                }
            }
        }
        for k in 0..k {
            let mut columns = [V::splat(0.0); N];
            for j in 0..N {
                columns[j] = B::load::<V>(b.add(k * b_stride + j * V::LANES));
            }
            for i in 0..R {
                let a = V::splat(*a.add(i * a_stride + k));
                for j in 0..N {
                    sums[i][j] = a.mul_add(columns[j], sums[i][j]);
                }
            }
        }
        for i in 0..R {
            for j in 0..N {
                sums[i][j].store(c.add(i * c_stride + j * V::LANES));
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
            let width = heads.n_kv_heads * heads.head_dim;
            let n = keys.len() / width;
            let blocks = vec![vec![0xff; heads.layer_bytes().unwrap()]; n.div_ceil(BLOCK)];
            let mut cache = Self { heads, blocks };
            for (p, (key, value)) in keys.chunks(width).zip(values.chunks(width)).enumerate() {
                kernels.store_kv(heads, &mut cache.blocks[p / BLOCK], p % BLOCK, key, Some(value));
            }
            cache
        }

        /// Key and value of a position, as they were rounded.
        fn get(&self, head: usize, position: usize) -> [Vec<f32>; 2] {
            let Heads { head_dim, kv_type, .. } = self.heads;
            let block = &self.blocks[position / BLOCK];
            let (mut key, mut value) = (vec![0.0; head_dim], vec![0.0; head_dim]);
            load_key(self.heads, block, head, position % BLOCK, &mut key);
            crate::quant::dequantize(kv_type, &block[value_row(self.heads, head, position % BLOCK)], &mut value);
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
        q: &[f32],
        spans: Vec<AttentionSpan>,
    ) -> Vec<f32> {
        let (mut out, mut parts) = (vec![f32::NAN; q.len()], Vec::new());
        let interrupt = Interrupt::never();
        let cx = Context { kernels, threads, interrupt: &interrupt };
        Attention::new(heads, q, spans, &mut out, &mut parts).run(&cx);
        out
    }

    const CASES: [(usize, usize, usize, DType); 10] = [
        (64, 9, 3, DType::F16),
        (64, 9, 3, DType::Q8_0),
        (128, 4, 4, DType::F16),
        (96, 4, 4, DType::Q8_0),
        (80, 4, 1, DType::F16),
        (36, 2, 1, DType::F16),
        (5, 3, 3, DType::F16),
        (32, 2, 1, DType::Q8_0),
        (288, 2, 2, DType::Q8_0), // longer than a piece of `store`
        (16, 100, 1, DType::F16), // more heads in a group than queries in a task
    ];

    #[test]
    fn attention_equals_plain_arithmetic() {
        let mut rng = Rng::new(6);
        for (i, (head_dim, n_heads, n_kv_heads, kv_type)) in CASES.into_iter().enumerate() {
            let heads = Heads { n_heads, n_kv_heads, head_dim, kv_type };
            let (start, tokens) = [(0, 70), (200, 1), (63, 2), (130, 5), (511, 3), (256, 1), (1, 33)][i % 7];
            let n = (start + tokens) * n_kv_heads * head_dim;
            let (keys, values) = (random(&mut rng, n), random(&mut rng, n));
            let q = random(&mut rng, tokens * n_heads * head_dim);
            for kernels in all() {
                let cache = Cache::new(kernels, heads, &keys, &values);
                let out = run(kernels, 2, heads, &q, vec![cache.span(start, tokens)]);
                for t in 0..tokens {
                    for h in 0..n_heads {
                        let seen: Vec<_> = (0..=start + t).map(|p| cache.get(h / (n_heads / n_kv_heads), p)).collect();
                        let q = &q[(t * n_heads + h) * head_dim..][..head_dim];
                        let dot =
                            |key: &[f32]| q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
                        let scores: Vec<f64> = seen.iter().map(|[k, _]| dot(k) / (head_dim as f64).sqrt()).collect();
                        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                        for i in 0..head_dim {
                            let weighted =
                                scores.iter().zip(&seen).map(|(s, [_, v])| (s - max).exp() * f64::from(v[i]));
                            let expected = weighted.sum::<f64>() / total;
                            let got = f64::from(out[(t * n_heads + h) * head_dim + i]);
                            let error = (got - expected).abs() / expected.abs().max(1.0);
                            assert!(error < 2e-6, "{} {heads:?} head {h} token {t}: {got} {expected}", kernels.name());
                        }
                    }
                }
            }
        }
    }

    /// See the top of this file.
    #[test]
    fn a_token_gets_the_same_bits_in_any_company() {
        let mut rng = Rng::new(7);
        for (head_dim, n_heads, n_kv_heads, kv_type) in CASES {
            let heads = Heads { n_heads, n_kv_heads, head_dim, kv_type };
            let (width, kv_width) = (n_heads * head_dim, n_kv_heads * head_dim);
            for kernels in all() {
                let n = if kernels.name() == "scalar" { 290 } else { 600 };
                let (keys, values) = (random(&mut rng, n * kv_width), random(&mut rng, n * kv_width));
                let (cache, q) = (Cache::new(kernels, heads, &keys, &values), random(&mut rng, n * width));
                let all = run(kernels, 3, heads, &q, vec![cache.span(0, n)]);
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
                        run(kernels, threads, heads, &[a, b].concat(), vec![first, second])
                    } else {
                        let mut out = run(kernels, threads, heads, &[b, a].concat(), vec![second, first]);
                        out.rotate_left(m * width);
                        out
                    };
                    let expected = [&all[at * width..(at + tokens) * width], &all[other * width..(other + m) * width]];
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(
                        bits(&together) == bits(&expected.concat()),
                        "{} {heads:?} {tokens} from {at}",
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
        let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 16, kv_type: DType::F16 };
        let block = vec![0; heads.layer_bytes().unwrap()];
        let span = AttentionSpan { tokens: 2, start: 0, blocks: vec![&block] };
        let (mut out, mut parts) = (vec![0.0; 16], Vec::new());
        Attention::new(heads, &[0.0; 16], vec![span], &mut out, &mut parts);
    }

    #[test]
    #[should_panic(expected = "blocks")]
    fn fewer_blocks_than_the_tokens_see_are_refused() {
        let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 16, kv_type: DType::F16 };
        let block = vec![0; heads.layer_bytes().unwrap()];
        let span = AttentionSpan { tokens: 1, start: 64, blocks: vec![&block] };
        let (mut out, mut parts) = (vec![0.0; 16], Vec::new());
        Attention::new(heads, &[0.0; 16], vec![span], &mut out, &mut parts);
    }

    #[test]
    fn every_set_rounds_keys_and_values_alike_and_hides_nothing() {
        let mut rng = Rng::new(7);
        for kv_type in KV_TYPES {
            let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 96, kv_type };
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
