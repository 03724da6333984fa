//! Qwen2 and Qwen2.5, QwQ, and DeepSeek-R1's distillations into them: queries, keys and values have a bias, and the two
//! halves of a head are rotated together.
//!
//! The biases have to be there: a file that lost them would give wrong text.

use super::{Architecture, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    read: |keys| keys.decoder(RopeStyle::Half),
    tensors: &["attn_q.bias", "attn_k.bias", "attn_v.bias"],
    fused: &[],
};
