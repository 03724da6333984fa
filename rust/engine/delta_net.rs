//! Gated DeltaNet: queries, keys, values and gates; convolution; norms of queries and keys; the gated delta rule; the gated
//! norm; output.

use super::pass::{Add, Buffers, Pass, linear, rescale, room};
use super::recurrent::{convolve, rates, sigmoid, softplus};
use crate::arch::{Activation, DeltaNetConfig, LayerConfig, LinearHeads, Norm, NormKind};
use crate::kernels::{ConvWeights, LinearAttention, LinearInputs};
use crate::threads::Disjoint;
use crate::weights::{DeltaNetWeights, LayerWeights};

impl Pass<'_, '_> {
    /// `x += out (rms_norm(delta_rule(conv(qkv norm(x)))) * silu(gate norm(x)))`
    pub(super) fn delta_net(
        &mut self,
        i: usize,
        config: &DeltaNetConfig,
        w: &DeltaNetWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        let LinearHeads { n_heads, n_key_heads, key_dim, value_dim, .. } = config.heads;
        let (keys, inner) = (n_key_heads * key_dim, n_heads * value_dim);
        let channels = 2 * keys + inner;

        // norm; queries, keys and values; gates; strengths and decays
        let all = [&w.qkv, &w.gate, &w.qkv_and_gate, &w.beta, &w.alpha, &w.beta_and_alpha];
        let consumers: Vec<_> = all.into_iter().flatten().map(|linear| &linear.weight).collect();
        self.normed(layer.mixer_norm.as_ref(), &consumers);
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, inputs, convolved, gate, fused, alpha, beta, linear: out, normed, hidden, .. } =
            &mut *self.buffers;
        let (x, inputs, gate) = (room(x, n * dim), room(inputs, n * channels), room(gate, n * inner));
        let (alpha, beta, convolved) =
            (room(alpha, n * n_heads), room(beta, n * n_heads), room(convolved, n * channels));
        let mut jobs = Vec::new();
        let (fused_heads, fused_rates) =
            room(fused, n * (channels + inner + 2 * n_heads)).split_at_mut(n * (channels + inner));
        match (&w.qkv_and_gate, &w.qkv, &w.gate) {
            (Some(w), ..) => jobs.push((&mut *fused_heads, w)),
            (None, Some(qkv), Some(w_gate)) => jobs.extend([(&mut *inputs, qkv), (&mut *gate, w_gate)]),
            (None, ..) => unreachable!("weights are loaded as the config says"),
        }
        match (&w.beta_and_alpha, &w.beta, &w.alpha) {
            (Some(w), ..) => jobs.push((&mut *fused_rates, w)),
            (None, Some(w_beta), Some(w_alpha)) => jobs.extend([(&mut *beta, w_beta), (&mut *alpha, w_alpha)]),
            (None, ..) => unreachable!("weights are loaded as the config says"),
        }
        cx.matmul(&jobs.iter_mut().map(|(out, w)| linear(out, w, normed)).collect::<Vec<_>>());
        jobs.into_iter().for_each(|(out, w)| rescale(out, w));
        if w.qkv_and_gate.is_some() {
            // for each key head: its query, its key, and the values and gates that use it
            let shared = inner / n_key_heads;
            let rows = inputs.chunks_exact_mut(channels).zip(gate.chunks_exact_mut(inner));
            for ((qkv, gate), from) in rows.zip(fused_heads.chunks_exact(channels + inner)) {
                for (h, from) in from.chunks_exact(2 * key_dim + 2 * shared).enumerate() {
                    let (from_qk, from_vz) = from.split_at(2 * key_dim);
                    qkv[h * key_dim..][..key_dim].copy_from_slice(&from_qk[..key_dim]);
                    qkv[keys + h * key_dim..][..key_dim].copy_from_slice(&from_qk[key_dim..]);
                    qkv[2 * keys + h * shared..][..shared].copy_from_slice(&from_vz[..shared]);
                    gate[h * shared..][..shared].copy_from_slice(&from_vz[shared..]);
                }
            }
        }
        if w.beta_and_alpha.is_some() {
            let shared = n_heads / n_key_heads;
            let rows = alpha.chunks_exact_mut(shared).zip(beta.chunks_exact_mut(shared));
            for ((alpha, beta), from) in rows.zip(fused_rates.chunks_exact(2 * shared)) {
                beta.copy_from_slice(&from[..shared]);
                alpha.copy_from_slice(&from[shared..]);
            }
        }
        let rates = rates(&w.a, &w.dt, config.log_decays);
        for (alpha, beta) in alpha.chunks_exact_mut(n_heads).zip(beta.chunks_exact_mut(n_heads)) {
            alpha.iter_mut().zip(&rates).for_each(|(alpha, (a, dt))| *alpha = a * softplus(*alpha + dt));
            beta.iter_mut().for_each(|beta| *beta = sigmoid(*beta));
        }

        // convolution; norms of queries and keys
        let conv = ConvWeights { taps: w.conv.numbers(), bias: None, n_taps: config.n_taps, silu: true };
        let row = |t: usize| &inputs[t * channels..(t + 1) * channels];
        let memories = convolve(cx, &mut self.pieces, i, conv, &row, convolved);
        let rows = Disjoint::new(convolved);
        cx.each(n, &|t| {
            // SAFETY: each token has its own row.
            let row = unsafe { rows.slice(t * channels..(t + 1) * channels) };
            row[..2 * keys].chunks_exact_mut(key_dim).for_each(|head| cx.kernels.l2_norm(head, norm.eps));
        });

        // the rule; the gated norm; output
        let scale = 1.0 / (key_dim as f32).sqrt();
        let out = room(out, n * inner);
        let from =
            LinearInputs { rows: convolved, stride: channels, q: 0, k: keys, v: 2 * keys, g: alpha, beta, scale };
        let spans = memories.into_iter().map(|memory| memory.span()).collect();
        LinearAttention::new(config.heads, from, spans, out).run(cx);
        hidden.reset(n, inner, &[&w.out.weight]);
        hidden.fill(cx, &|t, row| {
            let range = t * inner..(t + 1) * inner;
            let heads = out[range.clone()].chunks_exact(value_dim).zip(gate[range].chunks_exact(value_dim));
            let mut normed = vec![0.0; value_dim];
            let own = Norm { kind: NormKind::Rms, eps: norm.eps, offset: 0.0 }; // files agree about this one
            for (row, (head, gate)) in row.chunks_exact_mut(value_dim).zip(heads) {
                cx.kernels.norm(own, &mut normed, head, Some(w.norm.numbers()), None);
                cx.kernels.activate(Activation::Silu, row, gate, Some(&normed));
            }
        });
        let add = Add::mixer(cx, norm, layer_config, layer);
        add.product(x, branch, &w.out, hidden);
    }
}
