//! Speculation: tokens that may come next are guessed, and computed together with the one that is certain.
//!
//! A pass over a few tokens takes little longer than one over a single token, as the weights are read once. The answer then
//! samples at each of the guessed positions just as it would have without them, from the same logits, since a row has the same
//! bits in any company, and with the same random numbers; the first token that is another than was guessed ends it, and
//! what was computed after it is forgotten. So nothing but the time depends on the guesses: with the same seed the answer is
//! the same.

use std::fmt;

use super::Forward;
use crate::error::Result;
use crate::threads::Interrupt;

/// Most tokens that are guessed at a time.
pub const MOST_DRAFTED: usize = 16;

/// Guesses the tokens that follow.
pub trait Draft: fmt::Debug + Send {
    /// At most `most` tokens that may follow `tokens`; none if there is no good guess.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted), and whatever computing them may say.
    fn draft(&mut self, tokens: &[u32], most: usize, interrupt: &Interrupt) -> Result<Vec<u32>>;
}

/// How many tokens to guess: more while guesses are right, and fewer when they are not, for each costs a little.
#[derive(Debug)]
pub(super) struct Speculation {
    draft: Box<dyn Draft>,
    most: usize,
    pub drafted: usize,
    pub accepted: usize,
}

impl Speculation {
    pub fn new(draft: Box<dyn Draft>) -> Self {
        Self { draft, most: 4, drafted: 0, accepted: 0 }
    }

    /// Guesses at most `room` tokens.
    pub fn draft(&mut self, tokens: &[u32], room: usize, interrupt: &Interrupt) -> Result<Vec<u32>> {
        let most = self.most.min(room);
        if most == 0 {
            return Ok(Vec::new());
        }
        let mut drafted = self.draft.draft(tokens, most, interrupt)?;
        drafted.truncate(most);
        Ok(drafted)
    }

    /// Says how many of the guessed tokens were right.
    pub fn was(&mut self, drafted: usize, accepted: usize) {
        self.drafted += drafted;
        self.accepted += accepted;
        if drafted > 0 {
            self.most = if accepted == drafted { (2 * self.most).min(MOST_DRAFTED) } else { accepted + 1 };
        }
    }
}

/// Guesses that what followed the last tokens before follows them again (prompt lookup, Saxena 2023): for summaries, edits and
/// code, which repeat what was there.
#[derive(Debug, Default)]
pub struct Lookup;

impl Lookup {
    /// Lengths of the endings that are looked for, the longest first.
    const LONGEST: usize = 4;
    const SHORTEST: usize = 2;
}

impl Draft for Lookup {
    fn draft(&mut self, tokens: &[u32], most: usize, _interrupt: &Interrupt) -> Result<Vec<u32>> {
        for n in (Self::SHORTEST..=Self::LONGEST).rev() {
            let Some(before) = tokens.len().checked_sub(n + 1).filter(|_| n > 0) else { continue };
            let ending = &tokens[tokens.len() - n..];
            // The last time it was there; what it ends with now does not count.
            let found = (0..=before).rev().find(|&at| &tokens[at..at + n] == ending);
            if let Some(at) = found {
                let mut follow = tokens[at + n..].to_vec();
                // Past the end it goes on as it does here: what repeats, repeats.
                while follow.len() < most {
                    follow.push(follow[follow.len() - (tokens.len() - at - n)]);
                }
                follow.truncate(most);
                return Ok(follow);
            }
        }
        Ok(Vec::new())
    }
}

/// Guesses what a smaller model of the same vocabulary finds most likely.
pub struct Drafter<S> {
    session: S,
    vocab_size: usize,
}

/// A guess that the smaller model is not at all sure of is not worth computing.
const LEAST_PROBABILITY: f32 = 0.3;

impl<S: Forward> Drafter<S> {
    /// With the session of a model whose first `vocab_size` tokens are those of the other.
    pub fn new(session: S, vocab_size: usize) -> Self {
        Self { session, vocab_size }
    }
}

impl<S> fmt::Debug for Drafter<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drafter").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl<S: Forward + Send> Draft for Drafter<S> {
    fn draft(&mut self, tokens: &[u32], most: usize, interrupt: &Interrupt) -> Result<Vec<u32>> {
        guess(&mut self.session, self.vocab_size, tokens, most, interrupt)
    }
}

/// What a model, whose first `vocab_size` tokens are those of another, finds most likely after `tokens`, as far as it is
/// sure. Its session keeps what it has of them.
///
/// # Errors
/// As for [`Forward::forward`].
pub fn guess<S: Forward>(
    session: &mut S,
    vocab_size: usize,
    tokens: &[u32],
    most: usize,
    interrupt: &Interrupt,
) -> Result<Vec<u32>> {
    let room = session.context_length().saturating_sub(tokens.len());
    let mut drafted = Vec::new();
    if tokens.iter().any(|&id| id as usize >= vocab_size) {
        return Ok(drafted);
    }
    let n = session.keep_prefix(tokens);
    while drafted.len() < most.min(room) {
        let new = if drafted.is_empty() { &tokens[n..] } else { &drafted[drafted.len() - 1..] };
        let logits = session.forward(new, interrupt)?;
        let logits = &logits[..vocab_size.min(logits.len())];
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let Some((id, &largest)) = best.filter(|(_, logit)| logit.is_finite()) else { break };
        let total: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
        if 1.0 / total < LEAST_PROBABILITY {
            break;
        }
        drafted.push(id as u32);
    }
    Ok(drafted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_guessed_to_follow_again() {
        let never = Interrupt::never();
        let drafted = |tokens: &[u32], most| Lookup.draft(tokens, most, &never).unwrap();
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 2), [3, 4]);
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 9), [3, 4, 5, 1, 2, 3, 4, 5, 1]);
        assert_eq!(drafted(&[9, 2, 3, 7, 1, 2, 3, 8, 5, 1, 2, 3], 1), [8]); // the longer ending
        assert_eq!(drafted(&[1, 2, 7, 1, 2, 8, 1, 2], 1), [8]); // the last time
        assert_eq!(drafted(&[5, 5, 5], 4), [5, 5, 5, 5]);
        for none in [&[][..], &[1], &[1, 2], &[1, 2, 3], &[1, 2, 1]] {
            assert!(drafted(none, 4).is_empty(), "{none:?}");
        }
    }

    #[test]
    fn more_is_guessed_while_guesses_are_right() {
        let never = Interrupt::never();
        let mut speculation = Speculation::new(Box::new(Lookup));
        let tokens: Vec<u32> = (0..50).chain(0..10).collect();
        let n = |speculation: &mut Speculation, right: usize| {
            let drafted = speculation.draft(&tokens, 100, &never).unwrap().len();
            speculation.was(drafted, right.min(drafted));
            drafted
        };
        assert_eq!([9, 9, 99, 0, 0, 1].map(|right| n(&mut speculation, right)), [4, 8, 16, 16, 1, 1]);
        assert_eq!(n(&mut speculation, 1), 2);
        assert!(speculation.draft(&tokens, 0, &never).unwrap().is_empty());
    }
}
