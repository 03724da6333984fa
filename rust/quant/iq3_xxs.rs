//! IQ3_XXS: a codebook of 4 weights, 3 bits a weight, 3.0625 with its share of the scales.
//! `w = d * (scale + 0.5) / 2 * sign * magnitude`.
//!
//! ```text
//! byte  0..2   d      f16
//! byte  2..66  qs     per 4 weights: index into the codebook
//! byte 66..98  words  per group: bits 7l .. 7l + 7 are signs of the 8 weights l, bits 28..32 the scale
//! ```

use super::grids::IQ3_XXS_GRID;
use super::{Block, DType, Group, f16, signed, signs_7bit};

/// A block of IQ3_XXS.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ3_XXS {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Indices.
    pub qs: [[u8; 8]; 8],
    /// Signs and scale of each group.
    pub words: [[u8; 4]; 8],
}

impl Block for BlockIQ3_XXS {
    const DTYPE: DType = DType::IQ3_XXS;
    const BIAS: u8 = 64;
    const LARGEST: u8 = 64 + 62;

    fn group(&self, i: usize) -> Group {
        let word = u32::from_le_bytes(self.words[i]);
        let d = f16(self.d) * (0.5 + (word >> 28) as f32) * 0.5;
        let magnitudes = self.qs[i].map(|index| IQ3_XXS_GRID[usize::from(index)]);
        Group { q: signed(magnitudes.as_flattened(), signs_7bit(word), Self::BIAS), d: [d; 2], m: [0.0; 2] }
    }
}
