//! Mamba-2: gates, values, B, C and time steps; convolution; the state space; the gated norm; output.

use super::pass::{Add, Buffers, Pass, linear, rescale, room};
use super::recurrent::{convolve, rates, softplus};
use crate::arch::{Activation, LayerConfig, LinearHeads, MambaConfig, Mixer, Norm, NormKind};
use crate::kernels::{ConvWeights, LinearAttention, LinearInputs};
use crate::weights::{LayerWeights, MambaWeights};

impl Pass<'_, '_> {
    /// `x += out (norm((state_space(conv(values, B, C)) + d * values) * silu(gate)))`, from `norm(x)`
    pub(super) fn mamba(
        &mut self,
        i: usize,
        config: &MambaConfig,
        w: &MambaWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        let LinearHeads { n_heads, n_key_heads, key_dim, value_dim, .. } = config.heads;
        let (channels, inner, keys) = (config.channels(), config.inner_dim(), n_key_heads * key_dim);
        let width = inner + channels + n_heads; // gate; values, B, C; time steps

        // Beside an attention, that has made the norm ready for both.
        if !matches!(layer_config.mixer, Mixer::AttentionAndMamba(..)) {
            self.normed(layer.mixer_norm.as_ref(), &[&w.zxbcdt.weight]);
        }
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, fused, convolved, alpha, beta, linear: out, normed, hidden, .. } = &mut *self.buffers;
        let (x, fused, convolved) = (room(x, n * dim), room(fused, n * width), room(convolved, n * channels));
        cx.matmul(&[linear(fused, &w.zxbcdt, normed)]);
        rescale(fused, &w.zxbcdt);

        // time steps and decays
        let (steps, decays) = (room(beta, n * n_heads), room(alpha, n * n_heads));
        let rates = rates(&w.a, &w.dt, config.log_decays);
        let rows = steps.chunks_exact_mut(n_heads).zip(decays.chunks_exact_mut(n_heads));
        for ((steps, decays), from) in rows.zip(fused.chunks_exact(width)) {
            for (((step, decay), from), (a, dt)) in
                steps.iter_mut().zip(decays).zip(&from[inner + channels..]).zip(&rates)
            {
                *step = softplus(from + dt);
                *decay = a * *step;
            }
        }

        // convolution; the state space, of which the keys are B and the queries C
        let bias = w.conv_bias.as_ref().map(|bias| bias.numbers());
        let conv = ConvWeights { taps: w.conv.numbers(), bias, n_taps: config.n_taps, silu: true };
        let row = |t: usize| &fused[t * width + inner..t * width + inner + channels];
        let memories = convolve(cx, &mut self.pieces, i, conv, &row, convolved);
        let out = room(out, n * inner);
        let (k, q) = (inner, inner + keys);
        let from = LinearInputs { rows: convolved, stride: channels, q, k, v: 0, g: decays, beta: steps, scale: 1.0 };
        let spans = memories.into_iter().map(|memory| memory.span()).collect();
        LinearAttention::new(config.heads, from, spans, out).run(cx);

        // values past the state; gate; norm of each group; output
        let skips: Vec<f32> = w.d.numbers().iter().collect();
        let group = inner / n_key_heads;
        hidden.reset(n, inner, &[&w.out.weight]);
        hidden.fill(cx, &|t, row| {
            let (out, values) = (&out[t * inner..(t + 1) * inner], &convolved[t * channels..][..inner]);
            let heads = out.chunks_exact(value_dim).zip(values.chunks_exact(value_dim)).zip(&skips);
            let y: Vec<f32> =
                heads.flat_map(|((out, values), d)| out.iter().zip(values).map(move |(o, v)| o + d * v)).collect();
            let gate = &fused[t * width..][..inner];
            match &w.norm {
                None => cx.kernels.activate(Activation::Silu, row, gate, Some(&y)),
                Some(weights) => {
                    let mut gated = vec![0.0; inner];
                    cx.kernels.activate(Activation::Silu, &mut gated, gate, Some(&y));
                    let own = Norm { kind: NormKind::Rms, eps: norm.eps, offset: 0.0 };
                    let groups = row.chunks_exact_mut(group).zip(gated.chunks_exact(group));
                    for (g, (row, gated)) in groups.enumerate() {
                        let weights = weights.numbers().part(g * group..(g + 1) * group);
                        cx.kernels.norm(own, row, gated, Some(weights), None);
                    }
                }
            }
        });
        let add = Add::mixer(cx, norm, layer_config, layer);
        add.product(x, branch, &w.out, hidden);
    }
}
