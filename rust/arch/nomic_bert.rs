//! Nomic Embed: BERT with rotations and gated networks.

use super::{Activation, Architecture};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "nomic-bert",
    read: |keys| {
        let mut config = keys.bert()?;
        config.each_dense(|dense| (dense.activation, dense.gated) = (Activation::Silu, true));
        Ok(config)
    },
};
