//! What the `bench` command measures.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sampling::Rng;
use crate::session::Session;
use crate::threads::Interrupt;

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
