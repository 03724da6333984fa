//! The chain: which steps there are, and in which order.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::candidates::Buffers;
use super::mirostat::Mirostat;
use super::{
    Candidates, Rng, SamplingParams, bias, dry, min_p, penalties, temperature, top_k, top_n_sigma, top_p, typical, xtc,
};
use crate::error::Result;

/// What a choice may depend on besides the logits.
pub struct History<'a> {
    /// The tokens so far, latest last.
    pub tokens: &'a [u32],
    /// What a token stands for: not always whole characters.
    pub text: &'a dyn Fn(u32) -> Vec<u8>,
}

impl History<'_> {
    /// The last `n` tokens.
    pub fn last(&self, n: usize) -> &[u32] {
        &self.tokens[self.tokens.len().saturating_sub(n)..]
    }
}

/// A step between logits and a draw.
pub trait Step: std::fmt::Debug + Send + Sync {
    /// Changes logits, or cuts.
    fn apply(&self, candidates: &mut Candidates, history: &History, rng: &mut Rng);
}

/// Makes a step if the parameters ask for it: one that would change nothing is not in the chain.
type Maker = fn(&SamplingParams) -> Option<Box<dyn Step>>;

/// A step by its name in `samplers`.
struct Row {
    name: &'static str,
    step: Maker,
    changes: bool, // logits; the others cut, or set the temperature
}

const fn changes(name: &'static str, step: Maker) -> Row {
    Row { name, step, changes: true }
}

const fn cuts(name: &'static str, step: Maker) -> Row {
    Row { name, step, changes: false }
}

/// All steps, in the order of llama.cpp. Bias comes before them.
const STEPS: [Row; 9] = [
    changes("penalties", penalties::step),
    changes("dry", dry::step),
    cuts("top_n_sigma", top_n_sigma::step),
    cuts("top_k", top_k::step),
    cuts("typ_p", typical::step),
    cuts("top_p", top_p::step),
    cuts("min_p", min_p::step),
    cuts("xtc", xtc::step),
    cuts("temperature", temperature::step),
];

/// Their names.
pub const SAMPLERS: [&str; STEPS.len()] = {
    let mut names = [""; STEPS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = STEPS[i].name;
        i += 1;
    }
    names
};

/// How one of the candidates is taken at the end.
#[derive(Debug, Clone)]
enum Choice {
    MostLikely,
    Chance,
    Mirostat(Mirostat),
}

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
    choice: Choice,
    has_seed: bool,
    rng: Rng,
    buffers: Buffers,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// A temperature of 0, if it is not dynamic, takes the most likely token: nothing is cut then. Nor does mirostat
    /// leave anything to be cut; it keeps the temperature.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) for a parameter out of its range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.check()?;
        let choice = match Mirostat::of(&params) {
            _ if params.temperature == 0.0 && params.dynatemp_range == 0.0 => Choice::MostLikely,
            Some(mirostat) => Choice::Mirostat(mirostat),
            None => Choice::Chance,
        };
        let wanted = |row: &&Row| match choice {
            Choice::MostLikely => row.changes,
            Choice::Mirostat(_) => row.changes || row.name == "temperature",
            Choice::Chance => true,
        };
        let rows = params.samplers.iter().filter_map(|name| STEPS.iter().find(|row| row.name == name));
        let steps = rows.filter(wanted).filter_map(|row| (row.step)(&params));
        let steps = bias::step(&params).into_iter().chain(steps).collect();
        // The standard library's hash keys are the operating system's random numbers.
        let seed = params.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        let has_seed = params.seed.is_some();
        Ok(Self { steps, choice, has_seed, rng: Rng::new(seed), buffers: Buffers::default() })
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

    /// Chooses a token. `tokens` are those so far, latest last, for the penalties; no sequence breaker of DRY is found in
    /// them, see [`Sampler::sample_after`].
    ///
    /// Logits that are NaN or minus infinity are never chosen. `None` if there are no others, as a
    /// damaged weight makes them.
    pub fn sample(&mut self, logits: &[f32], tokens: &[u32]) -> Option<u32> {
        self.sample_after(&History { tokens, text: &|_| Vec::new() }, logits)
    }

    /// Chooses a token, as [`Sampler::sample`] does, after tokens whose text is known.
    pub fn sample_after(&mut self, history: &History, logits: &[f32]) -> Option<u32> {
        let Self { steps, choice, rng, buffers, .. } = self;
        let mut candidates = candidates(steps, history, logits, rng, buffers);
        match choice {
            Choice::MostLikely => candidates.most_likely(),
            Choice::Chance => candidates.draw(rng).map(|(id, _)| id),
            Choice::Mirostat(mirostat) => mirostat.draw(candidates, logits.len(), rng),
        }
    }

    /// What a token would be drawn from, with probabilities.
    #[cfg(test)]
    pub fn probabilities(&mut self, history: &History, logits: &[f32]) -> Vec<(u32, f64)> {
        candidates(&self.steps, history, logits, &mut self.rng, &mut self.buffers).probabilities()
    }
}

fn candidates<'a>(
    steps: &[Box<dyn Step>],
    history: &History,
    logits: &'a [f32],
    rng: &mut Rng,
    buffers: &'a mut Buffers,
) -> Candidates<'a> {
    let mut candidates = Candidates::new(logits, buffers);
    for step in steps {
        step.apply(&mut candidates, history, rng);
    }
    candidates
}
