//! Making model files of others: `convert`, `split` and `merge`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::run;
use crate::convert;
use crate::formats::gguf::{self, Limit};
use crate::threads::{self, Interrupt};

/// What `on_progress` is told: now and then, and at the end.
struct Progress {
    tell: Option<Py<PyAny>>,
    next: Instant,
    raised: Option<PyErr>,
}

impl Progress {
    const PERIOD: Duration = Duration::from_millis(100);

    fn new(tell: Option<Py<PyAny>>) -> Self {
        Self { tell, next: Instant::now(), raised: None }
    }

    fn update(&mut self, done: u64, whole: u64) {
        let Some(tell) = &self.tell else { return };
        if self.raised.is_some() || (done < whole && Instant::now() < self.next) {
            return;
        }
        self.next = Instant::now() + Self::PERIOD;
        self.raised = Python::try_attach(|py| tell.call1(py, (done, whole)).err()).flatten();
    }
}

/// Runs `work` with what it tells of its progress; what `on_progress` raises goes up, and the work stops.
pub(super) fn told<T: Send>(
    py: Python<'_>,
    on_progress: Option<Py<PyAny>>,
    work: impl FnOnce(&Interrupt, &mut dyn FnMut(u64, u64)) -> crate::error::Result<T> + Send,
) -> PyResult<T> {
    let progress = std::sync::Mutex::new(Progress::new(on_progress));
    let lock = || progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let result = run(py, |interrupt| {
        let stop = || lock().raised.is_some() || interrupt.poll_now();
        let interrupt = Interrupt::new(&stop);
        work(&interrupt, &mut |done, whole| lock().update(done, whole))
    });
    match lock().raised.take() {
        Some(e) => Err(e),
        None => result,
    }
}

/// Writes the model in a directory as a GGUF file.
#[pyfunction]
pub fn convert_directory(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    output_type: &str,
    n_threads: Option<usize>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let named = convert::OUTPUT_TYPES.iter().find(|dtype| dtype.name().eq_ignore_ascii_case(output_type)).copied();
    if named.is_none() && output_type != "auto" {
        let names = convert::OUTPUT_TYPES.iter().map(|dtype| dtype.name().to_lowercase()).collect::<Vec<_>>();
        let names = names.join(", ");
        return Err(PyValueError::new_err(format!("output_type must be auto or one of {names}, got {output_type:?}")));
    }
    let n_threads = n_threads.unwrap_or_else(threads::available).clamp(1, threads::MAX_THREADS);
    told(py, on_progress, |interrupt, progress| {
        convert::convert(&source, &target, named, n_threads, interrupt, progress)
    })
}

/// Writes a GGUF file in parts; gives their paths.
#[pyfunction]
pub fn split(
    py: Python<'_>,
    source: PathBuf,
    prefix: PathBuf,
    max_tensors: Option<usize>,
    max_size: Option<u64>,
    on_progress: Option<Py<PyAny>>,
) -> PyResult<Vec<PathBuf>> {
    let limit = match (max_tensors, max_size) {
        (Some(n), None) => Limit::Tensors(n),
        (None, Some(n)) => Limit::Bytes(n),
        _ => return Err(PyValueError::new_err("give max_size or max_tensors, one of the two")),
    };
    told(py, on_progress, |interrupt, progress| gguf::split(&source, &prefix, limit, interrupt, progress))
}

/// Writes the parts of a model as one GGUF file.
#[pyfunction]
pub fn merge(py: Python<'_>, source: PathBuf, target: PathBuf, on_progress: Option<Py<PyAny>>) -> PyResult<()> {
    told(py, on_progress, |interrupt, progress| gguf::merge(&source, &target, interrupt, progress))
}
