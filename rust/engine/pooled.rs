//! What becomes of the vector of a text: matrices after pooling, and classifiers.

use super::Engine;
use super::pass::{apply_norm, linear, rescale};
use crate::arch::Activation;
use crate::error::{Error, Result};
use crate::kernels::Context;
use crate::kernels::activations::Activations;
use crate::mapping::guarded;
use crate::threads::{self, Interrupt};
use crate::weights::Linear;

impl Engine {
    /// Whether there is a classifier.
    pub fn has_classifier(&self) -> bool {
        let w = &self.weights.pooled;
        w.classifier.is_some() || w.classifier_output.is_some()
    }

    /// Length of the vector of a token.
    pub fn dim(&self) -> usize {
        self.config.dim
    }

    /// Length of what [`Engine::project`] gives.
    pub fn projected_dim(&self) -> usize {
        let last = [&self.weights.pooled.dense_3, &self.weights.pooled.dense_2].into_iter().flatten().next();
        last.map_or(self.config.dim, |w| w.weight.n_rows())
    }

    /// Numbers that [`Engine::classify`] gives of each vector.
    pub fn n_labels(&self) -> usize {
        let last =
            [&self.weights.pooled.classifier_output, &self.weights.pooled.classifier].into_iter().flatten().next();
        last.map_or(0, |w| w.weight.n_rows())
    }

    /// What the file makes of pooled vectors, `(n, dim)`: as many, maybe of another length. Most files leave them as they
    /// are.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Changed`].
    pub fn project(&self, mut x: Vec<f32>, threads: usize, interrupt: &Interrupt) -> Result<Vec<f32>> {
        let w = &self.weights.pooled;
        self.with_context(threads, interrupt, |cx| {
            for w in [&w.dense_2, &w.dense_3].into_iter().flatten() {
                x = product(cx, w, &x);
            }
            x
        })
    }

    /// What the classifier says of pooled vectors, `(n, dim)`: `(n, n_labels)`.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Changed`].
    pub fn classify(&self, mut x: Vec<f32>, threads: usize, interrupt: &Interrupt) -> Result<Vec<f32>> {
        let (w, ranking) = (&self.weights.pooled, self.config.ranking);
        self.with_context(threads, interrupt, |cx| {
            if let Some(w) = &w.classifier {
                x = product(cx, w, &x);
                if ranking.gelu {
                    let before = x.clone();
                    cx.kernels.activate(Activation::Gelu, &mut x, &before, None);
                } else {
                    x.iter_mut().for_each(|x| *x = x.tanh());
                }
            }
            if let Some(w) = &w.classifier_norm {
                for row in x.chunks_exact_mut(w.weight.row_len()) {
                    let before = row.to_vec();
                    apply_norm(cx, self.config.norm, row, &before, w);
                }
            }
            if let Some(w) = &w.classifier_output {
                x = product(cx, w, &x);
                if ranking.softmax {
                    x.chunks_exact_mut(w.weight.n_rows()).for_each(softmax);
                }
            }
            x
        })
    }

    fn with_context<T>(&self, threads: usize, interrupt: &Interrupt, work: impl FnOnce(&Context) -> T) -> Result<T> {
        let (_busy, _guarded) = (threads::busy(), guarded());
        let done = work(&Context { kernels: self.kernels, threads, interrupt, observer: None, adapted: &[] });
        self.checkpoint.check()?;
        if interrupt.poll(0) { Err(Error::Interrupted) } else { Ok(done) }
    }
}

/// `w x + b` of each row.
fn product(cx: &Context, w: &Linear, x: &[f32]) -> Vec<f32> {
    let n = w.weight.row_len();
    let mut rows = Activations::default();
    rows.reset(x.len() / n, n, &[&w.weight]);
    rows.fill(cx, &|t, row| row.copy_from_slice(&x[t * n..(t + 1) * n]));
    let mut out = vec![0.0; x.len() / n * w.weight.n_rows()];
    cx.matmul(&[linear(&mut out, w, &rows)]);
    rescale(&mut out, w);
    out
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}
