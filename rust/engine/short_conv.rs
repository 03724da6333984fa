//! A short convolution between two gates.

use super::pass::{Add, Buffers, Pass, linear, rescale, room};
use super::recurrent::convolve;
use crate::arch::{LayerConfig, ShortConvConfig};
use crate::kernels::ConvWeights;
use crate::threads::Disjoint;
use crate::weights::{LayerWeights, ShortConvWeights};

impl Pass<'_, '_> {
    /// `x += out (c * conv(b * y))`, where `b`, `c` and `y` are the thirds of `bcx norm(x)`
    pub(super) fn short_conv(
        &mut self,
        i: usize,
        config: &ShortConvConfig,
        w: &ShortConvWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        self.normed(layer.mixer_norm.as_ref(), &[&w.bcx.weight]);
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, inputs, convolved, fused, normed, hidden, .. } = &mut *self.buffers;
        let (x, inputs, convolved) = (room(x, n * dim), room(inputs, n * dim), room(convolved, n * dim));
        let bcx = room(fused, 3 * n * dim);
        cx.matmul(&[linear(bcx, &w.bcx, normed)]);
        rescale(bcx, &w.bcx);

        let rows = Disjoint::new(inputs);
        cx.each(n, &|t| {
            // SAFETY: each token has its own row.
            let row = unsafe { rows.slice(t * dim..(t + 1) * dim) };
            let (b, rest) = bcx[3 * t * dim..3 * (t + 1) * dim].split_at(dim);
            row.iter_mut().zip(b).zip(&rest[dim..]).for_each(|((row, b), y)| *row = b * y);
        });
        let conv = ConvWeights { taps: w.conv.numbers(), bias: None, n_taps: config.n_taps, silu: false };
        convolve(cx, &mut self.pieces, i, conv, &|t| &inputs[t * dim..(t + 1) * dim], convolved);
        hidden.reset(n, dim, &[&w.out.weight]);
        hidden.fill(cx, &|t, row| {
            let c = &bcx[(3 * t + 1) * dim..(3 * t + 2) * dim];
            row.iter_mut().zip(c).zip(&convolved[t * dim..]).for_each(|((row, c), y)| *row = c * y);
        });
        let add = Add::mixer(cx, norm, layer_config, layer);
        add.product(x, branch, &w.out, hidden);
    }
}
