//! How likely tokens are, by the model's own logits.

use std::path::PathBuf;

use super::request::{Choice, TokenLogprob};
use crate::error::{Error, Result};

/// How likely `token` is by these logits, at position `at`, and the `top` most likely ones.
///
/// # Errors
/// [`Error::Numeric`], of no file, if they are not numbers.
pub(super) fn logprob(logits: &[f32], token: u32, top: usize, at: usize) -> Result<TokenLogprob> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|l| f64::from((l - largest).exp())).sum();
    let of = |token_id: u32| {
        let logprob = f64::from(logits[token_id as usize]) - f64::from(largest) - total.ln();
        Choice { token_id, logprob: logprob as f32 }
    };
    let chosen = of(token);
    if !total.is_finite() || chosen.logprob.is_nan() {
        let what = format!("the logits after token {at} are not numbers: a weight is damaged");
        return Err(Error::Numeric { path: PathBuf::new(), what });
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n = top.min(ids.len());
    if n > 0 {
        ids.select_nth_unstable_by(n - 1, by_logit);
        ids[..n].sort_unstable_by(by_logit);
    }
    Ok(TokenLogprob { chosen, top: ids[..n].iter().map(|&id| of(id)).collect() })
}
