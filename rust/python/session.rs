//! `Session`: a key-value cache with its position.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use pyo3::prelude::*;

use super::ids::token_ids;
use super::lend::Lent;
use super::parameters::{count, int};
use super::{Floats, detached, raise, run_until};
use crate::error::{Error, Result};
use crate::generate::{Draft, guess};
use crate::likelihood::Choices;
use crate::threads::Interrupt;
use crate::{classify, likelihood, measure, session};

/// A key-value cache with its position.
#[pyclass(frozen)]
pub struct Session {
    held: Arc<Lent<Option<Held>>>, // None after it was closed
    closed: AtomicU8,              // OPEN, CLOSED or WITH_MODEL
    position: AtomicUsize,         // as the last call left it
    context_length: usize,
    vocab_size: usize,
    model: PathBuf,
}

const OPEN: u8 = 0;
const CLOSED: u8 = 1;
const WITH_MODEL: u8 = 2; // it was closed because its model was

/// What a session is, to the one call that may use it.
pub struct Held {
    pub session: session::Session,
    /// How often it was used: who remembers the number knows whether it was used by others since.
    pub epoch: u64,
}

/// Guesses by a session that Python keeps.
pub struct Guesser {
    held: Arc<Lent<Option<Held>>>,
    vocab_size: usize, // that both models have
}

impl fmt::Debug for Guesser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guesser").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Draft for Guesser {
    fn draft(&mut self, tokens: &[u32], most: usize, interrupt: &Interrupt) -> Result<Vec<u32>> {
        let mut held = self.held.lend()?;
        let held = held.as_mut().ok_or(Error::Closed { model: None })?;
        held.epoch += 1;
        guess(&mut held.session, self.vocab_size, tokens, most, interrupt)
    }
}

const IDS: &str = "token ids are a sequence of integers";

impl Session {
    pub fn of(session: session::Session) -> Self {
        Self {
            closed: AtomicU8::new(OPEN),
            position: AtomicUsize::new(session.position()),
            context_length: session.context_length(),
            vocab_size: session.model().config().vocab_size,
            model: session.model().checkpoint().path().to_path_buf(),
            held: Arc::new(Lent::new(Some(Held { session, epoch: 0 }))),
        }
    }

    pub fn context_length(&self) -> usize {
        self.context_length
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Runs `work` on the session, detached; it is interrupted when the session is closed.
    pub fn run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Held, &Interrupt) -> Result<T> + Send,
    ) -> (Result<T>, Option<PyErr>) {
        run_until(py, &|| self.closed(), |interrupt| {
            self.check_open()?;
            let mut held = self.held.lend()?;
            let Some(inner) = &mut *held else { return Err(self.closed_error()) };
            let result = work(inner, interrupt);
            self.position.store(inner.session.position(), Ordering::SeqCst);
            drop(held);
            match result {
                Err(Error::Interrupted) => self.check_open().and(Err(Error::Interrupted)),
                result => result,
            }
        })
    }

    /// What guesses tokens by this session, for an answer of another one: it stays here, and the next answer goes on with it.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn guesser(&self, vocab_size: usize) -> Result<Guesser> {
        self.check_open()?;
        Ok(Guesser { held: Arc::clone(&self.held), vocab_size })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed() { Err(self.closed_error()) } else { Ok(()) }
    }

    fn closed_error(&self) -> Error {
        let with_model = self.closed.load(Ordering::SeqCst) == WITH_MODEL;
        Error::Closed { model: with_model.then(|| self.model.clone()) }
    }

    /// Runs `work` on the session, and counts that it was used.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut session::Session, &Interrupt) -> Result<T> + Send,
    ) -> PyResult<T> {
        let done = self.run(py, |held, interrupt| {
            held.epoch += 1;
            work(&mut held.session, interrupt)
        });
        self.free_if_closed(py);
        match done {
            (_, Some(e)) => Err(e),
            (result, None) => result.map_err(|e| raise(py, e)),
        }
    }

    /// Frees the memory of a session that was closed, unless somebody still uses it: who does, comes here afterwards.
    pub fn free_if_closed(&self, py: Python<'_>) {
        if self.closed() {
            detached(py, || drop(self.held.lend().ok().and_then(|mut held| held.take())));
        }
    }

    fn ids(&self, tokens: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        token_ids(IDS, tokens, self.vocab_size, self.context_length)
    }
}

/// A count of tokens, `name`, that is not negative. What is too large is found by whoever knows what there is.
fn tokens(name: &'static str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    int(&count(name, 0, i64::MAX as i128), value).map(|n| n as usize)
}

#[pymethods]
impl Session {
    /// Number of tokens that are computed; while a call computes, as it was before.
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<usize> {
        self.held.check().map_err(|e| raise(py, e))?;
        self.check_open().map_err(|e| raise(py, e))?;
        Ok(self.position.load(Ordering::SeqCst))
    }

    /// Positions there is room for.
    #[getter(context_length)]
    fn get_context_length(&self) -> usize {
        self.context_length
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) != OPEN
    }

    /// Closes it, for itself or with its model: a call that uses it stops, and its memory is freed.
    fn close(&self, py: Python<'_>, with_model: bool) {
        let how = if with_model { WITH_MODEL } else { CLOSED };
        let _ = self.closed.compare_exchange(OPEN, how, Ordering::SeqCst, Ordering::SeqCst); // the first one counts
        self.free_if_closed(py);
    }

    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        let (result, raised) = self.run(py, |held, _| Ok(held.session.tokens().to_vec()));
        raised.map_or_else(|| result.map_err(|e| raise(py, e)), Err)
    }

    fn truncate(&self, py: Python<'_>, n: &Bound<'_, PyAny>) -> PyResult<()> {
        let n = tokens("n", n)?;
        self.with(py, |session, _| session.truncate(n))
    }

    fn shift(&self, py: Python<'_>, n_keep: &Bound<'_, PyAny>, n_discard: &Bound<'_, PyAny>) -> PyResult<()> {
        let (n_keep, n_discard) = (tokens("n_keep", n_keep)?, tokens("n_discard", n_discard)?);
        self.with(py, |session, _| session.shift(n_keep, n_discard))
    }

    /// Another session, which shares what was computed.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let (result, raised) = self.run(py, |held, _| Ok(held.session.fork()));
        raised.map_or_else(|| result.map(Self::of).map_err(|e| raise(py, e)), Err)
    }

    /// Saves the session, or its first `prefix` tokens.
    fn save(&self, py: Python<'_>, path: PathBuf, prefix: Option<usize>) -> PyResult<()> {
        let (result, raised) = self.run(py, |held, _| match prefix {
            Some(n) => held.session.save_prefix(&path, n),
            None => held.session.save(&path),
        });
        raised.map_or_else(|| result.map_err(|e| raise(py, e)), Err)
    }

    /// Logits of the last token.
    fn forward(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<Floats> {
        let tokens = self.ids(tokens)?;
        let data = self.with(py, |session, interrupt| Ok(session.forward(&tokens, interrupt)?.to_vec()))?;
        let shape = vec![data.len()];
        Ok(Floats::new(data, shape))
    }

    /// Logits of every token.
    fn forward_all(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>) -> PyResult<Floats> {
        let tokens = self.ids(tokens)?;
        let data = self.with(py, |session, interrupt| session.forward_all(&tokens, interrupt))?;
        Ok(Floats::new(data, vec![tokens.len(), self.vocab_size]))
    }

    /// The score of each continuation of each prompt, see `likelihood::log_probs`; with an end of the answer behind it.
    fn label_scores(
        &self,
        py: Python<'_>,
        choices: Vec<(Bound<'_, PyAny>, Vec<Bound<'_, PyAny>>)>,
        with_end: bool,
        by_sum: bool,
    ) -> PyResult<Vec<Vec<f64>>> {
        let choices = choices.iter().map(|(prompt, continuations)| {
            let continuations = continuations.iter().map(|tokens| self.ids(tokens)).collect::<PyResult<_>>()?;
            Ok(Choices { prompt: self.ids(prompt)?, continuations })
        });
        let choices = choices.collect::<PyResult<Vec<_>>>()?;
        self.with(py, |session, interrupt| {
            let model = Arc::clone(session.model());
            let ends = if with_end { model.tokenizer()?.end_tokens()? } else { &[] };
            let rows = likelihood::log_probs(session, &choices, ends, interrupt)?;
            let scores = |row: &Vec<Vec<f32>>| row.iter().map(|logs| classify::score(logs, by_sum)).collect();
            Ok(rows.iter().map(scores).collect())
        })
    }

    /// See `likelihood::negative_log_likelihood`.
    fn negative_log_likelihood(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>, first: usize) -> PyResult<Vec<f32>> {
        let tokens = self.ids(tokens)?;
        self.with(py, |session, interrupt| likelihood::negative_log_likelihood(session, &tokens, first, interrupt))
    }

    /// Seconds of each round of a benchmark, see `measure::bench`.
    fn bench(&self, py: Python<'_>, n: usize, generate: bool, rounds: usize) -> PyResult<Vec<f64>> {
        let times = self.with(py, |session, interrupt| measure::bench(session, n, generate, rounds, interrupt))?;
        Ok(times.iter().map(std::time::Duration::as_secs_f64).collect())
    }
}
