//! The output: norm and logits of the rows that are asked for.

use super::pass::{Buffers, Pass, Piece, apply_norm, linear, rescale, room, scale_and_shift};
use crate::kernels::matmul::Matmul;
use crate::threads::Disjoint;

/// Tokens whose logits are computed together.
const HEAD_BATCH: usize = 32;

impl Pass<'_, '_> {
    pub(super) fn head(&mut self, logits: &mut [f32]) {
        let vocab_size = self.engine.config.vocab_size;
        let wanted: Vec<usize> = self.pieces.iter().flat_map(Piece::wanted).collect();
        for (rows, logits) in wanted.chunks(HEAD_BATCH).zip(logits.chunks_mut(HEAD_BATCH * vocab_size)) {
            self.logits_of(rows, logits);
            self.adjust(logits);
        }
    }

    /// Logits of some rows, `(rows, vocab_size)`.
    ///
    /// The logits feel the rounding of the activations directly: a quarter of the whole model's error was theirs. So the
    /// rounding error is quantised as well, as a second row, and its product added: some 16 bits, and the weights are
    /// read once for both.
    fn logits_of(&mut self, rows: &[usize], logits: &mut [f32]) {
        let (w, output) = (&self.engine.weights.output_norm, &self.engine.weights.output);
        let (cx, dim, norm) = (self.cx, self.engine.config.dim, self.engine.config.norm);
        let Buffers { x, normed, halves, .. } = &mut *self.buffers;
        let x = |i: usize| &x[rows[i] * dim..(rows[i] + 1) * dim];
        if !output.weight.dtype().is_quantized() {
            normed.reset(rows.len(), dim, &[&output.weight]);
            normed.fill(cx, &|t, row| apply_norm(cx, norm, row, x(t), w));
            cx.matmul(&[linear(logits, output, normed)]);
            rescale(logits, output);
            return;
        }
        normed.reset(2 * rows.len(), dim, &[&output.weight]);
        normed.fill(cx, &|t, row| {
            if t % 2 == 0 {
                apply_norm(cx, norm, row, x(t / 2), w);
            } else {
                let mut exact = vec![0.0; dim];
                apply_norm(cx, norm, &mut exact, x(t / 2), w);
                rounding_errors(row, &exact);
            }
        });
        let vocab_size = output.weight.n_rows();
        let halves = room(halves, 2 * rows.len() * vocab_size); // (rows, 2, vocab_size)
        cx.matmul(&[Matmul::new(halves, &output.weight, normed)]);
        for (logits, pair) in logits.chunks_exact_mut(vocab_size).zip(halves.chunks_exact(2 * vocab_size)) {
            let (row, errors) = pair.split_at(vocab_size);
            for ((out, a), b) in logits.iter_mut().zip(row).zip(errors) {
                *out = a + b;
            }
        }
        scale_and_shift(logits, output);
    }

    /// What becomes of logits after the product.
    fn adjust(&self, logits: &mut [f32]) {
        let (scale, softcap) = (self.engine.config.logit_scale, self.engine.config.logit_softcap);
        if scale == 1.0 && softcap.is_none() {
            return;
        }
        let vocab_size = self.engine.config.vocab_size;
        let n = logits.len() / vocab_size;
        let rows = Disjoint::new(logits);
        self.cx.each(n, &|t| {
            // SAFETY: each row is one worker's.
            let row = unsafe { rows.slice(t * vocab_size..(t + 1) * vocab_size) };
            row.iter_mut().for_each(|x| *x *= scale);
            if let Some(limit) = softcap {
                self.cx.kernels.softcap(row, limit);
            }
        });
    }
}

/// What quantising `x` in groups of 32 rounds off, see [`crate::kernels::activations`].
fn rounding_errors(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.chunks_exact_mut(32).zip(x.chunks_exact(32)) {
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let (d, inverse) = (max / 127.0, if max > 0.0 { 127.0 / max } else { 0.0 });
        for (out, x) in out.iter_mut().zip(x) {
            *out = x - d * (x * inverse).round_ties_even();
        }
    }
}
