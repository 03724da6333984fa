//! Reading a cold file in the order in which a forward pass needs it.
//!
//! A pass over a file that is not in memory waits for the disk anyway; what can be had is that the disk never waits for
//! the pass. Before each layer of the first pass of a session, the layers after it are asked for, some way ahead, and the
//! first token comes while the last layers are still being read. Of the embedding only the rows of the tokens are read.
//!
//! A warm file is found out by a few samples of each layer: some microseconds, once a session.

use std::ops::Range;

use super::Weights;
use crate::mapping::{Mapping, page_size};
use crate::tensor::TensorView;

/// How far ahead of the pass the file is asked for, in bytes: enough that the disk always has something to do, and
/// little enough that none of it is dropped again before it is used.
const WINDOW: usize = 96 << 20;

/// Pages of a range that are looked at before it is taken to be in memory.
const SAMPLES: usize = 8;

/// What is still to be asked for.
pub struct ReadAhead {
    steps: Vec<Step>, // in the order of the pass
    next: usize,
}

struct Step {
    layer: usize,
    range: Range<usize>,
    before: usize, // bytes of all steps before it
}

impl ReadAhead {
    /// Everything that a pass reads, in its order.
    pub fn new(weights: &Weights) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        let mut add = |layer: usize, tensors: &[&TensorView]| {
            let mut ranges: Vec<_> = tensors.iter().map(|t| t.bytes.range()).collect();
            ranges.sort_by_key(|range| range.start);
            for range in ranges {
                match steps.last_mut() {
                    // Only padding between the two: one range.
                    Some(last) if last.layer == layer && range.start.wrapping_sub(last.range.end) < page_size() => {
                        last.range.end = range.end;
                    }
                    last => {
                        let before = last.map_or(0, |last| last.before + last.range.len());
                        steps.push(Step { layer, range, before });
                    }
                }
            }
        };
        for (i, layer) in weights.layers.iter().enumerate() {
            add(i, &[&layer.attn_norm, &layer.wq, &layer.wk, &layer.wv, &layer.wo]);
            add(i, &[&layer.ffn_norm, &layer.w_gate, &layer.w_up, &layer.w_down]);
        }
        add(weights.layers.len(), &[&weights.output_norm, &weights.output]);
        Self { steps, next: 0 }
    }

    /// To be called before `layer` is computed; the output counts as one more layer.
    pub fn before_layer(&mut self, mapping: &Mapping, layer: usize) {
        if self.next == self.steps.len() {
            return;
        }
        let here = self.steps.iter().find(|step| step.layer >= layer).map_or(0, |step| step.before);
        while let Some(step) = self.steps.get(self.next).filter(|step| step.before < here + WINDOW) {
            if !seems_resident(mapping, &step.range) {
                mapping.will_need(step.range.clone());
            }
            self.next += 1;
        }
    }
}

/// To be called before the rows of `tokens` are read: only they are, and all at once.
pub fn before_embedding(mapping: &Mapping, embedding: &TensorView, tokens: &[u32]) {
    let (start, len) = (embedding.bytes.offset(), embedding.row_bytes());
    for &token in tokens {
        let row = start + token as usize * len;
        if mapping.resident(row..row + len) < len {
            mapping.will_need(row..row + len);
        }
    }
}

fn seems_resident(mapping: &Mapping, range: &Range<usize>) -> bool {
    let last = range.len().saturating_sub(1);
    (0..SAMPLES).all(|i| {
        let at = range.start + last / (SAMPLES - 1) * i;
        mapping.resident(at..at + 1) == 1
    })
}
