//! IQ2_XXS: a codebook of 8 weights, 2 bits a weight, 2.0625 with its share of the scales.
//! `w = d * (scale + 0.5) / 4 * sign * magnitude`.
//!
//! ```text
//! byte 0..2   d   f16
//! byte 2..66  qs  8 groups of 8 bytes: four indices into the codebook, a byte each; a word: bits 7l .. 7l + 7 are signs
//!                 of the 8 weights l, bits 28..32 the scale
//! ```

use super::grids::IQ2_XXS_GRID;
use super::{Block, DType, Group, f16, signed, signs_7bit};

/// A block of IQ2_XXS.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ2_XXS {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Indices, signs and scale of each group.
    pub qs: [[[u8; 4]; 2]; 8],
}

impl Block for BlockIQ2_XXS {
    const DTYPE: DType = DType::IQ2_XXS;
    const BIAS: u8 = 64;
    const LARGEST: u8 = 64 + 43;

    fn group(&self, i: usize) -> Group {
        let [indices, word] = self.qs[i];
        let word = u32::from_le_bytes(word);
        let d = f16(self.d) * (0.5 + (word >> 28) as f32) * 0.25;
        let magnitudes = indices.map(|index| IQ2_XXS_GRID[usize::from(index)]);
        Group { q: signed(magnitudes.as_flattened(), signs_7bit(word), Self::BIAS), d: [d; 2], m: [0.0; 2] }
    }
}
