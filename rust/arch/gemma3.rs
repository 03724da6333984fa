//! Gemma 3: norms around each branch and of queries and keys; five of six layers have windows and a rotation of their own.

use super::{Architecture, Norms, QkNorm};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 6)?;
        keys.rotate_windows(&mut config)?;
        let is_27b = config.n_layers() == 62;
        let dim = config.dim as f32;
        config.each_attention(|_, attention| {
            attention.qk_norm = QkNorm::Heads;
            if is_27b {
                attention.scale = 1.0 / (dim / attention.n_heads as f32).sqrt();
            }
        });
        config.logit_softcap = keys.softcaps()?[1];
        Ok(config)
    },
};
