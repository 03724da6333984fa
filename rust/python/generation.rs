//! `Generation`: an answer in the making.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::floats::Logits;
use super::ids::token_ids;
use super::lend::Lent;
use super::parameters::{functions, to_options};
use super::session::Held;
use super::{Session, Tokenizer, raise, run};
use crate::error::{Error, Result};
use crate::generate::{self, FinishReason, LogitsProcessor, Lookup, Timings, TokenLogprobs};
use crate::grammar;
use crate::threads::Interrupt;
use crate::tokenizer::{self, StreamDecoder};

/// An answer in the making.
#[pyclass(frozen)]
pub struct Generation {
    driven: Lent<Driven>,
    shown: Mutex<Shown>, // locked for a moment, and never while Python code can run
    raised: Raised,
}

/// What a function of the caller raised, until it is raised again.
type Raised = Arc<Mutex<Option<PyErr>>>;

/// A function of the caller that changes logits.
struct Callback {
    function: Py<PyAny>,
    raised: Raised,
}

impl LogitsProcessor for Callback {
    fn process(&mut self, tokens: &[u32], logits: &mut [f32]) -> Result<()> {
        let call = |py: Python<'_>| {
            let view = Bound::new(py, Logits::new(logits))?;
            self.function.call1(py, (tokens.to_vec(), &view))?;
            view.get().copy_to(logits);
            Ok(())
        };
        match Python::try_attach(call) {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => {
                *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                Err(Error::Interrupted)
            }
            None => Err(Error::Interrupted),
        }
    }
}

struct Driven {
    generation: generate::Generation<StreamDecoder<Arc<tokenizer::Tokenizer>>>,
    epoch: Option<u64>,            // of the session, as the last piece left it
    ready: Option<Option<String>>, // what was computed, but could not be given: a signal handler raised
}

/// What can be asked for at any time, as the last piece left it.
#[derive(Clone)]
struct Shown {
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<FinishReason>,
    timings: Timings,
    seed: u64,
}

impl Shown {
    fn update(&mut self, driven: &Driven, piece: &str) {
        self.text.push_str(piece);
        let answer = driven.generation.answer();
        self.token_ids.extend_from_slice(&answer.generated()[self.token_ids.len()..]);
        self.logprobs.extend_from_slice(&answer.logprobs()[self.logprobs.len()..]);
        self.finish = answer.finish_reason();
        self.timings = driven.generation.timings();
        self.seed = answer.seed();
    }
}

#[pymethods]
impl Generation {
    /// `free_until` are markers up to which a grammar leaves the text free, and whether the answer may end before one. Control
    /// tokens that are in `marks` come as text. What the session has shifted counts as the prompt's if `moved`.
    #[new]
    #[allow(clippy::too_many_arguments)] // Python has names for them
    #[pyo3(signature = (session, tokenizer, prompt, options, lookup=false, draft=None, free_until=None, marks=vec![], moved=false))]
    fn new(
        py: Python<'_>,
        session: &Session,
        tokenizer: &Tokenizer,
        prompt: &Bound<'_, PyAny>,
        options: &Bound<'_, PyDict>,
        lookup: bool,
        draft: Option<&Session>,
        free_until: Option<(Vec<String>, bool)>,
        marks: Vec<u32>,
        moved: bool,
    ) -> PyResult<Self> {
        let vocab_size = session.vocab_size();
        let prompt = token_ids("a prompt is text or token ids", prompt, vocab_size, session.context_length())?;
        let given = options;
        let options = to_options(py, options)?;
        if let Some((id, _)) = options.sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
            let what = format!("logit_bias has token {id}, which is not in the vocabulary of {vocab_size}");
            return Err(PyValueError::new_err(what));
        }
        let tokenizer = tokenizer.inner();
        let constraint = match options.grammar().map_err(|e| raise(py, e))? {
            Some(grammar) => Some(run(py, |interrupt| grammar::compile(tokenizer, &grammar, interrupt))?),
            None => None,
        };
        let raised = Raised::default();
        let processors = match given.get_item("logits_processor")? {
            Some(value) => functions(&value)?,
            None => Vec::new(),
        };
        let make = || {
            let decoder = StreamDecoder::new(Arc::clone(tokenizer), true).keeping(marks);
            let stop = options.stop.clone();
            let mut generation = generate::Generation::new(prompt, tokenizer.end_tokens()?, decoder, options)?;
            for text in stop {
                generation.stop_at(&tokenizer.special_tokens(&text)?);
            }
            generation.keep_moved(moved);
            for function in processors {
                generation.process(Box::new(Callback { function, raised: Arc::clone(&raised) }));
            }
            if let Some(constraint) = constraint {
                generation.constrain(match &free_until {
                    Some((markers, may_end)) => constraint.after(markers, *may_end),
                    None => constraint,
                });
            }
            Ok(generation)
        };
        let made = make();
        let mut generation = made.map_err(|e| raise(py, e))?;
        if lookup {
            generation.speculate(Box::new(Lookup));
        }
        if let Some(draft) = draft {
            let guesser = draft.guesser(vocab_size.min(draft.vocab_size())).map_err(|e| raise(py, e))?;
            generation.speculate(Box::new(guesser));
        }
        let driven = Driven { generation, epoch: None, ready: None };
        let mut shown = Shown {
            text: String::new(),
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            finish: None,
            timings: Timings::default(),
            seed: 0,
        };
        shown.update(&driven, "");
        Ok(Self { driven: Lent::new(driven), shown: Mutex::new(shown), raised })
    }

    /// The next piece of text, or None at the end.
    fn next(&self, py: Python<'_>, session: &Session) -> PyResult<Option<String>> {
        let (result, raised) = session.run(py, |held, interrupt| {
            let driven = &mut *self.driven.lend()?;
            driven.ready.take().map_or_else(|| self.compute(driven, held, interrupt), Ok)
        });
        session.free_if_closed(py);
        let raised = self.raised().or(raised);
        match (result, raised) {
            (Ok(piece), Some(e)) => {
                if let Ok(mut driven) = self.driven.lend() {
                    driven.ready = Some(piece);
                }
                Err(e)
            }
            (_, Some(e)) => Err(e),
            (result, None) => result.map_err(|e| raise(py, e)),
        }
    }

    /// Computes all pieces that are left, in one use of the session: nobody else finds it between two of them.
    fn finish(&self, py: Python<'_>, session: &Session) -> PyResult<()> {
        let (result, raised) = session.run(py, |held, interrupt| {
            let driven = &mut *self.driven.lend()?;
            driven.ready = None; // its text is with the others
            while self.compute(driven, held, interrupt)?.is_some() {}
            Ok(())
        });
        session.free_if_closed(py);
        self.raised().or(raised).map_or_else(|| result.map_err(|e| raise(py, e)), Err)
    }

    /// All pieces so far.
    #[getter]
    fn text(&self, py: Python<'_>) -> PyResult<String> {
        self.shown(py, |shown| shown.text.clone())
    }

    #[getter]
    fn token_ids(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.shown(py, |shown| shown.token_ids.clone())
    }

    /// Of each token its id and logarithm of the probability, and those of the most likely ones.
    #[getter]
    #[allow(clippy::type_complexity)] // it is what Python gets
    fn logprobs(&self, py: Python<'_>) -> PyResult<Vec<(u32, f32, Vec<(u32, f32)>)>> {
        let logprobs = self.shown(py, |shown| shown.logprobs.clone())?;
        Ok(logprobs.into_iter().map(|token| (token.id, token.logprob, token.top)).collect())
    }

    #[getter]
    fn finish_reason(&self, py: Python<'_>) -> PyResult<Option<&'static str>> {
        self.shown(py, |shown| shown.finish.map(FinishReason::as_str))
    }

    #[getter]
    fn seed(&self, py: Python<'_>) -> PyResult<u64> {
        self.shown(py, |shown| shown.seed)
    }

    /// Prompt tokens, seconds for them, generated tokens, seconds for them, prompt tokens that were there already, tokens that
    /// were guessed, and those of them that were right.
    #[getter]
    fn timings(&self, py: Python<'_>) -> PyResult<(usize, f64, usize, f64, usize, usize, usize)> {
        let t = self.shown(py, |shown| shown.timings)?;
        let (prompt, generation) = (t.prompt.as_secs_f64(), t.generation.as_secs_f64());
        let guessed = (t.drafted_tokens, t.accepted_tokens);
        Ok((t.prompt_tokens, prompt, t.generated_tokens, generation, t.cached_tokens, guessed.0, guessed.1))
    }
}

impl Generation {
    /// Computes a piece, and shows it.
    fn compute(&self, driven: &mut Driven, held: &mut Held, interrupt: &Interrupt) -> Result<Option<String>> {
        if driven.epoch.is_some_and(|epoch| epoch != held.epoch) && driven.generation.answer().finish_reason().is_none()
        {
            return Err(Error::SessionBusy(generate::CHANGED));
        }
        let piece = driven.generation.next(&mut held.session, interrupt);
        if !driven.generation.answer().generated().is_empty() {
            held.epoch += 1;
            driven.epoch = Some(held.epoch);
        }
        let text = piece.as_ref().ok().and_then(Option::as_deref).unwrap_or_default();
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).update(driven, text);
        piece
    }

    /// What a function of the caller raised.
    fn raised(&self) -> Option<PyErr> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn shown<T>(&self, py: Python<'_>, read: impl FnOnce(&Shown) -> T) -> PyResult<T> {
        let check: Result<()> = self.driven.check();
        check.map_err(|e| raise(py, e))?;
        Ok(read(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
