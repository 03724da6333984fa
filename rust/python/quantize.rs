//! `Quantizer`: a model file that is to become another one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{Checkpoint, raise, run, run_until};
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
    fn write(&self, py: Python<'_>, path: PathBuf, threads: usize, on_progress: Option<Py<PyAny>>) -> PyResult<()> {
        const PAUSE: Duration = Duration::from_millis(100);
        let failed = Mutex::new(None);
        let failed = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = Instant::now();
        let mut tell = |done: u64, whole: u64| {
            let Some(callback) = &on_progress else { return };
            if done < whole && last.elapsed() < PAUSE {
                return;
            }
            last = Instant::now();
            if let Some(Err(e)) = Python::try_attach(|py| callback.call1(py, (done, whole))) {
                failed().get_or_insert(e);
            }
        };
        let (result, raised) =
            run_until(py, &|| failed().is_some(), |interrupt| self.plan.write(&path, threads, interrupt, &mut tell));
        if let Some(e) = raised.or(failed().take()) {
            return Err(e);
        }
        result.map_err(|e| raise(py, e))
    }
}
