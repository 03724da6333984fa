//! Qwen 2 and 2.5, and what was distilled into them: biases of queries, keys and values, and half-split rotation.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    read: |keys| {
        keys.decoder(RopeStyle::Half, NormKind::Rms)
    },
};
