//! The mixtures of Qwen 3.

use super::{Architecture, ExpertDefaults, Gating, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3moe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        Ok(config)
    },
};
