//! What GGUF calls things: the names of keys and tensors, in one place.
//!
//! Hyper-parameters stand under the architecture (`llama.block_count`), the tensors of layer `i` under
//! `blk.i.`. All else in the crate speaks the words of [`Config`](super::Config) and
//! [`Weights`](super::Weights).

/// `(vocab_size, dim)`.
pub const TOKEN_EMBEDDING: &str = "token_embd.weight";
/// `(dim)`.
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// `(vocab_size, dim)`; absent when the embedding is used for both.
pub const OUTPUT: &str = "output.weight";
/// `(rope_dim / 2)`; Llama 3.1 and later.
pub const ROPE_FREQ_FACTORS: &str = "rope_freqs.weight";

/// The tensors of a layer, without their `blk.i.`.
pub mod layer {
    /// `(dim)`.
    pub const ATTN_NORM: &str = "attn_norm.weight";
    /// `(n_heads * head_dim, dim)`.
    pub const WQ: &str = "attn_q.weight";
    /// `(n_kv_heads * head_dim, dim)`.
    pub const WK: &str = "attn_k.weight";
    /// `(n_kv_heads * head_dim, dim)`.
    pub const WV: &str = "attn_v.weight";
    /// `(dim, n_heads * head_dim)`.
    pub const WO: &str = "attn_output.weight";
    /// `(dim)`.
    pub const FFN_NORM: &str = "ffn_norm.weight";
    /// `(hidden_dim, dim)`.
    pub const W_GATE: &str = "ffn_gate.weight";
    /// `(hidden_dim, dim)`.
    pub const W_UP: &str = "ffn_up.weight";
    /// `(dim, hidden_dim)`.
    pub const W_DOWN: &str = "ffn_down.weight";

    /// All of them.
    pub const ALL: [&str; 9] = [ATTN_NORM, WQ, WK, WV, WO, FFN_NORM, W_GATE, W_UP, W_DOWN];
}

/// The full name of a tensor of layer `i`.
pub fn of_layer(i: usize, part: &str) -> String {
    format!("blk.{i}.{part}")
}

/// Hyper-parameters, without the architecture in front.
pub mod key {
    /// Number of layers.
    pub const N_LAYERS: &str = "block_count";
    /// Length of the hidden state.
    pub const DIM: &str = "embedding_length";
    /// Length of the feed-forward's inner vector.
    pub const HIDDEN_DIM: &str = "feed_forward_length";
    /// Query heads.
    pub const N_HEADS: &str = "attention.head_count";
    /// Key and value heads; as many as query heads when absent.
    pub const N_KV_HEADS: &str = "attention.head_count_kv";
    /// Length of a head's keys; `dim / n_heads` when absent.
    pub const KEY_LENGTH: &str = "attention.key_length";
    /// Length of a head's values.
    pub const VALUE_LENGTH: &str = "attention.value_length";
    /// Epsilon of RMSNorm.
    pub const NORM_EPS: &str = "attention.layer_norm_rms_epsilon";
    /// False for encoders.
    pub const CAUSAL: &str = "attention.causal";
    /// Keys that a position sees.
    pub const SLIDING_WINDOW: &str = "attention.sliding_window";
    /// Longest context in training.
    pub const CONTEXT_LENGTH: &str = "context_length";
    /// Number of tokens; the length of the vocabulary when absent.
    pub const VOCAB_SIZE: &str = "vocab_size";
    /// Experts of a mixture.
    pub const N_EXPERTS: &str = "expert_count";
    /// Base of the rotation's frequencies; 10000 when absent.
    pub const ROPE_THETA: &str = "rope.freq_base";
    /// Rotated dimensions of a head; all of them when absent.
    pub const ROPE_DIM: &str = "rope.dimension_count";
    /// `none`, `linear`, `yarn`, `longrope`.
    pub const ROPE_SCALING_TYPE: &str = "rope.scaling.type";
    /// By what positions are divided.
    pub const ROPE_SCALING_FACTOR: &str = "rope.scaling.factor";
    /// The same, in files of 2023.
    pub const ROPE_SCALE_LINEAR: &str = "rope.scale_linear";
    /// Multiplies the rotated values.
    pub const ROPE_ATTN_FACTOR: &str = "rope.scaling.attn_factor";
}
