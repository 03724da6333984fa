//! DeepSeek V2 and V3, Kimi K2, GLM 4.7 Flash: latent attention; experts after some dense layers, in groups.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "deepseek2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        keys.latent(&mut config)?;
        // Files of GLM 4.7 Flash do not say it; llama.cpp knows it by the same numbers.
        let is_glm = matches!(config.n_layers(), 46..=48) && config.vocab_size == 154_880;
        let gating = if is_glm { Gating::Sigmoid } else { Gating::Softmax };
        let first = keys.number("leading_dense_block_count")?.unwrap_or(0);
        keys.mixture(&mut config, ExpertDefaults { gating, normalized: false }, |i| i >= first)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
