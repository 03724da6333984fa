//! The forward pass of a transformer, for a batch of tokens of one session.
//!
//! Each step is a region of the thread pool, or a plain loop where there is one token. Names of the steps follow the
//! weights: attention norm, queries, keys and values, rotation, attention, output; feed-forward norm, gate and up,
//! SwiGLU, down. Every activation is quantised once, by the step that makes it.

use super::kv_cache::KvCache;
use super::read_ahead::ReadAhead;
use super::rope::Rope;
use super::{Config, Weights};
use crate::error::{Error, Result};
use crate::kernels::activations::{Activations, RowsMut};
use crate::kernels::matmul::{Matmul, any_quantized, matmul};
use crate::kernels::{Attention, Kernels};
use crate::mapping::Mapping;
use crate::quant;
use crate::tensor::TensorView;
use crate::threads::{self, Disjoint, Interrupt, Queue};

/// What computes: kernels, workers, and whether to stop.
pub struct Context<'a> {
    pub kernels: &'static dyn Kernels,
    pub threads: usize,
    pub interrupt: &'a Interrupt<'a>,
    pub mapping: &'a Mapping,
}

/// The buffers of a session; they grow to the largest batch that it has seen.
#[derive(Default)]
pub struct Buffers {
    x: Vec<f32>,           // (tokens, dim), the residual stream
    q: Vec<f32>,           // (tokens, n_heads * head_dim)
    k: Vec<f32>,           // (tokens, n_kv_heads * head_dim)
    v: Vec<f32>,           // (tokens, n_kv_heads * head_dim)
    gate: Vec<f32>,        // (tokens, hidden_dim)
    up: Vec<f32>,          // (tokens, hidden_dim)
    turns: Vec<[f32; 2]>,  // (tokens, rope_dim / 2)
    normed: Activations,   // (tokens, dim)
    attended: Activations, // (tokens, n_heads * head_dim)
    hidden: Activations,   // (tokens, hidden_dim)
    halves: Vec<f32>,      // (2 * HEAD_BATCH, vocab_size), see `head`
    parts: Vec<f32>,       // (tokens * n_heads, n_parts, head_dim + 2), see `Attention`
}

impl Buffers {
    fn reset(&mut self, config: &Config, tokens: usize) {
        let &Config { dim, hidden_dim, n_heads, n_kv_heads, head_dim, .. } = config;
        let grow = |buffer: &mut Vec<f32>, width: usize| {
            if buffer.len() < tokens * width {
                *buffer = vec![0.0; tokens * width];
            }
        };
        grow(&mut self.x, dim);
        grow(&mut self.q, n_heads * head_dim);
        grow(&mut self.k, n_kv_heads * head_dim);
        grow(&mut self.v, n_kv_heads * head_dim);
        grow(&mut self.gate, hidden_dim);
        grow(&mut self.up, hidden_dim);
        self.attended.reset(tokens, n_heads * head_dim);
        self.hidden.reset(tokens, hidden_dim);
    }
}

/// Computes `tokens` at the positions from `start` on: writes their keys and values to `cache` and the logits of the
/// last `logits.len() / vocab_size` of them to `logits`.
#[allow(clippy::too_many_arguments)] // the blueprint, the weights and the state, as in llama2.c
pub fn forward(
    cx: &Context,
    config: &Config,
    weights: &Weights,
    rope: &Rope,
    cache: &mut KvCache,
    buffers: &mut Buffers,
    ahead: &mut ReadAhead,
    tokens: &[u32],
    start: usize,
    logits: &mut [f32],
) -> Result<()> {
    let &Config { dim, hidden_dim, n_heads, n_kv_heads, head_dim, norm_eps, vocab_size, .. } = config;
    let (n, kv_type) = (tokens.len(), cache.dtype());
    buffers.reset(config, n);
    let _busy = threads::busy();
    let Buffers { x, q, k, v, gate, up, turns, normed, attended, hidden, halves, parts } = buffers;
    rope.turns(turns, start, n);
    let n_parts = Attention::parts_for(n_heads, n_kv_heads, start, n);
    if n_parts > 1 {
        parts.resize(n * n_heads * n_parts * (head_dim + 2), 0.0);
    }

    // token embeddings
    let embedding = &weights.token_embedding;
    ahead.before_layer(0);
    ahead.before_embedding(embedding, tokens);
    let rows = Disjoint::new(x);
    each(cx, n, &|t| {
        // SAFETY: each token has its own row.
        let x = unsafe { rows.slice(t * dim..(t + 1) * dim) };
        quant::dequantize(embedding.dtype(), embedding.row(tokens[t] as usize), x);
    });

    for (i, layer) in weights.layers.iter().enumerate() {
        ahead.before_layer(i);

        // attention norm; queries, keys and values
        norm(cx, normed, &x[..n * dim], &layer.attn_norm, norm_eps, &[&layer.wq, &layer.wk, &layer.wv]);
        matmul(
            cx.kernels,
            cx.threads,
            cx.interrupt,
            &[Matmul::new(q, &layer.wq, normed), Matmul::new(k, &layer.wk, normed), Matmul::new(v, &layer.wv, normed)],
        );

        // rotation; keys and values to the cache
        let pairs = config.rope_dim / 2;
        let (q_rows, k_rows) = (Disjoint::new(q), Disjoint::new(k));
        each(cx, n, &|t| {
            let turns = &turns[t * pairs..(t + 1) * pairs];
            for (rows, heads) in [(&q_rows, n_heads), (&k_rows, n_kv_heads)] {
                // SAFETY: each token has its own row.
                let row = unsafe { rows.slice(t * heads * head_dim..(t + 1) * heads * head_dim) };
                for head in row.chunks_exact_mut(head_dim) {
                    cx.kernels.rope(&mut head[..2 * pairs], turns);
                }
            }
        });
        for t in 0..n {
            for head in 0..n_kv_heads {
                let at = (t * n_kv_heads + head) * head_dim;
                let (k_slot, v_slot) = cache.slot(i, head, start + t);
                cx.kernels.round_to(kv_type, k_slot, &k[at..at + head_dim]);
                cx.kernels.round_to(kv_type, v_slot, &v[at..at + head_dim]);
            }
        }

        // attention
        let (k_cache, v_cache) = cache.layer(i);
        let job = Attention {
            q: &q[..n * n_heads * head_dim],
            k: k_cache,
            v: v_cache,
            kv_type,
            out: Disjoint::new(attended.x_mut()),
            parts: Disjoint::new(parts),
            n_heads,
            n_kv_heads,
            head_dim,
            capacity: cache.capacity,
            start,
            n_parts,
        };
        // SAFETY: each task is run once; merged when all are done.
        each(cx, job.n_tasks(n), &|i| unsafe { cx.kernels.attention(&job, job.task(i, n)) });
        if n_parts > 1 {
            // SAFETY: the tasks are done.
            unsafe { job.merge(n) };
        }
        let rows = attended.rows();
        quantize(cx, n, &rows, &layer.wo);
        matmul(cx.kernels, cx.threads, cx.interrupt, &[Matmul::add(x, &layer.wo, attended)]);

        // feed-forward norm; gate and up
        norm(cx, normed, &x[..n * dim], &layer.ffn_norm, norm_eps, &[&layer.w_gate, &layer.w_up]);
        matmul(
            cx.kernels,
            cx.threads,
            cx.interrupt,
            &[Matmul::new(gate, &layer.w_gate, normed), Matmul::new(up, &layer.w_up, normed)],
        );

        // SwiGLU; down
        let rows = hidden.rows();
        let quantized = layer.w_down.dtype().is_quantized();
        each(cx, n, &|t| {
            let range = t * hidden_dim..(t + 1) * hidden_dim;
            // SAFETY: each token has its own row.
            unsafe {
                cx.kernels.swiglu(rows.x(t, 0..hidden_dim), &gate[range.clone()], &up[range]);
                if quantized {
                    rows.quantize(cx.kernels, t);
                }
            }
        });
        matmul(cx.kernels, cx.threads, cx.interrupt, &[Matmul::add(x, &layer.w_down, hidden)]);

        cx.mapping.check_pages()?; // early: what is computed from zeros is thrown away in the end
        if cx.interrupt.poll(0) {
            return Err(Error::Interrupted);
        }
    }

    // output norm and logits, of the tokens that are asked for
    ahead.before_layer(weights.layers.len());
    let wanted = logits.len() / vocab_size;
    for (i, logits) in logits.chunks_mut(HEAD_BATCH * vocab_size).enumerate() {
        let first = n - wanted + i * HEAD_BATCH;
        let x = &x[first * dim..][..logits.len() / vocab_size * dim];
        head(cx, normed, halves, logits, x, weights, norm_eps);
    }
    if cx.interrupt.poll(0) {
        return Err(Error::Interrupted);
    }
    Ok(())
}

/// Tokens whose logits are computed together.
const HEAD_BATCH: usize = 32;

/// Logits of the tokens whose residual stream is `x`.
///
/// The logits feel the rounding of the activations directly: a quarter of the whole model's error was theirs. So the
/// rounding error is quantised as well, as a second row, and its product added: some 16 bits, and the weights are
/// read once for both.
fn head(
    cx: &Context,
    normed: &mut Activations,
    halves: &mut Vec<f32>,
    logits: &mut [f32],
    x: &[f32],
    weights: &Weights,
    eps: f32,
) {
    let (w, output) = (&weights.output_norm, &weights.output);
    let (dim, vocab_size) = (w.row_len(), output.n_rows());
    if !output.dtype().is_quantized() {
        norm(cx, normed, x, w, eps, &[output]);
        matmul(cx.kernels, cx.threads, cx.interrupt, &[Matmul::new(logits, output, normed)]);
        return;
    }
    let n = x.len() / dim;
    normed.reset(2 * n, dim);
    let rows = normed.rows();
    each(cx, n, &|t| {
        // SAFETY: each token has its own two rows.
        unsafe {
            let row = rows.x(2 * t, 0..dim);
            cx.kernels.rms_norm(row, &x[t * dim..(t + 1) * dim], &w.bytes(), eps);
            rounding_errors(rows.x(2 * t + 1, 0..dim), row);
            rows.quantize(cx.kernels, 2 * t);
            rows.quantize(cx.kernels, 2 * t + 1);
        }
    });
    if halves.len() < 2 * n * vocab_size {
        *halves = vec![0.0; 2 * n * vocab_size];
    }
    matmul(cx.kernels, cx.threads, cx.interrupt, &[Matmul::new(halves, output, normed)]);
    for (logits, pair) in logits.chunks_exact_mut(vocab_size).zip(halves.chunks_exact(2 * vocab_size)) {
        let (row, errors) = pair.split_at(vocab_size);
        for ((out, a), b) in logits.iter_mut().zip(row).zip(errors) {
            *out = a + b;
        }
    }
}

/// What quantising `x` in groups of 32 rounds off, see [`crate::kernels::activations::QuantizedRow`].
fn rounding_errors(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.chunks_exact_mut(32).zip(x.chunks_exact(32)) {
        let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let (d, inverse) = (max / 127.0, if max > 0.0 { 127.0 / max } else { 0.0 });
        for (out, x) in out.iter_mut().zip(x) {
            *out = x - d * (x * inverse).round_ties_even();
        }
    }
}

/// Calls `f` for `0..n`, shared out among the workers.
fn each(cx: &Context, n: usize, f: &(dyn Fn(usize) + Sync)) {
    let threads = cx.threads.min(n);
    let queue = Queue::new(n, 1, threads);
    threads::run(threads, &|worker| {
        queue.run(worker, |chunk| {
            for i in chunk {
                if !cx.interrupt.poll(worker) {
                    f(i);
                }
            }
        });
    });
}

/// `out[t] = rms_norm(x[t], w)`, quantised if one of `consumers` wants that.
fn norm(cx: &Context, out: &mut Activations, x: &[f32], w: &TensorView, eps: f32, consumers: &[&TensorView]) {
    let dim = w.row_len();
    let n = x.len() / dim;
    out.reset(n, dim);
    let quantized = any_quantized(consumers);
    let rows = out.rows();
    each(cx, n, &|t| {
        // SAFETY: each token has its own row.
        unsafe {
            cx.kernels.rms_norm(rows.x(t, 0..dim), &x[t * dim..(t + 1) * dim], &w.bytes(), eps);
            if quantized {
                rows.quantize(cx.kernels, t);
            }
        }
    });
}

/// Quantises all rows if `consumer` wants that.
fn quantize(cx: &Context, n: usize, rows: &RowsMut, consumer: &TensorView) {
    if consumer.dtype().is_quantized() {
        // SAFETY: each token has its own row.
        each(cx, n, &|t| unsafe { rows.quantize(cx.kernels, t) });
    }
}
