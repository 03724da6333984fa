//! Gemma 3: norms around each branch and of queries and keys; five of six layers have windows and a rotation of their own.

use super::{Architecture, Norms, QkNorm};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 6)?;
        keys.rotate_windows(&mut config)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        keys.gemma_27b(&mut config, 62)?;
        config.logit_softcap = keys.softcaps()?[1];
        Ok(config)
    },
};
