//! What is asked of a scheduler, and what comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::own_bytes;
use crate::adapter::Adapter;
use crate::embedding::{self, EmbedOptions};
use crate::engine::BATCH;
use crate::error::{Error, Result};
use crate::generate::{Answer, Decode, FinishReason, Options, Overflow};
use crate::grammar::{self, Constraint};
use crate::kernels::BLOCK;
use crate::model::Model;
use crate::session::SessionOptions;
use crate::threads::Interrupt;
use crate::tokenizer::StreamDecoder;

/// An answer in the making, with a decoder of any kind.
pub type AnyAnswer = Answer<Box<dyn Decode + Send>>;

/// Something to be computed.
pub struct Request {
    /// The model. It stays open until the request has ended; another version of it is another model.
    pub model: Arc<Model>,
    /// Room for prompt and answer, workers, type of keys and values. Only requests that agree in workers and type are
    /// computed together and share prefixes: all of a model should.
    pub session: SessionOptions,
    /// What to compute.
    pub work: Work,
    /// Who asks. Those who wait are served in turns, by the tokens that were computed for them.
    pub client: u64,
    /// Only requests with the same salt find each other's prefixes: otherwise the time to the first token would tell what
    /// others have asked.
    pub salt: u64,
    /// The higher, the sooner: lower ones wait while there is one.
    pub priority: i8,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// What changes the model for it, each by how much. Only requests with the same ones share prefixes; they are computed
    /// together with those that have others.
    pub adapters: Vec<(Arc<Adapter>, f32)>,
}

impl Request {
    /// A request of nobody in particular.
    pub fn new(model: &Arc<Model>, session: SessionOptions, work: Work) -> Self {
        Self {
            model: Arc::clone(model),
            session,
            work,
            client: 0,
            salt: 0,
            priority: 0,
            deadline: None,
            adapters: Vec::new(),
        }
    }
}

/// What there is to compute.
pub enum Work {
    /// Answers to a prompt, or how likely the prompt is, or both.
    Generate(Generate),
    /// Vectors of texts, given as their tokens. The session of the options is that of the request.
    Embed {
        /// The texts.
        texts: Vec<Vec<u32>>,
        /// How.
        options: EmbedOptions,
    },
    /// What a reranker says of texts, given as their tokens.
    Rank {
        /// The texts.
        texts: Vec<Vec<u32>>,
    },
}

/// Answers to a prompt.
pub struct Generate {
    /// One, or several to the same prompt, which is then computed once. They are driven as they are: sampling, stop
    /// strings, constraints and whatever else an answer has is prepared by whoever made it.
    pub answers: Vec<AnyAnswer>,
    /// How likely the tokens of the prompt are to be reported as well, with the first event.
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// What to do when the context is full.
    pub on_overflow: Overflow,
    /// How many tokens from the start a shift keeps.
    pub n_keep: usize,
}

/// What of an answer is not among its options.
#[derive(Default)]
pub struct Form {
    /// Control tokens that come as text, because a parser has to see them.
    pub keeping: Vec<u32>,
    /// What the answer must be, instead of what its options say.
    pub constraint: Option<Constraint>,
    /// What ends thoughts, before which the options demand no form.
    pub after: Option<String>,
}

impl Generate {
    /// `n` answers to `prompt`, with the decoder, end tokens, stop tokens and grammar that model and options say. With a seed, answer `i` has the
    /// seed `seed + i`.
    ///
    /// # Errors
    /// As for [`Answer::new`], [`Model::tokenizer`] and [`grammar::compile`].
    pub fn new(model: &Model, prompt: Vec<u32>, options: Options, n: usize) -> Result<Self> {
        Self::formed(model, prompt, options, n, Form::default(), &Interrupt::never())
    }

    /// The same, with what is not among the options.
    ///
    /// # Errors
    /// As for [`Generate::new`]; [`Error::Interrupted`].
    pub fn formed(
        model: &Model,
        prompt: Vec<u32>,
        options: Options,
        n: usize,
        form: Form,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let tokenizer = model.tokenizer()?;
        let n_keep = usize::try_from(options.n_keep).unwrap_or(prompt.len());
        let on_overflow = options.on_overflow;
        let constraint = match (form.constraint, options.grammar()?) {
            (Some(constraint), _) => Some(constraint),
            (None, Some(grammar)) => {
                let constraint = grammar::compile(tokenizer, &grammar, interrupt)?;
                Some(match form.after {
                    Some(marker) => constraint.after(&[marker], false),
                    None => constraint,
                })
            }
            (None, None) => None,
        };
        let stop_tokens = options.stop.iter().map(|text| tokenizer.special_tokens(text)).collect::<Result<Vec<_>>>()?;
        let answer = |i: usize| {
            let mut options = options.clone();
            options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(i as u64));
            let decoder = StreamDecoder::new(Arc::clone(tokenizer), true).keeping(form.keeping.clone());
            let decoder: Box<dyn Decode + Send> = Box::new(decoder);
            let mut answer = Answer::new(prompt.clone(), tokenizer.end_tokens()?, decoder, options)?;
            stop_tokens.iter().for_each(|tokens| answer.stop_at(tokens));
            constraint.iter().for_each(|constraint| answer.constrain(constraint.clone()));
            Ok(answer)
        };
        Ok(Self { answers: (0..n).map(answer).collect::<Result<_>>()?, prompt_logprobs: None, on_overflow, n_keep })
    }

    pub(super) fn prompt(&self) -> &[u32] {
        self.answers.first().map_or(&[], |answer| answer.prompt())
    }
}

/// How likely which tokens of a prompt are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// The first of them, by position; 0 counts as 1: nothing comes before the first token of a prompt.
    pub first: usize,
    /// So many of the most likely tokens at each place are reported beside the one that is there.
    pub top: usize,
    /// The last token stands for all that end an answer: how likely it is that one of them comes there.
    pub any_end: bool,
}

impl Request {
    /// Tokens that have to be computed before anything comes out.
    pub(super) fn prompt_tokens(&self) -> usize {
        match &self.work {
            Work::Generate(generate) => generate.prompt().len(),
            Work::Embed { texts, .. } | Work::Rank { texts } => texts.iter().map(Vec::len).sum(),
        }
    }

    /// Whether it can be computed at all: what is wrong is known before it waits.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::ContextOverflow`], [`Error::Unsupported`], [`Error::Changed`].
    pub(super) fn check(&self, limits: &Limits) -> Result<()> {
        let config = self.model.config();
        self.model.checkpoint().check()?;
        let vocab_size = config.vocab_size;
        let path = || self.model.checkpoint().path().into();
        let known = |tokens: &[u32]| match tokens.iter().find(|&&id| id as usize >= vocab_size) {
            Some(bad) => Err(Error::Argument(format!("token {bad} is not in the vocabulary of {vocab_size}"))),
            None => Ok(()),
        };
        match &self.work {
            Work::Generate(generate) => {
                let (prompt, context_length) = (generate.prompt(), embedding::longest(&self.model, &self.session));
                if generate.answers.is_empty() {
                    return Err(Error::Argument("no answers are wanted: n must be 1 or more".into()));
                }
                if generate.answers.iter().any(|answer| answer.prompt() != prompt) {
                    return Err(Error::Argument("answers of one request have one prompt".into()));
                }
                if !config.has_logits {
                    let what =
                        format!("text by {}, an encoder, which makes vectors of texts (embed)", config.architecture);
                    return Err(Error::Unsupported { path: path(), what });
                }
                if prompt.len() > context_length {
                    return Err(Error::ContextOverflow { tokens: prompt.len(), context_length });
                }
                // One that has all the memory for itself can have its prompt, and a token more.
                let layout = self.model.engine()?.layout(self.session.kv_type)?;
                let bytes = limits.kv_bytes.saturating_sub(own_bytes(&layout));
                let room = (bytes / layout.block_bytes() as u64).saturating_mul(BLOCK as u64);
                if prompt.len() as u64 >= room {
                    let context_length = room.saturating_sub(1) as usize;
                    return Err(Error::ContextOverflow { tokens: prompt.len(), context_length });
                }
                if generate.on_overflow == Overflow::Shift && config.is_recurrent() {
                    let what = "on_overflow is shift, which a model with recurrent layers cannot do: their state cannot \
                                forget tokens";
                    return Err(Error::Argument(what.into()));
                }
                if generate.on_overflow == Overflow::Shift && generate.n_keep >= context_length {
                    let n_keep = generate.n_keep;
                    let what =
                        format!("n_keep is {n_keep}, it must be less than the context_length of {context_length}");
                    return Err(Error::Argument(what));
                }
                known(prompt)
            }
            Work::Embed { texts, .. } | Work::Rank { texts } => {
                let context_length = embedding::longest(&self.model, &self.session);
                for (i, text) in texts.iter().enumerate() {
                    let tokens = text.len();
                    if tokens == 0 {
                        return Err(Error::Argument(format!("text {i} is empty: it has no tokens")));
                    }
                    if tokens > context_length {
                        return Err(Error::ContextOverflow { tokens, context_length });
                    }
                    known(text)?;
                }
                Ok(())
            }
        }
    }
}

/// What became of an answer since the last event: what was not taken in time is in one event.
#[derive(Debug, Default)]
pub struct Event {
    /// Of which answer of the request.
    pub index: usize,
    /// Text, whole characters only.
    pub text: String,
    /// Tokens. Not always those of the text: some of it may be held back.
    pub token_ids: Vec<u32>,
    /// How likely these tokens were, if the answer was asked to say.
    pub logprobs: Vec<TokenLogprob>,
    /// How likely the tokens of the prompt were, if that was asked.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// Vectors of texts, or scores.
    pub vectors: Option<Vectors>,
    /// The last event of an answer has it.
    pub end: Option<End>,
}

/// How likely a token was, and which others were likely: natural logarithms of the model's own probabilities, before
/// anything of the sampling.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token that is there.
    pub chosen: Choice,
    /// The most likely ones, the likeliest first.
    pub top: Vec<Choice>,
}

/// A token and the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The token.
    pub token_id: u32,
    /// At most 0.
    pub logprob: f32,
}

/// Rows of numbers: vectors of texts, or scores by label.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// `(rows, dim)`.
    pub data: Vec<f32>,
    /// Numbers of a row.
    pub dim: usize,
}

/// How an answer ended.
#[derive(Debug)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// What it took.
    pub usage: Usage,
    /// The seed, given or drawn.
    pub seed: u64,
}

/// Why an answer ended.
#[derive(Debug, Clone)]
pub enum Finish {
    /// It is complete, one way or the other.
    Done(FinishReason),
    /// The ticket was dropped, or the scheduler stopped.
    Cancelled,
    /// It was not complete in time.
    Deadline,
    /// Nobody took its events for too long.
    SlowReader,
    /// What went wrong. The message is for the one who asked.
    Failed(Arc<Error>),
    /// A bug of ours: something panicked while it was computed.
    Crashed,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt, or of all texts.
    pub prompt_tokens: usize,
    /// How many of them were computed before, for whomever.
    pub cached_tokens: usize,
    /// Tokens generated for this answer, without an end token.
    pub generated_tokens: usize,
    /// Time until it was its turn.
    pub queued: Duration,
    /// From then on until the prompt was computed.
    pub prompt: Duration,
    /// From then on.
    pub generation: Duration,
}

/// Why a request was not taken.
#[derive(Debug)]
pub enum Rejected {
    /// Too many requests wait.
    QueueFull {
        /// When there may be room.
        retry_after: Duration,
    },
    /// The prompts that wait are too long together.
    TokensFull {
        /// When there may be room.
        retry_after: Duration,
    },
    /// No new requests are taken.
    Stopping,
    /// It could never be computed.
    Invalid(Error),
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::QueueFull { .. } => Error::Argument("too many requests wait: try again later".into()),
            Rejected::TokensFull { .. } => {
                Error::Argument("the prompts that wait are too long together: try again later".into())
            }
            Rejected::Stopping => Error::Argument("the engine is stopping: it takes no new requests".into()),
            Rejected::Invalid(error) => error,
        }
    }
}

/// What a scheduler may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Answers of one model that are made at the same time.
    pub parallel: usize,
    /// Answers that wait, at most.
    pub max_queue: usize,
    /// Tokens of the prompts that wait, at most.
    pub max_queued_tokens: usize,
    /// Memory for keys and values, those that are kept for later included.
    pub kv_bytes: u64,
    /// How long a step may take while answers are being made; zero for as long as is good for throughput.
    pub step: Duration,
    /// The most tokens of a step, of answers and prompts together; more than 512 are computed in several goes.
    pub max_rows: usize,
    /// What an answer may be ahead of its reader by, in bytes.
    pub ring_bytes: usize,
    /// For how long it then waits.
    pub slow_reader: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel: 8,
            max_queue: 64,
            max_queued_tokens: 64 << 10,
            kv_bytes: 1 << 30,
            step: Duration::from_millis(50),
            max_rows: BATCH,
            ring_bytes: 256 << 10,
            slow_reader: Duration::from_secs(60),
        }
    }
}

/// How a scheduler is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Answers that are being made.
    pub running: usize,
    /// Answers that wait for their turn.
    pub waiting: usize,
    /// Tokens of their prompts.
    pub queued_tokens: usize,
    /// Memory of keys and values in use, in bytes.
    pub kv_used: u64,
    /// Memory of those that are kept for later, in bytes.
    pub kv_cached: u64,
    /// The most of both.
    pub kv_budget: u64,
    /// Tokens of prompts so far.
    pub prompt_tokens: u64,
    /// How many of them did not have to be computed.
    pub cached_tokens: u64,
    /// Tokens generated so far.
    pub generated_tokens: u64,
    /// Answers that had to make room for others, and were taken up again.
    pub preemptions: u64,
    /// Tokens whose keys and values were kept and had to go.
    pub evicted_tokens: u64,
    /// Requests that were not taken: the queue was full.
    pub rejected_queue: u64,
    /// Requests that were not taken: too many tokens waited.
    pub rejected_tokens: u64,
    /// Steps so far.
    pub steps: u64,
    /// Seconds of all steps.
    pub step_seconds: f64,
    /// The last step, in seconds.
    pub last_step: f64,
    /// What a step of so many rows is expected to take, in seconds, by model; the model is given by its path.
    pub predicted: Vec<(std::path::PathBuf, Vec<(usize, f64)>)>,
    /// The answers that are being made: tokens of the prompt, how many of these are computed, tokens generated.
    pub slots: Vec<(usize, usize, usize)>,
}
