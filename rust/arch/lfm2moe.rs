//! The mixtures of LFM2: experts after some dense layers, chosen with a bias.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "lfm2moe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.output_norm = Some("token_embd_norm");
        keys.set_windows(&mut config, 0)?;
        keys.short_convs(&mut config)?;
        let first = keys.number("leading_dense_block_count")?.unwrap_or(0);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Sigmoid, normalized: true }, |i| i >= first)?;
        Ok(config)
    },
};
