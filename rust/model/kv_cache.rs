//! The keys and values of the positions computed so far.
//!
//! Every head of every layer has a region of its own for its keys and one for its values, and a region is a whole number
//! of pages: so a region can come from a file, see [`saved`](super::saved), and what is added to it is this process's own.

use std::fs::File;
use std::path::Path;

use crate::arch::{Config, RopeStyle};
use crate::error::Result;
use crate::kernels::Kernels;
use crate::mapping::{Identity, Memory, page_size};
use crate::quant::{self, DType};

use super::rope::rotate;

/// Keys and values of every layer. Positions that were never written cost no memory.
pub struct KvCache {
    memory: Memory, // (n_layers, [k, v], n_kv_heads, capacity, head_dim)
    layers: usize,  // n_layers
    heads: usize,   // n_kv_heads
    head_dim: usize,
    dtype: DType,
    row: usize, // bytes of a position
    /// Positions from the start of one head's region to that of the next.
    pub capacity: usize,
}

impl KvCache {
    /// Room for at least `positions`, with keys and values of `dtype`; `None` if there is not so much address space, or if
    /// heads are not whole blocks of that type.
    pub fn new(config: &Config, dtype: DType, positions: usize) -> Option<Self> {
        let (n_layers, n_kv_heads, head_dim) = (config.n_layers(), config.n_kv_heads(), config.head_dim());
        let row = dtype.row_bytes(head_dim)?;
        let capacity = positions.checked_next_multiple_of(positions_in_whole_pages(row))?;
        let sizes = [n_layers, 2, n_kv_heads, capacity, row];
        let len = sizes.into_iter().try_fold(1usize, |product, n| product.checked_mul(n))?;
        let memory = Memory::zeroed(len).ok()?;
        Some(Self { memory, layers: n_layers, heads: n_kv_heads, head_dim, dtype, row, capacity })
    }

    /// The type of keys and values.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Keys and values of a layer, each `(n_kv_heads, capacity, head_dim)`.
    pub fn layer(&self, i: usize) -> (&[u8], &[u8]) {
        let len = self.heads * self.capacity * self.row;
        self.memory.as_slice()[2 * i * len..2 * (i + 1) * len].split_at(len)
    }

    /// Where the key and the value of one head and position go.
    pub fn slot(&mut self, layer: usize, kv_head: usize, position: usize) -> (&mut [u8], &mut [u8]) {
        let (len, start) = (self.row, position * self.row);
        let (keys, values) = self.head(layer, kv_head);
        (&mut keys[start..start + len], &mut values[start..start + len])
    }

    /// Discards the positions from `n_keep` up to `n_keep + n_discard`; those after them, up to `end`, move down.
    ///
    /// A key is stored rotated by its position, so one that moves is rotated back, by `turns`: what `n_discard` positions
    /// make of each pair, turned the other way. It is rounded a second time by this. Against keys that are computed
    /// at their new position from the start, the largest error found with f16 is 1.0e-3 of the largest key of its head
    /// (2^-10; half of it is what f16 has anyway). It does not grow: with half of the rest discarded each time, no key is there
    /// long enough to be moved twice.
    pub fn shift(
        &mut self,
        kernels: &dyn Kernels,
        style: RopeStyle,
        turns: &[[f32; 2]],
        n_keep: usize,
        n_discard: usize,
        end: usize,
    ) {
        let (dtype, row) = (self.dtype, self.row);
        let mut key = vec![0.0; self.head_dim];
        for layer in 0..self.layers {
            for head in 0..self.heads {
                let (keys, values) = self.head(layer, head);
                values.copy_within((n_keep + n_discard) * row..end * row, n_keep * row);
                for to in n_keep..end - n_discard {
                    let from = (to + n_discard) * row;
                    quant::dequantize(dtype, &keys[from..from + row], &mut key);
                    rotate(kernels, style, &mut key, turns);
                    kernels.round_to(dtype, &mut keys[to * row..(to + 1) * row], &key);
                }
            }
        }
    }

    /// The regions, each of the bytes of its first `n` positions: keys and values of each layer, head by head.
    pub fn regions(&self, n: usize) -> impl Iterator<Item = &[u8]> {
        self.memory.as_slice().chunks_exact(self.capacity * self.row).map(move |region| &region[..n * self.row])
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
        let starts = (0..).step_by(self.capacity * self.row);
        let n_regions = 2 * self.layers * self.heads;
        let parts = starts.zip(offsets).take(n_regions).map(|(at, offset)| (at, offset, n * self.row));
        Ok(Self { memory: self.memory.lay(file, path, identity, parts)?, ..self })
    }

    /// Whether the file that it came from is still what it was.
    ///
    /// # Errors
    /// [`Error::Changed`](crate::Error::Changed).
    pub fn check(&self) -> Result<()> {
        self.memory.check()
    }

    /// Keys and values of one head of a layer, each `(capacity, head_dim)`.
    fn head(&mut self, layer: usize, head: usize) -> (&mut [u8], &mut [u8]) {
        let region = self.capacity * self.row;
        let layer = &mut self.memory.as_mut_slice()[2 * layer * self.heads * region..][..2 * self.heads * region];
        let (keys, values) = layer.split_at_mut(self.heads * region);
        (&mut keys[head * region..][..region], &mut values[head * region..][..region])
    }
}

/// The fewest positions that fill whole pages in a region.
fn positions_in_whole_pages(row: usize) -> usize {
    page_size() >> row.trailing_zeros().min(page_size().trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Activation, AttentionConfig, Ffn, LayerConfig, Mixer, RopeConfig};
    use crate::kernels::{self, KV_TYPES};
    use crate::sampling::Rng;

    fn config(n_layers: usize, n_kv_heads: usize, head_dim: usize) -> Config {
        Config {
            architecture: "llama".into(),
            dim: 64,
            vocab_size: 1,
            context_length: 1,
            norm_eps: 1e-5,
            layers: vec![
                LayerConfig {
                    mixer: Mixer::Attention(AttentionConfig { n_heads: n_kv_heads, n_kv_heads, head_dim, rope: 0 }),
                    ffn: Ffn { hidden_dim: 64, activation: Activation::Silu },
                };
                n_layers
            ],
            ropes: vec![RopeConfig { dim: head_dim, theta: 10_000.0, scale: 1.0, style: RopeStyle::Interleaved }],
        }
    }

    #[test]
    fn every_head_has_whole_pages_of_its_own() {
        for (dtype, head_dim, positions, capacity) in [
            (DType::F16, 64, 1, 32),
            (DType::F16, 64, 33, 64),
            (DType::F16, 128, 4096, 4096),
            (DType::F16, 80, 100, 128),
            (DType::F16, 5, 1, 2048),
            (DType::Q8_0, 64, 1025, 2048),
        ] {
            let mut cache = KvCache::new(&config(2, 3, head_dim), dtype, positions).unwrap();
            assert_eq!(cache.capacity, capacity * page_size() / 4096);
            let slots = || (0..2).flat_map(|layer| (0..3).map(move |head| (layer, head)));
            for (i, (layer, head)) in slots().enumerate() {
                let (k, v) = cache.slot(layer, head, positions - 1);
                assert!(k.iter().chain(&*v).all(|&x| x == 0), "slots overlap");
                k.fill(2 * i as u8 + 1);
                v.fill(2 * i as u8 + 2);
            }
            for (i, (layer, head)) in slots().enumerate() {
                let at = (head * cache.capacity + positions - 1) * dtype.row_bytes(head_dim).unwrap();
                let (k, v) = cache.layer(layer);
                assert_eq!((k[at], v[at]), (2 * i as u8 + 1, 2 * i as u8 + 2));
            }
            assert_eq!(cache.regions(positions).count(), 2 * 2 * 3);
        }
        assert!(KvCache::new(&config(2, 3, 64), DType::F16, usize::MAX).is_none());
        assert!(KvCache::new(&config(2, 3, 80), DType::Q8_0, 1).is_none());
    }

    /// See `KvCache::shift`.
    #[test]
    fn shifted_keys_are_those_of_their_new_positions() {
        let (hd, n_keep, n_discard, end) = (64, 4, 1998, 4000);
        let turns = |position: f64| -> Vec<[f32; 2]> {
            let angles = (0..hd / 2).map(|i| position * 10_000f64.powf(-2.0 * i as f64 / hd as f64));
            angles.map(|a| [a.cos() as f32, a.sin() as f32]).collect()
        };
        // Of the largest number in a key.
        let largest_error = |dtype| if dtype == DType::F16 { 1.0 / 1024.0 } else { 1.0 / 100.0 };
        for (kernels, dtype) in kernels::all().into_iter().flat_map(|k| KV_TYPES.map(|dtype| (k, dtype))) {
            let mut cache = KvCache::new(&config(1, 2, hd), dtype, end).unwrap();
            let mut rng = Rng::new(1);
            let raw: Vec<f32> = (0..end * hd).map(|_| (rng.next_f64() * 8.0 - 4.0) as f32).collect();
            let rotated = |position: usize, at: usize| {
                let mut key = raw[position * hd..(position + 1) * hd].to_vec();
                kernels.rope(&mut key, &turns(at as f64));
                key
            };
            for position in 0..end {
                for head in 0..2 {
                    let (k, v) = cache.slot(0, head, position);
                    kernels.round_to(dtype, k, &rotated(position, position));
                    v.fill(position as u8);
                }
            }
            cache.shift(kernels, RopeStyle::Interleaved, &turns(-(n_discard as f64)), n_keep, n_discard, end);
            let mut worst = 0.0f32;
            for at in 0..end - n_discard {
                let position = if at < n_keep { at } else { at + n_discard };
                let expected = rotated(position, at);
                let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                for head in 0..2 {
                    let (k, v) = cache.slot(0, head, at);
                    assert!(v.iter().all(|&x| x == position as u8));
                    let mut key = vec![0.0; hd];
                    quant::dequantize(dtype, k, &mut key);
                    for (x, expected) in key.iter().zip(&expected) {
                        worst = worst.max((x - expected).abs() / largest);
                    }
                }
            }
            let most = largest_error(dtype);
            assert!(worst < most && worst > most / 8.0, "{} {dtype}: {worst}", kernels.name());
        }
    }
}
