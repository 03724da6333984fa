//! IQ1_S: a codebook of 8 ternary weights and a shift, 1.5 bits a weight, 1.5625 with its share of the scales.
//! `w = d * (2 * scale + 1) * (t ± 1/8)` with `t` of -1, 0, 1.
//!
//! In eighths everything is an integer: `w = d / 8 * (2 * scale + 1) * (8 * t ± 1)`.
//!
//! ```text
//! byte  0..2   d   f16
//! byte  2..34  qs  per 8 weights: low bits of the index into the codebook
//! byte 34..50  qh  a word per group: bits 3l .. 3l + 3 are the high bits of index l, bits 12..15 the scale, bit 15 the
//!                  sign of the shift
//! ```

use super::grids::IQ1_GRID;
use super::{Block, DType, Group, f16, shifted};

/// A block of IQ1_S.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ1_S {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low bits of the indices.
    pub qs: [[u8; 4]; 8],
    /// High bits of the indices, scale and sign of the shift of each group.
    pub qh: [[u8; 2]; 8],
}

impl Block for BlockIQ1_S {
    const DTYPE: DType = DType::IQ1_S;
    const BIAS: u8 = 16;
    const LARGEST: u8 = 16 + 9;

    fn group(&self, i: usize) -> Group {
        let word = u16::from_le_bytes(self.qh[i]);
        let d = f16(self.d) * 0.125 * f32::from(2 * (word >> 12 & 7) + 1);
        let index = |l: usize| usize::from(self.qs[i][l]) | usize::from(word >> (3 * l) & 7) << 8;
        let eights: [_; 4] = std::array::from_fn(|l| shifted(IQ1_GRID[index(l)], word >> 15 == 1, Self::BIAS));
        Group { q: bytemuck::cast(eights), d: [d; 2], m: [0.0; 2] }
    }
}
