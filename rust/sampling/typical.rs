//! Keeps the tokens whose surprise is nearest to the expected one, up to a share of the probability: the likeliest may go
//! too (Meister et al., "Locally typical sampling", 2022).

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct Typical(f32);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.typical_p < 1.0 { Some(Box::new(Typical(params.typical_p))) } else { None }
}

impl Step for Typical {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.keep_typical(self.0);
    }
}
