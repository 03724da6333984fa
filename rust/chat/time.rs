//! The time, as templates print it.

/// As `time.strftime(format, time.localtime(now))`; nothing if the time has no such form.
pub(super) fn strftime(format: &str, now: i64) -> String {
    let Ok(format) = std::ffi::CString::new(format) else { return String::new() };
    let mut out = vec![0u8; 256 + 16 * format.as_bytes().len().min(1 << 12)];
    // SAFETY: a `tm` of zeros is one.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both are valid for the call, and the second is written only.
    let known = unsafe { libc::localtime_r(&now, &mut tm) };
    if known.is_null() {
        return String::new();
    }
    // SAFETY: it writes at most `out.len()` bytes to `out`; the format ends with a zero, and `tm` was filled above.
    let n = unsafe { libc::strftime(out.as_mut_ptr().cast(), out.len(), format.as_ptr(), &tm) };
    out.truncate(n);
    String::from_utf8(out).unwrap_or_default()
}
