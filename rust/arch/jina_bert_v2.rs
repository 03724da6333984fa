//! Jina Embeddings 2: BERT with ALiBi and networks gated by GELU; those for code norm queries and keys as well, and have a
//! second norm after attention.

use super::{Architecture, QkNorm};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "jina-bert-v2",
    read: |keys| {
        let mut config = keys.bert()?;
        let qk_norm = if keys.has_tensor("blk.0.attn_q_norm.weight") { QkNorm::All } else { QkNorm::None };
        config.each_attention(|_, attention| {
            (attention.rope, attention.alibi, attention.qk_norm) = (None, Some(8.0), qk_norm);
        });
        config.ropes.clear();
        config.each_dense(|dense| dense.gated = true);
        if keys.has_tensor("blk.0.attn_norm_2.weight") {
            config.layers.iter_mut().for_each(|layer| layer.norms.mixer_sum_again = Some("attn_norm_2"));
        }
        Ok(config)
    },
};
