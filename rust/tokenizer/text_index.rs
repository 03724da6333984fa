//! Finds a token by its text. The table holds ids and bits of hashes; the texts stay where they are.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::RandomState;

use super::pace::{Pace, reserve};
use super::vocabulary::Texts;
use crate::error::Result;

/// The tokens that were put into it, by their texts.
///
/// Open addressing with linear probing. A slot is the upper half of the hash and the id plus one, so a
/// look-up that finds nothing touches one cache line, and no text. The hash is keyed at random for each table:
/// a file cannot choose texts that fall on one another.
pub(super) struct TextIndex {
    slots: Vec<u64>, // (a power of two); 0 where there is nothing
    hasher: RandomState,
    /// Whether two tokens have the same text; the first is found.
    pub(super) has_duplicates: bool,
}

impl TextIndex {
    /// An index of `ids`, of which those with the text of one before them are left out.
    pub(super) fn of(texts: Texts<'_>, ids: &[u32], pace: &mut Pace<'_>) -> Result<Self> {
        let mut index = Self::with_capacity(ids.len())?;
        for &id in ids {
            pace.work(16)?;
            index.insert(texts, id);
        }
        Ok(index)
    }

    /// An index with room for `capacity` tokens, which are fewer than 2^29.
    pub(super) fn with_capacity(capacity: usize) -> Result<Self> {
        let len = (capacity + capacity / 2 + 1).next_power_of_two();
        let mut slots = Vec::new();
        reserve(&mut slots, len)?;
        slots.resize(len, 0);
        Ok(Self { slots, hasher: RandomState::default(), has_duplicates: false })
    }

    /// Adds the token `id`, unless there is one with the same text. Says whether it did.
    pub(super) fn insert(&mut self, texts: Texts<'_>, id: u32) -> bool {
        let Some(text) = texts.get(id) else { return false };
        let hash = self.hash(text);
        match self.probe(hash, |other| texts.get(other) == Some(text)) {
            Ok(_) => {
                self.has_duplicates = true;
                false
            }
            Err(free) => {
                self.slots[free] = hash >> 32 << 32 | u64::from(id + 1);
                true
            }
        }
    }

    /// The token that has this text.
    pub(super) fn find(&self, texts: Texts<'_>, text: &[u8]) -> Option<u32> {
        self.probe(self.hash(text), |id| texts.get(id) == Some(text)).ok()
    }

    /// Whether there is a token with this text, by its hash alone: wrongly yes for one text in four thousand million.
    pub(super) fn may_have(&self, text: &[u8]) -> bool {
        self.probe(self.hash(text), |_| true).is_ok()
    }

    /// The id in a slot of this hash that `is_it`, or else the free slot where it would be.
    fn probe(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            match self.slots[at] {
                0 => return Err(at), // comes to be: a third of the slots are free
                slot if slot >> 32 == hash >> 32 && is_it(slot as u32 - 1) => return Ok(slot as u32 - 1),
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn hash(&self, text: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(text);
        hasher.finish()
    }
}
