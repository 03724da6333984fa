//! Weights into blocks: what `llama-rs quantize` does.
//!
//! The one idea: a type is a function from numbers to a block that minimises a weighted squared error; the searches are in
//! `fit`, the types in files by what they have in common. A mix says which tensor gets which type ([`mix`]); a file is
//! planned whole, then written row by row ([`plan`]). The same input gives the same bytes with any number of threads and
//! on any instruction set.

mod codebook;
mod fit;
mod imatrix;
mod mix;
mod plan;
mod round;
mod superblock;
#[cfg(test)]
mod tests;

pub use imatrix::{Collector, Imatrix};
pub use mix::{MIXES, Mix, Wishes};
pub use plan::{Plan, Request};

use crate::quant::{self, Block, DType};

/// A block that numbers can be made into.
trait Encode: quant::Block {
    /// The block that loses least of `x`, as many numbers as it has weights, all of them finite and no larger than an f16
    /// can be.
    ///
    /// `importance` says for each number how much an error of it costs.
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self;
}

/// No number may be larger in magnitude, if it is to become a block: scales are f16.
pub const LARGEST: f32 = 65504.0;

/// `encodable!(dtype, |B| expression, other)`: the expression with `B` the block of `dtype`, or `other` if numbers cannot be
/// made into it.
macro_rules! encodable {
    ($dtype:expr, |$b:ident| $body:expr, $other:expr; $($name:ident $block:ident)*) => {
        match $dtype {
            $(DType::$name => {
                type $b = quant::$block;
                $body
            })*
            _ => $other,
        }
    };
    ($dtype:expr, |$b:ident| $body:expr, $other:expr) => {
        encodable!($dtype, |$b| $body, $other;
            Q4_0 BlockQ4_0 Q4_1 BlockQ4_1 Q5_0 BlockQ5_0 Q5_1 BlockQ5_1 Q8_0 BlockQ8_0
            Q2_K BlockQ2_K Q3_K BlockQ3_K Q4_K BlockQ4_K Q5_K BlockQ5_K Q6_K BlockQ6_K
            IQ4_NL BlockIQ4_NL IQ4_XS BlockIQ4_XS MXFP4 BlockMXFP4 TQ1_0 BlockTQ1_0 TQ2_0 BlockTQ2_0
            IQ1_S BlockIQ1_S IQ1_M BlockIQ1_M IQ2_XXS BlockIQ2_XXS IQ2_XS BlockIQ2_XS IQ2_S BlockIQ2_S
            IQ3_XXS BlockIQ3_XXS IQ3_S BlockIQ3_S)
    };
}

/// Whether numbers can be made into this type.
pub fn is_encodable(dtype: DType) -> bool {
    encodable!(dtype, |B| B::DTYPE == dtype, matches!(dtype, DType::F32 | DType::F16 | DType::BF16))
}

/// Writes a row of numbers as `dtype`.
///
/// # Panics
/// If `dtype` is not [`is_encodable`], if `out` is not of the length of such a row, or if there are not as many importances as
/// numbers.
pub fn encode_row(dtype: DType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    assert_eq!(dtype.row_bytes(x.len()), Some(out.len()), "a row of {dtype}");
    assert!(importance.is_none_or(|importance| importance.len() == x.len()), "an importance for each number");
    // They count relative to each other: sums of very large or small ones would leave what a float can hold.
    let largest = importance.into_iter().flatten().fold(0.0f32, |max, x| max.max(*x));
    let usual = largest == 0.0 || !largest.is_finite() || (1e-12..1e12).contains(&largest);
    let scaled = importance.filter(|_| !usual).map(|all| all.iter().map(|x| x / largest).collect::<Vec<f32>>());
    let importance = scaled.as_deref().or(importance);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: it has the feature.
        return unsafe { encode_row_avx2(dtype, x, importance, out) };
    }
    encode_row_anywhere(dtype, x, importance, out);
}

/// The same code with wider vectors: it multiplies and adds one after the other, so the bytes are the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_row_avx2(dtype: DType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    encode_row_anywhere(dtype, x, importance, out);
}

#[inline(always)]
fn encode_row_anywhere(dtype: DType, x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    match dtype {
        DType::F32 => out.copy_from_slice(bytemuck::cast_slice(x)),
        DType::F16 => x.iter().zip(out.as_chunks_mut().0).for_each(|(x, out)| *out = f16_bytes(*x)),
        DType::BF16 => {
            x.iter().zip(out.as_chunks_mut().0).for_each(|(x, out)| *out = half::bf16::from_f32(*x).to_le_bytes())
        }
        _ => encodable!(dtype, |B| encode_blocks::<B>(x, importance, out), panic!("{dtype} cannot be made")),
    }
}

#[inline(always)]
fn encode_blocks<B: Encode>(x: &[f32], importance: Option<&[f32]>, out: &mut [u8]) {
    let out = out.chunks_exact_mut(size_of::<B>());
    let n = x.len() / out.len().max(1);
    for (i, (x, out)) in x.chunks_exact(n).zip(out).enumerate() {
        let importance = importance.map(|all| &all[i * n..][..n]);
        out.copy_from_slice(bytemuck::bytes_of(&B::encode(x, importance)));
    }
}

/// A number as the f16 that lies in a block.
#[inline(always)]
fn f16_bytes(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// The f16 nearest to a number, as what it will be read as.
#[inline(always)]
fn rounded_to_f16(x: f32) -> f32 {
    half::f16::from_f32(x).to_f32()
}

/// Rounds to the nearest integer, halves away from zero.
#[inline(always)]
fn half_away(x: f32) -> f32 {
    let floor = x.abs().floor();
    (floor + (2.0 * (x.abs() - floor)).floor()).copysign(x)
}
