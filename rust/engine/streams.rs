//! Streams beside the one that a layer computes with (AltUp, Baykal et al. 2023), and a second branch of low rank beside its
//! attention (LAuReL, Menghani et al. 2024): Gemma 3n.
//!
//! Before a layer each stream is predicted from all of them; the layer goes on from the first. What it has made of that
//! beyond the prediction then corrects all of them. How much of which is up to a small router, for each token.

use super::pass::{Add, Buffers, Pass, apply_norm, linear, rescale, room};
use crate::kernels::Context;
use crate::kernels::matmul::Matmul;
use crate::tensor::TensorView;
use crate::threads::Disjoint;
use crate::weights::{LayerEmbeddingWeights, LayerWeights, StreamsWeights, Widening};

/// Mean squares below this count as this: a product that is nearly nothing is not made as long as a stream.
const LEAST: f32 = 1e-5;

impl Pass<'_, '_> {
    /// The first stream is the embeddings; the others are products with them, each as long.
    pub(super) fn begin_streams(&mut self, w: &Widening) {
        let (cx, n, dim) = (self.cx, self.n, self.engine.config.dim);
        self.normed(None, &[&w.proj]);
        let Buffers { x, normed, streams, .. } = &mut *self.buffers;
        let matrices = matrices(&w.proj, dim);
        let (first, others) = room(streams, (1 + matrices.len()) * n * dim).split_at_mut(n * dim);
        first.copy_from_slice(&x[..n * dim]);
        let jobs = others.chunks_exact_mut(n * dim).zip(&matrices).map(|(out, w)| Matmul::new(out, w, normed));
        cx.matmul(&jobs.collect::<Vec<_>>());
        match_lengths(cx, others, first, dim);
    }

    /// Predicts the streams, of which the first is what the layer goes on from, and what the branch of low rank makes of it.
    pub(super) fn predict_streams(&mut self, w: &StreamsWeights, layer: &LayerWeights) {
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let n_streams = w.router.n_rows();
        let Buffers { x, streams, .. } = &mut *self.buffers;
        room(x, n * dim).copy_from_slice(&streams[..n * dim]);
        self.route(w);
        let mixing: Vec<f32> = w.predict.numbers().iter().collect(); // (to, from, modalities)
        let Buffers { x, streams, modalities, .. } = &mut *self.buffers;
        let (streams, x) = (Disjoint::new(&mut streams[..n_streams * n * dim]), Disjoint::new(&mut x[..n * dim]));
        cx.each(n, &|t| {
            let modalities = &modalities[t * n_streams..(t + 1) * n_streams];
            let factors: Vec<f32> = mixing.chunks_exact(n_streams).map(|row| dot(row, modalities)).collect();
            let at = |i: usize| (i * n + t) * dim..(i * n + t + 1) * dim;
            // SAFETY: each token has its own row of each stream.
            let mut rows: Vec<&mut [f32]> = (0..n_streams).map(|i| unsafe { streams.slice(at(i)) }).collect();
            let before = rows.concat();
            for (row, factors) in rows.iter_mut().zip(factors.chunks_exact(n_streams)) {
                for (from, factor) in before.chunks_exact(dim).zip(factors) {
                    row.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
                }
            }
            // SAFETY: each token has its own row.
            unsafe { x.slice(at(0)) }.copy_from_slice(rows[0]);
        });

        let rank = w.laurel_l.weight.n_rows();
        self.normed(layer.mixer_norm.as_ref(), &[&w.laurel_l.weight]);
        let Buffers { normed, gate, hidden, laurel, .. } = &mut *self.buffers;
        let (short, laurel) = (room(gate, n * rank), room(laurel, n * dim));
        cx.matmul(&[linear(short, &w.laurel_l, normed)]);
        rescale(short, &w.laurel_l);
        hidden.reset(n, rank, &[&w.laurel_r.weight]);
        hidden.fill(cx, &|t, row| row.copy_from_slice(&short[t * rank..(t + 1) * rank]));
        cx.matmul(&[linear(laurel, &w.laurel_r, hidden)]);
        rescale(laurel, &w.laurel_r);
        let rows = Disjoint::new(laurel);
        cx.each(n, &|t| {
            // SAFETY: each token has its own row.
            let row = unsafe { rows.slice(t * dim..(t + 1) * dim) };
            let product = row.to_vec();
            apply_norm(cx, norm, row, &product, &w.laurel_norm);
            row.iter_mut().zip(normed.x(t)).for_each(|(x, from)| *x += from);
        });
    }

    /// `x = (x + laurel) / sqrt(2)`, where attention has been added to `x`.
    pub(super) fn join_laurel(&mut self) {
        let n = self.n * self.engine.config.dim;
        let Buffers { x, laurel, .. } = &mut *self.buffers;
        let sums = x[..n].iter_mut().zip(&laurel[..n]);
        sums.for_each(|(x, laurel)| *x = (*x + laurel) * std::f32::consts::FRAC_1_SQRT_2);
    }

    /// Corrects the streams by what the layer has made of the first; all but that take the embeddings that tokens have for
    /// the layer.
    pub(super) fn correct_streams(&mut self, i: usize, w: &StreamsWeights, of_layer: Option<&LayerEmbeddingWeights>) {
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let n_streams = w.router.n_rows();
        self.route(w);
        let correction: Vec<f32> = w.correct.numbers().iter().collect(); // (streams, modalities)
        let scales: Vec<f32> = w.scale.numbers().iter().collect();
        let Buffers { x, streams, modalities, .. } = &mut *self.buffers;
        let (rows, inputs) = (Disjoint::new(&mut streams[..n_streams * n * dim]), Disjoint::new(&mut x[..n * dim]));
        cx.each(n, &|t| {
            let modalities = &modalities[t * n_streams..(t + 1) * n_streams];
            let at = |i: usize| (i * n + t) * dim..(i * n + t + 1) * dim;
            // SAFETY: each token has its own row.
            let x = unsafe { inputs.slice(at(0)) };
            // SAFETY: each token has its own row of each stream; one is held at a time.
            let row = |i: usize| unsafe { rows.slice(at(i)) };
            x.iter_mut().zip(row(0)).for_each(|(x, predicted)| *x -= *predicted);
            for (i, correction) in correction.chunks_exact(n_streams).enumerate() {
                let factor = dot(correction, modalities) + 1.0;
                row(i).iter_mut().zip(&*x).for_each(|(to, new)| *to += factor * new);
            }
            x.iter_mut().zip(row(0)).zip(&scales).for_each(|((x, first), scale)| *x = *first * scale);
        });
        let Some(of_layer) = of_layer else { return };
        self.layer_gates(i, of_layer);
        let Buffers { x, branch, hidden, streams, .. } = &mut *self.buffers;
        let x = &mut x[..n * dim];
        x.fill(0.0);
        Add::normed(cx, norm, &of_layer.norm).product(x, branch, &of_layer.w_proj, hidden);
        for other in streams[..n_streams * n * dim].chunks_exact_mut(n * dim).skip(1) {
            other.iter_mut().zip(&*x).for_each(|(to, from)| *to += from);
        }
    }

    /// `x`: the mean of the first stream and of products with the others, each as long.
    pub(super) fn end_streams(&mut self, w: &Widening) {
        let (cx, n, dim) = (self.cx, self.n, self.engine.config.dim);
        let matrices = matrices(&w.unproj, dim);
        let share = 1.0 / (1 + matrices.len()) as f32;
        let Buffers { x, branch, normed, streams, .. } = &mut *self.buffers;
        let (x, branch) = (&mut x[..n * dim], room(branch, n * dim));
        let (first, others) = streams[..(1 + matrices.len()) * n * dim].split_at(n * dim);
        x.copy_from_slice(first);
        for (other, w) in others.chunks_exact(n * dim).zip(&matrices) {
            normed.reset(n, dim, &[w]);
            normed.fill(cx, &|t, row| row.copy_from_slice(&other[t * dim..(t + 1) * dim]));
            cx.matmul(&[Matmul::new(branch, w, normed)]);
            match_lengths(cx, branch, first, dim);
            x.iter_mut().zip(&*branch).for_each(|(x, more)| *x += more);
        }
        x.iter_mut().for_each(|x| *x *= share);
    }

    /// What the router says of each row of `x`, `(tokens, streams)`, -1 to 1.
    fn route(&mut self, w: &StreamsWeights) {
        let (cx, dim, n) = (self.cx, self.engine.config.dim, self.n * w.router.n_rows());
        self.normed(Some(&w.router_norm), &[&w.router]);
        let Buffers { normed, modalities, .. } = &mut *self.buffers;
        let modalities = room(modalities, n);
        cx.matmul(&[Matmul::new(modalities, &w.router, normed)]);
        modalities.iter_mut().for_each(|x| *x = (*x / dim as f32).tanh());
    }
}

/// The square matrices that a tensor is made of.
fn matrices(tensor: &TensorView, dim: usize) -> Vec<TensorView> {
    let starts = (0..tensor.n_rows()).step_by(dim);
    starts.map(|row| tensor.rows(row..row + dim).expect("whole matrices: the shape was checked")).collect()
}

/// Makes each row as long as that of its token in `like`, `(tokens, dim)`.
fn match_lengths(cx: &Context, rows: &mut [f32], like: &[f32], dim: usize) {
    let (n, tokens) = (rows.len() / dim, like.len() / dim);
    let rows = Disjoint::new(rows);
    let mean_square = |x: &[f32]| dot(x, x) / dim as f32;
    cx.each(n, &|i| {
        // SAFETY: each row is one worker's.
        let row = unsafe { rows.slice(i * dim..(i + 1) * dim) };
        let like = &like[i % tokens * dim..][..dim];
        let factor = (mean_square(like) / mean_square(row).max(LEAST)).sqrt();
        row.iter_mut().for_each(|x| *x *= factor);
    });
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
