//! The mixtures of Granite 3.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granitemoe",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        keys.granite(&mut config)?;
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
