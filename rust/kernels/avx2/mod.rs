//! AVX2 with FMA and F16C: Haswell, Zen and later.
//!
//! The features are named once, in `avx2!`. The functions that it makes are the doors of the set: everything else here is
//! `#[inline(always)]`, has no features of its own and becomes part of a door.

mod matmul;
mod unpack;

use std::ops::Range;

use super::Kernels;
use super::activations::QuantizedRow;
use super::linear_attention::recurrent_kernels;
use super::matmul::Matmul;
use super::ops::{self, float_kernels};
use super::vector::Eight;
use crate::quant::with_quantized;

/// Gives functions the features of the set.
macro_rules! avx2 {
    ($($door:item)*) => {
        $(#[target_feature(enable = "avx2,fma,f16c")] $door)*
    };
}
use avx2;

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
        5
    }

    fn quantize(&self, x: &[f32], row: QuantizedRow) {
        avx2! {
            fn run(x: &[f32], row: QuantizedRow) {
                // SAFETY: the features are those of this function.
                unsafe { matmul::quantize(x, row) }
            }
        }
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { run(x, row) }
    }

    unsafe fn rows(&self, job: &Matmul, rows: Range<usize>) {
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe {
            with_quantized!(job.w.dtype(), |B| matmul::rows::<B>(job, rows), floats(job, rows, job.tokens.clone()))
        }
    }

    unsafe fn strip(&self, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe { with_quantized!(job.w.dtype(), |B| matmul::strip::<B>(job, rows, tokens), floats(job, rows, tokens)) }
    }

    float_kernels!(Eight, avx2);
    recurrent_kernels!(Eight, avx2);
}

avx2! {
    /// Float matrices, see [`ops::float_products`].
    ///
    /// # Safety
    /// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of a float type; no other worker writes their results.
    unsafe fn floats(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: the features are those of this function; the rest is the caller's promise.
        unsafe { ops::float_products::<Eight>(job, rows, tokens) }
    }
}
