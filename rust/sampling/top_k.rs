//! Keeps a number of the most likely tokens.

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct TopK(usize);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.top_k > 0 { Some(Box::new(TopK(params.top_k))) } else { None }
}

impl Step for TopK {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.keep_most_likely(self.0);
    }
}
