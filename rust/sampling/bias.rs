//! Bias: what is added to the logits of single tokens, before anything else.

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct Bias(Vec<(u32, f32)>);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    let mut bias = params.logit_bias.clone();
    bias.sort_by_key(|(id, _)| *id);
    if bias.is_empty() { None } else { Some(Box::new(Bias(bias))) }
}

impl Step for Bias {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.change(&self.0, |x, bias| x + bias);
    }
}
