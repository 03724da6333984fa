//! MiniMax M2: norms of all queries and of all keys together; experts, chosen with a bias.

use super::{Architecture, ExpertDefaults, Gating, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "minimax-m2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::All);
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Sigmoid, normalized: true }, |_| true)?;
        Ok(config)
    },
};
