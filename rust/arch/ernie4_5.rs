//! ERNIE 4.5: the plain decoder.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "ernie4_5",
    read: |keys| {
        keys.decoder(RopeStyle::Interleaved, NormKind::Rms)
    },
};
