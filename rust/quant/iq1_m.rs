//! IQ1_M: IQ1_S with a scale per 16 and a shift per 8, 1.75 bits a weight with all its scales.
//! `w = d * (2 * scale + 1) * (t ± 1/8)` with `t` of -1, 0, 1; in eighths as in IQ1_S.
//!
//! ```text
//! byte  0..32  qs      per 8 weights: low bits of the index into the codebook
//! byte 32..48  qh      nibble l, per 8 weights: bits 0..3 are the high bits of the index, bit 3 the sign of the shift
//! byte 48..56  scales  four words: bits 3s .. 3s + 3 of word j are the scale of the 16 weights 4j + s; bits 12..16 are a
//!                      nibble of d, an f16, the low one first
//! ```

use super::grids::IQ1_GRID;
use super::{Block, DType, Group, f16, nibble, shifted};

/// A block of IQ1_M.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ1_M {
    /// Low bits of the indices.
    pub qs: [[u8; 4]; 8],
    /// High bits of the indices and signs of the shifts of each group.
    pub qh: [[u8; 2]; 8],
    /// Scales of 3 bits, and the scale of them all.
    pub scales: [[u8; 2]; 4],
}

impl Block for BlockIQ1_M {
    const DTYPE: DType = DType::IQ1_M;
    const BIAS: u8 = 16;
    const LARGEST: u8 = 16 + 9;
    const HALVES: bool = true;

    fn group(&self, i: usize) -> Group {
        let words = self.scales.map(u16::from_le_bytes);
        let d = words.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
        let d = f16(d.to_le_bytes()) * 0.125;
        let high = |l: usize| usize::from(nibble(&self.qh[i], l));
        let index = |l: usize| usize::from(self.qs[i][l]) | (high(l) & 7) << 8;
        let eights: [_; 4] = std::array::from_fn(|l| shifted(IQ1_GRID[index(l)], high(l) & 8 != 0, Self::BIAS));
        Group {
            q: bytemuck::cast(eights),
            d: [0, 1].map(|h| d * f32::from(2 * (words[i / 2] >> (3 * (i % 2 * 2 + h)) & 7) + 1)),
            m: [0.0; 2],
        }
    }
}
