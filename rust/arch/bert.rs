//! BERT, and so bge, gte, e5, MiniLM, Snowflake Arctic: learned positions.

use super::Architecture;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "bert",
    read: |keys| {
        let mut config = keys.bert()?;
        config.embedding_sum.positions = true;
        config.each_attention(|_, attention| attention.rope = None);
        config.ropes.clear();
        Ok(config)
    },
};
