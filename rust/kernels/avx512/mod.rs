//! AVX-512 with VNNI and VBMI: Ice Lake, Zen 4 and later.
//!
//! The features are named once, in `avx512!`. The functions that it makes are the doors of the set: everything else here is
//! `#[inline(always)]`, has no features of its own and becomes part of a door.

mod matmul;
mod unpack;

use std::ops::Range;

use super::Kernels;
use super::activations::QuantizedRow;
use super::linear_attention::recurrent_kernels;
use super::matmul::Matmul;
use super::ops::{self, float_kernels};
use super::vector::Sixteen;
use crate::quant::with_quantized;

/// Gives functions the features of the set.
macro_rules! avx512 {
    ($($door:item)*) => {
        $(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2,fma,f16c")] $door)*
    };
}
use avx512;

/// The set. Having one is the proof that the CPU can run it.
pub struct Avx512(());

impl Avx512 {
    /// The set, if the CPU has what it needs.
    pub fn get() -> Option<&'static Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(&Avx512(()))
    }
}

impl Kernels for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn strip_tokens(&self) -> usize {
        9 // of Q4_0 and Q4_K in memory; in the cache 7 and 8 cost the same either way (Emerald Rapids)
    }

    fn quantize(&self, x: &[f32], row: QuantizedRow) {
        avx512! {
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

    float_kernels!(Sixteen, avx512);
    recurrent_kernels!(Sixteen, avx512);
}

avx512! {
    /// Float matrices, see [`ops::float_products`].
    ///
    /// # Safety
    /// - `rows` and `tokens` are rows and tokens of `job`, whose matrix is of a float type; no other worker writes their results.
    unsafe fn floats(job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: the features are those of this function; the rest is the caller's promise.
        unsafe { ops::float_products::<Sixteen>(job, rows, tokens) }
    }
}
