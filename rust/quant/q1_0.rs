//! Q1_0: a bit a weight, 1.125 with its share of the scale. `w = d` where the bit is set, else `-d`.
//!
//! ```text
//! byte 0..2   d   f16
//! byte 2..18  qs  bit k of byte j is weight 8j + k
//! ```

use super::{Block, DType, Group, f16};

/// A block of Q1_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ1_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Bits of each group.
    pub qs: [[u8; 4]; 4],
}

impl Block for BlockQ1_0 {
    const DTYPE: DType = DType::Q1_0;
    const BIAS: u8 = 1;
    const LARGEST: u8 = 2;

    fn group(&self, i: usize) -> Group {
        let bits = u32::from_le_bytes(self.qs[i]);
        Group { q: std::array::from_fn(|k| 2 * (bits >> k & 1) as u8), d: [f16(self.d); 2], m: [0.0; 2] }
    }
}
