//! Gemma 2: norms around each branch, windows in every other layer, limits of scores and logits.

use super::{Architecture, Norms};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 2)?;
        let [softcap, logit_softcap] = keys.softcaps()?;
        let is_27b = config.n_layers() == 46;
        let dim = config.dim as f32;
        config.each_attention(|_, attention| {
            attention.softcap = softcap.or(Some(50.0));
            if is_27b {
                attention.scale = 1.0 / (dim / attention.n_heads as f32).sqrt();
            }
        });
        config.logit_softcap = logit_softcap.or(Some(30.0));
        Ok(config)
    },
};
