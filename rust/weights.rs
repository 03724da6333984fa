//! Every weight of a model, as a view of the mapped file.
//!
//! The one place that knows which tensors there are, of which name, shape and type: two declarations, of a layer's tensors
//! and of those that belong to none. From them come the structs, what is loaded and checked, the order in which a file is
//! read ahead, and what an adapter may change. A tensor that is not declared, or that the architecture does not have, is
//! refused: ignoring it (a bias, a norm of the queries) would give wrong text.
//!
//! Shapes are written as numpy prints them, rows first; [`TensorView::shape`] is the other way round.

use crate::arch::{Architecture, Config, Mixer};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::quant::DType;
use crate::tensor::TensorView;

/// A declared tensor.
pub struct Declared {
    /// What we call it.
    pub field: &'static str,
    /// What GGUF calls it; without its `blk.N.` if it belongs to a layer.
    pub name: &'static str,
    /// Whether it is always there: an [`Architecture`] says which of the others its layers have.
    pub always: bool,
    shape: fn(&Sizes) -> Vec<usize>, // rows first
}

impl Declared {
    /// Whether it is multiplied with: such a tensor may have any type that the kernels read, and an adapter may change it.
    /// All others are vectors of F32.
    pub fn is_matrix(&self) -> bool {
        (self.shape)(&Sizes::default()).len() > 1
    }
}

/// What shapes are made of.
#[derive(Default)]
struct Sizes {
    vocab_size: usize,
    dim: usize,
    q_dim: usize,  // n_heads * head_dim
    kv_dim: usize, // n_kv_heads * head_dim
    hidden_dim: usize,
    pairs: usize, // that are rotated
}

/// A field of a struct of weights: a tensor that is there, or may be.
trait Slot: Sized {
    const ALWAYS: bool;
    fn fill(view: Option<TensorView>) -> Option<Self>;
    fn view(&self) -> Option<&TensorView>;
}

impl Slot for TensorView {
    const ALWAYS: bool = true;

    fn fill(view: Option<TensorView>) -> Option<Self> {
        view
    }

    fn view(&self) -> Option<&TensorView> {
        Some(self)
    }
}

impl Slot for Option<TensorView> {
    const ALWAYS: bool = false;

    fn fill(view: Option<TensorView>) -> Option<Self> {
        Some(view)
    }

    fn view(&self) -> Option<&TensorView> {
        self.as_ref()
    }
}

/// Declares tensors: a field, its name in GGUF and its shape, in the order in which a pass reads them.
macro_rules! declare {
    (
        $(#[$about:meta])* $visible:vis struct $Struct:ident, $(#[$list:meta])* $TABLE:ident;
        $($(#[$doc:meta])* $field:ident: $Type:ty = $name:literal [$($size:ident),+];)+
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        $visible struct $Struct {
            $($(#[$doc])* pub $field: $Type,)+
        }

        $(#[$list])*
        pub const $TABLE: &[Declared] = &[$(Declared {
            field: stringify!($field),
            name: $name,
            always: <$Type as Slot>::ALWAYS,
            shape: |sizes| vec![$(sizes.$size),+],
        }),+];

        impl $Struct {
            /// Takes each tensor from `find`, in the order of the declaration.
            fn load(mut find: impl FnMut(&'static Declared) -> Result<Option<TensorView>>) -> Result<Self> {
                let mut declared = $TABLE.iter();
                $(
                    let here = declared.next().expect("a row for each field");
                    let $field = <$Type>::fill(find(here)?).expect("what is always there was found");
                )+
                Ok(Self { $($field),+ })
            }

            /// The tensors that are there with their names in GGUF, in the order in which a pass reads them.
            #[allow(dead_code)] // of those that belong to no layer nobody asks
            pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &TensorView)> {
                let views = [$(self.$field.view()),+];
                $TABLE.iter().zip(views).filter_map(|(declared, view)| Some((declared.name, view?)))
            }
        }
    };
}

declare! {
    /// The weights of one layer.
    pub struct LayerWeights,
    /// The tensors of a layer, in the order in which a pass reads them.
    LAYER;

    /// `(dim)`, F32
    attn_norm: TensorView = "attn_norm.weight" [dim];
    /// `(n_heads * head_dim, dim)`
    wq: TensorView = "attn_q.weight" [q_dim, dim];
    /// `(n_heads * head_dim)`, F32
    bq: Option<TensorView> = "attn_q.bias" [q_dim];
    /// `(n_kv_heads * head_dim, dim)`
    wk: TensorView = "attn_k.weight" [kv_dim, dim];
    /// `(n_kv_heads * head_dim)`, F32
    bk: Option<TensorView> = "attn_k.bias" [kv_dim];
    /// `(n_kv_heads * head_dim, dim)`
    wv: TensorView = "attn_v.weight" [kv_dim, dim];
    /// `(n_kv_heads * head_dim)`, F32
    bv: Option<TensorView> = "attn_v.bias" [kv_dim];
    /// `(dim, n_heads * head_dim)`
    wo: TensorView = "attn_output.weight" [dim, q_dim];
    /// `(dim)`, F32
    ffn_norm: TensorView = "ffn_norm.weight" [dim];
    /// `(hidden_dim, dim)`
    w_gate: TensorView = "ffn_gate.weight" [hidden_dim, dim];
    /// `(hidden_dim, dim)`
    w_up: TensorView = "ffn_up.weight" [hidden_dim, dim];
    /// `(dim, hidden_dim)`
    w_down: TensorView = "ffn_down.weight" [dim, hidden_dim];
}

declare! {
    struct Others,
    /// The tensors that belong to no layer.
    OTHERS;

    token_embedding: TensorView = "token_embd.weight" [vocab_size, dim];
    rope_freq_factors: Option<TensorView> = "rope_freqs.weight" [pairs];
    output_norm: TensorView = "output_norm.weight" [dim];
    output: Option<TensorView> = "output.weight" [vocab_size, dim];
}

/// The weights of a model.
#[derive(Debug, Clone)]
pub struct Weights {
    /// `(vocab_size, dim)`
    pub token_embedding: TensorView,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// `(dim)`, F32
    pub output_norm: TensorView,
    /// `(vocab_size, dim)`; the embedding again where the file ties the two.
    pub output: TensorView,
    /// `(rope_dim / 2)`, F32: by what each frequency of the rotation is divided (Llama 3.1 and later).
    pub rope_freq_factors: Option<TensorView>,
}

impl Weights {
    /// Finds every weight and checks its shape and type. Reads none of them.
    ///
    /// # Errors
    /// [`Error::Format`] for a tensor that is missing or has the wrong shape, [`Error::Unsupported`]
    /// for one of a type that we cannot compute with, or whose meaning we do not know.
    pub fn from_checkpoint(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let source = Source { checkpoint, architecture: &config.architecture };
        let architecture = Architecture::named(source.architecture)
            .ok_or_else(|| source.unsupported(format!("architecture {}", source.architecture.escape_debug())))?;
        let has = |declared: &Declared| declared.always || architecture.tensors.contains(&declared.name);

        let (dim, vocab_size, pairs) = (config.dim, config.vocab_size, config.ropes[0].dim / 2);
        let sizes = Sizes { dim, vocab_size, pairs, ..Sizes::default() };
        let others = Others::load(|declared| {
            let there = declared.always || checkpoint.tensor(declared.name).is_some();
            there.then(|| source.tensor(declared.name.into(), declared, &sizes)).transpose()
        })?;
        let layers = config.layers.iter().enumerate().map(|(i, layer)| {
            let Mixer::Attention(attention) = &layer.mixer;
            let sizes = Sizes {
                dim,
                q_dim: attention.n_heads * attention.head_dim,
                kv_dim: attention.n_kv_heads * attention.head_dim,
                hidden_dim: layer.ffn.hidden_dim,
                ..Sizes::default()
            };
            LayerWeights::load(|declared| {
                let name = || format!("blk.{i}.{}", declared.name);
                has(declared).then(|| source.tensor(name(), declared, &sizes)).transpose()
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        source.refuse_unknown(config.n_layers(), has)?;
        let output = others.output.unwrap_or_else(|| others.token_embedding.clone());
        Ok(Self {
            token_embedding: others.token_embedding,
            layers,
            output_norm: others.output_norm,
            output,
            rope_freq_factors: others.rope_freq_factors,
        })
    }
}

struct Source<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'a str,
}

impl Source<'_> {
    /// The tensor called `name`, if it is as declared.
    fn tensor(&self, name: String, declared: &Declared, sizes: &Sizes) -> Result<TensorView> {
        let view = self.checkpoint.tensor(&name).ok_or_else(|| self.checkpoint.error("missing tensor", &name))?;
        let shape: Vec<usize> = (declared.shape)(sizes).into_iter().rev().collect();
        if !has_shape(view, &shape) {
            let e = self.checkpoint.error("tensor of the wrong shape", &name).got(format!("{:?}", view.shape()));
            return Err(e.limit(format!("{shape:?}")).into());
        }
        let dtype = view.dtype();
        if declared.is_matrix() && !dtype.is_supported() {
            let supported = DType::ALL.iter().filter(|t| t.is_supported()).map(|t| t.name());
            let supported = supported.collect::<Vec<_>>().join(", ");
            return Err(self.unsupported(format!("tensor {name} of type {dtype}; supported are {supported}")));
        }
        if !declared.is_matrix() && dtype != DType::F32 {
            return Err(self.unsupported(format!("tensor {name} of type {dtype}; only F32 is supported there")));
        }
        Ok(view.clone())
    }

    fn refuse_unknown(&self, n_layers: usize, has: impl Fn(&Declared) -> bool) -> Result<()> {
        for tensor in self.checkpoint.tensors() {
            let known = match tensor.name().strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
                Some((i, part)) => {
                    LAYER.iter().any(|declared| declared.name == part && has(declared))
                        && i.parse::<usize>().is_ok_and(|n| n < n_layers && n.to_string() == i)
                }
                None => OTHERS.iter().any(|declared| declared.name == tensor.name()),
            };
            if !known {
                let name: String = tensor.name().chars().take(80).flat_map(char::escape_debug).collect();
                return Err(self.unsupported(format!(
                    "tensor {name}; a plain {} has none, and without it the text is wrong",
                    self.architecture
                )));
            }
        }
        Ok(())
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.checkpoint.path().into(), what }
    }
}

/// Whether the view has this shape; trailing dimensions of length 1 do not count.
fn has_shape(view: &TensorView, shape: &[usize]) -> bool {
    let n = view.shape().iter().rposition(|&d| d != 1).map_or(0, |last| last + 1).max(shape.len());
    view.shape().get(..n) == Some(shape)
}

/// The matrices of a layer, by their names in GGUF: what an adapter (LoRA) may change.
pub fn adapter_targets() -> impl Iterator<Item = &'static str> {
    LAYER.iter().filter(|declared| declared.is_matrix()).map(|declared| declared.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ARCHITECTURES;

    #[test]
    fn what_an_architecture_adds_to_a_layer_is_declared() {
        for architecture in ARCHITECTURES {
            for name in architecture.tensors {
                let declared = LAYER.iter().find(|declared| declared.name == *name);
                assert!(declared.is_some_and(|declared| !declared.always), "{}: {name}", architecture.name);
            }
        }
    }

    #[test]
    fn an_adapter_may_change_the_matrices_of_a_layer() {
        let parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        assert!(adapter_targets().eq(parts.map(|part| format!("{part}.weight"))));
    }
}
