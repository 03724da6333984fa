//! Command R: LayerNorm, and both branches side by side. Command R+ also norms queries and keys.

use super::{Architecture, NormKind, Norms, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "command-r",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Layer)?;
        config.set_norms(Norms::PARALLEL);
        if keys.has_tensor("blk.0.attn_q_norm.weight") {
            config.each_attention(|_, attention| attention.qk_norm = QkNorm::OwnHeads);
        }
        config.logit_scale = keys.logit_scale()?.unwrap_or(1.0);
        Ok(config)
    },
};
