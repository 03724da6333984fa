//! EmbeddingGemma: Gemma 3 that sees to both sides.

use super::{Architecture, Norms, QkNorm};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma-embedding",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 6)?;
        keys.rotate_windows(&mut config)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        keys.see_all(&mut config)?;
        Ok(config)
    },
};
