//! Rotary position embedding: the angles (RoPE, Su et al. 2021).

use crate::arch::{RopeConfig, RopeStyle};
use crate::kernels::Kernels;
use crate::tensor::TensorView;

/// The frequencies of a model's rotation.
pub struct Rope {
    frequencies: Vec<f64>, // (rope_dim / 2), radians a position
}

impl Rope {
    /// `theta^(-2i / rope_dim)`, divided by the linear scale and, where the file has them, by Llama 3's factors.
    pub fn new(config: &RopeConfig, factors: Option<&TensorView>) -> Self {
        let pairs = config.dim / 2;
        let mut frequencies: Vec<f64> = (0..pairs)
            .map(|i| f64::from(config.theta).powf(-(i as f64) / pairs as f64) / f64::from(config.scale))
            .collect();
        if let Some(factors) = factors {
            for (f, factor) in frequencies.iter_mut().zip(factors.bytes().as_chunks::<4>().0) {
                *f /= f64::from(f32::from_le_bytes(*factor));
            }
        }
        Self { frequencies }
    }

    /// Writes `[cos, sin]` of every pair's angle for `n` positions from `first`.
    pub fn turns(&self, out: &mut Vec<[f32; 2]>, first: usize, n: usize) {
        out.clear();
        for position in first..first + n {
            out.extend(self.frequencies.iter().map(|f| {
                let (sin, cos) = (position as f64 * f).sin_cos();
                [cos as f32, sin as f32]
            }));
        }
    }
    /// Writes `[cos, sin]` of what `n` positions make of every pair's angle, the other way round.
    pub fn turns_back(&self, out: &mut Vec<[f32; 2]>, n: usize) {
        self.turns(out, n, 1);
        out.iter_mut().for_each(|[_, sin]| *sin = -*sin);
    }
}

/// Turns the pairs of a head, from its start, as many as there are `turns`.
pub fn rotate(kernels: &dyn Kernels, style: RopeStyle, head: &mut [f32], turns: &[[f32; 2]]) {
    let head = &mut head[..2 * turns.len()];
    match style {
        RopeStyle::Interleaved => kernels.rope(head, turns),
        RopeStyle::Half => {
            let (first, second) = head.split_at_mut(turns.len());
            for ((a, b), &[cos, sin]) in first.iter_mut().zip(second).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}
