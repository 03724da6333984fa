//! Qwen 3: norms of queries and keys. Its rerankers give the probability of "yes".

use super::{Architecture, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        config.ranking.softmax = true;
        Ok(config)
    },
};
