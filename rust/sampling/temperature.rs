//! Divides the logits: how far the probabilities are apart.

use super::{Candidates, SamplingParams, Step};

#[derive(Debug)]
struct Temperature(f32);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.temperature != 1.0 { Some(Box::new(Temperature(params.temperature))) } else { None }
}

impl Step for Temperature {
    fn apply(&self, candidates: &mut Candidates, _tokens: &[u32]) {
        candidates.set_temperature(self.0);
    }
}
