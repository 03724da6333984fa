//! Q2_0: 2 bits a weight, 2.25 with its share of the scale. `w = d * (q - 1)`.
//!
//! ```text
//! byte 0..2   d   f16
//! byte 2..18  qs  bits 2k and 2k + 1 of byte j are weight 4j + k
//! ```

use super::{Block, DType, Group, f16};

/// A block of Q2_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ2_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Pairs of bits of each group.
    pub qs: [[u8; 8]; 2],
}

impl Block for BlockQ2_0 {
    const DTYPE: DType = DType::Q2_0;
    const BIAS: u8 = 1;
    const LARGEST: u8 = 3;

    fn group(&self, i: usize) -> Group {
        let bits = u64::from_le_bytes(self.qs[i]);
        Group { q: std::array::from_fn(|k| (bits >> (2 * k) & 3) as u8), d: [f16(self.d); 2], m: [0.0; 2] }
    }
}
