//! Every weight of a model, as a view of the mapped file.
//!
//! The one place that knows which tensors there are, of which name, shape and type: two declarations, of a layer's tensors
//! and of those that belong to none. From them come the structs, what is loaded and checked, the order in which a file is
//! read ahead, and what an adapter may change. Where an architecture keeps several in one tensor, each is a range of its
//! rows. A tensor that is not declared, or that the architecture does not have, is refused: ignoring it (a bias, a norm of
//! the queries) would give wrong text.
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
        let architecture = Architecture::named(&config.architecture).ok_or_else(|| Error::Unsupported {
            path: checkpoint.path().into(),
            what: format!("architecture {}", config.architecture.escape_debug()),
        })?;
        Self::of(checkpoint, config, architecture)
    }

    fn of(checkpoint: &Checkpoint, config: &Config, architecture: &Architecture) -> Result<Self> {
        let source = Source { checkpoint, architecture };

        let (dim, vocab_size, pairs) = (config.dim, config.vocab_size, config.ropes[0].dim / 2);
        let sizes = Sizes { dim, vocab_size, pairs, ..Sizes::default() };
        let others = Others::load(|declared| {
            let there = declared.always || checkpoint.tensor(declared.name).is_some();
            there.then(|| source.tensor("", declared, &sizes)).transpose()
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
            let prefix = format!("blk.{i}.");
            LayerWeights::load(|declared| {
                source.has(declared).then(|| source.tensor(&prefix, declared, &sizes)).transpose()
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        source.refuse_unknown(config.n_layers())?;
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
    architecture: &'a Architecture,
}

impl Source<'_> {
    /// Whether the layers have it.
    fn has(&self, declared: &Declared) -> bool {
        declared.always || self.architecture.tensors.contains(&declared.name)
    }

    /// The tensor that holds the rows of the declared one, and what it holds.
    fn fused(&self, declared: &Declared) -> Option<&(&'static str, &'static [&'static str])> {
        self.architecture.fused.iter().find(|(_, parts)| parts.contains(&declared.name))
    }

    /// The tensor behind `prefix`, if it is as declared; its rows of a fused one.
    fn tensor(&self, prefix: &str, declared: &Declared, sizes: &Sizes) -> Result<TensorView> {
        let shape = (declared.shape)(sizes);
        let Some((name, parts)) = self.fused(declared) else {
            return self.shaped(format!("{prefix}{}", declared.name), shape);
        };
        let rows_of = |part: &&str| {
            let declared = LAYER.iter().find(|declared| declared.name == *part);
            (declared.expect("an architecture fuses what is declared").shape)(sizes)[0]
        };
        let start: usize = parts.iter().take_while(|part| **part != declared.name).map(rows_of).sum();
        let all = self.shaped(format!("{prefix}{name}"), vec![parts.iter().map(rows_of).sum(), shape[1]])?;
        Ok(all.rows(start..start + shape[0]).expect("the rows of all parts were counted"))
    }

    /// The tensor called `name` if it has this shape, rows first. A matrix may have any type that the kernels read; a
    /// vector is F32.
    fn shaped(&self, name: String, mut shape: Vec<usize>) -> Result<TensorView> {
        let view = self.checkpoint.tensor(&name).ok_or_else(|| self.checkpoint.error("missing tensor", &name))?;
        shape.reverse();
        if !has_shape(view, &shape) {
            let e = self.checkpoint.error("tensor of the wrong shape", &name).got(format!("{:?}", view.shape()));
            return Err(e.limit(format!("{shape:?}")).into());
        }
        let dtype = view.dtype();
        if shape.len() > 1 && !dtype.is_supported() {
            let supported = DType::ALL.iter().filter(|t| t.is_supported()).map(|t| t.name());
            let supported = supported.collect::<Vec<_>>().join(", ");
            return Err(self.unsupported(format!("tensor {name} of type {dtype}; supported are {supported}")));
        }
        if shape.len() == 1 && dtype != DType::F32 {
            return Err(self.unsupported(format!("tensor {name} of type {dtype}; only F32 is supported there")));
        }
        Ok(view.clone())
    }

    fn refuse_unknown(&self, n_layers: usize) -> Result<()> {
        let in_layers = LAYER.iter().filter(|declared| self.has(declared));
        let in_layers: Vec<_> =
            in_layers.map(|declared| self.fused(declared).map_or(declared.name, |(name, _)| name)).collect();
        for tensor in self.checkpoint.tensors() {
            let known = match tensor.name().strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
                Some((i, part)) => {
                    in_layers.contains(&part) && i.parse::<usize>().is_ok_and(|n| n < n_layers && n.to_string() == i)
                }
                None => OTHERS.iter().any(|declared| declared.name == tensor.name()),
            };
            if !known {
                let name: String = tensor.name().chars().take(80).flat_map(char::escape_debug).collect();
                return Err(self.unsupported(format!(
                    "tensor {name}; a plain {} has none, and without it the text is wrong",
                    self.architecture.name
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
    use std::path::Path;

    use super::*;
    use crate::arch::{ARCHITECTURES, Activation, AttentionConfig, Ffn, LayerConfig, RopeConfig, RopeStyle};
    use crate::checkpoint::{Metadata, TensorInfo};
    use crate::mapping::{Bytes, Mapping};

    #[test]
    fn what_an_architecture_adds_to_a_layer_is_declared() {
        for architecture in ARCHITECTURES {
            for name in architecture.tensors {
                let declared = LAYER.iter().find(|declared| declared.name == *name);
                assert!(declared.is_some_and(|declared| !declared.always), "{}: {name}", architecture.name);
            }
        }
    }

    /// A model of one layer whose matrices are 8 x 8, 16 x 8 or 8 x 16 and lie one after another in one file, under these
    /// names and with so many rows; all bytes differ from row to row.
    fn model(tensors: &[(&str, usize, usize)]) -> Checkpoint {
        let mut at = 0;
        let mut all = Vec::new();
        let size = tensors.iter().map(|(_, rows, columns)| 4 * rows * columns).sum::<usize>();
        let map = Mapping::from_vec((0..size).map(|i| (i / 32 * 7) as u8).collect(), Path::new("fused"));
        for &(name, rows, columns) in tensors {
            let bytes = Bytes::new(&map, at..at + 4 * rows * columns).unwrap();
            at += bytes.len();
            let shape: &[usize] = if rows == 1 { &[columns] } else { &[columns, rows] };
            all.push(TensorInfo::new(name.into(), 0, TensorView::new(bytes, DType::F32, shape).unwrap()));
        }
        Checkpoint::new(Metadata::new(Path::new("fused"), Vec::new()).unwrap(), all, vec![(map, 0)]).unwrap()
    }

    #[test]
    fn tensors_that_are_fused_are_rows_of_one() {
        let attention = AttentionConfig { n_heads: 2, n_kv_heads: 1, head_dim: 4, rope: 0 };
        let ffn = Ffn { hidden_dim: 16, activation: Activation::Silu };
        let config = Config {
            architecture: "fused".into(),
            dim: 8,
            vocab_size: 8,
            context_length: 8,
            norm_eps: 1e-5,
            layers: vec![LayerConfig { mixer: Mixer::Attention(attention), ffn }],
            ropes: vec![RopeConfig { dim: 4, theta: 1e4, scale: 1.0, style: RopeStyle::Half }],
        };
        let architecture = Architecture {
            name: "fused",
            read: |_| unreachable!(),
            tensors: &[],
            fused: &[
                ("attn_qkv.weight", &["attn_q.weight", "attn_k.weight", "attn_v.weight"]),
                ("ffn_up.weight", &["ffn_gate.weight", "ffn_up.weight"]), // the gate first, as in phi3
            ],
        };
        let plain = Architecture { fused: &[], ..architecture };
        let head = [("token_embd.weight", 8, 8), ("output_norm.weight", 1, 8), ("blk.0.attn_norm.weight", 1, 8)];
        let (wo, ffn_norm) = (("blk.0.attn_output.weight", 8, 8), ("blk.0.ffn_norm.weight", 1, 8));
        let down = ("blk.0.ffn_down.weight", 8, 16);
        let qkv = [("blk.0.attn_q.weight", 8, 8), ("blk.0.attn_k.weight", 4, 8), ("blk.0.attn_v.weight", 4, 8)];
        let gate_up = [("blk.0.ffn_gate.weight", 16, 8), ("blk.0.ffn_up.weight", 16, 8)];
        let apart = model(&[&head[..], &qkv, &[wo, ffn_norm], &gate_up, &[down]].concat());
        let one = [("blk.0.attn_qkv.weight", 16, 8), wo, ffn_norm, ("blk.0.ffn_up.weight", 32, 8), down];
        let fused = model(&[&head[..], &one].concat());

        let expected = Weights::of(&apart, &config, &plain).unwrap();
        let found = Weights::of(&fused, &config, &architecture).unwrap();
        let shown = |weights: &Weights| -> Vec<_> {
            let tensors = weights.layers[0].tensors();
            tensors.map(|(name, view)| (name, view.shape().to_vec(), view.bytes().range())).collect()
        };
        assert_eq!(shown(&found), shown(&expected));

        // One is not taken for the other, and no part of it may be missing.
        let e = Weights::of(&apart, &config, &architecture).unwrap_err().to_string();
        assert!(e.contains("missing tensor (blk.0.attn_qkv.weight)"), "{e}");
        let e = Weights::of(&fused, &config, &plain).unwrap_err().to_string();
        assert!(e.contains("missing tensor (blk.0.attn_q.weight)"), "{e}");
        let one = [("blk.0.attn_qkv.weight", 12, 8), wo, ffn_norm, ("blk.0.ffn_up.weight", 32, 8), down];
        let e = Weights::of(&model(&[&head[..], &one].concat()), &config, &architecture).unwrap_err().to_string();
        assert!(e.contains("(blk.0.attn_qkv.weight): got [8, 12], expected [8, 16]"), "{e}");
    }

    #[test]
    fn an_adapter_may_change_the_matrices_of_a_layer() {
        let parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        assert!(adapter_targets().eq(parts.map(|part| format!("{part}.weight"))));
    }
}
