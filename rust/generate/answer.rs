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
use crate::grammar::{Accepted, Constraint};
use crate::sampling::{self, History, Rng, Sampler};
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
    /// What a token stands for, whether it comes out as text or not; nothing if there is no such token.
    fn token_bytes(&self, id: u32) -> Vec<u8>;
}

impl<T: Borrow<Tokenizer>> Decode for StreamDecoder<T> {
    fn push(&mut self, id: u32) -> Result<String> {
        StreamDecoder::push(self, id)
    }

    fn finish(&mut self) -> String {
        StreamDecoder::finish(self)
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer().token_bytes(id).unwrap_or_default()
    }
}

/// Changes the logits before a token is chosen, in whatever way.
pub trait LogitsProcessor: Send {
    /// Changes `logits`, `(vocab_size)`, after these tokens, the prompt's among them.
    ///
    /// # Errors
    /// Whatever it likes: the answer goes on where it was when it is asked for again.
    fn process(&mut self, tokens: &[u32], logits: &mut [f32]) -> Result<()>;
}

/// How likely a token of an answer was to the model, in natural logarithms, before anything changed the logits.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// The logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens there, as many as were asked for, most likely first.
    pub top: Vec<(u32, f32)>,
}

impl<D: Decode + ?Sized> Decode for Box<D> {
    fn push(&mut self, id: u32) -> Result<String> {
        (**self).push(id)
    }

    fn finish(&mut self) -> String {
        (**self).finish()
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        (**self).token_bytes(id)
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
pub struct Answer<D> {
    decoder: D,
    sampler: Sampler,
    largest_bias: Option<u32>, // the largest id that has one
    processors: Vec<Box<dyn LogitsProcessor>>,
    constraint: Option<Constraint>,
    edited: Vec<f32>, // logits after both
    top_logprobs: Option<usize>,
    logprobs: Vec<TokenLogprobs>,
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
    /// Prepares to answer `prompt`. Of the options, those about a full context are for the loop that drives it, and those
    /// about a grammar for who [compiles](crate::grammar::compile) it, see [`Answer::constrain`].
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, or an option out of range.
    pub fn new(prompt: Vec<u32>, end_tokens: &[u32], decoder: D, options: Options) -> Result<Self> {
        options.check()?;
        let Options { max_tokens, stop, ignore_eos, mut sampling, logprobs, top_logprobs, .. } = options;
        if prompt.is_empty() {
            return Err(Error::Argument("the prompt is empty: it must have at least one token".into()));
        }
        if ignore_eos {
            sampling.logit_bias.extend(end_tokens.iter().map(|&id| (id, f32::NEG_INFINITY)));
        }
        let max_tokens = max_tokens.unwrap_or(usize::MAX);
        Ok(Self {
            decoder,
            largest_bias: sampling.logit_bias.iter().map(|(id, _)| *id).max(),
            processors: Vec::new(),
            constraint: None,
            edited: Vec::new(),
            top_logprobs: (logprobs || top_logprobs > 0).then_some(top_logprobs),
            logprobs: Vec::new(),
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

    /// Lets `processor` change the logits of each token, after those that were given before it.
    pub fn process(&mut self, processor: Box<dyn LogitsProcessor>) {
        self.processors.push(processor);
    }

    /// Lets only those tokens come that a grammar allows, and end the answer only where it can end; the answer is complete
    /// where there can be no more. Before the first token.
    pub fn constrain(&mut self, constraint: Constraint) {
        self.constraint = Some(constraint);
    }

    /// Computes which tokens the grammar allows next, some tens of microseconds: so that it need not be done after their
    /// logits are. Nothing depends on it.
    ///
    /// # Errors
    /// As for [`Constraint::prepare`].
    pub fn prepare(&mut self) -> Result<()> {
        match &mut self.constraint {
            Some(constraint) if self.finish.is_none() => constraint.prepare(),
            _ => Ok(()),
        }
    }

    /// Takes the logits, `(vocab_size)`, after the last token that it [wants](Answer::wants), and chooses the next one.
    /// After the end nothing changes any more.
    ///
    /// # Errors
    /// [`Error::Numeric`], of no file, if none of the logits can be used; [`Error::Argument`] if a bias is for no token, or
    /// if all of them are ruled out; what the grammar, a processor and the decoder say. Nothing has changed then.
    pub fn accept(&mut self, logits: &[f32]) -> Result<Event> {
        if let Some(reason) = self.finish {
            return Ok(Event::End { text: String::new(), reason });
        }
        let (token, accepted) = self.choose(logits)?;
        self.computed = self.tokens.len();
        if self.end_tokens.contains(&token) || self.stop_tokens.contains(&token) {
            let text = self.end(FinishReason::Stop);
            return Ok(Event::End { text, reason: FinishReason::Stop });
        }
        if let Some(n) = self.top_logprobs {
            let (logprob, top) = sampling::log_probabilities(logits, token, n);
            self.logprobs.push(TokenLogprobs { id: token, logprob, top });
        }
        self.tokens.push(token);
        let (mut text, stopped) = self.stop.push(&self.decoder.push(token)?);
        if stopped {
            self.finish = Some(FinishReason::Stop);
        } else if accepted == Accepted::Complete {
            text.push_str(&self.end(FinishReason::Stop));
        } else if self.generated().len() >= self.max_tokens {
            text.push_str(&self.end(FinishReason::Length));
        }
        Ok(match self.finish {
            Some(reason) => Event::End { text, reason },
            None if text.is_empty() => Event::Silent,
            None => Event::Piece(text),
        })
    }

    /// The next token, and what it did to the grammar.
    fn choose(&mut self, logits: &[f32]) -> Result<(u32, Accepted)> {
        if let Some(id) = self.largest_bias.filter(|id| *id as usize >= logits.len()) {
            let n = logits.len();
            return Err(Error::Argument(format!("logit_bias has token {id}, which is not in the vocabulary of {n}")));
        }
        let Self { decoder, sampler, processors, constraint, edited, tokens, end_tokens, .. } = self;
        let history = History { tokens, text: &|id| decoder.token_bytes(id) };
        if processors.is_empty() && constraint.is_none() {
            let token = sampler.sample_after(&history, logits).ok_or_else(|| none_left(logits, tokens.len()))?;
            return Ok((token, Accepted::Going));
        }
        edited.clear();
        edited.extend_from_slice(logits);
        for processor in processors {
            processor.process(tokens, edited)?;
        }
        let Some(constraint) = constraint else {
            let token = sampler.sample_after(&history, edited).ok_or_else(|| none_left(logits, tokens.len()))?;
            return Ok((token, Accepted::Going));
        };
        constraint.mask(edited, end_tokens)?;
        loop {
            let token = sampler.sample_after(&history, edited).ok_or_else(|| none_left(logits, tokens.len()))?;
            match constraint.accept(token, &decoder.token_bytes(token))? {
                Accepted::Refused => edited[token as usize] = f32::NEG_INFINITY,
                accepted => return Ok((token, accepted)),
            }
        }
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

/// Why there is no token to choose.
fn none_left(logits: &[f32], n: usize) -> Error {
    if logits.iter().any(|x| *x > f32::NEG_INFINITY) {
        let what = "no token is left to choose from: logit_bias, logits_processor and the grammar rule all of them out";
        return Error::Argument(what.into());
    }
    let what = format!("no logit after token {n} is a number: a weight is damaged");
    Error::Numeric { path: PathBuf::new(), what }
}

impl<D> std::fmt::Debug for Answer<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer({} tokens, {:?})", self.generated().len(), self.finish)
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

    /// How likely each of [`Answer::generated`] was, if that was asked for. Those of text that is held back are among them.
    pub fn logprobs(&self) -> &[TokenLogprobs] {
        &self.logprobs
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
