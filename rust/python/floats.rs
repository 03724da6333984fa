//! `Floats` and `Logits`: numbers with a shape, handed over as a buffer, to be read or changed; and how buffers are made.

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};

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
        unsafe { fill_buffer(slf.clone().into_any(), view, flags, bytes, c"f", 4, &this.shape, true) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: filled by `fill_buffer`.
        unsafe { release_buffer(view) };
    }
}

/// Logits for a function of the caller to change: a copy of its own, so that whoever keeps the array changes nothing with it.
#[pyclass(frozen)]
pub struct Logits {
    data: Box<[AtomicU32]>, // bits of f32; atomic, since another thread may have the array too
}

impl Logits {
    /// A copy of these.
    pub fn new(logits: &[f32]) -> Self {
        Self { data: logits.iter().map(|x| AtomicU32::new(x.to_bits())).collect() }
    }

    /// What they are now.
    pub fn copy_to(&self, logits: &mut [f32]) {
        for (x, bits) in logits.iter_mut().zip(&self.data) {
            *x = f32::from_bits(bits.load(Ordering::Relaxed));
        }
    }
}

#[pymethods]
impl Logits {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let data = &slf.get().data;
        // SAFETY: an atomic has the layout of its number, which has no invalid bytes; they are only passed on by address.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(&**data)) };
        // SAFETY: the data live as long as the object, which the buffer holds, and never move; atomics may be written to
        // through a shared reference.
        unsafe { fill_buffer(slf.clone().into_any(), view, flags, bytes, c"f", 4, &[data.len()], false) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: filled by `fill_buffer`.
        unsafe { release_buffer(view) };
    }
}

/// Fills in a contiguous buffer of `bytes`, which `owner` keeps alive.
///
/// # Safety
/// - `bytes` stay where they are for as long as `owner` lives.
/// - If it is not read-only, they may be written to through a shared reference.
#[allow(clippy::too_many_arguments)] // as many as a buffer has fields
pub unsafe fn fill_buffer(
    owner: Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    bytes: &[u8],
    format: &'static CStr,
    size: usize,
    shape: &[usize],
    is_readonly: bool,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no buffer to fill"));
    }
    if is_readonly && flags & ffi::PyBUF_WRITABLE != 0 {
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
        (*view).readonly = c_int::from(is_readonly);
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
