//! Granite 3 and 4: four scales, and perhaps no rotation.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granite",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        keys.granite(&mut config)?;
        Ok(config)
    },
};
