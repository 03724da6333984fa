//! Keeps tokens by their probability relative to that of the most likely one (Nguyen et al., "Turning up the heat:
//! min-p sampling", 2024).

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct MinP(f32);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.min_p > 0.0 { Some(Box::new(MinP(params.min_p))) } else { None }
}

impl Step for MinP {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.keep_ratio(self.0);
    }
}
