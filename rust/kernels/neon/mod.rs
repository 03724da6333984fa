//! AArch64, registers of 128 bits, three sets: NEON, which every such CPU has; with the dot product of bytes (`sdot`:
//! Cortex-A76, Neoverse N1, Apple A12 and later); and with products of matrices of bytes (`smmla`, the feature `i8mm`:
//! Neoverse V1, Cortex-A710, Apple M2 and later).
//!
//! NEON is part of the architecture, so that only what goes further needs a door: the features are named once, in `dotprod!`
//! and `i8mm!`. The functions that these make are the doors of their sets: everything else here is `#[inline(always)]`, has no
//! features of its own and becomes part of a door.
//!
//! No machine was at hand: tested in an emulator (`make test-arm`), and no time is measured. Static counts are in `matmul`.

mod matmul;
mod unpack;

use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

use super::Kernels;
use super::activations::QuantizedRow;
use super::linear_attention::recurrent_kernels;
use super::matmul::Matmul;
use super::ops::{self, float_kernels};
use super::scalar::plain;
use super::vector::Four;
use crate::quant::with_quantized;

/// Gives functions the features of the set with the dot product.
macro_rules! dotprod {
    ($($door:item)*) => {
        $(#[target_feature(enable = "dotprod")] $door)*
    };
}
use dotprod;

/// Gives functions the features of the set with products of matrices.
macro_rules! i8mm {
    ($($door:item)*) => {
        $(#[target_feature(enable = "dotprod,i8mm")] $door)*
    };
}
use i8mm;

/// A set. Having one is the proof that the CPU can run it.
pub struct Neon {
    integers: Integers,
}

/// What multiplies bytes.
#[derive(Clone, Copy)]
enum Integers {
    Neon,
    Dotprod,
    I8mm,
}

impl Neon {
    /// The set that every AArch64 CPU can run.
    pub fn get() -> &'static Self {
        &Neon { integers: Integers::Neon }
    }

    /// The set with the dot product, if the CPU has it.
    pub fn with_dotprod() -> Option<&'static Self> {
        is_aarch64_feature_detected!("dotprod").then_some(&Neon { integers: Integers::Dotprod })
    }

    /// The set with products of matrices, if the CPU has them.
    pub fn with_i8mm() -> Option<&'static Self> {
        let has = is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm");
        has.then_some(&Neon { integers: Integers::I8mm })
    }
}

impl Kernels for Neon {
    fn name(&self) -> &'static str {
        match self.integers {
            Integers::Neon => "neon",
            Integers::Dotprod => "neon_dotprod",
            Integers::I8mm => "neon_i8mm",
        }
    }

    fn strip_tokens(&self) -> usize {
        4 // as with AVX2; not measured
    }

    fn quantize(&self, x: &[f32], row: QuantizedRow) {
        matmul::quantize(x, row);
    }

    unsafe fn rows(&self, job: &Matmul, rows: Range<usize>) {
        let tokens = job.tokens.clone();
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe {
            match self.integers {
                Integers::Neon => with_quantized!(
                    job.w.dtype(),
                    |B| matmul::rows::<B, matmul::Multiply>(job, rows, tokens),
                    ops::float_products::<Four>(job, rows, tokens)
                ),
                Integers::Dotprod | Integers::I8mm => with_quantized!(
                    job.w.dtype(),
                    |B| matmul::rows::<B, matmul::Dot>(job, rows, tokens),
                    ops::float_products::<Four>(job, rows, tokens)
                ),
            }
        }
    }

    unsafe fn strip(&self, job: &Matmul, rows: Range<usize>, tokens: Range<usize>) {
        // SAFETY: `self` exists only where the CPU has the features; the rest is the caller's promise.
        unsafe {
            match self.integers {
                // Without `sdot` a product costs so much that unpacking anew for every few tokens hardly shows.
                Integers::Neon => with_quantized!(
                    job.w.dtype(),
                    |B| matmul::rows::<B, matmul::Multiply>(job, rows, tokens),
                    ops::float_products::<Four>(job, rows, tokens)
                ),
                Integers::Dotprod => with_quantized!(
                    job.w.dtype(),
                    |B| matmul::strip::<B, matmul::ByDot>(job, rows, tokens),
                    ops::float_products::<Four>(job, rows, tokens)
                ),
                Integers::I8mm => with_quantized!(
                    job.w.dtype(),
                    |B| matmul::strip::<B, matmul::ByMatrix>(job, rows, tokens),
                    ops::float_products::<Four>(job, rows, tokens)
                ),
            }
        }
    }

    float_kernels!(Four, plain);
    recurrent_kernels!(Four, plain);
}
