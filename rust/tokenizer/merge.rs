//! Merging neighbours, best first: what the two kinds of BPE have in common.
//!
//! A text is a linked list of symbols, each a stretch of it, and the possible merges wait in a heap. So a
//! word of a million letters takes n log n steps, and no recursion.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Merges one text after another in buffers that it keeps.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

/// A stretch of the text.
#[derive(Clone, Copy)]
pub(super) struct Symbol {
    pub(super) start: u32,
    pub(super) len: u32, // in bytes; 0 once it was merged into its left neighbour
    prev: u32,
    next: u32,
    /// The token that it is, if it may not be merged.
    pub(super) fixed: Option<u32>,
}

impl Symbol {
    /// Its text, within that of all.
    pub(super) fn of(self, text: &str) -> &str {
        &text[self.start as usize..][..self.len as usize]
    }
}

/// Priority (the lowest goes first), index of the left symbol (of equals, the leftmost), bytes of both.
type Candidate = Reverse<(u32, u32, u32)>;

const NONE: u32 = u32::MAX;

impl Merger {
    /// Forgets the last text.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Adds the next symbol of a text of less than 4 GiB, which [`super::MAX_TEXT_LEN`] sees to.
    pub(super) fn push(&mut self, len: usize, fixed: Option<u32>) {
        let at = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |last| last.start + last.len);
        self.symbols.push(Symbol { start, len: len as u32, prev: at.wrapping_sub(1), next: at + 1, fixed });
    }

    /// Merges neighbours for as long as `priority` has one for what they make of `text`; it is given their
    /// joint text and the length of the left one.
    pub(super) fn merge<'t>(&mut self, text: &'t str, mut priority: impl FnMut(&'t str, usize) -> Option<u32>) {
        let Self { symbols, queue } = self;
        let mut offer = |symbols: &[Symbol], queue: &mut BinaryHeap<Candidate>, left: u32, right: u32| {
            if left == NONE || right == NONE {
                return;
            }
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            if l.fixed.is_none() && r.fixed.is_none() {
                let len = l.len + r.len;
                let joint = &text[l.start as usize..][..len as usize];
                queue.extend(priority(joint, l.len as usize).map(|priority| Reverse((priority, left, len))));
            }
        };
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        for right in 1..symbols.len() as u32 {
            offer(symbols, queue, right - 1, right);
        }
        while let Some(Reverse((_, left, len))) = queue.pop() {
            let Symbol { prev, next: right, len: left_len, .. } = symbols[left as usize];
            // Out of date if one of the two has been merged since.
            if left_len == 0 || right == NONE || left_len + symbols[right as usize].len != len {
                continue;
            }
            let next = symbols[right as usize].next;
            symbols[right as usize].len = 0;
            symbols[left as usize].len = len;
            symbols[left as usize].next = next;
            if next != NONE {
                symbols[next as usize].prev = left;
            }
            offer(symbols, queue, prev, left);
            offer(symbols, queue, left, next);
        }
    }

    /// The symbols that there are, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        self.symbols.iter().copied().filter(|symbol| symbol.len != 0)
    }
}
