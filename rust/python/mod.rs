//! The Python bindings: convert, detach from the interpreter, call, map the error. Policy lives in `python/llama_rs`.
//!
//! A file a class. Two rules hold for all of them: work is done detached, by [`run`]; and no lock is waited for, because
//! whoever has it may be running Python code (a signal handler, say) that waits for us: what is in use says so at once
//! ([`lend`]).

mod array;
mod chat;
mod checkpoint;
mod classify;
mod dlpack;
mod engine;
mod exit;
mod files;
mod floats;
mod generation;
mod ids;
mod lend;
mod model;
mod parameters;
mod perf;
mod quantize;
mod sampler;
mod server;
mod session;
mod tensor;
mod tokenizer;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PySystemExit, PyValueError};
use pyo3::prelude::*;

use self::checkpoint::Checkpoint;
use self::exit::detached;
use self::floats::Floats;
use self::model::Model;
use self::session::Session;
use self::tensor::Tensor;
use self::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::kernels;
use crate::threads::{self, Interrupt};

/// The compiled part of llama_rs.
#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::array::Array;
    #[pymodule_export]
    use super::chat::{Chat, ChatParser};
    #[pymodule_export]
    use super::classify::{Asking, content_free, label_prior, label_probabilities};
    #[pymodule_export]
    use super::engine::{Bell, Engine, Ticket, generate_batch};
    #[pymodule_export]
    use super::files::{convert_directory, merge, split};
    #[pymodule_export]
    use super::generation::Generation;
    #[pymodule_export]
    use super::model::{Adapter, Model};
    #[pymodule_export]
    use super::parameters::{check, parameters};
    #[pymodule_export]
    use super::perf::perf;
    #[pymodule_export]
    use super::quantize::{Collector, Quantizer, encodable_types, mixes};
    #[pymodule_export]
    use super::sampler::Sampler;
    #[pymodule_export]
    use super::server::{Order, Server};
    #[pymodule_export]
    use super::{Checkpoint, Floats, Session, Tensor, Tokenizer, available_threads, cpu};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::exit::register(module.py())
    }
}

/// The name of the kernel set in use.
#[pyfunction]
fn cpu(py: Python<'_>) -> PyResult<&'static str> {
    kernels::best().map(|k| k.name()).map_err(|e| raise(py, e))
}

/// The number of cores that this process may use.
#[pyfunction]
fn available_threads() -> usize {
    threads::available()
}

/// A Rust error as the Python exception of its kind, of `llama_rs.errors`, with the message intact.
fn raise(py: Python<'_>, error: Error) -> PyErr {
    raise_ref(py, &error)
}

/// The same of an error that others have too.
fn raise_ref(py: Python<'_>, error: &Error) -> PyErr {
    try_raise(py, error).unwrap_or_else(|e| e)
}

fn try_raise(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let message = error.to_string();
    let path = |path: &Path| path.display().to_string();
    let (class, args) = match error {
        Error::Argument(_) => return Ok(PyValueError::new_err(message)),
        Error::Interrupted => return Ok(PyKeyboardInterrupt::new_err(())),
        Error::OutOfMemory { .. } => return Ok(PyMemoryError::new_err(message)),
        Error::File { path: p, source } => {
            let missing = source.kind() == std::io::ErrorKind::NotFound;
            let class = if missing { "ModelNotFoundError" } else { "ModelFileError" };
            (class, (message, path(p), source.raw_os_error()).into_pyobject(py)?)
        }
        Error::Changed { path: p, .. } => ("ModelChangedError", (message, path(p)).into_pyobject(py)?),
        Error::Format(e) => ("ModelFormatError", (message, path(&e.path), e.offset, e.name.clone()).into_pyobject(py)?),
        Error::SavedSession { path: p, .. } => ("SavedSessionError", (message, path(p)).into_pyobject(py)?),
        Error::Unsupported { path: p, .. } => ("UnsupportedModelError", (message, path(p)).into_pyobject(py)?),
        Error::ContextOverflow { tokens, context_length } => {
            ("ContextOverflowError", (message, *tokens, *context_length).into_pyobject(py)?)
        }
        Error::TooManyTokens { at_least, at_most } => {
            let message = Error::ContextOverflow { tokens: *at_least, context_length: *at_most }.to_string();
            ("ContextOverflowError", (format!("at least {message}"), *at_least, *at_most).into_pyobject(py)?)
        }
        Error::Grammar { pointer, .. } => ("GrammarError", (message, pointer.clone()).into_pyobject(py)?),
        Error::SessionBusy(_) => ("SessionBusyError", (message,).into_pyobject(py)?),
        Error::Closed { .. } => ("ModelClosedError", (message,).into_pyobject(py)?),
        _ => ("LlamaError", (message,).into_pyobject(py)?),
    };
    let class = py.import("llama_rs.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call1(args)?))
}

/// Runs `work` detached from the interpreter. Signals are looked after meanwhile: when a handler raises (Ctrl-C), the
/// work stops and the exception goes up.
fn run<T: Send>(py: Python<'_>, work: impl FnOnce(&Interrupt) -> Result<T> + Send) -> PyResult<T> {
    match run_until(py, &|| false, work) {
        (_, Some(e)) => Err(e),
        (result, None) => result.map_err(|e| raise(py, e)),
    }
}

/// The same; it stops too when `is_over`, with [`Error::Interrupted`]. Gives the result, and what a handler raised.
///
/// Signals are delivered on the main thread, so only there is the interpreter asked for them: on another thread a long
/// call that holds the interpreter would stop the work, which has no need of it.
fn run_until<T: Send>(
    py: Python<'_>,
    is_over: &(dyn Fn() -> bool + Sync),
    work: impl FnOnce(&Interrupt) -> Result<T> + Send,
) -> (Result<T>, Option<PyErr>) {
    let raised = Mutex::new(None);
    if exit::is_ending() {
        return (Err(Error::Interrupted), Some(PySystemExit::new_err(())));
    }
    let is_main = exit::is_main_thread();
    let check = || {
        if is_over() || exit::is_ending() {
            return true;
        }
        let signals = || Python::try_attach(|py| py.check_signals()).unwrap_or(Ok(()));
        match if is_main { signals() } else { Ok(()) } {
            Ok(()) => false,
            Err(e) => {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                true
            }
        }
    };
    let result = detached(py, || work(&Interrupt::new(&check)));
    let raised = raised.into_inner().unwrap_or_else(PoisonError::into_inner);
    let ended = || (exit::is_ending() && matches!(result, Err(Error::Interrupted))).then(|| PySystemExit::new_err(()));
    let raised = raised.or_else(ended);
    (result, raised)
}
