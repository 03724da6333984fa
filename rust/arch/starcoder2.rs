//! StarCoder 2: LayerNorm, biases, and a feed-forward network without a gate.

use super::{Activation, Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "starcoder2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Layer)?;
        config.each_dense(|dense| (dense.activation, dense.gated) = (Activation::Gelu, false));
        Ok(config)
    },
};
