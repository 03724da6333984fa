//! Ministral 3, Devstral 2 and later models of Mistral: longer queries at far positions.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "mistral3",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        let temperature = keys.temperature(config.context_length)?;
        config.each_attention(|_, attention| attention.temperature = temperature);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        Ok(config)
    },
};
