//! A register of floats, as little of it as the float operations need.
//!
//! [`super::ops`] has one body for each operation, generic over [`Vector`]. The methods are `#[inline(always)]`
//! and carry no `#[target_feature]`: the kernel set's own entry point does, and they become part of it.

/// `LANES` floats.
///
/// # Safety
/// - Every method may be called only where the CPU has the features of the implementing set; some ask for more.
pub trait Vector: Copy {
    /// Floats in a register.
    const LANES: usize;
    /// Registers that there are: how large a tile of sums can be.
    const REGISTERS: usize;

    unsafe fn splat(x: f32) -> Self;
    /// Reads `LANES` floats.
    ///
    /// # Safety
    /// - `p` is valid for reads of `LANES` numbers, at any alignment.
    unsafe fn load(p: *const f32) -> Self;
    /// Reads `LANES` f16.
    ///
    /// # Safety
    /// - As for `load`.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Reads one f16, for all lanes.
    ///
    /// # Safety
    /// - `p` is valid for reads of one number, at any alignment.
    unsafe fn splat_f16(p: *const u16) -> Self;
    /// Reads `LANES` bf16.
    ///
    /// # Safety
    /// - As for `load`.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Reads `LANES` signed bytes.
    ///
    /// # Safety
    /// - As for `load`.
    unsafe fn load_i8(p: *const i8) -> Self;
    /// # Safety
    /// - `p` is valid for writes of `LANES` numbers, at any alignment.
    unsafe fn store(self, p: *mut f32);
    /// Rounds to f16, to nearest even, and writes them.
    ///
    /// # Safety
    /// - As for `store`.
    unsafe fn store_f16(self, p: *mut u16);
    unsafe fn add(self, y: Self) -> Self;
    unsafe fn sub(self, y: Self) -> Self;
    unsafe fn mul(self, y: Self) -> Self;
    unsafe fn div(self, y: Self) -> Self;
    /// `self * y + z`
    unsafe fn mul_add(self, y: Self, z: Self) -> Self;
    unsafe fn max(self, y: Self) -> Self;
    unsafe fn min(self, y: Self) -> Self;
    /// To the nearest integer.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers from -126 to 127.
    unsafe fn exp2_int(self) -> Self;
    /// Sum of the lanes.
    unsafe fn sum(self) -> f32;
    /// Largest lane.
    unsafe fn largest(self) -> f32;
}

/// `exp(x)` to about 1 part in 10^7: `2^n * exp(r)` with `|r| <= ln(2) / 2`, `exp(r)` by its Taylor polynomial of
/// degree 7. Underflows to 2^-126 (not to zero), overflows to 2^127.
///
/// # Safety
/// - The CPU has the features of `V`.
#[inline(always)]
pub unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: the caller's promise about the CPU.
    unsafe {
        let x = x.max(V::splat(-87.3)).min(V::splat(88.0));
        let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
        // ln(2) in two parts, so that n * ln(2) is exact to beyond a float
        let r = n.mul_add(V::splat(-0.693_145_75), x);
        let r = n.mul_add(V::splat(-1.428_606_8e-6), r);
        let mut p = V::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.mul_add(r, V::splat(c));
        }
        p.mul(n.exp2_int())
    }
}

/// A number as it lies in memory, at any alignment, read into a register of floats.
pub trait Number: Copy {
    /// Reads `LANES` numbers.
    ///
    /// # Safety
    /// - The CPU has the features of `V`, and `p` is valid for reads of `V::LANES` numbers, at any alignment.
    unsafe fn load<V: Vector>(p: *const Self) -> V;
    /// One number.
    fn to_f32(self) -> f32;
}

/// The bits of a bfloat16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Number for Bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(p.cast()) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// f16
impl Number for u16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        half::f16::from_bits(self).to_f32()
    }
}

/// One float: the scalar set's register.
#[derive(Clone, Copy)]
pub struct One(f32);

impl Vector for One {
    const LANES: usize = 1;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        One(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise about `p`.
        One(unsafe { p.read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller's promise about `p`.
        One(half::f16::from_bits(unsafe { p.read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self {
        // SAFETY: the caller's promise about `p`.
        unsafe { Self::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller's promise about `p`.
        One(f32::from_bits(u32::from(unsafe { p.read_unaligned() }) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller's promise about `p`.
        One(f32::from(unsafe { *p }))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise about `p`.
        unsafe { p.write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: the caller's promise about `p`.
        unsafe { p.write_unaligned(half::f16::from_f32(self.0).to_bits()) }
    }
    #[inline(always)]
    unsafe fn add(self, y: Self) -> Self {
        One(self.0 + y.0)
    }
    #[inline(always)]
    unsafe fn sub(self, y: Self) -> Self {
        One(self.0 - y.0)
    }
    #[inline(always)]
    unsafe fn mul(self, y: Self) -> Self {
        One(self.0 * y.0)
    }
    #[inline(always)]
    unsafe fn div(self, y: Self) -> Self {
        One(self.0 / y.0)
    }
    #[inline(always)]
    unsafe fn mul_add(self, y: Self, z: Self) -> Self {
        One(self.0 * y.0 + z.0) // not fused: without the instruction that is a slow library call
    }
    #[inline(always)]
    unsafe fn max(self, y: Self) -> Self {
        One(if self.0 > y.0 { self.0 } else { y.0 }) // as `maxps`: y if either is NaN
    }
    #[inline(always)]
    unsafe fn min(self, y: Self) -> Self {
        One(if self.0 < y.0 { self.0 } else { y.0 })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        One(self.0.round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        One(f32::from_bits(((self.0 as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0
    }
}

/// Asks for a cache line that will be read. On x86 alone: what it does elsewhere nobody has measured.
#[inline(always)]
pub fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing, whatever the address; the instruction is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Implements [`Vector`] for a register by the names of its intrinsics.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! vector {
    ($name:ident($register:ident), lanes: $lanes:literal, registers: $registers:literal, splat: $splat:ident, load: $load:ident, store: $store:ident,
     add: $add:ident, sub: $sub:ident, mul: $mul:ident, div: $div:ident, fma: $fma:ident, max: $max:ident, min: $min:ident,
     load_f16: |$p:ident| $load_f16:expr, splat_f16: |$h:ident| $splat_f16:expr, load_bf16: |$b:ident| $load_bf16:expr, load_i8: |$i:ident| $load_i8:expr,
     store_f16: |$x:ident, $q:ident| $store_f16:expr, round: |$r:ident| $round:expr,
     exp2_int: |$n:ident| $exp2:expr, sum: |$s:ident| $sum:expr, largest: |$l:ident| $largest:expr $(,)?) => {
        #[derive(Clone, Copy)]
        pub struct $name($register);

        // SAFETY (every method): the caller's promises, see the trait.
        #[allow(clippy::undocumented_unsafe_blocks)]
        impl Vector for $name {
            const LANES: usize = $lanes;
            const REGISTERS: usize = $registers;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                unsafe { $name($splat(x)) }
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                unsafe { $name($load(p)) }
            }
            #[inline(always)]
            unsafe fn load_f16($p: *const u16) -> Self {
                unsafe { $name($load_f16) }
            }
            #[inline(always)]
            unsafe fn splat_f16($h: *const u16) -> Self {
                unsafe { $name($splat_f16) }
            }
            #[inline(always)]
            unsafe fn load_bf16($b: *const u16) -> Self {
                unsafe { $name($load_bf16) }
            }
            #[inline(always)]
            unsafe fn load_i8($i: *const i8) -> Self {
                unsafe { $name($load_i8) }
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                unsafe { $store(p, self.0) }
            }
            #[inline(always)]
            unsafe fn store_f16(self, $q: *mut u16) {
                let $x = self.0;
                unsafe { $store_f16 }
            }
            #[inline(always)]
            unsafe fn add(self, y: Self) -> Self {
                unsafe { $name($add(self.0, y.0)) }
            }
            #[inline(always)]
            unsafe fn sub(self, y: Self) -> Self {
                unsafe { $name($sub(self.0, y.0)) }
            }
            #[inline(always)]
            unsafe fn mul(self, y: Self) -> Self {
                unsafe { $name($mul(self.0, y.0)) }
            }
            #[inline(always)]
            unsafe fn div(self, y: Self) -> Self {
                unsafe { $name($div(self.0, y.0)) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, y: Self, z: Self) -> Self {
                unsafe { $name($fma(self.0, y.0, z.0)) }
            }
            #[inline(always)]
            unsafe fn max(self, y: Self) -> Self {
                unsafe { $name($max(self.0, y.0)) }
            }
            #[inline(always)]
            unsafe fn min(self, y: Self) -> Self {
                unsafe { $name($min(self.0, y.0)) }
            }
            #[inline(always)]
            unsafe fn round(self) -> Self {
                let $r = self.0;
                unsafe { $name($round) }
            }
            #[inline(always)]
            unsafe fn exp2_int(self) -> Self {
                let $n = self.0;
                unsafe { $name($exp2) }
            }
            #[inline(always)]
            unsafe fn sum(self) -> f32 {
                let $s = self.0;
                unsafe { $sum }
            }
            #[inline(always)]
            unsafe fn largest(self) -> f32 {
                let $l = self.0;
                unsafe { $largest }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Eight, Sixteen};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    vector! {
        Sixteen(__m512), lanes: 16, registers: 32, splat: _mm512_set1_ps, load: _mm512_loadu_ps,
        store: _mm512_storeu_ps, add: _mm512_add_ps, sub: _mm512_sub_ps, mul: _mm512_mul_ps, div: _mm512_div_ps, fma: _mm512_fmadd_ps,
        max: _mm512_max_ps, min: _mm512_min_ps,
        load_f16: |p| _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
        splat_f16: |p| _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())),
        load_bf16: |p| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))),
        load_i8: |p| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))),
        store_f16: |x, p| _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)),
        round: |x| _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(x),
        exp2_int: |n| _mm512_scalef_ps(_mm512_set1_ps(1.0), n),
        sum: |x| _mm512_reduce_add_ps(x),
        largest: |x| _mm512_reduce_max_ps(x),
    }

    vector! {
        Eight(__m256), lanes: 8, registers: 16, splat: _mm256_set1_ps, load: _mm256_loadu_ps,
        store: _mm256_storeu_ps, add: _mm256_add_ps, sub: _mm256_sub_ps, mul: _mm256_mul_ps, div: _mm256_div_ps, fma: _mm256_fmadd_ps,
        max: _mm256_max_ps, min: _mm256_min_ps,
        load_f16: |p| _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
        splat_f16: |p| _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())),
        load_bf16: |p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))),
        load_i8: |p| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
        store_f16: |x, p| _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)),
        round: |x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
        exp2_int: |n| {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        },
        sum: |x| {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        },
        largest: |x| {
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        },
    }
}

#[cfg(target_arch = "aarch64")]
pub use aarch64::Four;

#[cfg(target_arch = "aarch64")]
pub(super) mod aarch64 {
    use super::Vector;
    use std::arch::aarch64::*;
    use std::arch::asm;

    vector! {
        Four(float32x4_t), lanes: 4, registers: 32, splat: vdupq_n_f32, load: vld1q_f32,
        store: vst1q_f32, add: vaddq_f32, sub: vsubq_f32, mul: vmulq_f32, div: vdivq_f32, fma: mul_add,
        max: vmaxq_f32, min: vminq_f32,
        load_f16: |p| from_f16(vld1_u16(p)),
        splat_f16: |p| from_f16(vdup_n_u16(p.read_unaligned())),
        load_bf16: |p| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))),
        load_i8: |p| vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(p.cast::<u32>().read_unaligned().into()))))),
        store_f16: |x, p| vst1_u16(p, to_f16(x)),
        round: |x| vrndnq_f32(x),
        exp2_int: |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)))),
        sum: |x| vaddvq_f32(x),
        largest: |x| vmaxvq_f32(x),
    }

    /// `x * y + z`
    ///
    /// # Safety
    /// - Nothing is asked: it is called as the intrinsics are.
    #[inline(always)]
    unsafe fn mul_add(x: float32x4_t, y: float32x4_t, z: float32x4_t) -> float32x4_t {
        // SAFETY: registers only, and NEON is part of AArch64.
        unsafe { vfmaq_f32(z, x, y) }
    }

    /// Four f16 as floats. The intrinsic wants a type that Rust does not have yet; the instruction is in every AArch64 CPU.
    #[inline(always)]
    pub fn from_f16(x: uint16x4_t) -> float32x4_t {
        let y;
        // SAFETY: registers only.
        unsafe {
            asm!("fcvtl {:v}.4s, {:v}.4h", out(vreg) y, in(vreg) x, options(pure, nomem, nostack, preserves_flags))
        };
        y
    }

    /// Four floats, rounded to f16, to nearest even.
    #[inline(always)]
    fn to_f16(x: float32x4_t) -> uint16x4_t {
        let y;
        // SAFETY: registers only.
        unsafe {
            asm!("fcvtn {:v}.4h, {:v}.4s", out(vreg) y, in(vreg) x, options(pure, nomem, nostack, preserves_flags))
        };
        y
    }
}
