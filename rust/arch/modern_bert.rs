//! ModernBERT: norms before each branch but the first, networks gated by GELU; of three layers the first sees all positions
//! and the others those around, with a rotation of their own.

use super::{Activation, Architecture, EmbeddingSum, NormKind, Norms, Pooling, Ranking, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "modern-bert",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Layer)?;
        if keys.set_windows_but(&mut config, 3, true)? {
            keys.rotate_windows(&mut config)?;
        }
        keys.see_all(&mut config)?;
        config.embedding_sum = EmbeddingSum { positions: false, types: false, normed: true };
        config.layers[0].norms = Norms { mixer: None, ..Norms::BEFORE };
        config.each_dense(|dense| dense.activation = Activation::Gelu);
        config.ranking = Ranking { pooling: Pooling::Mean, gelu: true, softmax: false };
        Ok(config)
    },
};
