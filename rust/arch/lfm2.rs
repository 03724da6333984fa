//! LFM2: short convolutions, and attention in some layers. The norm before the output has another's name.

use super::{Architecture, NormKind, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "lfm2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.output_norm = Some("token_embd_norm");
        keys.set_windows(&mut config, 0)?;
        keys.short_convs(&mut config)?;
        Ok(config)
    },
};
