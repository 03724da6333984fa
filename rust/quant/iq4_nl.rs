//! IQ4_NL: 4 bits a weight into a table of unequal steps, 4.5 with its share of the scale. `w = d * TABLE[q]`.
//!
//! ```text
//! byte 0..2  d   f16
//! byte 2..18 qs  high nibble: weight 16 + j, low nibble: weight j
//! ```

use super::{Block, DType, Group, f16, nibbles};

/// A block of IQ4_NL.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockIQ4_NL {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low nibbles are weights 0 to 15, high nibbles 16 to 31.
    pub qs: [u8; 16],
}

impl Block for BlockIQ4_NL {
    const DTYPE: DType = DType::IQ4_NL;
    const BIAS: u8 = 128;
    const LARGEST: u8 = 255;

    fn group(&self, _i: usize) -> Group {
        let d = f16(self.d);
        Group { q: nibbles(&self.qs).map(|q| IQ4_TABLE[usize::from(q)]), d: [d; 2], m: [0.0; 2] }
    }
}

/// The values of the 16 codes of IQ4_NL and IQ4_XS, raised by 128.
pub const IQ4_TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
