//! The right-hand side of a matmul: a batch of rows, as floats and as int8 blocks.

use std::ops::Range;

use super::{Context, Kernels};
use crate::tensor::TensorView;
use crate::threads::Disjoint;

/// Weights of a step: what one call of an unpacker covers. Rows of int8 are padded to a multiple of it.
pub const STEP: usize = 128;

/// A row of activations, quantised: `x[k] = d[k / 32] * qs[k]`, rounded to nearest even, `d = max |x| / 127`.
///
/// The order of `qs` within a step of 128 is the kernel set's own. Past the end everything is zero.
pub struct QuantizedRow<'a> {
    /// The integers, -127 to 127.
    pub qs: &'a mut [i8],
    /// Scale per 32.
    pub d: &'a mut [f32],
    /// -128 times the sum of `qs`, per 16: the correction for weights raised by 128.
    pub bias16: &'a mut [i32],
    /// The same per 32.
    pub bias32: &'a mut [i32],
    /// `d` times the sum of `qs`, per 16: what a weight's offset is multiplied with.
    pub sum16: &'a mut [f32],
    /// The same per 32.
    pub sum32: &'a mut [f32],
}

/// A batch of rows of `n` floats and their int8 form, `tokens` of them.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    n: usize,
    int8: bool,
    x: Buffer<f32>,
    qs: Buffer<i8>,
    d: Buffer<f32>,
    bias16: Buffer<i32>,
    bias32: Buffer<i32>,
    sum16: Buffer<f32>,
    sum32: Buffer<f32>,
}

impl Activations {
    /// Makes room for `tokens` rows of `n`. What they hold is then unspecified, but for the padding, which is zero.
    pub fn reset(&mut self, tokens: usize, n: usize, consumers: &[&TensorView]) {
        self.int8 = consumers.iter().any(|w| w.dtype().is_quantized());
        (self.tokens, self.n) = (tokens, n);
        let groups = self.group_stride();
        self.x.grow(tokens * n);
        self.qs.grow(tokens * self.stride());
        self.d.grow(tokens * groups);
        self.bias16.grow(tokens * 2 * groups);
        self.bias32.grow(tokens * groups);
        self.sum16.grow(tokens * 2 * groups);
        self.sum32.grow(tokens * groups);
    }

    pub fn fill(&mut self, cx: &Context, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (n, int8) = (self.n, self.int8);
        let tokens = self.tokens;
        let rows = self.rows();
        // SAFETY: each token has its own row.
        cx.each(tokens, &|t| unsafe {
            f(t, rows.x(t, 0..n));
            if int8 {
                rows.quantize(cx.kernels, t);
            }
        });
    }

    pub fn finish(&mut self, cx: &Context) {
        if self.int8 {
            let tokens = self.tokens;
            let rows = self.rows();
            // SAFETY: each token has its own row.
            cx.each(tokens, &|t| unsafe { rows.quantize(cx.kernels, t) });
        }
    }

    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Length of a row.
    pub fn n(&self) -> usize {
        self.n
    }

    /// From one row of `qs` to the next: an odd number of cache lines, so that rows do not share cache sets.
    pub fn stride(&self) -> usize {
        self.n.next_multiple_of(STEP) + 64
    }

    /// From one row of `d`, `bias32` or `sum32` to the next; twice that for `bias16` and `sum16`.
    pub fn group_stride(&self) -> usize {
        self.n.next_multiple_of(STEP) / 32 + 16
    }

    /// The floats of row `t`.
    pub fn x(&self, t: usize) -> &[f32] {
        &self.x.as_slice()[t * self.n..][..self.n]
    }

    /// The floats of all rows, one after another.
    pub fn x_mut(&mut self) -> &mut [f32] {
        let n = self.tokens * self.n;
        &mut self.x.as_mut_slice()[..n]
    }

    /// The integers of row `t`, in the kernel set's order, with the padding.
    pub fn qs(&self, t: usize) -> &[i8] {
        &self.qs.as_slice()[t * self.stride()..][..self.n.next_multiple_of(STEP)]
    }

    /// The scales of row `t`, per 32.
    pub fn d(&self, t: usize) -> &[f32] {
        self.groups(self.d.as_slice(), t, 1)
    }

    /// See [`QuantizedRow::bias16`].
    pub fn bias16(&self, t: usize) -> &[i32] {
        self.groups(self.bias16.as_slice(), t, 2)
    }

    /// See [`QuantizedRow::bias32`].
    pub fn bias32(&self, t: usize) -> &[i32] {
        self.groups(self.bias32.as_slice(), t, 1)
    }

    /// See [`QuantizedRow::sum16`].
    pub fn sum16(&self, t: usize) -> &[f32] {
        self.groups(self.sum16.as_slice(), t, 2)
    }

    /// See [`QuantizedRow::sum32`].
    pub fn sum32(&self, t: usize) -> &[f32] {
        self.groups(self.sum32.as_slice(), t, 1)
    }

    fn groups<'a, T>(&self, of: &'a [T], t: usize, per_group: usize) -> &'a [T] {
        &of[t * per_group * self.group_stride()..][..per_group * self.n.next_multiple_of(STEP) / 32]
    }

    /// The rows, to be written by the workers of a region.
    pub fn rows(&mut self) -> RowsMut<'_> {
        let (n, stride, groups) = (self.n, self.stride(), self.group_stride());
        RowsMut {
            tokens: self.tokens,
            n,
            stride,
            groups,
            x: Disjoint::new(self.x.as_mut_slice()),
            qs: Disjoint::new(self.qs.as_mut_slice()),
            d: Disjoint::new(self.d.as_mut_slice()),
            bias16: Disjoint::new(self.bias16.as_mut_slice()),
            bias32: Disjoint::new(self.bias32.as_mut_slice()),
            sum16: Disjoint::new(self.sum16.as_mut_slice()),
            sum32: Disjoint::new(self.sum32.as_mut_slice()),
        }
    }
}

/// [`Activations`] while a region writes them.
pub struct RowsMut<'a> {
    tokens: usize,
    n: usize,
    stride: usize,
    groups: usize,
    x: Disjoint<'a, f32>,
    qs: Disjoint<'a, i8>,
    d: Disjoint<'a, f32>,
    bias16: Disjoint<'a, i32>,
    bias32: Disjoint<'a, i32>,
    sum16: Disjoint<'a, f32>,
    sum32: Disjoint<'a, f32>,
}

impl RowsMut<'_> {
    /// Part `range` of the floats of row `t`.
    ///
    /// # Safety
    /// - No other worker may have the same part at the same time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn x(&self, t: usize, range: Range<usize>) -> &mut [f32] {
        assert!(t < self.tokens && range.end <= self.n);
        // SAFETY: rows are disjoint, and the caller has this part to itself.
        unsafe { self.x.slice(t * self.n + range.start..t * self.n + range.end) }
    }

    /// Quantises row `t` from its floats.
    ///
    /// # Safety
    /// - No other worker may use the same row at the same time.
    pub unsafe fn quantize(&self, kernels: &dyn Kernels, t: usize) {
        assert!(t < self.tokens);
        let padded = self.n.next_multiple_of(STEP);
        let groups = padded / 32;
        let at = |per_group: usize| {
            let start = t * per_group * self.groups;
            start..start + per_group * groups
        };
        // SAFETY: the parts of different rows are disjoint, and the caller has this row to itself.
        unsafe {
            let x = self.x.slice(t * self.n..(t + 1) * self.n);
            let row = QuantizedRow {
                qs: self.qs.slice(t * self.stride..t * self.stride + padded),
                d: self.d.slice(at(1)),
                bias16: self.bias16.slice(at(2)),
                bias32: self.bias32.slice(at(1)),
                sum16: self.sum16.slice(at(2)),
                sum32: self.sum32.slice(at(1)),
            };
            kernels.quantize(x, row);
        }
    }
}

/// A buffer that starts on a cache line, grows and never shrinks, and is zero at first.
#[derive(Default)]
pub struct Buffer<T> {
    lines: Vec<Line>,
    of: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: bytemuck::Pod> Buffer<T> {
    /// Room for at least `len` values.
    pub fn grow(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            // A new one rather than `resize`: the old values are not wanted, and zeroed pages cost nothing.
            self.lines = bytemuck::allocation::zeroed_vec(lines);
        }
    }

    /// The values.
    pub fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The values.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
