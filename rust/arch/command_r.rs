//! Command R: LayerNorm, and both branches side by side.

use super::{Architecture, NormKind, Norms, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "command-r",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Layer)?;
        config.set_norms(Norms::PARALLEL);
        config.logit_scale = keys.logit_scale()?.unwrap_or(1.0);
        Ok(config)
    },
};
