//! Every kernel set against the scalar twin and against plain arithmetic, for every type, with all tails.

use std::path::Path;

use super::activations::Activations;
use super::matmul::{Matmul, matmul};
use super::*;
use crate::mapping::{Bytes, Mapping};
use crate::quant::{DType, dequantize};
use crate::tensor::TensorView;
use crate::threads::Interrupt;

const QUANTIZED: [DType; 13] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
];
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

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

/// A random matrix. Its f16 scales come from `scale`; everything else is any bits at all.
fn matrix(dtype: DType, rows: usize, n: usize, random: &mut Random, scale: &dyn Fn(&mut Random) -> f32) -> TensorView {
    let size = rows * dtype.row_bytes(n).unwrap();
    let mut bytes: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    let scales: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        match dtype {
            DType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            DType::F16 => block.copy_from_slice(&half::f16::from_f32(random.float()).to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.float()).to_le_bytes()),
            DType::MXFP4 => block[0] = (128 + scale(random).log2() as i32) as u8,
            _ => {
                for &at in scales {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale(random)).to_le_bytes());
                }
            }
        }
    }
    let mapping = Mapping::from_vec(bytes, Path::new("test"));
    TensorView::new(Bytes::new(&mapping, 0..size).unwrap(), dtype, &[n, rows]).unwrap()
}

/// Activations of `tokens` rows, quantised by `kernels`.
fn activations(kernels: &dyn Kernels, rows: &[Vec<f32>]) -> Activations {
    let mut x = Activations::default();
    x.reset(rows.len(), rows[0].len(), &[]);
    let to = x.rows();
    for (t, row) in rows.iter().enumerate() {
        // SAFETY: one thread.
        unsafe {
            to.x(t, 0..row.len()).copy_from_slice(row);
            if row.len().is_multiple_of(32) {
                to.quantize(kernels, t);
            }
        }
    }
    x
}

fn product(kernels: &dyn Kernels, threads: usize, w: &TensorView, x: &Activations) -> Vec<f32> {
    let mut out = vec![0.5; w.n_rows() * x.tokens()];
    matmul(kernels, threads, &Interrupt::never(), &[Matmul::new(&mut out, w, x)]);
    let mut twice = out.clone();
    matmul(kernels, threads, &Interrupt::never(), &[Matmul::add(&mut twice, w, x)]);
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
    for dtype in QUANTIZED {
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
            let expected = product(&scalar::Scalar, 1, &w, &activations(&scalar::Scalar, &rows_x));
            assert!(expected.iter().all(|x| x.fract() == 0.0 && x.abs() < 16_777_216.0));
            for kernels in all() {
                let got = product(kernels, 2, &w, &activations(kernels, &rows_x));
                assert_eq!(got, expected, "{} {dtype} {blocks} blocks, {rows} rows, {tokens} tokens", kernels.name());
            }
        }
    }
}

#[test]
fn products_equal_plain_arithmetic() {
    let mut random = Random(2);
    for dtype in QUANTIZED.into_iter().chain(FLOATS) {
        for (blocks, rows, tokens) in [(3, 34, 1), (6, 65, 3), (18, 33, 11)] {
            let n = if dtype.is_quantized() { row_length(dtype, blocks) } else { 37 * blocks + 1 };
            let scale = |r: &mut Random| (1.0 + r.float().abs()) / 64.0;
            let w = matrix(dtype, rows, n, &mut random, &scale);
            let rows_x: Vec<Vec<f32>> = (0..tokens).map(|_| (0..n).map(|_| random.float()).collect()).collect();
            let mut weights = vec![0.0; n];
            for kernels in all() {
                let x = activations(kernels, &rows_x);
                let got = product(kernels, 2, &w, &x);
                for r in 0..rows {
                    dequantize(dtype, w.row(r), &mut weights);
                    for t in 0..tokens {
                        let (mut sum, mut size) = (0.0f64, 0.0f64);
                        for k in 0..n {
                            let a = if dtype.is_quantized() {
                                // what the row was rounded to, from its definition
                                let group = &rows_x[t][k / 32 * 32..][..32];
                                let d = group.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
                                f64::from(d) * (f64::from(rows_x[t][k]) / f64::from(d)).round_ties_even()
                            } else {
                                f64::from(rows_x[t][k])
                            };
                            sum += f64::from(weights[k]) * a;
                            size += (f64::from(weights[k]) * a).abs();
                        }
                        let got = f64::from(got[t * rows + r]);
                        // A rounding to the other side at .5 is a 1/127 of one product.
                        let tolerance = size * if dtype.is_quantized() { 2e-4 } else { 1e-6 };
                        let name = kernels.name();
                        assert!((got - sum).abs() <= tolerance, "{name} {dtype} row {r} token {t}: {got} and {sum}");
                    }
                }
            }
        }
    }
}

#[test]
fn quantized_rows_have_the_sums_they_say() {
    let mut random = Random(3);
    for n in [32, 64, 96, 128, 160, 576, 1536] {
        let row: Vec<f32> = (0..n).map(|_| random.float() * 3.0).collect();
        let twin = activations(&scalar::Scalar, std::slice::from_ref(&row));
        for kernels in all() {
            let x = activations(kernels, std::slice::from_ref(&row));
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
            let out = product_unchecked(kernels, &w, &activations(kernels, &[row]));
            assert!(out.iter().all(|x| x.is_nan()), "{}: {out:?}", kernels.name());
        }
    }
}

fn product_unchecked(kernels: &dyn Kernels, w: &TensorView, x: &Activations) -> Vec<f32> {
    let mut out = vec![0.0; w.n_rows() * x.tokens()];
    matmul(kernels, 1, &Interrupt::never(), &[Matmul::new(&mut out, w, x)]);
    out
}

fn close(a: f32, b: f64, tolerance: f64) -> bool {
    (f64::from(a) - b).abs() <= tolerance * b.abs().max(1.0)
}

#[test]
fn norm_and_swiglu_equal_plain_arithmetic() {
    let mut random = Random(5);
    for n in (1..=67).chain([576, 2048]) {
        let x: Vec<f32> = (0..n).map(|_| random.float() * 4.0).collect();
        let w: Vec<f32> = (0..n).map(|_| random.float() * 40.0).collect();
        let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
        for kernels in all() {
            let mut out = vec![0.0; n];
            kernels.rms_norm(&mut out, &x, bytemuck::cast_slice(&w), 1e-5);
            for i in 0..n {
                let expected = f64::from(x[i]) / (square + 1e-5).sqrt() * f64::from(w[i]);
                assert!(close(out[i], expected, 1e-5), "{} norm {n}", kernels.name());
            }
            kernels.swiglu(&mut out, &w, &x);
            for i in 0..n {
                let g = f64::from(w[i]);
                let expected = g / (1.0 + (-g).exp()) * f64::from(x[i]);
                assert!(close(out[i], expected, 1e-6), "{} swiglu {n}: {} {expected}", kernels.name(), out[i]);
            }
        }
    }
}
