//! The order in which pairs of tokens were learnt to be one, for BPE that goes by it.
//!
//! A merge is found by the text that it makes: the token of that text, then those of the token's merges that cut it where
//! its two halves meet. So the halves need no look-up and the pairs no table, which would be most of the time and most of
//! the memory.

use super::pace::{Pace, reserve};
use super::parts::Parts;
use super::text_index::TextIndex;
use super::vocabulary::{MERGES, Odd, Texts};
use crate::checkpoint::{Metadata, StringArray};
use crate::error::Result;

/// Most merges that we accept. Real files have fewer than 600,000.
pub(super) const MAX_MERGES: usize = 1 << 22;

/// The merges of a file, checked as far as that takes no walk over them.
pub(super) fn merges(metadata: &Metadata) -> Result<StringArray> {
    let merges = metadata.strings(MERGES)?.ok_or_else(|| metadata.error("missing key", MERGES))?;
    if merges.len > MAX_MERGES {
        let e = metadata.error("too many merges", MERGES);
        return Err(e.got(merges.len).limit(format!("at most {MAX_MERGES}")).into());
    }
    Ok(merges)
}

/// The ranks of merges.
pub(super) struct Ranks {
    merges: Vec<Merge>, // (n_merges) by rank
    first: Vec<u32>,    // (vocab_size) of each token, the rank of a merge that makes it, or `NONE`
}

struct Merge {
    left_len: u32, // bytes of the left half's text
    next: u32,     // rank of another merge that makes the same token, or `NONE`
}

const NONE: u32 = u32::MAX;

impl Ranks {
    /// The ranks of `list`, as far as it speaks of the tokens in `by_text`, which are those of all `parts` there may be.
    pub(super) fn new(
        list: &StringArray,
        by_text: &TextIndex,
        texts: Texts<'_>,
        parts: Option<&Parts>,
        pace: &mut Pace<'_>,
    ) -> Result<Self> {
        let vocabulary = texts.vocabulary;
        let (mut merges, mut first) = (Vec::new(), Vec::new());
        reserve(&mut merges, list.len)?; // the file has 8 bytes for each
        reserve(&mut first, vocabulary.len())?;
        first.resize(vocabulary.len(), NONE);
        // llama.cpp keeps such merges and never comes to them, or to what no token is made of; HF's tokenizers refuses.
        let mut odd = Odd::of(MERGES, "merge that is not one of two tokens into a third, and is left out");
        let mut joint = Vec::new();
        let mut guess = 0;
        for (at, text) in list.iter().enumerate() {
            pace.work(16 + text.len())?;
            let halves = text.iter().position(|&b| b == b' ').map(|space| (&text[..space], &text[space + 1..]));
            // The halves of what is a part are parts.
            if halves.zip(parts).is_some_and(|((left, right), of)| !of.may_have(left) || !of.may_have(right)) {
                continue;
            }
            let Some((left, right)) = halves.filter(|&(left, right)| by_text.may_have(left) && by_text.may_have(right))
            else {
                odd.see(at);
                continue;
            };
            // Files list merges in the order of what they make: most make the next token, or the same once
            // more. Looking there first saves most of the look-ups, and it is only a guess.
            let is_joint = |&id: &u32| texts.get(id).and_then(|text| text.strip_prefix(left)) == Some(right);
            let guessed = if by_text.has_duplicates { None } else { [guess, guess + 1].into_iter().find(is_joint) };
            let found = guessed.or_else(|| {
                joint.clear();
                joint.extend_from_slice(left);
                joint.extend_from_slice(right);
                by_text.find(texts, &joint)
            });
            let Some(id) = found else {
                odd.see(at);
                continue;
            };
            guess = id;
            let merge = Merge { left_len: left.len() as u32, next: first[id as usize] };
            if rank_of(&merges, merge.next, merge.left_len).is_some() {
                continue; // listed twice: the first has the rank
            }
            first[id as usize] = merges.len() as u32; // at most `MAX_MERGES`
            merges.push(merge);
        }
        if parts.is_none() {
            vocabulary.note(&odd); // else those of a token that is no part are among them
        }
        Ok(Self { merges, first })
    }

    /// The rank of the merge that makes `joint` of two tokens, the left one `left_len` long.
    pub(super) fn find(&self, by_text: &TextIndex, texts: Texts<'_>, joint: &str, left_len: usize) -> Option<u32> {
        let id = by_text.find(texts, joint.as_bytes())?;
        rank_of(&self.merges, self.first[id as usize], left_len as u32)
    }
}

/// The merge with this left half among those that make the same token, beginning with `rank`.
fn rank_of(merges: &[Merge], mut rank: u32, left_len: u32) -> Option<u32> {
    while let Some(merge) = merges.get(rank as usize) {
        if merge.left_len == left_len {
            return Some(rank);
        }
        rank = merge.next;
    }
    None
}
