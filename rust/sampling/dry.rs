//! DRY, "don't repeat yourself": a token that would make a sequence longer which was there before becomes less likely, the
//! more the longer the sequence is (p-e-w, "DRY: a modern repetition penalty", 2024).
//!
//! A sequence breaker, such as a new line, is where no sequence goes on: what a form repeats on purpose is not a loop.

use super::{Candidates, History, Rng, SamplingParams, Step};

#[derive(Debug)]
struct Dry {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    last_n: usize,
    breakers: Vec<Vec<u8>>,
}

/// The step that these parameters ask for.
pub fn step(params: &SamplingParams) -> Option<Box<dyn Step>> {
    if params.dry_multiplier == 0.0 || params.dry_penalty_last_n == 0 {
        return None;
    }
    Some(Box::new(Dry {
        multiplier: params.dry_multiplier,
        base: params.dry_base,
        allowed_length: params.dry_allowed_length,
        last_n: usize::try_from(params.dry_penalty_last_n).unwrap_or(usize::MAX),
        breakers: params.dry_sequence_breakers.iter().map(|text| text.as_bytes().to_vec()).collect(),
    }))
}

impl Step for Dry {
    fn apply(&self, candidates: &mut Candidates, history: &History, _rng: &mut Rng) {
        let tokens = history.last(self.last_n);
        if tokens.len() <= self.allowed_length {
            return;
        }
        let most = unbroken(tokens, &self.breakers, history.text);
        if most < self.allowed_length {
            return;
        }
        // Of each token that has come after such a sequence, the length of the longest.
        let mut found: Vec<(u32, usize)> = Vec::new();
        for (&next, length) in tokens[1..].iter().zip(common_suffixes(tokens)) {
            if length.min(most) >= self.allowed_length {
                found.push((next, length.min(most)));
            }
        }
        found.sort_unstable();
        found.reverse();
        found.dedup_by_key(|(id, _)| *id); // keeps the first of a token, the longest
        found.reverse();
        candidates.change(&found, |x, length| {
            // A number that is not finite would take the token away, and perhaps all of them.
            let penalty = self.multiplier * self.base.powf((length - self.allowed_length) as f32);
            x - penalty.min(f32::MAX / 2.0)
        });
    }
}

/// How many of the last tokens come after the last breaker: a sequence is no longer.
fn unbroken(tokens: &[u32], breakers: &[Vec<u8>], text: &dyn Fn(u32) -> Vec<u8>) -> usize {
    let longest = breakers.iter().map(Vec::len).max().unwrap_or(0);
    let mut after: Vec<u8> = Vec::new(); // what comes after the token, as far as a breaker may reach
    let mut lens: Vec<usize> = Vec::new(); // of the later tokens, the next one last
    for (n, &token) in tokens.iter().rev().enumerate() {
        let bytes = text(token);
        let mut window = bytes.clone();
        window.extend_from_slice(&after);
        // Of the breakers that begin in this token, where the last one ends.
        let begins = |breaker: &Vec<u8>| {
            let starts = (0..bytes.len()).rev().find(|&at| window[at..].starts_with(breaker));
            starts.map(|at| at + breaker.len())
        };
        if let Some(end) = breakers.iter().filter_map(begins).max() {
            // It ends in this token, or in a later one, which does not count either.
            let mut beyond = end.saturating_sub(bytes.len());
            let mut broken = 0;
            for len in lens.iter().rev() {
                if beyond == 0 {
                    break;
                }
                beyond = beyond.saturating_sub(*len);
                broken += 1;
            }
            return n - broken;
        }
        lens.push(bytes.len());
        window.truncate(longest.saturating_sub(1));
        after = window;
    }
    tokens.len()
}

/// For each token but the last: how many tokens up to it are the same as the last ones. (The Z algorithm, backwards.)
fn common_suffixes(tokens: &[u32]) -> Vec<usize> {
    let n = tokens.len();
    let at = |i: usize| tokens[n - 1 - i];
    let mut z = vec![0; n];
    let (mut left, mut right) = (0, 0);
    for i in 1..n {
        let mut len = if i < right { z[i - left].min(right - i) } else { 0 };
        while i + len < n && at(len) == at(i + len) {
            len += 1;
        }
        z[i] = len;
        if i + len > right {
            (left, right) = (i, i + len);
        }
    }
    z.drain(..1);
    z.reverse();
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_suffixes_are_those_of_the_obvious_way() {
        let mut rng = Rng::new(9);
        for _ in 0..500 {
            let n = 1 + rng.next_u64() as usize % 30;
            let tokens: Vec<u32> = (0..n).map(|_| (rng.next_u64() % 3) as u32).collect();
            let obvious = |i: usize| (0..=i).take_while(|k| tokens[i - k] == tokens[n - 1 - k]).count();
            assert_eq!(common_suffixes(&tokens), (0..n - 1).map(obvious).collect::<Vec<_>>(), "{tokens:?}");
        }
    }

    #[test]
    fn a_breaker_is_found_in_whichever_tokens_it_lies() {
        let text = |id: u32| ["ab", "c", "x", "x:", ":y", "", "lo", "ng", "er"][id as usize].as_bytes().to_vec();
        let breakers = [b":".to_vec(), b"longer".to_vec()];
        for (tokens, expected) in [
            (&[0, 1, 2][..], 3),
            (&[3, 1, 2], 2),
            (&[1, 2, 4], 0),
            (&[1, 4, 2, 2, 1], 3),
            (&[3, 6, 7, 8, 1], 1),    // "longer" in three tokens
            (&[6, 7, 8, 5], 1),       // a token without text comes after it
            (&[6, 7, 1, 8], 4),       // not that
            (&[6, 7, 8, 6, 7, 8], 0), // the last counts
        ] {
            assert_eq!(unbroken(tokens, &breakers, &text), expected, "{tokens:?}");
        }
    }
}
