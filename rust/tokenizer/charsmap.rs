//! SentencePiece's table of characters: what each stretch of text becomes, by the longest that the table has.
//!
//! The table is a double array in the file (of the Darts kind), and texts behind it that end with a zero. It is walked where
//! it lies. What a damaged one says that cannot be is as if it said nothing.

use super::normalize::{push_char, push_str};
use super::pace::Pace;
use crate::checkpoint::{Metadata, ValueType};
use crate::error::Result;
use crate::mapping::Bytes;

const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";

/// A table of characters.
#[derive(Debug)]
pub(super) struct Charsmap {
    bytes: Bytes,
    units: usize, // bytes of the double array, which begins behind its length
}

impl Charsmap {
    /// The table of the file, if it has one that is not empty.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Option<Self>> {
        let array = match metadata.array(CHARSMAP, ValueType::U8) {
            // Some files have it as signed bytes.
            Err(e) => metadata.array(CHARSMAP, ValueType::I8).map_err(|_| e)?,
            Ok(array) => array,
        };
        let Some(array) = array.filter(|array| array.len > 0) else { return Ok(None) };
        let bytes = array.bytes.clone();
        let units = bytes.first_chunk::<4>().map_or(usize::MAX, |len| u32::from_le_bytes(*len) as usize);
        if units > bytes.len() - bytes.len().min(4) || !units.is_multiple_of(4) {
            let e = metadata
                .error("a table of characters that is longer than it is", CHARSMAP)
                .got(format!("{units} bytes"));
            return Err(e.limit(format!("at most {}, by fours", bytes.len().saturating_sub(4))).into());
        }
        Ok(Some(Self { bytes, units }))
    }

    /// What the table makes of `text`.
    pub(super) fn apply(&self, text: &str, pace: &mut Pace<'_>) -> Result<String> {
        let mut out = String::new();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            match self.find(&text[at..]) {
                Some((len, replacement)) => {
                    pace.work(len + replacement.len())?;
                    push_str(&mut out, &replacement)?;
                    at += len;
                }
                None => {
                    pace.work(1)?;
                    push_char(&mut out, c)?;
                    at += c.len_utf8();
                }
            }
        }
        Ok(out)
    }

    /// The longest start of `text` that the table has, and what it becomes.
    fn find(&self, text: &str) -> Option<(usize, String)> {
        let mut found = None;
        let mut node = offset(self.unit(0)?);
        for (at, &byte) in text.as_bytes().iter().enumerate().take(MAX_KEY) {
            node ^= u32::from(byte);
            let Some(unit) = self.unit(node).filter(|unit| byte != 0 && unit & 0x8000_00ff == u32::from(byte)) else {
                break;
            };
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let Some(value) = self.unit(node) else { break };
                found = Some((at + 1, value & 0x7fff_ffff));
            }
        }
        let (len, start) = found.filter(|&(len, _)| text.is_char_boundary(len))?;
        let rest = self.bytes.get(4 + self.units + start as usize..)?;
        let end = rest.iter().take(MAX_REPLACEMENT).position(|&byte| byte == 0)?;
        Some((len, String::from_utf8(rest[..end].to_vec()).ok()?))
    }

    fn unit(&self, node: u32) -> Option<u32> {
        let at = (node as usize).checked_mul(4).filter(|&at| at < self.units)?;
        Some(u32::from_le_bytes(*self.bytes.get(4 + at..)?.first_chunk()?))
    }
}

/// Longest stretch: a damaged table may lead around for ever.
const MAX_KEY: usize = 256;

/// Longest text that a stretch becomes: the longest of Unicode has 33 bytes.
const MAX_REPLACEMENT: usize = 1 << 10;

/// Where the children of a unit are, relative to it.
fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}
