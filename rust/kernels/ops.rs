//! The float operations: one body each, over a [`Vector`].
//!
//! `#[inline(always)]` and without `#[target_feature]`: the kernel sets call them from functions that have
//! the features (see [`float_kernels`]).

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::ops::Range;

use super::matmul::{Matmul, STRIP};
use super::vector::{Vector, exp};
use crate::quant::DType;
use crate::threads::Disjoint;

/// `out[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]`, `w` F32 as it lies in the file.
#[inline(always)]
pub unsafe fn rms_norm<V: Vector>(out: &mut [f32], x: &[f32], w: &[u8], eps: f32) {
    let n = out.len();
    let w = w.as_chunks::<4>().0;
    assert!(x.len() == n && w.len() == n);
    let whole = n - n % V::LANES;
    // SAFETY: `i + LANES <= whole <= n`; the features are the caller's promise.
    unsafe {
        let mut squares = [V::splat(0.0); 4]; // four chains: an addition takes four cycles
        for i in (0..whole).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(i));
            let chain = &mut squares[i / V::LANES % 4];
            *chain = v.mul_add(v, *chain);
        }
        let mut sum = squares[0].add(squares[1]).add(squares[2].add(squares[3])).sum();
        for x in &x[whole..] {
            sum += x * x;
        }
        let scale = 1.0 / (sum / n as f32 + eps).sqrt();
        for i in (0..whole).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(i)).mul(V::splat(scale));
            v.mul(V::load(w.as_ptr().add(i).cast())).store(out.as_mut_ptr().add(i));
        }
        for i in whole..n {
            out[i] = x[i] * scale * f32::from_le_bytes(w[i]);
        }
    }
}

/// Rotates neighbours: the pair `(x[2i], x[2i + 1])` by the angle of `turns[i] = [cos, sin]`.
#[inline(always)]
pub fn rope(x: &mut [f32], turns: &[[f32; 2]]) {
    for ([a, b], [cos, sin]) in x.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    }
}

/// `out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]`
#[inline(always)]
pub unsafe fn swiglu<V: Vector>(out: &mut [f32], gate: &[f32], up: &[f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n);
    let whole = n - n % V::LANES;
    // SAFETY: `i + LANES <= whole <= n`; the features are the caller's promise.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            let g = V::load(gate.as_ptr().add(i));
            let u = V::load(up.as_ptr().add(i));
            let e = exp(V::splat(0.0).sub(g));
            g.mul(u).div(V::splat(1.0).add(e)).store(out.as_mut_ptr().add(i));
        }
    }
    for i in whole..n {
        out[i] = gate[i] * up[i] / (1.0 + (-gate[i]).exp());
    }
}

/// Rounds to f16.
#[inline(always)]
pub unsafe fn to_f16<V: Vector>(out: &mut [u16], x: &[f32]) {
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

/// Rows of a float matrix times some tokens: the way through it for one token and for a batch.
///
/// A tile of rows and tokens has its sums in registers, whose lanes hold different `k`: a row is read and converted
/// once for all tokens of the tile, and nothing is transposed. `k` goes in blocks, so that the tokens' part of a
/// block stays in the L1 cache while all rows pass by.
#[inline(always)]
pub unsafe fn float_products<V: Vector>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    // SAFETY: the caller's promises.
    unsafe {
        match job.w.dtype {
            DType::F32 => float_blocks::<V, f32>(job, rows, tokens),
            DType::F16 => float_blocks::<V, u16>(job, rows, tokens),
            DType::BF16 => float_blocks::<V, Bf16>(job, rows, tokens),
            other => unreachable!("{other} is not a float type"),
        }
    }
}

/// `k` of a block: 24 KiB of six tokens.
const FLOAT_BLOCK: usize = 1024;
/// Bytes ahead of a row's reads to prefetch, when it is read for the first tokens.
const FLOAT_PREFETCH: usize = 8192;

#[inline(always)]
unsafe fn float_blocks<V: Vector, W: Number>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    // Of 32 registers, 24 are sums, 4 a row each and one a token; of 16, 8 are sums.
    const ROWS: usize = 4;
    let tile_tokens = if V::LANES == 16 { 6 } else { 2 };
    let n = job.x.n();
    // A strip of rows at a time: they stay in the cache while all tokens pass by.
    for strip in rows.clone().step_by(STRIP) {
        let strip = strip..(strip + STRIP).min(rows.end);
        for first in (0..n).step_by(FLOAT_BLOCK) {
            let k = first..(first + FLOAT_BLOCK).min(n);
            for t in tokens.clone().step_by(tile_tokens) {
                let ahead = t == tokens.start;
                for r in strip.clone().step_by(ROWS) {
                    let (rows, tokens) = (ROWS.min(strip.end - r), tile_tokens.min(tokens.end - t));
                    // SAFETY: these rows and tokens are there and the caller's own.
                    unsafe {
                        macro_rules! tile {
                            ($tokens:literal) => {
                                if rows == ROWS {
                                    float_tile::<V, W, ROWS, $tokens>(job, r, t, k.clone(), ahead);
                                } else {
                                    for r in r..r + rows {
                                        float_tile::<V, W, 1, $tokens>(job, r, t, k.clone(), ahead);
                                    }
                                }
                            };
                        }
                        match tokens {
                            1 => tile!(1),
                            2 => tile!(2),
                            3 => tile!(3),
                            4 => tile!(4),
                            5 => tile!(5),
                            _ => tile!(6),
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn float_tile<V: Vector, W: Number, const R: usize, const T: usize>(
    job: &Matmul,
    r: usize,
    t: usize,
    k: Range<usize>,
    ahead: bool,
) {
    let whole = k.start + (k.len() - k.len() % V::LANES);
    let row_len = job.x.n();
    // SAFETY: R rows and T tokens of `row_len` numbers are there; these results are the caller's own.
    unsafe {
        let w = job.w.bytes.as_ptr().cast::<W>().wrapping_add(r * row_len);
        let x = job.x.x(t).as_ptr();
        let mut sums = [[V::splat(0.0); T]; R];
        for i in (k.start..whole).step_by(V::LANES) {
            let mut columns = [V::splat(0.0); R];
            for a in 0..R {
                let w = w.wrapping_add(a * row_len + i);
                #[cfg(target_arch = "x86_64")]
                if ahead {
                    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                    _mm_prefetch::<_MM_HINT_T0>(w.cast::<i8>().wrapping_add(FLOAT_PREFETCH));
                }
                columns[a] = W::load::<V>(w);
            }
            for b in 0..T {
                let x = V::load(x.add(b * row_len + i));
                for a in 0..R {
                    sums[a][b] = columns[a].mul_add(x, sums[a][b]);
                }
            }
        }
        let add = job.accumulate || k.start > 0;
        for a in 0..R {
            for b in 0..T {
                let mut sum = sums[a][b].sum();
                for i in whole..k.end {
                    sum += w.wrapping_add(a * row_len + i).read_unaligned().to_f32() * *x.add(b * row_len + i);
                }
                let out = job.out.as_ptr((t + b) * job.out_stride + r + a);
                *out = if add { *out + sum } else { sum };
            }
        }
    }
}

/// A number as it lies in memory, at any alignment, read into a register of floats.
trait Number: Copy {
    /// Reads `LANES` numbers.
    unsafe fn load<V: Vector>(p: *const Self) -> V;
    fn to_f32(self) -> f32;
}

/// The bits of a bfloat16.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16(u16);

impl Number for Bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(p.cast()) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// f16
impl Number for u16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        half::f16::from_bits(self).to_f32()
    }
}

/// `c (+)= a b` with `(m, n, k)`: `a` is m x k, `b` is k x n and n a multiple of 16, all row-major with a stride.
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

/// Causal attention of a batch of tokens over one layer's cache.
///
/// `out = softmax(q k^T / sqrt(head_dim)) v` for each query head; `n_heads / n_kv_heads` query heads share a
/// key-value head. Token `t` sees the positions `0 ..= start + t`.
pub struct Attention<'a> {
    /// Queries, rotated.
    pub q: &'a [f32], // (tokens, n_heads * head_dim)
    /// Keys of the layer, f16, rotated.
    pub k: &'a [u16], // (n_kv_heads, capacity, head_dim)
    /// Values of the layer, f16.
    pub v: &'a [u16], // (n_kv_heads, capacity, head_dim)
    /// Results.
    pub out: Disjoint<'a, f32>, // (tokens, n_heads * head_dim)
    /// Results of a part of the positions, see [`Attention::merge`].
    pub parts: Disjoint<'a, f32>, // (tokens * n_heads, parts, head_dim + 2)
    /// Query heads.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Positions that the cache has room for.
    pub capacity: usize,
    /// Position of the first token.
    pub start: usize,
    /// Into how many parts the positions are cut.
    pub n_parts: usize,
}

/// Positions that are looked at together.
const KEYS: usize = 64;
/// Queries (tokens times heads of a group) that share unpacked keys and values.
const QUERIES: usize = 96;
/// From this many queries on, unpacking keys and values pays.
const TILE_QUERIES: usize = 6;
/// A part of the positions is not shorter than this, and there are no more parts than that.
const PART: usize = 192;
const MAX_PARTS: usize = 8;

/// One piece of the work of an [`Attention`]: a key-value head, some tokens, a part of the positions.
#[derive(Debug, Clone, Copy)]
pub struct AttentionTask {
    kv_head: usize,
    first_token: usize,
    end_token: usize,
    part: usize,
}

impl Attention<'_> {
    /// Tokens that one task takes together.
    fn block(n_heads: usize, n_kv_heads: usize) -> usize {
        (QUERIES / (n_heads / n_kv_heads)).max(1)
    }

    /// Into how many parts to cut the positions that a few tokens from `start` see: enough for many workers where the
    /// context is long, though there may be few heads. It does not depend on the number of workers, and so the results do
    /// not.
    pub fn parts_for(n_heads: usize, n_kv_heads: usize, start: usize, tokens: usize) -> usize {
        let few = tokens * (n_heads / n_kv_heads) < TILE_QUERIES;
        if few { ((start + tokens) / PART).clamp(1, MAX_PARTS) } else { 1 }
    }

    /// Number of tasks for `tokens` tokens.
    pub fn n_tasks(&self, tokens: usize) -> usize {
        self.n_kv_heads * self.n_parts * tokens.div_ceil(Self::block(self.n_heads, self.n_kv_heads))
    }

    /// Task `i` of `n_tasks`; the longest, those of the last tokens, come first.
    pub fn task(&self, i: usize, tokens: usize) -> AttentionTask {
        let block = Self::block(self.n_heads, self.n_kv_heads);
        let blocks = tokens.div_ceil(block);
        let first_token = (blocks - 1 - i / (self.n_kv_heads * self.n_parts)) * block;
        let end_token = (first_token + block).min(tokens);
        let part = i / self.n_kv_heads % self.n_parts;
        AttentionTask { kv_head: i % self.n_kv_heads, first_token, end_token, part }
    }

    /// Where the results of `part` of query `i` (token times heads) are: the sum of weighted values, the largest score
    /// and the sum of the weights relative to it.
    fn part_at(&self, query: usize, part: usize) -> Range<usize> {
        let width = self.head_dim + 2;
        let start = (query * self.n_parts + part) * width;
        start..start + width
    }

    /// Puts the parts of `tokens` tokens together, when all tasks are done.
    ///
    /// # Safety
    /// - No worker writes to `out` or `parts`.
    pub unsafe fn merge(&self, tokens: usize) {
        let hd = self.head_dim;
        for query in 0..tokens * self.n_heads {
            // SAFETY: the caller's promise.
            let out = unsafe { self.out.slice(query * hd..(query + 1) * hd) };
            out.fill(0.0);
            let (mut largest, mut total) = (f32::NEG_INFINITY, 0.0);
            for part in 0..self.n_parts {
                // SAFETY: the caller's promise.
                let part = unsafe { self.parts.slice(self.part_at(query, part)) };
                let (acc, scale) = part.split_at(hd);
                let (old, new) = (largest, scale[0].max(largest));
                let (shrink, grow) = ((old - new).exp(), (scale[0] - new).exp());
                (largest, total) = (new, total * shrink + scale[1] * grow);
                for (out, acc) in out.iter_mut().zip(acc) {
                    *out = *out * shrink + acc * grow;
                }
            }
            out.iter_mut().for_each(|out| *out /= total);
        }
    }
}

/// One task of an attention: online softmax (Milakov and Gimelshein 2018; Dao et al. 2022) over blocks of keys.
#[inline(always)]
pub unsafe fn attention<V: Vector>(job: &Attention, task: AttentionTask) {
    let AttentionTask { kv_head, first_token, end_token, part } = task;
    let group = job.n_heads / job.n_kv_heads;
    let hd = job.head_dim;
    let wide = hd.next_multiple_of(16); // registers are whole in scratch
    let queries = (end_token - first_token) * group;
    let head = kv_head * job.capacity * hd..(kv_head + 1) * job.capacity * hd;
    let (keys, values) = (job.k[head.clone()].as_ptr(), job.v[head].as_ptr());
    let scale = 1.0 / (hd as f32).sqrt();
    let few = queries < TILE_QUERIES;

    let mut scratch = vec![0.0f32; 2 * queries * wide + queries * KEYS + 2 * queries + 2 * KEYS * wide];
    let (q, rest) = scratch.split_at_mut(queries * wide); // [query][dim], scaled
    let (acc, rest) = rest.split_at_mut(queries * wide); // [query][dim]
    let (scores, rest) = rest.split_at_mut(queries * KEYS); // [query][key]
    let (largest, rest) = rest.split_at_mut(queries);
    let (total, rest) = rest.split_at_mut(queries);
    let (kf, vf) = rest.split_at_mut(KEYS * wide); // [dim][key] or, for few queries, [key][dim]; [key][dim]
    for i in 0..queries {
        let query = (first_token + i / group) * job.n_heads + kv_head * group + i % group;
        for (to, from) in q[i * wide..].iter_mut().zip(&job.q[query * hd..][..hd]) {
            *to = from * scale;
        }
    }
    largest.fill(f32::NEG_INFINITY);

    let end = job.start + end_token; // one past the last position that any of the tokens sees
    assert!(end <= job.capacity);
    let per_part = end.div_ceil(job.n_parts).next_multiple_of(KEYS);
    let end = end.min((part + 1) * per_part);
    for first in (part * per_part..end).step_by(KEYS) {
        let n = KEYS.min(end - first);
        // SAFETY: positions first .. first + n lie in the cache, the scratch has the shapes given above, and the
        // features are the caller's promise.
        unsafe {
            let (keys, values) = (keys.add(first * hd), values.add(first * hd));
            if few {
                unpack_rows::<V>(kf, keys, n, hd, wide);
                score::<V>(scores, q, kf, (queries, n, wide));
            } else {
                unpack_keys::<V>(kf, keys, n, hd);
                let (s, q) = (scores.as_mut_ptr(), q.as_ptr());
                gemm::<V, f32>(s, KEYS, q, wide, kf.as_ptr(), KEYS, (queries, KEYS, hd), false);
            }
            for i in 0..queries {
                // Causal: this query sees positions up to its own.
                let seen = (job.start + first_token + i / group + 1).saturating_sub(first).min(n);
                let scores = &mut scores[i * KEYS..(i + 1) * KEYS];
                scores[seen..].fill(f32::NEG_INFINITY);
                if seen > 0 {
                    let acc = &mut acc[i * wide..(i + 1) * wide];
                    soften::<V>(scores, &mut largest[i], &mut total[i], acc);
                }
                scores[seen..].fill(0.0);
            }
            let (acc, scores) = (acc.as_mut_ptr(), scores.as_ptr());
            if few && hd.is_multiple_of(V::LANES) {
                gemm::<V, u16>(acc, wide, scores, KEYS, values, hd, (queries, hd, n), true);
            } else {
                unpack_rows::<V>(vf, values, n, hd, wide);
                gemm::<V, f32>(acc, wide, scores, KEYS, vf.as_ptr(), wide, (queries, wide, n), true);
            }
        }
    }
    for i in 0..queries {
        let query = (first_token + i / group) * job.n_heads + kv_head * group + i % group;
        let acc = &acc[i * wide..][..hd];
        // SAFETY: this query, or this part of it, is the caller's own.
        unsafe {
            if job.n_parts > 1 {
                let part = job.parts.slice(job.part_at(query, part));
                part[..hd].copy_from_slice(acc);
                (part[hd], part[hd + 1]) = (largest[i], total[i]);
            } else {
                let out = job.out.slice(query * hd..(query + 1) * hd);
                for (out, acc) in out.iter_mut().zip(acc) {
                    *out = acc / total[i];
                }
            }
        }
    }
}

/// `scores[query][key] = q[query] . keys[key]` with `(queries, keys, width)`, rows of `width` whole registers.
#[inline(always)]
unsafe fn score<V: Vector>(scores: &mut [f32], q: &[f32], keys: &[f32], (queries, n, wide): (usize, usize, usize)) {
    for i in 0..queries {
        for key in (0..n).step_by(V::LANES) {
            // SAFETY: there is scratch for KEYS keys, a multiple of LANES; those past `n` are masked by the caller.
            unsafe {
                let mut products = [V::splat(0.0); 16];
                for lane in 0..V::LANES {
                    let k = keys.as_ptr().add((key + lane) * wide);
                    for dim in (0..wide).step_by(V::LANES) {
                        let q = V::load(q.as_ptr().add(i * wide + dim));
                        products[lane] = V::load(k.add(dim)).mul_add(q, products[lane]);
                    }
                }
                V::sum_each(&products).store(scores.as_mut_ptr().add(i * KEYS + key));
            }
        }
    }
}

/// One step of the online softmax: turns a block of scores into weights relative to the largest score so far, and
/// scales what was summed before to it.
#[inline(always)]
unsafe fn soften<V: Vector>(scores: &mut [f32], largest: &mut f32, total: &mut f32, acc: &mut [f32]) {
    // SAFETY: KEYS and the padded head are whole registers; the features are the caller's promise.
    unsafe {
        let mut max = V::splat(*largest);
        for s in scores.chunks_exact(V::LANES) {
            max = max.max(V::load(s.as_ptr()));
        }
        let now = max.largest();
        let shrink = V::splat((*largest - now).exp());
        let mut sum = V::splat(0.0);
        for s in scores.chunks_exact_mut(V::LANES) {
            let p = exp(V::load(s.as_ptr()).sub(V::splat(now)));
            p.store(s.as_mut_ptr());
            sum = sum.add(p);
        }
        for a in acc.chunks_exact_mut(V::LANES) {
            V::load(a.as_ptr()).mul(shrink).store(a.as_mut_ptr());
        }
        *total = *total * (*largest - now).exp() + sum.sum();
        *largest = now;
    }
}

/// f16 keys to floats, transposed: `[dim][key]`.
#[inline(always)]
unsafe fn unpack_keys<V: Vector>(out: &mut [f32], keys: *const u16, n: usize, hd: usize) {
    let mut row = [0.0f32; 16];
    for key in 0..n {
        for dim in (0..hd).step_by(V::LANES) {
            if dim + V::LANES <= hd {
                // SAFETY: in the row; 16 is the largest LANES.
                unsafe { V::load_f16(keys.add(key * hd + dim)).store(row.as_mut_ptr()) };
            } else {
                for (i, x) in row[..hd - dim].iter_mut().enumerate() {
                    // SAFETY: in the row.
                    *x = half::f16::from_bits(unsafe { *keys.add(key * hd + dim + i) }).to_f32();
                }
            }
            for (i, x) in row[..V::LANES.min(hd - dim)].iter().enumerate() {
                out[(dim + i) * KEYS + key] = *x;
            }
        }
    }
}

/// f16 rows of `hd` to rows of `wide` floats.
#[inline(always)]
unsafe fn unpack_rows<V: Vector>(out: &mut [f32], rows: *const u16, n: usize, hd: usize, wide: usize) {
    let whole = hd - hd % V::LANES;
    for i in 0..n {
        let out = &mut out[i * wide..(i + 1) * wide];
        // SAFETY: in the row.
        unsafe {
            let row = rows.add(i * hd);
            for dim in (0..whole).step_by(V::LANES) {
                V::load_f16(row.add(dim)).store(out[dim..].as_mut_ptr());
            }
            for dim in whole..hd {
                out[dim] = half::f16::from_bits(*row.add(dim)).to_f32();
            }
        }
    }
}

/// Implements the float part of [`super::Kernels`] for a set, over a register type and its features.
macro_rules! float_kernels {
    ($vector:ty $(, $features:literal)?) => {
        fn rms_norm(&self, out: &mut [f32], x: &[f32], w: &[u8], eps: f32) {
            $(#[target_feature(enable = $features)])?
            fn run(out: &mut [f32], x: &[f32], w: &[u8], eps: f32) {
                // SAFETY: the features are those of this function.
                unsafe { crate::kernels::ops::rms_norm::<$vector>(out, x, w, eps) }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe { run(out, x, w, eps) }
        }

        fn swiglu(&self, out: &mut [f32], gate: &[f32], up: &[f32]) {
            $(#[target_feature(enable = $features)])?
            fn run(out: &mut [f32], gate: &[f32], up: &[f32]) {
                // SAFETY: the features are those of this function.
                unsafe { crate::kernels::ops::swiglu::<$vector>(out, gate, up) }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe { run(out, gate, up) }
        }

        fn rope(&self, x: &mut [f32], turns: &[[f32; 2]]) {
            $(#[target_feature(enable = $features)])?
            fn run(x: &mut [f32], turns: &[[f32; 2]]) {
                crate::kernels::ops::rope(x, turns);
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe { run(x, turns) }
        }

        fn to_f16(&self, out: &mut [u16], x: &[f32]) {
            $(#[target_feature(enable = $features)])?
            fn run(out: &mut [u16], x: &[f32]) {
                // SAFETY: the features are those of this function.
                unsafe { crate::kernels::ops::to_f16::<$vector>(out, x) }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe { run(out, x) }
        }

        unsafe fn attention(&self, job: &crate::kernels::Attention, task: crate::kernels::AttentionTask) {
            $(#[target_feature(enable = $features)])?
            unsafe fn run(job: &crate::kernels::Attention, task: crate::kernels::AttentionTask) {
                // SAFETY: the features are those of this function; the rest is the caller's promise.
                unsafe { crate::kernels::ops::attention::<$vector>(job, task) }
            }
            // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
            unsafe { run(job, task) }
        }
    };
}
pub(super) use float_kernels;
