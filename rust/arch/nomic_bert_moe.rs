//! Nomic Embed 2: BERT with rotations; the second of every few layers is a mixture of experts that are not gated.

use super::{Architecture, ExpertDefaults, Gating};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "nomic-bert-moe",
    read: |keys| {
        let mut config = keys.bert()?;
        let every = keys.number("moe_every_n_layers")?.unwrap_or(0);
        let has = |i: usize| every > 0 && i % every == 1;
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: false }, has)?;
        Ok(config)
    },
};
