//! The types whose weights are entries of a codebook, 8 or 4 at a time: IQ1, IQ2 and IQ3.
//!
//! All of them are `x = d * level * entry`, where `level` is a small odd number that a group of 16 or 32 shares, and signs
//! or a shift come with the entry. For an entry `v` the error is that of zero, less `2 s A`, plus `s^2 B`, with
//! `A = sum w x v`, `B = sum w v^2` and `s` the scale. `A` and `B` do not depend on the scale: so they are computed once, and
//! the best entry for any scale is one pass over them. Nothing is skipped: of all entries the best one is found.

use std::cell::RefCell;
use std::sync::LazyLock;

use super::fit::{Levels, Points, clamp, costs, extreme, inverse, round};
use super::{Encode, f16_bytes, rounded_to_f16};
use crate::quant::grids::{IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};
use crate::quant::{BlockIQ1_M, BlockIQ1_S, BlockIQ2_S, BlockIQ2_XS, BlockIQ2_XXS, BlockIQ3_S, BlockIQ3_XXS};

/// Entries side by side, as many as a vector has lanes.
const LANES: usize = 8;

/// A codebook: entries of `K` values, in chunks of eight, the first values of all eight first; and the squares.
struct Book<const K: usize> {
    values: Vec<[[f32; LANES]; K]>,
    squares: Vec<[[f32; LANES]; K]>,
}

impl<const K: usize> Book<K> {
    fn new(entries: impl Iterator<Item = [f32; K]>) -> Self {
        let entries: Vec<[f32; K]> = entries.collect();
        let chunk = |chunk: &[[f32; K]]| std::array::from_fn(|k| std::array::from_fn(|j| chunk[j][k]));
        let values: Vec<[[f32; LANES]; K]> = entries.chunks_exact(LANES).map(chunk).collect();
        let squares = values.iter().map(|chunk| chunk.map(|lanes| lanes.map(|v| v * v))).collect();
        Self { values, squares }
    }

    fn of_magnitudes(grid: &[[u8; K]]) -> Self {
        Self::new(grid.iter().map(|entry| entry.map(f32::from)))
    }
}

static IQ2_XXS: LazyLock<Book<8>> = LazyLock::new(|| Book::of_magnitudes(&IQ2_XXS_GRID));
static IQ2_XS: LazyLock<Book<8>> = LazyLock::new(|| Book::of_magnitudes(&IQ2_XS_GRID));
static IQ2_S: LazyLock<Book<8>> = LazyLock::new(|| Book::of_magnitudes(&IQ2_S_GRID));
static IQ3_XXS: LazyLock<Book<4>> = LazyLock::new(|| Book::of_magnitudes(&IQ3_XXS_GRID));
static IQ3_S: LazyLock<Book<4>> = LazyLock::new(|| Book::of_magnitudes(&IQ3_S_GRID));
/// The entries of IQ1 shifted up, then all of them shifted down.
static IQ1: LazyLock<Book<8>> = LazyLock::new(|| {
    let shifted = |shift: f32| IQ1_GRID.iter().map(move |entry| entry.map(|v| f32::from(v) - 1.0 + shift));
    Book::new(shifted(0.125).chain(shifted(-0.125)))
});

/// How the signs of weights are kept.
#[derive(Clone, Copy, PartialEq)]
enum Signs {
    /// One each.
    Free,
    /// Seven of eight: the eighth makes the number of negative ones even.
    Even,
    /// None: they are in the entries.
    InEntries,
}

/// What sets a type apart.
#[derive(Clone, Copy)]
struct Kind {
    signs: Signs,
    /// Weights that share a level.
    group: usize,
    /// Parts of the codebook of which a group has one.
    parts: usize,
    /// The largest level.
    top: f32,
    /// The first and the last scale that are tried, of one that makes the largest weight the largest value.
    from: f32,
    to: f32,
    /// The largest value.
    largest: f32,
    /// The scale of a block is written times this.
    unit: f32,
}

/// A block of it, with `K` weights an entry.
struct Coded {
    /// As it is written.
    d: f32,
    /// Of each group, 0 for level 1, 1 for level 3, ...
    levels: [u8; 16],
    /// Of each 4 or 8 weights.
    entries: [u16; 64],
    /// Bit `k` of byte `i` is set if weight `8 i + k` is negative.
    signs: [u8; 32],
}

/// `A` and `B` of eight entries.
#[derive(Clone, Copy)]
struct Products {
    a: [f32; LANES],
    b: [f32; LANES],
}

/// The odd numbers up to this one.
#[derive(Clone, Copy)]
struct Odd(f32);

impl Levels for Odd {
    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        2.0 * round((clamp(x, 1.0, self.0) - 1.0) * 0.5) + 1.0
    }
}

/// Scales of a group that are tried.
const TRIES: usize = 12;

impl Kind {
    #[inline(always)]
    fn encode<const K: usize>(self, book: &Book<K>, x: &[f32], importance: Option<&[f32]>) -> Coded {
        thread_local! {
            static PRODUCTS: RefCell<Vec<Products>> = const { RefCell::new(Vec::new()) };
        }
        PRODUCTS.with_borrow_mut(|products| {
            let (chunks, x) = (book.values.len(), x.try_into().expect("a block of 256"));
            products.resize(256 / K * chunks, Products { a: [0.0; LANES], b: [0.0; LANES] });
            self.encode_with(book, x, importance, products)
        })
    }

    #[inline(always)]
    fn encode_with<const K: usize>(
        self,
        book: &Book<K>,
        x: &[f32; 256],
        importance: Option<&[f32]>,
        products: &mut [Products],
    ) -> Coded {
        let w = costs(importance);
        let (x, signs) = self.take_signs(x, &w);
        let chunks = book.values.len();
        for (i, products) in products.chunks_exact_mut(chunks).enumerate() {
            let w: [f32; K] = std::array::from_fn(|k| w[K * i + k]);
            let wx: [f32; K] = std::array::from_fn(|k| w[k] * x[K * i + k]);
            for ((products, values), squares) in products.iter_mut().zip(&book.values).zip(&book.squares) {
                let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
                for k in 0..K {
                    for j in 0..LANES {
                        a[j] += wx[k] * values[k][j];
                        b[j] += w[k] * squares[k][j];
                    }
                }
                *products = Products { a: a.map(|a| 2.0 * a), b };
            }
        }
        let of_group = |g: usize| &products[g * (self.group / K) * chunks..][..self.group / K * chunks];
        let groups = 256 / self.group;

        // Each group by itself.
        let (mut scales, mut costs) = ([0.0f32; 16], [0.0f32; 16]);
        for g in 0..groups {
            let largest = extreme(&x[g * self.group..][..self.group]).abs() / self.largest;
            let mut best = (f32::INFINITY, 0.0);
            for step in 0..TRIES {
                let scale = largest * (self.from + (self.to - self.from) * step as f32 / (TRIES - 1) as f32);
                let error = self.error(of_group(g), chunks, scale);
                if error < best.0 {
                    best = (error, scale);
                }
            }
            // The best scale for these entries may have other entries that are better.
            for _ in 0..2 {
                let (_, a, b) = self.choose::<K>(of_group(g), chunks, best.1, &mut [0; 8]);
                let scale = a * inverse(b);
                let error = self.error(of_group(g), chunks, scale);
                costs[g] = b;
                if error.is_nan() || error >= best.0 {
                    break;
                }
                best = (error, scale);
            }
            scales[g] = best.1;
        }

        // Scales that can be written.
        let first = inverse(extreme(&scales));
        let inverses = (-12..=8).map(|step| (self.top + 0.25 * step as f32) * first);
        let fit = Points { x: &scales, w: &costs }.scale(Odd(self.top), inverses);
        let mut best = self.assign::<K>(&of_group, chunks, self.rounded(fit.d), &fit.q);
        for _ in 0..2 {
            let other = self.assign::<K>(&of_group, chunks, self.rounded(best.wanted), &best.levels);
            if other.error.is_nan() || other.error >= best.error {
                break;
            }
            best = other;
        }
        Coded {
            d: best.d * self.unit,
            levels: best.levels.map(|level| ((level - 1.0) * 0.5) as u8),
            entries: best.entries,
            signs,
        }
    }

    /// A scale that can be written.
    #[inline(always)]
    fn rounded(self, d: f32) -> f32 {
        rounded_to_f16(d * self.unit) / self.unit
    }

    /// Weights with the signs taken off, those that cannot be written left on.
    #[inline(always)]
    fn take_signs(self, x: &[f32; 256], w: &[f32; 256]) -> ([f32; 256], [u8; 32]) {
        let (mut out, mut signs) = (*x, [0u8; 32]);
        if self.signs == Signs::InEntries {
            return (out, signs);
        }
        for (i, signs) in signs.iter_mut().enumerate() {
            let range = 8 * i..8 * i + 8;
            *signs = range.clone().rev().fold(0, |bits, k| bits << 1 | u8::from(x[k] < 0.0));
            if self.signs == Signs::Even && signs.count_ones() % 2 == 1 {
                // The one that it costs least.
                let cost = |&k: &usize| w[k] * x[k] * x[k];
                let cheapest = range.clone().min_by(|a, b| cost(a).total_cmp(&cost(b))).expect("eight");
                *signs ^= 1 << (cheapest % 8);
            }
            for k in range {
                out[k] = if *signs >> (k % 8) & 1 == 1 { -x[k] } else { x[k] };
            }
        }
        (out, signs)
    }

    /// The error of a group with this scale and the best entries, less that of zero.
    #[inline(always)]
    fn error(self, products: &[Products], chunks: usize, scale: f32) -> f32 {
        let square = scale * scale;
        let mut least = f32::INFINITY;
        for part in 0..self.parts {
            let mut error = 0.0;
            for products in products.chunks_exact(chunks) {
                let mut lanes = [f32::INFINITY; LANES];
                for Products { a, b } in &products[part * chunks / self.parts..][..chunks / self.parts] {
                    for j in 0..LANES {
                        let error = square * b[j] - scale * a[j];
                        lanes[j] = if error < lanes[j] { error } else { lanes[j] };
                    }
                }
                error += lanes.into_iter().fold(f32::INFINITY, f32::min);
            }
            least = least.min(error);
        }
        least
    }

    /// Writes the best entries of a group for this scale; gives their error, less that of zero, and the sums of their `A` and
    /// `B`.
    #[inline(always)]
    fn choose<const K: usize>(
        self,
        products: &[Products],
        chunks: usize,
        scale: f32,
        entries: &mut [u16],
    ) -> (f32, f32, f32) {
        let square = scale * scale;
        let mut best = (f32::INFINITY, 0.0, 0.0);
        for part in 0..self.parts {
            let (mut here, mut chosen) = ((0.0, 0.0, 0.0), [0; 8]);
            let first = part * chunks / self.parts;
            for (products, chosen) in products.chunks_exact(chunks).zip(&mut chosen) {
                let mut lanes = [f32::INFINITY; LANES];
                let mut at = [0u32; LANES];
                for (i, Products { a, b }) in products[first..][..chunks / self.parts].iter().enumerate() {
                    for j in 0..LANES {
                        let error = square * b[j] - scale * a[j];
                        let better = error < lanes[j];
                        lanes[j] = if better { error } else { lanes[j] };
                        at[j] = if better { i as u32 } else { at[j] };
                    }
                }
                let lane = (1..LANES).fold(0, |best, j| if lanes[j] < lanes[best] { j } else { best });
                let chunk = first + at[lane] as usize;
                *chosen = (chunk * LANES + lane) as u16;
                here.0 += lanes[lane];
                here.1 += 0.5 * products[chunk].a[lane];
                here.2 += products[chunk].b[lane];
            }
            if here.0 < best.0 {
                best = here;
                entries.copy_from_slice(&chosen[..entries.len()]);
            }
        }
        best
    }

    /// Gives each group the best entries with its level or the next one.
    #[inline(always)]
    fn assign<'a, const K: usize>(
        self,
        of_group: &impl Fn(usize) -> &'a [Products],
        chunks: usize,
        d: f32,
        levels: &[f32; 16],
    ) -> Assigned {
        let mut out = Assigned { d, wanted: 0.0, levels: *levels, entries: [0; 64], error: 0.0 };
        let (mut xq, mut qq) = (0.0, 0.0);
        for (g, &level) in levels[..256 / self.group].iter().enumerate() {
            let mut best = (f32::INFINITY, 1.0);
            for level in [level, level - 2.0, level + 2.0] {
                if level < 1.0 || level > self.top {
                    continue;
                }
                let error = self.error(of_group(g), chunks, d * level);
                if error < best.0 {
                    best = (error, level);
                }
            }
            let level = best.1;
            let n = self.group / K;
            let (error, a, b) = self.choose::<K>(of_group(g), chunks, d * level, &mut out.entries[g * n..][..n]);
            out.levels[g] = level;
            out.error += error;
            xq += level * a;
            qq += level * level * b;
        }
        out.wanted = xq * inverse(qq);
        out
    }
}

/// What [`Kind::assign`] gives.
struct Assigned {
    d: f32,
    /// The scale that would be best.
    wanted: f32,
    levels: [f32; 16],
    entries: [u16; 64],
    error: f32,
}

/// Nibbles, the low one of a byte first.
#[inline(always)]
fn nibbles<const N: usize>(x: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| x[2 * i] | x[2 * i + 1] << 4)
}

/// Seven bits of signs of each 8 weights of group `i`, and a scale.
#[inline(always)]
fn signs_7bit(signs: &[u8; 32], i: usize, level: u8) -> [u8; 4] {
    let signs = (0..4).fold(0, |word, l| word | u32::from(signs[4 * i + l] & 127) << (7 * l));
    (signs | u32::from(level) << 28).to_le_bytes()
}

const IQ2: Kind =
    Kind { signs: Signs::Free, group: 16, parts: 1, top: 31.0, from: 0.5, to: 1.3, largest: 43.0, unit: 8.0 };

impl Encode for BlockIQ2_XXS {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = Kind { signs: Signs::Even, group: 32, ..IQ2 }.encode(&IQ2_XXS, x, importance);
        let group = |i: usize| {
            [std::array::from_fn(|l| block.entries[4 * i + l] as u8), signs_7bit(&block.signs, i, block.levels[i])]
        };
        Self { d: f16_bytes(block.d), qs: std::array::from_fn(group) }
    }
}

impl Encode for BlockIQ2_XS {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = Kind { signs: Signs::Even, ..IQ2 }.encode(&IQ2_XS, x, importance);
        let word = |i: usize| (block.entries[i] | u16::from(block.signs[i] & 127) << 9).to_le_bytes();
        Self {
            d: f16_bytes(block.d),
            qs: std::array::from_fn(|i| std::array::from_fn(|l| word(4 * i + l))),
            scales: nibbles(&block.levels),
        }
    }
}

impl Encode for BlockIQ2_S {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = IQ2.encode(&IQ2_S, x, importance);
        let high = |i: usize| (0..4).fold(0, |byte, l| byte | ((block.entries[4 * i + l] >> 8) as u8) << (2 * l));
        Self {
            d: f16_bytes(block.d),
            qs: std::array::from_fn(|i| std::array::from_fn(|l| block.entries[4 * i + l] as u8)),
            signs: std::array::from_fn(|i| std::array::from_fn(|l| block.signs[4 * i + l])),
            qh: std::array::from_fn(high),
            scales: nibbles(&block.levels),
        }
    }
}

const IQ3: Kind =
    Kind { signs: Signs::Free, group: 32, parts: 1, top: 31.0, from: 0.6, to: 1.2, largest: 62.0, unit: 4.0 };

impl Encode for BlockIQ3_XXS {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = Kind { signs: Signs::Even, ..IQ3 }.encode(&IQ3_XXS, x, importance);
        Self {
            d: f16_bytes(block.d),
            qs: std::array::from_fn(|i| std::array::from_fn(|l| block.entries[8 * i + l] as u8)),
            words: std::array::from_fn(|i| signs_7bit(&block.signs, i, block.levels[i])),
        }
    }
}

impl Encode for BlockIQ3_S {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = Kind { largest: 15.0, unit: 1.0, ..IQ3 }.encode(&IQ3_S, x, importance);
        let high = |i: usize| (0..8).fold(0, |byte, l| byte | ((block.entries[8 * i + l] >> 8) as u8) << l);
        Self {
            d: f16_bytes(block.d),
            qs: std::array::from_fn(|i| std::array::from_fn(|l| block.entries[8 * i + l] as u8)),
            qh: std::array::from_fn(high),
            signs: std::array::from_fn(|i| std::array::from_fn(|l| block.signs[4 * i + l])),
            scales: nibbles(&block.levels),
        }
    }
}

const IQ1_KIND: Kind =
    Kind { signs: Signs::InEntries, group: 32, parts: 2, top: 15.0, from: 0.3, to: 1.1, largest: 1.125, unit: 1.0 };

/// Entries of IQ1 have 2048 indices; the next bit says that they are shifted down.
const SHIFTED_DOWN: u16 = 1 << 11;

impl Encode for BlockIQ1_S {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = IQ1_KIND.encode(&IQ1, x, importance);
        let high = |i: usize| {
            let entries = &block.entries[4 * i..];
            let word = (0..4).fold(0, |word, l| word | (entries[l] >> 8 & 7) << (3 * l));
            let down = u16::from(entries[0] & SHIFTED_DOWN != 0);
            (word | u16::from(block.levels[i]) << 12 | down << 15).to_le_bytes()
        };
        Self {
            d: f16_bytes(block.d),
            qs: std::array::from_fn(|i| std::array::from_fn(|l| block.entries[4 * i + l] as u8)),
            qh: std::array::from_fn(high),
        }
    }
}

impl Encode for BlockIQ1_M {
    #[inline(always)]
    fn encode(x: &[f32], importance: Option<&[f32]>) -> Self {
        let block = Kind { group: 16, parts: 1, ..IQ1_KIND }.encode(&IQ1, x, importance);
        // Three bits, and that it is shifted down.
        let high = |k: usize| (block.entries[k] >> 8 & 15) as u8;
        let d = u16::from_le_bytes(f16_bytes(block.d));
        let scales = |i: usize| {
            let levels = (0..4).fold(0, |word, l| word | u16::from(block.levels[4 * i + l]) << (3 * l));
            (levels | (d >> (4 * i) & 15) << 12).to_le_bytes()
        };
        Self {
            qs: std::array::from_fn(|i| std::array::from_fn(|l| block.entries[4 * i + l] as u8)),
            qh: std::array::from_fn(|i| std::array::from_fn(|b| high(4 * i + 2 * b) | high(4 * i + 2 * b + 1) << 4)),
            scales: std::array::from_fn(scales),
        }
    }
}
