//! Embeddings that tokens have for each layer besides (Gemma 3n and 4).
//!
//! The table of them may be larger than all other weights together. A row of it is read where it lies, for each token.

use super::pass::{Add, Buffers, Pass, apply_norm, linear, rescale, room};
use crate::arch::Activation;
use crate::quant;
use crate::threads::Disjoint;
use crate::weights::{LayerEmbedding, LayerEmbeddingWeights};

impl Pass<'_, '_> {
    /// What each layer gets of each token: the mean of its embedding for the layer and of a product of the usual one, each of
    /// about the same length, times the root of two.
    pub(super) fn layer_inputs(&mut self, w: &LayerEmbedding, tokens: &[u32]) {
        let (cx, n, config) = (self.cx, self.n, &self.engine.config);
        let (dim, width, each) = (config.dim, w.tokens.row_len(), config.layer_embedding_dim.expect("there are some"));
        let (norm, shrink, grow) = (config.norm, 1.0 / (dim as f32).sqrt(), (each as f32).sqrt());
        self.normed(None, &[&w.proj.weight]);
        let Buffers { normed, layer_inputs, .. } = &mut *self.buffers;
        let inputs = room(layer_inputs, n * width);
        cx.matmul(&[linear(inputs, &w.proj, normed)]);
        rescale(inputs, &w.proj);
        let rows = Disjoint::new(inputs);
        cx.each(n, &|t| {
            // SAFETY: each token has its own row.
            let row = unsafe { rows.slice(t * width..(t + 1) * width) };
            let mut own = vec![0.0; width];
            quant::dequantize(w.tokens.dtype(), w.tokens.row(tokens[t] as usize), &mut own);
            let mut product = vec![0.0; each];
            for (out, own) in row.chunks_exact_mut(each).zip(own.chunks_exact(each)) {
                product.iter_mut().zip(&*out).for_each(|(to, from)| *to = from * shrink);
                apply_norm(cx, norm, out, &product, &w.norm);
                out.iter_mut().zip(own).for_each(|(x, own)| *x = (*x + own * grow) * std::f32::consts::FRAC_1_SQRT_2);
            }
        });
    }

    /// `x += norm(proj(gelu(gate(x)) * input))`
    pub(super) fn layer_embedding(&mut self, i: usize, w: &LayerEmbeddingWeights) {
        self.layer_gates(i, w);
        let (cx, n, dim, norm) = (self.cx, self.n, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, branch, hidden, .. } = &mut *self.buffers;
        Add::normed(cx, norm, &w.norm).product(room(x, n * dim), branch, &w.w_proj, hidden);
    }

    /// `hidden = gelu(gate(x)) * input`
    pub(super) fn layer_gates(&mut self, i: usize, w: &LayerEmbeddingWeights) {
        let (cx, n, config) = (self.cx, self.n, &self.engine.config);
        let each = config.layer_embedding_dim.expect("there are some");
        let width = config.n_layers() * each;
        self.normed(None, &[&w.w_gate.weight]);
        let Buffers { gate, normed, hidden, layer_inputs, .. } = &mut *self.buffers;
        let gate = room(gate, n * each);
        cx.matmul(&[linear(gate, &w.w_gate, normed)]);
        rescale(gate, &w.w_gate);
        hidden.reset(n, each, &[&w.w_proj.weight]);
        hidden.fill(cx, &|t, row| {
            let input = &layer_inputs[t * width + i * each..][..each];
            cx.kernels.activate(Activation::Gelu, row, &gate[t * each..(t + 1) * each], Some(input));
        });
    }
}
