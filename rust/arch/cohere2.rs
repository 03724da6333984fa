//! Command R7B and A: Command R with windows; the layers without one have no rotation.

use super::{Architecture, Mask, NormKind, Norms, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "cohere2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Layer)?;
        config.set_norms(Norms::PARALLEL);
        config.logit_scale = keys.logit_scale()?.unwrap_or(1.0);
        keys.set_windows(&mut config, 4)?;
        config.each_attention(|_, attention| attention.rope = attention.rope.filter(|_| attention.mask != Mask::Causal));
        Ok(config)
    },
};
