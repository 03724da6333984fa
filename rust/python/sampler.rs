//! `Sampler`: logits to a token, for whoever computes them himself.

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::lend::Lent;
use super::parameters::to_options;
use super::raise;
use crate::sampling;

/// Chooses tokens, and keeps its random numbers from one to the next.
#[pyclass(frozen)]
pub struct Sampler {
    inner: Lent<sampling::Sampler>,
}

#[pymethods]
impl Sampler {
    /// By the options of sampling, by name; others are of no account.
    #[new]
    fn new(py: Python<'_>, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let options = to_options(py, options)?;
        let inner = sampling::Sampler::new(options.sampling).map_err(|e| raise(py, e))?;
        Ok(Self { inner: Lent::new(inner) })
    }

    /// Chooses a token by logits, `(vocab_size)`. `tokens` are those that penalties look at, latest last. None if none
    /// of the logits can be used.
    fn sample(&self, py: Python<'_>, logits: PyBuffer<f32>, tokens: Vec<u32>) -> PyResult<Option<u32>> {
        let logits = logits.to_vec(py)?;
        let mut sampler = self.inner.lend().map_err(|e| raise(py, e))?;
        Ok(sampler.sample(&logits, &tokens))
    }

    /// The seed given, or the one drawn.
    #[getter]
    fn seed(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.inner.lend().map_err(|e| raise(py, e))?.seed())
    }
}
