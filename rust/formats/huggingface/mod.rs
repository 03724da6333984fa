//! A directory as Hugging Face has them: `config.json`, and the weights in one or more safetensors.
//!
//! Nothing is converted and nothing is copied: the tensors are views of the mapped files, by the names and shapes that GGUF
//! has for them, and the configuration becomes the keys that GGUF has for it. So all that is above this room sees a model
//! file like any other. In what the weights differ from those of a GGUF file, keys under `llama_rs.` say:
//!
//! | key | value | |
//! |---|---|---|
//! | `llama_rs.rope_style` | `half` | what is rotated together stands in the halves of a head, and in GGUF files of this architecture side by side |
//! | `llama_rs.norm_offset` | `1.0` | is to be added to the weights of norms, but for `ssm_norm` |
//! | `llama_rs.ssm_a` | `log` | `ssm_a` is `log(-a)` |
//! | `llama_rs.ssm_v_heads` | `grouped` | value head `h` belongs to key head `h / (n_v / n_k)`, not `h mod n_k` |
//!
//! Nothing of the tokenizer is read until somebody asks for it.

mod adapter;
mod config;
mod families;
mod keys;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use self::adapter::open_adapter;
pub(crate) use self::config::Config;
pub(crate) use self::families::Family;
use self::families::How;
pub(crate) use self::families::has_pairs;
pub(crate) use self::keys::Made;
use super::{OpenPart, gguf, one_line, safetensors};
use crate::checkpoint::{Checkpoint, Pairs, TensorInfo};
use crate::error::{Error, FormatError, Result};
use crate::mapping::Mapping;
use crate::quant::DType;
use crate::tensor::TensorView;
use crate::tokenizer::huggingface::{self, Entry as Words};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// The tensor that has a row for each token.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// Longest index. Those of models with hundreds of experts have some megabytes.
const MAX_INDEX_LEN: usize = 32 << 20;
/// Most files that weights may be in.
const MAX_SHARDS: usize = 10_000;

/// What a directory holds.
pub(crate) struct Directory {
    pub path: PathBuf,
    pub config: Config,
    pub made: Made,
    pub family: &'static Family,
    /// The tensors by GGUF's names, in the order of the files.
    pub tensors: Vec<TensorInfo>,
    /// The files, the configuration first, each with the length of its header.
    pub maps: Vec<(Arc<Mapping>, usize)>,
}

/// Opens the directory at `path` as one model.
pub(super) fn open(path: &Path, open_part: &OpenPart) -> Result<Checkpoint> {
    let Directory { path, mut made, family, mut tensors, mut maps, .. } = read(path, open_part)?;
    if let Some(why) = family.convert_first {
        let what = format!("a directory of this family, for {why}: convert it first (llama-rs convert)");
        return Err(Error::Unsupported { path, what });
    }
    if family.pairs {
        made.pairs.str("llama_rs.rope_style", "half");
    }
    if family.norm_offset {
        made.pairs.f32("llama_rs.norm_offset", 1.0);
    }
    if made.differences.log_a {
        made.pairs.str("llama_rs.ssm_a", "log");
    }
    if made.differences.grouped_heads {
        made.pairs.str("llama_rs.ssm_v_heads", "grouped");
    }
    let (metadata, more, map) = gguf::made(&made.pairs, &made.tensors, maps[0].0.path())?;
    tensors.extend(more);
    maps.push((map, 0)); // it follows from the configuration
    let checkpoint = Checkpoint::new(metadata, tensors, maps)?;
    let (folder, vocab_size) = (path.clone(), checkpoint.tensor(EMBEDDING).map_or(0, TensorView::n_rows));
    Ok(checkpoint.in_directory(path, move || {
        let (metadata, _, _) = gguf::made(&tokenizer(&folder, vocab_size)?, &[], &folder)?;
        Ok(metadata)
    }))
}

/// Reads the configuration and the headers of the weights.
pub(crate) fn read(path: &Path, open_part: &OpenPart) -> Result<Directory> {
    let config_path = path.join(CONFIG);
    let map = open_part(&config_path).map_err(|e| no_config(e, path))?;
    let (config, made, family, names) = map.checked(|| {
        let config = Config::parse(&config_path, map.as_slice())?;
        refuse_quantized(&config)?;
        let family = families::find(&config)?;
        let mut keys = keys::Keys::new(&config, (family.architecture)(&config)?)?;
        let n_layers = keys.n_layers as usize;
        (family.keys)(&mut keys)?;
        let names = Names {
            family,
            n_layers,
            n_ignored: config.int("num_nextn_predict_layers")?.unwrap_or(0) as usize,
            tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
            has_experts: config.first_int(keys::EXPERT_COUNTS)?.unwrap_or(0) > 0,
            groups: config.int("mamba_n_groups")?.unwrap_or(1) as usize,
            known: HashMap::new(),
        };
        let made = keys.finish()?;
        Ok((config, made, family, names))
    })?;
    let len = map.as_slice().len();
    let (path, tensors, maps) = (path.to_path_buf(), Vec::new(), vec![(map, len)]);
    let mut directory = Directory { path, config, made, family, tensors, maps };
    directory.read_weights(names, open_part)?;
    Ok(directory)
}

impl Directory {
    fn read_weights(&mut self, mut names: Names, open_part: &OpenPart) -> Result<()> {
        let (shards, mut index) = shards(&self.path, open_part)?;
        for shard in shards {
            let map = open_part(&shard)?;
            let file = map.checked(|| safetensors::parse(&map))?;
            let name = shard.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for tensor in &file.tensors {
                if let Some(index) = &mut index
                    && index.get(&*tensor.name).is_some_and(|file| *file == name)
                {
                    index.remove(&*tensor.name);
                }
                names.add(tensor, &map, &mut self.tensors)?;
            }
            self.maps.push((map, file.header));
        }
        if let Some((tensor, file)) = index.iter().flatten().min() {
            let file = one_line(file);
            let e = FormatError::new(self.path.join(INDEX), "a tensor is not in the file that the index names");
            return Err(e.named(tensor).got(file).into());
        }
        if self.tensors.is_empty() {
            return Err(FormatError::new(&self.path, "no weights: its safetensors have no tensors").into());
        }
        Ok(())
    }
}

/// Why there is no configuration.
fn no_config(e: Error, folder: &Path) -> Error {
    match e {
        Error::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound && folder.is_dir() => {
            let names = std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut models: Vec<_> = names.filter(|name| name.ends_with(".gguf")).collect();
            models.sort();
            let hint = match &models[..] {
                [] => "a model directory has one, and its weights in safetensors".into(),
                [one] => format!("it holds {}: name that", one.escape_debug()),
                [first, ..] => {
                    format!("it holds {} GGUF files: name one, such as {}", models.len(), first.escape_debug())
                }
            };
            FormatError::new(folder, format!("a directory without {CONFIG}; {hint}")).into()
        }
        e => e,
    }
}

/// Refuses weights that are encoded in a way that the kernels do not read.
fn refuse_quantized(config: &Config) -> Result<()> {
    for name in ["quantization_config", "compression_config", "quantization"] {
        if config.get(name).is_some_and(|value| value.is_object()) {
            let method = config.first_str(&[&format!("{name}.quant_method"), &format!("{name}.quant_algo")])?;
            let method = one_line(method.unwrap_or("unknown"));
            let what =
                format!("weights quantized as {method} ({name}); BF16, F16 and F32 are supported in a directory");
            return Err(config.unsupported(format!("{what}: take the original model, or a GGUF file of it")));
        }
    }
    Ok(())
}

/// The tensors of an index: the name of each, and the file that it is in.
type Index = HashMap<String, String>;

/// The files that the weights are in, and what the index says, if there is one.
fn shards(folder: &Path, open_part: &OpenPart) -> Result<(Vec<PathBuf>, Option<Index>)> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok((vec![single], None));
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        let map = open_part(&index)?;
        let index = map.checked(|| read_index(&index, map.as_slice()))?;
        let mut names: Vec<_> = index.values().collect();
        names.sort();
        names.dedup();
        return Ok((names.into_iter().map(|name| folder.join(name)).collect(), Some(index)));
    }
    let list = |e| Error::File { path: folder.into(), source: e };
    let (mut shards, mut pickles) = (Vec::new(), false);
    for entry in std::fs::read_dir(folder).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("model") && name.ends_with(".safetensors") {
            shards.push(folder.join(name));
        }
        pickles |= name.starts_with("pytorch_model");
    }
    shards.sort();
    if shards.is_empty() {
        let what = if pickles {
            "the weights are Python pickles (pytorch_model.bin): take the safetensors of the model, or convert them"
        } else {
            "no weights: a model directory has a model.safetensors, or several with an index"
        };
        return Err(FormatError::new(folder, what).into());
    }
    if shards.len() > MAX_SHARDS {
        return Err(FormatError::new(folder, "too many files of weights").got(shards.len()).limit(MAX_SHARDS).into());
    }
    Ok((shards, None))
}

/// What an index says. The names of files in it are names, and no way out of the directory.
fn read_index(path: &Path, contents: &[u8]) -> Result<Index> {
    let error = |what: String| FormatError::new(path, what);
    if contents.len() > MAX_INDEX_LEN {
        return Err(error("too long".into())
            .got(contents.len())
            .limit(format!("at most {MAX_INDEX_LEN} bytes"))
            .into());
    }
    let contents = contents.to_vec(); // then checked: the file may change
    let json: serde_json::Value = serde_json::from_slice(&contents)
        .map_err(|e| error(format!("not valid JSON: {}", one_line(&e.to_string()))))?;
    let Some(map) = json.get("weight_map").and_then(|map| map.as_object()) else {
        return Err(error("no list of tensors".into()).named("weight_map").into());
    };
    let mut index = Index::new();
    let mut files: HashMap<&str, ()> = HashMap::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| {
            !name.is_empty()
                && !name.contains(['/', '\\', '\0'])
                && name.ends_with(".safetensors")
                && !name.starts_with('.')
        });
        let Some(name) = name else {
            let got = one_line(&file.to_string());
            let e = error("not the name of a file beside it".into()).named(tensor).got(got);
            return Err(e.limit("a name such as model-00001-of-00002.safetensors").into());
        };
        files.insert(name, ());
        if files.len() > MAX_SHARDS {
            return Err(error("too many files of weights".into()).limit(format!("at most {MAX_SHARDS}")).into());
        }
        index.insert(tensor.clone(), name.into());
    }
    Ok(index)
}

/// From the names here to those of GGUF.
struct Names {
    family: &'static Family,
    n_layers: usize,
    /// Layers after the last that guess tokens ahead.
    n_ignored: usize,
    /// Whether the embedding is the output, whatever else is there.
    tied: bool,
    has_experts: bool,
    groups: usize,
    /// What was found for a name without its layer.
    known: HashMap<Box<str>, Option<Target>>,
}

/// What a name stands for.
#[derive(Clone)]
struct Target {
    name: String,
    /// Where the second half of the rows goes.
    second: Option<String>,
    how: How,
}

/// What may stand before a name, wherever the language model is in the whole.
const PREFIXES: &[&str] = &["model.", "language_model.", "bert.", "ernie.", "lfm.", "text_model."];

/// Parts of a whole that a text has no need of.
const OTHER_PARTS: &[&str] = &[
    "visual.",
    "vision_tower.",
    "vision_model.",
    "multi_modal_projector.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "mtp.",
    "mtp_",
    "cls.predictions.",
    "cls.seq_relationship.",
];

impl Names {
    /// Adds what a tensor is to GGUF, which may be nothing.
    fn add(&mut self, tensor: &safetensors::Tensor, map: &Arc<Mapping>, tensors: &mut Vec<TensorInfo>) -> Result<()> {
        let mut name = &*tensor.name;
        while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            name = rest;
        }
        if OTHER_PARTS.iter().any(|part| name.starts_with(part)) || name.ends_with("rotary_emb.inv_freq") {
            return Ok(());
        }
        let (prefix, name) = match name.strip_prefix(self.family.layers).and_then(|rest| rest.split_once('.')) {
            Some((i, rest)) => match i.parse::<usize>() {
                Ok(n) if n < self.n_layers && n.to_string() == i => (format!("blk.{n}."), rest),
                Ok(n) if (self.n_layers..self.n_layers + self.n_ignored).contains(&n) => return Ok(()),
                _ => return Err(self.unknown(tensor, map)),
            },
            None => (String::new(), name),
        };
        let target = match self.known.entry(name.into()) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) => entry.insert(target(self.family, name, self.has_experts)).clone(),
        };
        let Some(target) = target else { return Err(self.unknown(tensor, map)) };
        if target.how == How::Ignored || (self.tied && prefix.is_empty() && target.name == "output.weight") {
            return Ok(());
        }
        let view = self.view(tensor, map, target.how)?;
        let mut push = |name: &str, view| tensors.push(TensorInfo::new(format!("{prefix}{name}").into(), None, view));
        match &target.second {
            None => push(&target.name, view),
            Some(second) => {
                let half = view.n_rows() / 2;
                let halves = [view.rows(0..half), view.rows(half..2 * half)].map(Option::unwrap);
                let [first, last] = halves;
                push(&target.name, first);
                push(second, last);
            }
        }
        Ok(())
    }

    /// The tensor with the dimensions that GGUF has.
    fn view(&self, tensor: &safetensors::Tensor, map: &Arc<Mapping>, how: How) -> Result<TensorView> {
        let dtype = tensor.dtype.filter(|dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16));
        if dtype.is_none() {
            let name = one_line(&tensor.name);
            let what = format!("tensor {name} of type {}", tensor.spelling);
            let what = format!("{what}; BF16, F16 and F32 are supported in a directory");
            return Err(Error::Unsupported { path: map.path().into(), what });
        }
        let mut shape: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        match how {
            How::Squeezed => shape.retain(|&n| n != 1),
            How::Column => shape.insert(0, 1),
            How::Groups if self.groups > 0 && shape.len() == 1 && shape[0].is_multiple_of(self.groups) => {
                shape = vec![shape[0] / self.groups, self.groups];
            }
            How::Part | How::Whole | How::Groups | How::Halves | How::Ignored => {}
        }
        if shape.is_empty() {
            shape.push(1);
        }
        let bad = |what: &str| {
            let e = FormatError::new(map.path(), what).named(&tensor.name).got(format!("{:?}", tensor.shape));
            Error::from(e)
        };
        if shape.len() > gguf::MAX_DIMS {
            return Err(bad("too many dimensions"));
        }
        if how == How::Halves && (shape.len() != 2 || !shape[1].is_multiple_of(2)) {
            return Err(bad("not two matrices in one"));
        }
        tensor.view(&shape).ok_or_else(|| bad("an empty tensor"))
    }

    fn unknown(&self, tensor: &safetensors::Tensor, map: &Arc<Mapping>) -> Error {
        let name = one_line(&tensor.name);
        let what = format!("tensor {name}; what it is for is not known, and without it the text may be wrong");
        Error::Unsupported { path: map.path().into(), what }
    }
}

/// What GGUF calls a tensor of this name, which stands in a layer or in none.
fn target(family: &Family, name: &str, has_experts: bool) -> Option<Target> {
    let renamed = |old: &str, new: &str| name.strip_suffix(old).map(|stem| Cow::from(format!("{stem}{new}")));
    let name = renamed(".gamma", ".weight").or_else(|| renamed(".beta", ".bias")).unwrap_or(Cow::from(name));
    let suffix = [".weight", ".bias"].into_iter().find(|suffix| name.ends_with(suffix));
    let stem = suffix.map_or(&*name, |suffix| &name[..name.len() - suffix.len()]);
    for list in family.names {
        for (i, row) in list.iter().enumerate() {
            let whole = matches!(row.how, How::Whole | How::Column);
            let Some(number) = fits(row.from, if whole { &name } else { stem }) else { continue };
            let complete = |to: &str| {
                let to = to.replace('*', number);
                // Without experts, what they would share is the whole network.
                let to = if has_experts { to } else { to.replace("_shexp", "") };
                if whole { to } else { to + suffix.unwrap_or(".weight") }
            };
            let second = (row.how == How::Halves).then(|| complete(list[i + 1].to));
            return Some(Target { name: complete(row.to), second, how: row.how });
        }
    }
    None
}

/// The number that `*` stands for, if the name is as the pattern says; none is an empty text.
fn fits<'a>(pattern: &str, name: &'a str) -> Option<&'a str> {
    match pattern.split_once('*') {
        None => (pattern == name).then_some(""),
        Some((before, after)) => {
            let number = name.strip_prefix(before)?.strip_suffix(after)?;
            (!number.is_empty() && number.len() < 6 && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
        }
    }
}

/// The keys of the tokenizer of the directory, for as many tokens as the embedding has rows: models have rows for tokens that
/// are still to be thought of, and tokenizers now and then a token for a model that also sees.
///
/// # Errors
/// As for [`entries`](crate::tokenizer::huggingface::entries).
pub(crate) fn tokenizer(folder: &Path, vocab_size: usize) -> Result<Pairs> {
    const UNUSED: i32 = 5;
    let mut pairs = Pairs::new();
    for (key, entry) in huggingface::entries(folder)? {
        match entry {
            Words::Bool(x) => pairs.bool(&key, x),
            Words::U32(x) => pairs.u32(&key, x),
            Words::F32(x) => pairs.f32(&key, x),
            Words::Str(x) => pairs.str(&key, x),
            Words::Strings(mut all) => {
                if key == "tokenizer.ggml.tokens" {
                    all.truncate(vocab_size);
                    all.extend((all.len()..vocab_size).map(|i| format!("[PAD{i}]").into_bytes()));
                }
                pairs.strs(&key, all.iter());
            }
            Words::F32s(mut all) => {
                if key == "tokenizer.ggml.scores" {
                    all.resize(vocab_size, -10_000.0);
                }
                pairs.f32s(&key, &all);
            }
            Words::I32s(mut all) => {
                if key == "tokenizer.ggml.token_type" {
                    all.resize(vocab_size, UNUSED);
                }
                pairs.i32s(&key, &all);
            }
            Words::Bytes(all) => pairs.u8s(&key, &all),
        }
    }
    Ok(pairs)
}

/// Whether the directory has a tokenizer, in any of its forms.
pub(crate) fn has_tokenizer(folder: &Path) -> bool {
    ["tokenizer.json", "tekken.json", "tokenizer.model"].iter().any(|name| folder.join(name).exists())
}

/// Adds what the directory recommends for sampling.
pub(crate) fn sampling(folder: &Path, pairs: &mut Pairs) -> Result<()> {
    let Some(config) = Config::open(&folder.join("generation_config.json"))? else { return Ok(()) };
    for (name, key) in
        [("temperature", "temp"), ("top_p", "top_p"), ("min_p", "min_p"), ("repetition_penalty", "penalty_repeat")]
    {
        if let Some(x) = config.float(name)? {
            pairs.f32(&format!("general.sampling.{key}"), x as f32);
        }
    }
    if let Some(k) = config.int("top_k")? {
        pairs.i32("general.sampling.top_k", k as i32);
    }
    Ok(())
}
