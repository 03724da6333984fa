//! TQ2_0: ternary, 2 bits a weight, 2.0625 with its share of the scale. `w = d * (q - 1)`.
//!
//! ```text
//! byte  0..64 qs  2 halves x 32 bytes: bits 2j and 2j + 1 are group j of the half
//! byte 64..66 d   f16
//! ```

use super::{Block, DType, Group, f16};

/// A block of TQ2_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockTQ2_0 {
    /// Pairs of bits.
    pub qs: [u8; 64],
    /// Scale, f16.
    pub d: [u8; 2],
}

impl Block for BlockTQ2_0 {
    const DTYPE: DType = DType::TQ2_0;
    const BIAS: u8 = 1;
    const LARGEST: u8 = 3; // nobody writes it, and it stands for 2

    fn group(&self, i: usize) -> Group {
        let (half, j) = (i / 4, i % 4);
        let qs = &self.qs[half * 32..][..32];
        Group { q: std::array::from_fn(|k| qs[k] >> (2 * j) & 3), d: [f16(self.d); 2], m: [0.0; 2] }
    }
}
