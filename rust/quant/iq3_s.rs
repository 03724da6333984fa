//! IQ3_S: a larger codebook of 4 weights, 3.25 bits a weight, 3.4375 with its share of the scales.
//! `w = d * (2 * scale + 1) * sign * magnitude`.
//!
//! ```text
//! byte   0..2   d       f16
//! byte   2..66  qs      per 4 weights: low bits of the index into the codebook
//! byte  66..74  qh      per group: bit l is the high bit of index l
//! byte  74..106 signs   per 8 weights: bit k is the sign of weight k
//! byte 106..110 scales  nibble i: scale of group i
//! ```

use super::grids::IQ3_S_GRID;
use super::{Block, DType, Group, f16, nibble, signed};

/// A block of IQ3_S.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ3_S {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low bits of the indices.
    pub qs: [[u8; 8]; 8],
    /// High bits of the indices.
    pub qh: [u8; 8],
    /// Signs.
    pub signs: [[u8; 4]; 8],
    /// Scales, 4 bits.
    pub scales: [u8; 4],
}

impl Block for BlockIQ3_S {
    const DTYPE: DType = DType::IQ3_S;
    const BIAS: u8 = 16;
    const LARGEST: u8 = 16 + 15;

    fn group(&self, i: usize) -> Group {
        let d = f16(self.d) * f32::from(1 + 2 * nibble(&self.scales, i));
        let index = |l: usize| usize::from(self.qs[i][l]) | usize::from(self.qh[i] >> l & 1) << 8;
        let magnitudes: [_; 8] = std::array::from_fn(|l| IQ3_S_GRID[index(l)]);
        let signs = u32::from_le_bytes(self.signs[i]);
        Group { q: signed(magnitudes.as_flattened(), signs, Self::BIAS), d: [d; 2], m: [0.0; 2] }
    }
}
