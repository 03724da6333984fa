//! Qwen 3.5 to 3.8: three Gated DeltaNets, then a gated attention, and so on.

use super::{Architecture, KeyHead};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen35",
    read: |keys| keys.qwen_hybrid(KeyHead::Modulo, false),
};
