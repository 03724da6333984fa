//! `Quantizer`: a model file that is to become another one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::files::told;
use super::model::Model;
use super::{Checkpoint, run};
use crate::error::Error;
use crate::quant::DType;
use crate::quantize::{self, Imatrix, MIXES, Mix, Plan, Request, Wishes};

/// The mixes by name: each with its base type.
#[pyfunction]
pub fn mixes() -> Vec<(&'static str, &'static str)> {
    MIXES.iter().map(|mix| (mix.name, mix.base.name())).collect()
}

/// The types that weights can be made into.
#[pyfunction]
pub fn encodable_types() -> Vec<&'static str> {
    DType::ALL.iter().copied().filter(|&dtype| quantize::is_encodable(dtype)).map(DType::name).collect()
}

/// A plan, and the work.
#[pyclass(frozen)]
pub struct Quantizer {
    plan: Plan,
}

fn dtype(name: &str) -> PyResult<DType> {
    let found = DType::ALL.iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| PyValueError::new_err(format!("no such type: {name}")))
}

#[pymethods]
impl Quantizer {
    /// Plans what becomes of a file. Types are those of the tensors by name, `imatrix` a file.
    #[new]
    #[pyo3(signature = (checkpoint, mix, *, output, token_embedding, tensors, imatrix, pure, allow_requantize, dry))]
    #[allow(clippy::too_many_arguments)] // they have names in Python
    fn new(
        py: Python<'_>,
        checkpoint: &Checkpoint,
        mix: &str,
        output: Option<&str>,
        token_embedding: Option<&str>,
        tensors: HashMap<String, String>,
        imatrix: Option<PathBuf>,
        pure: bool,
        allow_requantize: bool,
        dry: bool,
    ) -> PyResult<Self> {
        let mix = Mix::named(mix).ok_or_else(|| PyValueError::new_err(format!("no such mix: {mix}")))?;
        let tensors = tensors.into_iter().map(|(name, of)| Ok((name, dtype(&of)?))).collect::<PyResult<_>>()?;
        let wishes = Wishes {
            output: output.map(dtype).transpose()?,
            token_embedding: token_embedding.map(dtype).transpose()?,
            tensors,
            pure,
            seeing: false,
        };
        let plan = run(py, |_| {
            let imatrix = imatrix.as_deref().map(Imatrix::open).transpose()?;
            let request = Request { mix, wishes, imatrix, allow_requantize, dry };
            checkpoint.inner().checked(|| Plan::new(checkpoint.inner(), request))
        })?;
        Ok(Self { plan })
    }

    /// The type of each tensor, in the order of the file, and the bytes that it will have.
    fn tensors(&self) -> Vec<(&str, &'static str, usize)> {
        self.plan.tensors().iter().map(|tensor| (&*tensor.name, tensor.dtype.name(), tensor.size())).collect()
    }

    /// Writes the file. `on_progress` is called now and then with how many bytes of how many there are.
    fn write(&self, py: Python<'_>, path: PathBuf, n_threads: usize, on_progress: Option<Py<PyAny>>) -> PyResult<()> {
        told(py, on_progress, |interrupt, progress| self.plan.write(&path, n_threads, interrupt, progress))
    }
}

/// What the matrices of a model are multiplied with, summed up while it computes.
#[pyclass(frozen)]
pub struct Collector {
    inner: Arc<quantize::Collector>,
}

#[pymethods]
impl Collector {
    /// Sees all that `model` computes from now on. A model can be seen by one only.
    #[new]
    fn new(py: Python<'_>, model: &Model) -> PyResult<Self> {
        let inner = run(py, |_| {
            let inner = Arc::new(quantize::Collector::new(model.inner().checkpoint()));
            match model.inner().engine()?.observe(inner.clone()) {
                true => Ok(inner),
                false => Err(Error::Argument("this model is being measured already".into())),
            }
        })?;
        Ok(Self { inner })
    }

    /// Writes an importance matrix.
    fn write(&self, py: Python<'_>, path: PathBuf, dataset: &str, chunks: u32, chunk_size: u32) -> PyResult<()> {
        run(py, |interrupt| self.inner.write(&path, dataset, chunks, chunk_size, interrupt))
    }
}
