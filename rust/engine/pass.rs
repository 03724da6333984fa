//! The forward pass, for a batch of tokens of some sequences: embedding, the layers, logits.
//!
//! Each step of a layer is a file beside this one. It is a region of the thread pool, or a plain loop where there is one
//! token. Every activation is quantised once, by the step that makes it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::experts::Chosen;
use super::latent::Latents;
use super::read_ahead::ReadAhead;
use super::{Engine, Span, Want};
use crate::arch::{Ffn, LayerConfig, Mixer};
use crate::error::{Error, Result};
use crate::kernels::activations::Activations;
use crate::kernels::matmul::Matmul;
use crate::kernels::{Context, Norm, Numbers};
use crate::quant;
use crate::tensor::TensorView;
use crate::threads::Disjoint;
use crate::weights::{FfnWeights, LayerWeights, Linear, MixerWeights, NormWeights};

/// The buffers of a pass; they grow to the largest batch that they have seen.
#[derive(Default)]
pub struct Buffers {
    pub x: Vec<f32>,               // (tokens, dim), the residual stream
    pub branch: Vec<f32>,          // (tokens, dim), what is added to it if that takes more than a product
    pub q: Vec<f32>,               // (tokens, n_heads * head_dim)
    pub q_and_gate: Vec<f32>,      // (tokens, n_heads, [q, gate], head_dim), of some attentions
    pub k: Vec<f32>,               // (tokens, n_kv_heads * head_dim)
    pub v: Vec<f32>,               // (tokens, n_kv_heads * value_dim)
    pub gate: Vec<f32>,            // (tokens, hidden_dim)
    pub up: Vec<f32>,              // (tokens, hidden_dim)
    pub turns: Vec<Vec<[f32; 2]>>, // of each rope: (tokens, pairs)
    pub normed: Activations,       // (tokens, dim)
    pub attended: Activations,     // (tokens, n_heads * value_dim)
    pub hidden: Activations,       // (tokens, hidden_dim)
    pub chosen: Chosen,            // of experts
    pub latents: Latents,          // of latent attention
    pub inputs: Vec<f32>,          // (tokens, channels), of a convolution
    pub convolved: Vec<f32>,       // (tokens, channels)
    pub fused: Vec<f32>,           // (tokens, ...), what one matrix of a recurrent layer gives for several uses
    pub alpha: Vec<f32>,           // (tokens, n_heads), decays
    pub beta: Vec<f32>,            // (tokens, n_heads), strengths
    pub linear: Vec<f32>,          // (tokens, n_heads * value_dim), of linear attention
    pub layer_inputs: Vec<f32>,    // (tokens, layers, layer_embedding_dim), see `layer_embedding`
    pub streams: Vec<f32>,         // (n_streams, tokens, dim), see `streams`
    pub modalities: Vec<f32>,      // (tokens, n_streams), what their router says
    pub laurel: Vec<f32>,          // (tokens, dim), what is added beside attention
    pub halves: Vec<f32>,          // see `head`
    pub parts: Vec<f32>,           // see `Attention`
}

/// The first `n` numbers of a buffer, which grows to have them. What they are is unspecified.
pub fn room(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        *buffer = vec![0.0; n]; // not `resize`: the old numbers are not wanted, and zeroed pages cost nothing
    }
    &mut buffer[..n]
}

/// A part of a span that is in this batch.
pub struct Piece<'p, 's> {
    pub span: &'p mut Span<'s>,
    pub range: Range<usize>, // of its tokens
    pub first: usize,        // the row of the first of them in the batch
}

impl Piece<'_, '_> {
    pub fn tokens(&self) -> &[u32] {
        &self.span.tokens[self.range.clone()]
    }

    /// The position of its first token.
    pub fn start(&self) -> usize {
        self.span.sequence.position() + self.range.start
    }

    /// The rows that are wanted, their logits or their vectors.
    pub fn wanted(&self) -> Range<usize> {
        let end = self.first + self.range.len();
        match self.span.want {
            Want::All | Want::Hidden => self.first..end,
            Want::Last | Want::LastHidden if self.range.end == self.span.tokens.len() => end - 1..end,
            Want::Last | Want::LastHidden | Want::Nothing => end..end,
        }
    }
}

/// One pass over a batch of `n` tokens, the rows.
pub struct Pass<'p, 's> {
    pub(super) engine: &'p Engine,
    pub(super) cx: &'p Context<'p>,
    pub(super) buffers: &'p mut Buffers,
    pub(super) pieces: Vec<Piece<'p, 's>>,
    pub(super) n: usize,
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

    /// Rows of logits or vectors that it gives.
    pub fn n_wanted(&self) -> usize {
        self.pieces.iter().map(|piece| piece.wanted().len()).sum()
    }

    /// Computes all of it. Writes keys and values to the sequences' blocks, and to `out` what is wanted.
    pub fn run(&mut self, out: &mut [f32]) -> Result<()> {
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
            self.layer(i, config, layer);
            engine.checkpoint.check_pages()?; // early: what is computed from zeros is thrown away in the end
            if self.cx.interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
        }
        if let Some(ahead) = &mut ahead {
            ahead.before_layer(weights.layers.len());
        }
        if let Some(weights) = &weights.widening {
            self.end_streams(weights);
        }
        self.head(out);
        if engine.experts_are_cold.load(Ordering::Relaxed) && !engine.expert_was_cold.swap(false, Ordering::Relaxed) {
            engine.experts_are_cold.store(false, Ordering::Relaxed);
        }
        if self.cx.interrupt.poll(0) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Token embeddings, and the angles of the positions.
    fn embed(&mut self, embedding: &TensorView, ahead: Option<&mut ReadAhead>) {
        let Buffers { x, .. } = &mut *self.buffers;
        let tokens: Vec<u32> = self.pieces.iter().flat_map(|piece| piece.tokens()).copied().collect();
        if let Some(ahead) = ahead {
            ahead.before_layer(0);
            ahead.before_embedding(embedding, &tokens);
            if let Some(of_layers) = &self.engine.weights.layer_embedding {
                ahead.before_embedding(&of_layers.tokens, &tokens);
            }
        }
        let engine = self.engine;
        let (cx, dim, scale, norm) = (self.cx, engine.config.dim, engine.config.embedding_scale, engine.config.norm);
        let positions: Vec<usize> = match &engine.weights.position_embedding {
            Some(_) => self.pieces.iter().flat_map(|piece| (0..piece.range.len()).map(|t| piece.start() + t)).collect(),
            None => Vec::new(),
        };
        let rows = Disjoint::new(room(x, self.n * dim));
        cx.each(self.n, &|t| {
            // SAFETY: each token has its own row.
            let x = unsafe { rows.slice(t * dim..(t + 1) * dim) };
            quant::dequantize(embedding.dtype(), embedding.row(tokens[t] as usize), x);
            if scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= scale);
            }
            let types = engine.weights.token_types.as_ref().map(|types| (types, 0));
            let position = engine.weights.position_embedding.as_ref().map(|positional| (positional, positions[t]));
            if types.is_some() || position.is_some() || engine.weights.embedding_norm.is_some() {
                let mut row = vec![0.0; dim];
                for (table, i) in types.into_iter().chain(position) {
                    quant::dequantize(table.dtype(), table.row(i), &mut row);
                    x.iter_mut().zip(&row).for_each(|(x, more)| *x += more);
                }
                if let Some(w) = &engine.weights.embedding_norm {
                    row.copy_from_slice(x);
                    apply_norm(cx, norm, x, &row, w);
                }
            }
        });
        if let Some(weights) = &self.engine.weights.layer_embedding {
            self.layer_inputs(weights, &tokens);
        }
        if let Some(weights) = &self.engine.weights.widening {
            self.begin_streams(weights);
        }

        let turns = &mut self.buffers.turns;
        turns.resize_with(self.engine.ropes.len(), Vec::new);
        for (rope, turns) in self.engine.ropes.iter().zip(turns) {
            turns.clear();
            for piece in &self.pieces {
                let context_length = piece.span.sequence.context_length();
                (0..piece.range.len()).for_each(|t| rope.turns(turns, piece.start() + t, context_length));
            }
        }
    }

    fn layer(&mut self, i: usize, config: &LayerConfig, layer: &LayerWeights) {
        if let Some(weights) = &layer.streams {
            self.predict_streams(weights, layer);
        }
        match (&config.mixer, &layer.mixer) {
            (Mixer::Attention(attention), MixerWeights::Attention(weights)) => {
                self.attention(i, attention, weights, config, layer);
            }
            (Mixer::DeltaNet(delta), MixerWeights::DeltaNet(weights)) => {
                self.delta_net(i, delta, weights, config, layer);
            }
            (Mixer::ShortConv(conv), MixerWeights::ShortConv(weights)) => {
                self.short_conv(i, conv, weights, config, layer);
            }
            (Mixer::Mamba(mamba), MixerWeights::Mamba(weights)) => self.mamba(i, mamba, weights, config, layer),
            (Mixer::AttentionAndMamba(attention, mamba), MixerWeights::AttentionAndMamba(of_attention, of_mamba)) => {
                self.attention(i, attention, of_attention, config, layer);
                self.mamba(i, mamba, of_mamba, config, layer);
            }
            (Mixer::Latent(attention, latent), MixerWeights::Latent(weights)) => {
                self.latent(i, attention, latent, weights, config, layer);
            }
            (
                Mixer::Attention(_)
                | Mixer::Latent(..)
                | Mixer::DeltaNet(_)
                | Mixer::ShortConv(_)
                | Mixer::Mamba(_)
                | Mixer::AttentionAndMamba(..),
                _,
            ) => unreachable!("weights are loaded as the config says"),
        }
        if layer.streams.is_some() {
            self.join_laurel();
        }
        match (&config.ffn, &layer.ffn) {
            (Ffn::Dense(dense), FfnWeights::Dense(weights)) => self.dense(dense, weights, config, layer),
            (Ffn::Experts(experts), FfnWeights::Experts(weights)) => self.experts(experts, weights, config, layer),
            (Ffn::Both(dense, experts), FfnWeights::Both(weights)) => {
                self.both((dense, experts), weights, config, layer);
            }
            (Ffn::Dense(_) | Ffn::Experts(_) | Ffn::Both(..), _) => {
                unreachable!("weights are loaded as the config says")
            }
        }
        match (&layer.streams, &layer.embedding) {
            (Some(weights), embedding) => self.correct_streams(i, weights, embedding.as_ref()),
            (None, Some(embedding)) => self.layer_embedding(i, embedding),
            (None, None) => {}
        }
        if let Some(scale) = layer.output_scale.as_ref().and_then(|scale| floats(scale).next()) {
            let n = self.n * self.engine.config.dim;
            self.buffers.x[..n].iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// What a branch starts from, ready for `consumers`: the residual stream behind a norm, if there is one.
    pub(super) fn normed(&mut self, w: Option<&NormWeights>, consumers: &[&TensorView]) {
        let Buffers { x, normed, .. } = &mut *self.buffers;
        let (cx, dim, norm) = (self.cx, self.engine.config.dim, self.engine.config.norm);
        normed.reset(self.n, dim, consumers);
        normed.fill(cx, &|t, row| {
            let x = &x[t * dim..(t + 1) * dim];
            match w {
                Some(w) => apply_norm(cx, norm, row, x, w),
                None => row.copy_from_slice(x),
            }
        });
    }
}

/// `out = norm(x)`
pub fn apply_norm(cx: &Context, norm: Norm, out: &mut [f32], x: &[f32], w: &NormWeights) {
    cx.kernels.norm(norm, out, x, Some(numbers(&w.weight)), w.bias.as_ref().map(numbers));
}

/// The numbers of a vector.
pub fn numbers(view: &TensorView) -> Numbers<'_> {
    Numbers::of(view).expect("vectors are floats: that was checked when they were found")
}

/// The numbers of a vector.
pub fn floats(view: &TensorView) -> impl Iterator<Item = f32> {
    numbers(view).iter()
}

/// `out = w x`, or `w x + b`. The scale of a matrix that has one is still to be multiplied with, see [`rescale`].
pub fn linear<'a>(out: &'a mut [f32], w: &'a Linear, x: &'a Activations) -> Matmul<'a> {
    product(out, &w.weight, w.bias.as_ref().filter(|_| w.scale.is_none()), x)
}

/// `out = w x`, or `w x + b`.
pub fn product<'a>(out: &'a mut [f32], w: &'a TensorView, bias: Option<&TensorView>, x: &'a Activations) -> Matmul<'a> {
    let Some(bias) = bias else { return Matmul::new(out, w, x) };
    for row in out.chunks_exact_mut(w.n_rows()) {
        for (out, bias) in row.iter_mut().zip(floats(bias)) {
            *out = bias;
        }
    }
    Matmul::add(out, w, x)
}

/// What [`linear`] leaves to be done.
pub fn rescale(out: &mut [f32], w: &Linear) {
    if w.scale.is_some() {
        scale_and_shift(out, w);
    }
}

/// Makes `scale * (w x) + b` of `w x`.
pub fn scale_and_shift(out: &mut [f32], w: &Linear) {
    let scale = w.scale.as_ref().and_then(|scale| floats(scale).next());
    for row in out.chunks_exact_mut(w.weight.n_rows()) {
        if let Some(scale) = scale {
            row.iter_mut().for_each(|out| *out *= scale);
        }
        if let Some(bias) = &w.bias {
            row.iter_mut().zip(floats(bias)).for_each(|(out, bias)| *out += bias);
        }
    }
}

/// Adds a branch to the residual stream.
pub struct Add<'a> {
    cx: &'a Context<'a>,
    norm: Norm,
    after: Option<&'a NormWeights>,
    scale: f32,
    sum: Option<&'a NormWeights>,
    sum_again: Option<&'a NormWeights>,
}

impl<'a> Add<'a> {
    /// Adds what a mixer gives.
    pub fn mixer(cx: &'a Context<'a>, norm: Norm, config: &LayerConfig, layer: &'a LayerWeights) -> Self {
        let ([sum, sum_again], scale) = (layer.mixer_sums.each_ref().map(Option::as_ref), config.residual_scale);
        Self { cx, norm, after: layer.after_mixer.as_ref(), scale, sum, sum_again }
    }

    /// Adds what a feed-forward network gives.
    pub fn ffn(cx: &'a Context<'a>, norm: Norm, config: &LayerConfig, layer: &'a LayerWeights) -> Self {
        let (after, sum) = (layer.after_ffn.as_ref(), layer.ffn_sum.as_ref());
        Self { cx, norm, after, scale: config.residual_scale, sum, sum_again: None }
    }

    /// Adds what comes out of a norm.
    pub fn normed(cx: &'a Context<'a>, norm: Norm, after: &'a NormWeights) -> Self {
        Self { cx, norm, after: Some(after), scale: 1.0, sum: None, sum_again: None }
    }

    /// `x += scale * norm(w from)`, and the norms of the sum.
    pub fn product(&self, x: &mut [f32], branch: &mut Vec<f32>, w: &Linear, from: &Activations) {
        let plain = self.after.is_none() && self.sum.is_none() && self.scale == 1.0;
        if plain && w.bias.is_none() && w.scale.is_none() {
            return self.cx.matmul(&[Matmul::add(x, &w.weight, from)]);
        }
        let branch = room(branch, x.len());
        self.cx.matmul(&[linear(branch, w, from)]);
        rescale(branch, w);
        self.rows(x, branch, w.weight.n_rows());
    }

    /// `x += scale * norm(branch)`, rows of `dim`, and the norms of the sum.
    pub fn rows(&self, x: &mut [f32], branch: &[f32], dim: usize) {
        let rows = Disjoint::new(x);
        self.cx.each(branch.len() / dim, &|t| {
            // SAFETY: each token has its own row.
            let x = unsafe { rows.slice(t * dim..(t + 1) * dim) };
            let branch = &branch[t * dim..(t + 1) * dim];
            let add = |x: &mut [f32], branch: &[f32]| {
                x.iter_mut().zip(branch).for_each(|(x, branch)| *x += self.scale * branch);
            };
            let before = self.sum_again.map(|w| (w, x.to_vec()));
            match self.after {
                Some(w) => {
                    let mut normed = vec![0.0; dim];
                    apply_norm(self.cx, self.norm, &mut normed, branch, w);
                    add(x, &normed);
                }
                None => add(x, branch),
            }
            if let Some(w) = self.sum {
                let sum = x.to_vec();
                apply_norm(self.cx, self.norm, x, &sum, w);
            }
            if let Some((w, mut sum)) = before {
                sum.iter_mut().zip(&*x).for_each(|(sum, x)| *sum += x);
                apply_norm(self.cx, self.norm, x, &sum, w);
            }
        });
    }
}
