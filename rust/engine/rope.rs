//! Rotary position embedding: the angles (RoPE, Su et al. 2021).

use crate::arch::RopeConfig;
use crate::kernels::RopeStyle;
use crate::tensor::TensorView;

/// A rotation: which dimensions form a pair, and how fast each pair turns.
#[derive(Debug)]
pub struct Rope {
    style: RopeStyle,
    frequencies: Vec<f64>, // (rope_dim / 2), radians per position
}

impl Rope {
    /// `theta^(-2i / rope_dim)`, divided by the linear scale and, where the file has them, by Llama 3's factors.
    pub fn new(config: &RopeConfig, factors: Option<&TensorView>) -> Self {
        let &RopeConfig { dim, theta, scale, style } = config;
        let pairs = dim / 2;
        let mut frequencies: Vec<f64> =
            (0..pairs).map(|i| f64::from(theta).powf(-(i as f64) / pairs as f64) / f64::from(scale)).collect();
        if let Some(factors) = factors {
            for (f, factor) in frequencies.iter_mut().zip(factors.bytes().as_chunks::<4>().0) {
                *f /= f64::from(f32::from_le_bytes(*factor));
            }
        }
        Self { style, frequencies }
    }

    /// Which dimensions form a pair.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Adds `[cos, sin]` of every pair's angle at a position to a table.
    pub fn turns(&self, table: &mut Vec<[f32; 2]>, position: usize) {
        table.extend(self.frequencies.iter().map(|f| {
            let (sin, cos) = (position as f64 * f).sin_cos();
            [cos as f32, sin as f32]
        }));
    }

    /// `[cos, sin]` of what `n` positions make of every pair's angle, turned the other way.
    pub fn turns_back(&self, n: usize) -> Vec<[f32; 2]> {
        let mut table = Vec::with_capacity(self.pairs());
        self.turns(&mut table, n);
        table.iter_mut().for_each(|[_, sin]| *sin = -*sin);
        table
    }
}
