//! The Python bindings: convert, detach from the interpreter, call, map the error. Policy lives in `python/llama_rs`.

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use pyo3::exceptions::{PyBufferError, PyIndexError, PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use pyo3::{IntoPyObjectExt, ffi};

use crate::checkpoint::{Elements, Value};
use crate::error::{Error, Result};
use crate::formats;
use crate::generate::{Options, Overflow};
use crate::kernels::KV_TYPES;
use crate::mapping::{self, Load, LoadOptions, Mapping};
use crate::quant::{self, DType};
use crate::sampling::SamplingParams;
use crate::session::{self, SessionOptions};
use crate::tensor::TensorView;
use crate::threads::{self, Interrupt};
use crate::tokenizer::StreamDecoder;
use crate::{checkpoint, generate, kernels, measure, model, tokenizer};

/// The compiled part of llama_rs.
#[pymodule(gil_used = false)]
mod _core {
    #[pymodule_export]
    use super::{Array, Checkpoint, Floats, Generation, Model, Session, Tensor, Tokenizer, available_threads, cpu};
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
    try_raise(py, error).unwrap_or_else(|e| e)
}

fn try_raise(py: Python<'_>, error: Error) -> PyResult<PyErr> {
    let message = error.to_string();
    let path = |path: &Path| path.display().to_string();
    let (class, args) = match &error {
        Error::Argument(_) => return Ok(PyValueError::new_err(message)),
        Error::Interrupted => return Ok(PyKeyboardInterrupt::new_err(())),
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
        _ => ("LlamaError", (message,).into_pyobject(py)?),
    };
    let class = py.import("llama_rs.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call1(args)?))
}

/// Runs `work` detached from the interpreter. Signals are looked after meanwhile: when a handler raises (Ctrl-C), the
/// work stops and the exception goes up.
fn run<T: Send>(py: Python<'_>, work: impl FnOnce(&Interrupt) -> Result<T> + Send) -> PyResult<T> {
    let raised = Mutex::new(None);
    let check = || {
        Python::attach(|py| match py.check_signals() {
            Ok(()) => false,
            Err(e) => {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                true
            }
        })
    };
    let result = py.detach(|| {
        let _guarded = mapping::guarded();
        work(&Interrupt::new(&check))
    });
    match raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => result.map_err(|e| raise(py, e)),
    }
}

/// A model file, open: metadata and tensors.
#[pyclass(frozen)]
struct Checkpoint {
    inner: Arc<checkpoint::Checkpoint>,
    views: Arc<AtomicUsize>,
}

impl Checkpoint {
    /// Gives what `read` makes of the file, unless the file changed meanwhile.
    fn checked<T>(&self, py: Python<'_>, read: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        let _guarded = mapping::guarded();
        let result = read();
        self.inner.check().map_err(|e| raise(py, e))?;
        result
    }
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| formats::open(&path)).map_err(|e| raise(py, e))?;
        Ok(Self { inner: Arc::new(inner), views: Arc::default() })
    }

    /// Size, modification time in nanoseconds and hash of the header: what tells the file from others. Of a model in parts,
    /// the sums of sizes and times.
    fn fingerprint(&self, py: Python<'_>) -> PyResult<(u64, i128, u64)> {
        let hash = py.detach(|| self.inner.header_hash()).map_err(|e| raise(py, e))?;
        let identities = self.inner.maps().iter().filter_map(|map| map.identity());
        let (size, modified) =
            identities.fold((0, 0), |(size, modified), identity| (size + identity.size, modified + identity.modified));
        Ok((size, modified, hash))
    }

    /// Path, device, inode and bytes of each file, in the order of the parts.
    fn files(&self) -> Vec<(&OsStr, u64, u64, usize)> {
        let file = |map: &Arc<Mapping>| map.identity().map_or((0, 0), |identity| identity.file);
        let files = self.inner.maps().iter().map(|map| (map.path().as_os_str(), file(map), map.as_slice().len()));
        files.map(|(path, (device, inode), len)| (path, device, inode, len)).collect()
    }

    /// Bytes of all files. Positions below count through the files one after another.
    fn size(&self) -> usize {
        self.inner.size()
    }

    /// What a user should know about how the file was opened.
    fn note(&self) -> Option<&str> {
        self.inner.maps().iter().find_map(|map| map.note())
    }

    /// Whether the kernel tells this process what of the files is in memory; if not, `resident` says that all is.
    fn residency_known(&self) -> bool {
        self.inner.maps().iter().all(|map| map.residency_known())
    }

    /// Bytes of the positions `start..end` that are in memory now.
    fn resident(&self, py: Python<'_>, start: usize, end: usize) -> usize {
        py.detach(|| self.inner.pieces(start..end).map(|(map, range)| map.resident(range)).sum())
    }

    /// Reads the positions `start..end` into memory.
    fn read_in(&self, py: Python<'_>, start: usize, end: usize) -> PyResult<()> {
        run(py, |interrupt| self.inner.pieces(start..end).try_for_each(|(map, range)| map.read_in(range, interrupt)))
    }

    /// Keeps the files in memory until they are closed.
    fn lock(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.maps().iter().try_for_each(|map| map.lock())).map_err(|e| raise(py, e))
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
        self.checked(py, || Ok(tensor(&self.inner, &self.views, name)))
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

fn tensor(checkpoint: &checkpoint::Checkpoint, views: &Arc<AtomicUsize>, name: &str) -> Option<Tensor> {
    Some(Tensor { view: checkpoint.tensor(name)?.clone(), views: Arc::clone(views) })
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
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
struct Array {
    array: checkpoint::Array,
    elements: Mutex<Elements>, // from where the last one was asked for: strings are found by walking over those before
}

#[pymethods]
impl Array {
    fn __len__(&self) -> usize {
        self.array.len
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Bound<'py, PyAny>> {
        let value = py.detach(|| {
            let mut elements = self.elements.lock().unwrap_or_else(PoisonError::into_inner);
            if elements.position() > index {
                *elements = self.array.iter();
            }
            let n = index - elements.position();
            elements.nth(n)
        });
        self.array.bytes.mapping().check().map_err(|e| raise(py, e))?;
        match value {
            Some(value) => to_python(py, &value),
            None => Err(PyIndexError::new_err("array index out of range")),
        }
    }
}

/// A tensor where it lies in the file; a read-only buffer.
#[pyclass(frozen)]
struct Tensor {
    view: TensorView,
    views: Arc<AtomicUsize>,
}

#[pymethods]
impl Tensor {
    /// The type's name in GGUF.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.view.dtype().name()
    }

    /// Rows first, as in numpy.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.view.shape().iter().rev())
    }

    /// Bytes in the file.
    #[getter]
    fn nbytes(&self) -> usize {
        self.view.bytes().len()
    }

    /// Where in the file it starts.
    #[getter]
    fn offset(&self) -> usize {
        self.view.bytes().offset()
    }

    /// The weights as floats.
    fn dequantize(&self, py: Python<'_>) -> PyResult<Floats> {
        if !self.view.dtype().is_supported() {
            return Err(PyValueError::new_err(format!("cannot dequantize {}", self.view.dtype())));
        }
        let shape: Vec<usize> = self.view.shape().iter().rev().copied().collect();
        let read = || {
            let mut data = vec![0.0; shape.iter().product()];
            quant::dequantize(self.view.dtype(), self.view.bytes(), &mut data);
            Ok(data)
        };
        let data = py.detach(|| self.view.bytes().mapping().checked(read)).map_err(|e| raise(py, e))?;
        Ok(Floats { data, shape })
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut shape: Vec<usize> = this.view.shape().iter().rev().copied().collect();
        let (format, size) = match this.view.dtype() {
            DType::F32 => (c"f", 4),
            DType::F16 => (c"e", 2),
            DType::BF16 => (c"H", 2), // the bits: the buffer protocol has no bfloat16
            DType::F64 => (c"d", 8),
            DType::I8 => (c"b", 1),
            DType::I16 => (c"h", 2),
            DType::I32 => (c"i", 4),
            DType::I64 => (c"q", 8),
            _ => {
                *shape.last_mut().expect("a tensor has a dimension") = this.view.row_bytes();
                (c"B", 1)
            }
        };
        this.views.fetch_add(1, Ordering::AcqRel);
        let bytes = &this.view.bytes();
        // SAFETY: the bytes live as long as the tensor, which the buffer holds.
        let filled = unsafe { fill_buffer(slf.clone().into_any(), view, flags, bytes, format, size, &shape) };
        if filled.is_err() {
            this.views.fetch_sub(1, Ordering::AcqRel);
        }
        filled
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: filled by `fill_buffer`.
        unsafe { release_buffer(view) };
        self.views.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Floats with a shape; a read-only buffer.
#[pyclass(frozen)]
struct Floats {
    data: Vec<f32>,
    shape: Vec<usize>,
}

#[pymethods]
impl Floats {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let bytes = bytemuck::cast_slice(&this.data);
        // SAFETY: the data live as long as the object, which the buffer holds, and never move.
        unsafe { fill_buffer(slf.clone().into_any(), view, flags, bytes, c"f", 4, &this.shape) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: filled by `fill_buffer`.
        unsafe { release_buffer(view) };
    }
}

/// Fills in a read-only, contiguous buffer of `bytes`, which `owner` keeps alive.
///
/// # Safety
/// - `bytes` stay where they are for as long as `owner` lives.
unsafe fn fill_buffer(
    owner: Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    bytes: &[u8],
    format: &'static CStr,
    size: usize,
    shape: &[usize],
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no buffer to fill"));
    }
    if flags & ffi::PyBUF_WRITABLE != 0 {
        return Err(PyBufferError::new_err("the weights are read-only: copy the array to change it"));
    }
    // Shape, then strides, of each dimension; freed by `release_buffer`.
    let mut numbers: Vec<ffi::Py_ssize_t> = shape.iter().map(|&n| n as ffi::Py_ssize_t).collect();
    numbers.extend((0..shape.len()).map(|i| (shape[i + 1..].iter().product::<usize>() * size) as ffi::Py_ssize_t));
    let numbers = Box::into_raw(Box::new(numbers));
    // SAFETY: `view` is the interpreter's to be filled; `numbers` lives until the buffer is released.
    unsafe {
        let dims = (*numbers).as_mut_ptr();
        (*view).obj = owner.into_ptr();
        (*view).buf = bytes.as_ptr().cast_mut().cast::<c_void>();
        (*view).len = bytes.len() as ffi::Py_ssize_t;
        (*view).itemsize = size as ffi::Py_ssize_t;
        (*view).readonly = 1;
        (*view).format = if flags & ffi::PyBUF_FORMAT != 0 { format.as_ptr().cast_mut() } else { std::ptr::null_mut() };
        (*view).ndim = shape.len() as c_int;
        (*view).shape = if flags & ffi::PyBUF_ND != 0 { dims } else { std::ptr::null_mut() };
        let strides = flags & ffi::PyBUF_STRIDES == ffi::PyBUF_STRIDES;
        (*view).strides = if strides { dims.add(shape.len()) } else { std::ptr::null_mut() };
        (*view).suboffsets = std::ptr::null_mut();
        (*view).internal = numbers.cast();
    }
    Ok(())
}

/// Frees what `fill_buffer` allocated.
///
/// # Safety
/// - `view` was filled by `fill_buffer` and is released once.
unsafe fn release_buffer(view: *mut ffi::Py_buffer) {
    // SAFETY: `internal` is the box of `fill_buffer`.
    drop(unsafe { Box::from_raw((*view).internal.cast::<Vec<ffi::Py_ssize_t>>()) });
}

/// A tokenizer.
#[pyclass(frozen)]
struct Tokenizer {
    inner: Arc<tokenizer::Tokenizer>,
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let open = || {
            let checkpoint = formats::open(&path)?;
            checkpoint.checked(|| tokenizer::Tokenizer::from_metadata(&checkpoint.metadata))
        };
        Ok(Self { inner: Arc::new(py.detach(open).map_err(|e| raise(py, e))?) })
    }

    fn encode(&self, py: Python<'_>, text: &str, add_special: bool, parse_special: bool) -> PyResult<Vec<u32>> {
        py.detach(|| self.inner.encode(text, add_special, parse_special)).map_err(|e| raise(py, e))
    }

    fn decode(&self, py: Python<'_>, ids: Vec<u32>, skip_special: bool) -> PyResult<String> {
        py.detach(|| self.inner.decode(&ids, skip_special)).map_err(|e| raise(py, e))
    }

    fn token_bytes<'py>(&self, py: Python<'py>, id: u32) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.inner.token_bytes(id).map_err(|e| raise(py, e))?))
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

    fn is_special(&self, id: u32) -> bool {
        self.inner.is_special(id)
    }

    fn is_end_of_generation(&self, id: u32) -> bool {
        self.inner.is_end_of_generation(id)
    }
}

/// A model, immutable and shared.
#[pyclass(frozen)]
struct Model {
    inner: Arc<model::Model>,
    views: Arc<AtomicUsize>,
}

#[pymethods]
impl Model {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, load: &str, prefault: bool, lock: bool) -> PyResult<Self> {
        let load = match load {
            "mmap" => Load::Mmap,
            "read" => Load::Read,
            _ => return Err(PyValueError::new_err(format!("load must be \"mmap\" or \"read\", got {load:?}"))),
        };
        let options = LoadOptions { load, prefault, lock };
        let inner = run(py, |interrupt| model::Model::open_with(&path, options, interrupt))?;
        Ok(Self { inner: Arc::new(inner), views: Arc::default() })
    }

    /// The hyper-parameters by name; of those that differ by layer, the largest.
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let c = self.inner.config();
        let dict = PyDict::new(py);
        dict.set_item("architecture", &c.architecture)?;
        dict.set_item("dim", c.dim)?;
        dict.set_item("hidden_dim", c.hidden_dim())?;
        dict.set_item("n_layers", c.n_layers())?;
        dict.set_item("n_heads", c.n_heads())?;
        dict.set_item("n_kv_heads", c.n_kv_heads())?;
        dict.set_item("head_dim", c.head_dim())?;
        dict.set_item("vocab_size", c.vocab_size)?;
        dict.set_item("context_length", c.context_length)?;
        dict.set_item("norm_eps", c.norm_eps)?;
        dict.set_item("rope_theta", c.ropes[0].theta)?;
        Ok(dict)
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint { inner: Arc::clone(self.inner.checkpoint()), views: Arc::clone(&self.views) }
    }

    fn tokenizer(&self, py: Python<'_>) -> PyResult<Tokenizer> {
        let inner = Arc::clone(self.inner.tokenizer().map_err(|e| raise(py, e))?);
        Ok(Tokenizer { inner })
    }

    fn session(&self, py: Python<'_>, context_length: usize, threads: usize, kv_type: &str) -> PyResult<Session> {
        let options = SessionOptions { context_length, threads, kv_type: to_kv_type(kv_type)? };
        let session = session::Session::new(&self.inner, options).map_err(|e| raise(py, e))?;
        Ok(Session { inner: Mutex::new(session), process: std::process::id() })
    }

    /// The session that was saved to `path`; with `prefix`, as much of it as fits, to start another with.
    fn load_session(
        &self,
        py: Python<'_>,
        path: PathBuf,
        context_length: usize,
        threads: usize,
        kv_type: &str,
        prefix: bool,
    ) -> PyResult<Session> {
        let options = SessionOptions { context_length, threads, kv_type: to_kv_type(kv_type)? };
        let load = if prefix { session::Session::load_prefix } else { session::Session::load };
        let session = py.detach(|| load(&self.inner, &path, options)).map_err(|e| raise(py, e))?;
        Ok(Session { inner: Mutex::new(session), process: std::process::id() })
    }
}

fn to_kv_type(name: &str) -> PyResult<DType> {
    KV_TYPES.into_iter().find(|t| t.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names = KV_TYPES.map(|t| format!("\"{}\"", t.name().to_ascii_lowercase())).join(" or ");
        PyValueError::new_err(format!("kv_type is \"{name}\", it must be {names}"))
    })
}

/// A key-value cache with its position.
#[pyclass(frozen)]
struct Session {
    inner: Mutex<session::Session>,
    process: u32, // that made it
}

impl Session {
    /// Runs `work` on the session, detached: another thread may hold the lock and wait for the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut session::Session, &Interrupt) -> Result<T> + Send,
    ) -> PyResult<T> {
        run(py, |interrupt| {
            let mut session = match self.inner.try_lock() {
                // A child has the locks of the process that forked it, but not the threads that would unlock them.
                Err(TryLockError::WouldBlock) if self.process != std::process::id() => {
                    let what = "the session was in use when this process was forked: start another one";
                    return Err(Error::Argument(what.into()));
                }
                Err(TryLockError::WouldBlock) => self.inner.lock().unwrap_or_else(PoisonError::into_inner),
                Err(TryLockError::Poisoned(e)) => e.into_inner(),
                Ok(session) => session,
            };
            work(&mut session, interrupt)
        })
    }
}

#[pymethods]
impl Session {
    #[getter]
    fn position(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |session, _| Ok(session.position()))
    }

    #[getter]
    fn context_length(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |session, _| Ok(session.context_length()))
    }

    #[getter]
    fn tokens(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.with(py, |session, _| Ok(session.tokens().to_vec()))
    }

    fn truncate(&self, py: Python<'_>, n: usize) -> PyResult<()> {
        self.with(py, |session, _| session.truncate(n))
    }

    fn shift(&self, py: Python<'_>, n_keep: usize, n_discard: usize) -> PyResult<()> {
        self.with(py, |session, _| session.shift(n_keep, n_discard))
    }

    /// Saves the session, or its first `prefix` tokens.
    fn save(&self, py: Python<'_>, path: PathBuf, prefix: Option<usize>) -> PyResult<()> {
        self.with(py, |session, _| match prefix {
            Some(n) => session.save_prefix(&path, n),
            None => session.save(&path),
        })
    }

    /// Logits of the last token.
    fn forward(&self, py: Python<'_>, tokens: Vec<u32>) -> PyResult<Floats> {
        let data = self.with(py, |session, interrupt| Ok(session.forward(&tokens, interrupt)?.to_vec()))?;
        Ok(Floats { shape: vec![data.len()], data })
    }

    /// Logits of every token.
    fn forward_all(&self, py: Python<'_>, tokens: Vec<u32>) -> PyResult<Floats> {
        let data = self.with(py, |session, interrupt| session.forward_all(&tokens, interrupt))?;
        Ok(Floats { shape: vec![tokens.len(), data.len() / tokens.len()], data })
    }

    /// See `measure::negative_log_likelihood`.
    fn negative_log_likelihood(&self, py: Python<'_>, tokens: Vec<u32>, first: usize) -> PyResult<Vec<f32>> {
        self.with(py, |session, interrupt| measure::negative_log_likelihood(session, &tokens, first, interrupt))
    }

    /// Seconds of each round of a benchmark, see `measure::bench`.
    fn bench(&self, py: Python<'_>, n: usize, generate: bool, rounds: usize) -> PyResult<Vec<f64>> {
        let times = self.with(py, |session, interrupt| measure::bench(session, n, generate, rounds, interrupt))?;
        Ok(times.iter().map(std::time::Duration::as_secs_f64).collect())
    }
}

/// An answer in the making.
#[pyclass(frozen)]
struct Generation {
    inner: Mutex<Answer>,
}

#[pymethods]
impl Generation {
    #[new]
    #[pyo3(signature = (
        tokenizer, prompt, *, max_tokens, stop, ignore_eos, temperature, top_k, top_p, min_p, repeat_penalty,
        repeat_last_n, presence_penalty, frequency_penalty, seed, n_keep
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        tokenizer: &Tokenizer,
        prompt: Vec<u32>,
        max_tokens: Option<usize>,
        stop: Vec<String>,
        ignore_eos: bool,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        repeat_penalty: f32,
        repeat_last_n: usize,
        presence_penalty: f32,
        frequency_penalty: f32,
        seed: Option<u64>,
        n_keep: Option<usize>, // None ends at the end of the context, Some shifts
    ) -> PyResult<Self> {
        let sampling = SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            presence_penalty,
            frequency_penalty,
            logit_bias: Vec::new(),
            seed,
        };
        let on_overflow = n_keep.map_or(Overflow::Stop, |n_keep| Overflow::Shift { n_keep });
        let options = Options { max_tokens, stop, sampling, ignore_eos, on_overflow };
        let made = tokenizer.inner.end_tokens().and_then(|end| {
            let decoder = StreamDecoder::new(Arc::clone(&tokenizer.inner), true);
            generate::Generation::new(prompt, end, decoder, options)
        });
        Ok(Self { inner: Mutex::new(made.map_err(|e| raise(py, e))?) })
    }

    /// The next piece of text, or None at the end.
    fn next(&self, py: Python<'_>, session: &Session) -> PyResult<Option<String>> {
        session.with(py, |session, interrupt| self.lock(|generation| generation.next(session, interrupt)))
    }

    #[getter]
    fn token_ids(&self, py: Python<'_>) -> Vec<u32> {
        py.detach(|| self.lock(|generation| generation.generated().to_vec()))
    }

    #[getter]
    fn finish_reason(&self, py: Python<'_>) -> Option<&'static str> {
        py.detach(|| self.lock(|generation| generation.finish_reason().map(|r| r.as_str())))
    }

    #[getter]
    fn seed(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.lock(|generation| generation.seed()))
    }

    /// Prompt tokens, seconds for them, generated tokens, seconds for them, prompt tokens that were there already.
    #[getter]
    fn timings(&self, py: Python<'_>) -> (usize, f64, usize, f64, usize) {
        let t = py.detach(|| self.lock(|generation| generation.timings()));
        (t.prompt_tokens, t.prompt.as_secs_f64(), t.generated_tokens, t.generation.as_secs_f64(), t.cached_tokens)
    }
}

type Answer = generate::Generation<StreamDecoder<Arc<tokenizer::Tokenizer>>>;

impl Generation {
    /// To be called detached: who holds the lock may be waiting for the interpreter.
    fn lock<T>(&self, f: impl FnOnce(&mut Answer) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
