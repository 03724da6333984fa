//! EXAONE 4: norms after each branch, and of queries and keys. Where it has windows, the other layers have no rotation.

use super::{Architecture, Mask, NormKind, Norms, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "exaone4",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.set_norms(Norms::AFTER);
        let windows = keys.set_windows(&mut config, 4)?;
        config.each_attention(|_, attention| {
            attention.qk_norm = QkNorm::Heads;
            attention.rope = attention.rope.filter(|_| !windows || attention.mask != Mask::Causal);
        });
        Ok(config)
    },
};
