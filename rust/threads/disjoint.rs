//! A mutable slice for several workers at once.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice of which each worker of a region writes its own, disjoint parts.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`, which may be sent if T may; `slice`'s contract keeps the parts disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for the length of a region.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The part `range`.
    ///
    /// # Safety
    /// - No two parts that are alive at the same time may overlap.
    ///
    /// # Panics
    /// If the range does not lie in the slice.
    #[allow(clippy::mut_from_ref)] // that is what it is for
    pub unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A pointer to element `i`, for kernels that write with a stride.
    ///
    /// # Panics
    /// If `i` is past the end.
    #[inline(always)]
    pub fn as_ptr(&self, i: usize) -> *mut T {
        assert!(i <= self.len);
        // SAFETY: in bounds, or one past the end.
        unsafe { self.start.add(i) }
    }
}
