//! Penalties: tokens that were there lately become less likely.

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct Penalties {
    last_n: usize,
    repeat: f32,
    presence: f32,
    frequency: f32,
}

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    let &SamplingParams { repeat_last_n, repeat_penalty, presence_penalty, frequency_penalty, .. } = params;
    if repeat_last_n == 0 || (repeat_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0) {
        return None;
    }
    Some(Box::new(Penalties {
        last_n: usize::try_from(repeat_last_n).unwrap_or(usize::MAX),
        repeat: repeat_penalty,
        presence: presence_penalty,
        frequency: frequency_penalty,
    }))
}

impl Step for Penalties {
    fn apply(&self, candidates: &mut Candidates, history: &History, _rng: &mut Rng) {
        let mut latest = history.last(self.last_n).to_vec();
        latest.sort_unstable();
        let counts: Vec<(u32, f32)> = latest.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as f32)).collect();
        candidates.change(&counts, |x, count| {
            let x = if x > 0.0 { x / self.repeat } else { x * self.repeat };
            x - (self.presence + count * self.frequency)
        });
    }
}
