//! A feed-forward network: gate and up, activation, down.

use super::pass::{Add, Buffers, Pass, linear, rescale, room};
use crate::arch::{DenseConfig, LayerConfig};
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
        let &DenseConfig { hidden_dim, activation, .. } = config;
        let (cx, n, dim) = (self.cx, self.n, self.engine.config.dim);
        let Buffers { x, branch, gate, up, normed, hidden, .. } = &mut *self.buffers;
        let (x, gate, up) = (room(x, n * dim), room(gate, n * hidden_dim), room(up, n * hidden_dim));

        match &w.w_gate {
            Some(w_gate) => {
                cx.matmul(&[linear(gate, w_gate, normed), linear(up, &w.w_up, normed)]);
                rescale(gate, w_gate);
            }
            None => cx.matmul(&[linear(up, &w.w_up, normed)]),
        }
        rescale(up, &w.w_up);

        hidden.reset(n, hidden_dim, &[&w.w_down.weight]);
        hidden.fill(cx, &|t, row| {
            let range = t * hidden_dim..(t + 1) * hidden_dim;
            match &w.w_gate {
                Some(_) => cx.kernels.activate(activation, row, &gate[range.clone()], Some(&up[range])),
                None => cx.kernels.activate(activation, row, &up[range], None),
            }
        });
        let norm = self.engine.config.norm;
        let add = Add::ffn(cx, norm, layer_config, layer);
        add.product(x, branch, &w.w_down, hidden);
    }
}
