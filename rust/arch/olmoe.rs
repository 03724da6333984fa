//! OLMoE: norms of all queries and all keys, experts whose weights are not normalized.

use super::{Architecture, ExpertDefaults, Gating, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmoe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::All);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: false }, |_| true)?;
        Ok(config)
    },
};
