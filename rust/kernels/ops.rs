//! The float operations: one body each, over a [`Vector`].
//!
//! `#[inline(always)]` and without `#[target_feature]`: the kernel sets call them from functions that have
//! the features (see [`float_kernels`]).

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::ops::Range;

use super::RopeStyle;
use super::matmul::{Matmul, STRIP};
use super::vector::{Bf16, Number, Vector, exp};
use crate::quant::DType;

/// `out[i] = x[i] / sqrt(mean(x^2) + eps) * w[i]`, `w` F32 as it lies in the file.
///
/// # Safety
/// - The CPU has the features of `V`.
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

/// Rotates each pair of `x` by the angle of `turns[i] = [cos, sin]`.
#[inline(always)]
pub fn rope(x: &mut [f32], turns: &[[f32; 2]], style: RopeStyle) {
    assert!(x.len() == 2 * turns.len());
    let rotate = |a: &mut f32, b: &mut f32, [cos, sin]: [f32; 2]| (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
    match style {
        RopeStyle::Interleaved => {
            for ([a, b], turn) in x.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                rotate(a, b, *turn);
            }
        }
        RopeStyle::Half => {
            let (first, second) = x.split_at_mut(turns.len());
            for ((a, b), turn) in first.iter_mut().zip(second).zip(turns) {
                rotate(a, b, *turn);
            }
        }
    }
}

/// `out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]`
///
/// # Safety
/// - The CPU has the features of `V`.
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

/// Rows of a float matrix times some tokens: the way through it for one token and for a batch.
///
/// A tile of rows and tokens has its sums in registers, whose lanes hold different `k`: a row is read and converted
/// once for all tokens of the tile, and nothing is transposed. `k` goes in blocks, so that the tokens' part of a
/// block stays in the L1 cache while all rows pass by.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of a float type; no other worker writes their results.
#[inline(always)]
pub unsafe fn float_products<V: Vector>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    // SAFETY: the caller's promises.
    unsafe {
        match job.w.dtype() {
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

/// # Safety
/// - The CPU has the features of `V`.
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of numbers `W`; no other worker writes their results.
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

/// # Safety
/// - The CPU has the features of `V`.
/// - The `R` rows from `r` and the `T` tokens from `t` are there, and so is `k`; the matrix is of numbers `W`. No other worker writes the results.
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
        let w = job.w.bytes().as_ptr().cast::<W>().wrapping_add(r * row_len);
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
                let out = job.at(t + b, r + a);
                *out = if add { *out + sum } else { sum };
            }
        }
    }
}

/// Implements the float part of [`super::Kernels`] for a set, over a register type and the macro that gives functions the
/// features of the set.
macro_rules! float_kernels {
    ($vector:ty, $features:ident) => {
        fn rms_norm(&self, out: &mut [f32], x: &[f32], w: &[u8], eps: f32) {
            $features! {
                fn run(out: &mut [f32], x: &[f32], w: &[u8], eps: f32) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::ops::rms_norm::<$vector>(out, x, w, eps) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(out, x, w, eps)
            }
        }

        fn swiglu(&self, out: &mut [f32], gate: &[f32], up: &[f32]) {
            $features! {
                fn run(out: &mut [f32], gate: &[f32], up: &[f32]) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::ops::swiglu::<$vector>(out, gate, up) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(out, gate, up)
            }
        }

        fn rope(&self, x: &mut [f32], turns: &[[f32; 2]], style: crate::kernels::RopeStyle) {
            $features! {
                fn run(x: &mut [f32], turns: &[[f32; 2]], style: crate::kernels::RopeStyle) {
                    crate::kernels::ops::rope(x, turns, style);
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(x, turns, style)
            }
        }

        fn store_kv(
            &self,
            heads: crate::kernels::Heads,
            layer: &mut [u8],
            slot: usize,
            key: &[f32],
            value: Option<&[f32]>,
        ) {
            $features! {
                fn run(h: crate::kernels::Heads, layer: &mut [u8], slot: usize, key: &[f32], value: Option<&[f32]>) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::attention::store::<$vector>(h, layer, slot, key, value) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(heads, layer, slot, key, value)
            }
        }

        unsafe fn attention(&self, job: &crate::kernels::Attention, i: usize) {
            $features! {
                unsafe fn run(job: &crate::kernels::Attention, i: usize) {
                    // SAFETY: the features are those of this function; the rest is the caller's promise.
                    unsafe { crate::kernels::attention::attention::<$vector>(job, i) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
            unsafe { run(job, i) }
        }
    };
}
pub(super) use float_kernels;
