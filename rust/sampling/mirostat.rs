//! Mirostat: keeps the text as surprising as one wants, by cutting more or less from token to token (Basu et al.,
//! "Mirostat: a neural text decoding algorithm that directly controls perplexity", 2021; version 2 as in llama.cpp).

use super::{Candidates, Rng, SamplingParams};

/// How many of the most likely tokens tell how fast probabilities fall; the paper's.
const M: usize = 100;

/// A draw that remembers how surprising its tokens were.
#[derive(Debug, Clone)]
pub struct Mirostat {
    version: usize,
    tau: f64, // wanted, in bits a token
    eta: f64, // how fast it learns
    mu: f64,  // the most surprise that is let through
}

impl Mirostat {
    /// The one that these parameters ask for.
    pub fn of(params: &SamplingParams) -> Option<Self> {
        let (tau, eta) = (f64::from(params.mirostat_tau), f64::from(params.mirostat_eta));
        (params.mirostat > 0).then_some(Self { version: params.mirostat, tau, eta, mu: 2.0 * tau })
    }

    /// Draws a token, of a vocabulary of so many.
    pub fn draw(&mut self, mut candidates: Candidates, vocab_size: usize, rng: &mut Rng) -> Option<u32> {
        if self.version == 1 {
            let k = self.k(&candidates.top_probabilities(M), vocab_size);
            candidates.keep_most_likely(k);
        } else {
            candidates.keep_surprise(self.mu);
        }
        let (id, p) = candidates.draw(rng)?;
        self.mu -= self.eta * (-p.log2() - self.tau);
        Some(id)
    }

    /// How many tokens have the surprise wanted, if probabilities fall as a power of the rank (Zipf's law).
    fn k(&self, top: &[f64], vocab_size: usize) -> usize {
        let (mut products, mut squares) = (0.0, 0.0);
        for (i, pair) in top.windows(2).enumerate() {
            let t = ((i + 2) as f64 / (i + 1) as f64).ln();
            let b = (pair[0] / pair[1]).ln();
            if b.is_finite() {
                products += t * b;
                squares += t * t;
            }
        }
        let s = products / squares;
        let epsilon = s - 1.0;
        let k = (epsilon * self.mu.exp2() / (1.0 - (vocab_size as f64).powf(-epsilon))).powf(1.0 / s);
        // Not a number where all of them are equally likely, or there is but one.
        if k.is_nan() { vocab_size.max(1) } else { k.clamp(1.0, vocab_size.max(1) as f64) as usize }
    }
}
