//! From `config.json` to the keys of GGUF.
//!
//! A family adds what is its own first; what all have is added after it where it is not there yet. So a row of the table
//! says only in what it differs.

use super::config::Config;
use crate::checkpoint::Pairs;
use crate::error::Result;
use crate::formats::one_line;

/// What the number of experts is called.
pub const EXPERT_COUNTS: &[&str] = &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// Most layers, and the longest head: what has a number for each is made by these.
const MAX_LAYERS: u32 = 1 << 16;
const MAX_HEAD_DIM: u32 = 1 << 20;

/// The keys of a model that is being opened.
pub struct Keys<'a> {
    pub config: &'a Config,
    pub n_layers: u32,
    architecture: &'static str,
    pairs: Pairs,
    left_out: Vec<&'static str>,
    freq_base: Option<f64>,
    absolute: bool,
    tensors: Vec<(String, Vec<f32>)>,
    differences: Differences,
}

/// In what the weights of a directory differ from those of a GGUF file beside the order of a head and the offset of norms,
/// which the row of the family says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Differences {
    /// `ssm_a` is `log(-a)`.
    pub log_a: bool,
    /// The value heads of a key head stand together.
    pub grouped_heads: bool,
}

/// What becomes of a configuration.
pub struct Made {
    /// Keys and values.
    pub pairs: Pairs,
    /// Small vectors that GGUF files have and directories say in words, by name.
    pub tensors: Vec<(String, Vec<f32>)>,
    /// In what the weights differ.
    pub differences: Differences,
}

impl<'a> Keys<'a> {
    /// None yet.
    pub fn new(config: &'a Config, architecture: &'static str) -> Result<Self> {
        let n_layers = config.first_int(&["num_hidden_layers", "n_layer"])?;
        let n_layers = config.required("num_hidden_layers", n_layers)?;
        if n_layers > MAX_LAYERS {
            let e = config.error("too many layers", "num_hidden_layers").got(n_layers);
            return Err(e.limit(format!("at most {MAX_LAYERS}")).into());
        }
        let (pairs, tensors) = (Pairs::new(), Vec::new());
        let mut keys = Self {
            config,
            n_layers,
            architecture,
            pairs,
            left_out: Vec::new(),
            freq_base: None,
            absolute: false,
            tensors,
            differences: Differences::default(),
        };
        keys.pairs.str("general.architecture", architecture);
        Ok(keys)
    }

    /// Adds what all models have, and gives all there is.
    pub fn finish(mut self) -> Result<Made> {
        let c = self.config;
        self.u32("block_count", self.n_layers);
        const INTEGERS: &[(&str, &[&str])] = &[
            ("context_length", &["max_position_embeddings", "n_positions"]),
            ("embedding_length", &["hidden_size"]),
            ("attention.head_count", &["num_attention_heads"]),
            ("attention.head_count_kv", &["num_key_value_heads"]),
            ("vocab_size", &["vocab_size"]),
            ("expert_count", EXPERT_COUNTS),
            ("expert_used_count", &["num_experts_per_tok", "num_experts_per_token", "top_k_experts"]),
            ("expert_feed_forward_length", &["moe_intermediate_size"]),
            ("expert_shared_feed_forward_length", &["shared_expert_intermediate_size"]),
            ("expert_group_count", &["n_group"]),
            ("expert_group_used_count", &["topk_group"]),
        ];
        for (key, names) in INTEGERS {
            if let Some(n) = c.first_int(names)? {
                self.u32(key, n);
            }
        }
        let head_dim = self.head_dim()?;
        self.u32("attention.key_length", head_dim);
        self.u32("attention.value_length", head_dim);
        if c.get("intermediate_size").is_some_and(|value| value.is_array()) {
            let lengths = c.ints("intermediate_size")?.expect("a list");
            self.u32s("feed_forward_length", &lengths);
        } else if let Some(n) = c.int("intermediate_size")? {
            self.u32("feed_forward_length", n);
        }
        for (key, names) in [
            ("attention.layer_norm_rms_epsilon", &["rms_norm_eps", "norm_eps"][..]),
            ("attention.layer_norm_epsilon", &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
        ] {
            if let Some(epsilon) = c.first_float(names)? {
                self.f32(key, epsilon);
            }
        }
        for name in ["hidden_size", "num_attention_heads"] {
            let key = ["embedding_length", "attention.head_count"][usize::from(name != "hidden_size")];
            if !self.has(key) {
                return Err(c.error("missing key", name).into());
            }
        }
        match c.first_str(&["scoring_func", "score_func"])? {
            Some("softmax") => self.u32("expert_gating_func", 1),
            Some("sigmoid") => self.u32("expert_gating_func", 2),
            Some("sqrtsoftplus") => self.u32("expert_gating_func", 4),
            None => {}
            Some(other) => {
                let other = one_line(other);
                return Err(c.unsupported(format!("experts chosen by {other}")));
            }
        }
        if !self.absolute {
            self.rope()?;
        }
        Ok(Made { pairs: self.pairs, tensors: self.tensors, differences: self.differences })
    }

    /// The rotation: the form of one `rope_parameters` for each type of layer, the older `rope_scaling` and the oldest
    /// keys beside it.
    fn rope(&mut self) -> Result<()> {
        let c = self.config;
        let scaling =
            ["rope_parameters", "rope_scaling"].into_iter().find(|name| c.has(name)).unwrap_or("rope_scaling");
        let full = format!("{scaling}.full_attention");
        let at = |name: &str| if c.has(&full) { format!("{full}.{name}") } else { format!("{scaling}.{name}") };
        if let Some(base) = c.first_float(&[&at("rope_theta"), "global_rope_theta", "rope_theta"])?.or(self.freq_base) {
            self.f32("rope.freq_base", base);
        }
        let windowed = format!("{scaling}.sliding_attention.rope_theta");
        if let Some(base) = c.first_float(&[&windowed, "rope_local_base_freq", "local_rope_theta"])? {
            self.f32("rope.freq_base_swa", base);
        }
        if !self.has("rope.dimension_count") {
            let share = c.first_float(&[&at("partial_rotary_factor"), "partial_rotary_factor"])?.unwrap_or(1.0);
            self.rotated_share(share)?;
        }
        if self.has("rope.scaling.type") {
            return Ok(());
        }
        let original = at("original_max_position_embeddings");
        let original = c.first_int(&[&original, "original_max_position_embeddings"])?;
        let factor = c.float(&at("factor"))?;
        let kind = c.first_str(&[&at("rope_type"), &at("type")])?.map(str::to_lowercase);
        match kind.as_deref() {
            None | Some("default" | "mrope" | "proportional" | "none") => {}
            Some("linear") => {
                self.str("rope.scaling.type", "linear");
                self.f32("rope.scaling.factor", c.required(&at("factor"), factor)?);
            }
            Some("yarn") => {
                self.str("rope.scaling.type", "yarn");
                self.f32("rope.scaling.factor", c.required(&at("factor"), factor)?);
                let original = original.map_or_else(|| c.required_int("max_position_embeddings"), Ok)?;
                self.u32("rope.scaling.original_context_length", original);
                for (key, names) in [
                    ("rope.scaling.yarn_ext_factor", &["extrapolation_factor"][..]),
                    ("rope.scaling.yarn_attn_factor", &["attention_factor", "attn_factor"]),
                    ("rope.scaling.yarn_beta_fast", &["beta_fast"]),
                    ("rope.scaling.yarn_beta_slow", &["beta_slow"]),
                ] {
                    for name in names {
                        if let Some(x) = c.float(&at(name))? {
                            self.f32(key, x);
                        }
                    }
                }
                self.f32("rope.scaling.yarn_beta_fast", 32.0);
                self.f32("rope.scaling.yarn_beta_slow", 1.0);
            }
            Some("longrope" | "su") => self.longrope(&at, original)?,
            Some("llama3") => self.llama3(&at, original, factor)?,
            Some(other) => {
                let other = one_line(other);
                return Err(
                    c.unsupported(format!("rope scaling {other}; linear, yarn, longrope and llama3 are supported"))
                );
            }
        }
        Ok(())
    }

    /// Llama 3: long waves are slowed down, short ones are not, and those between by steps. GGUF has the factors.
    fn llama3(&mut self, at: &dyn Fn(&str) -> String, original: Option<u32>, factor: Option<f64>) -> Result<()> {
        let c = self.config;
        let low = c.float(&at("low_freq_factor"))?.unwrap_or(1.0);
        let high = c.float(&at("high_freq_factor"))?.unwrap_or(4.0);
        let (factor, original) = (factor.unwrap_or(8.0), f64::from(original.unwrap_or(8192)));
        let base = c.first_float(&[&at("rope_theta"), "rope_theta"])?.or(self.freq_base).unwrap_or(10_000.0);
        let dim = self.rope_dim()?;
        let factors = (0..dim / 2).map(|i| {
            let wave = std::f64::consts::TAU * base.powf(f64::from(2 * i) / f64::from(dim));
            if wave < original / high {
                1.0
            } else if wave > original / low {
                factor as f32
            } else {
                let smooth = (original / wave - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        });
        let factors = factors.collect();
        self.tensor("rope_freqs.weight", factors);
        Ok(())
    }

    fn longrope(&mut self, at: &dyn Fn(&str) -> String, original: Option<u32>) -> Result<()> {
        let c = self.config;
        let (name_long, name_short) = (at("long_factor"), at("short_factor"));
        let long = c.required(&name_long, c.floats(&name_long)?)?;
        let short = c.required(&name_short, c.floats(&name_short)?)?;
        let pairs = self.rope_dim()? as usize / 2;
        for (name, factors) in [(&name_long, &long), (&name_short, &short)] {
            if factors.len() != pairs {
                let e = c.error("not a factor for each pair that is rotated", name).got(factors.len());
                return Err(e.limit(pairs).into());
            }
        }
        let most = c.required_int("max_position_embeddings")?;
        let original = original.unwrap_or(most);
        let scale = f64::from(most) / f64::from(original.max(1));
        let attention = if scale > 1.0 { (1.0 + scale.ln() / f64::from(original).ln()).sqrt() } else { 1.0 };
        self.str("rope.scaling.type", "longrope");
        self.u32("rope.scaling.original_context_length", original);
        self.f32("rope.scaling.attn_factor", c.float(&at("attention_factor"))?.unwrap_or(attention));
        let narrow = |factors: Vec<f64>| factors.into_iter().map(|x| x as f32).collect();
        self.tensor("rope_factors_long.weight", narrow(long));
        self.tensor("rope_factors_short.weight", narrow(short));
        Ok(())
    }

    /// Layers of which some see only a window, as `layer_types` says.
    pub fn windowed(&mut self) -> Result<()> {
        let c = self.config;
        if c.bool("use_sliding_window")? == Some(false) {
            return Ok(());
        }
        let Some(window) = c.int("sliding_window")?.filter(|&n| n > 0) else { return Ok(()) };
        if let Some(types) = c.strs("layer_types")? {
            let pattern: Vec<_> = types.iter().map(|kind| *kind == "sliding_attention").collect();
            if !pattern.contains(&true) {
                return Ok(());
            }
            self.bools("attention.sliding_window_pattern", &pattern);
        } else if self.architecture.starts_with("qwen") {
            // The first layers see everything.
            let first = c.int("max_window_layers")?.unwrap_or(0);
            if first >= self.n_layers {
                return Ok(());
            }
            let pattern: Vec<_> = (0..self.n_layers).map(|i| i >= first).collect();
            self.bools("attention.sliding_window_pattern", &pattern);
        } else if self.architecture == "smollm3" {
            return Ok(()); // it has the key, and no such layer
        }
        self.u32("attention.sliding_window", window);
        Ok(())
    }

    /// Layers all of which see only a window, unless `layer_types` says otherwise.
    pub fn all_windowed(&mut self) -> Result<()> {
        if self.config.has("layer_types") {
            return self.windowed();
        }
        if let Some(window) = self.config.int("sliding_window")?.filter(|&n| n > 0) {
            self.u32("attention.sliding_window", window);
        }
        Ok(())
    }

    /// The share of a head that is rotated, unless the configuration says another.
    pub fn rotated(&mut self, default: f64) -> Result<()> {
        let names =
            ["rope_parameters.partial_rotary_factor", "rope_scaling.partial_rotary_factor", "partial_rotary_factor"];
        let share = self.config.first_float(&names)?.unwrap_or(default);
        self.rotated_share(share)
    }

    fn rotated_share(&mut self, share: f64) -> Result<()> {
        let dim = f64::from(self.head_dim()?) * share;
        self.u32("rope.dimension_count", dim as u32);
        Ok(())
    }

    /// How many dimensions of a head are rotated.
    fn rope_dim(&self) -> Result<u32> {
        let c = self.config;
        let names =
            ["rope_parameters.partial_rotary_factor", "rope_scaling.partial_rotary_factor", "partial_rotary_factor"];
        Ok((f64::from(self.head_dim()?) * c.first_float(&names)?.unwrap_or(1.0)) as u32)
    }

    /// Length of a head.
    pub fn head_dim(&self) -> Result<u32> {
        let c = self.config;
        if let Some(n) = c.int("head_dim")? {
            return self.at_most("head_dim", n);
        }
        let (dim, heads) = (c.first_int(&["hidden_size", "n_embd"])?, c.first_int(&["num_attention_heads", "n_head"])?);
        let (dim, heads) = (c.required("hidden_size", dim)?, c.required("num_attention_heads", heads)?);
        let zero = || c.error("zero", "num_attention_heads").got(0).limit("at least 1");
        self.at_most("hidden_size", dim.checked_div(heads).ok_or_else(zero)?)
    }

    /// The length of a head if it is one that a head may have: there is a number for each pair that is rotated.
    pub fn at_most(&self, name: &str, n: u32) -> Result<u32> {
        if n > MAX_HEAD_DIM {
            let e = self.config.error("heads too long", name).got(n);
            return Err(e.limit(format!("at most {MAX_HEAD_DIM}")).into());
        }
        Ok(n)
    }

    /// How token vectors become one, where a sentence model says so in files beside.
    pub fn pooling(&mut self) -> Result<()> {
        let folder = self.config.path().parent().expect("a file in a directory");
        let Some(pooling) = Config::open(&folder.join("1_Pooling").join("config.json"))? else { return Ok(()) };
        for (name, kind) in
            [("pooling_mode_mean_tokens", 1), ("pooling_mode_cls_token", 2), ("pooling_mode_lasttoken", 3)]
        {
            if pooling.bool(name)? == Some(true) {
                self.u32("pooling_type", kind);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Kinds of texts that an encoder tells apart.
    pub fn token_types(&mut self, n: u32) {
        self.pairs.u32("tokenizer.ggml.token_type_count", n);
    }

    /// Positions are not rotated.
    pub fn absolute(&mut self) {
        self.absolute = true;
    }

    /// The base of the rotation where the configuration leaves it out.
    pub fn freq_base_default(&mut self, base: f64) {
        self.freq_base = Some(base);
    }

    /// `ssm_a` is stored as a logarithm.
    pub fn log_a(&mut self) {
        self.differences.log_a = true;
    }

    /// The value heads of a key head stand together.
    pub fn grouped_heads(&mut self) {
        self.differences.grouped_heads = true;
    }

    /// The product of a number called `name` and another.
    pub fn product(&self, name: &str, a: u32, b: u32) -> Result<u32> {
        a.checked_mul(b).ok_or_else(|| self.config.error("too large", name).got(a).into())
    }

    /// Leaves a key out that all models have.
    pub fn skip(&mut self, name: &'static str) {
        self.left_out.push(name);
    }

    /// A small vector that GGUF files have.
    pub fn tensor(&mut self, name: &str, values: Vec<f32>) {
        self.tensors.push((name.into(), values));
    }

    fn has(&self, name: &str) -> bool {
        self.pairs.contains(&self.full(name))
    }

    fn full(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// Adds a key, if it is not there yet.
    fn add(&mut self, name: &str, add: impl FnOnce(&mut Pairs, &str)) {
        if !self.has(name) && !self.left_out.contains(&name) {
            let key = self.full(name);
            add(&mut self.pairs, &key);
        }
    }

    pub fn u32(&mut self, name: &str, value: u32) {
        self.add(name, |pairs, key| pairs.u32(key, value));
    }

    pub fn u32s(&mut self, name: &str, values: &[u32]) {
        self.add(name, |pairs, key| pairs.u32s(key, values));
    }

    pub fn f32(&mut self, name: &str, value: f64) {
        self.add(name, |pairs, key| pairs.f32(key, value as f32));
    }

    pub fn bool(&mut self, name: &str, value: bool) {
        self.add(name, |pairs, key| pairs.bool(key, value));
    }

    pub fn bools(&mut self, name: &str, values: &[bool]) {
        self.add(name, |pairs, key| pairs.bools(key, values));
    }

    pub fn str(&mut self, name: &str, value: &str) {
        self.add(name, |pairs, key| pairs.str(key, value));
    }
}
