//! GLM 4: norms before and after each branch, half of a head is rotated.

use super::{Architecture, NormKind, Norms, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        config.set_norms(Norms::AROUND);
        Ok(config)
    },
};
