//! Nemotron and Minitron: LayerNorm, and a feed-forward network without a gate.

use super::{Activation, Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "nemotron",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Layer)?;
        config.each_dense(|dense| (dense.activation, dense.gated) = (Activation::Relu2, false));
        Ok(config)
    },
};
