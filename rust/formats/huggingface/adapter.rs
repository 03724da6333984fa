//! An adapter (LoRA) as PEFT writes it: a directory with `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Its names are those of the modules of the model; what GGUF calls them the families say, the first whose name for it the
//! model has.

use std::path::Path;

use serde_json::Value;

use super::families::{FAMILIES, How};
use super::{Config, PREFIXES, target};
use crate::checkpoint::{Checkpoint, Pairs, TensorInfo};
use crate::error::{Error, FormatError, Result};
use crate::formats::adapter::{AdapterFile, Part, Parts};
use crate::formats::{OpenPart, gguf, one_line, safetensors};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Opens the adapter in the directory at `path`, of a model with these tensors.
///
/// # Errors
/// See [`formats::open_adapter`](crate::formats::open_adapter).
pub(in crate::formats) fn open_adapter(
    path: &Path,
    open_part: &OpenPart,
    is_there: &dyn Fn(&str) -> bool,
) -> Result<AdapterFile> {
    let config_path = path.join(CONFIG);
    let missing = |name: &str| FormatError::new(path, format!("a directory without {name}, so no adapter of PEFT"));
    if !config_path.is_file() {
        return Err(missing(CONFIG).into());
    }
    let weights_path = path.join(WEIGHTS);
    if !weights_path.is_file() {
        let pickle = path.join("adapter_model.bin").is_file();
        let e = missing(WEIGHTS);
        let e = if pickle { e.got("adapter_model.bin, a Python pickle: save it as safetensors") } else { e };
        return Err(e.into());
    }
    let config_map = open_part(&config_path)?;
    let factors = config_map.checked(|| Factors::read(&Config::parse(&config_path, config_map.as_slice())?))?;
    let map = open_part(&weights_path)?;
    let file = map.checked(|| safetensors::parse(&map))?;
    let (mut parts, mut tensors, mut modules) = (Parts::new(path), Vec::new(), Vec::new());
    for tensor in &file.tensors {
        let unknown = || {
            let what =
                format!("tensor {} of an adapter: neither lora_A nor lora_B of a matrix", one_line(&tensor.name));
            Error::Unsupported { path: weights_path.clone(), what }
        };
        let (module, which) = split(&tensor.name).ok_or_else(unknown)?;
        let matrix = renamed(module, is_there).ok_or_else(|| {
            let what =
                format!("a module that this model does not have, or that cannot be adapted ({})", one_line(module));
            Error::Unsupported { path: weights_path.clone(), what }
        })?;
        let dims: Vec<usize> = tensor.shape.iter().rev().copied().collect();
        let view = tensor.view(&dims).ok_or_else(|| {
            let e =
                FormatError::new(&weights_path, "a tensor of a type or shape that no matrix has").named(&tensor.name);
            Error::from(e.got(format!("{} {:?}", tensor.spelling, tensor.shape)))
        })?;
        let end = if which == Part::A { "lora_a" } else { "lora_b" };
        tensors.push(TensorInfo::new(format!("{matrix}.{end}").into(), None, view.clone()));
        parts.add(&matrix, which, view)?;
        modules.push((matrix, module.to_string()));
    }
    let changes = parts.finish(|matrix, rank| {
        let module = modules.iter().find(|(known, _)| known == matrix).map_or("", |(_, module)| module);
        factors.of(module, rank)
    })?;
    let (metadata, _, made) = gguf::made(&Pairs::new(), &[], &config_path)?;
    let config_len = config_map.as_slice().len();
    let maps = vec![(config_map, config_len), (map, file.header), (made, 0)];
    let folder = path.to_path_buf();
    let checkpoint = Checkpoint::new(metadata, tensors, maps)?.in_directory(folder.clone(), move || {
        Err(Error::Unsupported { path: folder.clone(), what: "the tokenizer of an adapter".into() })
    });
    Ok(AdapterFile { checkpoint, changes, architecture: None, in_halves: true })
}

/// The module of a tensor, and which of the two it is: `base_model.model.` and what the module is called, `.lora_A`, perhaps
/// the name of the adapter, `.weight`.
fn split(name: &str) -> Option<(&str, Part)> {
    let rest = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    [(".lora_A", Part::A), (".lora_B", Part::B)].into_iter().find_map(|(mark, which)| {
        let (module, adapter) = rest.rsplit_once(mark)?;
        (adapter.is_empty() || adapter.starts_with('.') && !adapter[1..].contains('.')).then_some((module, which))
    })
}

/// What GGUF calls the matrix of a module.
fn renamed(module: &str, is_there: &dyn Fn(&str) -> bool) -> Option<String> {
    let mut name = module;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    FAMILIES.iter().find_map(|family| {
        let (layer, rest) = name.strip_prefix(family.layers)?.split_once('.')?;
        let i: usize = layer.parse().ok().filter(|i: &usize| i.to_string() == layer)?;
        [false, true].into_iter().find_map(|has_experts| {
            let target =
                target(family, &format!("{rest}.weight"), has_experts).filter(|target| target.how == How::Part)?;
            Some(format!("blk.{i}.{}", target.name)).filter(|name| is_there(name))
        })
    })
}

/// What products are multiplied with.
struct Factors {
    alpha: f64,
    patterns: Vec<(String, f64)>,
    by_root: bool, // of the rank (rsLoRA)
}

impl Factors {
    fn read(config: &Config) -> Result<Self> {
        let unsupported = |what: &str| config.unsupported(format!("an adapter with {what}"));
        let kind = config.str("peft_type")?.unwrap_or("LORA");
        if !kind.eq_ignore_ascii_case("lora") {
            return Err(unsupported(&format!("peft_type {}; supported is LORA", one_line(kind))));
        }
        for name in ["use_dora", "fan_in_fan_out", "lora_bias"] {
            if config.bool(name)?.unwrap_or(false) {
                return Err(unsupported(name));
            }
        }
        if !matches!(config.get("bias").and_then(Value::as_str), None | Some("none")) {
            return Err(unsupported("biases (bias)"));
        }
        for name in ["modules_to_save", "trainable_token_indices", "alora_invocation_tokens"] {
            let is_empty = config.get(name).is_none_or(|value| value.as_array().is_some_and(Vec::is_empty));
            if !is_empty {
                return Err(unsupported(name));
            }
        }
        let alpha = config.required("lora_alpha", config.float("lora_alpha")?)?;
        let mut patterns = Vec::new();
        if let Some(Value::Object(all)) = config.get("alpha_pattern") {
            for (name, value) in all {
                let value = value.as_f64().filter(|x| x.is_finite() && !name.contains(is_of_patterns));
                let Some(value) = value else {
                    return Err(unsupported(&format!("an alpha_pattern of {}", one_line(name))));
                };
                patterns.push((name.clone(), value));
            }
        }
        if !alpha.is_finite() {
            return Err(config.error("bad factor", "lora_alpha").got(alpha).into());
        }
        Ok(Self { alpha, patterns, by_root: config.bool("use_rslora")?.unwrap_or(false) })
    }

    fn of(&self, module: &str, rank: usize) -> f32 {
        let is_of = |name: &str| module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
        let alpha = self.patterns.iter().find(|(name, _)| is_of(name)).map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        (alpha / if self.by_root { rank.sqrt() } else { rank }) as f32
    }
}

/// What regular expressions are made of, besides the dots that names have.
fn is_of_patterns(c: char) -> bool {
    "\\^$*+?{}[]|()".contains(c)
}
