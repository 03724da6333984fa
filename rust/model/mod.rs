//! The transformer: what a model is ([`Config`], [`Weights`]), and how it computes.

pub mod config;
pub mod names;
pub mod weights;

pub use config::{Config, RopeStyle};
pub use weights::{LayerWeights, Weights};
