//! What recurrent steps share: a convolution over what a sequence remembers, and rates of decay.

use super::pass::Piece;
use crate::kernels::{Context, Conv, ConvWeights};
use crate::kv::LayerMemory;

/// The convolution of a layer over the batch, whose inputs are the rows that `row` gives; they are remembered. Gives what
/// the layer has of each sequence.
pub fn convolve<'p, 'r>(
    cx: &Context,
    pieces: &'p mut [Piece],
    layer: usize,
    weights: ConvWeights,
    row: &dyn Fn(usize) -> &'r [f32],
    out: &mut [f32],
) -> Vec<LayerMemory<'p>> {
    let first: Vec<usize> = pieces.iter().map(|piece| piece.first).collect();
    let memories = pieces.iter_mut().map(|piece| piece.span.sequence.memory(layer));
    let mut memories: Vec<LayerMemory> = memories.collect();
    let spans = memories.iter().zip(&first).map(|(memory, first)| memory.inputs(|t| row(first + t)));
    Conv::new(weights, spans.collect(), out).run(cx);
    for (memory, first) in memories.iter_mut().zip(first) {
        memory.remember_inputs(|t| row(first + t));
    }
    memories
}

/// The rates of a layer's heads: `(a, b)` of each, `a` below zero.
pub fn rates(a: &[u8], dt: &[u8], log_decays: bool) -> Vec<(f32, f32)> {
    let numbers = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<_>>();
    let a = numbers(a).into_iter().map(|a| if log_decays { -a.exp() } else { a });
    a.zip(numbers(dt)).collect()
}

/// `ln(1 + exp(x))`
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// `1 / (1 + exp(-x))`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
