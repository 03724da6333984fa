//! Where in a block the keys and values of each layer are, and where in a state what recurrent layers remember.

use crate::arch::{Config, RecurrentConfig};
use crate::kernels::{CHUNK, Heads};
use crate::mapping::page_size;
use crate::quant::DType;
use std::ops::Range;

/// How blocks look for a model and a type of keys and values: `(layer, [k, v], kv_head)`, each as in [`Heads`], and padding
/// to a whole number of pages. And how states and tails look, see [`Recurrent`](super::Recurrent).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    kv_type: DType,
    layers: Vec<LayerLayout>,
    block_bytes: usize,
    state_bytes: usize,
    tail_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LayerLayout {
    attention: Option<(Heads, Range<usize>)>,
    is_borrowed: bool, // the keys and values are those of another layer
    recurrent: Option<RecurrentLayout>,
}

/// Where a recurrent layer is, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecurrentLayout {
    /// What it remembers.
    pub config: RecurrentConfig,
    /// Inputs of the convolution before the state, `(n_taps - 1, channels)`, in a state.
    pub inputs: Range<usize>,
    /// The state of its heads, which follows.
    pub heads: Range<usize>,
    /// Inputs of the convolution since the state, `(CHUNK, channels)`, in a tail.
    pub tail_inputs: Range<usize>,
    /// The tail of its heads, which follows.
    pub tail_heads: Range<usize>,
}

impl Layout {
    /// The layout of a model's blocks; `None` if heads are not whole blocks of `kv_type`, or if a block is larger than
    /// any memory.
    pub fn new(config: &Config, kv_type: DType) -> Option<Self> {
        let mut layers = Vec::with_capacity(config.layers.len());
        let (mut end, mut state_end, mut tail_end) = (0usize, 0usize, 0usize);
        let take = |end: &mut usize, n: usize| {
            let start = *end;
            *end = start.checked_add(n)?;
            Some(start..*end)
        };
        for layer in &config.layers {
            let of_another = layer.mixer.attention().and_then(|attention| attention.kv_layer);
            let attention = match layer.mixer.attention() {
                None => None,
                Some(_) if of_another.is_some() => {
                    let source: &LayerLayout = layers.get(of_another?)?;
                    source.attention.clone()
                }
                Some(a) => {
                    let heads = Heads {
                        n_heads: a.n_heads,
                        n_kv_heads: a.n_kv_heads,
                        head_dim: a.head_dim,
                        value_dim: a.value_dim,
                        values_in_keys: a.values_in_keys,
                        kv_type,
                    };
                    Some((heads, take(&mut end, heads.layer_bytes()?)?))
                }
            };
            let recurrent = match layer.mixer.recurrent(config.dim) {
                None => None,
                Some(config) => {
                    let RecurrentConfig { channels, n_taps, heads } = config;
                    let [state, tail] = match heads {
                        Some(heads) => [heads.state_len()?, heads.tail_len()?],
                        None => [0, 0],
                    };
                    Some(RecurrentLayout {
                        config,
                        inputs: take(&mut state_end, channels.checked_mul(n_taps - 1)?)?,
                        heads: take(&mut state_end, state)?,
                        tail_inputs: take(&mut tail_end, channels.checked_mul(CHUNK)?)?,
                        tail_heads: take(&mut tail_end, tail)?,
                    })
                }
            };
            layers.push(LayerLayout { attention, is_borrowed: of_another.is_some(), recurrent });
        }
        let pages = |bytes: usize| bytes.checked_next_multiple_of(page_size()).filter(|&bytes| bytes < 1 << 46);
        Some(Self {
            kv_type,
            layers,
            block_bytes: pages(end.max(1))?,
            state_bytes: pages(state_end.checked_mul(4)?)?,
            tail_bytes: pages(tail_end.checked_mul(4)?)?,
        })
    }

    /// The type of keys and values.
    pub fn kv_type(&self) -> DType {
        self.kv_type
    }

    /// Bytes of a block, whole pages.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Bytes of a state, whole pages; 0 if no layer is recurrent.
    pub fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    /// Bytes of a tail, whole pages.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// The layers that have keys and values: their numbers, heads and where in a block they are.
    pub fn attention(&self) -> impl Iterator<Item = (usize, Heads, Range<usize>)> {
        let layers = self.layers.iter().enumerate().filter(|(_, layer)| !layer.is_borrowed);
        layers.filter_map(|(i, layer)| layer.attention.clone().map(|(heads, at)| (i, heads, at)))
    }

    /// The heads of a layer.
    ///
    /// # Panics
    /// If it does not attend.
    pub fn heads(&self, layer: usize) -> Heads {
        self.layers[layer].attention.as_ref().expect("a layer that attends").0
    }

    /// Where in a block a layer is.
    ///
    /// # Panics
    /// If it does not attend.
    pub fn at(&self, layer: usize) -> Range<usize> {
        self.layers[layer].attention.as_ref().expect("a layer that attends").1.clone()
    }

    /// What a layer remembers besides keys and values, if anything.
    pub fn recurrent(&self, layer: usize) -> Option<&RecurrentLayout> {
        self.layers[layer].recurrent.as_ref()
    }

    /// Whether any layer is recurrent.
    pub fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|layer| layer.recurrent.is_some())
    }

    /// Of a tail of which the first `n` positions are there, the ranges of numbers that others may be in.
    pub fn tail_rest(&self, n: usize) -> Vec<Range<usize>> {
        let mut rest = Vec::new();
        for layout in self.layers.iter().filter_map(|layer| layer.recurrent.as_ref()) {
            rest.push(layout.tail_inputs.start + n * layout.config.channels..layout.tail_inputs.end);
            if let Some(heads) = layout.config.heads {
                let start = layout.tail_heads.start;
                rest.extend(heads.tail_rest(n).map(|range| start + range.start..start + range.end));
            }
        }
        rest
    }
}
