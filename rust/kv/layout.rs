//! Where in a block the keys and values of each layer are.

use crate::arch::{Config, Mixer};
use crate::kernels::Heads;
use crate::mapping::page_size;
use crate::quant::DType;
use std::ops::Range;

/// How blocks look for a model and a type of keys and values: `(layer, [k, v], kv_head)`, each as in [`Heads`], and padding
/// to a whole number of pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    kv_type: DType,
    layers: Vec<(Heads, Range<usize>)>,
    block_bytes: usize,
}

impl Layout {
    /// The layout of a model's blocks; `None` if heads are not whole blocks of `kv_type`, or if a block is larger than
    /// any memory.
    pub fn new(config: &Config, kv_type: DType) -> Option<Self> {
        let mut layers = Vec::with_capacity(config.layers.len());
        let mut end = 0usize;
        for layer in &config.layers {
            let heads = match &layer.mixer {
                Mixer::Attention(a) => Heads {
                    n_heads: a.n_heads,
                    n_kv_heads: a.n_kv_heads,
                    head_dim: a.head_dim,
                    value_dim: a.value_dim,
                    kv_type,
                },
            };
            let start = end;
            end = end.checked_add(heads.layer_bytes()?)?;
            layers.push((heads, start..end));
        }
        Some(Self { kv_type, layers, block_bytes: end.checked_next_multiple_of(page_size())? })
    }

    /// The type of keys and values.
    pub fn kv_type(&self) -> DType {
        self.kv_type
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of a block, whole pages.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// The heads of a layer.
    pub fn heads(&self, layer: usize) -> Heads {
        self.layers[layer].0
    }

    /// Where in a block a layer is.
    pub fn at(&self, layer: usize) -> Range<usize> {
        self.layers[layer].1.clone()
    }
}
