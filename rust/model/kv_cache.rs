//! The keys and values of the positions computed so far.
//!
//! Every head of every layer has a region of its own for its keys and one for its values, and a region is a whole number
//! of pages: so a region can come from a file, see [`saved`](super::saved), and what is added to it is this process's own.

use std::fs::File;
use std::path::Path;

use super::Config;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::mapping::{Identity, Memory, page_size};

/// Keys and values of every layer, f16. Positions that were never written cost no memory.
pub struct KvCache {
    memory: Memory, // (n_layers, [k, v], n_kv_heads, capacity, head_dim)
    layers: usize,  // n_layers
    heads: usize,   // n_kv_heads
    head_dim: usize,
    /// Positions from the start of one head's region to that of the next.
    pub capacity: usize,
}

impl KvCache {
    /// Room for at least `positions`, or `None` if there is not so much address space.
    pub fn new(config: &Config, positions: usize) -> Option<Self> {
        let &Config { n_layers, n_kv_heads, head_dim, .. } = config;
        let capacity = positions.checked_next_multiple_of(positions_in_whole_pages(head_dim))?;
        let sizes = [2, n_layers, 2, n_kv_heads, capacity, head_dim];
        let len = sizes.into_iter().try_fold(1usize, |product, n| product.checked_mul(n))?;
        let memory = Memory::zeroed(len).ok()?;
        Some(Self { memory, layers: n_layers, heads: n_kv_heads, head_dim, capacity })
    }

    /// Keys and values of a layer, each `(n_kv_heads, capacity, head_dim)`.
    pub fn layer(&self, i: usize) -> (&[u16], &[u16]) {
        let len = self.heads * self.capacity * self.head_dim;
        self.values()[2 * i * len..2 * (i + 1) * len].split_at(len)
    }

    /// Where the key and the value of one head and position go.
    pub fn slot(&mut self, layer: usize, kv_head: usize, position: usize) -> (&mut [u16], &mut [u16]) {
        let (len, start) = (self.head_dim, position * self.head_dim);
        let (keys, values) = self.head(layer, kv_head);
        (&mut keys[start..start + len], &mut values[start..start + len])
    }

    /// Discards the positions from `n_keep` up to `n_keep + n_discard`; those after them, up to `end`, move down.
    ///
    /// A key is stored rotated by its position, so one that moves is rotated back, by `turns`: what `n_discard` positions
    /// make of each pair, turned the other way. It is rounded to f16 a second time by this. Against keys that are computed
    /// at their new position from the start, the largest error found is 1.0e-3 of the largest key of its head (2^-10; half
    /// of it is what f16 has anyway). It does not grow: with half of the rest discarded each time, no key is there
    /// long enough to be moved twice.
    pub fn shift(&mut self, kernels: &dyn Kernels, turns: &[[f32; 2]], n_keep: usize, n_discard: usize, end: usize) {
        let hd = self.head_dim;
        let mut key = vec![0.0; hd];
        for layer in 0..self.layers {
            for head in 0..self.heads {
                let (keys, values) = self.head(layer, head);
                values.copy_within((n_keep + n_discard) * hd..end * hd, n_keep * hd);
                for to in n_keep..end - n_discard {
                    let from = (to + n_discard) * hd;
                    for (x, bits) in key.iter_mut().zip(&keys[from..from + hd]) {
                        *x = half::f16::from_bits(*bits).to_f32();
                    }
                    kernels.rope(&mut key[..2 * turns.len()], turns);
                    kernels.to_f16(&mut keys[to * hd..(to + 1) * hd], &key);
                }
            }
        }
    }

    /// The regions, each of the bytes of its first `n` positions: keys and values of each layer, head by head.
    pub fn regions(&self, n: usize) -> impl Iterator<Item = &[u8]> {
        let position = 2 * self.head_dim;
        self.memory.as_slice().chunks_exact(self.capacity * position).map(move |region| &region[..n * position])
    }

    /// A cache whose first `n` positions are those of a file: one region at each of `offsets`.
    ///
    /// # Errors
    /// As for [`Memory::lay`].
    pub fn lay(
        self,
        file: File,
        path: &Path,
        identity: Identity,
        offsets: impl Iterator<Item = usize>,
        n: usize,
    ) -> Result<Self> {
        let position = 2 * self.head_dim;
        let starts = (0..).step_by(self.capacity * position);
        let parts = starts.zip(offsets).map(|(at, offset)| (at, offset, n * position));
        Ok(Self { memory: self.memory.lay(file, path, identity, parts)?, ..self })
    }

    /// Whether the file that it came from is still what it was.
    ///
    /// # Errors
    /// [`Error::Changed`](crate::Error::Changed).
    pub fn check(&self) -> Result<()> {
        self.memory.check()
    }

    fn values(&self) -> &[u16] {
        bytemuck::cast_slice(self.memory.as_slice())
    }

    /// Keys and values of one head of a layer, each `(capacity, head_dim)`.
    fn head(&mut self, layer: usize, head: usize) -> (&mut [u16], &mut [u16]) {
        let region = self.capacity * self.head_dim;
        let all: &mut [u16] = bytemuck::cast_slice_mut(self.memory.as_mut_slice());
        let (keys, values) =
            all[2 * layer * self.heads * region..][..2 * self.heads * region].split_at_mut(self.heads * region);
        (&mut keys[head * region..][..region], &mut values[head * region..][..region])
    }
}

/// The fewest positions that fill whole pages in a region.
fn positions_in_whole_pages(head_dim: usize) -> usize {
    let position = 2 * head_dim;
    page_size() >> position.trailing_zeros().min(page_size().trailing_zeros())
}
