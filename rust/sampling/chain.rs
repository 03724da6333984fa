//! The chain: which steps there are, and in which order.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::candidates::Buffers;
use super::{Candidates, Rng, SamplingParams, bias, min_p, penalties, temperature, top_k, top_p};
use crate::error::Result;

/// A step between logits and a draw.
pub trait Step: std::fmt::Debug + Send + Sync {
    /// Changes logits, or cuts. `tokens` are those so far, latest last.
    fn apply(&self, candidates: &mut Candidates, tokens: &[u32]);
}

/// Makes a step if the parameters ask for it: one that would change nothing is not in the chain.
type Maker = fn(&SamplingParams) -> Option<Box<dyn Step>>;

/// Steps that change logits.
const CHANGES: [Maker; 2] = [bias::step, penalties::step];

/// Steps that cut, and the temperature. None of them takes away the most likely token.
const CUTS: [Maker; 4] = [top_k::step, top_p::step, min_p::step, temperature::step];

/// Chooses tokens. Keeps its random numbers and its buffers from one token to the next.
///
/// ```
/// use llama_rs::{Sampler, SamplingParams};
///
/// let mut sampler = Sampler::new(SamplingParams { seed: Some(7), ..Default::default() })?;
/// let token = sampler.sample(&[0.1, 2.0, -1.0, 1.9], &[]).expect("at least one logit is a number");
/// assert!(token == 1 || token == 3);
/// # Ok::<(), llama_rs::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    steps: Arc<[Box<dyn Step>]>,
    is_greedy: bool,
    has_seed: bool,
    rng: Rng,
    buffers: Buffers,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for a parameter out of its range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.check()?;
        let is_greedy = params.temperature == 0.0;
        let cuts: &[Maker] = if is_greedy { &[] } else { &CUTS };
        let steps = CHANGES.iter().chain(cuts).filter_map(|make| make(&params)).collect();
        // The standard library's hash keys are the operating system's random numbers.
        let seed = params.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        let has_seed = params.seed.is_some();
        Ok(Self { steps, is_greedy, has_seed, rng: Rng::new(seed), buffers: Buffers::default() })
    }

    /// The seed, given or drawn: with it the same text can be had again.
    pub fn seed(&self) -> u64 {
        self.rng.seed()
    }

    /// The random numbers to come.
    pub fn rng(&self) -> &Rng {
        &self.rng
    }

    /// Goes on with the random numbers of an answer before, unless a seed was given.
    pub fn resume(&mut self, rng: &Rng) {
        if !self.has_seed {
            self.rng = rng.clone();
        }
    }

    /// Chooses a token. `tokens` are those so far, latest last, for the penalties.
    ///
    /// Logits that are NaN or minus infinity are never chosen. `None` if there are no others, as a
    /// damaged weight makes them.
    pub fn sample(&mut self, logits: &[f32], tokens: &[u32]) -> Option<u32> {
        let mut candidates = Candidates::new(logits, &mut self.buffers);
        for step in &*self.steps {
            step.apply(&mut candidates, tokens);
        }
        if self.is_greedy { candidates.most_likely() } else { candidates.draw(&mut self.rng) }
    }
}
