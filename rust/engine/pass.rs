//! The forward pass of a transformer, for a batch of tokens of some sequences.
//!
//! Each step is a region of the thread pool, or a plain loop where there is one token. Names of the steps follow the
//! weights: attention norm, queries, keys and values, rotation, attention, output; feed-forward norm, gate and up,
//! SwiGLU, down. Every activation is quantised once, by the step that makes it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::read_ahead::ReadAhead;
use super::{Engine, Span, Want};
use crate::arch::{Activation, AttentionConfig, Ffn, Mixer};
use crate::error::{Error, Result};
use crate::kernels::activations::Activations;
use crate::kernels::matmul::Matmul;
use crate::kernels::{Attention, AttentionSpan, BLOCK, Context};
use crate::quant;
use crate::tensor::TensorView;
use crate::threads::Disjoint;
use crate::weights::{LayerWeights, Weights};

/// The buffers of a pass; they grow to the largest batch that they have seen.
#[derive(Default)]
pub struct Buffers {
    x: Vec<f32>,               // (tokens, dim), the residual stream
    q: Vec<f32>,               // (tokens, n_heads * head_dim)
    k: Vec<f32>,               // (tokens, n_kv_heads * head_dim)
    v: Vec<f32>,               // (tokens, n_kv_heads * head_dim)
    gate: Vec<f32>,            // (tokens, hidden_dim)
    up: Vec<f32>,              // (tokens, hidden_dim)
    turns: Vec<Vec<[f32; 2]>>, // of each rope: (tokens, pairs)
    normed: Activations,       // (tokens, dim)
    attended: Activations,     // (tokens, n_heads * head_dim)
    hidden: Activations,       // (tokens, hidden_dim)
    halves: Vec<f32>,          // (2 * HEAD_BATCH, vocab_size), see `head`
    parts: Vec<f32>,           // see `Attention`
}

/// The first `n` numbers of a buffer, which grows to have them. What they are is unspecified.
fn room(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        *buffer = vec![0.0; n]; // not `resize`: the old numbers are not wanted, and zeroed pages cost nothing
    }
    &mut buffer[..n]
}

/// A part of a span that is in this batch.
struct Piece<'p, 's> {
    span: &'p mut Span<'s>,
    range: Range<usize>, // of its tokens
    first: usize,        // the row of the first of them in the batch
}

impl Piece<'_, '_> {
    fn tokens(&self) -> &[u32] {
        &self.span.tokens[self.range.clone()]
    }

    /// The position of its first token.
    fn start(&self) -> usize {
        self.span.sequence.position() + self.range.start
    }

    /// The rows whose logits are wanted.
    fn wanted(&self) -> Range<usize> {
        let end = self.first + self.range.len();
        match self.span.want {
            Want::All => self.first..end,
            Want::Last if self.range.end == self.span.tokens.len() => end - 1..end,
            Want::Last | Want::Nothing => end..end,
        }
    }
}

/// One pass over a batch of `n` tokens, the rows.
pub struct Pass<'p, 's> {
    engine: &'p Engine,
    cx: &'p Context<'p>,
    buffers: &'p mut Buffers,
    pieces: Vec<Piece<'p, 's>>,
    n: usize,
}

impl<'p, 's> Pass<'p, 's> {
    /// A pass over parts of some spans, `(span, tokens)`; the spans have room for them.
    pub fn new(
        engine: &'p Engine,
        cx: &'p Context<'p>,
        buffers: &'p mut Buffers,
        spans: &'p mut [Span<'s>],
        parts: &[(usize, Range<usize>)],
    ) -> Self {
        let mut n = 0;
        let mut pieces = Vec::with_capacity(parts.len());
        for (span, (i, range)) in spans.iter_mut().zip(parts) {
            debug_assert!(*i == pieces.len(), "a part of each span");
            let first = n;
            n += range.len();
            pieces.push(Piece { span, range: range.clone(), first });
        }
        Self { engine, cx, buffers, pieces, n }
    }

    /// Rows of logits that it gives.
    pub fn n_wanted(&self) -> usize {
        self.pieces.iter().map(|piece| piece.wanted().len()).sum()
    }

    /// Computes all of it. Writes keys and values to the sequences' blocks, and the logits of the rows that want them.
    pub fn run(&mut self, logits: &mut [f32]) -> Result<()> {
        let engine = self.engine;
        let weights = &engine.weights;
        // A second pass at the same time does not read ahead: the first does, for both.
        let mut ahead = engine.ahead.try_lock().ok();
        if let Some(ahead) = ahead.as_mut().filter(|_| engine.expect_cold.swap(false, Ordering::Relaxed)) {
            ahead.restart();
        }

        self.embed(&weights.token_embedding, ahead.as_deref_mut());
        for (i, (config, layer)) in engine.config.layers.iter().zip(&weights.layers).enumerate() {
            if let Some(ahead) = &mut ahead {
                ahead.before_layer(i);
            }
            match &config.mixer {
                Mixer::Attention(attention) => self.attention(i, attention, layer),
            }
            self.feed_forward(&config.ffn, layer);
            engine.checkpoint.check_pages()?; // early: what is computed from zeros is thrown away in the end
            if self.cx.interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
        }
        if let Some(ahead) = &mut ahead {
            ahead.before_layer(weights.layers.len());
        }
        self.head(weights, logits);
        if self.cx.interrupt.poll(0) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Token embeddings, and the angles of the positions.
    fn embed(&mut self, embedding: &TensorView, ahead: Option<&mut ReadAhead>) {
        let Buffers { x, turns, .. } = &mut *self.buffers;
        let tokens: Vec<u32> = self.pieces.iter().flat_map(|piece| piece.tokens()).copied().collect();
        if let Some(ahead) = ahead {
            ahead.before_layer(0);
            ahead.before_embedding(embedding, &tokens);
        }
        let dim = self.engine.config.dim;
        let rows = Disjoint::new(room(x, self.n * dim));
        self.cx.each(self.n, &|t| {
            // SAFETY: each token has its own row.
            let x = unsafe { rows.slice(t * dim..(t + 1) * dim) };
            quant::dequantize(embedding.dtype(), embedding.row(tokens[t] as usize), x);
        });

        turns.resize_with(self.engine.ropes.len(), Vec::new);
        for (rope, turns) in self.engine.ropes.iter().zip(turns) {
            turns.clear();
            for piece in &self.pieces {
                (0..piece.range.len()).for_each(|t| rope.turns(turns, piece.start() + t));
            }
        }
    }

    /// `x += wo attention(norm(x))`
    fn attention(&mut self, i: usize, config: &AttentionConfig, layer: &LayerWeights) {
        let &AttentionConfig { n_heads, n_kv_heads, head_dim, rope } = config;
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let (cx, n, dim) = (self.cx, self.n, self.engine.config.dim);
        let Buffers { x, q, k, v, turns, normed, attended, parts, .. } = &mut *self.buffers;
        let (x, q, k, v) = (room(x, n * dim), room(q, n * q_dim), room(k, n * kv_dim), room(v, n * kv_dim));

        // attention norm; queries, keys and values
        norm(cx, normed, x, &layer.attn_norm, self.engine.config.norm_eps, &[&layer.wq, &layer.wk, &layer.wv]);
        cx.matmul(&[
            linear(q, &layer.wq, layer.bq.as_ref(), normed),
            linear(k, &layer.wk, layer.bk.as_ref(), normed),
            linear(v, &layer.wv, layer.bv.as_ref(), normed),
        ]);

        // rotation
        let (turns, rope) = (&turns[rope], &self.engine.ropes[rope]);
        let (q_rows, k_rows) = (Disjoint::new(q), Disjoint::new(k));
        cx.each(n, &|t| {
            let turns = &turns[t * rope.pairs()..(t + 1) * rope.pairs()];
            for (rows, width) in [(&q_rows, q_dim), (&k_rows, kv_dim)] {
                // SAFETY: each token has its own row.
                let row = unsafe { rows.slice(t * width..(t + 1) * width) };
                for head in row.chunks_exact_mut(head_dim) {
                    cx.kernels.rope(&mut head[..2 * rope.pairs()], turns, rope.style());
                }
            }
        });

        // keys and values to their blocks: a block is one worker's
        let layout = std::sync::Arc::clone(self.pieces[0].span.sequence.layout());
        let (heads, at) = (layout.heads(i), layout.at(i));
        let mut blocks = Vec::new(); // (the block, its first slot to write, rows)
        for piece in &mut self.pieces {
            let (start, mut row, end) = (piece.start(), piece.first, piece.first + piece.range.len());
            let last = start + piece.range.len();
            for (b, block) in (start / BLOCK..).zip(piece.span.sequence.blocks_mut(start / BLOCK, last.div_ceil(BLOCK)))
            {
                let slot = start.saturating_sub(b * BLOCK);
                let rows = row..end.min(row + BLOCK - slot);
                row = rows.end;
                blocks.push((block, slot, rows));
            }
        }
        let n_blocks = blocks.len();
        let blocks = Disjoint::new(&mut blocks);
        cx.each(n_blocks, &|b| {
            // SAFETY: each block is one worker's.
            let [(block, slot, rows)] = (unsafe { blocks.slice(b..b + 1) }) else { unreachable!("one block") };
            for (t, slot) in rows.clone().zip(*slot..) {
                let row = t * kv_dim..(t + 1) * kv_dim;
                cx.kernels.store_kv(heads, &mut block[at.clone()], slot, &k[row.clone()], Some(&v[row]));
            }
        });

        // attention; output
        attended.reset(n, q_dim, &[&layer.wo]);
        let spans = self.pieces.iter().map(|piece| {
            let (start, tokens) = (piece.start(), piece.range.len());
            let blocks = piece.span.sequence.blocks(start + tokens).map(|block| &block[at.clone()]).collect();
            AttentionSpan { tokens, start, blocks }
        });
        Attention::new(heads, q, spans.collect(), attended.x_mut(), parts).run(cx);
        attended.finish(cx);
        cx.matmul(&[Matmul::add(x, &layer.wo, attended)]);
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&mut self, config: &Ffn, layer: &LayerWeights) {
        let &Ffn { hidden_dim, activation } = config;
        let (cx, n, dim) = (self.cx, self.n, self.engine.config.dim);
        let Buffers { x, gate, up, normed, hidden, .. } = &mut *self.buffers;
        let (x, gate, up) = (room(x, n * dim), room(gate, n * hidden_dim), room(up, n * hidden_dim));

        norm(cx, normed, x, &layer.ffn_norm, self.engine.config.norm_eps, &[&layer.w_gate, &layer.w_up]);
        cx.matmul(&[Matmul::new(gate, &layer.w_gate, normed), Matmul::new(up, &layer.w_up, normed)]);

        hidden.reset(n, hidden_dim, &[&layer.w_down]);
        hidden.fill(cx, &|t, row| {
            let range = t * hidden_dim..(t + 1) * hidden_dim;
            match activation {
                Activation::Silu => cx.kernels.swiglu(row, &gate[range.clone()], &up[range]),
            }
        });
        cx.matmul(&[Matmul::add(x, &layer.w_down, hidden)]);
    }

    /// Output norm and logits, of the rows that are asked for.
    fn head(&mut self, weights: &Weights, logits: &mut [f32]) {
        let vocab_size = self.engine.config.vocab_size;
        let wanted: Vec<usize> = self.pieces.iter().flat_map(Piece::wanted).collect();
        for (rows, logits) in wanted.chunks(HEAD_BATCH).zip(logits.chunks_mut(HEAD_BATCH * vocab_size)) {
            self.logits_of(rows, weights, logits);
        }
    }

    /// Logits of some rows, `(rows, vocab_size)`.
    ///
    /// The logits feel the rounding of the activations directly: a quarter of the whole model's error was theirs. So the
    /// rounding error is quantised as well, as a second row, and its product added: some 16 bits, and the weights are
    /// read once for both.
    fn logits_of(&mut self, rows: &[usize], weights: &Weights, logits: &mut [f32]) {
        let (w, output) = (&weights.output_norm, &weights.output);
        let (cx, dim, eps) = (self.cx, self.engine.config.dim, self.engine.config.norm_eps);
        let Buffers { x, normed, halves, .. } = &mut *self.buffers;
        let x = |i: usize| &x[rows[i] * dim..(rows[i] + 1) * dim];
        if !output.dtype().is_quantized() {
            normed.reset(rows.len(), dim, &[output]);
            normed.fill(cx, &|t, row| cx.kernels.rms_norm(row, x(t), w.bytes(), eps));
            cx.matmul(&[Matmul::new(logits, output, normed)]);
            return;
        }
        normed.reset(2 * rows.len(), dim, &[output]);
        normed.fill(cx, &|t, row| {
            if t % 2 == 0 {
                cx.kernels.rms_norm(row, x(t / 2), w.bytes(), eps);
            } else {
                let mut exact = vec![0.0; dim];
                cx.kernels.rms_norm(&mut exact, x(t / 2), w.bytes(), eps);
                rounding_errors(row, &exact);
            }
        });
        let vocab_size = output.n_rows();
        let halves = room(halves, 2 * rows.len() * vocab_size);
        cx.matmul(&[Matmul::new(halves, output, normed)]);
        for (logits, pair) in logits.chunks_exact_mut(vocab_size).zip(halves.chunks_exact(2 * vocab_size)) {
            let (row, errors) = pair.split_at(vocab_size);
            for ((out, a), b) in logits.iter_mut().zip(row).zip(errors) {
                *out = a + b;
            }
        }
    }
}

/// Tokens whose logits are computed together.
const HEAD_BATCH: usize = 32;

/// `out = w x`, or `b + w x`.
fn linear<'a>(out: &'a mut [f32], w: &'a TensorView, bias: Option<&TensorView>, x: &'a Activations) -> Matmul<'a> {
    let Some(bias) = bias else { return Matmul::new(out, w, x) };
    for row in out.chunks_exact_mut(w.n_rows()) {
        for (out, bias) in row.iter_mut().zip(bias.bytes().as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bias);
        }
    }
    Matmul::add(out, w, x)
}

/// `out[t] = rms_norm(x[t], w)`, ready for `consumers`.
fn norm(cx: &Context, out: &mut Activations, x: &[f32], w: &TensorView, eps: f32, consumers: &[&TensorView]) {
    let dim = w.row_len();
    out.reset(x.len() / dim, dim, consumers);
    out.fill(cx, &|t, row| cx.kernels.rms_norm(row, &x[t * dim..(t + 1) * dim], w.bytes(), eps));
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
