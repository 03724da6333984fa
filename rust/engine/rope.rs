//! Rotary position embedding: the angles (RoPE, Su et al. 2021), and what makes them reach further.

use std::f64::consts::TAU;

use super::pass::floats;
use crate::arch::{RopeConfig, RopeScaling};
use crate::kernels::RopeStyle;
use crate::tensor::TensorView;
use crate::weights::RopeFactors;

/// A rotation: which dimensions form a pair, and how fast each pair turns.
#[derive(Debug)]
pub struct Rope {
    style: RopeStyle,
    frequencies: Vec<f64>,           // (rope_dim / 2), radians per position
    long: Option<(usize, Vec<f64>)>, // those of contexts that are longer than this
    magnitude: f64,
}

impl Rope {
    /// `theta^(-2i / rope_dim)`, scaled, and divided by the file's factors.
    pub fn new(config: &RopeConfig, factors: &RopeFactors) -> Self {
        let &RopeConfig { dim, theta, style, scaling, .. } = config;
        let (pairs, theta) = (dim / 2, f64::from(theta));
        let plain = || (0..pairs).map(move |i| theta.powf(-(i as f64) / pairs as f64));
        let (mut magnitude, mut long) = (1.0, None);
        let mut frequencies: Vec<f64> = match scaling {
            RopeScaling::None => plain().collect(),
            RopeScaling::Linear(factor) => plain().map(|f| f / f64::from(factor)).collect(),
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_length, magnitude: m } => {
                magnitude = f64::from(m);
                // the pair that turns so often within the original context
                let pair = |turns: f32| {
                    dim as f64 * (original_length as f64 / (TAU * f64::from(turns))).ln() / (2.0 * theta.ln())
                };
                let low = pair(beta_fast).floor().max(0.0);
                let high = pair(beta_slow).ceil().min(dim as f64 - 1.0);
                let scaled = |(i, f): (usize, f64)| {
                    let kept = 1.0 - ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                    f * ((1.0 - kept) / f64::from(factor) + kept)
                };
                plain().enumerate().map(scaled).collect()
            }
            RopeScaling::Long { original_length, magnitude: m } => {
                magnitude = f64::from(m);
                let of = |factors: &Option<TensorView>| divided(plain().collect(), factors.as_ref());
                long = Some((original_length, of(&factors.long)));
                of(&factors.short)
            }
        };
        if config.factors {
            frequencies = divided(frequencies, factors.all.as_ref());
        }
        Self { style, frequencies, long, magnitude }
    }

    /// Which dimensions form a pair.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Those of sequences with room for so many positions: a prompt's logits may depend on it.
    fn frequencies(&self, context_length: usize) -> &[f64] {
        match &self.long {
            Some((longest, long)) if context_length > *longest => long,
            _ => &self.frequencies,
        }
    }

    /// Adds `[cos, sin]` of every pair's angle at a position to a table.
    pub fn turns(&self, table: &mut Vec<[f32; 2]>, position: usize, context_length: usize) {
        table.extend(self.frequencies(context_length).iter().map(|f| {
            let (sin, cos) = (position as f64 * f).sin_cos();
            [cos, sin].map(|x| (x * self.magnitude) as f32)
        }));
    }

    /// `[cos, sin]` of what `n` positions make of every pair's angle, turned the other way.
    pub fn turns_back(&self, n: usize, context_length: usize) -> Vec<[f32; 2]> {
        let turn = |f: &f64| {
            let (sin, cos) = (n as f64 * f).sin_cos();
            [cos as f32, -sin as f32]
        };
        self.frequencies(context_length).iter().map(turn).collect()
    }
}

fn divided(mut frequencies: Vec<f64>, factors: Option<&TensorView>) -> Vec<f64> {
    for (f, factor) in frequencies.iter_mut().zip(factors.into_iter().flat_map(floats)) {
        *f /= f64::from(factor);
    }
    frequencies
}
