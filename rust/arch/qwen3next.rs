//! Qwen3-Next: as Qwen 3.5, with value heads in another order, and rates from one matrix.

use super::{Architecture, ExpertDefaults, Gating, KeyHead};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3next",
    read: |keys| {
        let mut config = keys.qwen_hybrid(KeyHead::Divide, true)?;
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        keys.share(&mut config, true)?;
        Ok(config)
    },
};
