//! Llama 1 to 3, Mistral, SmolLM2 and all that GGUF calls `llama`: the plain decoder.

use super::{Architecture, RopeStyle};

pub(super) const ARCHITECTURE: Architecture =
    Architecture { name: "llama", read: |keys| keys.decoder(RopeStyle::Interleaved), tensors: &[], fused: &[] };
