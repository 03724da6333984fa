//! The matmul driver: which way through a matrix, and which worker does which rows.

use super::Kernels;
use super::activations::Activations;
use crate::tensor::TensorView;
use crate::threads::{self, Disjoint, Interrupt, Queue};

/// Rows of a strip: what is unpacked at a time for a batch.
pub const STRIP: usize = 32;

/// Tokens that share an unpacked strip: their int8 rows stay in the L2 cache.
const STRIP_TOKENS_MAX: usize = 512;

/// Rows are handed out by at least so many bytes: about a microsecond.
const GRAIN_BYTES: usize = 16 << 10;

/// A matrix product: `out[t][r] = w[r] . x[t]`, or `+=`.
pub struct Matmul<'a> {
    /// The matrix, `n` numbers a row.
    pub w: &'a TensorView, // (rows, n)
    /// The rows to multiply with, `n` numbers each; quantised if `w` is.
    pub x: &'a Activations, // (tokens, n)
    /// The results of token `t` start at `t * out_stride`.
    pub out: Disjoint<'a, f32>, // (tokens, rows)
    /// From one token of `out` to the next.
    pub out_stride: usize,
    /// Add to what is there.
    pub accumulate: bool,
}

impl<'a> Matmul<'a> {
    /// `out = w x`, with the rows of `out` packed.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn new(out: &'a mut [f32], w: &'a TensorView, x: &'a Activations) -> Self {
        let out_stride = w.n_rows();
        assert!(w.row_len() == x.n() && out.len() >= x.tokens() * out_stride, "shapes of a matmul");
        Self { w, x, out: Disjoint::new(out), out_stride, accumulate: false }
    }

    /// `out += w x`.
    pub fn add(out: &'a mut [f32], w: &'a TensorView, x: &'a Activations) -> Self {
        Self { accumulate: true, ..Self::new(out, w, x) }
    }

    /// Sets, or adds to, the result of row `r` and token `t`.
    ///
    /// # Safety
    /// - `t` and `r` are in range, and no other worker writes the same result.
    #[inline(always)]
    pub unsafe fn write(&self, t: usize, r: usize, value: f32) {
        // SAFETY: in range, and the caller's own.
        unsafe {
            let out = self.out.as_ptr(0).add(t * self.out_stride + r);
            *out = if self.accumulate { *out + value } else { value };
        }
    }
}

/// Runs the products of one region, all of them with the same number of tokens, on `threads` workers.
///
/// When the interrupt says stop, the results are incomplete.
pub fn matmul(kernels: &dyn Kernels, threads: usize, interrupt: &Interrupt, jobs: &[Matmul]) {
    let tokens = jobs[0].x.tokens();
    let strips = |job: &Matmul| job.w.n_rows().div_ceil(STRIP);
    let total: usize = jobs.iter().map(strips).sum();
    let batch = tokens >= kernels.strip_tokens();
    let blocks = tokens.div_ceil(STRIP_TOKENS_MAX);
    // A unit of work is a strip of rows and a block of tokens; the strips of a block come one after another.
    let units = total * blocks;
    let row_bytes = jobs[0].w.row_bytes().max(1);
    let grain = (GRAIN_BYTES / (STRIP * row_bytes)).clamp(1, total);
    let queue = if batch { Queue::new(units, 1, threads) } else { Queue::mostly_fixed(units, grain, threads) };
    threads::run(threads, &|worker| {
        queue.run(worker, |chunk| {
            let mut at = chunk.start;
            while at < chunk.end && !interrupt.poll(worker) {
                let (block, mut strip) = (at / total, at % total);
                let mut job = &jobs[0];
                for next in &jobs[1..] {
                    if strip < strips(job) {
                        break;
                    }
                    strip -= strips(job);
                    job = next;
                }
                // As many strips of the same matrix as the chunk has; one at a time for a batch, to look up often.
                let count = if batch { 1 } else { (chunk.end - at).min(strips(job) - strip) };
                let rows = strip * STRIP..((strip + count) * STRIP).min(job.w.n_rows());
                // SAFETY: the queue hands out each unit once, and units do not overlap.
                unsafe {
                    if batch {
                        let first = block * STRIP_TOKENS_MAX;
                        kernels.strip(job, rows, first..(first + STRIP_TOKENS_MAX).min(tokens));
                    } else {
                        kernels.rows(job, rows);
                    }
                }
                at += count;
            }
        });
    });
}

/// Whether any of the matrices needs its activations quantised.
pub fn any_quantized(weights: &[&TensorView]) -> bool {
    weights.iter().any(|w| w.dtype().is_quantized())
}
