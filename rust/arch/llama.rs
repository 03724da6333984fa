//! Llama 1 to 3, Mistral, SmolLM2 and all that GGUF calls `llama`: the plain decoder, and Mixtral.

use super::{Architecture, ExpertDefaults, Gating, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        keys.set_windows(&mut config, 0)?;
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        Ok(config)
    },
};
