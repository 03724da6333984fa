//! The searches: integers and scales that lose least of a group of weights.
//!
//! All of them minimise a weighted squared error, `sum w (x - x')^2`. For given integers the best scale is that of a
//! linear regression, and for a given scale the best integers are the nearest ones; what is searched for is the pair. So
//! each search tries scales around the obvious one, rounds, asks the regression how good that is, and lets the best one
//! settle. Nothing here depends on an instruction set: sums run in eight lanes with one order of summation, and the
//! compiler makes vectors of them.

/// Weights and importances of a group.
pub(super) struct Points<'a, const N: usize> {
    /// The weights.
    pub x: &'a [f32; N],
    /// How much the error of each counts; never negative.
    pub w: &'a [f32; N],
}

/// A scale and integers: `x = d * q`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scaled<const N: usize> {
    pub d: f32,
    pub q: [f32; N],
}

/// A scale, an offset and integers: `x = d * q - m`, with `m` not negative.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine<const N: usize> {
    pub d: f32,
    pub m: f32,
    pub q: [f32; N],
}

/// 1.5 * 2^23: the last bit of what is near it is worth 1.
const MAGIC: f32 = 12_582_912.0;

/// Rounds to the nearest integer, halves to even. Right below 2^22, which is far above all integers here.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// A whole number as a byte, from -128 to 255. Vectors have no instruction for the cast of the language, which looks at more.
#[inline(always)]
pub(super) fn byte(x: f32) -> u8 {
    (x + MAGIC).to_bits() as u8
}

/// A number within limits, and NaN at one of them: one instruction a limit, where `f32::clamp` looks for NaN.
#[inline(always)]
pub(super) fn clamp(x: f32, least: f32, most: f32) -> f32 {
    let x = if x > least { x } else { least };
    if x < most { x } else { most }
}

/// An array of `f(i)`. A plain loop: what [`std::array::from_fn`] makes is not always a part of the function around it, and
/// then not of vectors.
#[inline(always)]
pub(super) fn array<T: Copy + Default, const N: usize>(f: impl Fn(usize) -> T) -> [T; N] {
    let mut out = [T::default(); N];
    for (i, out) in out.iter_mut().enumerate() {
        *out = f(i);
    }
    out
}

/// How much the error of each of `N` numbers costs: as much as it is important. If that is not known, all the same: the
/// usual emphasis on large numbers (the square, the magnitude) made files whose logits are further from the source's, by
/// 4 to 9 percent of the KL divergence with IQ4_XS and Q2_K on SmolLM2.
#[inline(always)]
pub(super) fn costs<const N: usize>(importance: Option<&[f32]>) -> [f32; N] {
    match importance {
        Some(importance) => array(|i| importance[i]),
        None => [1.0; N],
    }
}

/// The least and the largest of all numbers and zero, in eight lanes.
#[inline(always)]
pub(super) fn range(x: &[f32]) -> (f32, f32) {
    let (eights, rest) = x.as_chunks::<8>();
    let (mut least, mut most) = ([0.0f32; 8], [0.0f32; 8]);
    for x in eights {
        for k in 0..8 {
            least[k] = if x[k] < least[k] { x[k] } else { least[k] };
            most[k] = if x[k] > most[k] { x[k] } else { most[k] };
        }
    }
    let all = |of: &[f32], f: fn(f32, f32) -> f32| of.iter().chain(rest).fold(0.0, |a, &b| f(a, b));
    (all(&least, f32::min), all(&most, f32::max))
}

/// `sum f(i)` for `i` below `N`, a multiple of 8, in eight lanes.
#[inline(always)]
pub(super) fn sum<const N: usize>(f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    for i in 0..N / 8 {
        for (k, lane) in lanes.iter_mut().enumerate() {
            *lane += f(8 * i + k);
        }
    }
    let half = [lanes[0] + lanes[4], lanes[1] + lanes[5], lanes[2] + lanes[6], lanes[3] + lanes[7]];
    (half[0] + half[2]) + (half[1] + half[3])
}

/// An inverse that is 0 for 0 and for what has none.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The number of largest magnitude, with its sign; the first one of several.
#[inline(always)]
pub(super) fn extreme(x: &[f32]) -> f32 {
    let (least, most) = range(x);
    match most == -least {
        true => x.iter().copied().find(|x| x.abs() == most).unwrap_or(0.0),
        false if most > -least => most,
        false => least,
    }
}

/// How levels are chosen: what a number that has been divided by the scale becomes.
pub(super) trait Levels {
    /// The nearest level.
    fn nearest(&self, x: f32) -> f32;
}

/// The integers from the first to the second.
#[derive(Clone, Copy)]
pub(super) struct Integers(pub f32, pub f32);

impl Levels for Integers {
    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        round(clamp(x, self.0, self.1))
    }
}

impl<const N: usize> Points<'_, N> {
    /// The best levels for a scale of `1 / inverse`.
    #[inline(always)]
    pub fn levels(&self, levels: impl Levels, inverse: f32) -> [f32; N] {
        let mut q = [0.0; N];
        for (q, x) in q.iter_mut().zip(self.x) {
            *q = levels.nearest(x * inverse); // not in a closure: some would remain a call for each number
        }
        q
    }

    /// `sum w x q` and `sum w q^2`: their ratio is the best scale, and the square of the first over the second is by how much
    /// it lowers the error.
    #[inline(always)]
    fn products(&self, q: &[f32; N]) -> (f32, f32) {
        let xq = sum::<N>(|i| self.w[i] * self.x[i] * q[i]);
        let qq = sum::<N>(|i| self.w[i] * q[i] * q[i]);
        (xq, qq)
    }

    /// The error.
    #[inline(always)]
    pub fn error(&self, value: impl Fn(usize) -> f32) -> f32 {
        sum::<N>(|i| {
            let e = self.x[i] - value(i);
            self.w[i] * e * e
        })
    }

    /// The best of the scales `1 / inverse` and their levels, settled. A scale has the sign of what it is best for.
    #[inline(always)]
    pub fn scale(&self, levels: impl Levels + Copy, inverses: impl Iterator<Item = f32>) -> Scaled<N> {
        let (mut best, mut gain) = (Scaled { d: 0.0, q: [0.0; N] }, 0.0);
        for inverse in inverses {
            self.consider(levels, inverse, &mut best, &mut gain);
        }
        // The best scale for these levels may have other levels that are nearer.
        for _ in 0..2 {
            if !self.consider(levels, inverse(best.d), &mut best, &mut gain) {
                break;
            }
        }
        best
    }

    /// Takes the levels for `1 / inverse` with the scale that is best for them if they gain more; gives whether they do.
    #[inline(always)]
    fn consider(&self, levels: impl Levels, inverse: f32, best: &mut Scaled<N>, gain: &mut f32) -> bool {
        let q = self.levels(levels, inverse);
        let (xq, qq) = self.products(&q);
        let better = xq * xq > *gain * qq; // false for NaN
        if better {
            *gain = xq * xq / qq;
            *best = Scaled { d: xq / qq, q };
        }
        better
    }

    /// The best of the inverse scales and offsets, with integers from 0 to `top`.
    #[inline(always)]
    pub fn affine(&self, top: f32, inverses: impl Iterator<Item = f32>) -> Affine<N> {
        let (least, most) = range(self.x);
        if most == least {
            return Affine { d: 0.0, m: 0.0, q: [0.0; N] }; // all are zero
        }
        let first = inverse(most - least);
        let (sw, sx) = (sum::<N>(|i| self.w[i]), sum::<N>(|i| self.w[i] * self.x[i]));
        let mut best = self.regress(top, top * first, least, sw, sx);
        for factor in inverses {
            let (affine, error) = self.regress(top, factor * first, least, sw, sx);
            if error < best.1 {
                best = (affine, error);
            }
        }
        for _ in 0..2 {
            let (affine, error) = self.regress(top, inverse(best.0.d), -best.0.m, sw, sx);
            if error < best.1 {
                best = (affine, error);
            } else {
                break;
            }
        }
        best.0
    }

    /// The integers for a scale of `1 / inverse` above `least`, then the scale and the offset that are best for them, and
    /// their error.
    #[inline(always)]
    fn regress(&self, top: f32, inverse: f32, least: f32, sw: f32, sx: f32) -> (Affine<N>, f32) {
        let levels = Integers(0.0, top);
        let q: [f32; N] = array(|i| levels.nearest((self.x[i] - least) * inverse));
        let (d, m) = self.line(&q, sw, sx);
        (Affine { d, m, q }, self.error(|i| d * q[i] - m))
    }

    /// The scale and the offset that are best for these integers, the offset not negative.
    #[inline(always)]
    fn line(&self, q: &[f32; N], sw: f32, sx: f32) -> (f32, f32) {
        let sq = sum::<N>(|i| self.w[i] * q[i]);
        let (xq, qq) = self.products(q);
        let determinant = sw * qq - sq * sq;
        if determinant > 0.0 {
            let d = (sw * xq - sx * sq) / determinant;
            let m = (sq * xq - qq * sx) / determinant;
            if m >= 0.0 && d > 0.0 {
                return (d, m);
            }
        }
        // One of them alone: that which gains more.
        let (with_d, with_m) = (xq.max(0.0), (-sx).max(0.0));
        if with_d * with_d * sw >= with_m * with_m * qq && qq > 0.0 {
            (with_d / qq, 0.0)
        } else {
            (0.0, with_m * inverse(sw))
        }
    }
}
