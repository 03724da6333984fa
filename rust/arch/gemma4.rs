//! Gemma 4: Gemma 3 with heads of two lengths, and much else, see [`Keys::gemma4`](super::Keys::gemma4).

use super::{Architecture, Norms};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma4",
    read: |keys| {
        let mut config = keys.gemma()?;
        config.set_norms(Norms::AROUND);
        keys.set_windows(&mut config, 6)?;
        keys.gemma4(&mut config, 0)?;
        Ok(config)
    },
};
