//! SmolLM 3: every fourth layer has no rotation.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "smollm3",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        config.each_attention(|i, attention| attention.rope = attention.rope.filter(|_| (i + 1) % 4 != 0));
        Ok(config)
    },
};
