//! Seed-OSS: biases of queries, keys and values; the second norm is named after what is before it.

use super::{Architecture, NormKind, Norms, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "seed_oss",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.set_norms(Norms::BEFORE_AS_POST);
        Ok(config)
    },
};
