//! The output: norm of the rows that are asked for, and their logits.

use super::pass::{Buffers, Pass, Piece, apply_norm, linear, rescale, room, scale_and_shift};
use crate::kernels::matmul::Matmul;
use crate::threads::Disjoint;
use crate::weights::Linear;

/// Tokens whose logits are computed together.
const HEAD_BATCH: usize = 32;

impl Pass<'_, '_> {
    /// What is wanted of the spans: logits, or vectors.
    pub(super) fn head(&mut self, out: &mut [f32]) {
        let vocab_size = self.engine.config.vocab_size;
        let wanted: Vec<usize> = self.pieces.iter().flat_map(Piece::wanted).collect();
        if self.pieces.iter().any(|piece| piece.span.want.is_hidden()) {
            return self.hidden_of(&wanted, out);
        }
        let Some(output) = &self.engine.weights.output else { return };
        for (rows, logits) in wanted.chunks(HEAD_BATCH).zip(out.chunks_mut(HEAD_BATCH * vocab_size)) {
            self.logits_of(output, rows, logits);
            self.adjust(logits);
        }
    }

    /// The vectors of some rows, `(rows, dim)`.
    fn hidden_of(&self, rows: &[usize], out: &mut [f32]) {
        let (cx, dim, norm) = (self.cx, self.engine.config.dim, self.engine.config.norm);
        let (x, out) = (&self.buffers.x, Disjoint::new(out));
        cx.each(rows.len(), &|i| {
            // SAFETY: each row is one worker's.
            let out = unsafe { out.slice(i * dim..(i + 1) * dim) };
            let x = &x[rows[i] * dim..(rows[i] + 1) * dim];
            match &self.engine.weights.output_norm {
                Some(w) => apply_norm(cx, norm, out, x, w),
                None => out.copy_from_slice(x),
            }
        });
    }

    /// Logits of some rows, `(rows, vocab_size)`.
    ///
    /// The logits feel the rounding of the activations directly: a quarter of the whole model's error was theirs. So the
    /// rounding error is quantised as well, as a second row, and its product added: some 16 bits, and the weights are
    /// read once for both.
    fn logits_of(&mut self, output: &Linear, rows: &[usize], logits: &mut [f32]) {
        let (cx, dim, norm) = (self.cx, self.engine.config.dim, self.engine.config.norm);
        let w = self.engine.weights.output_norm.as_ref();
        let Buffers { x, normed, halves, .. } = &mut *self.buffers;
        let x = |i: usize| &x[rows[i] * dim..(rows[i] + 1) * dim];
        let apply_norm = |row: &mut [f32], x: &[f32]| match w {
            Some(w) => apply_norm(cx, norm, row, x, w),
            None => row.copy_from_slice(x),
        };
        if !output.weight.dtype().is_quantized() {
            normed.reset(rows.len(), dim, &[&output.weight]);
            normed.fill(cx, &|t, row| apply_norm(row, x(t)));
            cx.matmul(&[linear(logits, output, normed)]);
            rescale(logits, output);
            return;
        }
        normed.reset(2 * rows.len(), dim, &[&output.weight]);
        normed.fill(cx, &|t, row| {
            if t % 2 == 0 {
                apply_norm(row, x(t / 2));
            } else {
                let mut exact = vec![0.0; dim];
                apply_norm(&mut exact, x(t / 2));
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
