//! Attention over the key-value cache, and the types that the cache can have.
//!
//! One body for each operation, over a [`Vector`], as in [`ops`](super::ops).

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::ops::Range;

use half::f16;

use super::vector::{Number, Vector, exp};
use crate::quant::{BlockQ8_0, DType};
use crate::threads::Disjoint;

/// The types that keys and values can be stored in. Q8_0 takes 53 % of the memory of F16.
pub const KV_TYPES: [DType; 2] = [DType::F16, DType::Q8_0];

/// Causal attention of a batch of tokens over one layer's cache.
///
/// `out = softmax(q k^T / sqrt(head_dim)) v` for each query head; `n_heads / n_kv_heads` query heads share a
/// key-value head. Token `t` sees the positions `0 ..= start + t`.
pub struct Attention<'a> {
    /// Queries, rotated.
    pub q: &'a [f32], // (tokens, n_heads * head_dim)
    /// Keys of the layer, rotated, as they lie in the cache.
    pub k: &'a [u8], // (n_kv_heads, capacity, head_dim)
    /// Values of the layer.
    pub v: &'a [u8], // (n_kv_heads, capacity, head_dim)
    /// Type of keys and values, one of [`KV_TYPES`].
    pub kv_type: DType,
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
    let row = job.kv_type.row_bytes(hd).expect("checked when the cache was made");
    let head = kv_head * job.capacity * row..(kv_head + 1) * job.capacity * row;
    let (keys, values) = (&job.k[head.clone()], &job.v[head]);
    let scale = 1.0 / (hd as f32).sqrt();
    let few = queries < TILE_QUERIES;

    let mut scratch = vec![0.0f32; 2 * queries * wide + queries * KEYS + 2 * queries + 2 * KEYS * wide];
    let (q, rest) = scratch.split_at_mut(queries * wide); // [query][dim], scaled
    let (acc, rest) = rest.split_at_mut(queries * wide); // [query][dim]
    let (scores, rest) = rest.split_at_mut(queries * KEYS); // [query][key]
    let (largest, rest) = rest.split_at_mut(queries);
    let (total, rest) = rest.split_at_mut(queries);
    let (kf, vf) = rest.split_at_mut(KEYS * wide); // [dim][key]; [key][dim], first of the keys, then of the values
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
            let (keys, values) = (&keys[first * row..(first + n) * row], &values[first * row..(first + n) * row]);
            unpack::<V>(vf, job.kv_type, keys, hd, wide);
            if few {
                score::<V>(scores, q, vf, (queries, n, wide));
            } else {
                transpose(kf, vf, n, hd, wide);
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
            if few && job.kv_type == DType::F16 && hd.is_multiple_of(V::LANES) {
                // Each is used a few times only: converted on the way.
                let values = values.as_ptr().cast::<u16>();
                gemm::<V, u16>(acc, wide, scores, KEYS, values, hd, (queries, hd, n), true);
            } else {
                unpack::<V>(vf, job.kv_type, values, hd, wide);
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

/// Rounds to one of [`KV_TYPES`], to nearest even.
#[inline(always)]
pub unsafe fn round_to<V: Vector>(dtype: DType, out: &mut [u8], x: &[f32]) {
    assert!(dtype.row_bytes(x.len()) == Some(out.len()));
    match dtype {
        // SAFETY: the features are the caller's promise.
        DType::F16 => unsafe { to_f16::<V>(bytemuck::cast_slice_mut(out), x) },
        DType::Q8_0 => {
            for (block, x) in out.chunks_exact_mut(size_of::<BlockQ8_0>()).zip(x.as_chunks::<32>().0) {
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

/// Rows of `hd` numbers to rows of `wide` floats.
#[inline(always)]
unsafe fn unpack<V: Vector>(out: &mut [f32], dtype: DType, rows: &[u8], hd: usize, wide: usize) {
    // SAFETY: whole registers of a row, or of a block of it; the features are the caller's promise.
    unsafe {
        match dtype {
            DType::F16 => {
                let whole = hd - hd % V::LANES;
                for (out, row) in out.chunks_exact_mut(wide).zip(rows.chunks_exact(2 * hd)) {
                    for dim in (0..whole).step_by(V::LANES) {
                        V::load_f16(row[2 * dim..].as_ptr().cast()).store(out[dim..].as_mut_ptr());
                    }
                    for dim in whole..hd {
                        out[dim] = f16::from_le_bytes([row[2 * dim], row[2 * dim + 1]]).to_f32();
                    }
                }
            }
            DType::Q8_0 => {
                for (out, row) in out.chunks_exact_mut(wide).zip(rows.chunks_exact(hd / 32 * size_of::<BlockQ8_0>())) {
                    for (out, block) in out.chunks_exact_mut(32).zip(row.chunks_exact(size_of::<BlockQ8_0>())) {
                        let d = V::splat(f16::from_le_bytes([block[0], block[1]]).to_f32());
                        for i in (0..32).step_by(V::LANES) {
                            V::load_i8(block[2 + i..].as_ptr().cast()).mul(d).store(out[i..].as_mut_ptr());
                        }
                    }
                }
            }
            other => unreachable!("{other} is not a type of the cache"),
        }
    }
}

/// `n` rows of `wide` floats to columns: `[dim][key]`.
#[inline(always)]
fn transpose(out: &mut [f32], rows: &[f32], n: usize, hd: usize, wide: usize) {
    for (key, row) in rows.chunks_exact(wide).take(n).enumerate() {
        for (dim, x) in row[..hd].iter().enumerate() {
            out[dim * KEYS + key] = *x;
        }
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
