//! DeepSeek MoE of 2024: experts and a shared one, after some dense layers.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "deepseek",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        let first = keys.number("leading_dense_block_count")?.unwrap_or(0);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: false }, |i| i >= first)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
