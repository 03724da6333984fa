//! Divides the logits: how far the probabilities are apart. A dynamic temperature is higher where the model is less sure
//! (Zhu et al., "Hot or cold? Adaptive temperature sampling for code generation", 2024, and llama.cpp).

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct Temperature(f32);

#[derive(Debug)]
struct Dynamic {
    least: f32,
    most: f32,
    exponent: f32,
}

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    let &SamplingParams { temperature, dynatemp_range: range, dynatemp_exponent: exponent, .. } = params;
    if range > 0.0 {
        return Some(Box::new(Dynamic { least: (temperature - range).max(0.0), most: temperature + range, exponent }));
    }
    if temperature != 1.0 { Some(Box::new(Temperature(temperature))) } else { None }
}

impl Step for Temperature {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        candidates.set_temperature(self.0);
    }
}

impl Step for Dynamic {
    fn apply(&self, candidates: &mut Candidates, _history: &History, _rng: &mut Rng) {
        let count = candidates.count();
        if count < 2 {
            return;
        }
        // 0 where one token is certain, 1 where all are equally likely.
        let unsure = (candidates.entropy() / (count as f64).ln()) as f32;
        let temperature = self.least + (self.most - self.least) * unsure.powf(self.exponent);
        if temperature > 0.0 {
            candidates.set_temperature(temperature);
        } else {
            candidates.keep_most_likely(1);
        }
    }
}
