//! GLM 4.5 to 4.7: experts after some dense layers, chosen with a bias.

use super::{Architecture, ExpertDefaults, Gating, NormKind, Norms, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4moe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.set_norms(Norms::BEFORE_AS_POST);
        if keys.has_tensor("blk.0.attn_q_norm.weight") {
            config.each_attention(|_, attention| attention.qk_norm = QkNorm::Heads);
        }
        let first = keys.number("leading_dense_block_count")?.unwrap_or(0);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Sigmoid, normalized: true }, |i| i >= first)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
