//! A vocabulary as a trie: once per tokenizer, shared by all grammars.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};

use super::{Grammar, one_line};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Bytes of a token, and of all: what the trie has room for. What is longer is never chosen, as no token of a real
/// vocabulary is.
const MOST_TOKEN: usize = 1000;
const MOST_BYTES: usize = 4 << 20;

/// Grammars that are kept, the latest ones: a program asks for the same form again and again.
const MOST_KEPT: usize = 32;

/// What the grammars of a vocabulary share.
pub struct Grammars {
    factory: ParserFactory,
    kept: Mutex<VecDeque<(Grammar, Matcher)>>, // latest last, each at its beginning
}

impl Grammars {
    /// Those of this tokenizer; they are made when they are first asked for.
    pub fn of(tokenizer: &Arc<Tokenizer>) -> Result<Arc<Self>> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(tokenizer, _)| tokenizer.strong_count() > 0);
        let of_it = |(known, _): &&(Weak<Tokenizer>, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(tokenizer));
        if let Some((_, grammars)) = known.iter().find(of_it) {
            return Ok(Arc::clone(grammars));
        }
        let grammars = Arc::new(Self::new(tokenizer)?);
        known.push((Arc::downgrade(tokenizer), Arc::clone(&grammars)));
        Ok(grammars)
    }

    fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self> {
        let failed = |e: String| Error::Grammar { pointer: None, what: format!("the vocabulary cannot be used: {e}") };
        let trie = trie(tokenizer)?;
        let is_canonical = is_canonical(tokenizer)?;
        let env: TokEnv = Arc::new(Env { trie, tokenizer: Arc::downgrade(tokenizer), is_canonical });
        let caps = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&env, caps, &SlicedBiasComputer::general_slices())
            .map_err(|e| failed(one_line(&e.to_string())))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, kept: Mutex::default() })
    }

    /// A grammar that was compiled before, at its beginning, if it can be had at once.
    pub fn known(tokenizer: &Arc<Tokenizer>, grammar: &Grammar) -> Option<Matcher> {
        let known = KNOWN.try_lock().ok()?;
        let (_, grammars) = known.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(tokenizer)))?;
        let kept = grammars.kept.try_lock().ok()?;
        kept.iter().find(|(known, _)| known == grammar).map(|(_, matcher)| matcher.deep_clone())
    }

    /// Keeps a grammar at its beginning.
    pub fn keep(&self, grammar: &Grammar, matcher: &Matcher) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((grammar.clone(), matcher.deep_clone()));
        if kept.len() > MOST_KEPT {
            kept.pop_front();
        }
    }

    pub fn factory(&self) -> &ParserFactory {
        &self.factory
    }
}

/// One entry a vocabulary in use, as a rule one. A second grammar waits here until the first has its trie.
static KNOWN: Mutex<Vec<(Weak<Tokenizer>, Arc<Grammars>)>> = Mutex::new(Vec::new());

fn trie(tokenizer: &Tokenizer) -> Result<TokTrie> {
    let n = tokenizer.vocab_size();
    let mut left = MOST_BYTES;
    let mut words = Vec::with_capacity(n);
    for id in 0..n as u32 {
        let mut bytes = tokenizer.token_bytes(id)?;
        if tokenizer.is_special(id) {
            // Named in a grammar as <name>, and never part of text.
            bytes.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
        }
        if bytes.len() > MOST_TOKEN.min(left) {
            bytes.clear();
        }
        left -= bytes.len();
        words.push(bytes);
    }
    let ends = tokenizer.end_tokens()?;
    // A vocabulary in which nothing ends an answer has none.
    let end = ends.first().copied().unwrap_or(n as u32 - 1);
    let trie = TokTrie::from(&TokRxInfo::new(n as u32, end), &words);
    Ok(if ends.is_empty() { trie } else { trie.with_eos_tokens(ends) })
}

/// Whether the tokens of a text say just that text: not where encoding puts a space before it, or changes it.
fn is_canonical(tokenizer: &Tokenizer) -> Result<bool> {
    for text in ["{\"name\": ", "Some 12 words,\n  and more"] {
        let mut bytes = Vec::new();
        for id in tokenizer.encode(text, false, false)? {
            bytes.extend(tokenizer.token_bytes(id)?);
        }
        if bytes != text.as_bytes() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The vocabulary, to llguidance.
struct Env {
    trie: TokTrie,
    tokenizer: Weak<Tokenizer>, // not more: it would keep itself alive
    is_canonical: bool,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// How the model would write what a grammar leaves no choice about.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.tokenizer.upgrade().and_then(|t| t.encode(text, false, false).ok());
        let tokens = std::str::from_utf8(bytes).ok().and_then(encode);
        // A tokenizer that normalises says something else with some texts.
        let is_same = |tokens: &Vec<TokenId>| self.trie.decode_raw(tokens) == bytes;
        tokens.filter(is_same).unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.is_canonical
    }
}
