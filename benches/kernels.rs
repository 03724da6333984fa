//! The kernels against the machine's own limits, measured in the same run.
//!
//! ```text
//! cargo bench --bench kernels                      all sets and types, all threads
//! cargo bench --bench kernels -- avx512 Q4_0 2     only these; the last is the number of threads
//! cargo bench --bench kernels -- Q5_0 row=576      rows of so many weights, not 2048
//! cargo bench --bench kernels -- avx2 tokens=1     batches of so many tokens; may be said more than once
//! cargo bench --bench kernels -- cached avx2       one thread, weights in its cache: what the instructions cost
//! cargo bench --bench kernels -- attention         of one token, over the keys and values of 4096 tokens and 24 layers
//! cargo bench --bench kernels -- attention 9/3x64  of a model with 9 heads, 3 of keys, of 64 numbers
//! ```
//!
//! Limits: bytes a second that loads read from a mapped file, multiply-adds a second of a loop that does nothing else, in
//! int8 and in f32. Each figure is printed as a share of the limit that is nearer: bytes for a token or a few, multiply-adds
//! for a batch. Medians of `ROUNDS`, limits and kernels in turns: on a shared machine both drift together. With `cached` the
//! shortest of many short runs count: nothing that others do makes a run shorter. What it prints first, GB/s of weights for
//! one token, is what the kernels could keep up with: where it is above what a core can read, the memory is the limit.
//! `attention` prints GB/s of keys and values for one token, and their share of what is read of memory; and the share of the
//! float peak that the last 128 tokens of a prompt reach. With `cached`, of one layer and 256 positions over and over, of one
//! thread: GB/s and GMAC/s.

#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use llama_rs::internals::kernels::activations::Activations;
use llama_rs::internals::kernels::matmul::Matmul;
use llama_rs::internals::kernels::{
    self, Attention, AttentionSpan, BLOCK, Context, Heads, KV_TYPES, Kernels, Mask, Scores,
};
use llama_rs::internals::kv::Block;
use llama_rs::internals::mapping::{Bytes, Mapping, Memory};
use llama_rs::internals::quant::DType;
use llama_rs::internals::tensor::TensorView;
use llama_rs::internals::threads::{self, Interrupt};

const ROUNDS: usize = 7;
const ROW: usize = 2048;
/// Larger than the caches that a core can hope for.
const MATRIX_BYTES: usize = 256 << 20;
/// Rows of the matrix that a large batch is multiplied with: the feed-forward of a model of a billion weights.
const BATCH_ROWS: usize = 8192;
const BATCHES: [usize; 6] = [1, 2, 4, 8, 16, 512];
/// With `cached`: a matrix of so many bytes stays in the L2 cache.
const CACHED_BYTES: usize = 256 << 10;
/// Tokens of a prompt's attention.
const PROMPT: usize = 128;
const CACHED_BATCHES: [usize; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 128, 512];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let threads = words.iter().find_map(|w| w.parse().ok()).unwrap_or_else(threads::available);
    let wanted = |name: &str, known: &[&str]| {
        let named: Vec<_> = words.iter().filter(|w| known.contains(&w.as_str())).collect();
        named.is_empty() || named.iter().any(|w| *w == name)
    };
    let row = words.iter().find_map(|w| w.strip_prefix("row=")?.parse().ok()).unwrap_or(ROW);
    let sets = kernels::all();
    let set_names: Vec<_> = sets.iter().map(|k| k.name()).collect();
    let types: Vec<_> = DType::ALL.iter().copied().filter(|t| t.is_supported() && t.row_bytes(row).is_some()).collect();
    let type_names: Vec<_> = types.iter().map(|t| t.name()).collect();

    let is_cached = words.iter().any(|w| w == "cached");
    let mut batches: Vec<usize> = words.iter().filter_map(|w| w.strip_prefix("tokens=")?.parse().ok()).collect();
    if batches.is_empty() {
        batches = if is_cached { CACHED_BATCHES.to_vec() } else { BATCHES.to_vec() };
    }
    if words.iter().any(|w| w == "attention") {
        let file = (!is_cached).then(|| mapped_file(&vec![1; MATRIX_BYTES]));
        let file = file.as_ref().map(|file| file.as_slice());
        for set in sets.iter().filter(|k| k.name() != "scalar" && wanted(k.name(), &set_names)) {
            for kv_type in KV_TYPES.into_iter().filter(|t| wanted(t.name(), &type_names)) {
                attention(*set, kv_type, file, threads, &words);
            }
        }
        return;
    }
    if is_cached {
        for set in sets.iter().filter(|k| wanted(k.name(), &set_names)) {
            for &dtype in types.iter().filter(|t| wanted(t.name(), &type_names)) {
                cached(*set, dtype, row, &batches);
            }
        }
        return;
    }

    let file = mapped_file(&vec![1; MATRIX_BYTES]);
    for n in 1..=threads {
        let rate = median((0..ROUNDS).map(|_| read_rate(file.as_slice(), n)));
        println!("read of a mapped file, {n} thread(s): {:.1} GB/s", rate / 1e9);
    }
    for set in &sets {
        if wanted(set.name(), &set_names) {
            let [int8, f32] = [peak_int8, peak_f32].map(|peak| median((0..ROUNDS).map(|_| peak(set.name(), threads))));
            let (int8, f32) = (int8 / 1e9, f32 / 1e9);
            println!("{} peak, {threads} thread(s): {int8:.0} int8 GMAC/s, {f32:.0} f32 GMAC/s", set.name());
        }
    }

    println!(
        "\nGMAC/s and share of the limit\n{:8} {:8} {}",
        "set",
        "type",
        batches.iter().map(|b| format!("{b:>7} tokens")).collect::<String>()
    );
    for set in sets.iter().filter(|k| wanted(k.name(), &set_names)) {
        // The scalar set is the reference, not a way to compute: a smaller matrix shows as much.
        let smaller = if set.name() == "scalar" { 64 } else { 1 };
        for &dtype in types.iter().filter(|t| wanted(t.name(), &type_names)) {
            let row_bytes = dtype.row_bytes(row).expect("types were chosen so");
            let large = matrix(dtype, MATRIX_BYTES / smaller / row_bytes, row);
            let small = matrix(dtype, BATCH_ROWS / smaller, row);
            let peak = if dtype.is_quantized() { peak_int8 } else { peak_f32 };
            print!("{:8} {:8} ", set.name(), dtype.name());
            for &tokens in &batches {
                let w = if tokens > 16 { &small } else { &large };
                let macs = (w.n_rows() * row * tokens) as f64;
                let (mut rates, mut shares) = (Vec::new(), Vec::new());
                for _ in 0..ROUNDS {
                    let read = w.bytes().len() as f64 / read_rate(file.as_slice(), threads);
                    let compute = macs / peak(set.name(), threads);
                    let seconds = time(*set, threads, w, tokens);
                    rates.push(macs / seconds);
                    shares.push(read.max(compute) / seconds);
                }
                print!("{:>8.0} {:>3.0} % ", median(rates) / 1e9, 100.0 * median(shares));
                std::io::stdout().flush().expect("standard output is there");
            }
            println!();
        }
    }
}

/// GB/s of weights for one token, then GMAC/s and their share of the peak for batches, of one thread and a matrix in its cache.
fn cached(set: &'static dyn Kernels, dtype: DType, row: usize, batches: &[usize]) {
    let row_bytes = dtype.row_bytes(row).expect("types were chosen so");
    let w = matrix(dtype, CACHED_BYTES / row_bytes / 32 * 32, row);
    let peak = if dtype.is_quantized() { peak_int8 } else { peak_f32 };
    let peak = (0..20).map(|_| peak(set.name(), 1)).fold(0.0, f64::max);
    for &tokens in batches {
        let seconds =
            (0..if tokens > 32 { 2 } else { 10 }).map(|_| time(set, 1, &w, tokens)).fold(f64::INFINITY, f64::min);
        let rate = (w.n_rows() * row * tokens) as f64 / seconds;
        if tokens == 1 {
            print!("{:8} {:8} {:>5.1} GB/s", set.name(), dtype.name(), w.bytes().len() as f64 / seconds / 1e9);
        }
        print!("  {tokens}: {:.0} ({:.0} %)", rate / 1e9, 100.0 * rate / peak);
        std::io::stdout().flush().expect("standard output is there");
    }
    println!();
}

/// Attention of one token and of a prompt, for as many query heads a key head as models have: beside what is read of `file`,
/// or, without one, in the cache.
fn attention(kernels: &'static dyn Kernels, kv_type: DType, file: Option<&[u8]>, threads: usize, words: &[String]) {
    let (layers, depth, threads) = if file.is_none() { (1, 4 * BLOCK, 1) } else { (24, 4096, threads) };
    let interrupt = Interrupt::never();
    let cx = Context { kernels, threads, interrupt: &interrupt, observer: None, adapted: &[] };
    let scores = Scores { scale: 0.125, softcap: None, alibi: None, mask: Mask::Causal, sinks: None };
    print!("{:8} {:5}", kernels.name(), kv_type.name());
    // The last is latent attention: values are the last 512 numbers of the keys.
    let shapes = [(1, 8, 64), (3, 3, 64), (4, 8, 64), (4, 4, 128), (8, 4, 128), (16, 1, 576)];
    let name = |(group, n_kv_heads, head_dim)| format!("{}/{n_kv_heads}x{head_dim}", group * n_kv_heads);
    let any = shapes.iter().any(|&shape| words.contains(&name(shape)));
    for shape in shapes.into_iter().filter(|&shape| !any || words.contains(&name(shape))) {
        let (group, n_kv_heads, head_dim) = shape;
        let n_heads = group * n_kv_heads;
        let values_in_keys = head_dim == 576;
        let value_dim = if values_in_keys { 512 } else { head_dim };
        let heads = Heads { n_heads, n_kv_heads, head_dim, value_dim, values_in_keys, kv_type };
        let layer = heads.layer_bytes().expect("whole blocks");
        let memory = Memory::zeroed(layer * layers * depth / BLOCK).expect("memory");
        let mut blocks: Vec<Block> = Block::cut(memory, layer * layers).collect();
        blocks.iter_mut().for_each(|block| block.bytes_mut().fill(0x21));
        let n = PROMPT * n_heads;
        let (q, mut out, mut parts) = (vec![0.1; n * head_dim], vec![0.0; n * value_dim], Vec::new());
        let bytes = (layers * layer * depth / BLOCK) as f64;
        let macs = (layers * n_heads * (head_dim + value_dim) * PROMPT * (2 * depth - PROMPT) / 2) as f64;
        let mut seconds = |tokens: usize, turns: usize| {
            let (q, out) = (&q[..tokens * n_heads * head_dim], &mut out[..tokens * n_heads * value_dim]);
            let start = Instant::now();
            for i in 0..layers * turns {
                let at = i % layers * layer;
                let blocks = blocks.iter().map(|block| &block.bytes()[at..at + layer]).collect();
                let span = AttentionSpan { tokens, start: depth - tokens, blocks };
                Attention::new(heads, scores, q, vec![span], out, &mut parts).run(&cx);
            }
            start.elapsed().as_secs_f64() / turns as f64
        };
        print!("   {}:", name(shape));
        if let Some(file) = file {
            let (mut rates, mut shares, mut batches) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..2 * ROUNDS {
                rates.push(bytes / seconds(1, 1));
                shares.push(rates[rates.len() - 1] / read_rate(file, threads));
            }
            for _ in 0..ROUNDS {
                batches.push(macs / seconds(PROMPT, 1) / peak_f32(kernels.name(), threads));
            }
            let [rate, share, batch] = [rates, shares, batches].map(median);
            print!(" {:.1} GB/s ({:.0} %), {:.0} %", rate / 1e9, 100.0 * share, 100.0 * batch);
        } else {
            let [token, prompt] = [(1, 1000), (PROMPT, 10)]
                .map(|(tokens, turns)| (0..3 * ROUNDS).map(|_| seconds(tokens, turns)).fold(f64::INFINITY, f64::min));
            print!(" {:.1} GB/s, {:.0} GMAC/s", bytes / token / 1e9, macs / prompt / 1e9);
        }
        std::io::stdout().flush().expect("standard output is there");
    }
    println!();
}

/// Seconds of a product of `w` with `tokens` rows: the shortest time of a few that take a while together.
fn time(kernels: &'static dyn Kernels, threads: usize, w: &TensorView, tokens: usize) -> f64 {
    let interrupt = Interrupt::never();
    let cx = Context { kernels, threads, interrupt: &interrupt, observer: None, adapted: &[] };
    let mut x = Activations::default();
    x.reset(tokens, w.row_len(), &[w]);
    for (i, x) in x.x_mut().iter_mut().enumerate() {
        *x = ((i * 7919) % 201) as f32 / 100.0 - 1.0;
    }
    x.finish(&cx);
    let mut out = vec![0.0; tokens * w.n_rows()];
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < 3 || (start.elapsed().as_secs_f64() < 0.03 && times.len() < 20) {
        let start = Instant::now();
        cx.matmul(&[Matmul::new(&mut out, w, &x)]);
        times.push(start.elapsed().as_secs_f64());
    }
    black_box(&out);
    times.into_iter().fold(f64::INFINITY, f64::min)
}

/// A matrix of `rows` rows with the same few blocks over and over: values do not matter here, but that they are finite, and
/// that no scale is so small (MXFP4) that products are subnormal: those take a hundred cycles each.
fn matrix(dtype: DType, rows: usize, row: usize) -> TensorView {
    let size = rows * dtype.row_bytes(row).expect("whole blocks");
    let bytes: Vec<u8> =
        (0..size).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] & 0x1b | 0x20).collect();
    let mapping = mapped_file(&bytes);
    TensorView::new(Bytes::new(&mapping, 0..size).expect("in range"), dtype, &[row, rows]).expect("as many bytes")
}

/// A mapped file, as weights are: its pages may be larger than those of other memory, and are read faster then.
fn mapped_file(bytes: &[u8]) -> std::sync::Arc<Mapping> {
    let path = std::env::temp_dir().join(format!("llama_rs-bench-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("room for a temporary file");
    let mapping = Mapping::open(&path).expect("it was just written");
    std::fs::remove_file(&path).expect("it was just written");
    mapping
}

/// Bytes a second that `threads` threads read from `data`.
fn read_rate(data: &[u8], threads: usize) -> f64 {
    let start = Instant::now();
    let part = data.len() / threads / 4096 * 4096;
    threads::run(threads, &|worker| read(&data[worker * part..(worker + 1) * part]));
    (part * threads) as f64 / start.elapsed().as_secs_f64()
}

fn read(data: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has the feature.
        return unsafe { x86::read_avx2(data) };
    }
    let words: &[[u64; 8]] = bytemuck::cast_slice(data);
    let mut sums = [0u64; 8];
    for word in words {
        for (sum, x) in sums.iter_mut().zip(word) {
            *sum = sum.wrapping_add(*x);
        }
    }
    black_box(sums);
}

/// Multiply-adds a second of `threads` threads that each run `work`, which does `macs` of them.
fn rate(threads: usize, macs: f64, work: &(dyn Fn() + Sync)) -> f64 {
    let start = Instant::now();
    threads::run(threads, &|_| work());
    macs * threads as f64 / start.elapsed().as_secs_f64()
}

const TURNS: usize = 400_000;

fn peak_int8(set: &str, threads: usize) -> f64 {
    match set {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the set can be had, so the CPU has its features.
        "avx512" => rate(threads, (TURNS * 12 * 64) as f64, &|| unsafe { x86::int8_avx512() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "avxvnni" => rate(threads, (TURNS * 12 * 32) as f64, &|| unsafe { x86::int8_avxvnni() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "avx2" => rate(threads, (TURNS * 8 * 32) as f64, &|| unsafe { x86::int8_avx2() }),
        _ => rate(threads, (TURNS * 16) as f64, &|| {
            let mut sums = [0i32; 16];
            for i in 0..TURNS as i32 {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.wrapping_add(black_box(i).wrapping_mul(j as i32));
                }
            }
            black_box(sums);
        }),
    }
}

fn peak_f32(set: &str, threads: usize) -> f64 {
    match set {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the set can be had, so the CPU has its features.
        "avx512" => rate(threads, (TURNS * 12 * 16) as f64, &|| unsafe { x86::f32_avx512() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        "avx2" | "avxvnni" => rate(threads, (TURNS * 12 * 8) as f64, &|| unsafe { x86::f32_avx2() }),
        _ => rate(threads, (TURNS * 16) as f64, &|| {
            let mut sums = [0f32; 16];
            for i in 0..TURNS {
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum += black_box(i as f32) * j as f32;
                }
            }
            black_box(sums);
        }),
    }
}

/// Loops of nothing but multiply-adds: enough chains that latency does not show.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{TURNS, black_box};
    use std::arch::x86_64::*;

    /// Reads with prefetches across the borders of pages, where the hardware stops.
    #[target_feature(enable = "avx2")]
    pub fn read_avx2(data: &[u8]) {
        let mut sums = [_mm256_setzero_si256(); 4];
        for lines in data.chunks_exact(128) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 32 of 128 bytes; what is prefetched need not be there.
                unsafe {
                    if i < 2 {
                        _mm_prefetch::<_MM_HINT_T0>(lines.as_ptr().wrapping_add(8192 + 64 * i).cast());
                    }
                    *sum = _mm256_add_epi64(*sum, _mm256_loadu_si256(lines[32 * i..].as_ptr().cast()));
                }
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512vnni")]
    pub fn int8_avx512() {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub fn f32_avx512() {
        let (a, b) = (black_box(_mm512_set1_ps(3.0)), black_box(_mm512_set1_ps(0.5)));
        let mut sums = [_mm512_setzero_ps(); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub fn int8_avxvnni() {
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
        let mut sums = [_mm256_setzero_si256(); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    pub fn int8_avx2() {
        let (a, one) = (black_box(_mm256_set1_epi8(3)), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..TURNS {
            for sum in &mut sums {
                // black_box would cost a store: the sum itself as an operand keeps the product in the loop
                let pairs = _mm256_maddubs_epi16(a, *sum);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, one));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn f32_avx2() {
        let (a, b) = (black_box(_mm256_set1_ps(3.0)), black_box(_mm256_set1_ps(0.5)));
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..TURNS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }
}

/// The middle one.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
