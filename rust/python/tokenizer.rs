//! `Tokenizer`: text to token ids and back.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::ids::{token_id, token_ids};
use super::{Checkpoint, run};
use crate::tokenizer::huggingface::{self, Entry};
use crate::{checkpoint, formats, tokenizer};

/// A tokenizer.
#[pyclass(frozen)]
pub struct Tokenizer {
    inner: Arc<tokenizer::Tokenizer>,
    checkpoint: Arc<checkpoint::Checkpoint>,
}

impl Tokenizer {
    /// The tokenizer of this file.
    pub fn of(inner: &Arc<tokenizer::Tokenizer>, checkpoint: &Arc<checkpoint::Checkpoint>) -> Self {
        Self { inner: Arc::clone(inner), checkpoint: Arc::clone(checkpoint) }
    }

    pub fn inner(&self) -> &Arc<tokenizer::Tokenizer> {
        &self.inner
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let (inner, checkpoint) = run(py, |_| {
            let file = formats::open(&path)?;
            let metadata = file.tokenizer_metadata()?;
            let inner = file.checked(|| tokenizer::Tokenizer::from_metadata(metadata))?;
            Ok((inner, file))
        })?;
        Ok(Self { inner: Arc::new(inner), checkpoint: Arc::new(checkpoint) })
    }

    /// What a directory of Hugging Face says of its tokenizer, as the keys and values of a GGUF.
    #[staticmethod]
    fn entries(py: Python<'_>, directory: PathBuf) -> PyResult<Vec<(String, Py<PyAny>)>> {
        let entries = run(py, |_| huggingface::entries(&directory))?;
        let object = |entry: Entry| match entry {
            Entry::Bool(b) => b.into_py_any(py),
            Entry::U32(n) => n.into_py_any(py),
            Entry::F32(x) => x.into_py_any(py),
            Entry::Str(text) => text.into_py_any(py),
            Entry::Strings(texts) => PyList::new(py, texts.iter().map(|text| PyBytes::new(py, text)))?.into_py_any(py),
            Entry::F32s(numbers) => numbers.into_py_any(py),
            Entry::I32s(numbers) => numbers.into_py_any(py),
            Entry::Bytes(bytes) => PyBytes::new(py, &bytes).into_py_any(py),
        };
        entries.into_iter().map(|(key, entry)| Ok((key, object(entry)?))).collect()
    }

    /// The file.
    fn checkpoint(&self) -> Checkpoint {
        Checkpoint::of(&self.checkpoint, &Arc::new(AtomicUsize::new(0)))
    }

    /// The tokens of a text, if there are no more than `at_most`.
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        add_special: bool,
        parse_special: bool,
        at_most: Option<usize>,
    ) -> PyResult<Vec<u32>> {
        let at_most = at_most.unwrap_or(usize::MAX);
        run(py, |interrupt| self.inner.encode_at_most(at_most, text, add_special, parse_special, interrupt))
    }

    /// What was found odd in the vocabulary since the last call.
    fn take_notes(&self) -> Vec<String> {
        self.inner.take_notes()
    }

    fn decode(&self, py: Python<'_>, ids: &Bound<'_, PyAny>, skip_special: bool) -> PyResult<String> {
        let ids = token_ids("token ids are a sequence of integers", ids, self.inner.vocab_size(), usize::MAX)?;
        run(py, |interrupt| self.inner.decode_interruptibly(&ids, skip_special, interrupt))
    }

    fn token_bytes<'py>(&self, py: Python<'py>, id: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let id = token_id(id, self.inner.vocab_size())?;
        Ok(PyBytes::new(py, &run(py, |_| self.inner.token_bytes(id))?))
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    #[getter]
    fn bos(&self) -> Option<u32> {
        self.inner.bos()
    }

    #[getter]
    fn eos(&self) -> Option<u32> {
        self.inner.eos()
    }

    fn is_special(&self, id: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.inner.is_special(token_id(id, self.inner.vocab_size())?))
    }

    fn is_end_of_generation(&self, id: &Bound<'_, PyAny>) -> PyResult<bool> {
        Ok(self.inner.is_end_of_generation(token_id(id, self.inner.vocab_size())?))
    }
}
