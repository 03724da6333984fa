//! Q3_K: 3 bits a weight, 3.4375 with its share of the scales. `w = d * (scale - 32) * (q - 4)`.
//!
//! ```text
//! byte   0..32  hmask   bit i of byte k: third bit of weight k of group i
//! byte  32..96  qs      2 halves x 32 bytes: bits 2j and 2j + 1 are group j of the half
//! byte  96..108 scales  6 bits per 16 weights: bytes 0..8 hold the low nibbles of scales 0..8 (low) and
//!                       8..16 (high); byte 8 + s % 4 holds the high bits of scale s at bit s / 4 * 2
//! byte 108..110 d       f16
//! ```

use super::{Block, DType, Group, f16};

/// A block of Q3_K.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ3_K {
    /// Third bits.
    pub hmask: [u8; 32],
    /// Pairs of bits.
    pub qs: [u8; 64],
    /// 6-bit scales.
    pub scales: [u8; 12],
    /// Scale, f16.
    pub d: [u8; 2],
}

impl Block for BlockQ3_K {
    const DTYPE: DType = DType::Q3_K;
    const BIAS: u8 = 4;
    const LARGEST: u8 = 7;
    const HALVES: bool = true;

    fn group(&self, i: usize) -> Group {
        let (half, j) = (i / 4, i % 4);
        let qs = &self.qs[half * 32..][..32];
        Group {
            q: std::array::from_fn(|k| qs[k] >> (2 * j) & 3 | (self.hmask[k] >> i & 1) << 2),
            d: std::array::from_fn(|h| f16(self.d) * f32::from(scale_q3(&self.scales, 2 * i + h))),
            m: [0.0; 2],
        }
    }
}

/// Scale `s` of a block, -32 to 31.
fn scale_q3(scales: &[u8; 12], s: usize) -> i8 {
    let low = scales[s % 8] >> (s / 8 * 4) & 15;
    let high = scales[8 + s % 4] >> (s / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}
