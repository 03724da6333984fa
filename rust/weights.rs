//! Every weight of a model, as a view of the mapped file.
//!
//! The one place that knows which tensors there are, of which name, shape and type: a declaration for each step of a pass,
//! and one of the tensors that belong to no layer. From them come the structs, what is loaded and checked, the order in
//! which a file is read ahead, and what an adapter may change. Several that a file keeps in one tensor are ranges of its
//! rows. A tensor of the file that no step has taken is refused: ignoring it (a bias, a norm of the queries) would give
//! wrong text.
//!
//! Shapes are written as numpy prints them, rows first; [`TensorView::shape`] is the other way round.

use std::cell::RefCell;

use crate::arch::{
    AttentionConfig, Config, DeltaNetConfig, DenseConfig, ExpertsConfig, Ffn, Gate, LatentConfig, LayerConfig,
    MambaConfig, Mixer, NormKind, QkNorm, ShortConvConfig, Values,
};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernels::Numbers;
use crate::quant::DType;
use crate::tensor::TensorView;

/// A matrix, and what belongs to the product with it: `scale * (weight x) + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `(rows, columns)`
    pub weight: TensorView,
    /// `(rows)`, floats
    pub bias: Option<TensorView>,
    /// `(1)`, F32: what the product is multiplied with (NVFP4, BitNet).
    pub scale: Option<TensorView>,
}

/// The weights of a norm. Some have none.
#[derive(Debug, Clone)]
pub struct NormWeights {
    /// `(dim)`, floats
    pub weight: TensorView,
    /// `(dim)`, floats
    pub bias: Option<TensorView>,
}

/// A matrix of each expert.
#[derive(Debug, Clone)]
pub struct Stack {
    experts: Matrices,
    rows: usize,
    /// `(n_experts, rows)`, floats
    pub bias: Option<TensorView>,
    /// `(n_experts)`, F32: what the products are multiplied with.
    pub scale: Option<TensorView>,
}

#[derive(Debug, Clone)]
enum Matrices {
    /// Of one tensor; those of an expert start at its multiple of `every` rows and `first`.
    Stacked { tensor: TensorView, every: usize, first: usize },
    /// A tensor each.
    Apart(Vec<TensorView>),
}

impl Stack {
    /// The matrix of an expert, `(rows, columns)`.
    ///
    /// # Panics
    /// If there is no such expert.
    pub fn expert(&self, i: usize) -> TensorView {
        match &self.experts {
            Matrices::Stacked { tensor, every, first } => {
                let start = i * every + first;
                tensor.rows(start..start + self.rows).expect("as many experts as were counted")
            }
            Matrices::Apart(experts) => experts[i].clone(),
        }
    }

    /// Rows of a matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// A declared tensor.
pub struct Declared {
    /// What we call it.
    pub field: &'static str,
    /// What GGUF calls it; without its `blk.N.` if it belongs to a layer, and without the end that its kind adds.
    pub name: &'static str,
    needed: fn(&Sizes) -> Need,
    shape: fn(&Sizes) -> Vec<usize>, // rows first
}

/// Whether a file has a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Yes,
    No,
    Maybe,
}

/// What shapes are made of, and what is there.
#[derive(Default)]
struct Sizes {
    vocab_size: usize,
    dim: usize,
    n_types: usize,
    n_positions: usize,
    has_types: bool,
    has_positions: bool,
    has_embedding_norm: bool,
    n_inner: usize,
    n_outer: usize,
    classifier_dim: usize,
    n_labels: usize,
    q_rows: usize,  // n_heads * head_dim, and of the gate beside them
    kv_dim: usize,  // n_kv_heads * head_dim
    v_dim: usize,   // n_kv_heads * value_dim
    out_dim: usize, // n_heads * value_dim
    n_heads: usize,
    q_norm: usize,
    k_norm: usize,
    q_norms: usize, // 1, or one of each head
    k_norms: usize,
    has_qk_norm: bool,
    has_k_norm: bool,
    has_keys: bool,
    has_values: bool,
    query_rank: usize,
    rank: usize,
    rank_and_rope: usize,
    nope_dim: usize,
    kv_rows: usize, // n_heads * (nope_dim + value_dim)
    has_query_rank: bool,
    has_no_query_rank: bool,
    is_absorbed: bool,
    is_expanded: bool,
    has_sinks: bool,
    hidden_dim: usize,
    is_gated: bool,
    n_experts: usize,
    shared_dim: usize,
    has_shared: bool,
    has_shared_gate: bool,
    layer_embedding_dim: usize,
    layer_embedding_dims: usize, // of all layers
    has_layer_embedding: bool,
    n_streams: usize,
    n_other_streams: usize,
    n_pairs_of_streams: usize,
    laurel_rank: usize,
    has_streams: bool,
    pairs: usize, // that are rotated
    n_taps: usize,
    channels: usize,
    value_dim: usize,
    n_groups: usize,
    group_dim: usize,
    inner_dim: usize,
    in_dim: usize,
    two_heads: usize,
    three_dims: usize,
    has_fused_rates: bool,
    has_rates: bool,
    has_fused_heads: bool,
    has_heads: bool,
    is_normed: bool,
}

/// A field of a struct of weights.
trait Slot: Sized {
    fn find(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Option<Self>>;
    fn views(&self) -> Vec<&TensorView>;
    fn linear(&self) -> Option<&Linear> {
        None
    }
}

impl Slot for TensorView {
    fn find(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Option<Self>> {
        source.tensor(&format!("{prefix}{}", declared.name), &(declared.shape)(sizes))
    }

    fn views(&self) -> Vec<&TensorView> {
        vec![self]
    }
}

/// Numbers that are used as they are, floats; files differ in what dimensions they give them.
#[derive(Debug, Clone)]
pub struct Floats(TensorView);

impl Floats {
    /// The numbers as they lie in the file, of the declared shape.
    pub fn numbers(&self) -> Numbers<'_> {
        Numbers::of(&self.0).expect("floats: that was checked when they were found")
    }
}

impl Slot for Floats {
    fn find(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Option<Self>> {
        source.floats(&format!("{prefix}{}", declared.name), &(declared.shape)(sizes))
    }

    fn views(&self) -> Vec<&TensorView> {
        vec![&self.0]
    }
}

impl Slot for NormWeights {
    fn find(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Option<Self>> {
        source.norm(&format!("{prefix}{}", declared.name), &(declared.shape)(sizes))
    }

    fn views(&self) -> Vec<&TensorView> {
        std::iter::once(&self.weight).chain(&self.bias).collect()
    }
}

impl Slot for Linear {
    fn find(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Option<Self>> {
        source.linear(prefix, declared, sizes)
    }

    fn views(&self) -> Vec<&TensorView> {
        std::iter::once(&self.weight).chain(&self.bias).chain(&self.scale).collect()
    }

    fn linear(&self) -> Option<&Linear> {
        Some(self)
    }
}

impl Slot for Stack {
    fn find(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Option<Self>> {
        source.stack(prefix, declared, sizes)
    }

    fn views(&self) -> Vec<&TensorView> {
        Vec::new() // of experts only those that are chosen are read
    }
}

/// A field whose tensor may be missing.
trait Field: Sized {
    fn load(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Self>;
    fn views(&self) -> Vec<&TensorView>;
    fn linear(&self) -> Option<&Linear>;
}

impl<S: Slot> Field for S {
    fn load(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Self> {
        S::find(source, prefix, declared, sizes)?.ok_or_else(|| source.missing(prefix, declared))
    }

    fn views(&self) -> Vec<&TensorView> {
        Slot::views(self)
    }

    fn linear(&self) -> Option<&Linear> {
        Slot::linear(self)
    }
}

impl<S: Slot> Field for Option<S> {
    fn load(source: &Source, prefix: &str, declared: &'static Declared, sizes: &Sizes) -> Result<Self> {
        let need = (declared.needed)(sizes);
        if need == Need::No {
            return Ok(None);
        }
        let found = S::find(source, prefix, declared, sizes)?;
        if found.is_none() && need == Need::Yes { Err(source.missing(prefix, declared)) } else { Ok(found) }
    }

    fn views(&self) -> Vec<&TensorView> {
        self.iter().flat_map(Slot::views).collect()
    }

    fn linear(&self) -> Option<&Linear> {
        self.as_ref().and_then(Slot::linear)
    }
}

/// Declares tensors: a field, its name in GGUF and its shape, in the order in which a pass reads them. What is optional is
/// there if the file has it, or with `if` just where the config says so.
macro_rules! declare {
    (
        $(#[$about:meta])* $visible:vis struct $Struct:ident, $TABLE:ident;
        $($(#[$doc:meta])* $field:ident: $Type:ty = $name:literal [$($size:ident),+] $(if $flag:ident)?;)+
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone)]
        $visible struct $Struct {
            $($(#[$doc])* pub $field: $Type,)+
        }

        const $TABLE: &[Declared] = &[$(Declared {
            field: stringify!($field),
            name: $name,
            needed: |_sizes| need!(_sizes $($flag)?),
            shape: |sizes| vec![$(sizes.$size),+],
        }),+];

        impl $Struct {
            fn load(source: &Source, prefix: &str, sizes: &Sizes) -> Result<Self> {
                let mut declared = $TABLE.iter();
                $(
                    let here = declared.next().expect("a row for each field");
                    let $field = <$Type as Field>::load(source, prefix, here, sizes)?;
                )+
                Ok(Self { $($field),+ })
            }

            /// The tensors that are there and that every pass reads, in its order.
            #[allow(dead_code)] // of those that belong to no layer nobody asks
            fn views(&self) -> Vec<&TensorView> {
                let mut all = Vec::new();
                $(all.extend(Field::views(&self.$field));)+
                all
            }

            /// The matrices that are multiplied with all rows of a batch.
            #[allow(dead_code)] // of those that belong to no layer nobody asks
            fn linears(&self) -> Vec<&Linear> {
                let mut all = Vec::new();
                $(all.extend(Field::linear(&self.$field));)+
                all
            }
        }
    };
}

macro_rules! need {
    ($sizes:ident) => {
        Need::Maybe
    };
    ($sizes:ident $flag:ident) => {
        if $sizes.$flag { Need::Yes } else { Need::No }
    };
}

declare! {
    /// The weights of an attention.
    pub struct AttentionWeights, ATTENTION;

    /// `(n_heads * head_dim, dim)`; the gate's rows follow those of each head, where it is beside the queries.
    wq: Linear = "attn_q" [q_rows, dim];
    /// `(n_kv_heads * head_dim, dim)`
    wk: Option<Linear> = "attn_k" [kv_dim, dim] if has_keys;
    /// `(n_kv_heads * value_dim, dim)`
    wv: Option<Linear> = "attn_v" [v_dim, dim] if has_values;
    /// `(head_dim)`, or of all heads
    q_norm: Option<NormWeights> = "attn_q_norm" [q_norms, q_norm] if has_qk_norm;
    /// `(head_dim)`, or of all heads
    k_norm: Option<NormWeights> = "attn_k_norm" [k_norms, k_norm] if has_k_norm;
    /// `(n_heads)`
    sinks: Option<TensorView> = "attn_sinks.weight" [n_heads] if has_sinks;
    /// `(dim, n_heads * value_dim)`
    wo: Linear = "attn_output" [dim, out_dim];
}

declare! {
    /// The weights of a latent attention.
    pub struct LatentWeights, LATENT;

    /// `(n_heads * (nope_dim + rope_dim), dim)`
    wq: Option<Linear> = "attn_q" [q_rows, dim] if has_no_query_rank;
    /// `(query_rank, dim)`
    wq_a: Option<Linear> = "attn_q_a" [query_rank, dim] if has_query_rank;
    /// `(rank + rope_dim, dim)`
    wkv_a: Linear = "attn_kv_a_mqa" [rank_and_rope, dim];
    /// `(query_rank)`
    q_norm: Option<NormWeights> = "attn_q_a_norm" [query_rank] if has_query_rank;
    /// `(n_heads * (nope_dim + rope_dim), query_rank)`
    wq_b: Option<Linear> = "attn_q_b" [q_rows, query_rank] if has_query_rank;
    /// `(rank)`
    kv_norm: NormWeights = "attn_kv_a_norm" [rank];
    /// `(n_heads, rank, nope_dim)`
    wk_b: Option<TensorView> = "attn_k_b.weight" [n_heads, rank, nope_dim] if is_absorbed;
    /// `(n_heads, value_dim, rank)`
    wv_b: Option<TensorView> = "attn_v_b.weight" [n_heads, value_dim, rank] if is_absorbed;
    /// `(n_heads * (nope_dim + value_dim), rank)`: keys of a head, then its values
    wkv_b: Option<Linear> = "attn_kv_b" [kv_rows, rank] if is_expanded;
    /// `(dim, n_heads * value_dim)`
    wo: Linear = "attn_output" [dim, out_dim];
}

declare! {
    /// The weights of a feed-forward network.
    pub struct DenseWeights, DENSE;

    /// `(hidden_dim, dim)`
    w_gate: Option<Linear> = "ffn_gate" [hidden_dim, dim] if is_gated;
    /// `(hidden_dim, dim)`
    w_up: Linear = "ffn_up" [hidden_dim, dim];
    /// `(dim, hidden_dim)`
    w_down: Linear = "ffn_down" [dim, hidden_dim];
}

declare! {
    /// The weights of a mixture of experts.
    pub struct ExpertsWeights, EXPERTS;

    /// `(n_experts, dim)`
    router: TensorView = "ffn_gate_inp.weight" [n_experts, dim];
    /// `(n_experts)`
    router_bias: Option<TensorView> = "ffn_gate_inp.bias" [n_experts];
    /// `(n_experts)`: added to the weights to choose by
    choice_bias: Option<TensorView> = "exp_probs_b.bias" [n_experts];
    /// `(n_experts, hidden_dim, dim)`
    w_gate: Option<Stack> = "ffn_gate_exps" [n_experts, hidden_dim, dim] if is_gated;
    /// `(n_experts, hidden_dim, dim)`
    w_up: Stack = "ffn_up_exps" [n_experts, hidden_dim, dim];
    /// `(n_experts, dim, hidden_dim)`
    w_down: Stack = "ffn_down_exps" [n_experts, dim, hidden_dim];
    /// `(dim)`: its product's sigmoid multiplies what the shared expert gives
    shared_router: Option<TensorView> = "ffn_gate_inp_shexp.weight" [dim] if has_shared_gate;
    /// `(shared_dim, dim)`
    shared_gate: Option<Linear> = "ffn_gate_shexp" [shared_dim, dim] if has_shared;
    /// `(shared_dim, dim)`
    shared_up: Option<Linear> = "ffn_up_shexp" [shared_dim, dim] if has_shared;
    /// `(dim, shared_dim)`
    shared_down: Option<Linear> = "ffn_down_shexp" [dim, shared_dim] if has_shared;
}

declare! {
    /// The weights of a Gated DeltaNet.
    pub struct DeltaNetWeights, DELTA_NET;

    /// `(channels, dim)`: queries, keys, values
    qkv: Option<Linear> = "attn_qkv" [channels, dim] if has_heads;
    /// `(n_heads * value_dim, dim)`
    gate: Option<Linear> = "attn_gate" [inner_dim, dim] if has_heads;
    /// `(channels + n_heads * value_dim, dim)`: for each key head its query, key, and the values and gates that use it
    qkv_and_gate: Option<Linear> = "ssm_in" [in_dim, dim] if has_fused_heads;
    /// `(n_heads, dim)`
    beta: Option<Linear> = "ssm_beta" [n_heads, dim] if has_rates;
    /// `(n_heads, dim)`
    alpha: Option<Linear> = "ssm_alpha" [n_heads, dim] if has_rates;
    /// `(2 * n_heads, dim)`: for each key head the rows of `beta` that use it, then those of `alpha`
    beta_and_alpha: Option<Linear> = "ssm_ba" [two_heads, dim] if has_fused_rates;
    /// `(channels, n_taps)`
    conv: Floats = "ssm_conv1d.weight" [channels, n_taps];
    /// `(n_heads)`: added to what `alpha` gives
    dt: Floats = "ssm_dt.bias" [n_heads];
    /// `(n_heads)`, below zero
    a: Floats = "ssm_a" [n_heads];
    /// `(value_dim)`
    norm: Floats = "ssm_norm.weight" [value_dim];
    /// `(dim, n_heads * value_dim)`
    out: Linear = "ssm_out" [dim, inner_dim];
}

declare! {
    /// The weights of a gated short convolution.
    pub struct ShortConvWeights, SHORT_CONV;

    /// `(3 * dim, dim)`: two gates, and what they are gates of
    bcx: Linear = "shortconv.in_proj" [three_dims, dim];
    /// `(dim, n_taps)`
    conv: Floats = "shortconv.conv.weight" [dim, n_taps];
    /// `(dim, dim)`
    out: Linear = "shortconv.out_proj" [dim, dim];
}

declare! {
    /// The weights of a Mamba-2.
    pub struct MambaWeights, MAMBA;

    /// `(inner_dim + channels + n_heads, dim)`: gate; values, B, C; time steps
    zxbcdt: Linear = "ssm_in" [in_dim, dim];
    /// `(channels, n_taps)`
    conv: Floats = "ssm_conv1d.weight" [channels, n_taps];
    /// `(channels)`
    conv_bias: Option<Floats> = "ssm_conv1d.bias" [channels];
    /// `(n_heads)`: added to time steps
    dt: Floats = "ssm_dt.bias" [n_heads];
    /// `(n_heads)`, below zero
    a: Floats = "ssm_a" [n_heads];
    /// `(n_heads)`
    d: Floats = "ssm_d" [n_heads];
    /// `(n_groups, group_dim)`
    norm: Option<Floats> = "ssm_norm.weight" [n_groups, group_dim] if is_normed;
    /// `(dim, inner_dim)`
    out: Linear = "ssm_out" [dim, inner_dim];
}

declare! {
    /// What a mixture has that goes side by side with a network.
    pub struct BesideWeights, BESIDE;

    /// Of what the network gives.
    after_dense: NormWeights = "post_ffw_norm_1" [dim];
    /// Of what goes into the experts.
    before_experts: NormWeights = "pre_ffw_norm_2" [dim];
    /// Of what the experts give.
    after_experts: NormWeights = "post_ffw_norm_2" [dim];
    /// `(dim)`: what the router's input is multiplied with.
    router_scale: TensorView = "ffn_gate_inp.scale" [dim];
}

declare! {
    /// How a layer takes the embeddings that tokens have for it.
    pub struct LayerEmbeddingWeights, LAYER_EMBEDDING;

    /// `(layer_embedding_dim, dim)`
    w_gate: Linear = "inp_gate" [layer_embedding_dim, dim];
    /// `(dim, layer_embedding_dim)`
    w_proj: Linear = "proj" [dim, layer_embedding_dim];
    /// Of what is added.
    norm: NormWeights = "post_norm" [dim];
}

declare! {
    /// How a layer predicts and corrects streams, and its branch of low rank beside attention.
    pub struct StreamsWeights, STREAMS;

    /// Of what goes into the router.
    router_norm: NormWeights = "altup_router_norm" [dim];
    /// `(n_streams, dim)`
    router: TensorView = "altup_router.weight" [n_streams, dim];
    /// `(n_streams * n_streams, n_streams)`: for each stream how much of each other it takes, by what the router says
    predict: Floats = "altup_predict_coef.weight" [n_pairs_of_streams, n_streams];
    /// `(rank, dim)`
    laurel_l: Linear = "laurel_l" [laurel_rank, dim];
    /// `(dim, rank)`
    laurel_r: Linear = "laurel_r" [dim, laurel_rank];
    /// Of what the branch gives.
    laurel_norm: NormWeights = "laurel_post_norm" [dim];
    /// `(n_streams, n_streams)`: for each stream how much it takes of what is new, by what the router says
    correct: Floats = "altup_correct_coef.weight" [n_streams, n_streams];
    /// `(dim)`: what the first stream is multiplied with for the embeddings of the layer
    scale: Floats = "altup_correct_scale.weight" [dim];
}

declare! {
    struct Others, OTHERS;

    token_embedding: TensorView = "token_embd.weight" [vocab_size, dim];
    token_types: Option<TensorView> = "token_types.weight" [n_types, dim] if has_types;
    position_embedding: Option<TensorView> = "position_embd.weight" [n_positions, dim] if has_positions;
    embedding_norm: Option<NormWeights> = "token_embd_norm" [dim] if has_embedding_norm;
    rope_freq_factors: Option<TensorView> = "rope_freqs.weight" [pairs];
    rope_factors_long: Option<TensorView> = "rope_factors_long.weight" [pairs];
    rope_factors_short: Option<TensorView> = "rope_factors_short.weight" [pairs];
    layer_embedding: Option<TensorView> = "per_layer_token_embd.weight" [vocab_size, layer_embedding_dims] if has_layer_embedding;
    layer_proj: Option<Linear> = "per_layer_model_proj" [layer_embedding_dims, dim] if has_layer_embedding;
    layer_proj_norm: Option<NormWeights> = "per_layer_proj_norm" [layer_embedding_dim] if has_layer_embedding;
    stream_proj: Option<TensorView> = "altup_proj.weight" [n_other_streams, dim, dim] if has_streams;
    stream_unproj: Option<TensorView> = "altup_unembd_proj.weight" [n_other_streams, dim, dim] if has_streams;
    output: Option<Linear> = "output" [vocab_size, dim];
}

declare! {
    /// What becomes of the vector of a text.
    pub struct PooledWeights, POOLED;

    /// `(n_inner, dim)`
    dense_2: Option<Linear> = "dense_2" [n_inner, dim];
    /// `(n_outer, n_inner)`
    dense_3: Option<Linear> = "dense_3" [n_outer, n_inner];
    /// `(classifier_dim, dim)`
    classifier: Option<Linear> = "cls" [classifier_dim, dim];
    /// `(classifier_dim)`
    classifier_norm: Option<NormWeights> = "cls.norm" [classifier_dim];
    /// `(n_labels, classifier_dim)`
    classifier_output: Option<Linear> = "cls.output" [n_labels, classifier_dim];
}

/// The embeddings that tokens have for each layer.
#[derive(Debug, Clone)]
pub struct LayerEmbedding {
    /// `(vocab_size, layers * layer_embedding_dim)`: read by row.
    pub tokens: TensorView,
    /// `(layers * layer_embedding_dim, dim)`: what the usual embedding adds to them.
    pub proj: Linear,
    /// `(layer_embedding_dim)`, of what it adds.
    pub norm: NormWeights,
}

/// What streams are made of in the beginning, and what is made of them in the end.
#[derive(Debug, Clone)]
pub struct Widening {
    /// `(n_streams - 1, dim, dim)`: embeddings to the streams but for the first.
    pub proj: TensorView,
    /// `(n_streams - 1, dim, dim)`: those to what is added to the first.
    pub unproj: TensorView,
}

/// Tensors that hold the rows of others, one after another: those of `layer`'s tables with these names.
const FUSED: &[(&str, &[&str])] = &[("attn_qkv", &["attn_q", "attn_k", "attn_v"]), ("ffn_up", &["ffn_gate", "ffn_up"])];

/// Stacks whose experts hold the rows of others.
const FUSED_STACKS: &[(&str, &[&str])] = &[("ffn_gate_up_exps", &["ffn_gate_exps", "ffn_up_exps"])];

/// The weights of one layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// See [`Norms`](crate::arch::Norms), and so are the others.
    pub mixer_norm: Option<NormWeights>,
    /// What looks at other positions.
    pub mixer: MixerWeights,
    #[allow(missing_docs)]
    pub after_mixer: Option<NormWeights>,
    #[allow(missing_docs)]
    pub ffn_norm: Option<NormWeights>,
    /// What looks at each position by itself.
    pub ffn: FfnWeights,
    #[allow(missing_docs)]
    pub after_ffn: Option<NormWeights>,
    /// Those of the stream after the mixer, one after the other.
    pub mixer_sums: [Option<NormWeights>; 2],
    #[allow(missing_docs)]
    pub ffn_sum: Option<NormWeights>,
    /// How it takes the embeddings that tokens have for it.
    pub embedding: Option<LayerEmbeddingWeights>,
    /// How it predicts and corrects streams, if there are several.
    pub streams: Option<StreamsWeights>,
    /// `(1)`: what the residual stream is multiplied with in the end.
    pub output_scale: Option<TensorView>,
}

/// The weights of a [`Mixer`].
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum MixerWeights {
    Attention(Box<AttentionWeights>),
    DeltaNet(Box<DeltaNetWeights>),
    ShortConv(Box<ShortConvWeights>),
    Mamba(Box<MambaWeights>),
    AttentionAndMamba(Box<AttentionWeights>, Box<MambaWeights>),
    Latent(Box<LatentWeights>),
}

/// The weights of an [`Ffn`].
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum FfnWeights {
    Dense(Box<DenseWeights>),
    Experts(Box<ExpertsWeights>),
    Both(Box<(DenseWeights, ExpertsWeights, BesideWeights)>),
}

impl LayerWeights {
    fn load(source: &Source, i: usize, layer: &LayerConfig) -> Result<Self> {
        let prefix = format!("blk.{i}.");
        let norm = |name: Option<&'static str>| {
            let Some(name) = name.map(|name| format!("{prefix}{name}")) else { return Ok(None) };
            let found = source.norm(&name, &[source.config.dim])?;
            found.map(Some).ok_or_else(|| source.missing_tensor(&format!("{name}.weight")))
        };
        let dim = source.config.dim;
        Ok(Self {
            mixer_norm: norm(layer.norms.mixer)?,
            mixer: match &layer.mixer {
                Mixer::Attention(a) => MixerWeights::Attention(
                    AttentionWeights::load(source, &prefix, &Sizes::of_attention(dim, a))?.into(),
                ),
                Mixer::DeltaNet(d) => {
                    MixerWeights::DeltaNet(DeltaNetWeights::load(source, &prefix, &Sizes::of_delta_net(dim, d))?.into())
                }
                Mixer::ShortConv(c) => MixerWeights::ShortConv(
                    ShortConvWeights::load(source, &prefix, &Sizes::of_short_conv(dim, c))?.into(),
                ),
                Mixer::Mamba(m) => {
                    MixerWeights::Mamba(MambaWeights::load(source, &prefix, &Sizes::of_mamba(dim, m))?.into())
                }
                Mixer::AttentionAndMamba(a, m) => MixerWeights::AttentionAndMamba(
                    AttentionWeights::load(source, &prefix, &Sizes::of_attention(dim, a))?.into(),
                    MambaWeights::load(source, &prefix, &Sizes::of_mamba(dim, m))?.into(),
                ),
                Mixer::Latent(a, l) => {
                    MixerWeights::Latent(Box::new(LatentWeights::load(source, &prefix, &Sizes::of_latent(dim, a, l))?))
                }
            },
            after_mixer: norm(layer.norms.after_mixer)?,
            ffn_norm: norm(layer.norms.ffn)?,
            ffn: match &layer.ffn {
                Ffn::Dense(dense) => {
                    FfnWeights::Dense(Box::new(DenseWeights::load(source, &prefix, &Sizes::of_dense(dim, dense))?))
                }
                Ffn::Both(dense, experts) => {
                    let sizes = Sizes::of_experts(dim, experts);
                    FfnWeights::Both(Box::new((
                        DenseWeights::load(source, &prefix, &Sizes::of_dense(dim, dense))?,
                        ExpertsWeights::load(source, &prefix, &sizes)?,
                        BesideWeights::load(source, &prefix, &sizes)?,
                    )))
                }
                Ffn::Experts(experts) => FfnWeights::Experts(Box::new(ExpertsWeights::load(
                    source,
                    &prefix,
                    &Sizes::of_experts(dim, experts),
                )?)),
            },
            after_ffn: norm(layer.norms.after_ffn)?,
            mixer_sums: [norm(layer.norms.mixer_sum)?, norm(layer.norms.mixer_sum_again)?],
            ffn_sum: norm(layer.norms.ffn_sum)?,
            embedding: source
                .config
                .layer_embedding_dim
                .map(|layer_embedding_dim| {
                    let sizes = Sizes { dim, layer_embedding_dim, ..Sizes::default() };
                    LayerEmbeddingWeights::load(source, &prefix, &sizes)
                })
                .transpose()?,
            streams: (source.config.n_streams > 1)
                .then(|| StreamsWeights::load(source, &prefix, &Sizes::of_streams(source, &prefix)))
                .transpose()?,
            output_scale: match layer.has_output_scale {
                true => source.tensor(&format!("{prefix}layer_output_scale.weight"), &[1])?,
                false => None,
            },
        })
    }

    /// The matrices that are multiplied with all rows of a batch: what an adapter (LoRA) may change. They are not those of
    /// experts.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.mixer {
            MixerWeights::Attention(attention) => attention.linears(),
            MixerWeights::DeltaNet(delta) => delta.linears(),
            MixerWeights::ShortConv(conv) => conv.linears(),
            MixerWeights::Mamba(mamba) => mamba.linears(),
            MixerWeights::AttentionAndMamba(attention, mamba) => [attention.linears(), mamba.linears()].concat(),
            MixerWeights::Latent(latent) => latent.linears(),
        };
        all.extend(match &self.ffn {
            FfnWeights::Dense(dense) => dense.linears(),
            FfnWeights::Experts(experts) => experts.linears(),
            FfnWeights::Both(both) => [both.0.linears(), both.1.linears()].concat(),
        });
        all.extend(self.embedding.iter().flat_map(LayerEmbeddingWeights::linears));
        all.extend(self.streams.iter().flat_map(StreamsWeights::linears));
        all
    }

    /// The tensors that every pass reads, in its order. Of experts only those are read that are chosen.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorView> {
        let mut all = Field::views(&self.mixer_norm);
        all.extend(self.streams.iter().flat_map(StreamsWeights::views));
        all.extend(match &self.mixer {
            MixerWeights::Attention(attention) => attention.views(),
            MixerWeights::DeltaNet(delta) => delta.views(),
            MixerWeights::ShortConv(conv) => conv.views(),
            MixerWeights::Mamba(mamba) => mamba.views(),
            MixerWeights::AttentionAndMamba(attention, mamba) => [attention.views(), mamba.views()].concat(),
            MixerWeights::Latent(latent) => latent.views(),
        });
        all.extend(Field::views(&self.after_mixer));
        all.extend(self.mixer_sums.iter().flat_map(Field::views));
        all.extend(Field::views(&self.ffn_norm));
        all.extend(match &self.ffn {
            FfnWeights::Dense(dense) => dense.views(),
            FfnWeights::Experts(experts) => experts.views(),
            FfnWeights::Both(both) => [both.0.views(), both.1.views(), both.2.views()].concat(),
        });
        all.extend(Field::views(&self.after_ffn));
        all.extend(Field::views(&self.ffn_sum));
        all.extend(self.embedding.iter().flat_map(LayerEmbeddingWeights::views));
        all.extend(&self.output_scale);
        all.into_iter()
    }
}

impl Sizes {
    fn of_attention(dim: usize, a: &AttentionConfig) -> Self {
        let (q_dim, kv_dim) = (a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim);
        let (of_all, of_each) = (a.qk_norm == QkNorm::All, a.qk_norm == QkNorm::OwnHeads);
        Self {
            dim,
            q_rows: match a.gate {
                Gate::None => q_dim,
                Gate::BesideQueries => 2 * q_dim,
            },
            kv_dim,
            v_dim: a.n_kv_heads * a.value_dim,
            out_dim: a.n_heads * a.value_dim,
            n_heads: a.n_heads,
            q_norm: if of_all { q_dim } else { a.head_dim },
            k_norm: if of_all { kv_dim } else { a.head_dim },
            q_norms: if of_each { a.n_heads } else { 1 },
            k_norms: if of_each { a.n_kv_heads } else { 1 },
            has_qk_norm: a.qk_norm != QkNorm::None,
            has_k_norm: a.qk_norm != QkNorm::None && a.kv_layer.is_none(),
            has_keys: a.kv_layer.is_none(),
            has_values: a.kv_layer.is_none() && a.values != Values::NormedKeys,
            has_sinks: a.sinks,
            ..Self::default()
        }
    }

    fn of_latent(dim: usize, a: &AttentionConfig, l: &LatentConfig) -> Self {
        Self {
            dim,
            n_heads: a.n_heads,
            q_rows: a.n_heads * (l.nope_dim + l.rope_dim),
            query_rank: l.query_rank.unwrap_or(0),
            rank: l.rank,
            rank_and_rope: l.rank + l.rope_dim,
            nope_dim: l.nope_dim,
            value_dim: l.value_dim,
            kv_rows: a.n_heads * (l.nope_dim + l.value_dim),
            out_dim: a.n_heads * l.value_dim,
            has_query_rank: l.query_rank.is_some(),
            has_no_query_rank: l.query_rank.is_none(),
            is_absorbed: l.absorbed,
            is_expanded: !l.absorbed,
            ..Self::default()
        }
    }

    fn of_delta_net(dim: usize, d: &DeltaNetConfig) -> Self {
        let (keys, inner_dim) = (d.heads.n_key_heads * d.heads.key_dim, d.heads.n_heads * d.heads.value_dim);
        Self {
            dim,
            n_taps: d.n_taps,
            n_heads: d.heads.n_heads,
            two_heads: 2 * d.heads.n_heads,
            value_dim: d.heads.value_dim,
            channels: 2 * keys + inner_dim,
            inner_dim,
            in_dim: 2 * keys + 2 * inner_dim,
            has_fused_rates: d.fused_rates,
            has_rates: !d.fused_rates,
            has_fused_heads: d.fused_heads,
            has_heads: !d.fused_heads,
            ..Self::default()
        }
    }

    fn of_short_conv(dim: usize, c: &ShortConvConfig) -> Self {
        Self { dim, n_taps: c.n_taps, three_dims: 3 * dim, ..Self::default() }
    }

    fn of_mamba(dim: usize, m: &MambaConfig) -> Self {
        Self {
            dim,
            n_taps: m.n_taps,
            n_heads: m.heads.n_heads,
            channels: m.channels(),
            inner_dim: m.inner_dim(),
            in_dim: m.inner_dim() + m.channels() + m.heads.n_heads,
            n_groups: m.heads.n_key_heads,
            group_dim: m.inner_dim() / m.heads.n_key_heads,
            is_normed: m.normed,
            ..Self::default()
        }
    }

    fn of_streams(source: &Source, prefix: &str) -> Self {
        let (dim, n_streams) = (source.config.dim, source.config.n_streams);
        Self { dim, laurel_rank: source.rows(&format!("{prefix}laurel_l.weight")), ..Self::of_all_streams(n_streams) }
    }

    fn of_all_streams(n_streams: usize) -> Self {
        Self {
            n_streams,
            n_other_streams: n_streams - 1,
            n_pairs_of_streams: n_streams * n_streams,
            has_streams: n_streams > 1,
            ..Self::default()
        }
    }

    fn of_dense(dim: usize, dense: &DenseConfig) -> Self {
        Self { dim, hidden_dim: dense.hidden_dim, is_gated: dense.gated, ..Self::default() }
    }

    fn of_experts(dim: usize, experts: &ExpertsConfig) -> Self {
        Self {
            n_experts: experts.n_experts,
            shared_dim: experts.shared.map_or(0, |shared| shared.hidden_dim),
            has_shared: experts.shared.is_some(),
            has_shared_gate: experts.shared.is_some_and(|shared| shared.gated),
            ..Self::of_dense(dim, &experts.expert)
        }
    }
}

/// The weights of a model.
#[derive(Debug, Clone)]
pub struct Weights {
    /// `(vocab_size, dim)`
    pub token_embedding: TensorView,
    /// `(n_types, dim)`: what is added to an embedding for the kind of text.
    pub token_types: Option<TensorView>,
    /// `(context_length, dim)`: what is added to it for the position.
    pub position_embedding: Option<TensorView>,
    /// `(dim)`, of the sum.
    pub embedding_norm: Option<NormWeights>,
    /// The layers, first to last.
    pub layers: Vec<LayerWeights>,
    /// `(dim)`
    pub output_norm: Option<NormWeights>,
    /// `(vocab_size, dim)`; the embedding again where the file ties the two. Encoders have none.
    pub output: Option<Linear>,
    /// What becomes of the vector of a text.
    pub pooled: PooledWeights,
    /// The embeddings that tokens have for each layer.
    pub layer_embedding: Option<LayerEmbedding>,
    /// What its streams begin and end with, if there are several.
    pub widening: Option<Widening>,
    /// `(rope_dim / 2)`, F32: by what each frequency of a rotation is divided.
    pub rope_factors: RopeFactors,
}

/// By what each frequency of a rotation is divided, `(rope_dim / 2)`, F32.
#[derive(Debug, Clone, Default)]
pub struct RopeFactors {
    /// Always (Llama 3.1 and later).
    pub all: Option<TensorView>,
    /// In contexts longer than those in training (LongRoPE).
    pub long: Option<TensorView>,
    /// In all others.
    pub short: Option<TensorView>,
}

impl Weights {
    /// Finds every weight and checks its shape and type. Reads none of them.
    ///
    /// # Errors
    /// [`Error::Format`] for a tensor that is missing or has the wrong shape, [`Error::Unsupported`]
    /// for one of a type that we cannot compute with, or whose meaning we do not know.
    pub fn from_checkpoint(checkpoint: &Checkpoint, config: &Config) -> Result<Self> {
        let source = Source::new(checkpoint, config);

        let (dim, vocab_size) = (config.dim, config.vocab_size);
        let pairs = config.ropes.first().map_or(0, |rope| rope.dim / 2);
        let rows = |name: &str| source.rows(name);
        let sizes = Sizes {
            dim,
            vocab_size,
            pairs,
            n_types: rows("token_types.weight"),
            n_positions: config.context_length,
            has_types: config.embedding_sum.types,
            has_positions: config.embedding_sum.positions,
            layer_embedding_dim: config.layer_embedding_dim.unwrap_or(0),
            layer_embedding_dims: config.layer_embedding_dim.unwrap_or(0) * config.n_layers(),
            has_layer_embedding: config.layer_embedding_dim.is_some(),
            has_embedding_norm: config.embedding_sum.normed,
            ..Sizes::of_all_streams(config.n_streams)
        };
        let others = Others::load(&source, "", &sizes)?;
        let has_classifier = source.has("cls.weight");
        let sizes = Sizes {
            dim,
            n_inner: rows("dense_2.weight"),
            n_outer: rows("dense_3.weight"),
            classifier_dim: if has_classifier { rows("cls.weight") } else { dim },
            n_labels: rows("cls.output.weight"),
            ..Sizes::default()
        };
        let pooled = PooledWeights::load(&source, "", &sizes)?;
        let layers = config.layers.iter().enumerate().map(|(i, layer)| LayerWeights::load(&source, i, layer));
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let output_norm = match config.output_norm {
            Some(name) => {
                let found = source.norm(name, &[dim])?;
                Some(found.ok_or_else(|| source.missing_tensor(&format!("{name}.weight")))?)
            }
            None => None,
        };
        source.refuse_unknown()?;
        let tied = || Linear { weight: others.token_embedding.clone(), bias: None, scale: None };
        let output = config.has_logits.then(|| others.output.unwrap_or_else(tied));
        let rope_factors = RopeFactors {
            all: others.rope_freq_factors,
            long: others.rope_factors_long,
            short: others.rope_factors_short,
        };
        let layer_embedding = match (others.layer_embedding, others.layer_proj, others.layer_proj_norm) {
            (Some(tokens), Some(proj), Some(norm)) => Some(LayerEmbedding { tokens, proj, norm }),
            _ => None,
        };
        let widening = others.stream_proj.zip(others.stream_unproj);
        Ok(Self {
            widening: widening.map(|(proj, unproj)| Widening { proj, unproj }),
            token_embedding: others.token_embedding,
            token_types: others.token_types,
            position_embedding: others.position_embedding,
            embedding_norm: others.embedding_norm,
            layers,
            output_norm,
            output,
            pooled,
            rope_factors,
            layer_embedding,
        })
    }
}

/// Where weights come from, and what of it has been taken.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    taken: RefCell<Vec<bool>>, // of the checkpoint's tensors
    has_scales: bool,          // few files have any
}

impl<'a> Source<'a> {
    fn new(checkpoint: &'a Checkpoint, config: &'a Config) -> Self {
        let taken = RefCell::new(vec![false; checkpoint.tensors().len()]);
        let has_scales = checkpoint.tensors().iter().any(|tensor| tensor.name().ends_with("scale"));
        Self { checkpoint, config, taken, has_scales }
    }

    fn has(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// Rows of a tensor, where its file is what says how many there are.
    fn rows(&self, name: &str) -> usize {
        self.checkpoint.tensor(name).map_or(0, TensorView::n_rows)
    }

    /// The tensor called `name`, if the file has it and it is of this shape, rows first. A matrix may have any type that the
    /// kernels read; a vector is of floats.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<TensorView>> {
        let Some(i) = self.checkpoint.index_of(name) else { return Ok(None) };
        self.taken.borrow_mut()[i] = true;
        let view = &self.checkpoint.tensors()[i].view;
        let shape: Vec<usize> = shape.iter().rev().copied().collect();
        if !has_shape(view, &shape) {
            let e = self.checkpoint.error("tensor of the wrong shape", name).got(format!("{:?}", view.shape()));
            return Err(e.limit(format!("{shape:?}")).into());
        }
        let dtype = view.dtype();
        if shape.len() > 1 && !dtype.is_supported() {
            let supported = DType::ALL.iter().filter(|t| t.is_supported()).map(|t| t.name());
            let supported = supported.collect::<Vec<_>>().join(", ");
            return Err(self.unsupported(format!("tensor {name} of type {dtype}; supported are {supported}")));
        }
        if shape.len() == 1 && Numbers::of(view).is_none() {
            return Err(
                self.unsupported(format!("tensor {name} of type {dtype}; F32, F16 and BF16 are supported there"))
            );
        }
        Ok(Some(view.clone()))
    }

    /// The numbers called `name`, if the file has them, of this shape, rows first, whether with dimensions of length 1 or
    /// without, or all in one.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Option<Floats>> {
        let Some(i) = self.checkpoint.index_of(name) else { return Ok(None) };
        let view = &self.checkpoint.tensors()[i].view;
        let [there, asked] =
            [view.shape(), shape].map(|dims| dims.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>());
        if Numbers::of(view).is_none() {
            let dtype = view.dtype();
            return Err(
                self.unsupported(format!("tensor {name} of type {dtype}; F32, F16 and BF16 are supported there"))
            );
        }
        if !there.iter().rev().eq(&asked) && there != [asked.iter().product::<usize>()] {
            let shape: Vec<usize> = shape.iter().rev().copied().collect();
            let e = self.checkpoint.error("tensor of the wrong shape", name).got(format!("{:?}", view.shape()));
            return Err(e.limit(format!("{shape:?}")).into());
        }
        self.taken.borrow_mut()[i] = true;
        Ok(Some(Floats(view.clone())))
    }

    /// The weights of a norm, or of one of each head: then all of them are one vector.
    fn norm(&self, name: &str, shape: &[usize]) -> Result<Option<NormWeights>> {
        let shape = if let [1, rest @ ..] = shape { rest } else { shape };
        let weight = match self.tensor(&format!("{name}.weight"), shape)? {
            None => self.tensor(name, shape)?, // Falcon-H1
            found => found,
        };
        let Some(weight) = weight else { return Ok(None) };
        let (dim, dtype) = (shape.iter().product(), weight.dtype());
        if Numbers::of(&weight).is_none() {
            return Err(self.unsupported(format!("norm {name} of type {dtype}; F32, F16 and BF16 are supported there")));
        }
        let weight = TensorView::new(weight.bytes().clone(), dtype, &[dim]).expect("the same numbers");
        // An RMSNorm with a bias would be another step.
        let has_bias = self.config.norm.kind == NormKind::Layer;
        let bias = if has_bias { self.tensor(&format!("{name}.bias"), &[dim])? } else { None };
        Ok(Some(NormWeights { weight, bias }))
    }

    fn linear(&self, prefix: &str, declared: &Declared, sizes: &Sizes) -> Result<Option<Linear>> {
        let shape = (declared.shape)(sizes);
        let rows_of = |part: &&str| (declared_as(part).expect("what is fused is declared").shape)(sizes)[0];
        let fused = FUSED.iter().find(|(name, parts)| {
            let rows = self.checkpoint.tensor(&format!("{prefix}{name}.weight")).map(TensorView::n_rows);
            parts.contains(&declared.name)
                && !self.has(&format!("{prefix}{}.weight", parts[0]))
                && declared_as(parts[0]).is_some_and(|first| (first.needed)(sizes) != Need::No)
                // One of the parts may have the same name.
                && rows.is_some_and(|rows| !parts.contains(name) || rows == parts.iter().map(rows_of).sum::<usize>())
        });
        let Some((name, parts)) = fused else {
            let name = format!("{prefix}{}", declared.name);
            let Some(weight) = self.tensor(&format!("{name}.weight"), &shape)? else { return Ok(None) };
            let bias = self.tensor(&format!("{name}.bias"), &shape[..1])?;
            return Ok(Some(Linear { weight, bias, scale: self.scale(&name, 1)? }));
        };
        let start: usize = parts.iter().take_while(|part| **part != declared.name).map(rows_of).sum();
        let (name, rows) = (format!("{prefix}{name}"), parts.iter().map(rows_of).sum());
        let Some(all) = self.tensor(&format!("{name}.weight"), &[rows, shape[1]])? else { return Ok(None) };
        let weight = all.rows(start..start + shape[0]).expect("the rows of all parts were counted");
        let bias = self.tensor(&format!("{name}.bias"), &[rows])?;
        let bias = bias.map(|all| all.elements(start..start + shape[0]).expect("as many as there are rows"));
        Ok(Some(Linear { weight, bias, scale: self.scale(&name, 1)? }))
    }

    /// What products are multiplied with, where the file says so. What their activations were multiplied with when the
    /// weights were made is not needed.
    fn scale(&self, name: &str, n: usize) -> Result<Option<TensorView>> {
        if !self.has_scales {
            return Ok(None);
        }
        self.tensor(&format!("{name}.input_scale"), &[n])?;
        self.tensor(&format!("{name}.scale"), &[n])
    }

    fn stack(&self, prefix: &str, declared: &Declared, sizes: &Sizes) -> Result<Option<Stack>> {
        let [n_experts, rows, columns] = (declared.shape)(sizes)[..] else { unreachable!("of three dimensions") };
        let shape = [n_experts, rows, columns];
        let name = format!("{prefix}{}", declared.name);
        let (bias, scale) = (self.tensor(&format!("{name}.bias"), &shape[..2])?, self.scale(&name, n_experts)?);
        if let Some(tensor) = self.tensor(&format!("{name}.weight"), &shape)? {
            return Ok(Some(Stack { experts: Matrices::Stacked { tensor, every: rows, first: 0 }, rows, bias, scale }));
        }
        for (fused, parts) in FUSED_STACKS {
            if declared_as(parts[0]).is_none_or(|first| (first.needed)(sizes) == Need::No) {
                continue;
            }
            let Some(part) = parts.iter().position(|part| *part == declared.name) else { continue };
            let every = parts.len() * rows;
            let fused = format!("{prefix}{fused}");
            if let Some(tensor) = self.tensor(&format!("{fused}.weight"), &[n_experts, every, columns])? {
                let scale = self.scale(&fused, n_experts)?;
                return Ok(Some(Stack {
                    experts: Matrices::Stacked { tensor, every, first: part * rows },
                    rows,
                    bias,
                    scale,
                }));
            }
        }
        // A tensor each, as files of 2023 and those of Hugging Face have them.
        let name = format!("{prefix}{}", declared.name.trim_end_matches("_exps"));
        if !self.has(&format!("{name}.0.weight")) {
            return Ok(None);
        }
        let experts = (0..n_experts).map(|i| {
            let name = format!("{name}.{i}.weight");
            self.tensor(&name, &shape[1..])?.ok_or_else(|| self.missing_tensor(&name))
        });
        Ok(Some(Stack { experts: Matrices::Apart(experts.collect::<Result<_>>()?), rows, bias, scale }))
    }

    fn missing(&self, prefix: &str, declared: &Declared) -> Error {
        let end = if declared.name.contains('.') { "" } else { ".weight" };
        self.missing_tensor(&format!("{prefix}{}{end}", declared.name))
    }

    fn missing_tensor(&self, name: &str) -> Error {
        self.checkpoint.error("missing tensor", name).into()
    }

    fn refuse_unknown(&self) -> Result<()> {
        let (n_layers, predict) = (self.config.n_layers(), self.config.n_predict_layers);
        for (tensor, _) in self.checkpoint.tensors().iter().zip(&*self.taken.borrow()).filter(|(_, taken)| !**taken) {
            let layer =
                tensor.name().strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            if layer.is_some_and(|layer| (n_layers..n_layers + predict).contains(&layer)) {
                continue; // they predict further tokens: nothing that we run depends on them
            }
            let reads_another = |layer: usize| {
                let attention = self.config.layers.get(layer).and_then(|layer| layer.mixer.attention());
                attention.is_some_and(|attention| attention.kv_layer.is_some())
            };
            let part = tensor.name().rsplit_once("attn_").map_or("", |(_, part)| part);
            if layer.is_some_and(reads_another) && ["k.weight", "v.weight", "k_norm.weight"].contains(&part) {
                continue; // Gemma 3n was trained with them there, and does not use them
            }
            let name: String = tensor.name().chars().take(80).flat_map(char::escape_debug).collect();
            return Err(self.unsupported(format!(
                "tensor {name}; a plain {} has none, and without it the text is wrong",
                self.config.architecture
            )));
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

/// The tables of what layers have.
const OF_LAYERS: &[&[Declared]] =
    &[ATTENTION, LATENT, DELTA_NET, SHORT_CONV, MAMBA, DENSE, EXPERTS, LAYER_EMBEDDING, STREAMS];

/// The row of a layer's tensor.
fn declared_as(name: &str) -> Option<&'static Declared> {
    OF_LAYERS.iter().copied().flatten().find(|declared| declared.name == name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::arch::plain;
    use crate::checkpoint::{Metadata, TensorInfo};
    use crate::mapping::{Bytes, Mapping};

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
            let shape: &[usize] = match name {
                _ if rows == 1 => &[columns],
                _ if name.contains("exps") => &[columns, rows / 3, 3],
                _ => &[columns, rows],
            };
            all.push(TensorInfo::new(name.into(), 0, TensorView::new(bytes, DType::F32, shape).unwrap()));
        }
        Checkpoint::new(Metadata::new(Path::new("fused"), Vec::new()).unwrap(), all, vec![(map, 0)]).unwrap()
    }

    fn config() -> Config {
        plain(1, 8, AttentionConfig::new(2, 1, 4), 16)
    }

    #[test]
    fn tensors_that_are_fused_are_rows_of_one() {
        let config = config();
        let head = [("token_embd.weight", 8, 8), ("output_norm.weight", 1, 8), ("blk.0.attn_norm.weight", 1, 8)];
        let (wo, ffn_norm) = (("blk.0.attn_output.weight", 8, 8), ("blk.0.ffn_norm.weight", 1, 8));
        let down = ("blk.0.ffn_down.weight", 8, 16);
        let qkv = [("blk.0.attn_q.weight", 8, 8), ("blk.0.attn_k.weight", 4, 8), ("blk.0.attn_v.weight", 4, 8)];
        let gate_up = [("blk.0.ffn_gate.weight", 16, 8), ("blk.0.ffn_up.weight", 16, 8)];
        let biases = [("blk.0.attn_q.bias", 1, 8), ("blk.0.attn_k.bias", 1, 4), ("blk.0.attn_v.bias", 1, 4)];
        let apart = model(&[&head[..], &qkv, &biases, &[wo, ffn_norm], &gate_up, &[down]].concat());
        let one = [("blk.0.attn_qkv.weight", 16, 8), ("blk.0.attn_qkv.bias", 1, 16), wo, ffn_norm];
        let fused = model(&[&head[..], &one, &[("blk.0.ffn_up.weight", 32, 8), down]].concat()); // the gate first

        let shown = |weights: &Weights| -> Vec<_> {
            weights.layers[0].tensors().map(|view| (view.shape().to_vec(), view.bytes().range())).collect()
        };
        let expected = Weights::from_checkpoint(&apart, &config).unwrap();
        let found = Weights::from_checkpoint(&fused, &config).unwrap();
        assert_eq!(shown(&found), shown(&expected));

        // No part of it may be missing, and nothing may be left over.
        let short = [("blk.0.attn_qkv.weight", 12, 8), wo, ffn_norm, ("blk.0.ffn_up.weight", 32, 8), down];
        let e = Weights::from_checkpoint(&model(&[&head[..], &short].concat()), &config).unwrap_err().to_string();
        assert!(e.contains("(blk.0.attn_qkv.weight): got [8, 12], expected [8, 16]"), "{e}");
        let both = model(&[&head[..], &qkv, &one, &gate_up, &[down]].concat());
        let e = Weights::from_checkpoint(&both, &config).unwrap_err().to_string();
        assert!(e.contains("tensor blk.0.attn_qkv.weight; a plain plain has none"), "{e}");
        let none = model(&[&head[..], &[wo, ffn_norm], &gate_up, &[down]].concat());
        let e = Weights::from_checkpoint(&none, &config).unwrap_err().to_string();
        assert!(e.contains("missing tensor (blk.0.attn_q.weight)"), "{e}");
    }

    #[test]
    fn experts_are_rows_of_one_tensor_or_a_tensor_each() {
        let mut config = config();
        let Ffn::Dense(expert) = config.layers[0].ffn else { unreachable!() };
        config.layers[0].ffn = Ffn::Experts(ExpertsConfig {
            n_experts: 3,
            n_used: 2,
            expert,
            gating: crate::arch::Gating::Softmax,
            normalized: true,
            weight_scale: 1.0,
            shared: None,
            groups: crate::arch::Groups { n: 1, used: 1, best: 2 },
        });
        let head = [
            ("token_embd.weight", 8, 8),
            ("output_norm.weight", 1, 8),
            ("blk.0.attn_norm.weight", 1, 8),
            ("blk.0.attn_qkv.weight", 16, 8),
            ("blk.0.attn_output.weight", 8, 8),
            ("blk.0.ffn_norm.weight", 1, 8),
            ("blk.0.ffn_gate_inp.weight", 3, 8),
        ];
        let of = |e: usize| {
            [
                format!("blk.0.ffn_gate.{e}.weight"),
                format!("blk.0.ffn_up.{e}.weight"),
                format!("blk.0.ffn_down.{e}.weight"),
            ]
        };
        let names: Vec<[String; 3]> = (0..3).map(of).collect();
        let each = |part: usize, rows: usize, n: usize| names.iter().map(move |names| (&*names[part], rows, n));
        let apart: Vec<_> = each(0, 16, 8).chain(each(1, 16, 8)).chain(each(2, 8, 16)).collect();
        let apart = model(&[&head[..], &apart].concat());
        let stacked = [
            ("blk.0.ffn_gate_exps.weight", 48, 8),
            ("blk.0.ffn_up_exps.weight", 48, 8),
            ("blk.0.ffn_down_exps.weight", 24, 16),
        ];
        let stacked = model(&[&head[..], &stacked].concat());
        let shown = |checkpoint: &Checkpoint| -> Vec<_> {
            let weights = Weights::from_checkpoint(checkpoint, &config).unwrap();
            let FfnWeights::Experts(experts) = &weights.layers[0].ffn else { unreachable!() };
            let stacks = [experts.w_gate.as_ref().unwrap(), &experts.w_up, &experts.w_down];
            let all = stacks.into_iter().flat_map(|stack| (0..3).map(|i| stack.expert(i)));
            all.map(|view| (view.shape().to_vec(), view.bytes().range())).collect()
        };
        assert_eq!(shown(&stacked), shown(&apart));
        let fused = model(
            &[&head[..], &[("blk.0.ffn_gate_up_exps.weight", 96, 8), ("blk.0.ffn_down_exps.weight", 24, 16)]].concat(),
        );
        let weights = Weights::from_checkpoint(&fused, &config).unwrap();
        let FfnWeights::Experts(experts) = &weights.layers[0].ffn else { unreachable!() };
        let (gate, up) = (experts.w_gate.as_ref().unwrap().expert(1), experts.w_up.expert(1));
        assert_eq!(gate.bytes().range().end, up.bytes().range().start);
    }
}
