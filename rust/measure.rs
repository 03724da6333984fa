//! What the `bench` and `perplexity` commands measure.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sampling::Rng;
use crate::session::Session;
use crate::threads::Interrupt;

/// Tokens whose logits are held at a time: 128 of a vocabulary of 128k are 64 MiB.
const LOGITS_AT_A_TIME: usize = 128;

/// Times what llama-bench times, with random tokens and no sampling.
///
/// With `generate` false, one pass over `n` tokens from an empty context, logits of the last one only (`pp`);
/// with `generate` true, `n` passes over one token each from an empty context (`tg`). One round to warm up is not counted.
///
/// # Errors
/// As for [`Session::forward`].
pub fn bench(
    session: &mut Session,
    n: usize,
    generate: bool,
    rounds: usize,
    interrupt: &Interrupt,
) -> Result<Vec<Duration>> {
    if n == 0 || rounds == 0 {
        return Err(Error::Argument("a benchmark needs at least one token and one round".into()));
    }
    let vocab_size = session.model().config().vocab_size as u64;
    let mut rng = Rng::new(1);
    let mut tokens: Vec<u32> = Vec::new();
    let bytes = n as u128 * 4;
    tokens.try_reserve_exact(n).map_err(|_| Error::OutOfMemory { bytes, what: "tokens" })?;
    tokens.extend((0..n).map(|_| (rng.next_u64() % vocab_size) as u32));
    let mut times = Vec::new(); // of as many rounds as come to an end
    for round in 0..=rounds {
        session.truncate(0)?;
        let start = Instant::now();
        if generate {
            for token in &tokens {
                session.forward(std::slice::from_ref(token), interrupt)?;
            }
        } else {
            session.forward(&tokens, interrupt)?;
        }
        if round > 0 {
            times.push(start.elapsed());
        }
    }
    Ok(times)
}

/// Negative log-likelihood of each token from `first` on, given all before it, in nats.
///
/// # Errors
/// [`Error::Argument`] if `first` is 0 or past the end, [`Error::Numeric`] if logits are not finite; as for [`Session::forward`].
pub fn negative_log_likelihood(
    session: &mut Session,
    tokens: &[u32],
    first: usize,
    interrupt: &Interrupt,
) -> Result<Vec<f32>> {
    if first == 0 || first >= tokens.len() {
        return Err(Error::Argument(format!("the first token to score is {first}, it must be 1 to {}", tokens.len())));
    }
    session.truncate(0)?;
    let vocab_size = session.model().config().vocab_size;
    if first > 1 {
        session.forward(&tokens[..first - 1], interrupt)?;
    }
    let mut scores = Vec::with_capacity(tokens.len() - first);
    for at in (first - 1..tokens.len() - 1).step_by(LOGITS_AT_A_TIME) {
        let end = (at + LOGITS_AT_A_TIME).min(tokens.len() - 1);
        let logits = session.forward_all(&tokens[at..end], interrupt)?;
        for (logits, &next) in logits.chunks_exact(vocab_size).zip(&tokens[at + 1..]) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|l| f64::from((l - largest).exp())).sum();
            let score = total.ln() - (f64::from(logits[next as usize]) - f64::from(largest));
            if !score.is_finite() {
                let what =
                    format!("the logits after token {} are not numbers: a weight is damaged", scores.len() + first);
                return Err(Error::Numeric { path: session.model().checkpoint().path().to_path_buf(), what });
            }
            scores.push(score as f32);
        }
    }
    Ok(scores)
}
