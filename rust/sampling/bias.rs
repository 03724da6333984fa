//! Bias: what is added to the logits of single tokens, before anything else.

use super::{Candidates, SamplingParams, Step};

#[derive(Debug)]
struct Bias(Vec<(u32, f32)>);

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    let bias = &params.logit_bias;
    if bias.is_empty() { None } else { Some(Box::new(Bias(bias.clone()))) }
}

impl Step for Bias {
    fn apply(&self, candidates: &mut Candidates, _tokens: &[u32]) {
        let logits = candidates.logits_mut();
        for &(id, bias) in &self.0 {
            logits.get_mut(id as usize).into_iter().for_each(|x| *x += bias);
        }
    }
}
