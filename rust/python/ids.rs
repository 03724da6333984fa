//! Token ids from Python: what is no list of them says what to do instead.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyString};

use super::parameters::{index, type_name};
use super::raise;
use crate::error::Error;

/// The token ids in a sequence: at most `room` of them, each less than `vocab_size`.
///
/// `what` they are is for the message: `a prompt is text or token ids`.
pub fn token_ids(what: &str, value: &Bound<'_, PyAny>, vocab_size: usize, room: usize) -> PyResult<Vec<u32>> {
    let py = value.py();
    let refuse = |got: &str, remedy: &str| Err(PyTypeError::new_err(format!("{what}, got {got}{remedy}")));
    if value.is_instance_of::<PyString>() {
        return refuse("text", ": encode it with tokenizer.encode(text)");
    }
    if value.is_instance_of::<PyBytes>() || value.is_instance_of::<PyByteArray>() {
        return refuse(&type_name(value), ": decode it to text with .decode()");
    }
    // SAFETY: any object may be asked.
    if unsafe { ffi::PySequence_Check(value.as_ptr()) } == 0 {
        return refuse(&type_name(value), "");
    }
    let n = value.len()?;
    if n > room {
        // Before the first is converted: there may be any number of them.
        return Err(raise(py, Error::ContextOverflow { tokens: n, context_length: room }));
    }
    let mut ids = Vec::new();
    let bytes = n as u128 * 4;
    ids.try_reserve_exact(n).map_err(|_| raise(py, Error::OutOfMemory { bytes, what: "token ids" }))?;
    for item in value.try_iter()? {
        let item = item?;
        match item.extract::<u32>() {
            _ if item.is_instance_of::<PyBool>() => return refuse("a sequence of bool", ""), // an int to Python
            Ok(id) if (id as usize) < vocab_size => ids.push(id),
            _ if index(&item).is_some() => return Err(unknown(&item, vocab_size)),
            _ if item.is_instance_of::<PyDict>() => {
                let remedy = "; chat(messages) answers messages";
                return refuse("a sequence of dict", remedy);
            }
            _ => return refuse(&format!("a sequence of {}", type_name(&item)), ""),
        }
    }
    Ok(ids)
}

/// One token id, less than `vocab_size`.
pub fn token_id(value: &Bound<'_, PyAny>, vocab_size: usize) -> PyResult<u32> {
    match value.extract::<u32>() {
        Ok(id) if (id as usize) < vocab_size && !value.is_instance_of::<PyBool>() => Ok(id),
        _ if value.is_instance_of::<PyBool>() => Err(no_id(value)),
        _ if index(value).is_some() => Err(unknown(value, vocab_size)),
        _ => Err(no_id(value)),
    }
}

fn no_id(value: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("a token id is an int, got {}", type_name(value)))
}

fn unknown(id: &Bound<'_, PyAny>, vocab_size: usize) -> PyErr {
    let id = id.str().map_or("of thousands of digits".into(), |text| text.to_string());
    let what =
        format!("token {id} is not in the vocabulary of {vocab_size}: ids are from 0 to {}", vocab_size.max(1) - 1);
    PyValueError::new_err(what)
}
