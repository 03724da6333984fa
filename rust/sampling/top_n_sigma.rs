//! Keeps the tokens whose logit is less than some standard deviations below the largest: where many are alike, the noise
//! goes (Tang et al., "Top-n sigma: not all logits are you need", 2024).

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct TopNSigma(f32);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.top_n_sigma > 0.0 { Some(Box::new(TopNSigma(params.top_n_sigma))) } else { None }
}

impl Step for TopNSigma {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.keep_deviations(self.0);
    }
}
