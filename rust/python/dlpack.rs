//! DLPack: a tensor as other frameworks take it, where it lies.
//!
//! The layout is that of DLPack 1.0 (dlpack.h, `DLManagedTensorVersioned`), the first that can say that memory is
//! read-only. A map of weights is: whoever asks for an older capsule gets an error and not a tensor that ends the process
//! when it is written to.

use std::ffi::{CStr, c_void};

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::quant::DType;

/// Memory of the processor, its only device.
pub const CPU: (i32, i32) = (1, 0);

const NAME: &CStr = c"dltensor_versioned";
const READ_ONLY: u64 = 1;

/// What numbers there are: one of DLPack's kinds, and their bits.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Tensor,
}

/// What a capsule keeps alive.
struct Context {
    numbers: Vec<i64>, // shape, then strides
    view: ffi::Py_buffer,
}

/// The type as DLPack has it. Quantised blocks are bytes.
pub fn data_type(dtype: DType) -> DataType {
    let (code, bits) = match dtype {
        DType::I8 => (0, 8),
        DType::I16 => (0, 16),
        DType::I32 => (0, 32),
        DType::I64 => (0, 64),
        DType::F16 => (2, 16),
        DType::F32 => (2, 32),
        DType::F64 => (2, 64),
        DType::BF16 => (4, 16),
        _ => (1, 8),
    };
    DataType { code, bits, lanes: 1 }
}

/// A capsule of the buffer of `owner`, which lives for as long as somebody has it.
pub fn capsule(owner: &Bound<'_, PyAny>, dtype: DataType) -> PyResult<Py<PyAny>> {
    let py = owner.py();
    let mut context = Box::new(Context { numbers: Vec::new(), view: ffi::Py_buffer::new() });
    // SAFETY: the buffer is the interpreter's to fill; it is released by `delete`, or below.
    if unsafe { ffi::PyObject_GetBuffer(owner.as_ptr(), &raw mut context.view, ffi::PyBUF_FULL_RO) } != 0 {
        return Err(PyErr::fetch(py));
    }
    let view = &context.view;
    let ndim = view.ndim;
    // SAFETY: a buffer that was asked for in full has both, of `ndim` numbers.
    let (shape, strides) = unsafe {
        let n = ndim as usize;
        (std::slice::from_raw_parts(view.shape, n), std::slice::from_raw_parts(view.strides, n))
    };
    let elements = strides.iter().map(|&s| s as i64 / view.itemsize as i64);
    let numbers: Vec<i64> = shape.iter().map(|&n| n as i64).chain(elements).collect();
    context.numbers = numbers;
    let (data, dims) = (context.view.buf, context.numbers.as_mut_ptr());
    let context = Box::into_raw(context);
    let managed = Box::into_raw(Box::new(Managed {
        major: 1,
        minor: 0,
        context: context.cast(),
        deleter: Some(delete),
        flags: READ_ONLY,
        tensor: Tensor {
            data,
            device_type: CPU.0,
            device_id: CPU.1,
            ndim,
            dtype,
            shape: dims,
            // SAFETY: after the shape there are as many strides.
            strides: unsafe { dims.add(ndim as usize) },
            byte_offset: 0,
        },
    }));
    // SAFETY: the name is static, and `forget` knows what the capsule holds.
    let made = unsafe { ffi::PyCapsule_New(managed.cast(), NAME.as_ptr(), Some(forget)) };
    if made.is_null() {
        // SAFETY: nobody else has it.
        unsafe { delete(managed) };
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a new reference, of a capsule.
    Ok(unsafe { Bound::from_owned_ptr(py, made) }.unbind())
}

/// Frees what nobody took out of a capsule. Who takes it renames the capsule.
///
/// # Safety
/// - `capsule` was made by [`capsule`], and the interpreter is ending it.
unsafe extern "C" fn forget(capsule: *mut ffi::PyObject) {
    // SAFETY: as said; of another name it is somebody else's.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, NAME.as_ptr()) != 0 {
            delete(ffi::PyCapsule_GetPointer(capsule, NAME.as_ptr()).cast());
        }
    }
}

/// Gives the buffer back. Frameworks call it from any thread, with or without the interpreter.
///
/// # Safety
/// - `managed` was made by [`capsule`], and nobody uses it any more.
unsafe extern "C" fn delete(managed: *mut Managed) {
    if managed.is_null() {
        return;
    }
    // SAFETY: both are boxes of `capsule`, freed once.
    let mut context = unsafe {
        let managed = Box::from_raw(managed);
        Box::from_raw(managed.context.cast::<Context>())
    };
    // After the end of the interpreter there is nothing to give it back to.
    let released = Python::try_attach(|_| {
        // SAFETY: filled by `PyObject_GetBuffer`; the interpreter is attached.
        unsafe { ffi::PyBuffer_Release(&raw mut context.view) };
    });
    if released.is_none() {
        std::mem::forget(context); // its owner is never freed
    }
}

/// What `__dlpack__` refuses: what a read-only view without a copy cannot be.
pub fn check(max_version: Option<(u32, u32)>, dl_device: Option<(i32, i32)>, copy: Option<bool>) -> PyResult<()> {
    let refuse = |what: &str| Err(PyBufferError::new_err(format!("the tensor {what}")));
    if max_version.is_none_or(|(major, _)| major < 1) {
        return refuse(
            "is read-only, which DLPack can say since version 1.0: ask with max_version=(1, 0), as numpy 2.1 does, or \
             copy numpy()",
        );
    }
    if dl_device.is_some_and(|device| device != CPU) {
        return refuse("is in the memory of the processor: move it after it was taken");
    }
    if copy == Some(true) {
        return refuse("is a view of the file: copy it after it was taken, or numpy()");
    }
    Ok(())
}
