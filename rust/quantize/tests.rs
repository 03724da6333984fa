//! What holds for every type: against slow, obvious twins, and at the edges.

use super::*;
use crate::quant::dequantize;

/// Numbers of a bell curve, nearly, with a few large ones.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n)
        .map(|_| {
            let bell = (0..6).map(|_| unit()).sum::<f32>() - 3.0;
            0.05 * bell * if unit() < 0.02 { 4.0 } else { 1.0 }
        })
        .collect()
}

fn block_types() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|&dtype| is_encodable(dtype) && dtype.block_len() > 1)
}

fn encoded(dtype: DType, x: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut out = vec![0; dtype.row_bytes(x.len()).unwrap()];
    encode_row(dtype, x, importance, &mut out);
    out
}

fn decoded(dtype: DType, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n];
    dequantize(dtype, bytes, &mut out);
    out
}

/// `sum w (x - y)^2`.
fn error(x: &[f32], y: &[f32], w: impl Fn(usize) -> f32) -> f64 {
    x.iter().zip(y).enumerate().map(|(i, (x, y))| f64::from(w(i)) * f64::from(x - y).powi(2)).sum()
}

/// The obvious way: the largest number of a group gets the last level, scales of groups are rounded to steps of the largest.
struct Obvious {
    group: usize,
    /// The least and the largest level.
    levels: (f32, f32),
    /// Whether levels start at the least number.
    sloped: bool,
    /// Steps of scales; 0 for scales that are not rounded.
    steps: f32,
}

impl Obvious {
    fn of(dtype: DType) -> Option<Self> {
        let (group, levels, sloped, steps) = match dtype {
            DType::Q2_K => (16, (0.0, 3.0), true, 15.0),
            DType::Q3_K => (16, (-4.0, 3.0), false, 31.0),
            DType::Q4_K => (32, (0.0, 15.0), true, 63.0),
            DType::Q5_K => (32, (0.0, 31.0), true, 63.0),
            DType::Q6_K => (16, (-32.0, 31.0), false, 127.0),
            DType::Q4_0 => (32, (-8.0, 7.0), false, 0.0),
            DType::Q5_0 => (32, (-16.0, 15.0), false, 0.0),
            DType::Q4_1 => (32, (0.0, 15.0), true, 0.0),
            DType::Q5_1 => (32, (0.0, 31.0), true, 0.0),
            // Tables and codebooks can do at least what few even steps can.
            DType::IQ4_NL => (32, (-6.0, 6.0), false, 0.0),
            DType::IQ4_XS => (32, (-6.0, 6.0), false, 31.0),
            _ => return None,
        };
        Some(Self { group, levels, sloped, steps })
    }

    fn row(&self, x: &[f32]) -> Vec<f32> {
        let scale = |x: &[f32]| {
            let (least, most) = x.iter().fold((0.0f32, 0.0f32), |(a, b), &x| (a.min(x), b.max(x)));
            match self.sloped {
                true => ((most - least) / self.levels.1, -least),
                false => (most.max(-least) / self.levels.1.min(-self.levels.0), 0.0),
            }
        };
        let mut out = Vec::new();
        for block in x.chunks(if self.steps > 0.0 { 256 } else { self.group }) {
            let scales: Vec<(f32, f32)> = block.chunks(self.group).map(scale).collect();
            let largest = scales.iter().fold((0.0f32, 0.0f32), |m, s| (m.0.max(s.0), m.1.max(s.1)));
            let rounded = |s: f32, largest: f32| match self.steps > 0.0 && largest > 0.0 {
                true => (s / largest * self.steps).round() * largest / self.steps,
                false => s,
            };
            for (x, s) in block.chunks(self.group).zip(&scales) {
                let (d, m) = (rounded(s.0, largest.0), rounded(s.1, largest.1));
                out.extend(x.iter().map(|x| d * ((x + m) / d).round().clamp(self.levels.0, self.levels.1) - m));
            }
        }
        out
    }
}

#[test]
fn searches_lose_less_than_the_obvious_way() {
    let x = weights(256 * 64, 1);
    let importance: Vec<f32> = weights(x.len(), 2).iter().map(|x| 0.01 + x.abs()).collect();
    for dtype in block_types() {
        let Some(obvious) = Obvious::of(dtype) else { continue };
        let theirs = obvious.row(&x);
        let with = decoded(dtype, &encoded(dtype, &x, Some(&importance)), x.len());
        let w = |i: usize| importance[i];
        let (ours, other) = (error(&x, &with, w), error(&x, &theirs, w));
        assert!(ours < 0.97 * other, "{dtype} with importances: {ours} and {other}");
        if !matches!(dtype, DType::Q4_0 | DType::Q4_1 | DType::Q5_0 | DType::Q5_1) {
            let without = decoded(dtype, &encoded(dtype, &x, None), x.len());
            let (ours, other) = (error(&x, &without, |_| 1.0), error(&x, &theirs, |_| 1.0));
            assert!(ours < 0.97 * other, "{dtype} without: {ours} and {other}");
        }
    }
}

/// What was encoded is what was meant: bytes that are read back and encoded again lose next to nothing more.
#[test]
fn what_has_been_encoded_is_kept_when_it_is_encoded_again() {
    let x = weights(256 * 16, 3);
    for dtype in block_types() {
        let once = decoded(dtype, &encoded(dtype, &x, None), x.len());
        let twice = decoded(dtype, &encoded(dtype, &once, None), x.len());
        let (first, second) = (error(&x, &once, |_| 1.0), error(&once, &twice, |_| 1.0));
        assert!(second < 0.05 * first, "{dtype}: {first}, then {second}");
    }
}

#[test]
fn rows_at_the_edges_come_back_finite_and_near() {
    let n = 768;
    let bell = weights(n, 4);
    let rows: Vec<(&str, Vec<f32>)> = vec![
        ("zeros", vec![0.0; n]),
        ("minus zeros", vec![-0.0; n]),
        ("ones", vec![1.0; n]),
        ("minus ones", vec![-1.0; n]),
        ("largest", vec![LARGEST; n]),
        ("signs of the largest", (0..n).map(|i| if i % 3 == 0 { LARGEST } else { -LARGEST }).collect()),
        ("one of them", (0..n).map(|i| if i == 300 { LARGEST } else { 0.0 }).collect()),
        ("one in each block", (0..n).map(|i| if i % 32 == 31 { -0.01 } else { 0.0 }).collect()),
        ("tiny", bell.iter().map(|x| x * 1e-6).collect()),
        ("subnormal", bell.iter().map(|x| x * 1e-38).collect()),
        ("least", vec![f32::from_bits(1); n]),
        ("all sizes", bell.iter().enumerate().map(|(i, x)| x * 10f32.powi(i as i32 % 12 - 8)).collect()),
        ("positive", bell.iter().map(|x| x.abs()).collect()),
        ("negative", bell.iter().map(|x| -x.abs()).collect()),
        ("far from zero", bell.iter().map(|x| 100.0 + x).collect()),
        ("a ramp", (0..n).map(|i| i as f32 / 100.0).collect()),
    ];
    let importances = [None, Some(vec![1.0; n]), Some(vec![1e-30; n]), Some(vec![1e30; n])];
    let uneven: Vec<f32> = (0..n).map(|i| if i % 7 == 0 { 1e6 } else { 1e-6 }).collect();
    for dtype in block_types() {
        for (name, x) in &rows {
            let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for importance in importances.iter().map(Option::as_deref).chain([Some(&uneven[..])]) {
                let y = decoded(dtype, &encoded(dtype, x, importance), n);
                assert!(y.iter().all(|y| y.is_finite()), "{dtype}, {name}: {y:?}");
                // Nothing is further off than it is large, but for numbers below what f16 scales can be.
                // Where the last of eight signs follows from the others, one of them may be wrong; so may it with one bit.
                let coarse =
                    [DType::IQ2_XXS, DType::IQ2_XS, DType::IQ3_XXS, DType::IQ1_S, DType::IQ1_M].contains(&dtype);
                let limit = if coarse { 3.0 } else { 1.35 } * largest + 1e-6;
                let worst = x.iter().zip(&y).fold(0.0f32, |max, (x, y)| max.max((x - y).abs()));
                assert!(worst <= limit, "{dtype}, {name}: {worst} off, {largest}");
            }
            if largest == 0.0 {
                assert!(decoded(dtype, &encoded(dtype, x, None), n).iter().all(|&y| y == 0.0), "{dtype}, {name}");
            }
        }
    }
}

#[test]
fn blocks_do_not_depend_on_their_neighbours_or_on_instructions() {
    let x = weights(256 * 4, 5);
    let importance: Vec<f32> = (0..x.len()).map(|i| 1.0 + (i % 5) as f32).collect();
    for dtype in block_types() {
        for importance in [None, Some(&importance[..])] {
            let mut anywhere = vec![0; dtype.row_bytes(x.len()).unwrap()];
            encode_row_anywhere(dtype, &x, importance, &mut anywhere);
            assert_eq!(encoded(dtype, &x, importance), anywhere, "{dtype}");
        }
        let parts: Vec<u8> = x.chunks(dtype.block_len()).flat_map(|x| encoded(dtype, x, None)).collect();
        assert_eq!(encoded(dtype, &x, None), parts, "{dtype}");
    }
}

#[test]
fn floats_are_rounded_to_even() {
    let x = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -1e-8, 65504.0, 0.0];
    assert_eq!(decoded(DType::F16, &encoded(DType::F16, &x, None), 5), [1.0, 1.0 + 1.0 / 512.0, -0.0, 65504.0, 0.0]);
    assert_eq!(decoded(DType::F32, &encoded(DType::F32, &x, None), 5), x);
    let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
    assert_eq!(decoded(DType::BF16, &encoded(DType::BF16, &x, None), 2), [1.0, 1.0 + 1.0 / 64.0]);
}

#[test]
fn mixes_are_found_by_name() {
    assert_eq!(Mix::named("q4_k_m").unwrap().name, "Q4_K_M");
    assert_eq!(Mix::named("Q4_K").unwrap().name, "Q4_K_M");
    assert!(Mix::named("Q4").is_none() && Mix::named("").is_none());
    for mix in MIXES {
        assert_eq!(Mix::named(mix.name).unwrap().file_type, mix.file_type);
        assert!(is_encodable(mix.base), "{}", mix.name);
    }
    let mut numbers: Vec<u32> = MIXES.iter().map(|mix| mix.file_type).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), MIXES.len());
}
