//! What a short text needs of a vocabulary.
//!
//! A prompt comes to the tokens that are parts of it, a handful of a hundred thousand. An index of just those is made in
//! half the time that one of all takes, where each token is a miss of the cache; what is left is the walk over them. The
//! first text gets such an index, and so does what is made of the same parts; anything else the whole one.

use std::sync::OnceLock;

use super::pace::Pace;
use super::vocabulary::get_or_try_init;
use crate::error::Result;

/// Longest text that has an index of its own, in bytes. Of a longer one so much is part that the whole index is as good.
const MAX_LEN: usize = 1 << 12;

const N_BITS: usize = 1 << 16; // of 8 KiB; a text of `MAX_LEN` that is spelt twice as long sets a quarter

/// Which texts may be parts of one: those that begin and end as something in it does.
pub(super) struct Parts {
    bits: Box<[u64; N_BITS / 64]>, // of the hashes of three and of four bytes that follow one another in the text
}

impl Parts {
    fn of(text: &[u8]) -> Self {
        let mut bits = Box::new([0; N_BITS / 64]);
        windows(text).for_each(|(word, bit)| bits[word] |= bit);
        Self { bits }
    }

    /// Whether `text` may be a part: yes for what is, and wrongly for some of what is not.
    #[inline]
    pub(super) fn may_have(&self, text: &[u8]) -> bool {
        let (first, last) = match *text {
            [a, b, c] => (place([a, b, c, 0]), None),
            [a, b, c, d, ..] => (place([a, b, c, d]), text.last_chunk().map(|&last| place(last))),
            _ => return true,
        };
        self.has(first) && last.is_none_or(|last| self.has(last))
    }

    fn has(&self, (word, bit): (usize, u64)) -> bool {
        self.bits[word] & bit != 0
    }

    /// Whether every part of `text` is a part here.
    fn cover(&self, text: &[u8]) -> bool {
        windows(text).all(|window| self.has(window))
    }
}

/// The bits of a text.
fn windows(text: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let of_three = text.windows(3).map(|three| place([three[0], three[1], three[2], 0]));
    of_three.chain(text.windows(4).map(|four| place([four[0], four[1], four[2], four[3]])))
}

/// The bit of four bytes: its word, and its place in that.
#[inline]
fn place(bytes: [u8; 4]) -> (usize, u64) {
    let hash = u32::from_le_bytes(bytes).wrapping_mul(0x9e37_79b1) >> (32 - N_BITS.ilog2()); // Knuth's multiplicative hash
    (hash as usize / 64, 1 << (hash % 64))
}

/// The index of a tokenizer: of the first text, then of all.
pub(super) struct Indexes<I> {
    first: OnceLock<(Parts, I)>,
    whole: OnceLock<I>,
}

impl<I> Default for Indexes<I> {
    fn default() -> Self {
        Self { first: OnceLock::new(), whole: OnceLock::new() }
    }
}

impl<I> Indexes<I> {
    /// An index that has all tokens that are parts of `text` as it is when `spell` has spelt it as tokens are. `make` makes
    /// one of the tokens that may be among the parts it is given, or of all.
    pub(super) fn of<'t, S: AsRef<str>>(
        &self,
        text: &'t str,
        pace: &mut Pace<'_>,
        spell: impl FnOnce(&'t str, &mut Pace<'_>) -> Result<S>,
        make: impl Fn(Option<&Parts>, &mut Pace<'_>) -> Result<I>,
    ) -> Result<&I> {
        if let Some(whole) = self.whole.get() {
            return Ok(whole);
        }
        if text.len() <= MAX_LEN {
            let spelt = spell(text, pace)?;
            let spelt = spelt.as_ref();
            let (parts, first) = get_or_try_init(&self.first, || {
                let parts = Parts::of(spelt.as_bytes());
                let index = make(Some(&parts), pace)?;
                Ok((parts, index))
            })?;
            if parts.cover(spelt.as_bytes()) {
                return Ok(first);
            }
        }
        get_or_try_init(&self.whole, || make(None, pace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::Interrupt;

    #[test]
    fn what_is_in_a_text_is_a_part_and_most_else_is_not() {
        let text: String = (0..400).map(|i| format!("{} ", i * i * 7919)).collect();
        let text = text.as_bytes();
        let parts = Parts::of(text);
        for len in 0..20 {
            assert!(text.windows(len.max(1)).all(|part| parts.may_have(part) && parts.cover(part)), "{len}");
        }
        let others: Vec<String> =
            (0..10_000).map(|i: u32| format!("{:x}", i.wrapping_mul(0x9e37_79b9) | 0xa000_000a)).collect();
        let wrong = others.iter().filter(|other| parts.may_have(other.as_bytes())).count();
        assert!(wrong < others.len() / 20, "{wrong}");
        assert!(!parts.cover(b"zebra"));
    }

    #[test]
    fn the_whole_is_made_once_for_what_the_first_text_does_not_have() {
        let indexes = Indexes::default();
        let interrupt = Interrupt::never();
        let made = std::cell::Cell::new(0);
        let get = |text: &str| {
            let make = |parts: Option<&Parts>, _: &mut Pace<'_>| {
                made.set(made.get() + 1);
                Ok(parts.is_none())
            };
            *indexes.of(text, &mut Pace::new(&interrupt), |text, _| Ok(text), make).expect("no error")
        };
        assert!(!get("a lighthouse"));
        assert!(!get("a lighthouse") && !get("light") && !get(""));
        assert_eq!(made.get(), 1);
        assert!(get("a keeper") && get("light"));
        assert_eq!(made.get(), 2);
    }

    #[test]
    fn a_long_text_takes_the_whole() {
        let interrupt = Interrupt::never();
        let is_whole = |text: &str| {
            let make = |parts: Option<&Parts>, _: &mut Pace<'_>| Ok(parts.is_none());
            *Indexes::default().of(text, &mut Pace::new(&interrupt), |text, _| Ok(text), make).expect("no error")
        };
        let long = "long ".repeat(MAX_LEN / 5 + 1);
        assert!(is_whole(&long));
        assert!(!is_whole(&long[..MAX_LEN]));
    }
}
