//! dots.llm1: experts after some dense layers, chosen with a bias.

use super::{Architecture, ExpertDefaults, Gating, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "dots1",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        let first = keys.number("leading_dense_block_count")?.unwrap_or(0);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Sigmoid, normalized: false }, |i| i >= first)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
