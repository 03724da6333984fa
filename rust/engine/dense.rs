//! A feed-forward network: gate and up, activation, down.

use super::pass::{Add, Buffers, Pass, linear, rescale, room};
use crate::arch::{DenseConfig, LayerConfig};
use crate::threads::Disjoint;
use crate::weights::{DenseWeights, LayerWeights};

impl Pass<'_, '_> {
    /// `x += down(activation(gate(norm(x))) * up(norm(x)))`
    pub(super) fn dense(
        &mut self,
        config: &DenseConfig,
        w: &DenseWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        if !layer_config.norms.parallel {
            let consumers: Vec<_> = w.w_gate.iter().map(|w| &w.weight).chain([&w.w_up.weight]).collect();
            self.normed(layer.ffn_norm.as_ref(), &consumers);
        }
        self.hidden(config, w);
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, hidden, .. } = &mut *self.buffers;
        let add = Add::ffn(cx, norm, layer_config, layer);
        add.product(room(x, n * dim), branch, &w.w_down, hidden);
    }

    /// `hidden = activation(gate(normed)) * up(normed)`
    pub(super) fn hidden(&mut self, config: &DenseConfig, w: &DenseWeights) {
        let &DenseConfig { hidden_dim, activation, cutoff, .. } = config;
        let (cx, n) = (self.cx, self.n);
        let Buffers { gate, up, normed, hidden, .. } = &mut *self.buffers;
        let (gate, up) = (room(gate, n * hidden_dim), room(up, n * hidden_dim));

        match &w.w_gate {
            Some(w_gate) => {
                cx.matmul(&[linear(gate, w_gate, normed), linear(up, &w.w_up, normed)]);
                rescale(gate, w_gate);
            }
            None => cx.matmul(&[linear(up, &w.w_up, normed)]),
        }
        rescale(up, &w.w_up);
        if let Some(cutoff) = cutoff {
            let rows = Disjoint::new(gate);
            // SAFETY: each token has its own row.
            cx.each(n, &|t| cut_off(unsafe { rows.slice(t * hidden_dim..(t + 1) * hidden_dim) }, cutoff));
        }

        hidden.reset(n, hidden_dim, &[&w.w_down.weight]);
        hidden.fill(cx, &|t, row| {
            let range = t * hidden_dim..(t + 1) * hidden_dim;
            match &w.w_gate {
                Some(_) => cx.kernels.activate(activation, row, &gate[range.clone()], Some(&up[range])),
                None => cx.kernels.activate(activation, row, &up[range], None),
            }
        });
    }
}

/// Counts from so many deviations above the mean, and takes what is below for 0. The deviation is that of a sample.
fn cut_off(x: &mut [f32], deviations: f32) {
    let n = x.len() as f32;
    let mean = x.iter().sum::<f32>() / n;
    let squares: f32 = x.iter().map(|x| (x - mean) * (x - mean)).sum();
    let least = mean + deviations * (squares / (n - 1.0).max(1.0)).sqrt();
    x.iter_mut().for_each(|x| *x = (*x - least).max(0.0));
}
