//! Attention: queries, keys and values; their norms and rotation; keys and values to their blocks; attention; output.

use super::pass::{Add, Buffers, Pass, Piece, apply_norm, floats, linear, rescale, room};
use crate::arch::{AttentionConfig, Gate, LayerConfig, QkNorm, Values};
use crate::kernels::{Attention, AttentionSpan, BLOCK, Context, Norm, Scores};
use crate::tensor::TensorView;
use crate::threads::Disjoint;
use crate::weights::{AttentionWeights, FfnWeights, LayerWeights, MixerWeights, NormWeights};

impl Pass<'_, '_> {
    /// `x += wo attention(norm(x))`
    pub(super) fn attention(
        &mut self,
        i: usize,
        config: &AttentionConfig,
        w: &AttentionWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        let &AttentionConfig { n_heads, n_kv_heads, head_dim, value_dim, .. } = config;
        let (q_dim, kv_dim, v_dim) = (n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * value_dim);
        let out_dim = n_heads * value_dim;

        // norm; queries, keys and values
        let mut consumers = vec![&w.wq.weight];
        consumers.extend(w.wk.iter().chain(&w.wv).map(|w| &w.weight));
        if layer_config.norms.parallel
            && let FfnWeights::Dense(dense) = &layer.ffn
        {
            consumers.extend(dense.w_gate.iter().map(|w| &w.weight).chain([&dense.w_up.weight]));
        }
        if let MixerWeights::AttentionAndMamba(_, mamba) = &layer.mixer {
            consumers.push(&mamba.zxbcdt.weight);
        }
        self.normed(layer.mixer_norm.as_ref(), &consumers);
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, q, q_and_gate, k, v, turns, normed, attended, parts, .. } = &mut *self.buffers;
        let (x, q, k, v) = (room(x, n * dim), room(q, n * q_dim), room(k, n * kv_dim), room(v, n * v_dim));
        let queries = match config.gate {
            Gate::None => &mut *q,
            Gate::BesideQueries => room(q_and_gate, 2 * n * q_dim),
        };
        let mut jobs = vec![linear(queries, &w.wq, normed)];
        jobs.extend(w.wk.as_ref().map(|w| linear(k, w, normed)));
        jobs.extend(w.wv.as_ref().map(|w| linear(v, w, normed)));
        cx.matmul(&jobs);
        drop(jobs);
        rescale(queries, &w.wq);
        w.wk.iter().for_each(|w| rescale(k, w));
        w.wv.iter().for_each(|w| rescale(v, w));
        let has_keys = w.wk.is_some();
        match config.values {
            Values::Own => {}
            Values::Normed => norm_values(cx, norm, v, value_dim),
            Values::NormedKeys => {
                v.copy_from_slice(k);
                norm_values(cx, norm, v, value_dim);
            }
        }
        if config.gate == Gate::BesideQueries {
            let heads = q_and_gate.chunks_exact(2 * head_dim);
            q.chunks_exact_mut(head_dim).zip(heads).for_each(|(q, both)| q.copy_from_slice(&both[..head_dim]));
        }

        // norms and rotation of queries and keys
        let rope = config.rope.map(|rope| (&self.engine.ropes[rope], &turns[rope]));
        let mut positions = Vec::with_capacity(if config.temperature.is_some() { n } else { 0 });
        if config.temperature.is_some() {
            positions.extend(self.pieces.iter().flat_map(|piece| piece.start()..piece.start() + piece.range.len()));
        }
        let (q_rows, k_rows) = (Disjoint::new(q), Disjoint::new(k));
        // of each head, and one for all of them unless they have their own
        let each = |w: &Option<NormWeights>| -> Vec<NormWeights> {
            let n = if config.qk_norm == QkNorm::OwnHeads { head_dim } else { usize::MAX };
            let part = |v: &TensorView, i: usize| v.elements(i..(i + n.min(v.row_len())).min(v.row_len()));
            w.iter()
                .flat_map(|w| {
                    (0..w.weight.row_len()).step_by(n).map(|i| NormWeights {
                        weight: part(&w.weight, i).expect("a part of it"),
                        bias: w.bias.as_ref().and_then(|bias| part(bias, i)),
                    })
                })
                .collect()
        };
        let norm_heads = |row: &mut [f32], weights: &[NormWeights]| {
            let dim = weights[0].weight.row_len();
            let before = row.to_vec();
            for ((out, x), w) in row.chunks_exact_mut(dim).zip(before.chunks_exact(dim)).zip(weights.iter().cycle()) {
                apply_norm(cx, norm, out, x, w);
            }
        };
        let (q_norms, k_norms) = (each(&w.q_norm), each(&w.k_norm));
        cx.each(n, &|t| {
            // SAFETY: each token has its own row.
            let (q, k) =
                unsafe { (q_rows.slice(t * q_dim..(t + 1) * q_dim), k_rows.slice(t * kv_dim..(t + 1) * kv_dim)) };
            let keys = has_keys.then_some((k, &k_norms));
            for (row, norms) in std::iter::once((&mut *q, &q_norms)).chain(keys) {
                if !norms.is_empty() && config.qk_norm != QkNorm::RotatedHeads {
                    norm_heads(row, norms);
                }
                if let Some((rope, turns)) = rope {
                    let turns = &turns[t * rope.pairs()..(t + 1) * rope.pairs()];
                    for head in row.chunks_exact_mut(head_dim) {
                        cx.kernels.rope(&mut head[..2 * rope.pairs()], turns, rope.style());
                    }
                }
                if !norms.is_empty() && config.qk_norm == QkNorm::RotatedHeads {
                    norm_heads(row, norms);
                }
            }
            if let Some(temperature) = config.temperature {
                let far = (positions[t] / temperature.length + 1) as f32;
                let longer = 1.0 + temperature.scale * far.ln();
                q.iter_mut().for_each(|q| *q *= longer);
            }
        });

        if has_keys {
            store(cx, &mut self.pieces, i, k, Some(v));
        }

        // attention; output
        attended.reset(n, out_dim, &[&w.wo.weight]);
        let sinks: Option<Vec<f32>> = w.sinks.as_ref().map(|sinks| floats(sinks).collect());
        let scores = Scores {
            scale: config.scale,
            softcap: config.softcap,
            alibi: config.alibi,
            mask: config.mask,
            sinks: sinks.as_deref(),
        };
        attend(cx, &self.pieces, i, scores, q, attended.x_mut(), parts);
        if config.gate == Gate::BesideQueries {
            let heads = q_and_gate.chunks_exact(2 * head_dim);
            for (out, both) in attended.x_mut().chunks_exact_mut(value_dim).zip(heads) {
                out.iter_mut().zip(&both[head_dim..]).for_each(|(out, gate)| *out /= 1.0 + (-gate).exp());
            }
        }
        attended.finish(cx);
        let add = Add::mixer(cx, norm, layer_config, layer);
        add.product(x, branch, &w.wo, attended);
    }
}

/// Norms each head's values, without weights.
fn norm_values(cx: &Context, norm: Norm, v: &mut [f32], value_dim: usize) {
    let mut before = vec![0.0; value_dim];
    for head in v.chunks_exact_mut(value_dim) {
        before.copy_from_slice(head);
        cx.kernels.norm(norm, head, &before, None, None);
    }
}

/// Keys, and values unless they are part of them, of the tokens of a batch to the blocks of their sequences: `(tokens,
/// n_kv_heads * head_dim)` and `(tokens, n_kv_heads * value_dim)`.
pub(super) fn store(cx: &Context, pieces: &mut [Piece], layer: usize, k: &[f32], v: Option<&[f32]>) {
    let layout = std::sync::Arc::clone(pieces[0].span.sequence.layout());
    let (heads, at) = (layout.heads(layer), layout.at(layer));
    let (kv_dim, v_dim) = (heads.n_kv_heads * heads.head_dim, heads.n_kv_heads * heads.value_dim);
    let mut blocks = Vec::new(); // (the block, its first slot to write, rows)
    for piece in pieces {
        let (start, mut row, end) = (piece.start(), piece.first, piece.first + piece.range.len());
        let last = start + piece.range.len();
        for (b, block) in (start / BLOCK..).zip(piece.span.sequence.blocks_mut(start / BLOCK, last.div_ceil(BLOCK))) {
            let slot = start.saturating_sub(b * BLOCK);
            let rows = row..end.min(row + BLOCK - slot);
            row = rows.end;
            blocks.push((block, slot, rows));
        }
    }
    let n_blocks = blocks.len();
    let blocks = Disjoint::new(&mut blocks);
    cx.each(n_blocks, &|b| {
        // SAFETY: each block is one worker's.
        let [(block, slot, rows)] = (unsafe { blocks.slice(b..b + 1) }) else { unreachable!("one block") };
        for (t, slot) in rows.clone().zip(*slot..) {
            let value = v.map(|v| &v[t * v_dim..(t + 1) * v_dim]);
            cx.kernels.store_kv(heads, &mut block[at.clone()], slot, &k[t * kv_dim..(t + 1) * kv_dim], value);
        }
    });
}

/// What the tokens of a batch, with queries `(tokens, n_heads * head_dim)`, get from the blocks of their sequences:
/// `(tokens, n_heads * value_dim)`.
pub(super) fn attend(
    cx: &Context,
    pieces: &[Piece],
    layer: usize,
    scores: Scores,
    q: &[f32],
    out: &mut [f32],
    parts: &mut Vec<f32>,
) {
    let layout = pieces[0].span.sequence.layout();
    let at = layout.at(layer);
    let spans = pieces.iter().map(|piece| {
        let (start, tokens) = (piece.start(), piece.range.len());
        let blocks = piece.span.sequence.blocks(start + tokens).map(|block| &block[at.clone()]).collect();
        AttentionSpan { tokens, start, blocks }
    });
    Attention::new(layout.heads(layer), scores, q, spans.collect(), out, parts).run(cx);
}
