//! The matmul driver: which way through a matrix, and which worker does which rows.

use super::Context;
use super::activations::Activations;
use crate::tensor::TensorView;
use crate::threads::{self, Disjoint, Queue};

/// Rows of a strip: what is unpacked at a time for a batch.
pub(super) const STRIP: usize = 32;

/// Tokens that share an unpacked strip: their int8 rows stay in the L2 cache.
const STRIP_TOKENS_MAX: usize = 512;

/// Rows are handed out by at least so many bytes: about a microsecond.
const GRAIN_BYTES: usize = 16 << 10;

/// A matrix product: `out[t][r] = w[r] . x[t]`, or `+=`.
///
/// The kernels go by pointers and rely on what [`Matmul::new`] compares; nobody else makes one.
pub struct Matmul<'a> {
    pub(super) w: &'a TensorView,      // (rows, n)
    pub(super) x: &'a Activations,     // (tokens, n)
    pub(super) out: Disjoint<'a, f32>, // (tokens, rows)
    pub(super) rows: usize,
    pub(super) accumulate: bool,
}

impl<'a> Matmul<'a> {
    /// `out = w x`: `out` is `(tokens, rows)`, packed, and may be longer.
    ///
    /// # Panics
    /// If the shapes do not fit, or if `x` is not ready for matrices like `w` (see [`Activations::reset`]).
    pub fn new(out: &'a mut [f32], w: &'a TensorView, x: &'a Activations) -> Self {
        let (n, rows, tokens) = (x.n(), w.n_rows(), x.tokens());
        assert!(w.row_len() == n, "a matmul of rows of {} with rows of {n}", w.row_len());
        let results = tokens.checked_mul(rows);
        assert!(
            results.is_some_and(|results| results <= out.len()),
            "room for {} results of a matmul of {rows} rows with {tokens} tokens",
            out.len()
        );
        assert!(x.is_ready_for(w), "activations that are not ready for {}", w.dtype());
        Self { w, x, out: Disjoint::new(out), rows, accumulate: false }
    }

    /// `out += w x`.
    ///
    /// # Panics
    /// As [`Matmul::new`].
    pub fn add(out: &'a mut [f32], w: &'a TensorView, x: &'a Activations) -> Self {
        Self { accumulate: true, ..Self::new(out, w, x) }
    }

    /// Where the result of token `t` and row `r` is; those of the next rows follow.
    ///
    /// # Panics
    /// If there is no such token or row: once per tile, so that no kernel starts to write where it must not.
    #[inline(always)]
    pub(super) fn at(&self, t: usize, r: usize) -> *mut f32 {
        assert!(t < self.x.tokens() && r < self.rows);
        self.out.as_ptr(t * self.rows + r)
    }
}

/// Runs the products of one region, all of them with the same number of tokens, on the workers.
pub(super) fn matmul(cx: &Context, jobs: &[Matmul]) {
    let &Context { kernels, threads, interrupt } = cx;
    let Some(first) = jobs.first() else { return };
    let tokens = first.x.tokens();
    assert!(jobs.iter().all(|job| job.x.tokens() == tokens), "products with as many tokens each");
    assert!(jobs.iter().all(|job| job.x.are_of(kernels)), "activations that {} quantized", kernels.name());
    let strips = |job: &Matmul| job.rows.div_ceil(STRIP);
    let total: usize = jobs.iter().map(strips).sum();
    let batch = tokens >= kernels.strip_tokens();
    let blocks = tokens.div_ceil(STRIP_TOKENS_MAX);
    // A unit of work is a strip of rows and a block of tokens; the strips of a block come one after another.
    let units = total * blocks;
    let row_bytes = first.w.row_bytes().max(1);
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
                let rows = strip * STRIP..((strip + count) * STRIP).min(job.rows);
                // SAFETY: rows and tokens are there; the queue hands out each unit once, and units do not overlap.
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
