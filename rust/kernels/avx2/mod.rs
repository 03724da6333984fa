//! AVX2 with FMA and F16C: Haswell, Zen and later.

mod matmul;
mod unpack;

use std::ops::Range;

use super::Kernels;
use super::activations::QuantizedRow;
use super::matmul::Matmul;
use super::ops::{self, float_kernels};
use super::vector::Eight;
use crate::quant::with_quantized;

/// The set. Having one is the proof that the CPU can run it.
pub struct Avx2(());

impl Avx2 {
    /// The set, if the CPU has what it needs.
    pub fn get() -> Option<&'static Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(&Avx2(()))
    }
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn strip_tokens(&self) -> usize {
        3
    }

    fn quantize(&self, x: &[f32], row: QuantizedRow) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { matmul::quantize(x, row) }
    }

    unsafe fn rows(&self, job: &Matmul, rows: Range<usize>) {
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe {
            with_quantized!(job.w.dtype(), |B| matmul::rows::<B>(job, rows), floats(job, rows, 0..job.x.tokens()))
        }
    }

    unsafe fn strip(&self, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe { with_quantized!(job.w.dtype(), |B| matmul::strip::<B>(job, rows, tokens), floats(job, rows, tokens)) }
    }

    float_kernels!(Eight, "avx2,fma,f16c");
}

/// Float matrices, see [`ops::float_products`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn floats(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { ops::float_products::<Eight>(job, rows, tokens) }
}
