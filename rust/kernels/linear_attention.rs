//! Linear attention with decay: the gated delta rule (Yang et al. 2024) and Mamba-2 (Dao and Gu 2024), which is the same
//! without the correction.
//!
//! A head remembers a matrix `S`, `(key_dim, value_dim)`. Token by token that is
//!
//! ```text
//! S <- exp(g) S;   delta = beta (v - S^T k), or beta v for Mamba-2;   S <- S + k delta^T;   o = scale S^T q
//! ```
//!
//! which reads and writes all of `S` for every token. Here `S` is only known at positions that are multiples of [`CHUNK`];
//! of the positions since, the *tail* holds `k`, `delta` and `G`, the sum of `g` so far. With `S` at the start of the chunk
//!
//! ```text
//! delta_c = beta_c (v_c - exp(G_c) S^T k_c - sum of exp(G_c - G_j) (k_c . k_j) delta_j over j < c)
//! o_c = scale (exp(G_c) S^T q_c + sum of exp(G_c - G_j) (q_c . k_j) delta_j over j <= c)
//! S <- exp(G_last) S + sum of exp(G_last - G_j) k_j delta_j^T      when the chunk is full
//! ```
//!
//! A token's result follows from `S`, the tail and itself, with one order of every sum, so it has the same bits however the
//! tokens are cut into passes. `S` is read once for the tokens of a pass that share a chunk, in tiles of registers, and written
//! once per chunk; and the tail can be cut short at any position.
//!
//! A chunk of 64 would take as many multiplications as going token by token does; see `benches/recurrent.rs`.

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::cell::RefCell;
use std::ops::Range;

use super::Context;
use super::vector::{Vector, exp};
use crate::threads::Disjoint;

/// Positions from one state to the next. Divides [`BLOCK`](super::BLOCK).
pub const CHUNK: usize = 16;

/// How a token is added to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// What the state has for the key already is taken off (gated delta rule).
    Delta,
    /// It is not (Mamba-2).
    Plain,
}

/// Which key head a value head uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHead {
    /// Neighbours share one: `h / (n_heads / n_key_heads)`.
    Divide,
    /// Those that lie `n_key_heads` apart share one: `h mod n_key_heads`.
    Modulo,
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinearHeads {
    /// Value heads, each with a state.
    pub n_heads: usize,
    /// Key and query heads; divides `n_heads`.
    pub n_key_heads: usize,
    /// Numbers of a key.
    pub key_dim: usize,
    /// Numbers of a value.
    pub value_dim: usize,
    /// How a token is added.
    pub rule: Rule,
    /// Which key head belongs to which value head.
    pub key_head: KeyHead,
}

impl LinearHeads {
    /// Rows of a state are padded to whole registers, with zeros.
    fn wide(&self) -> usize {
        self.value_dim.next_multiple_of(16)
    }

    /// Numbers of a layer's state, `(n_heads, key_dim, padded value_dim)`; `None` if that is more than any memory.
    pub fn state_len(&self) -> Option<usize> {
        let wide = self.value_dim.checked_next_multiple_of(16)?;
        self.n_heads.checked_mul(self.key_dim)?.checked_mul(wide)
    }

    /// Numbers of a layer's tail: keys `(n_key_heads, CHUNK, key_dim)`, then deltas `(n_heads, CHUNK, padded value_dim)`, then
    /// sums `(n_heads, CHUNK)`.
    pub fn tail_len(&self) -> Option<usize> {
        let keys = self.n_key_heads.checked_mul(self.key_dim)?;
        let deltas = self.n_heads.checked_mul(self.value_dim.checked_next_multiple_of(16)?)?;
        keys.checked_add(deltas)?.checked_add(self.n_heads)?.checked_mul(CHUNK)
    }

    /// Where in a tail the numbers of all but the first `n` positions are.
    pub fn tail_rest(&self, n: usize) -> impl Iterator<Item = Range<usize>> {
        let keys = (0..self.n_key_heads).map(move |h| self.key_at(h, n).start..self.key_at(h, CHUNK).start);
        let of_head = move |h| [self.deltas_at(h, n..CHUNK), self.sums_at(h, n..CHUNK)];
        keys.chain((0..self.n_heads).flat_map(of_head))
    }

    fn key_head(&self, h: usize) -> usize {
        match self.key_head {
            KeyHead::Divide => h / (self.n_heads / self.n_key_heads),
            KeyHead::Modulo => h % self.n_key_heads,
        }
    }

    /// Whether value head `h` is the first that uses its key head.
    fn owns_key(&self, h: usize) -> bool {
        match self.key_head {
            KeyHead::Divide => h.is_multiple_of(self.n_heads / self.n_key_heads),
            KeyHead::Modulo => h < self.n_key_heads,
        }
    }

    /// Where the state of a head is.
    fn state_at(&self, h: usize) -> Range<usize> {
        let len = self.key_dim * self.wide();
        h * len..(h + 1) * len
    }

    /// Where in a tail the key of a key head and a position is.
    fn key_at(&self, key_head: usize, c: usize) -> Range<usize> {
        let start = (key_head * CHUNK + c) * self.key_dim;
        start..start + self.key_dim
    }

    /// Where in a tail the deltas of some positions of a head are.
    fn deltas_at(&self, h: usize, c: Range<usize>) -> Range<usize> {
        let start = self.n_key_heads * CHUNK * self.key_dim;
        start + (h * CHUNK + c.start) * self.wide()..start + (h * CHUNK + c.end) * self.wide()
    }

    /// Where in a tail the sums of some positions of a head are.
    fn sums_at(&self, h: usize, c: Range<usize>) -> Range<usize> {
        let start = CHUNK * (self.n_key_heads * self.key_dim + self.n_heads * self.wide()) + h * CHUNK;
        start + c.start..start + c.end
    }
}

/// What tokens bring, in rows of `stride` numbers: queries and keys `(n_key_heads, key_dim)`, values `(n_heads, value_dim)`.
#[derive(Clone, Copy)]
pub struct LinearInputs<'a> {
    /// The rows.
    pub rows: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
    /// Where in a row the queries begin.
    pub q: usize,
    /// Where in a row the keys begin.
    pub k: usize,
    /// Where in a row the values begin.
    pub v: usize,
    /// `(tokens, n_heads)`: the logarithm of the decay, not above zero.
    pub g: &'a [f32],
    /// `(tokens, n_heads)`: the strength.
    pub beta: &'a [f32],
    /// What results are multiplied by.
    pub scale: f32,
}

/// Tokens of one sequence in the batch, and what its layer remembers, see [`LinearHeads`].
pub struct LinearSpan<'a> {
    /// How many tokens, one after another.
    pub tokens: usize,
    /// Positions that the tail has: that of the first token modulo [`CHUNK`].
    pub filled: usize,
    /// The state where the tail begins.
    pub state: &'a [f32],
    /// The tail, which gets the tokens that fit.
    pub tail: &'a mut [f32],
    /// Where the state and the tail go that there are after the last full chunk; there if a chunk becomes full.
    pub next: Option<(&'a mut [f32], &'a mut [f32])>,
    /// Chunks that become full until a copy of the state is wanted, at least one, and where it goes.
    pub keep: Option<(usize, &'a mut [f32])>,
}

/// Linear attention of a batch of tokens over one layer.
pub struct LinearAttention<'a> {
    heads: LinearHeads,
    inputs: LinearInputs<'a>,
    spans: Vec<Span<'a>>,
    out: Disjoint<'a, f32>, // (tokens, n_heads * value_dim)
}

struct Span<'a> {
    tokens: usize,
    first: usize, // in the batch
    filled: usize,
    state: &'a [f32],
    tail: Disjoint<'a, f32>,
    next: Option<(Disjoint<'a, f32>, Disjoint<'a, f32>)>,
    keep: Option<(usize, Disjoint<'a, f32>)>,
}

impl<'a> LinearAttention<'a> {
    /// Linear attention of the spans' tokens, which follow one another in `inputs` and `out`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn new(heads: LinearHeads, inputs: LinearInputs<'a>, spans: Vec<LinearSpan<'a>>, out: &'a mut [f32]) -> Self {
        let LinearHeads { n_heads, n_key_heads, key_dim, value_dim, .. } = heads;
        assert!(n_key_heads > 0 && n_heads.is_multiple_of(n_key_heads), "heads");
        let (state_len, tail_len) = (heads.state_len().expect("a size"), heads.tail_len().expect("a size"));
        let mut tokens = 0;
        let with_first = spans.into_iter().map(|span| {
            let first = tokens;
            tokens += span.tokens;
            let full = (span.filled + span.tokens) / CHUNK;
            assert!(span.tokens > 0 && span.filled < CHUNK && span.next.is_some() == (full > 0), "a span's tokens");
            assert!(span.state.len() == state_len && span.tail.len() == tail_len, "a span's state");
            assert!(
                span.next.as_ref().is_none_or(|(s, t)| s.len() == state_len && t.len() == tail_len),
                "a next state"
            );
            assert!(span.keep.as_ref().is_none_or(|(n, s)| (1..=full).contains(n) && s.len() == state_len), "a copy");
            Span {
                tokens: span.tokens,
                first,
                filled: span.filled,
                state: span.state,
                tail: Disjoint::new(span.tail),
                next: span.next.map(|(state, tail)| (Disjoint::new(state), Disjoint::new(tail))),
                keep: span.keep.map(|(chunks, state)| (chunks, Disjoint::new(state))),
            }
        });
        let spans = with_first.collect();
        let LinearInputs { rows, stride, q, k, v, g, beta, .. } = inputs;
        let keys = n_key_heads * key_dim;
        assert!(q + keys <= stride && k + keys <= stride && v + n_heads * value_dim <= stride, "rows of inputs");
        assert!(rows.len() == tokens * stride, "inputs of {tokens} tokens");
        assert!(g.len() == tokens * n_heads && beta.len() == tokens * n_heads, "decays of {tokens} tokens");
        assert!(out.len() == tokens * n_heads * value_dim, "results of {tokens} tokens");
        Self { heads, inputs, spans, out: Disjoint::new(out) }
    }

    /// Computes it. When the interrupt says stop, results and states are incomplete.
    pub fn run(&self, cx: &Context) {
        // SAFETY: each task is run once, and no two write the same numbers.
        cx.each(self.spans.len() * self.heads.n_heads, &|i| unsafe { cx.kernels.linear_attention(self, i) });
    }
}

thread_local! {
    /// Scratch of a worker: it grows to what the largest task needs.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Coefficients of the tokens of a chunk, (token, token).
type Square = [[f32; CHUNK]; CHUNK];

/// Task `i` of a linear attention: a head of a span, all its tokens.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - No other worker runs the same task.
#[inline(always)]
pub unsafe fn linear_attention<V: Vector>(job: &LinearAttention, i: usize) {
    // SAFETY: the caller's promises.
    unsafe {
        match job.heads.rule {
            Rule::Delta => head::<V, true>(job, i),
            Rule::Plain => head::<V, false>(job, i),
        }
    }
}

/// # Safety
/// - As for [`linear_attention`]; the rule is [`Rule::Delta`] if `DELTA`.
#[inline(always)]
unsafe fn head<V: Vector, const DELTA: bool>(job: &LinearAttention, i: usize) {
    let heads = &job.heads;
    let LinearHeads { n_heads, key_dim, value_dim, .. } = *heads;
    let (span, h) = (&job.spans[i / n_heads], i % n_heads);
    let (key_head, wide) = (heads.key_head(h), heads.wide());
    let LinearInputs { rows, stride, q, k, v, g, beta, scale } = job.inputs;

    let mut scratch = SCRATCH.take();
    if scratch.len() < 3 * CHUNK * wide {
        scratch = vec![0.0; 3 * CHUNK * wide];
    }
    let (deltas, rest) = scratch.split_at_mut(CHUNK * wide);
    let (values, rest) = rest.split_at_mut(CHUNK * wide);
    let results = &mut rest[..CHUNK * wide];
    // (position of the chunk, padded value_dim): what is added to the state; values, later deltas as they have decayed at
    // the end of the chunk; results

    // What the tail has. Others read the keys there too, nobody writes them: only those of positions past `filled` are written.
    let mut filled = span.filled;
    let mut sums = [0.0f32; CHUNK];
    let mut keys = [rows.as_ptr(); CHUNK];
    // SAFETY: deltas and sums of a head are its task's own; the keys of these positions are written by nobody.
    unsafe {
        deltas[..filled * wide].copy_from_slice(span.tail.slice(heads.deltas_at(h, 0..filled)));
        sums[..filled].copy_from_slice(span.tail.slice(heads.sums_at(h, 0..filled)));
        for c in 0..filled {
            keys[c] = span.tail.as_ptr(heads.key_at(key_head, c).start);
        }
    }
    let mut state = span.state[heads.state_at(h)].as_ptr();
    let (mut start, mut chunks) = (0, 0);
    while start < span.tokens {
        let end = CHUNK.min(filled + span.tokens - start);
        let row = |c: usize| span.first + start + c - filled;
        let mut queries = [rows.as_ptr(); CHUNK];
        for c in filled..end {
            let row_of = &rows[row(c) * stride..][..stride];
            keys[c] = row_of[k + key_head * key_dim..][..key_dim].as_ptr();
            queries[c] = row_of[q + key_head * key_dim..][..key_dim].as_ptr();
            sums[c] = g[row(c) * n_heads + h] + if c > 0 { sums[c - 1] } else { 0.0 };
            let (value, padding) = values[c * wide..(c + 1) * wide].split_at_mut(value_dim);
            value.copy_from_slice(&row_of[v + h * value_dim..][..value_dim]);
            padding.fill(0.0);
        }

        // SAFETY: the pointers are those of keys and queries of `key_dim` numbers; a state has `key_dim` rows of `wide`; the
        // scratch has `CHUNK` rows of `wide`, which is whole registers.
        unsafe {
            let mut of_key: Square = [[0.0; CHUNK]; CHUNK];
            let mut of_query: Square = [[0.0; CHUNK]; CHUNK];
            let mut decays = [0.0; CHUNK]; // since the start of the chunk
            for c in filled..end {
                let since = decay::<V>(sums[c], &sums);
                for j in 0..=c {
                    of_query[c][j] = since[j] * dot::<V>(queries[c], keys[j], key_dim);
                    if DELTA && j < c {
                        of_key[c][j] = since[j] * dot::<V>(keys[c], keys[j], key_dim);
                    }
                }
                decays[c] = exp(V::splat(sums[c])).largest();
            }

            // All columns of the state, some registers at a time: sums over the rows, then what the tokens have of each other.
            let mut x = 0;
            while x < wide {
                let left = (wide - x) / V::LANES;
                // Many registers in flight where there is one token, a tile of tokens else.
                macro_rules! columns {
                    ($columns:literal, $tokens:literal) => {{
                        for c in (filled..end).step_by($tokens) {
                            if end - c >= $tokens {
                                read::<V, DELTA, $columns, $tokens>(
                                    state, wide, x, key_dim, c, &keys, &queries, deltas, results,
                                );
                            } else {
                                for c in c..end {
                                    read::<V, DELTA, $columns, 1>(
                                        state, wide, x, key_dim, c, &keys, &queries, deltas, results,
                                    );
                                }
                            }
                        }
                        for c in filled..end {
                            let beta = beta[row(c) * n_heads + h];
                            let coefficients = (&of_key[c], &of_query[c], decays[c], beta, scale);
                            solve::<V, DELTA, $columns>(coefficients, wide, x, c, values, deltas, results);
                        }
                        x += $columns * V::LANES;
                    }};
                }
                // A condition on the registers by itself: what the other number takes is not compiled.
                if V::REGISTERS == 32 {
                    match left {
                        8.. if end - filled == 1 => columns!(8, 1),
                        4.. => columns!(4, 2),
                        _ => columns!(1, 2),
                    }
                } else if left >= 2 {
                    columns!(2, 2);
                } else {
                    columns!(1, 2);
                }
            }
            for c in filled..end {
                let at = (row(c) * n_heads + h) * value_dim;
                job.out.slice(at..at + value_dim).copy_from_slice(&results[c * wide..][..value_dim]);
            }
        }

        if end == CHUNK {
            let (next, _) = span.next.as_ref().expect("there if a chunk becomes full");
            let since = sums[CHUNK - 1];
            // SAFETY: the state of a head is its task's own; else as above.
            unsafe {
                let decays = decay::<V>(since, &sums);
                for c in 0..CHUNK {
                    for x in (c * wide..(c + 1) * wide).step_by(V::LANES) {
                        let delta = V::load(deltas.as_ptr().add(x)).mul(V::splat(decays[c]));
                        delta.store(values.as_mut_ptr().add(x));
                    }
                }
                let to = next.slice(heads.state_at(h)).as_mut_ptr();
                let shrink = exp(V::splat(since)).largest();
                write::<V>(to, state, wide, key_dim, shrink, &keys, values);
                state = to;
                chunks += 1;
                if let Some((_, copy)) = span.keep.as_ref().filter(|(at, _)| *at == chunks) {
                    copy.slice(heads.state_at(h)).copy_from_slice(next.slice(heads.state_at(h)));
                }
            }
            start += end - filled;
            filled = 0;
        } else {
            // The last tokens, to the tail that is there after them.
            let tail = if chunks > 0 { &span.next.as_ref().expect("as above").1 } else { &span.tail };
            // SAFETY: deltas and sums are the task's own; of the heads that share a key, one writes it, where nobody reads.
            unsafe {
                tail.slice(heads.deltas_at(h, filled..end)).copy_from_slice(&deltas[filled * wide..end * wide]);
                tail.slice(heads.sums_at(h, filled..end)).copy_from_slice(&sums[filled..end]);
                if heads.owns_key(h) {
                    for c in filled..end {
                        let key = std::slice::from_raw_parts(keys[c], key_dim);
                        tail.slice(heads.key_at(key_head, c)).copy_from_slice(key);
                    }
                }
            }
            start += end - filled;
        }
    }
    SCRATCH.set(scratch);
}

/// `exp(to - sums)`
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn decay<V: Vector>(to: f32, sums: &[f32; CHUNK]) -> [f32; CHUNK] {
    let mut out = [0.0; CHUNK];
    for j in (0..CHUNK).step_by(V::LANES) {
        // SAFETY: a chunk is whole registers; the features are the caller's promise.
        unsafe { exp(V::splat(to).sub(V::load(sums.as_ptr().add(j)))).store(out.as_mut_ptr().add(j)) };
    }
    out
}

/// # Safety
/// - The CPU has the features of `V`; `a` and `b` are valid for reads of `n` numbers.
#[inline(always)]
unsafe fn dot<V: Vector>(a: *const f32, b: *const f32, n: usize) -> f32 {
    let (pairs, whole) = (n - n % (2 * V::LANES), n - n % V::LANES);
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); 2];
        for i in (0..pairs).step_by(2 * V::LANES) {
            sums[0] = V::load(a.add(i)).mul_add(V::load(b.add(i)), sums[0]);
            sums[1] = V::load(a.add(i + V::LANES)).mul_add(V::load(b.add(i + V::LANES)), sums[1]);
        }
        if pairs < whole {
            sums[0] = V::load(a.add(pairs)).mul_add(V::load(b.add(pairs)), sums[0]);
        }
        let mut sum = sums[0].add(sums[1]).sum();
        for i in whole..n {
            sum += *a.add(i) * *b.add(i);
        }
        sum
    }
}

/// `S^T k` to `deltas` and `S^T q` to `results`, for `M` registers of columns from `x` on and `T` tokens from `c` on.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - `state` has `key_dim` rows of `wide`; the tokens have keys and queries of `key_dim`, and rows of `wide`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn read<V: Vector, const DELTA: bool, const M: usize, const T: usize>(
    state: *const f32,
    wide: usize,
    x: usize,
    key_dim: usize,
    c: usize,
    keys: &[*const f32; CHUNK],
    queries: &[*const f32; CHUNK],
    deltas: &mut [f32],
    results: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut of_keys, mut of_queries) = ([[V::splat(0.0); M]; T], [[V::splat(0.0); M]; T]);
        for i in 0..key_dim {
            let row = state.add(i * wide + x);
            let mut columns = [V::splat(0.0); M];
            for m in 0..M {
                columns[m] = V::load(row.add(m * V::LANES));
            }
            for t in 0..T {
                let q = V::splat(*queries[c + t].add(i));
                for m in 0..M {
                    of_queries[t][m] = columns[m].mul_add(q, of_queries[t][m]);
                }
                if DELTA {
                    let k = V::splat(*keys[c + t].add(i));
                    for m in 0..M {
                        of_keys[t][m] = columns[m].mul_add(k, of_keys[t][m]);
                    }
                }
            }
        }
        for t in 0..T {
            for m in 0..M {
                let at = (c + t) * wide + x + m * V::LANES;
                of_queries[t][m].store(results.as_mut_ptr().add(at));
                if DELTA {
                    of_keys[t][m].store(deltas.as_mut_ptr().add(at));
                }
            }
        }
    }
}

/// Makes `deltas` and `results` of token `c` complete, which have what [`read`] gave, for `M` registers of columns.
/// `coefficients` are those of the deltas before it for its key and its query, the decay since the start of the chunk,
/// the strength and the scale.
///
/// # Safety
/// - The CPU has the features of `V`. The rows have `wide` numbers, of which there are `M` registers from `x` on.
#[inline(always)]
unsafe fn solve<V: Vector, const DELTA: bool, const M: usize>(
    coefficients: (&[f32; CHUNK], &[f32; CHUNK], f32, f32, f32),
    wide: usize,
    x: usize,
    c: usize,
    values: &[f32],
    deltas: &mut [f32],
    results: &mut [f32],
) {
    let (of_key, of_query, decay, beta, scale) = coefficients;
    // SAFETY: the caller's promise.
    unsafe {
        let at = |c: usize, m: usize| c * wide + x + m * V::LANES;
        let (mut delta, mut result) = ([V::splat(0.0); M], [V::splat(0.0); M]);
        for m in 0..M {
            let value = V::load(values.as_ptr().add(at(c, m)));
            result[m] = V::load(results.as_ptr().add(at(c, m))).mul(V::splat(decay));
            delta[m] = value;
            if DELTA {
                delta[m] = V::load(deltas.as_ptr().add(at(c, m))).mul_add(V::splat(-decay), value);
            }
        }
        for j in 0..c {
            for m in 0..M {
                let before = V::load(deltas.as_ptr().add(at(j, m)));
                result[m] = before.mul_add(V::splat(of_query[j]), result[m]);
                if DELTA {
                    delta[m] = before.mul_add(V::splat(-of_key[j]), delta[m]);
                }
            }
        }
        for m in 0..M {
            let delta = delta[m].mul(V::splat(beta));
            delta.store(deltas.as_mut_ptr().add(at(c, m)));
            let result = delta.mul_add(V::splat(of_query[c]), result[m]).mul(V::splat(scale));
            result.store(results.as_mut_ptr().add(at(c, m)));
        }
    }
}

/// The state after a full chunk: `to = shrink * state + sum of k_j delta_j^T`.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - Both states have `key_dim` rows of `wide`, the keys `key_dim` numbers, the deltas `CHUNK` rows of `wide`.
#[inline(always)]
unsafe fn write<V: Vector>(
    to: *mut f32,
    state: *const f32,
    wide: usize,
    key_dim: usize,
    shrink: f32,
    keys: &[*const f32; CHUNK],
    deltas: &[f32],
) {
    const ROWS: usize = 4;
    let mut x = 0;
    while x < wide {
        let left = (wide - x) / V::LANES;
        macro_rules! columns {
            ($columns:literal) => {{
                for i in (0..key_dim).step_by(ROWS) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        if key_dim - i >= ROWS {
                            write_tile::<V, $columns, ROWS>(to, state, wide, x, i, shrink, keys, deltas);
                        } else {
                            for i in i..key_dim {
                                write_tile::<V, $columns, 1>(to, state, wide, x, i, shrink, keys, deltas);
                            }
                        }
                    }
                }
                x += $columns * V::LANES;
            }};
        }
        if V::REGISTERS == 32 {
            if left >= 4 { columns!(4) } else { columns!(1) }
        } else if left >= 2 {
            columns!(2)
        } else {
            columns!(1)
        }
    }
}

/// # Safety
/// - As for [`write`](fn@write), with `M` registers of columns from `x` on and `R` rows from `i` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn write_tile<V: Vector, const M: usize, const R: usize>(
    to: *mut f32,
    state: *const f32,
    wide: usize,
    x: usize,
    i: usize,
    shrink: f32,
    keys: &[*const f32; CHUNK],
    deltas: &[f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let at = |r: usize, m: usize| (i + r) * wide + x + m * V::LANES;
        let mut sums = [[V::splat(0.0); M]; R];
        for r in 0..R {
            for m in 0..M {
                sums[r][m] = V::load(state.add(at(r, m))).mul(V::splat(shrink));
            }
        }
        for j in 0..CHUNK {
            let mut delta = [V::splat(0.0); M];
            for m in 0..M {
                delta[m] = V::load(deltas.as_ptr().add(j * wide + x + m * V::LANES));
            }
            for r in 0..R {
                let k = V::splat(*keys[j].add(i + r));
                for m in 0..M {
                    sums[r][m] = delta[m].mul_add(k, sums[r][m]);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                sums[r][m].store(to.add(at(r, m)));
            }
        }
    }
}

/// `x / sqrt(sum of x^2 + eps)`, in place.
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn l2_norm<V: Vector>(x: &mut [f32], eps: f32) {
    // SAFETY: the slice is as long as it says; the features are the caller's promise.
    unsafe {
        let scale = 1.0 / (dot::<V>(x.as_ptr(), x.as_ptr(), x.len()) + eps).sqrt();
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Implements what recurrent layers need of [`super::Kernels`] for a set, see `float_kernels`.
macro_rules! recurrent_kernels {
    ($vector:ty, $features:ident) => {
        unsafe fn conv(&self, job: &crate::kernels::Conv, i: usize) {
            $features! {
                unsafe fn run(job: &crate::kernels::Conv, i: usize) {
                    // SAFETY: the features are those of this function; the rest is the caller's promise.
                    unsafe { crate::kernels::conv::conv::<$vector>(job, i) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
            unsafe { run(job, i) }
        }

        unsafe fn linear_attention(&self, job: &crate::kernels::LinearAttention, i: usize) {
            $features! {
                unsafe fn run(job: &crate::kernels::LinearAttention, i: usize) {
                    // SAFETY: the features are those of this function; the rest is the caller's promise.
                    unsafe { crate::kernels::linear_attention::linear_attention::<$vector>(job, i) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
            unsafe { run(job, i) }
        }

        fn l2_norm(&self, x: &mut [f32], eps: f32) {
            $features! {
                fn run(x: &mut [f32], eps: f32) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::linear_attention::l2_norm::<$vector>(x, eps) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(x, eps)
            }
        }
    };
}
pub(super) use recurrent_kernels;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::sampling::Rng;
    use crate::threads::Interrupt;

    /// What some tokens bring.
    struct Tokens {
        heads: LinearHeads,
        rows: Vec<f32>, // values, then keys, then queries
        g: Vec<f32>,
        beta: Vec<f32>,
    }

    impl Tokens {
        fn random(heads: LinearHeads, n: usize, seed: u64) -> Self {
            let mut rng = Rng::new(seed);
            let mut random = |n: usize| (0..n).map(|_| (rng.next_f64() * 2.0 - 1.0) as f32).collect::<Vec<_>>();
            let (values, keys) = (heads.n_heads * heads.value_dim, heads.n_key_heads * heads.key_dim);
            let mut rows = random(n * (values + 2 * keys));
            let kernels = kernels::best().unwrap();
            for row in rows.chunks_exact_mut(values + 2 * keys) {
                row[values..].chunks_exact_mut(heads.key_dim).for_each(|x| kernels.l2_norm(x, 1e-6));
            }
            let g = random(n * heads.n_heads).iter().map(|x| -(4.0 * x).exp() / 8.0).collect();
            let beta = random(n * heads.n_heads).iter().map(|x| (x + 1.0) / 2.0).collect();
            Self { heads, rows, g, beta }
        }

        fn inputs(&self, tokens: Range<usize>) -> LinearInputs<'_> {
            let LinearHeads { n_heads, n_key_heads, key_dim, value_dim, .. } = self.heads;
            let (values, keys) = (n_heads * value_dim, n_key_heads * key_dim);
            let stride = values + 2 * keys;
            LinearInputs {
                rows: &self.rows[tokens.start * stride..tokens.end * stride],
                stride,
                q: values + keys,
                k: values,
                v: 0,
                g: &self.g[tokens.start * n_heads..tokens.end * n_heads],
                beta: &self.beta[tokens.start * n_heads..tokens.end * n_heads],
                scale: 0.25,
            }
        }

        /// The recurrence as it is written down, in f64: results, and the states after each token.
        fn twin(&self) -> (Vec<f64>, Vec<Vec<f64>>) {
            let LinearHeads { n_heads, key_dim, value_dim, rule, .. } = self.heads;
            let n = self.g.len() / n_heads;
            let LinearInputs { rows, stride, q, k, v, g, beta, scale } = self.inputs(0..n);
            let mut state = vec![0.0f64; n_heads * key_dim * value_dim];
            let (mut results, mut states) = (Vec::new(), Vec::new());
            for t in 0..n {
                for h in 0..n_heads {
                    let number = |at: usize| f64::from(rows[t * stride + at]);
                    let key_head = self.heads.key_head(h) * key_dim;
                    let s = &mut state[h * key_dim * value_dim..(h + 1) * key_dim * value_dim];
                    let decay = f64::from(g[t * n_heads + h]).exp();
                    s.iter_mut().for_each(|s| *s *= decay);
                    for x in 0..value_dim {
                        let known: f64 = (0..key_dim).map(|i| s[i * value_dim + x] * number(k + key_head + i)).sum();
                        let known = if rule == Rule::Delta { known } else { 0.0 };
                        let delta = f64::from(beta[t * n_heads + h]) * (number(v + h * value_dim + x) - known);
                        (0..key_dim).for_each(|i| s[i * value_dim + x] += number(k + key_head + i) * delta);
                        let o: f64 = (0..key_dim).map(|i| s[i * value_dim + x] * number(q + key_head + i)).sum();
                        results.push(o * f64::from(scale));
                    }
                }
                states.push(state.clone());
            }
            (results, states)
        }
    }

    /// A sequence: the state at the last border, and the tail.
    #[derive(Clone)]
    struct Memory {
        position: usize,
        state: Vec<f32>,
        tail: Vec<f32>,
    }

    impl Memory {
        fn new(heads: LinearHeads) -> Self {
            let junk = vec![f32::NAN; heads.tail_len().unwrap()]; // nobody may look at what was not written
            Self { position: 0, state: vec![0.0; heads.state_len().unwrap()], tail: junk }
        }

        /// Computes the tokens at its position. Gives their results, and the state that was kept at this border.
        fn go_on(&mut self, cx: &Context, tokens: &Tokens, n: usize, keep: Option<usize>) -> (Vec<f32>, Vec<f32>) {
            let mut fresh = Self::new(tokens.heads);
            let mut kept = fresh.state.clone();
            let mut out = vec![f32::NAN; n * tokens.heads.n_heads * tokens.heads.value_dim];
            let filled = self.position % CHUNK;
            let crosses = filled + n >= CHUNK;
            let span = LinearSpan {
                tokens: n,
                filled,
                state: &self.state,
                tail: &mut self.tail,
                next: crosses.then_some((&mut fresh.state[..], &mut fresh.tail[..])),
                keep: keep.map(|border| ((border - (self.position - filled)) / CHUNK, &mut kept[..])),
            };
            let inputs = tokens.inputs(self.position..self.position + n);
            LinearAttention::new(tokens.heads, inputs, vec![span], &mut out).run(cx);
            let position = self.position + n;
            if crosses {
                *self = fresh;
            }
            self.position = position;
            (out, kept)
        }
    }

    fn shapes() -> Vec<LinearHeads> {
        let mut all = Vec::new();
        for (n_heads, n_key_heads, key_dim, value_dim) in
            [(4, 2, 16, 16), (2, 2, 19, 33), (4, 1, 128, 64), (4, 2, 64, 208)]
        {
            for (rule, key_head) in
                [(Rule::Delta, KeyHead::Modulo), (Rule::Delta, KeyHead::Divide), (Rule::Plain, KeyHead::Divide)]
            {
                all.push(LinearHeads { n_heads, n_key_heads, key_dim, value_dim, rule, key_head });
            }
        }
        all
    }

    fn bits(numbers: &[f32]) -> Vec<u32> {
        numbers.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn chunks_give_what_the_recurrence_gives() {
        let interrupt = Interrupt::never();
        for kernels in kernels::all() {
            let cx = Context { kernels, threads: 2, interrupt: &interrupt, observer: None, adapted: &[] };
            for heads in shapes() {
                let n = 75;
                let tokens = Tokens::random(heads, n, 7);
                let (results, states) = tokens.twin();
                let mut memory = Memory::new(heads);
                let (out, kept) = memory.go_on(&cx, &tokens, n, Some(48));
                let largest = results.iter().fold(0.0f64, |max, x| max.max(x.abs()));
                let name = kernels.name();
                for (got, expected) in out.iter().zip(&results) {
                    assert!((f64::from(*got) - expected).abs() < 2e-6 * largest, "{name} {heads:?}: {got}, {expected}");
                }
                for (state, position) in [(&memory.state, 64), (&kept, 48)] {
                    let expected = &states[position - 1];
                    let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
                    for (row, expected) in state.chunks_exact(heads.wide()).zip(expected.chunks_exact(heads.value_dim))
                    {
                        let (row, padding) = row.split_at(heads.value_dim);
                        let close = |(x, y): (&f32, &f64)| (f64::from(*x) - y).abs() < 2e-6 * largest;
                        assert!(
                            row.iter().zip(expected).all(close) && padding.iter().all(|&x| x == 0.0),
                            "{name} {heads:?}"
                        );
                    }
                }
            }
        }
    }

    /// However the tokens are cut, in whatever company, with any number of threads, also after a cut within the chunk.
    #[test]
    fn a_token_has_the_same_bits_in_any_company() {
        let interrupt = Interrupt::never();
        let n = 90;
        for kernels in kernels::all() {
            for (seed, heads) in shapes().into_iter().enumerate() {
                let mut rng = Rng::new(seed as u64);
                let mut random = |n: usize| rng.next_u64() as usize % n;
                let tokens = Tokens::random(heads, n, seed as u64);
                let cx = |threads| Context { kernels, threads, interrupt: &interrupt, observer: None, adapted: &[] };
                let width = heads.n_heads * heads.value_dim;
                let (all, kept) = Memory::new(heads).go_on(&cx(1), &tokens, n, Some(80));
                let mut memory = Memory::new(heads);
                while memory.position < n {
                    let piece = (1 + [0, 0, 1, 3, 15, 40][random(6)]).min(n - memory.position);
                    let start = memory.position;
                    let (out, _) = memory.go_on(&cx(1 + random(3)), &tokens, piece, None);
                    let expected = &all[start * width..memory.position * width];
                    assert!(bits(&out) == bits(expected), "{} {heads:?}, {start}", kernels.name());
                    if memory.position == 80 {
                        assert!(bits(&memory.state) == bits(&kept), "{} {heads:?}", kernels.name());
                    }
                    memory.position -= random(memory.position % CHUNK + 1); // the tail may be cut short
                }
            }
        }
    }

    #[test]
    fn spans_of_a_batch_do_not_see_each_other() {
        let interrupt = Interrupt::never();
        let heads = shapes()[0];
        for kernels in kernels::all() {
            let cx = Context { kernels, threads: 2, interrupt: &interrupt, observer: None, adapted: &[] };
            let tokens = Tokens::random(heads, 40, 3);
            let width = heads.n_heads * heads.value_dim;
            let counts = [1, 20, 7, 12];
            let mut memories: Vec<Memory> = counts.iter().map(|_| Memory::new(heads)).collect();
            let mut fresh = memories.clone();
            let mut out = vec![0.0; 40 * width];
            let spans = memories.iter_mut().zip(&mut fresh).zip(counts).map(|((memory, fresh), n)| LinearSpan {
                tokens: n,
                filled: 0,
                state: &memory.state,
                tail: &mut memory.tail,
                next: (n >= CHUNK).then_some((&mut fresh.state[..], &mut fresh.tail[..])),
                keep: None,
            });
            LinearAttention::new(heads, tokens.inputs(0..40), spans.collect(), &mut out).run(&cx);
            let mut start = 0;
            for n in counts {
                let mut alone = vec![0.0; n * width];
                let (mut memory, mut fresh) = (Memory::new(heads), Memory::new(heads));
                let span = LinearSpan {
                    tokens: n,
                    filled: 0,
                    state: &memory.state,
                    tail: &mut memory.tail,
                    next: (n >= CHUNK).then_some((&mut fresh.state[..], &mut fresh.tail[..])),
                    keep: None,
                };
                LinearAttention::new(heads, tokens.inputs(start..start + n), vec![span], &mut alone).run(&cx);
                assert!(bits(&alone) == bits(&out[start * width..(start + n) * width]), "{}", kernels.name());
                start += n;
            }
        }
    }
}
