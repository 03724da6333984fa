//! Granite 4: Mamba-2, and attention in some layers, with networks or mixtures.

use super::{Architecture, ExpertDefaults, Gating, Mixer, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granitehybrid",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Interleaved, NormKind::Rms)?;
        keys.granite(&mut config)?;
        let mamba = keys.mamba()?;
        for layer in config.layers.iter_mut().filter(|l| l.mixer.attention().is_some_and(|a| a.n_kv_heads == 0)) {
            layer.mixer = Mixer::Mamba(mamba);
        }
        keys.mixture(&mut config, ExpertDefaults { gating: Gating::Softmax, normalized: true }, |_| true)?;
        keys.share(&mut config, false)?;
        Ok(config)
    },
};
