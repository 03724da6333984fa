//! IQ2_S: the largest codebook of 8 weights, 2.5 bits a weight, 2.5625 with its share of the scales.
//! `w = d * (scale + 0.5) / 4 * sign * magnitude`.
//!
//! ```text
//! byte  0..2   d       f16
//! byte  2..34  qs      per 8 weights: low bits of the index into the codebook
//! byte 34..66  signs   per 8 weights: bit k is the sign of weight k
//! byte 66..74  qh      per group: bits 2l and 2l + 1 are the high bits of index l
//! byte 74..82  scales  nibble s: scale of the 16 weights s
//! ```

use super::grids::IQ2_S_GRID;
use super::{Block, DType, Group, f16, nibble, signed};

/// A block of IQ2_S.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ2_S {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low bits of the indices.
    pub qs: [[u8; 4]; 8],
    /// Signs.
    pub signs: [[u8; 4]; 8],
    /// High bits of the indices.
    pub qh: [u8; 8],
    /// Scales, 4 bits.
    pub scales: [u8; 8],
}

impl Block for BlockIQ2_S {
    const DTYPE: DType = DType::IQ2_S;
    const BIAS: u8 = 64;
    const LARGEST: u8 = 64 + 43;
    const HALVES: bool = true;

    fn group(&self, i: usize) -> Group {
        let index = |l: usize| usize::from(self.qs[i][l]) | usize::from(self.qh[i] >> (2 * l) & 3) << 8;
        let magnitudes: [_; 4] = std::array::from_fn(|l| IQ2_S_GRID[index(l)]);
        Group {
            q: signed(magnitudes.as_flattened(), u32::from_le_bytes(self.signs[i]), Self::BIAS),
            d: [0, 1].map(|h| f16(self.d) * (0.5 + f32::from(nibble(&self.scales, 2 * i + h))) * 0.25),
            m: [0.0; 2],
        }
    }
}
