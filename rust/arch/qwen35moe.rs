//! The mixtures of Qwen 3.5 and later.

use super::{Architecture, ExpertDefaults, Gating, KeyHead};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen35moe",
    read: |keys| {
        let mut config = keys.qwen_hybrid(KeyHead::Modulo, false)?;
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        keys.share(&mut config, true)?;
        Ok(config)
    },
};
