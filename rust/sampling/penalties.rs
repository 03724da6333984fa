//! Penalties: tokens that were there lately become less likely.

use super::{Candidates, SamplingParams, Step};

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
        last_n: repeat_last_n,
        repeat: repeat_penalty,
        presence: presence_penalty,
        frequency: frequency_penalty,
    }))
}

impl Step for Penalties {
    fn apply(&self, candidates: &mut Candidates, tokens: &[u32]) {
        let mut latest = tokens[tokens.len().saturating_sub(self.last_n)..].to_vec();
        latest.sort_unstable();
        let logits = candidates.logits_mut();
        for same in latest.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(same[0] as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / self.repeat } else { *logit * self.repeat };
            *logit -= self.presence + same.len() as f32 * self.frequency;
        }
    }
}
