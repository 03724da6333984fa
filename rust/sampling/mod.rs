//! From logits to a token.
//!
//! Sampling is a chain of steps, a file each. They come in the order of llama.cpp, or as one says: bias, penalties and DRY
//! change logits; `top_n_sigma`, `top_k`, `typical_p`, `top_p`, `min_p` and XTC cut; then comes the temperature, then one
//! draw. [`Candidates`] is what they work on. A new step is a file, a line in `chain.rs`, and rows in [`SamplingParams`]
//! for what can be said about it.

mod bias;
mod candidates;
mod chain;
mod dry;
mod min_p;
mod mirostat;
mod params;
mod penalties;
mod rng;
mod temperature;
#[cfg(test)]
mod tests;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

pub use candidates::{Candidates, log_probabilities, log_probability, log_total};
pub use chain::{History, SAMPLERS, Sampler, Step};
pub(crate) use params::parameters;
pub use params::{Field, Kind, Parameter, SamplingParams, Value};
pub use rng::Rng;
