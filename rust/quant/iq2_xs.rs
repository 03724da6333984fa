//! IQ2_XS: a larger codebook of 8 weights, 2.25 bits a weight, 2.3125 with its share of the scales.
//! `w = d * (scale + 0.5) / 4 * sign * magnitude`.
//!
//! ```text
//! byte  0..2   d       f16
//! byte  2..66  qs      a word per 8 weights: bits 0..9 are the index into the codebook, bits 9..16 the signs
//! byte 66..74  scales  nibble s: scale of the 16 weights s
//! ```

use super::grids::IQ2_XS_GRID;
use super::{Block, DType, Group, f16, nibble, sign_7bit, signed};

/// A block of IQ2_XS.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ2_XS {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Indices and signs of each group.
    pub qs: [[[u8; 2]; 4]; 8],
    /// Scales, 4 bits.
    pub scales: [u8; 8],
}

impl Block for BlockIQ2_XS {
    const DTYPE: DType = DType::IQ2_XS;
    const BIAS: u8 = 64;
    const LARGEST: u8 = 64 + 43;
    const HALVES: bool = true;

    fn group(&self, i: usize) -> Group {
        let words = self.qs[i].map(u16::from_le_bytes);
        let magnitudes = words.map(|word| IQ2_XS_GRID[usize::from(word & 511)]);
        let signs = words.map(|word| sign_7bit((word >> 9) as u8));
        Group {
            q: signed(magnitudes.as_flattened(), u32::from_le_bytes(signs), Self::BIAS),
            d: [0, 1].map(|h| f16(self.d) * (0.5 + f32::from(nibble(&self.scales, 2 * i + h))) * 0.25),
            m: [0.0; 2],
        }
    }
}
