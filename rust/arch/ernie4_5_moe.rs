//! The mixtures of ERNIE 4.5: experts in every so many layers after the first.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "ernie4_5-moe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        let first = keys.number("leading_dense_block_count")?.unwrap_or(0);
        let step = keys.number("interleave_moe_layer_step")?.unwrap_or(1).max(1);
        let has = |i: usize| i >= first && (i + 1).is_multiple_of(step);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, has)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
