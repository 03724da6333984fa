//! The right-hand side of a matmul: a batch of rows, as floats and, if one of the matrices wants that, as int8 blocks.
//!
//! Whoever fills them says for which matrices, and [`Matmul`](super::matmul::Matmul) takes no others: that rows are quantised
//! where they must be is a state of the operand, nothing to remember.

use super::{Context, Kernels};
use crate::tensor::TensorView;
use crate::threads::Disjoint;

/// Weights of a step: what one call of an unpacker covers. Rows of int8 are padded to a multiple of it.
pub(super) const STEP: usize = 128;

/// A row of activations, quantised: `x[k] = d[k / 32] * qs[k]`, rounded to nearest even, `d = max |x| / 127`.
///
/// The order of `qs` within a step of 128 is the kernel set's own. Past the end everything is zero.
pub struct QuantizedRow<'a> {
    /// The integers, -127 to 127.
    pub(super) qs: &'a mut [i8],
    /// Scale per 32.
    pub(super) d: &'a mut [f32],
    /// -128 times the sum of `qs`, per 16: the correction for weights raised by 128.
    pub(super) bias16: &'a mut [i32],
    /// The same per 32.
    pub(super) bias32: &'a mut [i32],
    /// `d` times the sum of `qs`, per 16: what a weight's offset is multiplied with.
    pub(super) sum16: &'a mut [f32],
    /// The same per 32.
    pub(super) sum32: &'a mut [f32],
}

/// A batch of rows of `n` floats and their int8 form, `tokens` of them.
#[derive(Default)]
pub struct Activations {
    tokens: usize,
    n: usize,
    wants_int8: bool,
    ready: Option<Ready>,
    x: Buffer<f32>,
    qs: Buffer<i8>,
    d: Buffer<f32>,
    bias16: Buffer<i32>,
    bias32: Buffer<i32>,
    sum16: Buffer<f32>,
    sum32: Buffer<f32>,
}

/// What the rows have been made ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// Float matrices.
    Floats,
    /// All matrices, by the set of this name: another one has another order of the integers.
    Int8(&'static str),
}

impl Activations {
    /// Makes room for `tokens` rows of `n`, the right-hand side for `consumers`. What they hold is then unspecified, and they
    /// are not ready.
    ///
    /// # Panics
    /// If the rows of one of `consumers` are not of length `n`, or if so much memory cannot be addressed.
    pub fn reset(&mut self, tokens: usize, n: usize, consumers: &[&TensorView]) {
        assert!(consumers.iter().all(|w| w.row_len() == n), "rows of {n} for a matrix with others");
        (self.tokens, self.n, self.ready) = (tokens, n, None);
        self.wants_int8 = consumers.iter().any(|w| w.dtype().is_quantized());
        let room = |width: usize| tokens.checked_mul(width).expect("activations that fit into memory");
        self.x.grow(room(n));
        if self.wants_int8 {
            let groups = self.group_stride();
            self.qs.grow(room(self.stride()));
            self.d.grow(room(groups));
            self.bias16.grow(room(2 * groups));
            self.bias32.grow(room(groups));
            self.sum16.grow(room(2 * groups));
            self.sum32.grow(room(groups));
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

    /// The floats of row `t`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn x(&self, t: usize) -> &[f32] {
        assert!(t < self.tokens, "row {t} of {}", self.tokens);
        &self.x.as_slice()[t * self.n..][..self.n]
    }

    /// The floats of all rows, one after another, to be written; [`Activations::finish`] then makes them ready.
    pub fn x_mut(&mut self) -> &mut [f32] {
        self.ready = None;
        let n = self.tokens * self.n;
        &mut self.x.as_mut_slice()[..n]
    }

    /// Calls `f(t, row)` for every row, shared out among the workers, and makes the rows ready.
    pub fn fill(&mut self, cx: &Context, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        self.write(cx, &|t, row| f(t, row));
    }

    /// Makes the rows, as they were written through [`Activations::x_mut`], ready for the matrices that they are for.
    pub fn finish(&mut self, cx: &Context) {
        if self.wants_int8 {
            self.write(cx, &|_, _| {});
        } else {
            self.ready = Some(Ready::Floats);
        }
    }

    /// Whether they are ready for a matrix of this type, and made so by this set.
    pub(super) fn is_ready_for(&self, w: &TensorView) -> bool {
        match self.ready {
            None => false,
            Some(Ready::Floats) => !w.dtype().is_quantized(),
            Some(Ready::Int8(_)) => true,
        }
    }

    /// Whether the products with them are those of this set.
    pub(super) fn are_of(&self, kernels: &dyn Kernels) -> bool {
        !matches!(self.ready, Some(Ready::Int8(set)) if set != kernels.name())
    }

    fn write(&mut self, cx: &Context, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (n, wants_int8) = (self.n, self.wants_int8);
        let (stride, group_stride, padded) = (self.stride(), self.group_stride(), n.next_multiple_of(STEP));
        let x = Disjoint::new(self.x.as_mut_slice());
        let qs = Disjoint::new(self.qs.as_mut_slice());
        let d = Disjoint::new(self.d.as_mut_slice());
        let (bias16, bias32) = (Disjoint::new(self.bias16.as_mut_slice()), Disjoint::new(self.bias32.as_mut_slice()));
        let (sum16, sum32) = (Disjoint::new(self.sum16.as_mut_slice()), Disjoint::new(self.sum32.as_mut_slice()));
        cx.each(self.tokens, &|t| {
            let at = |per_group: usize| {
                let start = t * per_group * group_stride;
                start..start + per_group * padded / 32
            };
            // SAFETY: the parts of different rows are disjoint, and `each` calls once for each.
            unsafe {
                let x = x.slice(t * n..(t + 1) * n);
                f(t, x);
                if wants_int8 {
                    let row = QuantizedRow {
                        qs: qs.slice(t * stride..t * stride + padded),
                        d: d.slice(at(1)),
                        bias16: bias16.slice(at(2)),
                        bias32: bias32.slice(at(1)),
                        sum16: sum16.slice(at(2)),
                        sum32: sum32.slice(at(1)),
                    };
                    cx.kernels.quantize(x, row);
                }
            }
        });
        self.ready = Some(if wants_int8 { Ready::Int8(cx.kernels.name()) } else { Ready::Floats });
    }

    /// From one row of `qs` to the next: an odd number of cache lines, so that rows do not share cache sets.
    #[inline(always)]
    fn stride(&self) -> usize {
        self.n.next_multiple_of(STEP) + 64
    }

    /// From one row of `d`, `bias32` or `sum32` to the next; twice that for `bias16` and `sum16`. Behind a row is room for a
    /// register that begins in its last step.
    #[inline(always)]
    fn group_stride(&self) -> usize {
        self.n.next_multiple_of(STEP) / 32 + 16
    }

    /// The integers of row `t`, in the kernel set's order, with the padding.
    pub(super) fn qs(&self, t: usize) -> &[i8] {
        &self.qs.as_slice()[t * self.stride()..][..self.n.next_multiple_of(STEP)]
    }

    /// The scales of row `t`, per 32.
    pub(super) fn d(&self, t: usize) -> &[f32] {
        self.groups(self.d.as_slice(), t, 1)
    }

    /// See [`QuantizedRow::bias16`].
    #[cfg(test)]
    pub(super) fn bias16(&self, t: usize) -> &[i32] {
        self.groups(self.bias16.as_slice(), t, 2)
    }

    /// See [`QuantizedRow::bias32`].
    #[cfg(test)]
    pub(super) fn bias32(&self, t: usize) -> &[i32] {
        self.groups(self.bias32.as_slice(), t, 1)
    }

    /// See [`QuantizedRow::sum16`].
    pub(super) fn sum16(&self, t: usize) -> &[f32] {
        self.groups(self.sum16.as_slice(), t, 2)
    }

    /// See [`QuantizedRow::sum32`].
    #[cfg(test)]
    pub(super) fn sum32(&self, t: usize) -> &[f32] {
        self.groups(self.sum32.as_slice(), t, 1)
    }

    fn groups<'a, T>(&self, of: &'a [T], t: usize, per_group: usize) -> &'a [T] {
        &of[t * per_group * self.group_stride()..][..per_group * self.n.next_multiple_of(STEP) / 32]
    }
}

/// The int8 form of `T` tokens from a group on, as the kernels read it.
pub(super) struct Rows<const T: usize> {
    pub qs: [*const i8; T],
    pub d: [*const f32; T],
    /// -128 times the sums of `qs`, per 32 or with `halves` per 16.
    pub bias: [*const i32; T],
    /// `d` times the sums of `qs`, likewise: what offsets are multiplied with.
    pub sum: [*const f32; T],
}

impl<const T: usize> Rows<T> {
    /// Those of the tokens from `t`, valid to the end of the rows.
    ///
    /// # Panics
    /// If there are not so many tokens or groups.
    #[inline(always)]
    pub fn new(x: &Activations, t: usize, group: usize, halves: bool) -> Self {
        use std::ptr::null;
        assert!(t + T <= x.tokens && group <= x.n.next_multiple_of(STEP) / 32);
        let mut rows = Self { qs: [null(); T], d: [null(); T], bias: [null(); T], sum: [null(); T] };
        let (bias, sum, per_group) = if halves { (&x.bias16, &x.sum16, 2) } else { (&x.bias32, &x.sum32, 1) };
        for j in 0..T {
            let at = (t + j) * x.group_stride() + group;
            rows.qs[j] = x.qs.as_slice().as_ptr().wrapping_add((t + j) * x.stride() + 32 * group);
            rows.d[j] = x.d.as_slice().as_ptr().wrapping_add(at);
            rows.bias[j] = bias.as_slice().as_ptr().wrapping_add(per_group * at);
            rows.sum[j] = sum.as_slice().as_ptr().wrapping_add(per_group * at);
        }
        rows
    }
}

/// A buffer that starts on a cache line, grows and never shrinks, and is zero at first.
#[derive(Default)]
struct Buffer<T> {
    lines: Vec<Line>,
    of: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: bytemuck::Pod> Buffer<T> {
    /// Room for at least `len` values.
    fn grow(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            // A new one rather than `resize`: the old values are not wanted, and zeroed pages cost nothing.
            self.lines = bytemuck::allocation::zeroed_vec(lines);
        }
    }

    /// The values.
    #[inline(always)]
    fn as_slice(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The values.
    fn as_mut_slice(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
