//! What recurrent steps share: a convolution over what a sequence remembers, and rates of decay.

use super::pass::Piece;
use crate::kernels::{Context, Conv, ConvWeights};
use crate::kv::LayerMemory;
use crate::weights::Floats;

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

/// What decays are made of: of each head `a`, below zero, and what is added to the time step.
pub fn rates(a: &Floats, dt: &Floats, log_decays: bool) -> Vec<(f32, f32)> {
    let a = a.numbers().iter().map(|a| if log_decays { -a.exp() } else { a });
    a.zip(dt.numbers().iter()).collect()
}

/// `ln(1 + exp(x))`
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// `1 / (1 + exp(-x))`
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
