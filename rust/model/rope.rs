//! Rotary position embedding: the angles (RoPE, Su et al. 2021).

use super::{Config, Weights};

/// The frequencies of a model's rotation.
pub struct Rope {
    frequencies: Vec<f64>, // (rope_dim / 2), radians a position
}

impl Rope {
    /// `theta^(-2i / rope_dim)`, divided by the linear scale and, where the file has them, by Llama 3's factors.
    pub fn new(config: &Config, weights: &Weights) -> Self {
        let pairs = config.rope_dim / 2;
        let mut frequencies: Vec<f64> = (0..pairs)
            .map(|i| f64::from(config.rope_theta).powf(-(i as f64) / pairs as f64) / f64::from(config.rope_scale))
            .collect();
        if let Some(factors) = &weights.rope_freq_factors {
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
