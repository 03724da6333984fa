//! Which tensor of a model gets which type: the mixes that have names, as llama.cpp's `llama-quantize` has them.
//!
//! The one idea: a mix is a base type and, for the matrices where errors cost more or less than elsewhere, rules of the form
//! *place, when, type*; the first that holds counts. What holds for all mixes (experts, the output, rows that are not whole
//! blocks) is code below the table. What llama.cpp has for one architecture alone (Falcon) is left out.

use std::collections::HashMap;

use crate::checkpoint::{Checkpoint, Metadata, Value, ValueType};
use crate::error::Result;
use crate::quant::DType;

/// A named choice of types.
#[derive(Debug)]
pub struct Mix {
    /// Its name, such as `Q4_K_M`.
    pub name: &'static str,
    /// Its number in `general.file_type`.
    pub file_type: u32,
    /// The type of what no rule is about.
    pub base: DType,
    rules: &'static [(Place, When, DType)],
}

/// The matrices that rules are about, by what their names contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Values, and what holds them together with others: the fused `attn_qkv`, and `attn_kv_b`.
    Values,
    Queries,
    Keys,
    AttentionOutput,
    Gate,
    Up,
    Down,
}

/// When a rule holds. `i` of `n` are the layer and the number of layers; of values, which of how many matrices it is.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// `i` is below this.
    First(usize),
    /// `i` is in the first eighth; or sixteenth.
    Part(usize),
    /// In the first eighth, the last one, and every third between them.
    More,
    /// Neither in the first eighth nor in the last.
    Middle,
    /// Four queries or more share their keys and values: these matrices are small.
    Shared,
    /// The same, or there are four experts or more: the matrices of attention are small beside theirs.
    SharedOrExperts,
    /// There are eight experts.
    EightExperts,
    /// There are eight experts, and `More`.
    EightExpertsMore,
    /// Nothing says how important each weight is.
    Blind,
    /// The same, in the first eighth.
    BlindPart,
    /// Something does, in the first eighth.
    SeeingPart,
}

macro_rules! mixes {
    ($($name:ident = $file_type:literal: $base:ident $($place:ident $when:ident $(($n:literal))? $dtype:ident),*;)*) => {
        &[$(Mix {
            name: stringify!($name),
            file_type: $file_type,
            base: DType::$base,
            rules: &[$((Place::$place, When::$when $(($n))?, DType::$dtype)),*],
        }),*]
    };
}

/// All mixes, in the order of their bits for a weight.
pub const MIXES: &[Mix] = mixes! {
    IQ1_S = 24: IQ1_S Values SharedOrExperts Q4_K, Values Always Q2_K, Keys EightExperts Q4_K, Down Part(8) Q2_K,
        AttentionOutput EightExperts Q5_K, AttentionOutput Always IQ2_XXS;
    TQ1_0 = 36: TQ1_0;
    IQ1_M = 31: IQ1_M Values SharedOrExperts Q4_K, Values Always Q2_K, Keys EightExperts Q4_K, Down Part(8) Q2_K,
        AttentionOutput EightExperts Q5_K, AttentionOutput Always IQ2_XXS;
    IQ2_XXS = 19: IQ2_XXS Values SharedOrExperts Q4_K, Values Always Q2_K, Keys EightExperts Q4_K, Down Part(8) Q2_K,
        AttentionOutput EightExperts Q5_K;
    TQ2_0 = 37: TQ2_0;
    IQ2_XS = 20: IQ2_XS Values SharedOrExperts Q4_K, Values Always Q2_K, Keys EightExperts Q4_K, Down Part(8) Q2_K,
        AttentionOutput EightExperts Q5_K;
    IQ2_S = 28: IQ2_XS Values SharedOrExperts Q4_K, Values Always IQ3_S, Keys EightExperts Q4_K, Down Part(8) IQ3_S,
        AttentionOutput EightExperts Q5_K, AttentionOutput Always IQ3_S;
    IQ2_M = 29: IQ2_S Values SharedOrExperts Q4_K, Values Always IQ3_S, Keys EightExperts Q4_K, Down Part(8) IQ3_S,
        AttentionOutput EightExperts Q5_K, AttentionOutput Always IQ3_S;
    Q2_K_S = 21: Q2_K Values Shared Q4_K, Down Part(8) Q4_K;
    Q2_K = 10: Q2_K Values Shared Q4_K, Values Always Q3_K, Down Always Q3_K, AttentionOutput EightExperts Q5_K,
        AttentionOutput Always Q3_K;
    IQ3_XXS = 23: IQ3_XXS Values Shared Q4_K, Values Blind IQ3_S, Queries Always IQ2_S, Keys Always IQ2_S,
        Down BlindPart Q4_K, Down Blind Q3_K, AttentionOutput EightExperts Q5_K, AttentionOutput Always IQ3_S;
    IQ3_XS = 22: IQ3_S Values Shared Q4_K, Queries Always IQ3_XXS, Keys Always IQ3_XXS, Gate Middle IQ3_XXS,
        Up Middle IQ3_XXS, AttentionOutput EightExperts Q5_K;
    IQ3_S = 26: IQ3_S Values Shared Q4_K, AttentionOutput EightExperts Q5_K;
    IQ3_M = 27: IQ3_S Values Always Q4_K, Down Part(8) Q4_K, Down EightExpertsMore Q4_K,
        AttentionOutput EightExperts Q5_K, AttentionOutput Always Q4_K;
    Q3_K_S = 11: Q3_K AttentionOutput EightExperts Q5_K;
    Q3_K_M = 12: Q3_K Values First(2) Q5_K, Values Always Q4_K, Down Part(16) Q5_K, Down Always Q4_K,
        AttentionOutput EightExperts Q5_K, AttentionOutput Always Q4_K;
    Q3_K_L = 13: Q3_K Values Always Q5_K, Down Always Q5_K, AttentionOutput EightExperts Q3_K,
        AttentionOutput Always Q5_K;
    IQ4_XS = 30: IQ4_XS Values Shared Q5_K, Down BlindPart Q5_K, AttentionOutput EightExperts Q5_K;
    IQ4_NL = 25: IQ4_NL Values Shared Q5_K, Down BlindPart Q5_K, AttentionOutput EightExperts Q5_K;
    MXFP4_MOE = 38: MXFP4;
    Q4_0 = 2: Q4_0 Down SeeingPart Q4_1;
    Q4_K_S = 14: Q4_K Values First(4) Q5_K, Down Part(8) Q5_K, AttentionOutput EightExperts Q5_K;
    Q4_K_M = 15: Q4_K Values More Q6_K, Down More Q6_K, AttentionOutput EightExperts Q5_K;
    Q4_1 = 3: Q4_1;
    Q5_0 = 8: Q5_0 Down SeeingPart Q5_1;
    Q5_K_S = 16: Q5_K;
    Q5_K_M = 17: Q5_K Values More Q6_K, Down More Q6_K;
    Q5_1 = 9: Q5_1;
    Q6_K = 18: Q6_K;
    Q8_0 = 7: Q8_0;
    F16 = 1: F16;
    BF16 = 32: BF16;
    F32 = 0: F32;
};

impl Mix {
    /// The mix of this name, in any case; `Q3_K`, `Q4_K` and `Q5_K` mean the ones in the middle.
    pub fn named(name: &str) -> Option<&'static Self> {
        let name = name.to_ascii_uppercase();
        let name = match &*name {
            "Q3_K" | "Q4_K" | "Q5_K" => format!("{name}_M"),
            _ => name,
        };
        MIXES.iter().find(|mix| mix.name == name)
    }

    /// Whether it is for those who have no time for an importance matrix, or of very few bits.
    fn is_one_of(&self, names: &[&str]) -> bool {
        names.contains(&self.name)
    }
}

/// What decides beside the mix.
#[derive(Debug, Default)]
pub struct Wishes {
    /// The type of `output.weight`, or of the token embeddings where they are the output too.
    pub output: Option<DType>,
    /// The type of the token embeddings.
    pub token_embedding: Option<DType>,
    /// Types of tensors by their names, before any rule.
    pub tensors: HashMap<String, DType>,
    /// The base type for all.
    pub pure: bool,
    /// Whether it is known how important each weight is.
    pub seeing: bool,
}

/// What rules look at of a model.
struct Facts {
    layers: usize,
    experts: usize,
    /// Queries that share keys and values; 0 if unknown.
    group: usize,
    values: usize, // matrices of values
    is_tied: bool,
    is_70b: bool,
}

impl Facts {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let m = &checkpoint.metadata;
        let architecture = m.str("general.architecture")?.unwrap_or_default();
        let number = |key: &str| first_number(m, &format!("{architecture}.{key}"));
        let layers = number("block_count")?.unwrap_or(0);
        let heads = number("attention.head_count")?.unwrap_or(0);
        let kv_heads = number("attention.head_count_kv")?.unwrap_or(heads);
        let names = || checkpoint.tensors().iter().map(|tensor| tensor.name());
        Ok(Self {
            layers,
            experts: number("expert_count")?.unwrap_or(0),
            group: heads.checked_div(kv_heads).unwrap_or(0),
            values: names().filter(|name| place(name) == Some(Place::Values)).count(),
            is_tied: !names().any(|name| name == "output.weight"),
            is_70b: layers == 80 && (architecture == "qwen2" || architecture == "llama" && heads != kv_heads),
        })
    }
}

/// A number of the metadata; of one for each layer the first.
fn first_number(m: &Metadata, key: &str) -> Result<Option<usize>> {
    match m.get(key) {
        Some(Value::Array(array)) if matches!(array.element, ValueType::U32 | ValueType::I32) => {
            Ok(array.iter().next().and_then(|value| match value {
                Value::Unsigned(n) => usize::try_from(n).ok(),
                Value::Signed(n) => usize::try_from(n).ok(),
                _ => None,
            }))
        }
        _ => m.usize(key),
    }
}

fn place(name: &str) -> Option<Place> {
    let places = [
        ("attn_qkv.weight", Place::Values),
        ("attn_kv_b.weight", Place::Values),
        ("attn_v.weight", Place::Values),
        ("attn_k.weight", Place::Keys),
        ("attn_q.weight", Place::Queries),
        ("attn_output.weight", Place::AttentionOutput),
        ("ffn_up", Place::Up),
        ("ffn_gate", Place::Gate),
        ("ffn_down", Place::Down),
    ];
    places.iter().find(|(part, _)| name.contains(part)).map(|&(_, place)| place)
}

fn is_embedding(name: &str) -> bool {
    matches!(name, "token_embd.weight" | "per_layer_token_embd.weight")
}

/// The layer in a name.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Whether a tensor may get another type: a matrix that is neither small nor needed exactly.
fn is_convertible(name: &str, shape: &[usize]) -> bool {
    const KEPT: &[&str] = &[
        "_norm.weight",
        "ffn_gate_inp.weight", // which experts
        "ffn_gate_tid2eid.weight",
        "altup",
        "laurel",
        "per_layer_model_proj",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "time_mix_first.weight",
        "time_mix_w0.weight",
        "time_mix_w1.weight",
        "time_mix_w2.weight",
        "time_mix_v0.weight",
        "time_mix_v1.weight",
        "time_mix_v2.weight",
        "time_mix_a0.weight",
        "time_mix_a1.weight",
        "time_mix_a2.weight",
        "time_mix_g1.weight",
        "time_mix_g2.weight",
        "time_mix_decay_w1.weight",
        "time_mix_decay_w2.weight",
        "time_mix_lerp_fused.weight",
        "attn_rel_b.weight",
        ".position_embd",
        ".rel_pos",
        ".patch_embd",
        ".patch_merger",
    ];
    let n_dims = shape.iter().rposition(|&n| n > 1).map_or(1, |i| i + 1);
    n_dims > 1
        && name.ends_with("weight")
        && name != "position_embd.weight"
        && name != "token_types.weight"
        && !KEPT.iter().any(|part| name.contains(part))
}

/// The type for rows that are not whole blocks of `dtype`.
fn fallback(dtype: DType, row: usize) -> DType {
    use DType::*;
    if row.is_multiple_of(dtype.block_len()) {
        return dtype;
    }
    let other = match dtype {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        other => other,
    };
    if row.is_multiple_of(other.block_len()) { other } else { F16 }
}

/// The type of each tensor of a checkpoint, in its order.
///
/// # Errors
/// Those of the metadata.
pub fn types(checkpoint: &Checkpoint, mix: &Mix, wishes: &Wishes) -> Result<Vec<DType>> {
    let facts = Facts::of(checkpoint)?;
    let tensors = checkpoint.tensors();
    // Matrices are counted by layer and name.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (layer(tensors[i].name()), tensors[i].name()));
    let (mut values, mut feed_forward) = (0, [0; 3]);
    let mut types: Vec<DType> = tensors.iter().map(|tensor| tensor.view.dtype()).collect();
    for i in order {
        let (name, shape) = (tensors[i].name(), tensors[i].view.shape());
        if !is_convertible(name, shape) {
            continue;
        }
        let place = place(name).filter(|_| name != "output.weight" && !is_embedding(name));
        let counter = match place {
            Some(Place::Values) => Some(&mut values),
            Some(Place::Gate) => Some(&mut feed_forward[0]),
            Some(Place::Up) => Some(&mut feed_forward[1]),
            Some(Place::Down) => Some(&mut feed_forward[2]),
            _ => None,
        };
        let count = counter.map_or(0, |counter| {
            *counter += 1;
            *counter - 1
        });
        let wish = wishes.tensors.get(name).copied();
        types[i] = if let Some(dtype) = wish {
            fallback(dtype, shape[0])
        } else if let Some(dtype) = wishes.token_embedding.filter(|_| is_embedding(name)) {
            fallback(dtype, shape[0])
        } else if let Some(dtype) = wishes.output.filter(|_| name == "output.weight") {
            fallback(dtype, shape[0])
        } else if wishes.pure || matches!(mix.base, DType::F32 | DType::F16 | DType::BF16) {
            fallback(mix.base, shape[0])
        } else {
            fallback(chosen(mix, wishes, &facts, name, shape, place, count), shape[0])
        };
    }
    Ok(types)
}

/// The type that a mix has for a matrix, which is the `count`th of its place.
fn chosen(
    mix: &Mix,
    wishes: &Wishes,
    facts: &Facts,
    name: &str,
    shape: &[usize],
    place: Option<Place>,
    count: usize,
) -> DType {
    use DType::*;
    const VERY_FEW_BITS: &[&str] = &["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"];
    let is_output = name == "output.weight" || facts.is_tied && is_embedding(name);
    if is_output && let Some(dtype) = wishes.output {
        return dtype;
    }
    if is_output {
        return match mix.base {
            MXFP4 | Q8_0 => Q8_0,
            base if !shape[0].is_multiple_of(base.block_len()) => Q8_0,
            _ if mix.is_one_of(VERY_FEW_BITS) || mix.name == "IQ3_XXS" => Q5_K,
            _ => Q6_K,
        };
    }
    if mix.name == "MXFP4_MOE" {
        return if shape.get(2).is_some_and(|&n| n > 1) { MXFP4 } else { Q8_0 };
    }
    if is_embedding(name) {
        return match mix.name {
            "IQ1_S" | "IQ1_M" | "IQ2_XXS" | "IQ2_XS" => Q2_K,
            "IQ2_S" | "IQ2_M" | "IQ3_XXS" => IQ3_S,
            "TQ1_0" | "TQ2_0" => Q4_K,
            _ => mix.base,
        };
    }
    let Some(place) = place else { return mix.base };
    let few = mix.is_one_of(VERY_FEW_BITS);
    let (i, n) = match place {
        Place::Values => (count, facts.values),
        _ if facts.experts > 1 && !few => (layer(name).unwrap_or(count), facts.layers),
        _ => (count, facts.layers),
    };
    let rules = mix.rules.iter().filter(|(of, ..)| *of == place);
    let dtype =
        rules.into_iter().find(|(_, when, _)| when.holds(i, n, facts, wishes.seeing)).map_or(mix.base, |rule| rule.2);
    match place {
        Place::Values | Place::Keys if facts.experts == 8 && !few => Q8_0,
        Place::Values if facts.is_70b && !few && matches!(dtype, Q3_K | Q4_K) => Q5_K,
        _ => dtype,
    }
}

impl When {
    fn holds(self, i: usize, n: usize, facts: &Facts, seeing: bool) -> bool {
        let more = || i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        match self {
            When::Always => true,
            When::First(first) => i < first,
            When::Part(part) => i < n / part,
            When::More => more(),
            When::Middle => (n / 8..7 * n / 8).contains(&i),
            When::Shared => facts.group >= 4,
            When::SharedOrExperts => facts.group >= 4 || facts.experts >= 4,
            When::EightExperts => facts.experts == 8,
            When::EightExpertsMore => facts.experts == 8 && more(),
            When::Blind => !seeing,
            When::BlindPart => !seeing && i < n / 8,
            When::SeeingPart => seeing && i < n / 8,
        }
    }
}

/// Whether a matrix of this type is useless without importances: it has so few bits that they must go to the right weights.
pub fn needs_importance(mix: &Mix, name: &str, dtype: DType) -> bool {
    use DType::*;
    let few =
        matches!(dtype, IQ3_XXS | IQ2_XXS | IQ2_XS | IQ2_S | IQ1_M | IQ1_S) || mix.name == "Q2_K_S" && dtype == Q2_K;
    few && name != "output.weight" && !is_embedding(name)
}
