//! What is done to a text before it is cut into words: a list of steps, none for most models.
//!
//! `tokenizer.json` names the steps, and so does a key of our own; of a GGUF they follow from the kind of vocabulary. A step
//! takes linear time and asks now and then whether to go on.

use std::borrow::Cow;

use unicode_general_category::{GeneralCategory, get_general_category};
use unicode_normalization::char::is_combining_mark;
use unicode_normalization::{
    IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick,
};

use super::charsmap::Charsmap;
use super::pace::{Pace, no_memory};
use super::vocabulary::shown;
use crate::checkpoint::Metadata;
use crate::error::{Error, Result};

const NORMALIZERS: &str = "llama_rs.tokenizer.normalizers";

/// The steps, in order.
#[derive(Debug, Default)]
pub(super) struct Normalizer {
    steps: Vec<Step>,
}

/// What is done to a text.
#[derive(Debug)]
enum Step {
    Form(Form),
    Lowercase,
    StripAccents,
    Nmt,
    Bert(Bert),
    Strip {
        left: bool,
        right: bool,
    },
    Charsmap(Charsmap),
    Replace {
        from: String,
        to: String,
    },
    /// Two spaces and more become this.
    Collapse(String),
    /// Spaces go at both ends, and become one in between.
    Spaces,
}

/// A normal form of Unicode.
#[derive(Debug, Clone, Copy)]
enum Form {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

/// BERT's own steps.
#[derive(Debug, Clone, Copy)]
struct Bert {
    clean: bool,
    chinese: bool,
    accents: bool,
    lowercase: bool,
}

/// Most steps of a file.
const MAX_STEPS: usize = 64;

impl Normalizer {
    /// No steps.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Normal form C alone.
    pub(super) fn nfc() -> Self {
        Self { steps: vec![Step::Form(Form::Nfc)] }
    }

    /// BERT's steps, as a GGUF has them.
    pub(super) fn bert(metadata: &Metadata) -> Result<Self> {
        let lowercase = metadata.bool("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true);
        let accents = metadata.bool("tokenizer.ggml.normalizer.strip_accents")?.unwrap_or(lowercase);
        Ok(Self { steps: vec![Step::Bert(Bert { clean: true, chinese: true, accents, lowercase })] })
    }

    /// SentencePiece's steps, as a GGUF has them.
    pub(super) fn sentencepiece(metadata: &Metadata, removes_spaces_by_default: bool) -> Result<Self> {
        let mut steps: Vec<Step> = Charsmap::from_metadata(metadata)?.map(Step::Charsmap).into_iter().collect();
        let key = "tokenizer.ggml.remove_extra_whitespaces";
        if metadata.bool(key)?.unwrap_or(removes_spaces_by_default) {
            steps.push(Step::Spaces);
        }
        Ok(Self { steps })
    }

    /// The steps that the file names, if it does.
    pub(super) fn named(metadata: &Metadata) -> Result<Option<Self>> {
        let Some(names) = metadata.strings(NORMALIZERS)? else { return Ok(None) };
        let mut steps = Vec::new();
        for name in names.iter().take(MAX_STEPS + 1) {
            let name = String::from_utf8_lossy(name).into_owned();
            if name == "None" {
                continue;
            }
            let step = Self::step(&name, metadata)?;
            steps.push(step.filter(|_| steps.len() < MAX_STEPS).ok_or_else(|| Error::Unsupported {
                path: metadata.path().to_path_buf(),
                what: format!("the normalizer {} ({NORMALIZERS})", shown(name.as_bytes())),
            })?);
        }
        Ok(Some(Self { steps }))
    }

    fn step(name: &str, metadata: &Metadata) -> Result<Option<Step>> {
        let (name, rest) = name.split_once(' ').unwrap_or((name, ""));
        let has = |word: &str| rest.split(' ').any(|w| w == word);
        Ok(Some(match name {
            "NFC" => Step::Form(Form::Nfc),
            "NFD" => Step::Form(Form::Nfd),
            "NFKC" => Step::Form(Form::Nfkc),
            "NFKD" => Step::Form(Form::Nfkd),
            "Lowercase" => Step::Lowercase,
            "StripAccents" => Step::StripAccents,
            "Nmt" => Step::Nmt,
            "Bert" => Step::Bert(Bert {
                clean: has("clean"),
                chinese: has("chinese"),
                accents: has("accents"),
                lowercase: has("lowercase"),
            }),
            "Strip" => Step::Strip { left: has("left"), right: has("right") },
            "Precompiled" => match Charsmap::from_metadata(metadata)? {
                Some(map) => Step::Charsmap(map),
                None => return Ok(None),
            },
            "Replace" => match rest.split_once('\0') {
                Some((from, to)) if !from.is_empty() => Step::Replace { from: from.into(), to: to.into() },
                _ => return Ok(None),
            },
            "Collapse" => Step::Collapse(rest.into()),
            _ => return Ok(None),
        }))
    }

    /// How many times shorter a text may become at most, if that is known.
    pub(super) fn shrinks(&self) -> Option<usize> {
        match self.steps[..] {
            [] => Some(1),
            // A composed character takes no less than a quarter of the bytes that it was composed of.
            [Step::Form(Form::Nfc)] => Some(4),
            _ => None,
        }
    }

    /// What the steps make of `text`.
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::OutOfMemory`].
    pub(super) fn normalize<'t>(&self, text: &'t str, pace: &mut Pace<'_>) -> Result<Cow<'t, str>> {
        let mut text = Cow::Borrowed(text);
        for step in &self.steps {
            if let Some(changed) = step.apply(&text, pace)? {
                text = Cow::Owned(changed);
            }
        }
        Ok(text)
    }
}

impl Step {
    /// What it makes of `text`, unless that stays as it is.
    fn apply(&self, text: &str, pace: &mut Pace<'_>) -> Result<Option<String>> {
        match self {
            Step::Form(form) => form.apply(text, pace),
            Step::Lowercase => collect(text.chars().flat_map(char::to_lowercase), text, pace).map(Some),
            Step::StripAccents => collect(text.chars().filter(|&c| !is_combining_mark(c)), text, pace).map(Some),
            Step::Nmt => collect(text.chars().filter_map(nmt), text, pace).map(Some),
            Step::Bert(bert) => bert.apply(text, pace).map(Some),
            Step::Strip { left, right } => {
                let stripped = if *left { text.trim_start() } else { text };
                let stripped = if *right { stripped.trim_end() } else { stripped };
                pace.work(text.len() - stripped.len())?;
                Ok((stripped.len() < text.len()).then(|| stripped.to_owned()))
            }
            Step::Charsmap(map) => map.apply(text, pace).map(Some),
            Step::Replace { from, to } => {
                let mut out = String::new();
                for (i, piece) in text.split(from.as_str()).enumerate() {
                    pace.work(1 + piece.len())?;
                    if i > 0 {
                        push_str(&mut out, to)?;
                    }
                    push_str(&mut out, piece)?;
                }
                Ok(Some(out))
            }
            Step::Collapse(to) => {
                let mut out = String::new();
                let mut rest = text;
                while let Some(at) = rest.find("  ") {
                    let tail = rest[at..].trim_start_matches(' ');
                    pace.work(rest.len() - tail.len())?;
                    push_str(&mut out, &rest[..at])?;
                    push_str(&mut out, to)?;
                    rest = tail;
                }
                pace.work(rest.len())?;
                push_str(&mut out, rest)?;
                Ok(Some(out))
            }
            Step::Spaces => {
                let mut out = String::new();
                for word in text.split(' ').filter(|word| !word.is_empty()) {
                    pace.work(1 + word.len())?;
                    if !out.is_empty() {
                        push_str(&mut out, " ")?;
                    }
                    push_str(&mut out, word)?;
                }
                Ok(Some(out))
            }
        }
    }
}

impl Form {
    fn apply(self, text: &str, pace: &mut Pace<'_>) -> Result<Option<String>> {
        if text.is_ascii() {
            return Ok(None);
        }
        let mut interrupted = Ok(());
        let chars = text.chars().take_while(|_| {
            interrupted = pace.work(1);
            interrupted.is_ok()
        });
        let quick = match self {
            Form::Nfc => is_nfc_quick(chars),
            Form::Nfd => is_nfd_quick(chars),
            Form::Nfkc => is_nfkc_quick(chars),
            Form::Nfkd => is_nfkd_quick(chars),
        };
        interrupted?;
        if quick == IsNormalized::Yes {
            return Ok(None);
        }
        Ok(Some(match self {
            Form::Nfc => collect(text.nfc(), text, pace)?,
            Form::Nfd => collect(text.nfd(), text, pace)?,
            Form::Nfkc => collect(text.nfkc(), text, pace)?,
            Form::Nfkd => collect(text.nfkd(), text, pace)?,
        }))
    }
}

impl Bert {
    fn apply(self, text: &str, pace: &mut Pace<'_>) -> Result<String> {
        let mut out = String::new();
        let clean = |c: char| match c {
            c if !self.clean => Some(c),
            '\t' | '\n' | '\r' => Some(' '),
            '\0' | '\u{fffd}' => None,
            c if is_control(c) => None, // white space or not
            c if c.is_whitespace() => Some(' '),
            c => Some(c),
        };
        let chars = text.chars().filter_map(clean);
        let mut push = |c: char| -> Result<()> {
            pace.work(1)?;
            if self.accents && !c.is_ascii() && get_general_category(c) == GeneralCategory::NonspacingMark {
                return Ok(());
            }
            if !self.lowercase {
                return push_char(&mut out, c);
            }
            c.to_lowercase().try_for_each(|c| push_char(&mut out, c))
        };
        let mut spaced = |c: char| -> Result<()> {
            if !(self.chinese && is_chinese(c)) {
                return push(c);
            }
            push(' ')?;
            push(c)?;
            push(' ')
        };
        // What decomposes into a Chinese character is one itself, so it does not matter which comes first.
        if self.accents {
            chars.nfd().try_for_each(&mut spaced)?
        } else {
            chars.into_iter().try_for_each(&mut spaced)?
        }
        Ok(out)
    }
}

/// Control, format and private characters. BERT takes those for nothing.
fn is_control(c: char) -> bool {
    use GeneralCategory::*;
    match c {
        '\0'..='\x7f' => c.is_ascii_control(),
        _ => matches!(get_general_category(c), Control | Format | PrivateUse | Unassigned),
    }
}

fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

/// What machine translation does to characters that nobody sees.
fn nmt(c: char) -> Option<char> {
    match u32::from(c) {
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0x8f | 0x9f => None,
        0x9 | 0xa | 0xc | 0xd | 0x1680 | 0x200b..=0x200f | 0x2028 | 0x2029 | 0x2581 | 0xfeff | 0xfffd => Some(' '),
        _ => Some(c),
    }
}

/// The text of `chars`, which come of `text`.
fn collect(chars: impl Iterator<Item = char>, text: &str, pace: &mut Pace<'_>) -> Result<String> {
    let mut out = String::new();
    out.try_reserve(text.len()).map_err(|_| no_memory(text.len()))?;
    for c in chars {
        pace.work(1)?;
        push_char(&mut out, c)?;
    }
    Ok(out)
}

pub(super) fn push_char(text: &mut String, c: char) -> Result<()> {
    push_str(text, c.encode_utf8(&mut [0; 4]))
}

pub(super) fn push_str(text: &mut String, more: &str) -> Result<()> {
    if text.capacity() - text.len() < more.len() {
        text.try_reserve(more.len()).map_err(|_| no_memory(text.len() + more.len()))?;
    }
    text.push_str(more);
    Ok(())
}
