//! Multi-head latent attention: queries, and keys and values of all heads, are products with short vectors (DeepSeek-V2).
//!
//! A head here is what is rotated, then the rest; in the file it is the other way round. See [`LatentConfig`] for the two
//! forms. The products that are absorbed are one matrix for each head, and all heads are one region: their operands are
//! put together by head.

use super::attention::{attend, store};
use super::pass::{Add, Buffers, Pass, apply_norm, linear, rescale, room};
use crate::arch::{AttentionConfig, LatentConfig, LayerConfig};
use crate::kernels::activations::Activations;
use crate::kernels::matmul::Matmul;
use crate::kernels::{Context, Scores};
use crate::tensor::TensorView;
use crate::threads::Disjoint;
use crate::weights::{LatentWeights, LayerWeights};

/// What latent attention needs beside what attention does.
#[derive(Default)]
pub struct Latents {
    q_a: Vec<f32>,         // (tokens, query_rank), or what `q_b` is if there is no such vector
    q_b: Vec<f32>,         // (tokens, n_heads, [nope_dim, rope_dim])
    kv_a: Vec<f32>,        // (tokens, [rank, rope_dim])
    short: Activations,    // (tokens, query_rank), then (tokens, rank)
    of_heads: Activations, // (n_heads, tokens, nope_dim), then (n_heads, tokens, rank)
    products: Vec<f32>, // (n_heads, tokens, rank), then (n_heads, tokens, value_dim); or (tokens, n_heads, [nope_dim, value_dim])
    attended: Vec<f32>, // (tokens, n_heads, rank)
}

impl Pass<'_, '_> {
    /// `x += wo attention(norm(x))`
    pub(super) fn latent(
        &mut self,
        i: usize,
        attention: &AttentionConfig,
        config: &LatentConfig,
        w: &LatentWeights,
        layer_config: &LayerConfig,
        layer: &LayerWeights,
    ) {
        let &LatentConfig { rank, rope_dim, nope_dim, value_dim, .. } = config;
        let &AttentionConfig { n_heads, head_dim: width, .. } = attention;
        let (head_dim, q_rows) = (nope_dim + rope_dim, n_heads * (nope_dim + rope_dim));

        // norm; queries, and what keys and values come from
        let first = w.wq.as_ref().or(w.wq_a.as_ref()).expect("one of the two: the config says which");
        self.normed(layer.mixer_norm.as_ref(), &[&first.weight, &w.wkv_a.weight]);
        let (cx, n, norm, engine) = (self.cx, self.n, self.engine.config.norm, self.engine);
        let Buffers { x, branch, q, k, v, turns, normed, attended, parts, latents, .. } = &mut *self.buffers;
        let Latents { q_a, q_b, kv_a, short, of_heads, products, attended: of_ranks } = latents;
        let x = room(x, n * engine.config.dim);
        let (q_a, kv_a) = (room(q_a, n * first.weight.n_rows()), room(kv_a, n * (rank + rope_dim)));
        cx.matmul(&[linear(q_a, first, normed), linear(kv_a, &w.wkv_a, normed)]);
        rescale(q_a, first);
        rescale(kv_a, &w.wkv_a);
        let queries = match (config.query_rank, &w.q_norm, &w.wq_b) {
            (Some(query_rank), Some(q_norm), Some(wq_b)) => {
                short.reset(n, query_rank, &[&wq_b.weight]);
                short.fill(cx, &|t, row| apply_norm(cx, norm, row, &q_a[t * query_rank..(t + 1) * query_rank], q_norm));
                let q_b = room(q_b, n * q_rows);
                cx.matmul(&[linear(q_b, wq_b, short)]);
                rescale(q_b, wq_b);
                q_b
            }
            _ => q_a,
        };
        let (queries, kv_a) = (&*queries, &*kv_a);
        let query = |t: usize, h: usize| queries[t * q_rows + h * head_dim..][..head_dim].split_at(nope_dim);
        let kv = |t: usize| kv_a[t * (rank + rope_dim)..][..rank + rope_dim].split_at(rank);
        let turn = |t: usize, head: &mut [f32]| {
            let Some(rope) = attention.rope else { return };
            let (rope, turns) = (&engine.ropes[rope], &turns[rope]);
            let turns = &turns[t * rope.pairs()..(t + 1) * rope.pairs()];
            cx.kernels.rope(&mut head[..2 * rope.pairs()], turns, rope.style());
        };
        let scores = Scores {
            scale: attention.scale,
            softcap: attention.softcap,
            alibi: None,
            mask: attention.mask,
            sinks: None,
        };

        let q = room(q, n * n_heads * width);
        if let (Some(wk_b), Some(wv_b)) = (&w.wk_b, &w.wv_b) {
            let at = |h: usize, t: usize, len: usize| (h * n + t) * len..(h * n + t + 1) * len;
            of_heads.reset(n_heads * n, nope_dim, &[wk_b]);
            of_heads.fill(cx, &|row, out| out.copy_from_slice(query(row % n, row / n).0));
            let q_nope = each_head(cx, products, wk_b, of_heads, n_heads);
            let k = room(k, n * width);
            let (q_rows, k_rows) = (Disjoint::new(q), Disjoint::new(k));
            cx.each(n, &|t| {
                // SAFETY: each token has its own row.
                let (q, k) = unsafe {
                    (
                        q_rows.slice(t * n_heads * width..(t + 1) * n_heads * width),
                        k_rows.slice(t * width..(t + 1) * width),
                    )
                };
                for (h, q) in q.chunks_exact_mut(width).enumerate() {
                    q[..rope_dim].copy_from_slice(query(t, h).1);
                    turn(t, q);
                    q[rope_dim..].copy_from_slice(&q_nope[at(h, t, rank)]);
                }
                let (short, rotated) = kv(t);
                k[..rope_dim].copy_from_slice(rotated);
                turn(t, k);
                apply_norm(cx, norm, &mut k[rope_dim..], short, &w.kv_norm);
            });
            store(cx, &mut self.pieces, i, k, None);

            let of_ranks = room(of_ranks, n * n_heads * rank);
            attend(cx, &self.pieces, i, scores, q, of_ranks, parts);
            of_heads.reset(n_heads * n, rank, &[wv_b]);
            of_heads.fill(cx, &|row, out| {
                out.copy_from_slice(&of_ranks[(row % n * n_heads + row / n) * rank..][..rank]);
            });
            let values = each_head(cx, products, wv_b, of_heads, n_heads);
            attended.reset(n, n_heads * value_dim, &[&w.wo.weight]);
            attended.fill(cx, &|t, row| {
                for (h, out) in row.chunks_exact_mut(value_dim).enumerate() {
                    out.copy_from_slice(&values[at(h, t, value_dim)]);
                }
            });
        } else {
            let wkv_b = w.wkv_b.as_ref().expect("one of the two forms: the config says which");
            let both = nope_dim + value_dim;
            short.reset(n, rank, &[&wkv_b.weight]);
            short.fill(cx, &|t, row| apply_norm(cx, norm, row, kv(t).0, &w.kv_norm));
            let products = room(products, n * n_heads * both);
            cx.matmul(&[linear(products, wkv_b, short)]);
            rescale(products, wkv_b);
            let (k, v) = (room(k, n * n_heads * width), room(v, n * n_heads * value_dim));
            let (q_rows, k_rows, v_rows) = (Disjoint::new(q), Disjoint::new(k), Disjoint::new(v));
            cx.each(n, &|t| {
                let mut rotated = kv(t).1.to_vec();
                turn(t, &mut rotated);
                for (h, products) in (0..n_heads).zip(products[t * n_heads * both..].chunks_exact(both)) {
                    let row = t * n_heads + h;
                    // SAFETY: each token has its own rows.
                    let (q, k, v) = unsafe {
                        (
                            q_rows.slice(row * width..(row + 1) * width),
                            k_rows.slice(row * width..(row + 1) * width),
                            v_rows.slice(row * value_dim..(row + 1) * value_dim),
                        )
                    };
                    let (q_nope, q_rope) = query(t, h);
                    q[..rope_dim].copy_from_slice(q_rope);
                    turn(t, q);
                    q[rope_dim..].copy_from_slice(q_nope);
                    k[..rope_dim].copy_from_slice(&rotated);
                    k[rope_dim..].copy_from_slice(&products[..nope_dim]);
                    v.copy_from_slice(&products[nope_dim..]);
                }
            });
            store(cx, &mut self.pieces, i, k, Some(v));

            attended.reset(n, n_heads * value_dim, &[&w.wo.weight]);
            attend(cx, &self.pieces, i, scores, q, attended.x_mut(), parts);
            attended.finish(cx);
        }
        let add = Add::mixer(cx, norm, layer_config, layer);
        add.product(x, branch, &w.wo, attended);
    }
}

/// Products of each head's rows with its own matrix, of `w`, `(n_heads, rows, columns)`: `(n_heads, tokens, rows)`.
fn each_head<'a>(cx: &Context, out: &'a mut Vec<f32>, w: &TensorView, x: &Activations, n_heads: usize) -> &'a [f32] {
    let (tokens, rows) = (x.tokens() / n_heads, w.n_rows() / n_heads);
    let out = room(out, x.tokens() * rows);
    let matrices: Vec<_> =
        (0..n_heads).map(|h| w.rows(h * rows..(h + 1) * rows).expect("the rows of all heads were counted")).collect();
    let jobs = out.chunks_exact_mut(tokens * rows).zip(&matrices).enumerate();
    let jobs: Vec<_> = jobs.map(|(h, (out, w))| Matmul::of(out, w, x, h * tokens..(h + 1) * tokens)).collect();
    cx.matmul(&jobs);
    out
}
