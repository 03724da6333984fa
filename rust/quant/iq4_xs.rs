//! IQ4_XS: 4 bits a weight into a table of unequal steps, 4.25 with its share of the scales.
//! `w = d * (scale - 32) * TABLE[q]`.
//!
//! ```text
//! byte   0..2   d         f16
//! byte   2..4   scales_h  bits 2i and 2i + 1: high bits of the scale of group i
//! byte   4..8   scales_l  nibble i: low bits of the scale of group i
//! byte   8..136 qs        8 x 16 bytes: high nibble: weight 16 + j, low nibble: weight j of the group
//! ```

use super::{Block, DType, Group, IQ4_TABLE, f16, nibbles};

/// A block of IQ4_XS.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ4_XS {
    /// Scale, f16.
    pub d: [u8; 2],
    /// High bits of the scales.
    pub scales_h: [u8; 2],
    /// Low bits of the scales.
    pub scales_l: [u8; 4],
    /// Nibbles of each group.
    pub qs: [[u8; 16]; 8],
}

impl Block for BlockIQ4_XS {
    const DTYPE: DType = DType::IQ4_XS;
    const BIAS: u8 = 128;
    const LARGEST: u8 = 255;

    fn group(&self, i: usize) -> Group {
        let low = self.scales_l[i / 2] >> (i % 2 * 4) & 15;
        let high = (u16::from_le_bytes(self.scales_h) >> (2 * i) & 3) as u8;
        let d = f16(self.d) * f32::from((low | high << 4) as i8 - 32);
        Group { q: nibbles(&self.qs[i]).map(|q| IQ4_TABLE[usize::from(q)]), d: [d; 2], m: [0.0; 2] }
    }
}
