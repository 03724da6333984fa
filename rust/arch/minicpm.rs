//! MiniCPM: the scales of Granite, which old files do not name.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "minicpm",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        let n_layers = config.n_layers() as f32;
        config.embedding_scale = 12.0;
        config.layers.iter_mut().for_each(|layer| layer.residual_scale = 1.4 / n_layers.sqrt());
        config.logit_scale = 256.0 / config.dim as f32;
        keys.granite(&mut config)?;
        Ok(config)
    },
};
