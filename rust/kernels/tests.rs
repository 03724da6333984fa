//! Every kernel set against the scalar twin and against plain arithmetic, for every type, with all tails.

use std::path::Path;

use super::activations::Activations;
use super::matmul::Matmul;
use super::*;
use crate::mapping::{Bytes, Mapping};
use crate::quant::{DType, dequantize};
use crate::tensor::TensorView;
use crate::threads::Interrupt;

/// The types that kernels compute with in blocks.
fn quantized() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|dtype| dtype.is_quantized())
}

/// All types that kernels compute with.
fn supported() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|dtype| dtype.is_supported())
}

/// A small generator: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// -1 to 1
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A random matrix. The scales of its blocks come from `scale`, times 8 where the integers are eighths of the weights or
/// the scales have fractions; everything else is any bits at all.
fn matrix(dtype: DType, rows: usize, n: usize, random: &mut Random, scale: &dyn Fn(&mut Random) -> f32) -> TensorView {
    let bytes = (0..rows * dtype.row_bytes(n).unwrap()).map(|_| random.next() as u8).collect();
    matrix_of(dtype, n, bytes, random, scale)
}

/// The same of these bytes, but for scales.
fn matrix_of(
    dtype: DType,
    n: usize,
    mut bytes: Vec<u8>,
    random: &mut Random,
    scale: &dyn Fn(&mut Random) -> f32,
) -> TensorView {
    let (size, rows) = (bytes.len(), bytes.len() / dtype.row_bytes(n).unwrap());
    let scales: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        _ => &[0],
    };
    let times = match dtype {
        DType::IQ1_S | DType::IQ1_M | DType::IQ2_XXS | DType::IQ2_XS | DType::IQ2_S | DType::IQ3_XXS => 8.0,
        _ => 1.0,
    };
    let scale_f16 = |random: &mut Random| half::f16::from_f32(times * scale(random)).to_le_bytes();
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        match dtype {
            DType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            DType::F16 => block.copy_from_slice(&half::f16::from_f32(random.float()).to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.float()).to_le_bytes()),
            DType::MXFP4 => block[0] = (128 + scale(random).log2() as i32) as u8,
            DType::NVFP4 => {
                // 8 to 15 times the scale, as far as exponents go
                let exponent = (11 + scale(random).log2() as i32).clamp(1, 14) as u8;
                block[..4].iter_mut().for_each(|byte| *byte = exponent << 3 | *byte & 7);
            }
            DType::IQ1_M => {
                let [low, high] = scale_f16(random);
                for (byte, nibble) in block[49..].iter_mut().step_by(2).zip([low & 15, low >> 4, high & 15, high >> 4])
                {
                    *byte = *byte & 15 | nibble << 4;
                }
            }
            _ => {
                for &at in scales {
                    block[at..at + 2].copy_from_slice(&scale_f16(random));
                }
            }
        }
    }
    let mapping = Mapping::from_vec(bytes, Path::new("test"));
    TensorView::new(Bytes::new(&mapping, 0..size).unwrap(), dtype, &[n, rows]).unwrap()
}

fn context<'a>(kernels: &'static dyn Kernels, threads: usize, interrupt: &'a Interrupt<'a>) -> Context<'a> {
    Context { kernels, threads, interrupt, observer: None, adapted: &[] }
}

/// Activations of these rows for `w`, made ready by `kernels`.
fn activations(kernels: &'static dyn Kernels, rows: &[Vec<f32>], w: &TensorView) -> Activations {
    let mut x = Activations::default();
    x.reset(rows.len(), rows[0].len(), &[w]);
    x.fill(&context(kernels, 1, &Interrupt::never()), &|t, row| row.copy_from_slice(&rows[t]));
    x
}

/// Random rows, of which the first `n` numbers are activations.
fn random_rows(tokens: usize, n: usize, random: &mut Random) -> Vec<Vec<f32>> {
    (0..tokens).map(|_| (0..n).map(|_| random.float()).collect()).collect()
}

fn product(kernels: &'static dyn Kernels, threads: usize, w: &TensorView, x: &Activations) -> Vec<f32> {
    let interrupt = Interrupt::never();
    let cx = context(kernels, threads, &interrupt);
    let mut out = vec![0.5; w.n_rows() * x.tokens()];
    cx.matmul(&[Matmul::new(&mut out, w, x)]);
    let mut twice = out.clone();
    cx.matmul(&[Matmul::add(&mut twice, w, x)]);
    let largest = out.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    for (a, b) in out.iter().zip(&twice) {
        assert!((2.0 * a - b).abs() <= 1e-5 * largest, "adding: {a} and {b}");
    }
    out
}

fn row_length(dtype: DType, blocks: usize) -> usize {
    blocks * dtype.block_len().max(32)
}

/// With scales of 1, all sums are integers below 2^24, which floats add exactly in any order:
/// every set has to give the same bits, in both ways through a matrix.
#[test]
fn integer_parts_equal_the_scalar_twin() {
    let mut random = Random(1);
    for dtype in quantized() {
        for (blocks, rows, tokens) in [
            (1usize, 5, 1),
            (2, 33, 2),
            (3, 7, 3),
            (4, 40, 4),
            (5, 64, 5),
            (7, 31, 6),
            (8, 65, 7),
            (9, 32, 13),
            (17, 9, 20),
            (70, 33, 12), // more than a strip unpacks at a time
        ] {
            let blocks = if dtype.block_len() == 256 { blocks.div_ceil(8) } else { blocks };
            let n = row_length(dtype, blocks);
            let w = matrix(dtype, rows, n, &mut random, &|_| 1.0);
            let rows_x: Vec<Vec<f32>> = (0..tokens)
                .map(|_| {
                    let mut x: Vec<f32> = (0..n).map(|_| ((random.next() % 41) as f32) - 20.0).collect();
                    x.iter_mut().step_by(32).for_each(|x| *x = 127.0); // a scale of exactly 1
                    x
                })
                .collect();
            let expected = product(&scalar::Scalar, 1, &w, &activations(&scalar::Scalar, &rows_x, &w));
            assert!(expected.iter().all(|x| x.fract() == 0.0 && x.abs() < 16_777_216.0));
            for kernels in all() {
                let got = product(kernels, 2, &w, &activations(kernels, &rows_x, &w));
                assert_eq!(got, expected, "{} {dtype} {blocks} blocks, {rows} rows, {tokens} tokens", kernels.name());
            }
        }
    }
}

/// Products are added in 16 bits as far as they are said to fit: blocks of equal bytes are every code, the largest as well,
/// and here every product of a row is positive.
#[test]
fn the_largest_sums_fit_into_their_integers() {
    let mut random = Random(12);
    for dtype in quantized() {
        let n = dtype.block_len().max(128);
        for byte in 0..=255 {
            let w = matrix_of(dtype, n, vec![byte; dtype.row_bytes(n).unwrap()], &mut random, &|_| 1.0);
            let mut weights = vec![0.0; n];
            dequantize(dtype, w.row(0), &mut weights);
            let signs: Vec<f32> = weights.iter().map(|w| 127.0f32.copysign(*w)).collect();
            for tokens in [1, 12] {
                let rows_x = vec![signs.clone(); tokens];
                let expected = product(&scalar::Scalar, 1, &w, &activations(&scalar::Scalar, &rows_x, &w));
                for kernels in all() {
                    let got = product(kernels, 1, &w, &activations(kernels, &rows_x, &w));
                    let near = got.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs());
                    assert!(near, "{} {dtype} of {byte}, {tokens} tokens: {got:?} and {expected:?}", kernels.name());
                }
            }
        }
    }
}

#[test]
fn products_equal_plain_arithmetic() {
    let mut random = Random(2);
    for dtype in supported() {
        for (blocks, rows, tokens) in [(3, 34, 1), (6, 65, 3), (18, 33, 11)] {
            let n = if dtype.is_quantized() { row_length(dtype, blocks) } else { 37 * blocks + 1 };
            let scale = |r: &mut Random| (1.0 + r.float().abs()) / 64.0;
            let w = matrix(dtype, rows, n, &mut random, &scale);
            let rows_x = random_rows(tokens, n, &mut random);
            // What a row was rounded to, from its definition.
            let rounded = |row: &Vec<f32>| -> Vec<f64> {
                let of_group = |group: &[f32]| {
                    let d = group.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
                    let d = f64::from(d);
                    group.iter().map(|x| d * (f64::from(*x) / d).round_ties_even()).collect::<Vec<_>>()
                };
                if dtype.is_quantized() {
                    row.chunks(32).flat_map(of_group).collect()
                } else {
                    row.iter().map(|x| f64::from(*x)).collect()
                }
            };
            let rounded: Vec<_> = rows_x.iter().map(rounded).collect();
            let results: Vec<_> =
                all().into_iter().map(|k| (k.name(), product(k, 2, &w, &activations(k, &rows_x, &w)))).collect();
            let mut weights = vec![0.0; n];
            for r in 0..rows {
                dequantize(dtype, w.row(r), &mut weights);
                for t in 0..tokens {
                    let (mut sum, mut size) = (0.0f64, 0.0f64);
                    for (w, x) in weights.iter().zip(&rounded[t]) {
                        sum += f64::from(*w) * x;
                        size += (f64::from(*w) * x).abs();
                    }
                    // A rounding to the other side at .5 is a 1/127 of one product.
                    let tolerance = size * if dtype.is_quantized() { 2e-4 } else { 1e-6 };
                    for (name, got) in &results {
                        let got = f64::from(got[t * rows + r]);
                        assert!((got - sum).abs() <= tolerance, "{name} {dtype} row {r} token {t}: {got} and {sum}");
                    }
                }
            }
        }
    }
}

fn job<'a>(accumulate: bool, out: &'a mut [f32], w: &'a TensorView, x: &'a Activations) -> Matmul<'a> {
    if accumulate { Matmul::add(out, w, x) } else { Matmul::new(out, w, x) }
}

/// A row's result may not depend on its company: not on the other rows and tokens, not on the way through the matrix, not
/// on which worker does what.
#[test]
fn results_have_the_same_bits_in_any_company() {
    let mut random = Random(8);
    for dtype in supported() {
        for round in 0..7 {
            let blocks = match round {
                0 => 70, // more than a strip unpacks at a time, and a tail
                1 => 128,
                _ => 1 + random.next() as usize % 40,
            };
            let n = match (dtype.is_quantized(), dtype.block_len()) {
                (false, _) => 37 * blocks + random.next() as usize % 40,
                (true, 256) => 256 * blocks.div_ceil(7),
                (true, len) => len * blocks,
            };
            let (rows, tokens) = (1 + random.next() as usize % 70, 1 + random.next() as usize % 40);
            let w = matrix(dtype, rows, n, &mut random, &|r| r.float() / 64.0);
            let rows_x = random_rows(tokens, n, &mut random);
            let before: Vec<f32> = (0..rows * tokens).map(|_| random.float()).collect();
            for (kernels, accumulate) in all().into_iter().flat_map(|k| [(k, false), (k, true)]) {
                let run = |threads: usize, x: &[Vec<f32>], before: &[f32]| {
                    let mut out = before.to_vec();
                    let x = activations(kernels, x, &w);
                    context(kernels, threads, &Interrupt::never()).matmul(&[job(accumulate, &mut out, &w, &x)]);
                    out
                };
                // One row of weights and one of activations at a time, each way through the matrix.
                let alone = |t: usize, r: usize, strip: bool| {
                    let w = w.rows(r..r + 1).unwrap();
                    let x = activations(kernels, &rows_x[t..t + 1], &w);
                    let mut out = [before[t * rows + r]];
                    // SAFETY: the one row and the one token are there, and so is one thread.
                    unsafe {
                        let job = job(accumulate, &mut out, &w, &x);
                        if strip { kernels.strip(&job, 0..1, 0..1) } else { kernels.rows(&job, 0..1) }
                    }
                    out[0].to_bits()
                };
                let name = format!("{} {dtype} n {n}, {rows} rows, {tokens} tokens", kernels.name());
                let expected = run(1, &rows_x, &before);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                for _ in 0..8 {
                    let (t, r) = (random.next() as usize % tokens, random.next() as usize % rows);
                    for strip in [false, true] {
                        assert_eq!(alone(t, r, strip), expected[t * rows + r].to_bits(), "{name} alone, strip {strip}");
                    }
                }
                // All at once, each way, and all cut up.
                for strip in [false, true] {
                    let (mut out, x) = (before.clone(), activations(kernels, &rows_x, &w));
                    let job = job(accumulate, &mut out, &w, &x);
                    for first in (0..rows).step_by(matmul::STRIP) {
                        let part = first..(first + matmul::STRIP).min(rows);
                        // SAFETY: these rows and tokens are there, and one thread.
                        unsafe { if strip { kernels.strip(&job, part, 0..tokens) } else { kernels.rows(&job, part) } }
                    }
                    assert_eq!(bits(&out), bits(&expected), "{name} at once, strip {strip}");
                }
                for threads in 1..=4 {
                    let mut cut = Vec::new();
                    let mut t = 0;
                    while t < tokens {
                        let end = (t + 1 + random.next() as usize % tokens).min(tokens);
                        cut.extend(run(threads, &rows_x[t..end], &before[t * rows..end * rows]));
                        t = end;
                    }
                    assert_eq!(bits(&cut), bits(&expected), "{name} in chunks, {threads} threads");
                }
            }
        }
    }
}

/// What a call does, or the message of its panic.
fn panic_of(f: impl FnOnce()) -> String {
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).expect_err("a panic");
    let message = panic.downcast::<String>().map(|message| *message);
    message.unwrap_or_else(|panic| (*panic.downcast::<&str>().expect("a message")).to_string())
}

#[test]
fn no_safe_call_makes_a_product_out_of_bounds() {
    let mut random = Random(9);
    let kernels = &scalar::Scalar;
    // A view that claims more than it has: 32 x 2^20 numbers over 128 bytes.
    let mapping = Mapping::from_vec(vec![0; 128], Path::new("test"));
    let bytes = Bytes::new(&mapping, 0..128).unwrap();
    assert!(TensorView::new(bytes.clone(), DType::F32, &[32, 1 << 20]).is_none());
    assert!(TensorView::new(bytes.clone(), DType::F32, &[1 << 33, 1 << 33]).is_none());
    assert!(TensorView::new(bytes, DType::F32, &[32, 1]).is_some());

    // Results that are not there. Their stride is the number of rows, and nobody can give another one.
    let w = matrix(DType::Q4_0, 5, 64, &mut random, &|_| 1.0);
    let x = activations(kernels, &random_rows(2, 64, &mut random), &w);
    let said = panic_of(|| _ = Matmul::new(&mut [0.0; 9], &w, &x));
    assert_eq!(said, "room for 9 results of a matmul of 5 rows with 2 tokens");
    let _ = Matmul::add(&mut [0.0; 10], &w, &x);

    // Rows of another length.
    let long = matrix(DType::Q4_0, 5, 96, &mut random, &|_| 1.0);
    let said = panic_of(|| _ = Matmul::new(&mut [0.0; 10], &long, &x));
    assert_eq!(said, "a matmul of rows of 96 with rows of 64");
    let said = panic_of(|| Activations::default().reset(2, 64, &[&long]));
    assert_eq!(said, "rows of 64 for a matrix with others");

    // Activations of which there can be no buffer.
    for (tokens, n) in [(usize::MAX, 2), (1 << 60, 1 << 60), (2, usize::MAX)] {
        let said = panic_of(|| Activations::default().reset(tokens, n, &[]));
        assert!(said.contains("fit into memory"), "{said}");
    }
}

#[test]
fn activations_are_ready_for_the_matrices_that_they_are_for() {
    let mut random = Random(10);
    let interrupt = Interrupt::never();
    let cx = context(&scalar::Scalar, 2, &interrupt);
    let blocks = matrix(DType::Q4_0, 3, 64, &mut random, &|_| 1.0);
    let floats = matrix(DType::F16, 3, 64, &mut random, &|_| 1.0);
    let (mut x, mut out) = (Activations::default(), [0.0; 6]);
    let said = |x: &Activations, w: &TensorView| panic_of(|| _ = Matmul::new(&mut [0.0; 6], w, x));
    x.reset(2, 64, &[&floats]);
    assert_eq!(said(&x, &floats), "activations that are not ready for F16");
    x.fill(&cx, &|t, row| row.fill(t as f32));
    assert_eq!(said(&x, &blocks), "activations that are not ready for Q4_0");
    cx.matmul(&[Matmul::new(&mut out, &floats, &x)]);
    x.reset(2, 64, &[&floats, &blocks]);
    x.x_mut().fill(1.0);
    assert_eq!(said(&x, &floats), "activations that are not ready for F16");
    x.finish(&cx);
    cx.matmul(&[Matmul::new(&mut out, &floats, &x)]);
    cx.matmul(&[Matmul::new(&mut out, &blocks, &x)]);
    assert_eq!((x.tokens(), x.n(), x.x(1)), (2, 64, &[1.0; 64][..]));
    x.x_mut().fill(2.0);
    assert_eq!(said(&x, &blocks), "activations that are not ready for Q4_0");
    // Another set has another order of the integers.
    x.finish(&cx);
    for kernels in all().into_iter().filter(|k| k.name() != "scalar") {
        let job = Matmul::new(&mut out, &blocks, &x);
        let said = panic_of(|| context(kernels, 1, &interrupt).matmul(&[job]));
        assert_eq!(said, format!("activations that {} quantized", kernels.name()));
    }
}

#[test]
fn rope_turns_pairs_of_either_style() {
    let mut random = Random(11);
    for pairs in [1, 2, 8, 16, 24, 32, 33, 64] {
        let x: Vec<f32> = (0..2 * pairs).map(|_| random.float()).collect();
        let angles: Vec<f64> = (0..pairs).map(|_| f64::from(random.float()) * 3.0).collect();
        let turns: Vec<[f32; 2]> = angles.iter().map(|a| [a.cos() as f32, a.sin() as f32]).collect();
        for kernels in all() {
            for style in [RopeStyle::Interleaved, RopeStyle::Half] {
                let mut out = x.clone();
                kernels.rope(&mut out, &turns, style);
                for (i, angle) in angles.iter().enumerate() {
                    let (a, b) = match style {
                        RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                        RopeStyle::Half => (i, i + pairs),
                    };
                    let (xa, xb) = (f64::from(x[a]), f64::from(x[b]));
                    let (sin, cos) = angle.sin_cos();
                    assert!(close(out[a], xa * cos - xb * sin, 1e-6), "{} {style:?} {pairs}", kernels.name());
                    assert!(close(out[b], xa * sin + xb * cos, 1e-6), "{} {style:?} {pairs}", kernels.name());
                }
            }
            panic_of(|| kernels.rope(&mut x.clone(), &turns[1..], RopeStyle::Half));
        }
    }
}

#[test]
fn quantized_rows_have_the_sums_they_say() {
    let mut random = Random(3);
    for n in [32, 64, 96, 128, 160, 576, 1536] {
        let row: Vec<f32> = (0..n).map(|_| random.float() * 3.0).collect();
        let w = matrix(DType::Q8_0, 1, n, &mut random, &|_| 1.0);
        let twin = activations(&scalar::Scalar, std::slice::from_ref(&row), &w);
        for kernels in all() {
            let x = activations(kernels, std::slice::from_ref(&row), &w);
            assert_eq!((x.d(0), x.bias16(0), x.bias32(0)), (twin.d(0), twin.bias16(0), twin.bias32(0)));
            assert_eq!((x.sum16(0), x.sum32(0)), (twin.sum16(0), twin.sum32(0)));
            let mut sorted = [x.qs(0).to_vec(), twin.qs(0).to_vec()];
            sorted.iter_mut().for_each(|qs| qs.sort_unstable());
            assert_eq!(sorted[0], sorted[1], "{}: the same integers in some order", kernels.name());
        }
    }
}

#[test]
fn a_nan_in_a_row_reaches_every_product() {
    let mut random = Random(4);
    let w = matrix(DType::Q4_0, 3, 64, &mut random, &|_| 1.0);
    for kernels in all() {
        for (at, bad) in (0..64).flat_map(|at| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|bad| (at, bad))) {
            let mut row = vec![1.0; 64];
            row[at] = bad;
            let out = product_unchecked(kernels, &w, &activations(kernels, &[row], &w));
            assert!(out.iter().all(|x| x.is_nan()), "{}: {out:?}", kernels.name());
        }
    }
}

fn product_unchecked(kernels: &'static dyn Kernels, w: &TensorView, x: &Activations) -> Vec<f32> {
    let mut out = vec![0.0; w.n_rows() * x.tokens()];
    context(kernels, 1, &Interrupt::never()).matmul(&[Matmul::new(&mut out, w, x)]);
    out
}

fn close(a: f32, b: f64, tolerance: f64) -> bool {
    (f64::from(a) - b).abs() <= tolerance * b.abs().max(1.0)
}

#[test]
fn norms_and_activations_equal_plain_arithmetic() {
    let mut random = Random(5);
    for n in (1..=67).chain([576, 2048]) {
        let x: Vec<f32> = (0..n).map(|_| random.float() * 4.0 + 1.0).collect();
        let w: Vec<f32> = (0..n).map(|_| random.float() * 40.0).collect();
        let b: Vec<f32> = (0..n).map(|_| random.float()).collect();
        let [w_view, b_view] = [&w, &b].map(|x| vector_of(x));
        let (w_numbers, b_numbers) = (Numbers::of(&w_view).unwrap(), Numbers::of(&b_view).unwrap());
        for kernels in all() {
            let mut out = vec![0.0; n];
            for kind in [NormKind::Rms, NormKind::Layer] {
                let mean =
                    if kind == NormKind::Rms { 0.0 } else { x.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64 };
                let square = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
                for (offset, with_w, with_b) in [(0.0, true, false), (1.0, true, true), (0.0, false, false)] {
                    let norm = Norm { kind, eps: 1e-5, offset };
                    kernels.norm(norm, &mut out, &x, with_w.then_some(w_numbers), with_b.then_some(b_numbers));
                    for i in 0..n {
                        let w = if with_w { f64::from(w[i]) + f64::from(offset) } else { 1.0 };
                        let b = if with_b { f64::from(b[i]) } else { 0.0 };
                        let expected = (f64::from(x[i]) - mean) / (square + 1e-5).sqrt() * w + b;
                        // A row of one or of equal numbers leaves the rounding of its mean.
                        assert!(close(out[i], expected, 2e-4), "{} {norm:?} {n}", kernels.name());
                    }
                }
            }
            let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluErf, Activation::Relu2, clamped] {
                for up in [Some(&x[..]), None] {
                    kernels.activate(activation, &mut out, &w, up);
                    for i in 0..n {
                        let expected = activated(activation, f64::from(w[i]), up.map_or(1.0, |up| f64::from(up[i])));
                        let name = kernels.name();
                        assert!(close(out[i], expected, 2e-6), "{name} {activation:?} {n}: {} {expected}", out[i]);
                    }
                }
            }
            out.copy_from_slice(&w);
            kernels.softcap(&mut out, 5.0);
            for i in 0..n {
                let expected = 5.0 * (f64::from(w[i]) / 5.0).tanh();
                assert!(close(out[i], expected, 1e-6), "{} softcap: {} {expected}", kernels.name(), out[i]);
            }
        }
    }
}

/// A vector as it lies in a file: F32.
fn vector_of(x: &[f32]) -> TensorView {
    let bytes = bytemuck::cast_slice(x).to_vec();
    let mapping = Mapping::from_vec(bytes, Path::new("test"));
    TensorView::new(Bytes::new(&mapping, 0..4 * x.len()).unwrap(), DType::F32, &[x.len()]).unwrap()
}

#[test]
fn a_norm_reads_weights_of_any_float_type() {
    let mut random = Random(21);
    for n in [5, 16, 35, 64] {
        let x: Vec<f32> = (0..n).map(|_| random.float()).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let w = matrix(dtype, 1, n, &mut random, &Random::float);
            let mut floats = vec![0.0; n];
            dequantize(dtype, w.row(0), &mut floats);
            let (same, norm) = (vector_of(&floats), Norm { kind: NormKind::Rms, eps: 1e-5, offset: 1.0 });
            for kernels in all() {
                let run = |w| {
                    let mut out = vec![0.0; n];
                    kernels.norm(norm, &mut out, &x, Numbers::of(w), None);
                    out
                };
                assert_eq!(run(&w), run(&same), "{} {dtype} {n}", kernels.name());
            }
        }
    }
}

fn activated(activation: Activation, x: f64, up: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()) * up,
        Activation::Gelu => {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0 * up
        }
        Activation::GeluErf => {
            // erf by Simpson's rule
            let (z, steps) = (x.abs().min(9.0) / 2f64.sqrt(), 2000);
            let f = |i: usize| (-(z * i as f64 / steps as f64).powi(2)).exp() * if i % 2 == 1 { 4.0 } else { 2.0 };
            let sum: f64 = (1..steps).map(f).sum::<f64>() + 1.0 + (-z * z).exp();
            let erf = 2.0 / std::f64::consts::PI.sqrt() * sum * z / steps as f64 / 3.0;
            x * (1.0 + erf * x.signum()) / 2.0 * up
        }
        Activation::Relu2 => x.max(0.0).powi(2) * up,
        Activation::ClampedSwiglu { alpha, limit } => {
            let (g, u) = (x.min(f64::from(limit)), up.clamp(f64::from(-limit), f64::from(limit)));
            g / (1.0 + (-f64::from(alpha) * g).exp()) * (u + 1.0)
        }
    }
}

#[test]
fn a_product_of_some_tokens_has_their_results_alone() {
    let mut random = Random(12);
    for kernels in all() {
        let interrupt = Interrupt::never();
        let cx = context(kernels, 2, &interrupt);
        for dtype in [DType::Q4_0, DType::F16] {
            let ws = [70, 33].map(|rows| matrix(dtype, rows, 64, &mut random, &Random::float));
            let x = activations(kernels, &random_rows(40, 64, &mut random), &ws[0]);
            let all: Vec<Vec<f32>> = ws.iter().map(|w| product_unchecked(kernels, w, &x)).collect();
            // of two matrices, one with few tokens and one with many, in one region
            let ranges = [3..5, 5..40];
            let mut outs: Vec<Vec<f32>> =
                ws.iter().zip(&ranges).map(|(w, r)| vec![0.0; r.len() * w.n_rows()]).collect();
            let jobs = outs.iter_mut().zip(&ws).zip(&ranges).map(|((out, w), r)| Matmul::of(out, w, &x, r.clone()));
            cx.matmul(&jobs.collect::<Vec<_>>());
            for ((out, all), (w, range)) in outs.iter().zip(&all).zip(ws.iter().zip(&ranges)) {
                assert!(*out == all[range.start * w.n_rows()..range.end * w.n_rows()], "{} {dtype}", kernels.name());
            }
        }
    }
}
