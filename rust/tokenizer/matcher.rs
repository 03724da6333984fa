//! Finds tokens in raw text that are spelt out there: control tokens, and those that a user defined.

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

use super::added::flag;
use super::pace::{Pace, reserve};
use super::pre::class;
use super::text_index::TextIndex;
use super::vocabulary::{Kind, Odd, Texts};
use crate::error::Result;

/// Longest token, in bytes, that is looked for in a text. Real ones have some forty; one of a megabyte would cost fifty
/// for the automaton.
const MAX_LEN: usize = 1 << 16;

/// Finds the tokens that were chosen: the leftmost first, and of those the longest.
pub(super) struct Matcher {
    automaton: Option<AhoCorasick>, // None when there is nothing to find
    ids: Vec<u32>,
    flags: Vec<u8>, // of each, by its place in `ids`
    longest: usize, // bytes
}

/// A part of a text: as it is, or a token that was spelt out.
pub(super) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

impl Matcher {
    /// Text between two looks at the clock.
    const WINDOW: usize = 1 << 20;

    /// Looks for those of the tokens `ids` that `wanted` chooses, spelt as `spell` says. Of tokens that are spelt the same, the first is
    /// found; what can be in no text (nothing at all, or what is not UTF-8) is left out.
    pub(super) fn new(
        texts: Texts<'_>,
        pace: &mut Pace<'_>,
        ids: Range<u32>,
        wanted: impl Fn(u32, Kind) -> bool,
        spell: impl Fn(String, &mut Pace<'_>) -> Result<String>,
    ) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let mut chosen = Vec::new();
        for id in ids.filter(|&id| wanted(id, texts.kind(id))) {
            reserve(&mut chosen, 1)?;
            chosen.push(id);
        }
        let mut distinct = TextIndex::with_capacity(chosen.len())?;
        let (mut ids, mut flags, mut patterns, mut longest) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut too_long = Odd::new("token of more than 64 KiB, which is looked for in no text");
        for id in chosen {
            // A copy first: what was checked stays what it is, whatever becomes of the file.
            let text = texts.get(id).unwrap_or_default();
            pace.work(16 + text.len())?;
            if text.len() > MAX_LEN {
                too_long.see(id as usize);
                continue;
            }
            let Ok(text) = String::from_utf8(text.to_vec()) else { continue };
            if text.is_empty() || !distinct.insert(texts, id) {
                continue;
            }
            let text = spell(text, pace)?;
            if text.is_empty() {
                continue;
            }
            longest = longest.max(text.len());
            reserve(&mut ids, 1)?;
            reserve(&mut patterns, 1)?;
            reserve(&mut flags, 1)?;
            ids.push(id);
            flags.push(vocabulary.flags(id));
            patterns.push(text);
        }
        vocabulary.note(&too_long);
        if patterns.is_empty() {
            return Ok(Self { automaton: None, ids, flags, longest });
        }
        // An automaton whose size is that of the tokens: a dense one takes a kilobyte for each of their bytes, and finds
        // nothing faster, for most special tokens begin with `<`, which is looked for first.
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .dense_depth(1)
            .build(&patterns);
        let automaton = automaton.map_err(|e| vocabulary.error("too many special tokens").got(e))?;
        Ok(Self { automaton: Some(automaton), ids, flags, longest })
    }

    /// Whether there is nothing to find.
    pub(super) fn is_empty(&self) -> bool {
        self.automaton.is_none()
    }

    /// Cuts `text` at the tokens that it spells out.
    pub(super) fn split<'m, 't>(&'m self, text: &'t str) -> Parts<'m, 't> {
        Parts { matcher: self, text, given: 0, searched: 0, found: None }
    }
}

/// The parts of a text in order, none of them empty.
pub(super) struct Parts<'m, 't> {
    matcher: &'m Matcher,
    text: &'t str,
    given: usize,                // bytes that went out
    searched: usize,             // no match that begins before is left; behind what was given, if a token took more
    found: Option<(u32, usize)>, // a token that comes next, and its end
}

impl<'t> Parts<'_, 't> {
    /// The next part.
    pub(super) fn next(&mut self, pace: &mut Pace<'_>) -> Result<Option<Part<'t>>> {
        if let Some((id, end)) = self.found.take() {
            self.given = end;
            return Ok(Some(Part::Token(id)));
        }
        let start = match self.find(pace)? {
            Some((id, range)) => {
                self.found = Some((id, range.end));
                range.start
            }
            None => self.text.len(),
        };
        let part = &self.text[self.given..start];
        self.given = start;
        match part {
            "" if self.found.is_some() => self.next(pace),
            "" => Ok(None),
            part => Ok(Some(Part::Text(part))),
        }
    }

    fn find(&mut self, pace: &mut Pace<'_>) -> Result<Option<(u32, Range<usize>)>> {
        let Some(automaton) = &self.matcher.automaton else { return Ok(None) };
        while self.searched < self.text.len() {
            // A match that begins in the window lies in what is searched: none is longer than the longest token.
            let window = self.text.len().min(self.searched + Matcher::WINDOW);
            let range = self.searched..self.text.len().min(window + self.matcher.longest);
            if let Some(found) = automaton.find(Input::new(self.text).range(range))
                && found.start() < window
            {
                pace.work(found.end() - self.searched)?;
                let which = found.pattern().as_usize();
                self.searched = found.end();
                match self.extent(self.matcher.flags[which], found.range()) {
                    Some(range) => return Ok(Some((self.matcher.ids[which], range))),
                    None => continue,
                }
            }
            self.searched = window;
            pace.work(Matcher::WINDOW)?;
        }
        Ok(None)
    }

    /// What of the text belongs to a token that was found at `range`, if it may be there at all.
    fn extent(&self, flags: u8, range: Range<usize>) -> Option<Range<usize>> {
        let Range { mut start, mut end } = range;
        let (before, after) = (&self.text[self.given.min(start)..start], &self.text[end..]);
        if flags & flag::SINGLE_WORD != 0 {
            let last = self.text[..start].chars().next_back();
            if last.is_some_and(class::is_of_word) || after.chars().next().is_some_and(class::is_of_word) {
                return None;
            }
        }
        if flags & flag::LSTRIP != 0 {
            start -= before.len() - before.trim_end().len();
        }
        if flags & flag::RSTRIP != 0 {
            end += after.len() - after.trim_start().len();
        }
        // It may begin with white space that the one before it took.
        Some(start.max(self.given)..end.max(self.given))
    }
}
