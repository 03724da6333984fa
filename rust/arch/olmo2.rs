//! OLMo 2 and 3: norms after each branch and of all queries and all keys; windows, whose rotation is not scaled.

use super::{Architecture, NormKind, Norms, QkNorm, RopeConfig, RopeScaling, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmo2",
    read: |keys| {
        let mut config = keys.decoder(RopeStyle::Half, NormKind::Rms)?;
        config.set_norms(Norms::AFTER);
        config.each_attention(|_, attention| attention.qk_norm = QkNorm::All);
        if keys.set_windows(&mut config, 4)? {
            let unscaled = RopeConfig { scaling: RopeScaling::None, ..config.ropes[0] };
            config.give_windows(unscaled);
        }
        Ok(config)
    },
};
