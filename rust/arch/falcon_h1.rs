//! Falcon-H1: attention and Mamba-2 side by side in each layer.

use super::{Architecture, Mixer, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "falcon-h1",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        let mamba = keys.mamba()?;
        for layer in &mut config.layers {
            if let Mixer::Attention(attention) = layer.mixer {
                layer.mixer = Mixer::AttentionAndMamba(attention, mamba);
            }
        }
        Ok(config)
    },
};
