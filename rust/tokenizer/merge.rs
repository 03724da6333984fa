//! Merging neighbours, best first: what the two kinds of BPE have in common.
//!
//! A text is a linked list of symbols, each a stretch of it, and the possible merges wait in a heap. So a
//! word of a million letters takes n log n steps, and no recursion.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pace::{Pace, reserve};
use crate::error::Result;

/// Merges one text after another in buffers that it keeps.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

/// A stretch of the text.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32, // in bytes; 0 once it was merged into its left neighbour
    prev: u32,
    next: u32,
}

/// Priority (the lowest goes first), index of the left symbol (of equals, the leftmost), bytes of both.
type Candidate = Reverse<(u32, u32, u32)>;

const NONE: u32 = u32::MAX;

/// Symbols between two counts of the work.
const STRIDE: usize = 1 << 10;

impl Merger {
    /// Merges neighbours of the characters of `text` for as long as `priority` has one for what they make; it is given
    /// their joint text and the length of the left one. [`Self::symbols`] are what is left.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted), and if there is no memory for the symbols of a long text.
    pub(super) fn merge<'t>(
        &mut self,
        text: &'t str,
        pace: &mut Pace<'_>,
        mut priority: impl FnMut(&'t str, usize) -> Option<u32>,
    ) -> Result<()> {
        let Self { symbols, queue } = self;
        symbols.clear();
        queue.clear();
        let len = text.chars().count();
        reserve(symbols, len)?;
        for (at, (start, c)) in text.char_indices().enumerate() {
            if at % STRIDE == 0 {
                pace.work(STRIDE.min(len))?;
            }
            let at = at as u32; // `MAX_TEXT_LEN` sees to it that 32 bits will do
            symbols.push(Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                prev: at.wrapping_sub(1),
                next: at + 1,
            });
        }
        let Some(last) = symbols.last_mut() else { return Ok(()) };
        last.next = NONE;

        let mut candidate = |symbols: &[Symbol], left: u32, right: u32| -> Option<Candidate> {
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            let len = l.len + r.len;
            let joint = &text[l.start as usize..][..len as usize];
            Some(Reverse((priority(joint, l.len as usize)?, left, len)))
        };
        // A heap that is made of all at once takes linear time.
        let mut candidates = std::mem::take(queue).into_vec();
        reserve(&mut candidates, len)?;
        for right in 1..len {
            if right % STRIDE == 0 {
                pace.work(STRIDE)?;
            }
            candidates.extend(candidate(symbols, right as u32 - 1, right as u32));
        }
        *queue = candidates.into();
        while let Some(Reverse((_, left, len))) = queue.pop() {
            pace.work(1)?;
            let Symbol { prev, next: right, len: left_len, .. } = symbols[left as usize];
            // Out of date if one of the two has been merged since.
            if left_len == 0 || right == NONE || left_len + symbols[right as usize].len != len {
                continue;
            }
            let next = symbols[right as usize].next;
            symbols[right as usize].len = 0;
            symbols[left as usize].len = len;
            symbols[left as usize].next = next;
            // Each merge takes a symbol away and offers two: the heap never holds more than twice the symbols.
            if prev != NONE {
                push(queue, candidate(symbols, prev, left))?;
            }
            if next != NONE {
                symbols[next as usize].prev = left;
                push(queue, candidate(symbols, left, next))?;
            }
        }
        Ok(())
    }

    /// The symbols of `text`, which was merged last, in order.
    pub(super) fn symbols<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let left = self.symbols.iter().filter(|symbol| symbol.len != 0);
        left.map(|symbol| &text[symbol.start as usize..][..symbol.len as usize])
    }
}

fn push(queue: &mut BinaryHeap<Candidate>, candidate: Option<Candidate>) -> Result<()> {
    if let Some(candidate) = candidate {
        if queue.len() == queue.capacity() {
            queue.try_reserve(1).map_err(|_| super::pace::no_memory(queue.len() * size_of::<Candidate>()))?;
        }
        queue.push(candidate);
    }
    Ok(())
}
