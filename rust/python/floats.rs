//! `Floats`: numbers with a shape, handed over as a buffer; and how buffers are made.

use std::ffi::{CStr, c_int, c_void};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Floats with a shape; a read-only buffer.
#[pyclass(frozen)]
pub struct Floats {
    data: Vec<f32>,
    shape: Vec<usize>,
}

impl Floats {
    /// These numbers in this shape.
    pub fn new(data: Vec<f32>, shape: Vec<usize>) -> Self {
        Self { data, shape }
    }
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
pub unsafe fn fill_buffer(
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
pub unsafe fn release_buffer(view: *mut ffi::Py_buffer) {
    // SAFETY: `internal` is the box of `fill_buffer`.
    drop(unsafe { Box::from_raw((*view).internal.cast::<Vec<ffi::Py_ssize_t>>()) });
}
