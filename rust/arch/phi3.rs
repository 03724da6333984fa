//! Phi 3 to 4: fused tensors, heads that are rotated in part, and two sets of factors for short and long contexts.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "phi3",
    read: |keys| {
        keys.decoder(RopeStyle::Half, NormKind::Rms)
    },
};
