//! The mixtures of Qwen 1.5 and 2: weights that are not normalized, and a gated shared expert.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2moe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: false }, |_| true)?;
        keys.share(&mut config, true)?;
        Ok(config)
    },
};
