//! `Sampler`: logits to a token, for whoever computes them himself.

use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::lend::Lent;
use super::parameters::to_options;
use super::{Tokenizer, raise, run};
use crate::error::Result;
use crate::grammar::{self, Accepted, Constraint};
use crate::sampling::{self, History};
use crate::tokenizer;

/// Chooses tokens, and keeps its random numbers and where it is in a grammar from one to the next.
#[pyclass(frozen)]
pub struct Sampler {
    inner: Lent<Inner>,
}

struct Inner {
    sampler: sampling::Sampler,
    constraint: Option<Constraint>,
    complete: bool, // there can be no more by the grammar
    tokenizer: Arc<tokenizer::Tokenizer>,
}

#[pymethods]
impl Sampler {
    /// By the options of sampling and the grammar among `options`; others are of no account.
    #[new]
    fn new(py: Python<'_>, tokenizer: &Tokenizer, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let options = to_options(py, options)?;
        let tokenizer = Arc::clone(tokenizer.inner());
        let constraint = match options.grammar().map_err(|e| raise(py, e))? {
            Some(grammar) => Some(run(py, |interrupt| grammar::compile(&tokenizer, &grammar, interrupt))?),
            None => None,
        };
        let sampler = sampling::Sampler::new(options.sampling).map_err(|e| raise(py, e))?;
        Ok(Self { inner: Lent::new(Inner { sampler, constraint, complete: false, tokenizer }) })
    }

    /// Chooses a token by logits, `(vocab_size)`. `tokens` are those that penalties look at, latest last. None if none
    /// of the logits can be used. After what completes a grammar comes an end token.
    fn sample(&self, py: Python<'_>, logits: PyBuffer<f32>, tokens: Vec<u32>) -> PyResult<Option<u32>> {
        let logits = logits.to_vec(py)?;
        let choose = || self.inner.lend()?.choose(logits, &tokens);
        choose().map_err(|e| raise(py, e))
    }

    /// The seed given, or the one drawn.
    #[getter]
    fn seed(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.inner.lend().map_err(|e| raise(py, e))?.sampler.seed())
    }
}

impl Inner {
    fn choose(&mut self, mut logits: Vec<f32>, tokens: &[u32]) -> Result<Option<u32>> {
        let Self { sampler, constraint, complete, tokenizer } = self;
        let bytes = |id| tokenizer.token_bytes(id).unwrap_or_default();
        let history = History { tokens, text: &bytes };
        let Some(constraint) = constraint else { return Ok(sampler.sample_after(&history, &logits)) };
        let ends = tokenizer.end_tokens()?;
        if *complete {
            return Ok(ends.first().copied());
        }
        constraint.mask(&mut logits, ends)?;
        loop {
            let Some(token) = sampler.sample_after(&history, &logits) else { return Ok(None) };
            match constraint.accept(token, &bytes(token))? {
                Accepted::Refused => logits[token as usize] = f32::NEG_INFINITY,
                accepted => {
                    *complete = accepted == Accepted::Complete;
                    return Ok(Some(token));
                }
            }
        }
    }
}
