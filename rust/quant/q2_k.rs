//! Q2_K: 2 bits a weight, 2.625 with its share of the scales. `w = d * scale * q - dmin * min`.
//!
//! ```text
//! byte   0..16  scales  per 16 weights: low nibble is the scale, high nibble the minimum
//! byte  16..80  qs      2 halves x 32 bytes: bits 2j and 2j + 1 are group j of the half
//! byte  80..82  d       f16
//! byte  82..84  dmin    f16
//! ```

use super::{Block, DType, Group, f16};

/// A block of Q2_K.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ2_K {
    /// Scale and minimum, 4 bits each, per 16 weights.
    pub scales: [u8; 16],
    /// Pairs of bits.
    pub qs: [u8; 64],
    /// Scale, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
}

impl Block for BlockQ2_K {
    const DTYPE: DType = DType::Q2_K;
    const BIAS: u8 = 0;
    const LARGEST: u8 = 3;
    const HALVES: bool = true;
    const MINS: bool = true;

    fn group(&self, i: usize) -> Group {
        let (half, j) = (i / 4, i % 4);
        let qs = &self.qs[half * 32..][..32];
        Group {
            q: std::array::from_fn(|k| qs[k] >> (2 * j) & 3),
            d: std::array::from_fn(|h| f16(self.d) * f32::from(self.scales[2 * i + h] & 15)),
            m: std::array::from_fn(|h| -(f16(self.dmin) * f32::from(self.scales[2 * i + h] >> 4))),
        }
    }
}
