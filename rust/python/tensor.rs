//! `Tensor`: a tensor where it lies in the file.

use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::floats::{fill_buffer, release_buffer};
use super::{Floats, dlpack, run};
use crate::error::Error;
use crate::quant::{self, DType};
use crate::tensor::TensorView;

/// A tensor where it lies in the file; a read-only buffer.
#[pyclass(frozen)]
pub struct Tensor {
    view: TensorView,
    views: Arc<AtomicUsize>,
}

impl Tensor {
    /// This tensor, of a file whose buffers `views` counts.
    pub fn of(view: TensorView, views: &Arc<AtomicUsize>) -> Self {
        Self { view, views: Arc::clone(views) }
    }
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
            let mut data = Vec::new();
            let n = shape.iter().product();
            let bytes = n as u128 * 4;
            data.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { bytes, what: "float32 weights" })?;
            data.resize(n, 0.0);
            quant::dequantize(self.view.dtype(), self.view.bytes(), &mut data);
            Ok(data)
        };
        let data = run(py, |_| self.view.bytes().mapping().checked(read))?;
        Ok(Floats::new(data, shape))
    }

    /// A view of it for other frameworks; BF16 is bfloat16.
    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__(
        slf: &Bound<'_, Self>,
        stream: Option<&Bound<'_, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Py<PyAny>> {
        let _ = stream; // the processor has none
        dlpack::check(max_version, dl_device, copy)?;
        dlpack::capsule(slf.as_any(), dlpack::data_type(slf.get().view.dtype()))
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::CPU
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
        let filled = unsafe { fill_buffer(slf.clone().into_any(), view, flags, bytes, format, size, &shape, true) };
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
