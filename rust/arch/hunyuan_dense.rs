//! Hunyuan: norms of queries and keys after their rotation.

use super::{Architecture, NormKind, QkNorm, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "hunyuan-dense",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::RotatedHeads);
        Ok(config)
    },
};
