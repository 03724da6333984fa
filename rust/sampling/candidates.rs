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

/// The tokens that may be chosen, and how likely they are. Steps change the logits first, and then cut.
#[derive(Debug)]
pub struct Candidates<'a> {
    logits: &'a [f32],         // (vocab_size), as they came
    changed: &'a mut Vec<f32>, // the same after the first change; empty before
    list: &'a mut Vec<Candidate>,
    is_list: bool,       // after the first cut
    max: f32,            // the largest logit of the list
    enough: Option<f64>, // the list still has to be cut down to this mass
    temperature: f32,
}

impl<'a> Candidates<'a> {
    /// All tokens. Logits that are NaN or minus infinity are never chosen; infinity counts as the largest number.
    pub fn new(logits: &'a [f32], buffers: &'a mut Buffers) -> Self {
        let Buffers { changed, list } = buffers;
        changed.clear();
        list.clear();
        Self { logits, changed, list, is_list: false, max: f32::NEG_INFINITY, enough: None, temperature: 1.0 }
    }

    /// The logits, to be changed: a copy of those that came, made once.
    ///
    /// # Panics
    /// After a cut.
    pub fn logits_mut(&mut self) -> &mut [f32] {
        assert!(!self.is_list, "logits are changed before anything is cut");
        if self.changed.is_empty() {
            self.changed.extend_from_slice(self.logits);
        }
        self.changed
    }

    fn dense(&self) -> &[f32] {
        if self.changed.is_empty() { self.logits } else { self.changed }
    }

    /// The id of the largest logit, before anything is cut; of equals the lowest.
    pub fn most_likely(&self) -> Option<u32> {
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
        let whole: f64 = self.list.iter().map(|c| mass(c, self.max)).sum();
        self.enough = Some(f64::from(share) * whole);
    }

    /// Keeps those that are at least `ratio` times as likely as the most likely.
    pub fn keep_ratio(&mut self, ratio: f32) {
        self.make_list();
        let least = self.max + ratio.ln();
        self.list.retain(|c| c.logit >= least);
    }

    /// Logits are divided by it when one is drawn.
    pub fn set_temperature(&mut self, temperature: f32) {
        self.temperature = temperature;
    }

    /// Draws one by its probability; `None` if there is nothing to choose from.
    pub fn draw(mut self, rng: &mut Rng) -> Option<u32> {
        self.settle();
        let weight = |c: &Candidate| f64::from(((c.logit - self.max) / self.temperature).exp());
        let mut left = rng.next_f64() * self.list.iter().map(weight).sum::<f64>();
        for c in &*self.list {
            left -= weight(c);
            if left < 0.0 {
                return Some(c.id);
            }
        }
        // Only rounding leads here (or nothing to choose from): the most likely is as good as any.
        self.list.iter().min_by(|a, b| Candidate::order(a, b)).map(|c| c.id)
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
        if let Some(enough) = self.enough.take() {
            let max = self.max;
            cut_mass(self.list, enough, |c| mass(c, max));
        }
    }
}

/// How likely a candidate is, next to one with the logit `max`.
fn mass(c: &Candidate, max: f32) -> f64 {
    f64::from((c.logit - max).exp())
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
