//! Plain Rust: runs anywhere, and is the twin that the other sets are tested against.
//!
//! Weights are read through [`Block::group`], the reference of each type. The integer sums are the same as in
//! every other set; only the order of the float additions differs.

use std::ops::Range;

use super::Kernels;
use super::activations::QuantizedRow;
use super::linear_attention::recurrent_kernels;
use super::matmul::Matmul;
use super::ops::{self, float_kernels};
use super::vector::One;
use crate::quant::{Block, with_quantized};

/// What the other sets have for their features.
macro_rules! plain {
    ($($door:item)*) => { $($door)* };
}
#[cfg(target_arch = "aarch64")]
pub(super) use plain;

/// The set.
pub struct Scalar;

impl Kernels for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn strip_tokens(&self) -> usize {
        2
    }

    fn quantize(&self, x: &[f32], row: QuantizedRow) {
        quantize(x, row);
    }

    unsafe fn rows(&self, job: &Matmul, rows: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            with_quantized!(
                job.w.dtype(),
                |B| products::<B>(job, rows, job.tokens.clone()),
                ops::float_products::<One>(job, rows, job.tokens.clone())
            );
        }
    }

    unsafe fn strip(&self, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe {
            with_quantized!(
                job.w.dtype(),
                |B| products::<B>(job, rows, tokens),
                ops::float_products::<One>(job, rows, tokens)
            );
        }
    }

    float_kernels!(One, plain);
    recurrent_kernels!(One, plain);
}

/// Quantises a row in its natural order, see [`QuantizedRow`].
pub fn quantize(x: &[f32], row: QuantizedRow) {
    row.qs.fill(0);
    for g in 0..row.d.len() {
        let x = x.get(32 * g..32 * g + 32).unwrap_or(&[0.0; 32]);
        let qs = &mut row.qs[32 * g..32 * g + 32];
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let d = max / 127.0;
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        for (q, x) in qs.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
        // A NaN or infinity must not vanish: its group becomes NaN.
        let d = if x.iter().all(|x| x.is_finite()) { d } else { f32::NAN };
        row.d[g] = d;
        let sums: [i32; 2] = [0, 16].map(|h| qs[h..h + 16].iter().map(|&q| i32::from(q)).sum());
        for (half, sum) in sums.into_iter().enumerate() {
            row.bias16[2 * g + half] = -128 * sum;
            row.sum16[2 * g + half] = d * sum as f32;
        }
        row.bias32[g] = -128 * (sums[0] + sums[1]);
        row.sum32[g] = d * (sums[0] + sums[1]) as f32;
    }
}

/// # Safety
/// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of type `B`; no other worker writes their results.
unsafe fn products<B: Block>(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    for r in rows {
        let blocks: &[B] = bytemuck::cast_slice(job.w.row(r));
        let per_block = B::GROUPS;
        let mut sums = [0.0f32; 16];
        for first in tokens.clone().step_by(sums.len()) {
            let tokens = first..(first + sums.len()).min(tokens.end);
            sums.fill(0.0);
            for (g, group) in blocks.iter().flat_map(|b| (0..per_block).map(|i| b.group(i))).enumerate() {
                for (sum, t) in sums.iter_mut().zip(tokens.clone()) {
                    let qs = &job.x.qs(t)[32 * g..32 * g + 32];
                    let da = job.x.d(t)[g];
                    for half in 0..2 {
                        let at = 16 * half..16 * half + 16;
                        let product: i32 = qs[at.clone()]
                            .iter()
                            .zip(&group.q[at])
                            .map(|(&a, &q)| i32::from(a) * (i32::from(q) - i32::from(B::BIAS)))
                            .sum();
                        *sum += group.d[half] * da * product as f32 + group.m[half] * job.x.sum16(t)[2 * g + half];
                    }
                }
            }
            for (sum, t) in sums.iter().zip(tokens) {
                let out = job.at(t, r);
                // SAFETY: it lies in `out`, and nobody else writes it, by the caller's promise.
                unsafe { *out = if job.accumulate { *out + sum } else { *sum } };
            }
        }
    }
}
