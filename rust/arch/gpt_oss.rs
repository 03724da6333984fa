//! gpt-oss: sinks, windows in every other layer, clamped experts with biases.

use super::{Activation, Architecture, ExpertDefaults, Gating, NormKind, Norms, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gpt-oss",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.set_norms(Norms::BEFORE_AS_POST);
        keys.set_windows(&mut config, 2)?;
        config.each_attention(|_, attention| attention.sinks = true);
        let activation = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
        config.each_dense(|dense| dense.activation = activation);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::SoftmaxOfChosen, normalized: false }, |_| true)?;
        Ok(config)
    },
};
