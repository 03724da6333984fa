//! Registers of 256 bits, two sets: AVX2 with FMA and F16C (Haswell, Zen and later), and the same with AVX-VNNI, whose
//! `dpbusd` needs no AVX-512 (Alder Lake and later, which have none).
//!
//! The features are named once, in `avx2!` and `avxvnni!`. The functions that they make are the doors of the sets: everything
//! else here is `#[inline(always)]`, has no features of its own and becomes part of a door. What AVX-VNNI does not change is
//! there once, for both.

mod matmul;
pub(super) mod panel;
pub(super) mod unpack;

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

/// Gives functions the features of the set with AVX-VNNI.
macro_rules! avxvnni {
    ($($door:item)*) => {
        $(#[target_feature(enable = "avx2,fma,f16c,avxvnni")] $door)*
    };
}
use avxvnni;

/// A set. Having one is the proof that the CPU can run it.
pub struct Avx2 {
    vnni: bool,
}

impl Avx2 {
    /// The set, if the CPU has what it needs.
    pub fn get() -> Option<&'static Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(&Avx2 { vnni: false })
    }

    /// The set with AVX-VNNI, if the CPU has what it needs.
    pub fn with_vnni() -> Option<&'static Self> {
        (Self::get().is_some() && is_x86_feature_detected!("avxvnni")).then_some(&Avx2 { vnni: true })
    }
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        if self.vnni { "avxvnni" } else { "avx2" }
    }

    fn strip_tokens(&self) -> usize {
        4 // of Q4_0 and Q4_K; 5 cost the same then (Emerald Rapids)
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
        let tokens = job.tokens.clone();
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe {
            if self.vnni {
                with_quantized!(job.w.dtype(), |B| matmul::rows::<B, true>(job, rows), floats(job, rows, tokens))
            } else {
                with_quantized!(job.w.dtype(), |B| matmul::rows::<B, false>(job, rows), floats(job, rows, tokens))
            }
        }
    }

    unsafe fn strip(&self, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe {
            if self.vnni {
                with_quantized!(
                    job.w.dtype(),
                    |B| matmul::strip::<B, true>(job, rows, tokens),
                    floats(job, rows, tokens)
                )
            } else {
                with_quantized!(
                    job.w.dtype(),
                    |B| matmul::strip::<B, false>(job, rows, tokens),
                    floats(job, rows, tokens)
                )
            }
        }
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
