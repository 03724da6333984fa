//! Q5_1: 5 bits a weight, 6 with its share of scale and minimum. `w = d * q + m`.
//!
//! ```text
//! byte 0..2  d   f16
//! byte 2..4  m   f16
//! byte 4..8  qh  bit k: fifth bit of weight k
//! byte 8..24 qs  high nibble: weight 16 + j, low nibble: weight j
//! ```

use super::{Block, DType, Group, f16, nibbles5};

/// A block of Q5_1.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockQ5_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16: the value of integer 0.
    pub m: [u8; 2],
    /// Bit k is the fifth bit of weight k.
    pub qh: [u8; 4],
    /// Low nibbles are weights 0 to 15, high nibbles 16 to 31.
    pub qs: [u8; 16],
}

impl Block for BlockQ5_1 {
    const DTYPE: DType = DType::Q5_1;
    const BIAS: u8 = 0;
    const LARGEST: u8 = 31;
    const MINS: bool = true;

    fn group(&self, _i: usize) -> Group {
        let (d, m) = (f16(self.d), f16(self.m));
        Group { q: nibbles5(&self.qs, &self.qh), d: [d; 2], m: [m; 2] }
    }
}
