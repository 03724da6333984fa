//! Phi 1 to 2: LayerNorm, biases, both branches side by side, and a feed-forward network without a gate.

use super::{Activation, Architecture, NormKind, Norms, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "phi2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Layer)?;
        config.set_norms(Norms::PARALLEL);
        config.each_dense(|dense| (dense.activation, dense.gated) = (Activation::Gelu, false));
        Ok(config)
    },
};
