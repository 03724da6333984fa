//! One answer in the making: fed logits, it gives text.
//!
//! An [`Answer`] knows nothing of sessions. It says which tokens it [wants](Answer::wants) computed next; whoever drives
//! it computes them, wherever and in whatever company, and gives it the logits after the last of them. So the loop of a
//! session, a scheduler of many answers and speculation all drive the same thing. What it adds to sampling are the rules
//! of when to stop, and that only text which is surely part of the answer goes out: whole characters, and nothing that a
//! stop string may still swallow.

use std::borrow::Borrow;
use std::path::PathBuf;

use super::options::Options;
use super::stop::StopStrings;
use crate::error::{Error, Result};
use crate::sampling::{Rng, Sampler};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as in OpenAI's API.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// What a token did to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It made this text certain, which is not empty.
    Piece(String),
    /// No text is certain yet that was not before: the token was part of a character, say.
    Silent,
    /// It ended the answer.
    End {
        /// The rest of the text, perhaps empty.
        text: String,
        /// Why.
        reason: FinishReason,
    },
}

/// Turns token ids into text, bit by bit.
pub trait Decode {
    /// The text that this token completes: whole characters only.
    fn push(&mut self, id: u32) -> Result<String>;
    /// What is left when no more tokens come.
    fn finish(&mut self) -> String;
}

impl<T: Borrow<Tokenizer>> Decode for StreamDecoder<T> {
    fn push(&mut self, id: u32) -> Result<String> {
        StreamDecoder::push(self, id)
    }

    fn finish(&mut self) -> String {
        StreamDecoder::finish(self)
    }
}

impl<D: Decode + ?Sized> Decode for Box<D> {
    fn push(&mut self, id: u32) -> Result<String> {
        (**self).push(id)
    }

    fn finish(&mut self) -> String {
        (**self).finish()
    }
}

/// One answer in the making.
///
/// ```no_run
/// use llama_rs::{Answer, Event, Options};
/// # fn compute(tokens: &[u32]) -> Vec<f32> { vec![tokens.len() as f32] }
/// # let checkpoint = llama_rs::open("model.gguf".as_ref())?;
/// # let tokenizer = llama_rs::Tokenizer::from_metadata(&checkpoint.metadata)?;
/// let prompt = tokenizer.encode("Once upon a time", true, true)?;
/// let mut answer = Answer::new(prompt, tokenizer.end_tokens()?, tokenizer.decoder(true), Options::default())?;
/// while !answer.wants().is_empty() {
///     let logits = compute(answer.wants()); // of the last of them
///     match answer.accept(&logits)? {
///         Event::Piece(text) => print!("{text}"),
///         Event::Silent => {}
///         Event::End { text, reason } => println!("{text} ({})", reason.as_str()),
///     }
/// }
/// # Ok::<(), llama_rs::Error>(())
/// ```
#[derive(Debug)]
pub struct Answer<D> {
    decoder: D,
    sampler: Sampler,
    stop: StopStrings,
    end_tokens: Vec<u32>,
    stop_tokens: Vec<u32>, // those that stop strings name
    max_tokens: usize,
    tokens: Vec<u32>, // the prompt, and then the answer
    prompt_len: usize,
    computed: usize, // of the tokens, the first ones
    finish: Option<FinishReason>,
}

impl<D: Decode> Answer<D> {
    /// Prepares to answer `prompt`. Of the options, those about a full context are for the loop that drives it.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, or an option out of range.
    pub fn new(prompt: Vec<u32>, end_tokens: &[u32], decoder: D, options: Options) -> Result<Self> {
        options.check()?;
        let Options { max_tokens, stop, ignore_eos, mut sampling, on_overflow: _, n_keep: _ } = options;
        if prompt.is_empty() {
            return Err(Error::Argument("the prompt is empty: it must have at least one token".into()));
        }
        if ignore_eos {
            sampling.logit_bias.extend(end_tokens.iter().map(|&id| (id, f32::NEG_INFINITY)));
        }
        let max_tokens = max_tokens.unwrap_or(usize::MAX);
        Ok(Self {
            decoder,
            sampler: Sampler::new(sampling)?,
            stop: StopStrings::new(stop),
            end_tokens: end_tokens.to_vec(),
            stop_tokens: Vec::new(),
            max_tokens,
            prompt_len: prompt.len(),
            tokens: prompt,
            computed: 0,
            finish: (max_tokens == 0).then_some(FinishReason::Length),
        })
    }

    /// Ends the answer at these tokens too, as at a stop string: those that a stop string names and that never come out as
    /// text.
    pub fn stop_at(&mut self, tokens: &[u32]) {
        self.stop_tokens.extend_from_slice(tokens);
    }

    /// Takes the logits, `(vocab_size)`, after the last token that it [wants](Answer::wants), and chooses the next one.
    /// After the end nothing changes any more.
    ///
    /// # Errors
    /// [`Error::Numeric`], of no file, if none of the logits can be used; whatever the decoder says.
    pub fn accept(&mut self, logits: &[f32]) -> Result<Event> {
        if let Some(reason) = self.finish {
            return Ok(Event::End { text: String::new(), reason });
        }
        let Some(token) = self.sampler.sample(logits, &self.tokens) else {
            let what = format!("no logit after token {} is a number: a weight is damaged", self.tokens.len());
            return Err(Error::Numeric { path: PathBuf::new(), what });
        };
        self.computed = self.tokens.len();
        if self.end_tokens.contains(&token) || self.stop_tokens.contains(&token) {
            let text = self.end(FinishReason::Stop);
            return Ok(Event::End { text, reason: FinishReason::Stop });
        }
        self.tokens.push(token);
        let (mut text, stopped) = self.stop.push(&self.decoder.push(token)?);
        if stopped {
            self.finish = Some(FinishReason::Stop);
        } else if self.generated().len() >= self.max_tokens {
            text.push_str(&self.end(FinishReason::Length));
        }
        Ok(match self.finish {
            Some(reason) => Event::End { text, reason },
            None if text.is_empty() => Event::Silent,
            None => Event::Piece(text),
        })
    }

    /// Ends the answer, because there is no more room, say. Gives the text that was held back for a character or a stop
    /// string and is text after all.
    pub fn end(&mut self, reason: FinishReason) -> String {
        if self.finish.is_some() {
            return String::new();
        }
        let (mut text, stopped) = self.stop.push(&self.decoder.finish());
        self.finish = Some(if stopped { FinishReason::Stop } else { reason });
        if !stopped {
            text.push_str(&self.stop.finish());
        }
        text
    }
}

impl<D> Answer<D> {
    /// The tokens to be computed next, after those that are: at first the prompt, then one at a time. None after the end.
    pub fn wants(&self) -> &[u32] {
        if self.finish.is_some() { &[] } else { &self.tokens[self.computed..] }
    }

    /// Says that the first `n` tokens are computed, and no more: some of a long prompt, those that were in a cache, or
    /// none after they had to leave it.
    ///
    /// # Panics
    /// If that are all of them, or more: the logits after the last are needed.
    pub fn set_computed(&mut self, n: usize) {
        assert!(n < self.tokens.len(), "the last token is always computed");
        self.computed = n;
    }

    /// The prompt, and then the tokens of the answer so far, without an end token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The tokens of the answer so far, without an end token.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// The most tokens that it may have; `usize::MAX` for any number.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The seed, given or drawn.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The random numbers to come.
    pub fn rng(&self) -> &Rng {
        self.sampler.rng()
    }

    /// Goes on with the random numbers of an answer before, unless a seed was given.
    pub fn resume(&mut self, rng: &Rng) {
        self.sampler.resume(rng);
    }
}
