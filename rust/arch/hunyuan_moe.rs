//! The mixtures of Hunyuan.

use super::{Architecture, ExpertDefaults, Gating, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "hunyuan-moe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::RotatedHeads);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
