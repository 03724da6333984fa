//! Gemma 1: GELU, and embeddings that are made longer.

use super::{Architecture};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma",
    read: |keys| {
        keys.gemma()
    },
};
