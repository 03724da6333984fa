//! The arithmetic: matmul, norm, rope, attention, activation.
//!
//! The integer kernels are written by hand for each instruction set, because tiles differ; each has a scalar
//! twin that computes the same integers. The float operations have one body over a [`vector::Vector`]. Which
//! set runs is decided once, by what the CPU has or by `LLAMA_RS_CPU`, which has the name of one, and called
//! through [`Kernels`] per strip of rows, never per block.
//!
//! The result of a row and a token has the same bits whatever else is computed beside it, on however many threads: each set
//! has one order of summation. Between sets the order differs.

pub mod activations;
mod attention;
mod conv;
mod linear_attention;
mod low_rank;
pub mod matmul;
mod ops;
mod scalar;
mod vector;

#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::quant::DType;
use crate::tensor::TensorView;
use crate::threads::{self, Interrupt, Queue};
use activations::{Activations, QuantizedRow};
pub use attention::{Attention, AttentionSpan, BLOCK, Heads, KV_TYPES, Mask, Scores, load_key, value_row, zero_key};
pub use conv::{Conv, ConvWeights, MAX_TAPS};
pub use linear_attention::{CHUNK, KeyHead, LinearAttention, LinearHeads, LinearInputs, LinearSpan, Rule};
pub use low_rank::{Adapted, Changes, LowRank, LowRanks};
use matmul::Matmul;

/// A set of kernels for one instruction set.
///
/// Only a set that the CPU can run can be had, from [`best`] or [`all`].
pub trait Kernels: Sync {
    /// `scalar`; `avx2`, `avxvnni` or `avx512`; `neon`, `neon_dotprod` or `neon_i8mm`.
    fn name(&self) -> &'static str;

    /// From this many tokens on, unpacking a strip of rows once for all is faster than unpacking each row for every few.
    fn strip_tokens(&self) -> usize;

    /// Quantises a row of activations, whose length is a multiple of 32.
    fn quantize(&self, x: &[f32], row: QuantizedRow);

    /// `out[t][r] (+)= w[r] . x[t]` for the given rows and all tokens of `job`; for a few tokens.
    ///
    /// # Safety
    /// - `rows` lies in the rows of the matrix.
    /// - No other worker writes the results of the same rows at the same time.
    unsafe fn rows(&self, job: &Matmul, rows: Range<usize>);

    /// The same, to the bit, for up to 32 rows and the given tokens; for a batch.
    ///
    /// # Safety
    /// - `rows` lies in the rows of the matrix, `tokens` in the tokens of the activations.
    /// - No other worker writes the results of the same rows and tokens at the same time.
    unsafe fn strip(&self, job: &Matmul, rows: Range<usize>, tokens: Range<usize>);

    /// `out = norm(x) * (w + offset) + b`.
    ///
    /// # Panics
    /// If the lengths differ.
    fn norm(&self, norm: Norm, out: &mut [f32], x: &[f32], w: Option<Numbers>, b: Option<Numbers>);

    /// `out[i] = activation(gate[i]) * up[i]`, or without the factor (GLU, Shazeer 2020).
    ///
    /// # Panics
    /// If the lengths differ.
    fn activate(&self, activation: Activation, out: &mut [f32], gate: &[f32], up: Option<&[f32]>);

    /// `x[i] = limit * tanh(x[i] / limit)` (Gemma 2).
    fn softcap(&self, x: &mut [f32], limit: f32);

    /// Rotates each pair `i` of numbers by the angle of `turns[i] = [cos, sin]` (RoPE, Su et al. 2021).
    ///
    /// # Panics
    /// If `x` does not have two numbers for each of `turns`.
    fn rope(&self, x: &mut [f32], turns: &[[f32; 2]], style: RopeStyle);

    /// Stores the key, rotated, and the value of position `slot` of a block: `layer` is the layer's part of the block, see
    /// [`Heads::layer_bytes`]; `key` and `value` have all heads, `(n_kv_heads, head_dim)`. Without a value only the key.
    /// Rounds to nearest even.
    ///
    /// # Panics
    /// If the shapes do not fit.
    fn store_kv(&self, heads: Heads, layer: &mut [u8], slot: usize, key: &[f32], value: Option<&[f32]>);

    /// Task `i` of an attention.
    ///
    /// # Safety
    /// - No other worker runs the same task.
    unsafe fn attention(&self, job: &Attention, i: usize);

    /// Task `i` of a convolution.
    ///
    /// # Safety
    /// - No other worker runs the same task.
    unsafe fn conv(&self, job: &Conv, i: usize);

    /// Task `i` of a linear attention.
    ///
    /// # Safety
    /// - No other worker runs the same task.
    unsafe fn linear_attention(&self, job: &LinearAttention, i: usize);

    /// `x[i] = x[i] / sqrt(sum(x^2) + eps)`.
    fn l2_norm(&self, x: &mut [f32], eps: f32);
}

/// Which numbers of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours: (0, 1), (2, 3), ... The order that GGUF's `llama` stores `wq` and `wk` in.
    Interleaved,
    /// One of each half: (0, n / 2), (1, n / 2 + 1), ... (NeoX).
    Half,
}

/// A norm of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// What is added to the mean of the squares.
    pub eps: f32,
    /// What is added to the weights. 1 in Hugging Face's files of Gemma, which keep `w` for `1 + w`.
    pub offset: f32,
}

/// A vector of floats as it lies in the file, of whatever type.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    bytes: &'a [u8],
    dtype: DType, // F32, F16 or BF16
}

impl<'a> Numbers<'a> {
    /// Those of a tensor; `None` if it is not of a float type.
    pub fn of(view: &'a TensorView) -> Option<Self> {
        let is_float = matches!(view.dtype(), DType::F32 | DType::F16 | DType::BF16);
        is_float.then(|| Self { bytes: view.bytes(), dtype: view.dtype() })
    }

    /// How many.
    fn len(self) -> usize {
        self.bytes.len() / if self.dtype == DType::F32 { 4 } else { 2 }
    }

    /// Number `i`.
    ///
    /// # Panics
    /// If there is no such number.
    pub fn get(self, i: usize) -> f32 {
        let at = |i: usize| u16::from_le_bytes(*self.bytes[2 * i..].first_chunk().expect("two bytes"));
        match self.dtype {
            DType::F32 => f32::from_le_bytes(*self.bytes[4 * i..].first_chunk().expect("four bytes")),
            DType::F16 => half::f16::from_bits(at(i)).to_f32(),
            _ => half::bf16::from_bits(at(i)).to_f32(),
        }
    }

    /// Those of a range.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(self, range: Range<usize>) -> Self {
        let size = if self.dtype == DType::F32 { 4 } else { 2 };
        Self { bytes: &self.bytes[size * range.start..size * range.end], ..self }
    }

    /// Writes all of them.
    ///
    /// # Panics
    /// If `out` is of another length.
    pub fn read(self, out: &mut [f32]) {
        crate::quant::dequantize(self.dtype, self.bytes, out);
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = f32> + use<'a> {
        (0..self.len()).map(move |i| self.get(i))
    }

    /// A register of those from `i` on.
    ///
    /// # Safety
    /// - The CPU has the features of `V`, and there are `V::LANES` numbers from `i` on.
    #[inline(always)]
    unsafe fn load<V: vector::Vector>(self, i: usize) -> V {
        let p = self.bytes.as_ptr();
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                DType::F32 => V::load(p.add(4 * i).cast()),
                DType::F16 => V::load_f16(p.add(2 * i).cast()),
                _ => V::load_bf16(p.add(2 * i).cast()),
            }
        }
    }
}

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps)` (RMSNorm, Zhang and Sennrich 2019).
    Rms,
    /// `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)` (Ba et al. 2016).
    Layer,
}

/// What the inner vector of a feed-forward network goes through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`, the approximation of Hendrycks and Gimpel 2016.
    Gelu,
    /// `x (1 + erf(x / sqrt(2))) / 2`
    GeluErf,
    /// `max(x, 0)^2` (So et al. 2021).
    Relu2,
    /// `g / (1 + exp(-alpha g)) * (u + 1)` with `g = min(x, limit)` and `u` the factor, cut to `-limit ..= limit` (gpt-oss).
    #[allow(missing_docs)]
    ClampedSwiglu { alpha: f32, limit: f32 },
}

/// What computes: kernels, workers, and whether to stop.
pub struct Context<'a> {
    /// The set.
    pub kernels: &'static dyn Kernels,
    /// Workers, the caller included.
    pub threads: usize,
    /// Asked now and then. When it says stop, what is being computed remains incomplete.
    pub interrupt: &'a Interrupt<'a>,
    /// Sees what matrices are multiplied with.
    pub observer: Option<&'a dyn Observer>,
    /// Rows of the batch for which matrices are changed: disjoint ones.
    pub adapted: &'a [Adapted<'a>],
}

/// Sees what matrices are multiplied with, to measure how important their columns are.
pub trait Observer: Send + Sync {
    /// `w` is about to be multiplied with the rows `tokens` of `x`.
    fn see(&self, w: &TensorView, x: &Activations, tokens: Range<usize>);
}

impl Context<'_> {
    /// Calls `f` for `0..n`, shared out among the workers, until the interrupt says stop.
    pub fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        let threads = self.threads.min(n);
        let queue = Queue::new(n, 1, threads);
        threads::run(threads, &|worker| {
            queue.run(worker, |chunk| {
                for i in chunk {
                    if !self.interrupt.poll(worker) {
                        f(i);
                    }
                }
            });
        });
    }

    /// Computes products that do not depend on each other, all of them with the same number of tokens.
    ///
    /// # Panics
    /// If the number of tokens differs, or if another set made the activations ready.
    pub fn matmul(&self, jobs: &[Matmul]) {
        if let Some(observer) = self.observer {
            jobs.iter().for_each(|job| observer.see(job.w, job.x, job.tokens.clone()));
        }
        matmul::matmul(self, jobs);
        if !self.adapted.is_empty() {
            low_rank::add(self, jobs);
        }
    }
}

/// The kernel sets that this CPU can run, slowest first.
pub fn all() -> Vec<&'static dyn Kernels> {
    #[allow(unused_mut)] // where there are no others
    let mut sets: Vec<&'static dyn Kernels> = vec![&scalar::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        sets.extend(avx2::Avx2::get().map(|k| k as &dyn Kernels));
        sets.extend(avx2::Avx2::with_vnni().map(|k| k as &dyn Kernels));
        sets.extend(avx512::Avx512::get().map(|k| k as &dyn Kernels));
    }
    #[cfg(target_arch = "aarch64")]
    {
        sets.push(neon::Neon::get());
        sets.extend(neon::Neon::with_dotprod().map(|k| k as &dyn Kernels));
        sets.extend(neon::Neon::with_i8mm().map(|k| k as &dyn Kernels));
    }
    sets
}

/// The fastest set, or the one that `LLAMA_RS_CPU` names.
///
/// # Errors
/// [`Error::Argument`] if the environment names one that does not exist or that the CPU cannot run.
pub fn best() -> Result<&'static dyn Kernels> {
    static BEST: OnceLock<std::result::Result<&'static dyn Kernels, String>> = OnceLock::new();
    let chosen = BEST.get_or_init(|| {
        let sets = all();
        match std::env::var("LLAMA_RS_CPU") {
            Ok(name) if !name.is_empty() => sets.iter().copied().find(|k| k.name() == name).ok_or_else(|| {
                let names: Vec<_> = sets.iter().map(|k| k.name()).collect();
                format!("LLAMA_RS_CPU={name}: this machine can run {}", names.join(", "))
            }),
            _ => Ok(*sets.last().expect("scalar is always there")),
        }
    });
    chosen.clone().map_err(Error::Argument)
}
