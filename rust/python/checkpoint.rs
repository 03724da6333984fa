//! `Checkpoint`: a model file, open.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::{Tensor, detached, raise, run};
use crate::formats::{self, Value};

/// A model file, open: metadata and tensors.
#[pyclass(frozen)]
pub struct Checkpoint {
    inner: Arc<formats::Checkpoint>,
    views: Arc<AtomicUsize>,
}

impl Checkpoint {
    pub fn of(inner: &Arc<formats::Checkpoint>, views: &Arc<AtomicUsize>) -> Self {
        Self { inner: Arc::clone(inner), views: Arc::clone(views) }
    }

    /// Gives what `read` makes of the file, unless the file changed meanwhile.
    fn checked<T>(&self, py: Python<'_>, read: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        let result = read();
        self.inner.mapping().check().map_err(|e| raise(py, e))?;
        result
    }
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = run(py, |_| formats::open(&path))?;
        Ok(Self { inner: Arc::new(inner), views: Arc::default() })
    }

    /// Size, modification time in nanoseconds and hash of the header: what tells the file from others.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<(u64, i128, u64)> {
        let identity = self.inner.mapping().identity();
        let hash = run(py, |_| self.inner.header_hash())?;
        Ok(identity.map_or((0, 0, hash), |identity| (identity.size, identity.modified, hash)))
    }

    /// Device and inode of the file.
    fn file(&self) -> (u64, u64) {
        self.inner.mapping().identity().map_or((0, 0), |identity| identity.file)
    }

    /// Bytes of the file.
    fn size(&self) -> usize {
        self.inner.mapping().as_slice().len()
    }

    /// What a user should know about how the file was opened.
    fn note(&self) -> Option<&str> {
        self.inner.mapping().note()
    }

    /// Bytes of `start..end` of the file that are in memory now.
    fn resident(&self, py: Python<'_>, start: usize, end: usize) -> usize {
        let mapping = self.inner.mapping();
        let end = end.min(mapping.as_slice().len());
        detached(py, || mapping.resident(start.min(end)..end))
    }

    /// Reads `start..end` of the file into memory.
    fn read_in(&self, py: Python<'_>, start: usize, end: usize) -> PyResult<()> {
        let mapping = self.inner.mapping();
        let end = end.min(mapping.as_slice().len());
        run(py, |interrupt| mapping.read_in(start.min(end)..end, interrupt))
    }

    /// Keeps the file in memory until it is closed.
    fn lock(&self, py: Python<'_>) -> PyResult<()> {
        run(py, |_| self.inner.mapping().lock())
    }

    /// Names of the tensors, in the order of the file.
    fn tensor_names(&self, py: Python<'_>) -> PyResult<Vec<&str>> {
        self.checked(py, || Ok(self.inner.tensors().iter().map(|t| t.name()).collect()))
    }

    /// The tensor called `name`.
    fn tensor(&self, py: Python<'_>, name: &str) -> PyResult<Option<Tensor>> {
        self.checked(py, || Ok(self.inner.tensor(name).map(|tensor| Tensor::of(tensor.clone(), &self.views))))
    }

    /// Keys of the metadata, in the order of the file.
    fn metadata_keys(&self, py: Python<'_>) -> PyResult<Vec<&str>> {
        self.checked(py, || Ok(self.inner.metadata.iter().map(|(key, _)| key).collect()))
    }

    /// The value of `key`, as Python has it; arrays become lists.
    fn metadata_value<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.checked(py, || self.inner.metadata.get(key).map(|value| to_python(py, value)).transpose())
    }

    /// Number of buffers of tensors that somebody holds.
    fn views(&self) -> usize {
        self.views.load(Ordering::Acquire)
    }
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Unsigned(n) => n.into_bound_py_any(py),
        Value::Signed(n) => n.into_bound_py_any(py),
        Value::F32(x) => x.into_bound_py_any(py),
        Value::F64(x) => x.into_bound_py_any(py),
        Value::Bool(b) => b.into_bound_py_any(py),
        Value::String(s) => String::from_utf8_lossy(s).into_bound_py_any(py),
        Value::Array(a) => {
            let list = PyList::empty(py);
            for value in a.iter() {
                list.append(to_python(py, &value)?)?;
            }
            Ok(list.into_any())
        }
    }
}
