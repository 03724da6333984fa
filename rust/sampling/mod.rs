//! From logits to a token.
//!
//! The steps are those of llama.cpp, in its order: bias and penalties, then the filters `top_k`, `top_p` and
//! `min_p`, then temperature, then one draw. Each filter keeps the most likely tokens down to some
//! point, so all three cut one list, and that list is never longer than it has to be: the logits of a
//! 128k vocabulary are scanned, not sorted.

mod params;
mod rng;

pub(crate) use params::parameters;
pub use params::{Field, Kind, Parameter, SamplingParams, Value};
pub use rng::Rng;

use std::cmp::Ordering;
use std::hash::{BuildHasher, Hasher};

use crate::error::Result;

/// Chooses tokens. Keeps its random numbers and its buffers from one token to the next.
///
/// ```
/// use llama_rs::sampling::{Sampler, SamplingParams};
///
/// let mut sampler = Sampler::new(SamplingParams { seed: Some(7), ..Default::default() })?;
/// let token = sampler.sample(&[0.1, 2.0, -1.0, 1.9], &[]).expect("at least one logit is a number");
/// assert!(token == 1 || token == 3);
/// # Ok::<(), llama_rs::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    rng: Rng,
    changed: Vec<f32>,          // the logits after bias and penalties
    recent: Vec<u32>,           // the tokens they are about
    candidates: Vec<Candidate>, // what the filters have left
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32, // finite
    id: u32,
}

impl Candidate {
    /// Most likely first; of equals the lower id first.
    fn order(a: &Self, b: &Self) -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// [`Error::Argument`] for a parameter out of its range.
    pub fn new(params: SamplingParams) -> Result<Self> {
        params.check()?;
        // The standard library's hash keys are the operating system's random numbers.
        let seed = params.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        let rng = Rng::new(seed);
        Ok(Self { params, rng, changed: Vec::new(), recent: Vec::new(), candidates: Vec::new() })
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
        if self.params.seed.is_none() {
            self.rng = rng.clone();
        }
    }

    /// Chooses a token. `recent` are the tokens so far, latest last, for the penalties.
    ///
    /// Logits that are NaN or minus infinity are never chosen. `None` if there are no others, as a
    /// damaged weight makes them.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Option<u32> {
        if !self.params.has_penalties() && self.params.logit_bias.is_empty() {
            return self.choose(logits);
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        changed.extend_from_slice(logits);
        for &(id, bias) in &self.params.logit_bias {
            changed.get_mut(id as usize).into_iter().for_each(|x| *x += bias);
        }
        if self.params.has_penalties() {
            self.penalize(&mut changed, recent);
        }
        let token = self.choose(&changed);
        self.changed = changed;
        token
    }

    fn penalize(&mut self, logits: &mut [f32], recent: &[u32]) {
        let Self { params, recent: latest, .. } = self;
        latest.clear();
        latest.extend_from_slice(&recent[recent.len().saturating_sub(params.repeat_last_n)..]);
        latest.sort_unstable();
        for same in latest.chunk_by(|a, b| a == b) {
            let Some(logit) = logits.get_mut(same[0] as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / params.repeat_penalty } else { *logit * params.repeat_penalty };
            *logit -= params.presence_penalty + same.len() as f32 * params.frequency_penalty;
        }
    }

    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        if temperature == 0.0 {
            return argmax(logits);
        }
        let candidates = &mut self.candidates;
        if top_k > 0 && top_k < logits.len() {
            select_top(logits, top_k, candidates);
        } else {
            candidates.clear();
            candidates.extend(usable(logits));
        }
        let max = candidates.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
        // `top_p` counts the probability of all that `top_k` left, so its sum comes before `min_p` cuts.
        let mass = |c: &Candidate| f64::from((c.logit - max).exp());
        let enough = if top_p < 1.0 { f64::from(top_p) * candidates.iter().map(mass).sum::<f64>() } else { f64::MAX };
        if min_p > 0.0 {
            let least = max + min_p.ln();
            candidates.retain(|c| c.logit >= least);
        }
        if top_p < 1.0 {
            keep_mass(candidates, enough, mass);
        }
        let weight = |c: &Candidate| f64::from(((c.logit - max) / temperature).exp());
        let mut left = self.rng.next_f64() * candidates.iter().map(weight).sum::<f64>();
        for c in &*candidates {
            left -= weight(c);
            if left < 0.0 {
                return Some(c.id);
            }
        }
        // Only rounding leads here (or nothing to choose from): the most likely is as good as any.
        candidates.iter().min_by(|a, b| Candidate::order(a, b)).map(|c| c.id)
    }
}

/// The id of the largest logit; of equals the lowest.
fn argmax(logits: &[f32]) -> Option<u32> {
    // Sixteen maxima side by side, so that the compiler may use vectors. NaN is larger than nothing.
    let mut max = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (max, &x) in max.iter_mut().zip(chunk) {
            *max = if x > *max { x } else { *max };
        }
    }
    let max = max.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    if max == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&x| x == max).map(|i| i as u32)
}

/// The logits that a token can be chosen by. Infinity becomes the largest number.
fn usable(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    let all = logits.iter().enumerate();
    all.filter(|(_, x)| **x > f32::NEG_INFINITY).map(|(i, x)| Candidate { logit: x.min(f32::MAX), id: i as u32 })
}

/// Puts the `k` most likely tokens into `out`, most likely first.
///
/// One pass. What cannot be among the `k` fails one comparison, which is nearly all of a vocabulary;
/// the rest is gathered, and thinned to `k` whenever there are `4 k`.
fn select_top(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    let room = k.saturating_mul(4).max(256);
    let mut least = f32::NEG_INFINITY; // of the best k so far; an equal one that comes later is no better
    out.clear();
    for (block, first_id) in logits.chunks(64).zip((0..).step_by(64)) {
        if !block.iter().fold(false, |any, &x| any | (x > least)) {
            continue;
        }
        let new = usable(block).filter(|c| c.logit > least);
        out.extend(new.map(|c| Candidate { id: first_id + c.id, ..c }));
        if out.len() >= room {
            out.select_nth_unstable_by(k - 1, Candidate::order);
            out.truncate(k);
            least = out[k - 1].logit;
        }
    }
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, Candidate::order);
        out.truncate(k);
    }
    out.sort_unstable_by(Candidate::order);
}

/// Keeps the most likely candidates that together have the mass `enough`, at least one, sorted.
fn keep_mass(candidates: &mut Vec<Candidate>, enough: f64, mass: impl Fn(&Candidate) -> f64) {
    let mut sorted = 0; // so many are sorted, and all others come after them
    let mut sum = 0.0;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let n = rest.len().min(64 + 3 * sorted);
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, Candidate::order);
        }
        rest[..n].sort_unstable_by(Candidate::order);
        for (i, c) in rest[..n].iter().enumerate() {
            sum += mass(c);
            if sum >= enough {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// What the steps mean, written without a thought for speed: sorts everything, in f64.
    fn probabilities(logits: &[f32], recent: &[u32], params: &SamplingParams) -> Vec<f64> {
        let mut logits = logits.to_vec();
        params.logit_bias.iter().for_each(|&(id, bias)| logits[id as usize] += bias);
        let recent = &recent[recent.len().saturating_sub(params.repeat_last_n)..];
        for (id, x) in logits.iter_mut().enumerate() {
            let count = recent.iter().filter(|&&r| r as usize == id).count();
            if count > 0 {
                *x = if *x > 0.0 { *x / params.repeat_penalty } else { *x * params.repeat_penalty };
                *x -= params.presence_penalty + count as f32 * params.frequency_penalty;
            }
        }
        let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        if params.temperature == 0.0 {
            order.truncate(1);
        }
        if params.top_k > 0 {
            order.truncate(params.top_k);
        }
        let max = f64::from(logits[order[0]]);
        let mass: Vec<f64> = order.iter().map(|&i| (f64::from(logits[i]) - max).exp()).collect();
        let total: f64 = mass.iter().sum();
        let mut keep = order.len();
        if params.top_p < 1.0 {
            let mut sum = 0.0;
            keep = 1 + mass
                .iter()
                .take_while(|&&m| {
                    sum += m;
                    sum < f64::from(params.top_p) * total
                })
                .count();
        }
        order.truncate(keep);
        order.retain(|&i| (f64::from(logits[i]) - max).exp() >= f64::from(params.min_p));
        let mut p = vec![0.0; logits.len()];
        let temperature = if params.temperature == 0.0 { 1.0 } else { f64::from(params.temperature) };
        order.iter().for_each(|&i| p[i] = ((f64::from(logits[i]) - max) / temperature).exp());
        let total: f64 = p.iter().sum();
        p.iter().map(|x| x / total).collect()
    }

    fn random_logits(rng: &mut Rng, n: usize, spread: f64) -> Vec<f32> {
        let mut normal = || (0..12).map(|_| rng.next_f64()).sum::<f64>() - 6.0;
        (0..n).map(|_| (spread * normal()) as f32).collect()
    }

    #[test]
    fn never_leaves_what_the_twin_allows_and_reaches_all_of_it() {
        let mut rng = Rng::new(1);
        for round in 0..200 {
            let n = 1 + rng.next_u64() as usize % 3000;
            let mut logits = random_logits(&mut rng, n, 4.0);
            if round % 4 == 0 {
                logits.iter_mut().for_each(|x| *x = x.round()); // ties
            }
            let recent: Vec<u32> = (0..rng.next_u64() % 100).map(|_| (rng.next_u64() % n as u64) as u32).collect();
            let pick = |rng: &mut Rng, of: &[f32]| of[rng.next_u64() as usize % of.len()];
            let params = SamplingParams {
                temperature: pick(&mut rng, &[0.0, 0.3, 0.8, 1.0, 2.0]),
                top_k: pick(&mut rng, &[0.0, 1.0, 5.0, 40.0, 1000.0]) as usize,
                top_p: pick(&mut rng, &[0.0, 0.3, 0.9, 0.95, 1.0]),
                min_p: pick(&mut rng, &[0.0, 0.05, 0.5, 1.0]),
                repeat_penalty: pick(&mut rng, &[1.0, 1.1, 0.8]),
                repeat_last_n: pick(&mut rng, &[0.0, 10.0, 64.0]) as usize,
                presence_penalty: pick(&mut rng, &[0.0, 0.5]),
                frequency_penalty: pick(&mut rng, &[0.0, -0.3]),
                logit_bias: if round % 3 == 0 { vec![(0, 4.0), (n as u32 - 1, -3.5)] } else { vec![] },
                seed: Some(round),
            };
            let p = probabilities(&logits, &recent, &params);
            let mut sampler = Sampler::new(params.clone()).unwrap();
            let mut seen = vec![false; n];
            for _ in 0..300 {
                let token = sampler.sample(&logits, &recent).unwrap() as usize;
                assert!(p[token] > 0.0, "token {token} of {n}, {params:?}");
                seen[token] = true;
            }
            // What has 5 % is missed 300 times with a chance of 2e-7.
            let missed = (0..n).find(|&i| p[i] > 0.05 && !seen[i]);
            assert_eq!(missed, None, "{params:?}");
        }
    }

    #[test]
    fn draws_with_the_probabilities_of_the_twin() {
        let mut rng = Rng::new(2);
        let logits = random_logits(&mut rng, 500, 2.0);
        let all = SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..Default::default() };
        for params in [
            SamplingParams::default(),
            all.clone(),
            SamplingParams { temperature: 2.0, ..all.clone() },
            SamplingParams { top_p: 0.7, ..all },
        ] {
            let p = probabilities(&logits, &[], &params);
            let mut sampler = Sampler::new(SamplingParams { seed: Some(3), ..params }).unwrap();
            let draws = 100_000;
            let mut counts = vec![0.0; p.len()];
            (0..draws).for_each(|_| counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1.0);
            // Pearson's chi-squared over what is expected at least five times: mean k, deviation sqrt(2 k).
            let cells = p.iter().zip(&counts).map(|(p, n)| (p * f64::from(draws), n)).filter(|(e, _)| *e >= 5.0);
            let terms: Vec<f64> = cells.map(|(e, n)| (n - e).powi(2) / e).collect();
            let (chi, k) = (terms.iter().sum::<f64>(), terms.len() as f64);
            assert!((chi - k).abs() < 5.0 * (2.0 * k).sqrt() + 5.0, "chi-squared {chi} over {k} cells");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        for n in 1..100 {
            for at in 0..n {
                let mut logits = vec![-1.0; n];
                logits[at..].fill(2.5);
                let mut sampler = Sampler::new(SamplingParams::greedy()).unwrap();
                assert_eq!(sampler.sample(&logits, &[]), Some(at as u32));
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits = random_logits(&mut Rng::new(4), 1000, 2.0);
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplingParams { seed, temperature: 1.5, ..Default::default() }).unwrap();
            (sampler.seed(), (0..20).map(|_| sampler.sample(&logits, &[]).unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(draw(Some(7)), draw(Some(7)));
        assert_ne!(draw(Some(7)).1, draw(Some(8)).1);
        let (seed, tokens) = draw(None);
        assert_eq!(draw(Some(seed)).1, tokens);
    }

    #[test]
    fn logits_that_are_no_numbers_are_never_chosen() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for temperature in [0.0, 1e-40, 0.8, 1e30] {
            for top_k in [0, 1, 2, 40] {
                let params = SamplingParams { temperature, top_k, repeat_penalty: 1.3, ..Default::default() };
                let mut sampler = Sampler::new(params).unwrap();
                assert_eq!(sampler.sample(&[], &[0]), None);
                assert_eq!(sampler.sample(&[nan; 300], &[0]), None);
                assert_eq!(sampler.sample(&[nan, -inf, -nan], &[0, 1, 2, 3, u32::MAX]), None);
                assert_eq!(sampler.sample(&[nan, -5.0, -inf, nan], &[1]), Some(1));
                assert_eq!(sampler.sample(&[nan, 3.0, inf, f32::MIN], &[2]), Some(2));
                let token = sampler.sample(&[inf, 3.0, inf], &[2]);
                assert!(token == Some(0) || token == Some(2));
            }
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let d = SamplingParams::default();
        for (name, params) in [
            ("temperature", SamplingParams { temperature: -0.1, ..d.clone() }),
            ("temperature", SamplingParams { temperature: f32::NAN, ..d.clone() }),
            ("temperature", SamplingParams { temperature: f32::INFINITY, ..d.clone() }),
            ("top_p", SamplingParams { top_p: 1.1, ..d.clone() }),
            ("top_p", SamplingParams { top_p: f32::NAN, ..d.clone() }),
            ("min_p", SamplingParams { min_p: -0.5, ..d.clone() }),
            ("repeat_penalty", SamplingParams { repeat_penalty: 0.0, ..d.clone() }),
            ("presence_penalty", SamplingParams { presence_penalty: f32::NAN, ..d.clone() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: f32::INFINITY, ..d.clone() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(0, f32::NAN)], ..d.clone() }),
        ] {
            let e = Sampler::new(params).unwrap_err();
            assert!(matches!(&e, Error::Argument(text) if text.starts_with(name)), "{e}");
        }
    }
}
