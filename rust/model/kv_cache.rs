//! The keys and values of the positions computed so far.

use super::Config;

/// Keys and values of every layer, f16. Positions that were never written cost no memory.
pub struct KvCache {
    k: Vec<u16>, // (n_layers, n_kv_heads, capacity, head_dim)
    v: Vec<u16>, // the same
    layer: usize,
    /// Positions there is room for.
    pub capacity: usize,
    head_dim: usize,
}

impl KvCache {
    /// Room for `capacity` positions, or `None` if there is not so much address space.
    pub fn new(config: &Config, capacity: usize) -> Option<Self> {
        let layer = config.n_kv_heads.checked_mul(capacity)?.checked_mul(config.head_dim)?;
        let len = layer.checked_mul(config.n_layers)?;
        // Zeroed memory straight from the system: pages appear when they are first written to.
        let zeros = || bytemuck::allocation::try_zeroed_vec(len).ok();
        Some(Self { k: zeros()?, v: zeros()?, layer, capacity, head_dim: config.head_dim })
    }

    /// Keys and values of a layer, each `(n_kv_heads, capacity, head_dim)`.
    pub fn layer(&self, i: usize) -> (&[u16], &[u16]) {
        let range = i * self.layer..(i + 1) * self.layer;
        (&self.k[range.clone()], &self.v[range])
    }

    /// Where the key and the value of one head and position go.
    pub fn slot(&mut self, layer: usize, kv_head: usize, position: usize) -> (&mut [u16], &mut [u16]) {
        let start = layer * self.layer + (kv_head * self.capacity + position) * self.head_dim;
        let range = start..start + self.head_dim;
        (&mut self.k[range.clone()], &mut self.v[range])
    }
}
