//! What an answer may be: a grammar becomes the tokens that may come next.
//!
//! A [`Grammar`] is what one asks for. [`compile`] makes a [`Constraint`] of it, which is the state of one answer: before each
//! token it says which ones may come ([`Constraint::mask`]), and after it that it came ([`Constraint::accept`]). It ends an
//! answer only where the grammar can end. The work is llguidance's: an Earley parser over a lexer of derivatives, run along
//! a trie of the vocabulary. The trie is made once per tokenizer, when the first grammar is compiled.
//!
//! Grammars come from strangers. Their size is bounded, what they may cost too, and they are compiled on a thread of their
//! own, which whoever waits for may leave.

mod gbnf;
mod schema;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::SimpleVob;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::threads::{self, Interrupt};
use crate::tokenizer::Tokenizer;

pub use schema::{from_response_format, prepare as prepare_schema};
use vocabulary::Grammars;

/// Bytes of a JSON Schema.
const MOST_SCHEMA: usize = 256 << 10;
/// Bytes of any other grammar.
const MOST_GRAMMAR: usize = 64 << 10;
/// How long a grammar may take; a schema of forty fields takes some 30 ms.
const MOST_TIME: Duration = Duration::from_secs(10);
/// How often whoever waits for a grammar looks whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(10);
/// Of the thread that compiles: a schema goes as deep as JSON may.
const STACK: usize = 32 << 20;

/// What an answer may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid by a JSON Schema. `strict` closes objects that do not say whether they are open.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// As OpenAI means it.
        strict: bool,
    },
    /// Text that a regular expression matches as a whole: syntax of the Rust crate `regex`, without anchors inside.
    Regex(String),
    /// One of these texts.
    Choices(Vec<String>),
    /// Text of a grammar in llguidance's Lark, from `start`.
    Lark(String),
    /// Text of a grammar in llama.cpp's GBNF, from `root`.
    Gbnf(String),
}

impl Grammar {
    /// A grammar in GBNF, whose rules are written with `::=`, or else in Lark.
    pub fn from_text(text: &str) -> Self {
        let is_rule = |line: &str| {
            let name =
                line.trim_start().trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            name.trim_start().starts_with("::=") && name.len() < line.trim_start().len()
        };
        let is_gbnf = text.lines().any(is_rule);
        if is_gbnf { Grammar::Gbnf(text.into()) } else { Grammar::Lark(text.into()) }
    }

    /// A JSON Schema, as text.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it is no JSON.
    pub fn from_schema_text(text: &str, strict: bool) -> Result<Self> {
        check_size("a JSON schema", text.len(), MOST_SCHEMA)?;
        let schema = serde_json::from_str(text)
            .map_err(|e| Error::Grammar { pointer: None, what: format!("the schema is no JSON: {e}") })?;
        Ok(Grammar::JsonSchema { schema, strict })
    }

    /// What llguidance takes.
    fn to_llguidance(&self) -> Result<TopLevelGrammar> {
        Ok(match self {
            Grammar::JsonObject => {
                TopLevelGrammar::from_json_schema(schema::prepare(&serde_json::json!({"type": "object"}), false)?)
            }
            Grammar::JsonSchema { schema, strict } => {
                TopLevelGrammar::from_json_schema(schema::prepare(schema, *strict)?)
            }
            Grammar::Regex(regex) => {
                check_size("a regular expression", regex.len(), MOST_GRAMMAR)?;
                TopLevelGrammar::from_regex(without_anchors(regex))
            }
            Grammar::Choices(choices) => {
                let text: Vec<String> = choices.iter().map(|choice| lark_string(choice)).collect();
                let text = text.join(" | ");
                check_size("a list of choices", text.len(), MOST_GRAMMAR)?;
                TopLevelGrammar::from_lark(format!("start: {text}"))
            }
            Grammar::Lark(text) => {
                check_size("a grammar", text.len(), MOST_GRAMMAR)?;
                TopLevelGrammar::from_lark(text.clone())
            }
            Grammar::Gbnf(text) => {
                check_size("a grammar", text.len(), MOST_GRAMMAR)?;
                TopLevelGrammar::from_lark(gbnf::to_lark(text)?)
            }
        })
    }
}

fn check_size(what: &str, bytes: usize, most: usize) -> Result<()> {
    if bytes <= most {
        return Ok(());
    }
    Err(Error::Grammar {
        pointer: None,
        what: format!("{what} of {bytes} bytes is too long, at most {most} are taken"),
    })
}

/// The whole text is matched anyway.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let Some(inner) = regex.strip_suffix('$') else { return regex };
    let escaped = inner.len() - inner.trim_end_matches('\\').len();
    if escaped.is_multiple_of(2) { inner } else { regex }
}

/// A text as a literal of Lark, which takes those of JSON.
fn lark_string(text: &str) -> String {
    // Of JSON's text no control character is left but DEL, which Lark does not take.
    Value::from(text).to_string().replace('\x7f', "\\u007f")
}

/// Compiles a grammar for the vocabulary of a tokenizer. The first one of a tokenizer waits for the trie.
///
/// # Errors
/// [`Error::Grammar`] if it cannot be enforced: what is wrong, and for a JSON Schema where; [`Error::Interrupted`].
pub fn compile(tokenizer: &Arc<Tokenizer>, grammar: &Grammar, interrupt: &Interrupt) -> Result<Constraint> {
    if let Some(matcher) = Grammars::known(tokenizer, grammar) {
        return Ok(Constraint::new(matcher));
    }
    let (send, receive) = sync_channel(1);
    let work = {
        let (tokenizer, grammar) = (Arc::clone(tokenizer), grammar.clone());
        move || drop(send.send(Grammars::of(&tokenizer).and_then(|grammars| grammars.matcher(&grammar))))
    };
    let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK).spawn(work);
    let thread = thread.map_err(|_| Error::OutOfMemory { bytes: STACK as u128, what: "a thread for the grammar" })?;
    let start = Instant::now();
    // Time on a core: on a busy machine small grammars wait long for one.
    let worked = || threads::cpu_time(&thread).unwrap_or_else(|| start.elapsed());
    loop {
        match receive.recv_timeout(PATIENCE) {
            Ok(matcher) => return matcher.map(Constraint::new),
            Err(RecvTimeoutError::Disconnected) => return Err(refused("it cannot be compiled".into())),
            Err(RecvTimeoutError::Timeout) if interrupt.poll(0) => return Err(Error::Interrupted),
            // What it may still cost is bounded: nobody waits for it.
            Err(RecvTimeoutError::Timeout) if worked() > MOST_TIME => {
                return Err(refused(format!("it takes longer than {} s: simplify it", MOST_TIME.as_secs())));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn refused(what: String) -> Error {
    Error::Grammar { pointer: None, what: format!("the grammar cannot be used: {what}") }
}

fn failed(e: impl std::fmt::Display) -> Error {
    refused(one_line(&e.to_string()))
}

/// What llguidance says, in a line.
fn one_line(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("it is not valid").trim();
    let mut short: String = line.chars().take(300).collect();
    if line.chars().nth(300).is_some() {
        short.push_str("...");
    }
    short
}

impl Grammars {
    /// A grammar at its beginning.
    fn matcher(&self, grammar: &Grammar) -> Result<Matcher> {
        let compiled = try_compile(self.factory(), grammar.to_llguidance()?);
        match (compiled, grammar) {
            (Ok(matcher), _) => {
                self.keep(grammar, &matcher);
                Ok(matcher)
            }
            (Err(what), Grammar::JsonSchema { schema, strict }) => {
                Err(schema::located(schema, *strict, what, |schema| {
                    try_compile(self.factory(), TopLevelGrammar::from_json_schema(schema)).err()
                }))
            }
            (Err(what), _) => Err(refused(what)),
        }
    }
}

fn try_compile(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Matcher, String> {
    let parser = llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| factory.create_parser(grammar)));
    let mut matcher = Matcher::new(Ok(parser.map_err(|e| one_line(&e.to_string()))?));
    // What is wrong with some grammars comes out with the first mask.
    matcher.compute_mask_or_eos().map_err(|e| one_line(&e.to_string()))?;
    Ok(matcher)
}

/// What a token did to a constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// There may be more.
    Going,
    /// There can be no more: the answer is complete.
    Complete,
    /// It cannot come here: another one has to.
    Refused,
}

/// What one answer may still be.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    mask: Option<SimpleVob>, // of the next token, once it is computed
    waits: Option<Waiting>,  // as long as the text is free
}

/// Before a marker the text is free.
#[derive(Debug, Clone)]
struct Waiting {
    markers: Vec<Vec<u8>>,
    may_end: bool,
    text: Vec<u8>, // the end of it, as far as a marker may begin in it
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constraint({})", if self.is_waiting() { "waiting" } else { "active" })
    }
}

impl Constraint {
    fn new(matcher: Matcher) -> Self {
        Self { matcher, mask: None, waits: None }
    }

    /// Leaves the text free until one of these markers is complete: `</think>`, say, or `<tool_call>`. A token that does not
    /// come out as text counts by its name. Unless it `may_end` before, the answer goes on until there is one.
    pub fn after(mut self, markers: &[String], may_end: bool) -> Self {
        let markers = markers.iter().map(|marker| marker.as_bytes().to_vec()).collect();
        self.waits = Some(Waiting { markers, may_end, text: Vec::new() });
        self
    }

    /// Whether the text is still free.
    pub fn is_waiting(&self) -> bool {
        self.waits.is_some()
    }

    /// Whether the answer may end here.
    pub fn can_end(&mut self) -> bool {
        match &self.waits {
            Some(waiting) => waiting.may_end,
            None => self.matcher.is_accepting().unwrap_or(false),
        }
    }

    /// Computes which tokens may come next, if that has not been done: while their logits are computed, say.
    ///
    /// # Errors
    /// [`Error::Grammar`] if the grammar costs too much here.
    pub fn prepare(&mut self) -> Result<()> {
        if self.mask.is_none() && self.waits.is_none() {
            self.mask = Some(self.matcher.compute_mask_or_eos().map_err(failed)?);
        }
        Ok(())
    }

    /// Rules out, in logits `(vocab_size)`, what cannot come next: they become minus infinity.
    ///
    /// # Errors
    /// As for [`Constraint::prepare`].
    pub fn mask(&mut self, logits: &mut [f32], end_tokens: &[u32]) -> Result<()> {
        self.prepare()?;
        match (&self.waits, &self.mask) {
            (None, Some(mask)) => apply(mask, logits),
            (Some(waiting), _) if !waiting.may_end => {
                for &id in end_tokens {
                    logits.get_mut(id as usize).into_iter().for_each(|x| *x = f32::NEG_INFINITY);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes the token that came, and the bytes that it stands for. Nothing has changed if it is refused.
    ///
    /// # Errors
    /// As for [`Constraint::prepare`].
    pub fn accept(&mut self, token: u32, bytes: &[u8]) -> Result<Accepted> {
        self.prepare()?;
        let Some(waiting) = &mut self.waits else {
            if self.mask.take_if(|mask| (token as usize) < mask.len() && mask.is_allowed(token)).is_none() {
                return Ok(Accepted::Refused);
            }
            self.matcher.consume_token(token).map_err(failed)?;
            return Ok(if self.matcher.is_stopped() { Accepted::Complete } else { Accepted::Going });
        };
        let before = waiting.text.len();
        waiting.text.extend_from_slice(bytes);
        let ends = waiting.markers.iter().filter_map(|marker| find(&waiting.text, marker).map(|at| at + marker.len()));
        let Some(end) = ends.min() else {
            let longest = waiting.markers.iter().map(Vec::len).max().unwrap_or(0);
            let surplus = waiting.text.len().saturating_sub(longest.saturating_sub(1));
            waiting.text.drain(..surplus);
            return Ok(Accepted::Going);
        };
        // What the token says after the marker is part of what the grammar is about.
        let rest = waiting.text[end..].to_vec();
        waiting.text.truncate(before);
        let tokens = self.matcher.tok_env().map_err(failed)?.tok_trie().greedy_tokenize(&rest);
        if self.matcher.validate_tokens(&tokens).map_err(failed)? < tokens.len() {
            return Ok(Accepted::Refused);
        }
        self.waits = None;
        self.matcher.consume_tokens(&tokens).map_err(failed)?;
        Ok(if self.matcher.is_stopped() { Accepted::Complete } else { Accepted::Going })
    }
}

/// Where `marker` first is in `text`.
fn find(text: &[u8], marker: &[u8]) -> Option<usize> {
    text.windows(marker.len().max(1)).position(|window| window == marker)
}

fn apply(mask: &SimpleVob, logits: &mut [f32]) {
    let mut words = mask.as_slice().iter();
    for chunk in logits.chunks_mut(32) {
        match words.next().copied().unwrap_or(0) {
            0 => chunk.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            word => {
                for (i, x) in chunk.iter_mut().enumerate() {
                    if word >> i & 1 == 0 {
                        *x = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
