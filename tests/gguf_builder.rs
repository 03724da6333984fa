//! Writes GGUF files, good and bad: nothing here checks anything.

use llama_rs::internals::quant::DType;
use llama_rs::internals::sampling::Rng;

/// A metadata value: its type and its bytes.
pub struct Value(pub u32, pub Vec<u8>);

pub fn u32(x: u32) -> Value {
    Value(4, x.to_le_bytes().to_vec())
}

pub fn i32(x: i32) -> Value {
    Value(5, x.to_le_bytes().to_vec())
}

pub fn f32(x: f32) -> Value {
    Value(6, x.to_le_bytes().to_vec())
}

pub fn bool(x: u8) -> Value {
    Value(7, vec![x])
}

pub fn string(x: impl AsRef<[u8]>) -> Value {
    Value(8, text(x))
}

pub fn u64(x: u64) -> Value {
    Value(10, x.to_le_bytes().to_vec())
}

/// An array that says that it has `len` elements of type `element`.
pub fn array(element: u32, len: u64, bytes: Vec<u8>) -> Value {
    Value(9, [&element.to_le_bytes()[..], &len.to_le_bytes(), &bytes].concat())
}

pub fn strings<T: AsRef<[u8]>>(items: impl IntoIterator<Item = T>) -> Value {
    let items: Vec<_> = items.into_iter().map(text).collect();
    array(8, items.len() as u64, items.concat())
}

/// A length and so many bytes.
pub fn text(x: impl AsRef<[u8]>) -> Vec<u8> {
    let x = x.as_ref();
    [&(x.len() as u64).to_le_bytes()[..], x].concat()
}

pub struct Tensor {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub dtype: u32,
    pub offset: Option<u64>, // where the data lies, unless a test wants a lie
    pub data: Vec<u8>,
}

pub struct Gguf {
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_kv: Option<u64>,
    pub alignment: usize,
    pub kv: Vec<(Vec<u8>, Value)>,
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    pub fn empty() -> Self {
        Self { version: 3, n_tensors: None, n_kv: None, alignment: 32, kv: vec![], tensors: vec![] }
    }

    /// A llama of one layer with a byte-level vocabulary, random but sane.
    pub fn llama() -> Self {
        Self::llama_of(DType::F32)
    }

    /// The same with matrices of another type. Their bytes are random: NaN, infinity and all.
    pub fn llama_of(dtype: DType) -> Self {
        let mut file = Self::empty();
        let dim = (dtype.block_len() as u32).max(32);
        let (hidden_dim, n_heads, n_kv_heads, vocab) = (2 * dim, 4, 2, 260);
        file.set("general.architecture", string("llama"));
        file.set("llama.block_count", u32(1));
        file.set("llama.context_length", u32(64));
        file.set("llama.embedding_length", u32(dim));
        file.set("llama.feed_forward_length", u32(hidden_dim));
        file.set("llama.attention.head_count", u32(n_heads));
        file.set("llama.attention.head_count_kv", u32(n_kv_heads));
        file.set("llama.attention.layer_norm_rms_epsilon", f32(1e-5));
        file.set("llama.vocab_size", u32(vocab));

        // The byte alphabet of GPT-2: printable bytes stand for themselves, the others come after U+0100.
        let printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
        let mut others = 256..;
        let letters = (0..=255u8).map(|b| if printable(&b) { b.into() } else { others.next().unwrap() });
        let letters = letters.map(|c: u32| char::from_u32(c).unwrap().to_string());
        let merged = ["<|endoftext|>", "he", "ll", "hell"].map(String::from);
        file.set("tokenizer.ggml.model", string("gpt2"));
        file.set("tokenizer.ggml.pre", string("gpt-2"));
        file.set("tokenizer.ggml.tokens", strings(letters.chain(merged)));
        let types = (0..vocab).flat_map(|id| if id == 256 { 3i32 } else { 1 }.to_le_bytes()).collect();
        file.set("tokenizer.ggml.token_type", array(5, vocab.into(), types));
        file.set("tokenizer.ggml.merges", strings(["h e", "l l", "he ll"]));
        file.set("tokenizer.ggml.bos_token_id", u32(256));
        file.set("tokenizer.ggml.eos_token_id", u32(256));

        let mut rng = Rng::new(1);
        let mut add = |name: &str, dims: &[u32]| {
            let dtype = if dims.len() == 1 { DType::F32 } else { dtype };
            let n = dims.iter().product::<u32>() as usize;
            let data = match dtype {
                DType::F32 => (0..n).flat_map(|_| (rng.next_f64() as f32 - 0.5).to_le_bytes()).collect(),
                _ => (0..dtype.row_bytes(n).unwrap()).map(|_| rng.next_u64() as u8).collect(),
            };
            let dims = dims.iter().map(|&d| d.into()).collect();
            file.tensors.push(Tensor { name: name.into(), dims, dtype: dtype.id(), offset: None, data });
        };
        let kv_dim = dim / n_heads * n_kv_heads;
        add("token_embd.weight", &[dim, vocab]);
        add("blk.0.attn_norm.weight", &[dim]);
        add("blk.0.attn_q.weight", &[dim, dim]);
        add("blk.0.attn_k.weight", &[dim, kv_dim]);
        add("blk.0.attn_v.weight", &[dim, kv_dim]);
        add("blk.0.attn_output.weight", &[dim, dim]);
        add("blk.0.ffn_norm.weight", &[dim]);
        add("blk.0.ffn_gate.weight", &[dim, hidden_dim]);
        add("blk.0.ffn_up.weight", &[dim, hidden_dim]);
        add("blk.0.ffn_down.weight", &[hidden_dim, dim]);
        add("output_norm.weight", &[dim]);
        file
    }

    /// A hybrid of two layers with the same vocabulary: `qwen35` (a Gated DeltaNet, then attention), `lfm2` (a short
    /// convolution, then attention) or `falcon-h1` (attention and Mamba-2 side by side, twice).
    pub fn hybrid(architecture: &str) -> Self {
        let mut file = Self::llama();
        let (dim, hidden_dim, vocab) = (32, 64, 260);
        for (key, _) in &mut file.kv {
            if let Some(name) = key.strip_prefix(b"llama") {
                *key = [architecture.as_bytes(), name].concat();
            }
        }
        file.set("general.architecture", string(architecture));
        let mut set = |name: &str, value: Value| file.set(&format!("{architecture}.{name}"), value);
        set("block_count", u32(2));
        set("attention.key_length", u32(8));
        set("attention.value_length", u32(8));
        set("full_attention_interval", u32(2));
        set("shortconv.l_cache", u32(3));
        set("ssm.conv_kernel", u32(4));
        set("ssm.state_size", u32(8));
        set("ssm.group_count", u32(2));
        set("ssm.time_step_rank", u32(4));
        set("ssm.inner_size", u32(32));
        if architecture == "lfm2" {
            set("attention.head_count_kv", array(5, 2, [0i32, 2].iter().flat_map(|n| n.to_le_bytes()).collect()));
        }

        file.tensors.clear();
        let mut rng = Rng::new(1);
        let mut add = |name: &str, dims: &[u32]| {
            let n = dims.iter().product::<u32>();
            let number = |x: f64| match name.rsplit('.').next() {
                Some("ssm_a") => -0.02 - x, // decays
                _ => x - 0.5,
            };
            let data = (0..n).flat_map(|_| (number(rng.next_f64()) as f32).to_le_bytes()).collect();
            let dims = dims.iter().map(|&d| d.into()).collect();
            file.tensors.push(Tensor { name: name.into(), dims, dtype: 0, offset: None, data });
        };
        add("token_embd.weight", &[dim, vocab]);
        for i in 0..2 {
            let mut add = |name: &str, dims: &[u32]| add(&format!("blk.{i}.{name}"), dims);
            let recurrent = architecture == "falcon-h1" || i == 0;
            add("attn_norm.weight", &[dim]);
            if architecture == "falcon-h1" || i == 1 {
                let gated = if architecture == "qwen35" { 2 } else { 1 };
                add("attn_q.weight", &[dim, gated * dim]);
                add("attn_k.weight", &[dim, dim / 2]);
                add("attn_v.weight", &[dim, dim / 2]);
                add("attn_output.weight", &[dim, dim]);
                if architecture != "falcon-h1" {
                    add("attn_q_norm.weight", &[8]);
                    add("attn_k_norm.weight", &[8]);
                }
            }
            if recurrent && architecture == "lfm2" {
                add("shortconv.in_proj.weight", &[dim, 3 * dim]);
                add("shortconv.conv.weight", &[3, dim]);
                add("shortconv.out_proj.weight", &[dim, dim]);
            } else if recurrent {
                if architecture == "qwen35" {
                    add("attn_qkv.weight", &[dim, 64]);
                    add("attn_gate.weight", &[dim, 32]);
                    add("ssm_alpha.weight", &[dim, 4]);
                    add("ssm_beta.weight", &[dim, 4]);
                    add("ssm_norm.weight", &[8]);
                } else {
                    add("ssm_in.weight", &[dim, 32 + 64 + 4]);
                    add("ssm_conv1d.bias", &[64]);
                    add("ssm_d", &[1, 4]);
                }
                add("ssm_conv1d.weight", &[4, 64]);
                add("ssm_dt.bias", &[4]);
                add("ssm_a", if architecture == "qwen35" { &[4] } else { &[1, 4] });
                add("ssm_out.weight", &[32, dim]);
            }
            let norm = if architecture == "qwen35" { "post_attention_norm" } else { "ffn_norm" };
            add(&format!("{norm}.weight"), &[dim]);
            add("ffn_gate.weight", &[dim, hidden_dim]);
            add("ffn_up.weight", &[dim, hidden_dim]);
            add("ffn_down.weight", &[hidden_dim, dim]);
        }
        add(if architecture == "lfm2" { "token_embd_norm.weight" } else { "output_norm.weight" }, &[dim]);
        file
    }

    /// A model of this architecture whose numbers follow from where they stand, so that others can write it too: number `i`
    /// of tensor `t` is `(40503 i + 7919 t + 12345) mod 65521 / 65521 - 1/2`; one more in norms, eight
    /// times that in biases.
    pub fn fixed(architecture: &str) -> Self {
        let mut file = Self::llama();
        for (key, _) in &mut file.kv {
            if let Some(name) = key.strip_prefix(b"llama") {
                *key = [architecture.as_bytes(), name].concat();
            }
        }
        file.set("general.architecture", string(architecture));
        if architecture == "qwen2" {
            for (name, len) in [("q", 32), ("k", 16), ("v", 16)] {
                let name = format!("blk.0.attn_{name}.bias").into();
                file.tensors.push(Tensor { name, dims: vec![len], dtype: 0, offset: None, data: vec![] });
            }
        }
        for (t, tensor) in (0u64..).zip(&mut file.tensors) {
            let more = if tensor.name.ends_with(b"norm.weight") { 1.0 } else { 0.0 };
            let times = if tensor.name.ends_with(b"bias") { 8.0 } else { 1.0 };
            let numbers = (0..tensor.dims.iter().product()).map(|i: u64| (40503 * i + 7919 * t + 12345) % 65521);
            let numbers = numbers.map(|n| (n as f64 / 65521.0 - 0.5) * times + more);
            tensor.data = numbers.flat_map(|x| (x as f32).to_le_bytes()).collect();
        }
        file
    }

    /// The same with a SentencePiece vocabulary: three special tokens, 256 bytes and a space.
    pub fn llama_with_spm() -> Self {
        let mut file = Self::llama();
        let specials = ["<unk>", "<s>", "</s>"].map(String::from);
        let bytes = (0..=255).map(|b| format!("<0x{b:02X}>"));
        let tokens: Vec<String> = specials.into_iter().chain(bytes).chain(["▁".into()]).collect();
        let n = tokens.len() as u64;
        let kinds = [2, 3, 3].into_iter().chain([6; 256]).chain([1]);
        file.set("tokenizer.ggml.model", string("llama"));
        file.set("tokenizer.ggml.tokens", strings(tokens));
        file.set("tokenizer.ggml.token_type", array(5, n, kinds.flat_map(i32::to_le_bytes).collect()));
        file.set("tokenizer.ggml.scores", array(6, n, (0..n).flat_map(|i| (-(i as f32)).to_le_bytes()).collect()));
        file.set("tokenizer.ggml.unknown_token_id", u32(0));
        file.set("tokenizer.ggml.bos_token_id", u32(1));
        file.set("tokenizer.ggml.eos_token_id", u32(2));
        file.unset("tokenizer.ggml.merges");
        file.unset("tokenizer.ggml.pre");
        file
    }

    /// Sets a key, in its place if it is there.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.kv.iter_mut().find(|(k, _)| k == key.as_bytes()) {
            Some((_, v)) => *v = value,
            None => self.kv.push((key.into(), value)),
        }
    }

    pub fn unset(&mut self, key: &str) {
        self.kv.retain(|(k, _)| k != key.as_bytes());
    }

    /// The file up to the data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_kv.unwrap_or(self.kv.len() as u64).to_le_bytes());
        for (key, Value(kind, bytes)) in &self.kv {
            out.extend([text(key), kind.to_le_bytes().to_vec(), bytes.clone()].concat());
        }
        let mut end = 0;
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.dtype.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(end as u64).to_le_bytes());
            end = (end + tensor.data.len()).next_multiple_of(self.alignment);
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }
}
