//! The matmul driver: which way through a matrix, and which worker does which rows.

use std::ops::Range;

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
    pub(super) tokens: Range<usize>,   // those of `x` that are multiplied
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
        Self::of(out, w, x, 0..x.tokens())
    }

    /// The same for some of the tokens: `out` has their results alone.
    ///
    /// # Panics
    /// As [`Matmul::new`], and if there are no such tokens.
    pub fn of(out: &'a mut [f32], w: &'a TensorView, x: &'a Activations, tokens: Range<usize>) -> Self {
        let (n, rows) = (x.n(), w.n_rows());
        assert!(w.row_len() == n, "a matmul of rows of {} with rows of {n}", w.row_len());
        assert!(tokens.start <= tokens.end && tokens.end <= x.tokens(), "tokens {tokens:?} of {}", x.tokens());
        let results = tokens.len().checked_mul(rows);
        assert!(
            results.is_some_and(|results| results <= out.len()),
            "room for {} results of a matmul of {rows} rows with {} tokens",
            out.len(),
            tokens.len()
        );
        assert!(x.is_ready_for(w), "activations that are not ready for {}", w.dtype());
        Self { w, x, tokens, out: Disjoint::new(out), rows, accumulate: false }
    }

    /// `out += w x`.
    ///
    /// # Panics
    /// As [`Matmul::new`].
    pub fn add(out: &'a mut [f32], w: &'a TensorView, x: &'a Activations) -> Self {
        Self::new(out, w, x).adding()
    }

    /// The same, but added to what is there.
    pub fn adding(self) -> Self {
        Self { accumulate: true, ..self }
    }

    /// `out += w x` to some tokens of what another job has written, for matrices of as many rows; `x` has those tokens alone.
    ///
    /// # Safety
    /// - The job is done, and nobody else reads or writes its results for these tokens while this one lives.
    ///
    /// # Panics
    /// As [`Matmul::new`], and if the job has no such tokens or rows.
    pub(super) unsafe fn more(job: &'a Matmul, tokens: Range<usize>, w: &'a TensorView, x: &'a Activations) -> Self {
        assert!(w.n_rows() == job.rows && x.tokens() == tokens.len(), "a product for the same rows and tokens");
        assert!(w.row_len() == x.n() && x.is_ready_for(w), "activations that fit, and are ready for {}", w.dtype());
        // SAFETY: the caller's promise.
        let out = unsafe { job.out_of(tokens) };
        Self { w, x, tokens: 0..x.tokens(), out, rows: job.rows, accumulate: true }
    }

    /// The results for some tokens.
    ///
    /// # Safety
    /// - The job is done, and nobody else reads or writes these results while they are borrowed.
    ///
    /// # Panics
    /// If the job has no such tokens.
    pub(super) unsafe fn out_of<'b>(&'b self, tokens: Range<usize>) -> Disjoint<'b, f32> {
        assert!(self.tokens.start <= tokens.start && tokens.end <= self.tokens.end, "tokens of the job");
        let at = |t: usize| (t - self.tokens.start) * self.rows;
        // SAFETY: the caller's promise.
        Disjoint::new(unsafe { self.out.slice(at(tokens.start)..at(tokens.end)) })
    }

    /// Where the result of token `t` and row `r` is; those of the next rows follow.
    ///
    /// # Panics
    /// If there is no such token or row: once per tile, so that no kernel starts to write where it must not.
    #[inline(always)]
    pub(super) fn at(&self, t: usize, r: usize) -> *mut f32 {
        assert!(self.tokens.contains(&t) && r < self.rows);
        self.out.as_ptr((t - self.tokens.start) * self.rows + r)
    }

    fn strips(&self) -> usize {
        self.rows.div_ceil(STRIP)
    }
}

/// Runs the products of one region on the workers.
pub(super) fn matmul(cx: &Context, jobs: &[Matmul]) {
    let &Context { kernels, threads, interrupt, .. } = cx;
    assert!(jobs.iter().all(|job| job.x.are_of(kernels)), "activations that {} quantized", kernels.name());
    // A unit of work is a strip of rows, and for a batch a block of tokens; the strips of a block come one after another.
    let is_batch = |job: &Matmul| job.tokens.len() >= kernels.strip_tokens();
    let units_of =
        |job: &Matmul| job.strips() * if is_batch(job) { job.tokens.len().div_ceil(STRIP_TOKENS_MAX) } else { 1 };
    let units: usize = jobs.iter().map(units_of).sum();
    if units == 0 {
        return;
    }
    let row_bytes = jobs[0].w.row_bytes().max(1);
    let grain = (GRAIN_BYTES / (STRIP * row_bytes)).clamp(1, units);
    let any_batch = jobs.iter().any(is_batch);
    let queue = if any_batch { Queue::new(units, 1, threads) } else { Queue::mostly_fixed(units, grain, threads) };
    threads::run(threads, &|worker| {
        queue.run(worker, |chunk| {
            let mut at = chunk.start;
            while at < chunk.end && !interrupt.poll(worker) {
                let (mut job, mut unit) = (&jobs[0], at);
                for next in &jobs[1..] {
                    if unit < units_of(job) {
                        break;
                    }
                    unit -= units_of(job);
                    job = next;
                }
                let (block, strip, batch) = (unit / job.strips(), unit % job.strips(), is_batch(job));
                // As many strips of the same matrix as the chunk has; one at a time for a batch, to look up often.
                let count = if batch { 1 } else { (chunk.end - at).min(job.strips() - strip) };
                let rows = strip * STRIP..((strip + count) * STRIP).min(job.rows);
                // SAFETY: rows and tokens are there; the queue hands out each unit once, and units do not overlap.
                unsafe {
                    if batch {
                        let first = job.tokens.start + block * STRIP_TOKENS_MAX;
                        kernels.strip(job, rows, first..(first + STRIP_TOKENS_MAX).min(job.tokens.end));
                    } else {
                        kernels.rows(job, rows);
                    }
                }
                at += count;
            }
        });
    });
}
