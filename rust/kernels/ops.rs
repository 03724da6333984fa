//! The float operations: one body each, over a [`Vector`].
//!
//! `#[inline(always)]` and without `#[target_feature]`: the kernel sets call them from functions that have
//! the features (see [`float_kernels`]).

#![allow(clippy::needless_range_loop)] // loops over registers stay plain, see the AVX-512 kernels

use std::ops::Range;

use super::matmul::{Matmul, STRIP};
use super::vector::{Bf16, Number, One, Vector, exp, prefetch};
use super::{Activation, Norm, NormKind, Numbers, RopeStyle};
use crate::quant::DType;

/// A norm of a row, see [`super::Kernels::norm`].
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn norm<V: Vector>(norm: Norm, out: &mut [f32], x: &[f32], w: Option<Numbers>, b: Option<Numbers>) {
    let n = out.len();
    assert!(x.len() == n && w.is_none_or(|w| w.len() == n) && b.is_none_or(|b| b.len() == n), "a norm of {n}");
    let whole = n - n % V::LANES;
    // SAFETY: `i + LANES <= whole <= n`; the features are the caller's promise.
    unsafe {
        let mean = match norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => {
                let mut sums = [V::splat(0.0); 4]; // four chains: an addition takes four cycles
                for i in (0..whole).step_by(V::LANES) {
                    let chain = &mut sums[i / V::LANES % 4];
                    *chain = chain.add(V::load(x.as_ptr().add(i)));
                }
                let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
                (sum + x[whole..].iter().sum::<f32>()) / n as f32
            }
        };
        let centre = V::splat(mean);
        let mut squares = [V::splat(0.0); 4];
        for i in (0..whole).step_by(V::LANES) {
            let v = V::load(x.as_ptr().add(i)).sub(centre);
            let chain = &mut squares[i / V::LANES % 4];
            *chain = v.mul_add(v, *chain);
        }
        let mut sum = squares[0].add(squares[1]).add(squares[2].add(squares[3])).sum();
        for x in &x[whole..] {
            sum += (x - mean) * (x - mean);
        }
        let scale = 1.0 / (sum / n as f32 + norm.eps).sqrt();
        for i in (0..whole).step_by(V::LANES) {
            let mut v = V::load(x.as_ptr().add(i)).sub(centre).mul(V::splat(scale));
            if let Some(w) = w {
                v = v.mul(w.load::<V>(i).add(V::splat(norm.offset)));
            }
            if let Some(b) = b {
                v = v.add(b.load::<V>(i));
            }
            v.store(out.as_mut_ptr().add(i));
        }
        for i in whole..n {
            let mut v = (x[i] - mean) * scale;
            if let Some(w) = w {
                v *= w.get(i) + norm.offset;
            }
            if let Some(b) = b {
                v += b.get(i);
            }
            out[i] = v;
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

/// An [`Activation`], a register at a time.
trait Gate: Copy {
    /// What becomes of a gate and of what it lets through.
    ///
    /// # Safety
    /// - The CPU has the features of `V`.
    unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V;
}

#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct GeluErf;
#[derive(Clone, Copy)]
struct Relu2;
#[derive(Clone, Copy)]
struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
}

/// `x / (1 + exp(-y))`
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn over_sigmoid<V: Vector>(x: V, y: V) -> V {
    // SAFETY: the caller's promise.
    unsafe { x.div(V::splat(1.0).add(exp(V::splat(0.0).sub(y)))) }
}

impl Gate for Silu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { over_sigmoid(gate.mul(up), gate) }
    }
}

impl Gate for Gelu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V {
        // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
        const C: f32 = 2.0 * 0.797_884_6; // 2 sqrt(2 / pi)
        // SAFETY: the caller's promise.
        unsafe {
            let square = gate.mul(gate);
            let u = gate.mul(square.mul_add(V::splat(C * 0.044_715), V::splat(C)));
            over_sigmoid(gate.mul(up), u)
        }
    }
}

impl Gate for GeluErf {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V {
        // Abramowitz and Stegun 7.1.26: erfc(|z|) = t p(t) exp(-z^2) to 1.5e-7, with t = 1 / (1 + 0.3275911 |z|)
        const P: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_8, -0.284_496_72, 0.254_829_6];
        // SAFETY: the caller's promise.
        unsafe {
            let zero = V::splat(0.0);
            let z = gate.max(zero.sub(gate)).mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = V::splat(1.0).div(z.mul_add(V::splat(0.327_591_1), V::splat(1.0)));
            let p = P[1..].iter().fold(V::splat(P[0]), |p, &c| p.mul_add(t, V::splat(c)));
            // x cdf(x) = max(x, 0) - |x| erfc(|z|) / 2, on either side of zero
            let tail = t.mul(p).mul(exp(zero.sub(z.mul(z)))).mul(V::splat(0.5));
            let magnitude = gate.max(zero.sub(gate));
            gate.max(zero).sub(magnitude.mul(tail)).mul(up)
        }
    }
}

impl Gate for Relu2 {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let gate = gate.max(V::splat(0.0));
            gate.mul(gate).mul(up)
        }
    }
}

impl Gate for ClampedSwiglu {
    #[inline(always)]
    unsafe fn apply<V: Vector>(self, gate: V, up: V) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let limit = V::splat(self.limit);
            let gate = gate.min(limit);
            let up = up.min(limit).max(V::splat(-self.limit)).add(V::splat(1.0));
            over_sigmoid(gate.mul(up), gate.mul(V::splat(self.alpha)))
        }
    }
}

/// `out[i] = activation(gate[i]) * up[i]`, see [`super::Kernels::activate`].
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn activate<V: Vector>(activation: Activation, out: &mut [f32], gate: &[f32], up: Option<&[f32]>) {
    // SAFETY: the caller's promise.
    unsafe {
        match activation {
            Activation::Silu => gated::<V, _>(Silu, out, gate, up),
            Activation::Gelu => gated::<V, _>(Gelu, out, gate, up),
            Activation::GeluErf => gated::<V, _>(GeluErf, out, gate, up),
            Activation::Relu2 => gated::<V, _>(Relu2, out, gate, up),
            Activation::ClampedSwiglu { alpha, limit } => {
                gated::<V, _>(ClampedSwiglu { alpha, limit }, out, gate, up);
            }
        }
    }
}

/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn gated<V: Vector, G: Gate>(activation: G, out: &mut [f32], gate: &[f32], up: Option<&[f32]>) {
    let n = out.len();
    assert!(gate.len() == n && up.is_none_or(|up| up.len() == n));
    let whole = n - n % V::LANES;
    // SAFETY: `i + LANES <= whole <= n`, or one number; the features are the caller's promise.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            let up = up.map_or(V::splat(1.0), |up| V::load(up.as_ptr().add(i)));
            activation.apply(V::load(gate.as_ptr().add(i)), up).store(out.as_mut_ptr().add(i));
        }
        for i in whole..n {
            let up = up.map_or(One::splat(1.0), |up| One::load(&raw const up[i]));
            activation.apply(One::load(&raw const gate[i]), up).store(&raw mut out[i]);
        }
    }
}

/// `x[i] = limit * tanh(x[i] / limit)`
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn softcap<V: Vector>(x: &mut [f32], limit: f32) {
    let whole = x.len() - x.len() % V::LANES;
    // SAFETY: `i + LANES <= whole`, or one number; the features are the caller's promise.
    unsafe {
        for i in (0..whole).step_by(V::LANES) {
            let p = x.as_mut_ptr().add(i);
            capped(V::load(p), limit).store(p);
        }
        for x in &mut x[whole..] {
            capped(One::load(x), limit).store(x);
        }
    }
}

/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
unsafe fn capped<V: Vector>(x: V, limit: f32) -> V {
    // tanh(y) = 2 / (1 + exp(-2 y)) - 1: to 2^-24 of the limit
    // SAFETY: the caller's promise.
    unsafe {
        let y = x.mul(V::splat(1.0 / limit));
        let tanh = over_sigmoid(V::splat(2.0), y.add(y)).sub(V::splat(1.0));
        tanh.mul(V::splat(limit))
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
    // Of 32 registers, 20 are sums, 4 a row each and one a token; with 24 sums the compiler loads all tokens first, and keeps
    // sums on the stack (AVX-512: 26 GMAC/s rather than 40). Of 16, 12 are sums of 2 rows and 6 tokens: rows come from the L2
    // cache, and with 4 rows and 2 tokens that was the limit. A token or two have more rows: each sum is a chain of additions.
    let tile_tokens = if V::REGISTERS == 32 { 5 } else { 6 };
    let n = job.x.n();
    // A strip of rows at a time: they stay in the cache while all tokens pass by.
    for strip in rows.clone().step_by(STRIP) {
        let strip = strip..(strip + STRIP).min(rows.end);
        for first in (0..n).step_by(FLOAT_BLOCK) {
            let k = first..(first + FLOAT_BLOCK).min(n);
            let mut t = tokens.start;
            while t < tokens.end {
                let left = tokens.end - t;
                let width = left.div_ceil(left.div_ceil(tile_tokens)); // all of about the same
                macro_rules! tiles {
                    ($rows:expr, $tokens:literal) => {{
                        let ahead = t == tokens.start;
                        let whole = strip.end - strip.len() % $rows;
                        for r in (strip.start..whole).step_by($rows) {
                            float_tile::<V, W, { $rows }, $tokens>(job, r, t, k.clone(), ahead);
                        }
                        for r in whole..strip.end {
                            float_tile::<V, W, 1, $tokens>(job, r, t, k.clone(), ahead);
                        }
                    }};
                }
                // SAFETY: these rows and tokens are there and the caller's own.
                unsafe {
                    match (width, V::REGISTERS) {
                        (1, _) => tiles!(4, 1),
                        (2, _) => tiles!(4, 2),
                        (3, 32) => tiles!(4, 3),
                        (4, 32) => tiles!(4, 4),
                        (_, 32) => tiles!(4, 5),
                        (3, _) => tiles!(2, 3),
                        (4, _) => tiles!(2, 4),
                        (5, _) => tiles!(2, 5),
                        _ => tiles!(2, 6),
                    }
                }
                t += width;
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
                if ahead {
                    prefetch(w.cast::<i8>().wrapping_add(FLOAT_PREFETCH));
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
        fn norm(&self, norm: crate::kernels::Norm, out: &mut [f32], x: &[f32], w: Option<crate::kernels::Numbers>, b: Option<crate::kernels::Numbers>) {
            $features! {
                fn run(norm: crate::kernels::Norm, out: &mut [f32], x: &[f32], w: Option<crate::kernels::Numbers>, b: Option<crate::kernels::Numbers>) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::ops::norm::<$vector>(norm, out, x, w, b) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(norm, out, x, w, b)
            }
        }

        fn activate(&self, activation: crate::kernels::Activation, out: &mut [f32], gate: &[f32], up: Option<&[f32]>) {
            $features! {
                fn run(a: crate::kernels::Activation, out: &mut [f32], gate: &[f32], up: Option<&[f32]>) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::ops::activate::<$vector>(a, out, gate, up) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(activation, out, gate, up)
            }
        }

        fn softcap(&self, x: &mut [f32], limit: f32) {
            $features! {
                fn run(x: &mut [f32], limit: f32) {
                    // SAFETY: the features are those of this function.
                    unsafe { crate::kernels::ops::softcap::<$vector>(x, limit) }
                }
            }
            // SAFETY: `self` exists only where the CPU has the features.
            #[allow(unused_unsafe)]
            unsafe {
                run(x, limit)
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
