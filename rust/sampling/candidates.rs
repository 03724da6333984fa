//! The tokens that may still be chosen: dense logits until the first cut, then a short list.
//!
//! A vocabulary has up to 256k tokens, of which a few dozen matter. So logits are scanned and not sorted, a cut keeps a
//! list no longer than it has to be, and a cut by mass is put off until the steps after it have made the list shorter.

use std::cmp::Ordering;

use super::Rng;

/// A token and its logit, which is finite.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// Most likely first; of equals the lower id first.
    fn order(a: &Self, b: &Self) -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// Memory that is kept from one token to the next.
#[derive(Debug, Clone, Default)]
pub struct Buffers {
    changed: Vec<f32>,
    list: Vec<Candidate>,
}

/// The tokens that may be chosen, and how likely they are. Steps may come in any order.
#[derive(Debug)]
pub struct Candidates<'a> {
    logits: &'a [f32],         // (vocab_size), as they came
    changed: &'a mut Vec<f32>, // the same after the first change; empty before
    list: &'a mut Vec<Candidate>,
    is_list: bool,       // after the first cut
    max: f32,            // the largest logit of the list
    temperature: f32,    // what logits still have to be divided by
    owed: Option<Share>, // a cut that the list still needs
}

/// A cut by mass that was put off: down to this mass, as masses were at this temperature.
#[derive(Debug)]
struct Share {
    mass: f64,
    temperature: f32,
}

impl<'a> Candidates<'a> {
    /// All tokens. Logits that are NaN or minus infinity are never chosen; infinity counts as the largest number.
    pub fn new(logits: &'a [f32], buffers: &'a mut Buffers) -> Self {
        let Buffers { changed, list } = buffers;
        changed.clear();
        list.clear();
        Self { logits, changed, list, is_list: false, max: f32::NEG_INFINITY, temperature: 1.0, owed: None }
    }

    /// Changes the logits of some tokens: `change` gets the logit and what is said of the token. The ids ascend.
    pub fn change<T>(&mut self, of: &[(u32, T)], change: impl Fn(f32, &T) -> f32) {
        if !self.is_list && self.temperature == 1.0 {
            let logits = self.dense_mut();
            for (id, what) in of {
                logits.get_mut(*id as usize).into_iter().for_each(|x| *x = change(*x, what));
            }
            return;
        }
        self.settle();
        let temperature = std::mem::replace(&mut self.temperature, 1.0);
        for c in &mut *self.list {
            c.logit = (c.logit / temperature).clamp(f32::MIN, f32::MAX);
            if let Ok(i) = of.binary_search_by_key(&c.id, |(id, _)| *id) {
                c.logit = change(c.logit, &of[i].1);
            }
        }
        self.list.retain(|c| c.logit > f32::NEG_INFINITY);
        self.listed();
    }

    fn dense_mut(&mut self) -> &mut [f32] {
        if self.changed.is_empty() {
            self.changed.extend_from_slice(self.logits);
        }
        self.changed
    }

    fn dense(&self) -> &[f32] {
        if self.changed.is_empty() { self.logits } else { self.changed }
    }

    /// The id of the most likely token; of equals the lowest.
    pub fn most_likely(&mut self) -> Option<u32> {
        if self.is_list {
            self.settle();
            return self.list.iter().min_by(|a, b| Candidate::order(a, b)).map(|c| c.id);
        }
        argmax(self.dense())
    }

    /// Keeps the `k` most likely, `k` > 0.
    pub fn keep_most_likely(&mut self, k: usize) {
        if self.is_list {
            self.settle();
            if k < self.list.len() {
                self.list.select_nth_unstable_by(k - 1, Candidate::order);
                self.list.truncate(k);
                self.list.sort_unstable_by(Candidate::order);
            }
        } else if k < self.logits.len() {
            let logits = if self.changed.is_empty() { self.logits } else { &**self.changed };
            select_top(logits, k, self.list);
            self.listed();
        }
    }

    /// Keeps the most likely that together have this share of the probability of those that are left, at least one.
    pub fn keep_mass(&mut self, share: f32) {
        self.settle();
        // The share is of what there is now. Which candidates that are, is found when the list is needed: a step after
        // this one may make it shorter, which is cheaper than to sort it.
        self.owed = Some(Share { mass: f64::from(share) * self.mass(), temperature: self.temperature });
    }

    /// Keeps those that are at least `ratio` times as likely as the most likely.
    pub fn keep_ratio(&mut self, ratio: f32) {
        let least = self.max() + ratio.ln() * self.temperature;
        self.keep_from(least);
    }

    /// Keeps those whose logit is less than `n` standard deviations of all logits below the largest.
    pub fn keep_deviations(&mut self, n: f32) {
        if self.owed.is_some() {
            self.settle();
        }
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        self.for_each(|x| {
            count += 1.0;
            sum += x;
        });
        let mean = sum / count;
        self.for_each(|x| squares += (x - mean) * (x - mean));
        let deviation = (squares / count).sqrt();
        let least = f64::from(self.max()) - f64::from(n) * deviation;
        if count > 0.0 {
            self.keep_from(least as f32);
        }
    }

    /// Keeps the most typical that together have this share of the probability: those whose surprise is nearest to the
    /// one that is expected.
    pub fn keep_typical(&mut self, share: f32) {
        self.settle();
        let (whole, expected) = (self.mass(), self.entropy());
        let distance = |mass: f64| (-(mass / whole).ln() - expected).abs();
        let masses = self.list.iter().map(|c| (mass(c, self.max, self.temperature), *c));
        let mut by_distance: Vec<(f64, f64, Candidate)> = masses.map(|(mass, c)| (distance(mass), mass, c)).collect();
        by_distance.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(Candidate::order(&a.2, &b.2)));
        self.list.clear();
        let mut sum = 0.0;
        for (_, mass, c) in by_distance {
            self.list.push(c);
            sum += mass;
            if sum > f64::from(share) * whole {
                break;
            }
        }
        self.listed();
    }

    /// Of those that are at least this likely, takes away all but the least likely.
    pub fn drop_top(&mut self, threshold: f32) {
        self.settle();
        let least = f64::from(threshold) * self.mass();
        self.list.sort_unstable_by(Candidate::order);
        let n = self.list.iter().take_while(|c| mass(c, self.max, self.temperature) >= least).count();
        if n > 1 {
            self.list.drain(..n - 1);
            self.listed();
        }
    }

    /// Keeps those whose surprise is at most so many bits, at least one.
    pub fn keep_surprise(&mut self, bits: f64) {
        self.settle();
        let (max, temperature, whole) = (self.max, self.temperature, self.mass());
        self.list.retain(|c| c.logit == max || -(mass(c, max, temperature) / whole).log2() <= bits);
    }

    /// Logits are divided by it, when they are next looked at as numbers.
    pub fn set_temperature(&mut self, temperature: f32) {
        self.temperature = (self.temperature * temperature).max(f32::from_bits(1));
    }

    /// How many there are.
    pub fn count(&mut self) -> usize {
        self.settle();
        self.list.len()
    }

    /// What one can expect to be surprised by, in nats.
    pub fn entropy(&mut self) -> f64 {
        self.settle();
        let whole = self.mass();
        let p = self.list.iter().map(|c| mass(c, self.max, self.temperature) / whole);
        p.filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum()
    }

    /// The probabilities of the `n` most likely, most likely first.
    pub fn top_probabilities(&mut self, n: usize) -> Vec<f64> {
        self.settle();
        let whole = self.mass();
        let mut logits: Vec<Candidate> = self.list.to_vec();
        if n < logits.len() {
            logits.select_nth_unstable_by(n, Candidate::order);
            logits.truncate(n);
        }
        logits.sort_unstable_by(Candidate::order);
        logits.iter().map(|c| mass(c, self.max, self.temperature) / whole).collect()
    }

    /// What there is to choose from, with probabilities, in the order of the ids.
    #[cfg(test)]
    pub fn probabilities(mut self) -> Vec<(u32, f64)> {
        self.settle();
        let whole = self.mass();
        let p = |c: &Candidate| (c.id, mass(c, self.max, self.temperature) / whole);
        let mut all: Vec<_> = self.list.iter().map(p).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// Draws one by its probability, which comes with it; `None` if there is nothing to choose from.
    pub fn draw(mut self, rng: &mut Rng) -> Option<(u32, f64)> {
        self.settle();
        let whole = self.mass();
        let mut left = rng.next_f64() * whole;
        for c in &*self.list {
            let mass = mass(c, self.max, self.temperature);
            left -= mass;
            if left < 0.0 {
                return Some((c.id, mass / whole));
            }
        }
        // Only rounding leads here (or nothing to choose from): the most likely is as good as any.
        let most_likely = self.list.iter().min_by(|a, b| Candidate::order(a, b))?;
        Some((most_likely.id, mass(most_likely, self.max, self.temperature) / whole))
    }

    /// Keeps those whose logit is at least this.
    fn keep_from(&mut self, least: f32) {
        if self.is_list {
            self.list.retain(|c| c.logit >= least);
        } else {
            let logits = if self.changed.is_empty() { self.logits } else { &**self.changed };
            self.list.extend(usable(logits).filter(|c| c.logit >= least));
            self.listed();
        }
    }

    /// Calls `f` with each logit.
    fn for_each(&self, mut f: impl FnMut(f64)) {
        match self.is_list {
            true => self.list.iter().for_each(|c| f(f64::from(c.logit))),
            false => usable(self.dense()).for_each(|c| f(f64::from(c.logit))),
        }
    }

    /// The largest logit.
    fn max(&self) -> f32 {
        if self.is_list { self.max } else { max_of(self.dense()).min(f32::MAX) }
    }

    /// The masses of all in the list.
    fn mass(&self) -> f64 {
        self.list.iter().map(|c| mass(c, self.max, self.temperature)).sum()
    }

    /// Makes the list, of all that can be chosen, if no cut has made it.
    fn make_list(&mut self) {
        if !self.is_list {
            let logits = if self.changed.is_empty() { self.logits } else { &**self.changed };
            self.list.extend(usable(logits));
            self.listed();
        }
    }

    fn listed(&mut self) {
        self.is_list = true;
        self.max = self.list.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max);
    }

    /// Makes the list and does the cut that was put off.
    fn settle(&mut self) {
        self.make_list();
        if let Some(Share { mass: enough, temperature }) = self.owed.take() {
            let max = self.max;
            cut_mass(self.list, enough, |c| mass(c, max, temperature));
        }
    }
}

/// How likely a candidate is, next to one with the logit `max`.
fn mass(c: &Candidate, max: f32, temperature: f32) -> f64 {
    f64::from(((c.logit - max) / temperature).exp())
}

/// The logarithm of the sum of the exponentials of logits, with which their probabilities sum to 1.
pub fn log_total(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from((l - largest).exp())).sum();
    total.ln() + f64::from(largest)
}

/// The natural logarithm of the probability of a token, or of any of several, by logits and what [`log_total`] is of them.
pub fn log_probability(logits: &[f32], total: f64, of: &[u32]) -> f64 {
    let log = |id: u32| f64::from(logits[id as usize]) - total;
    match of {
        [id] => log(*id),
        several => several.iter().map(|&id| log(id).exp()).sum::<f64>().ln(),
    }
}

/// The natural logarithms of the probabilities of the token `id` and of the `n` most likely, by logits as they came.
pub fn log_probabilities(logits: &[f32], id: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let max = max_of(logits).min(f32::MAX);
    let whole: f64 = usable(logits).map(|c| f64::from((c.logit - max).exp())).sum();
    let total = whole.ln() + f64::from(max); // as `log_total` has it
    let log = |x: f32| (f64::from(x.min(f32::MAX)) - total) as f32;
    let mut top = Vec::new();
    if n > 0 {
        select_top(logits, n, &mut top);
    }
    (log(logits[id as usize]), top.iter().map(|c| (c.id, log(c.logit))).collect())
}

/// The id of the largest logit; of equals the lowest.
fn argmax(logits: &[f32]) -> Option<u32> {
    let max = max_of(logits);
    if max == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&x| x == max).map(|i| i as u32)
}

/// The largest logit; minus infinity if none is a number.
fn max_of(logits: &[f32]) -> f32 {
    // Sixteen maxima side by side, so that the compiler may use vectors. NaN is larger than nothing.
    let mut max = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (max, &x) in max.iter_mut().zip(chunk) {
            *max = if x > *max { x } else { *max };
        }
    }
    max.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
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
fn cut_mass(candidates: &mut Vec<Candidate>, enough: f64, mass: impl Fn(&Candidate) -> f64) {
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
