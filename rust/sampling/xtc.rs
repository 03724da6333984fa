//! XTC, "exclude top choices": now and then the likeliest tokens are taken away, where several are likely enough to go on
//! well (p-e-w, 2024).

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct Xtc {
    probability: f32,
    threshold: f32,
}

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    let &SamplingParams { xtc_probability: probability, xtc_threshold: threshold, .. } = params;
    // No two tokens have more than half of the probability each.
    if probability > 0.0 && threshold <= 0.5 { Some(Box::new(Xtc { probability, threshold })) } else { None }
}

impl Step for Xtc {
    fn apply(&self, candidates: &mut Candidates, _history: &History, rng: &mut Rng) {
        if candidates.count() >= 2 && rng.next_f64() < f64::from(self.probability) {
            candidates.drop_top(self.threshold);
        }
    }
}
