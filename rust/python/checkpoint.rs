//! `Checkpoint`: a model file, open.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::prelude::*;

use super::array::to_python;
use super::{Tensor, detached, raise, run};
use crate::mapping::{Mapping, guarded};
use crate::{checkpoint, formats};

/// A model file, open: metadata and tensors.
#[pyclass(frozen)]
pub struct Checkpoint {
    inner: Arc<checkpoint::Checkpoint>,
    views: Arc<AtomicUsize>,
}

impl Checkpoint {
    pub fn of(inner: &Arc<checkpoint::Checkpoint>, views: &Arc<AtomicUsize>) -> Self {
        Self { inner: Arc::clone(inner), views: Arc::clone(views) }
    }

    /// The file.
    pub fn inner(&self) -> &Arc<checkpoint::Checkpoint> {
        &self.inner
    }

    /// Gives what `read` makes of the file, unless the file changed meanwhile.
    fn checked<T>(&self, py: Python<'_>, read: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        let _guarded = guarded();
        let result = read();
        self.inner.check().map_err(|e| raise(py, e))?;
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

    /// Size, modification time in nanoseconds and hash of the header: what tells the file from others. Of a model in parts,
    /// the sums of sizes and times.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<(u64, i128, u64)> {
        let hash = run(py, |_| self.inner.header_hash())?;
        let identities = self.inner.maps().iter().filter_map(|map| map.identity());
        let (size, modified) =
            identities.fold((0, 0), |(size, modified), identity| (size + identity.size, modified + identity.modified));
        Ok((size, modified, hash))
    }

    /// Path, device, inode and bytes of each file, in the order of the parts.
    fn files(&self) -> Vec<(&OsStr, u64, u64, usize)> {
        // What never was a file comes after all that are.
        let file = |map: &Arc<Mapping>| map.identity().map(|identity| identity.file);
        let files = self.inner.maps().iter().filter_map(|map| Some((map, file(map)?)));
        files.map(|(map, (device, inode))| (map.path().as_os_str(), device, inode, map.as_slice().len())).collect()
    }

    /// Bytes of all files. Positions below count through the files one after another.
    fn size(&self) -> usize {
        self.inner.size()
    }

    /// What a user should know about how the file was opened.
    fn note(&self) -> Option<&str> {
        self.inner.maps().iter().find_map(|map| map.note())
    }

    /// Whether the kernel tells this process what of the file is in memory; if not, `resident` says that all is.
    fn residency_known(&self) -> bool {
        self.inner.maps().iter().all(|map| map.residency_known())
    }

    /// Bytes of the positions `start..end` that are in memory now.
    fn resident(&self, py: Python<'_>, start: usize, end: usize) -> usize {
        detached(py, || self.inner.pieces(start..end).map(|(map, range)| map.resident(range)).sum())
    }

    /// Reads the positions `start..end` into memory.
    fn read_in(&self, py: Python<'_>, start: usize, end: usize) -> PyResult<()> {
        run(py, |interrupt| self.inner.pieces(start..end).try_for_each(|(map, range)| map.read_in(range, interrupt)))
    }

    /// Has the positions `start..end` lie in memory in large pages; `drop` if they may be dropped and read again for that.
    fn enlarge_pages(&self, py: Python<'_>, start: usize, end: usize, drop: bool) -> PyResult<()> {
        run(py, |interrupt| {
            self.inner.pieces(start..end).try_for_each(|(map, range)| map.enlarge_pages(range, drop, interrupt))
        })
    }

    /// Waits until the files are on the disk.
    fn sync(&self, py: Python<'_>) {
        detached(py, || self.inner.maps().iter().for_each(|map| map.sync()));
    }

    /// Keeps the files in memory until they are closed.
    fn lock(&self, py: Python<'_>) -> PyResult<()> {
        run(py, |_| self.inner.maps().iter().try_for_each(|map| map.lock()))
    }

    /// Name, first position and bytes of each tensor, in the order of the file.
    fn tensor_spans(&self) -> Vec<(&str, usize, usize)> {
        let span = |t: &checkpoint::TensorInfo| {
            (self.inner.position(t.view.bytes()).expect("of this checkpoint"), t.view.bytes().len())
        };
        self.inner.tensors().iter().map(|t| (t.name(), span(t))).map(|(name, (at, len))| (name, at, len)).collect()
    }

    /// Names of the tensors, in the order of the file.
    fn tensor_names(&self, py: Python<'_>) -> PyResult<Vec<&str>> {
        self.checked(py, || Ok(self.inner.tensors().iter().map(|t| t.name()).collect()))
    }

    /// The tensor called `name`.
    fn tensor(&self, py: Python<'_>, name: &str) -> PyResult<Option<Tensor>> {
        self.checked(py, || Ok(self.inner.tensor(name).map(|tensor| Tensor::of(tensor.clone(), &self.views))))
    }

    /// Keys of the metadata, in the order of the file; those of the tokenizer last, where they come from another file and
    /// that can be read.
    fn metadata_keys(&self, py: Python<'_>) -> PyResult<Vec<&str>> {
        let tokenizer = detached(py, || self.inner.tokenizer_metadata());
        let more = tokenizer.ok().filter(|tokenizer| !std::ptr::eq(*tokenizer, &self.inner.metadata));
        let all = self.inner.metadata.iter().chain(more.into_iter().flat_map(|more| more.iter()));
        self.checked(py, || Ok(all.map(|(key, _)| key).collect()))
    }

    /// The value of `key`, as Python has it; arrays are read when their elements are asked for.
    fn metadata_value<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = match self.inner.metadata.get(key) {
            None if key.contains("tokenizer.") => run(py, |_| self.inner.tokenizer_metadata())?.get(key),
            found => found,
        };
        self.checked(py, || found.map(|value| to_python(py, value)).transpose())
    }

    /// Number of buffers of tensors that somebody holds.
    fn views(&self) -> usize {
        self.views.load(Ordering::Acquire)
    }
}
