//! TQ1_0: ternary, five weights a byte, 1.6875 bits with its share of the scale. `w = d * (q - 1)`.
//!
//! A byte is a fraction of 256 whose first digits to the base 3 are the weights: digit `n` is the whole part of three
//! times what is left after multiplying with `3^n`.
//!
//! ```text
//! byte  0..48 qs  32 bytes: digit n of byte k is weight 32n + k; 16 bytes: digit n of byte k is weight 160 + 16n + k
//! byte 48..52 qh  digit n of byte k is weight 240 + 4n + k, four digits
//! byte 52..54 d   f16
//! ```

use super::{Block, DType, Group, f16};

/// A block of TQ1_0.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct BlockTQ1_0 {
    /// Five digits each.
    pub qs: [u8; 48],
    /// Four digits each.
    pub qh: [u8; 4],
    /// Scale, f16.
    pub d: [u8; 2],
}

impl Block for BlockTQ1_0 {
    const DTYPE: DType = DType::TQ1_0;
    const BIAS: u8 = 1;
    const LARGEST: u8 = 2;

    fn group(&self, i: usize) -> Group {
        let weight = |w: usize| match w {
            0..160 => digit(self.qs[w % 32], w / 32),
            160..240 => digit(self.qs[32 + w % 16], (w - 160) / 16),
            _ => digit(self.qh[w % 4], (w - 240) / 4),
        };
        Group { q: std::array::from_fn(|k| weight(32 * i + k)), d: [f16(self.d); 2], m: [0.0; 2] }
    }
}

/// Digit `n` of a byte.
fn digit(byte: u8, n: usize) -> u8 {
    let left = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
    (u16::from(left) * 3).to_be_bytes()[0]
}
