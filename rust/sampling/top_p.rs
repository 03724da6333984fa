//! Keeps the most likely tokens whose probabilities add up to a share (Holtzman et al., "The curious case of
//! neural text degeneration", 2020).

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct TopP(f32);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.top_p < 1.0 { Some(Box::new(TopP(params.top_p))) } else { None }
}

impl Step for TopP {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.keep_mass(self.0);
    }
}
