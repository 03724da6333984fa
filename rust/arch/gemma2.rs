//! Gemma 2: norms around each branch, windows in every other layer, limits of scores and logits.

use super::{Architecture, Norms};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 2)?;
        let [softcap, logit_softcap] = keys.softcaps()?;
        config.each_attention(|_, attention| attention.softcap = softcap.or(Some(50.0)));
        keys.gemma_27b(&mut config, 46)?;
        config.logit_softcap = logit_softcap.or(Some(30.0));
        Ok(config)
    },
};
