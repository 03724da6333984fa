//! The step of recurrent layers by itself: linear attention in chunks beside the recurrence as it is written down.
//!
//! ```text
//! cargo bench --bench recurrent                  as many threads as there are
//! cargo bench --bench recurrent -- 1             one thread
//! ```
//!
//! Shapes of Qwen 3.5: 16 key heads, 16 or 32 value heads, of 128. Tokens a second of all its recurrent layers; each layer
//! has a state of its own, so that a single token finds none of them in the caches.

#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use llama_rs::internals::kernels::{
    self, CHUNK, Context, KeyHead, LinearAttention, LinearHeads, LinearInputs, LinearSpan, Rule,
};
use llama_rs::internals::threads::{self, Disjoint, Interrupt};

const DIM: usize = 128;

fn main() {
    let threads = std::env::args().skip(1).find_map(|w| w.parse().ok()).unwrap_or_else(threads::available);
    println!("tokens a second of all layers, {threads} thread(s)");
    println!("{:36} {:>10} {:>10} {:>10}", "", "1 token", "8 tokens", "512 tokens");
    for (name, layers, n_heads) in [("0.8B: 18 layers, 16 heads", 18, 16), ("4B: 24 layers, 32 heads", 24, 32)] {
        let heads = LinearHeads {
            n_heads,
            n_key_heads: 16,
            key_dim: DIM,
            value_dim: DIM,
            rule: Rule::Delta,
            key_head: KeyHead::Modulo,
        };
        for kernels in kernels::all() {
            let rates = [1, 8, 512].map(|n| chunks(kernels, threads, heads, layers, n));
            println!(
                "{:36} {:>10.0} {:>10.0} {:>10.0}",
                format!("{name}, {}", kernels.name()),
                rates[0],
                rates[1],
                rates[2]
            );
        }
        let rates = [1, 8, 512].map(|n| recurrence(threads, heads, layers, n));
        println!("{:36} {:>10.0} {:>10.0} {:>10.0}", format!("{name}, token by token"), rates[0], rates[1], rates[2]);
    }
}

/// What `n` tokens bring to a layer.
struct Tokens {
    rows: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
}

impl Tokens {
    fn new(heads: LinearHeads, n: usize) -> Self {
        let stride = (2 * heads.n_key_heads + heads.n_heads) * DIM;
        let number = |i: usize| ((i * 7919) % 201) as f32 / 1000.0 - 0.1;
        let rows = (0..n * stride).map(number).collect();
        Self { rows, g: vec![-0.05; n * heads.n_heads], beta: vec![0.5; n * heads.n_heads] }
    }

    fn inputs(&self, heads: LinearHeads) -> LinearInputs<'_> {
        let keys = heads.n_key_heads * DIM;
        let stride = 2 * keys + heads.n_heads * DIM;
        LinearInputs { rows: &self.rows, stride, q: 0, k: keys, v: 2 * keys, g: &self.g, beta: &self.beta, scale: 0.1 }
    }
}

/// The best rate of a few rounds that compute `n` tokens each.
fn rate(n: usize, round: &mut dyn FnMut()) -> f64 {
    let (mut best, start) = (f64::INFINITY, Instant::now());
    let mut rounds = 0;
    while rounds < 3 || (start.elapsed().as_secs_f64() < 1.0 && rounds < 500) {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed().as_secs_f64());
        rounds += 1;
    }
    n as f64 / best
}

fn chunks(kernels: &'static dyn kernels::Kernels, threads: usize, heads: LinearHeads, layers: usize, n: usize) -> f64 {
    let interrupt = Interrupt::never();
    let cx = Context { kernels, threads, interrupt: &interrupt, observer: None, adapted: &[] };
    let tokens = Tokens::new(heads, n);
    let (state_len, tail_len) = (heads.state_len().expect("a size"), heads.tail_len().expect("a size"));
    // (state, tail, their next): as a sequence has them
    let mut all: Vec<[Vec<f32>; 4]> = (0..layers)
        .map(|_| [vec![0.0; state_len], vec![0.0; tail_len], vec![0.0; state_len], vec![0.0; tail_len]])
        .collect();
    let mut out = vec![0.0; n * heads.n_heads * DIM];
    let mut position = 0;
    // One token at a time is timed by the chunk: the last of a chunk writes the state.
    let passes = if n < CHUNK { CHUNK / n } else { 1 };
    rate(n * passes, &mut || {
        for _ in 0..passes {
            let filled = position % CHUNK;
            position += n;
            for [state, tail, next_state, next_tail] in &mut all {
                let full = filled + n >= CHUNK;
                let next = full.then_some((&mut next_state[..], &mut next_tail[..]));
                let span = LinearSpan { tokens: n, filled, state, tail, next, keep: None };
                LinearAttention::new(heads, tokens.inputs(heads), vec![span], &mut out).run(&cx);
                if full {
                    std::mem::swap(state, next_state);
                    std::mem::swap(tail, next_tail);
                }
            }
        }
        black_box(&out);
    })
}

/// Token by token: reads and writes the state for each.
fn recurrence(threads: usize, heads: LinearHeads, layers: usize, n: usize) -> f64 {
    let interrupt = Interrupt::never();
    let cx = Context {
        kernels: kernels::best().expect("kernels"),
        threads,
        interrupt: &interrupt,
        observer: None,
        adapted: &[],
    };
    let tokens = Tokens::new(heads, n);
    let state_len = heads.state_len().expect("a size");
    let mut all: Vec<Vec<f32>> = (0..layers).map(|_| vec![0.0; state_len]).collect();
    let mut out = vec![0.0; n * heads.n_heads * DIM];
    rate(n, &mut || {
        for state in &mut all {
            let (states, results) = (Disjoint::new(state), Disjoint::new(&mut out));
            cx.each(heads.n_heads, &|h| {
                // SAFETY: each head has its own state.
                let state = unsafe { states.slice(h * DIM * DIM..(h + 1) * DIM * DIM) };
                // SAFETY: each head has its own results.
                let result = |t: usize| unsafe {
                    results.slice((t * heads.n_heads + h) * DIM..(t * heads.n_heads + h + 1) * DIM)
                };
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the CPU has it.
                    return unsafe { avx512(state, &tokens, heads, h, n, &result) };
                }
                head(state, &tokens, heads, h, n, &result);
            });
        }
        black_box(&out);
    })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
fn avx512<'a>(
    s: &mut [f32],
    t: &Tokens,
    heads: LinearHeads,
    h: usize,
    n: usize,
    result: &dyn Fn(usize) -> &'a mut [f32],
) {
    head(s, t, heads, h, n, result);
}

#[inline(always)]
fn head<'a>(
    state: &mut [f32],
    tokens: &Tokens,
    heads: LinearHeads,
    h: usize,
    n: usize,
    result: &dyn Fn(usize) -> &'a mut [f32],
) {
    let LinearInputs { rows, stride, q, k, v, g, beta, scale } = tokens.inputs(heads);
    let key = h % heads.n_key_heads * DIM;
    for t in 0..n {
        let row = &rows[t * stride..(t + 1) * stride];
        let (q, k, v) = (&row[q + key..][..DIM], &row[k + key..][..DIM], &row[v + h * DIM..][..DIM]);
        let (decay, beta) = (g[t * heads.n_heads + h].exp(), beta[t * heads.n_heads + h]);
        let mut known = [0.0f32; DIM];
        for (s, &k) in state.chunks_exact(DIM).zip(k) {
            for x in 0..DIM {
                known[x] = s[x].mul_add(k, known[x]);
            }
        }
        let delta: [f32; DIM] = std::array::from_fn(|x| beta * (v[x] - decay * known[x]));
        let mut o = [0.0f32; DIM];
        for ((s, &k), &q) in state.chunks_exact_mut(DIM).zip(k).zip(q) {
            for x in 0..DIM {
                s[x] = delta[x].mul_add(k, s[x] * decay);
                o[x] = s[x].mul_add(q, o[x]);
            }
        }
        result(t).iter_mut().zip(o).for_each(|(out, o)| *out = o * scale);
    }
}
