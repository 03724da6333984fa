//! The models that are served, and their versions.

use std::sync::{Arc, PoisonError, RwLock};

use super::error::{Answer, Refusal};
use super::version::Version;

/// Models by name. Requests hold the version that they were for until they are done, whatever becomes of the name.
pub struct Registry {
    versions: RwLock<Vec<Arc<Version>>>, // the default first
}

impl Registry {
    pub fn new(versions: Vec<Arc<Version>>) -> Self {
        Self { versions: RwLock::new(versions) }
    }

    /// All of them.
    pub fn versions(&self) -> Vec<Arc<Version>> {
        self.versions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The version that `asked` names. Where there is but one, any name means it, unless `strict`.
    pub fn find(&self, asked: Option<&str>, strict: bool) -> Answer<Arc<Version>> {
        let versions = self.versions.read().unwrap_or_else(PoisonError::into_inner);
        let found = match asked {
            Some(name) => versions.iter().find(|version| version.name == name),
            None => versions.first(),
        };
        let found = found.or_else(|| versions.first().filter(|_| versions.len() == 1 && !strict));
        found.cloned().ok_or_else(|| {
            if versions.is_empty() {
                return Refusal::new(503, "loading", "no model is loaded");
            }
            let name: String = asked.unwrap_or_default().chars().take(100).collect();
            Refusal::new(404, "model_not_found", format!("there is no model {name:?}")).at("/model")
        })
    }
}
