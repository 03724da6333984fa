//! Gemma 3n: Gemma 4's embeddings and shared keys for each layer, several streams, and gates of which most are cut off.

use super::{Architecture, Norms};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3n",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 5)?;
        let n_shared = config.n_layers().saturating_sub(20); // of the published models
        keys.gemma4(&mut config, n_shared)?;
        keys.gemma3n(&mut config)?;
        Ok(config)
    },
};
