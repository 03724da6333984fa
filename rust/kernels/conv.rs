//! Causal depthwise convolution: each channel is a weighted sum of its own last few inputs.
//!
//! The inputs before a span are given as rows, like those of its tokens, so a token is computed in one way wherever the
//! span begins: its own row and those of the positions before it, the oldest first.
//!
//! Taps lie beside each other in the file, channels beside each other in a row: the taps of a tile of channels are turned
//! once and used for all tokens of the span.

use std::ops::Range;

use super::vector::{One, Vector, exp};
use super::{Context, Numbers};
use crate::threads::Disjoint;

/// Most taps of a convolution.
pub const MAX_TAPS: usize = 8;
/// Channels of a task: its taps and a few rows of it stay in the L1 cache.
const TILE: usize = 256;

/// What a convolution computes with.
#[derive(Clone, Copy)]
pub struct ConvWeights<'a> {
    /// `(channels, n_taps)`; the last tap is that of the token itself.
    pub taps: Numbers<'a>,
    /// `(channels)`
    pub bias: Option<Numbers<'a>>,
    /// Taps of a channel.
    pub n_taps: usize,
    /// Whether `x / (1 + exp(-x))` follows.
    pub silu: bool,
}

/// A convolution of the tokens of some spans, which follow one another in `out`, `(tokens, channels)`.
pub struct Conv<'a> {
    weights: ConvWeights<'a>,
    n_taps: usize,
    channels: usize,
    spans: Vec<Vec<&'a [f32]>>,
    first: Vec<usize>, // the first token of each span in the batch
    out: Disjoint<'a, f32>,
}

impl<'a> Conv<'a> {
    /// A span is its rows of inputs, `channels` each: those of the `taps - 1` positions before it, then its tokens'.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn new(weights: ConvWeights<'a>, spans: Vec<Vec<&'a [f32]>>, out: &'a mut [f32]) -> Self {
        let n_taps = weights.n_taps;
        assert!((1..=MAX_TAPS).contains(&n_taps) && weights.taps.len().is_multiple_of(n_taps), "taps");
        let channels = weights.taps.len() / n_taps;
        assert!(weights.bias.is_none_or(|bias| bias.len() == channels), "bias");
        assert!(spans.iter().flatten().all(|row| row.len() == channels), "rows of inputs");
        let mut first = Vec::with_capacity(spans.len());
        let mut tokens = 0;
        for span in &spans {
            assert!(span.len() >= n_taps, "a span of no tokens");
            first.push(tokens);
            tokens += span.len() - (n_taps - 1);
        }
        assert!(out.len() == tokens * channels, "results of {tokens} tokens");
        Self { weights, n_taps, channels, spans, first, out: Disjoint::new(out) }
    }

    /// Computes it. When the interrupt says stop, the results are incomplete.
    pub fn run(&self, cx: &Context) {
        let n = self.spans.len() * self.channels.div_ceil(TILE);
        // SAFETY: each task is run once, and no two write the same results.
        cx.each(n, &|i| unsafe { cx.kernels.conv(self, i) });
    }
}

/// Task `i`: a tile of channels of a span.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - No other worker runs the same task.
#[inline(always)]
pub unsafe fn conv<V: Vector>(job: &Conv, i: usize) {
    let tiles = job.channels.div_ceil(TILE);
    let (span, start) = (i / tiles, i % tiles * TILE);
    let end = job.channels.min(start + TILE);
    let n = end - start;
    let mut rows = [0.0f32; TILE * MAX_TAPS];
    let rows = &mut rows[..n * job.n_taps];
    job.weights.taps.part(start * job.n_taps..end * job.n_taps).read(rows);
    let mut taps = [[0.0f32; TILE]; MAX_TAPS];
    for (channel, row) in rows.chunks_exact(job.n_taps).enumerate() {
        for (taps, tap) in taps.iter_mut().zip(row) {
            taps[channel] = *tap;
        }
    }
    let mut bias = [0.0f32; TILE];
    if let Some(numbers) = job.weights.bias {
        numbers.part(start..end).read(&mut bias[..n]);
    }
    let whole = n - n % V::LANES;
    for (t, rows) in job.spans[span].windows(job.n_taps).enumerate() {
        let at = (job.first[span] + t) * job.channels;
        // SAFETY: these results are the task's own, by the caller's promise.
        let out = unsafe { job.out.slice(at + start..at + end) };
        let (silu, taps) = (job.weights.silu, &taps[..job.n_taps]);
        // SAFETY: the rows have `channels` numbers, `start + n` is at most so many; taps, bias and results have `n`. Which
        // channels are done in registers follows from the channel alone.
        unsafe {
            token::<V>(out, rows, start, taps, &bias, silu, 0..whole);
            token::<One>(out, rows, start, taps, &bias, silu, whole..n);
        }
    }
}

/// Some channels of a tile for one token, in whole registers.
///
/// # Safety
/// - The CPU has the features of `V`.
/// - `range` is whole registers of `out`, and from `start` on of each of `rows`; at most [`TILE`] numbers.
#[inline(always)]
unsafe fn token<V: Vector>(
    out: &mut [f32],
    rows: &[&[f32]],
    start: usize,
    taps: &[[f32; TILE]],
    bias: &[f32; TILE],
    silu: bool,
    range: Range<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for x in range.step_by(V::LANES) {
            let mut sum = V::load(bias.as_ptr().add(x));
            for (taps, row) in taps.iter().zip(rows) {
                sum = V::load(taps.as_ptr().add(x)).mul_add(V::load(row.as_ptr().add(start + x)), sum);
            }
            if silu {
                sum = sum.div(V::splat(1.0).add(exp(V::splat(0.0).sub(sum))));
            }
            sum.store(out.as_mut_ptr().add(x));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernels;
    use crate::mapping::{Bytes, Mapping};
    use crate::quant::DType;
    use crate::sampling::Rng;
    use crate::tensor::TensorView;
    use crate::threads::Interrupt;

    fn view(numbers: &[f32]) -> TensorView {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let map = Mapping::from_vec(bytes, Path::new("test"));
        TensorView::new(Bytes::new(&map, 0..4 * numbers.len()).unwrap(), DType::F32, &[numbers.len()]).unwrap()
    }

    #[test]
    fn each_channel_is_a_sum_of_its_own_last_inputs() {
        let interrupt = Interrupt::never();
        let mut rng = Rng::new(1);
        let mut random = |n: usize| (0..n).map(|_| (rng.next_f64() * 4.0 - 2.0) as f32).collect::<Vec<_>>();
        for (n_taps, channels, tokens, biased, silu) in
            [(4, 600, 9, true, true), (3, 37, 2, false, false), (1, 16, 1, true, false), (8, 256, 20, false, true)]
        {
            let (taps, bias, rows) =
                (random(n_taps * channels), random(channels), random((n_taps - 1 + tokens) * channels));
            let (taps_view, bias_view) = (view(&taps), view(&bias));
            let (of_taps, of_bias) = (Numbers::of(&taps_view).unwrap(), Numbers::of(&bias_view).unwrap());
            let weights = ConvWeights { taps: of_taps, bias: biased.then_some(of_bias), n_taps, silu };
            let rows: Vec<&[f32]> = rows.chunks_exact(channels).collect();
            for kernels in kernels::all() {
                let cx = Context { kernels, threads: 2, interrupt: &interrupt, observer: None, adapted: &[] };
                let mut out = vec![0.0; tokens * channels];
                Conv::new(weights, vec![rows.clone()], &mut out).run(&cx);
                for t in 0..tokens {
                    // A token alone has the same bits, beside another span as well.
                    let mut alone = vec![0.0; 2 * channels];
                    let span = rows[t..t + n_taps].to_vec();
                    Conv::new(weights, vec![rows[..n_taps].to_vec(), span], &mut alone).run(&cx);
                    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert!(
                        bits(&alone[channels..]) == bits(&out[t * channels..(t + 1) * channels]),
                        "{}",
                        kernels.name()
                    );
                    for c in 0..channels {
                        let sum = (0..n_taps).map(|j| f64::from(taps[c * n_taps + j]) * f64::from(rows[t + j][c]));
                        let sum = sum.sum::<f64>() + if biased { f64::from(bias[c]) } else { 0.0 };
                        let expected = if silu { sum / (1.0 + (-sum).exp()) } else { sum };
                        let got = f64::from(out[t * channels + c]);
                        assert!((got - expected).abs() < 1e-5, "{} {t} {c}: {got} and {expected}", kernels.name());
                    }
                }
            }
        }
    }
}
