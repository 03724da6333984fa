//! Qwen 3: norms of queries and keys.

use super::{Architecture, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        Ok(config)
    },
};
