//! Every weight of a model, as a view of the mapped file.
//!
//! The one place that knows which tensors there have to be, of which shape and type. A tensor that we
//! do not know is refused, because ignoring it (a bias, a norm of the queries) would give wrong text.
//!
//! Shapes are written as numpy prints them, rows first; [`TensorView::shape`] is the other way round.

use crate::error::{Error, Result};
use crate::formats::Checkpoint;
use crate::model::Config;
use crate::model::names::{self, layer};
use crate::quant::DType;
use crate::tensor::TensorView;

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

/// The weights of one layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// `(dim)`, F32
    pub attn_norm: TensorView,
    /// `(n_heads * head_dim, dim)`
    pub wq: TensorView,
    /// `(n_kv_heads * head_dim, dim)`
    pub wk: TensorView,
    /// `(n_kv_heads * head_dim, dim)`
    pub wv: TensorView,
    /// `(dim, n_heads * head_dim)`
    pub wo: TensorView,
    /// `(dim)`, F32
    pub ffn_norm: TensorView,
    /// `(hidden_dim, dim)`
    pub w_gate: TensorView,
    /// `(hidden_dim, dim)`
    pub w_up: TensorView,
    /// `(dim, hidden_dim)`
    pub w_down: TensorView,
}

impl Weights {
    /// Finds every weight and checks its shape and type. Reads none of them.
    ///
    /// # Errors
    /// [`Error::Format`] for a tensor that is missing or has the wrong shape, [`Error::Unsupported`]
    /// for one of a type that we cannot compute with, or whose meaning we do not know.
    pub fn from_checkpoint(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let &Config { dim, hidden_dim, vocab_size, n_heads, n_kv_heads, head_dim, .. } = config;
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let source = Source(checkpoint);

        let token_embedding = source.matrix(names::TOKEN_EMBEDDING, vocab_size, dim)?;
        let output = match checkpoint.tensor(names::OUTPUT) {
            Some(_) => source.matrix(names::OUTPUT, vocab_size, dim)?,
            None => token_embedding.clone(),
        };
        let rope_freq_factors = match checkpoint.tensor(names::ROPE_FREQ_FACTORS) {
            Some(_) => Some(source.vector(names::ROPE_FREQ_FACTORS, config.rope_dim / 2)?),
            None => None,
        };
        let layers = (0..config.n_layers).map(|i| {
            let matrix = |part, rows, columns| source.matrix(&names::of_layer(i, part), rows, columns);
            let vector = |part, len| source.vector(&names::of_layer(i, part), len);
            Ok(LayerWeights {
                attn_norm: vector(layer::ATTN_NORM, dim)?,
                wq: matrix(layer::WQ, q_dim, dim)?,
                wk: matrix(layer::WK, kv_dim, dim)?,
                wv: matrix(layer::WV, kv_dim, dim)?,
                wo: matrix(layer::WO, dim, q_dim)?,
                ffn_norm: vector(layer::FFN_NORM, dim)?,
                w_gate: matrix(layer::W_GATE, hidden_dim, dim)?,
                w_up: matrix(layer::W_UP, hidden_dim, dim)?,
                w_down: matrix(layer::W_DOWN, dim, hidden_dim)?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let output_norm = source.vector(names::OUTPUT_NORM, dim)?;
        source.refuse_unknown(config)?;
        Ok(Self { token_embedding, layers, output_norm, output, rope_freq_factors })
    }
}

struct Source<'a>(&'a Checkpoint);

impl Source<'_> {
    /// A matrix of `rows` rows, of any type that the kernels read.
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<TensorView> {
        let view = self.shaped(name, &[columns, rows])?;
        if !view.dtype().is_supported() {
            let supported = DType::ALL.iter().filter(|t| t.is_supported()).map(|t| t.name());
            let supported = supported.collect::<Vec<_>>().join(", ");
            return Err(self.unsupported(format!("tensor {name} of type {}; supported are {supported}", view.dtype())));
        }
        Ok(view)
    }

    fn vector(&self, name: &str, len: usize) -> Result<TensorView> {
        let view = self.shaped(name, &[len])?;
        if view.dtype() != DType::F32 {
            return Err(
                self.unsupported(format!("tensor {name} of type {}; only F32 is supported there", view.dtype()))
            );
        }
        Ok(view)
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<TensorView> {
        let view = self.0.tensor(name).ok_or_else(|| self.0.error("missing tensor", name))?;
        if !has_shape(view, shape) {
            let e = self.0.error("tensor of the wrong shape", name).got(format!("{:?}", view.shape()));
            return Err(e.limit(format!("{shape:?}")).into());
        }
        Ok(view.clone())
    }

    fn refuse_unknown(&self, config: &Config) -> Result<()> {
        use names::{OUTPUT, OUTPUT_NORM, ROPE_FREQ_FACTORS, TOKEN_EMBEDDING};
        for tensor in self.0.tensors() {
            let known = match tensor.name().strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
                Some((i, part)) => layer::ALL.contains(&part) && i.parse::<usize>().is_ok_and(|i| i < config.n_layers),
                None => [TOKEN_EMBEDDING, OUTPUT_NORM, OUTPUT, ROPE_FREQ_FACTORS].contains(&tensor.name()),
            };
            if !known {
                let name: String = tensor.name().chars().take(80).flat_map(char::escape_debug).collect();
                return Err(self.unsupported(format!(
                    "tensor {name}; a plain {} has none, and without it the text is wrong",
                    config.architecture
                )));
            }
        }
        Ok(())
    }

    fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.0.metadata.path().to_path_buf(), what }
    }
}

/// Whether the view has this shape; trailing dimensions of length 1 do not count.
fn has_shape(view: &TensorView, shape: &[usize]) -> bool {
    let n = view.shape().iter().rposition(|&d| d != 1).map_or(0, |last| last + 1).max(shape.len());
    view.shape().get(..n) == Some(shape)
}
