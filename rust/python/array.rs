//! `Array`: an array of the metadata; and metadata values as Python has them.

use std::sync::Mutex;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use super::{detached, raise};
use crate::checkpoint::{self, Elements, Value};

/// A metadata value as Python has it.
pub fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Unsigned(n) => n.into_bound_py_any(py),
        Value::Signed(n) => n.into_bound_py_any(py),
        Value::F32(x) => x.into_bound_py_any(py),
        Value::F64(x) => x.into_bound_py_any(py),
        Value::Bool(b) => b.into_bound_py_any(py),
        Value::String(s) => {
            let copy = s.to_vec(); // then converted: another process may write to the file meanwhile
            String::from_utf8_lossy(&copy).into_bound_py_any(py)
        }
        Value::Array(a) => Array { array: a.clone(), elements: Mutex::new(a.iter()) }.into_bound_py_any(py),
    }
}

/// An array of the metadata: its elements are read when they are asked for.
#[pyclass(frozen, sequence)]
pub struct Array {
    array: checkpoint::Array,
    elements: Mutex<Elements>, // from where the last one was asked for: strings are found by walking over those before
}

#[pymethods]
impl Array {
    fn __len__(&self) -> usize {
        self.array.len
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        // Whoever else has the place is waited for by nobody: from the start it is found as well.
        let find = |elements: &mut Elements| {
            if Elements::position(elements) > index {
                *elements = self.array.iter();
            }
            elements.nth(index - Elements::position(elements))
        };
        let value = detached(py, || match self.elements.try_lock() {
            Ok(mut elements) => find(&mut elements),
            Err(_) => find(&mut self.array.iter()),
        });
        self.array.bytes.mapping().check().map_err(|e| raise(py, e))?;
        match value {
            Some(value) => to_python(py, &value),
            None => Err(PyIndexError::new_err("array index out of range")),
        }
    }
}
