//! Adapters (LoRA) as they lie on disk: a GGUF file, or a directory as PEFT writes it.
//!
//! Both come down to the same: of some matrices, by their names in GGUF, two thin ones and a factor. Nothing is copied.

use std::collections::BTreeMap;
use std::path::Path;

use super::{gguf, huggingface};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, FormatError, Result};
use crate::mapping::{LoadOptions, Mapping};
use crate::tensor::TensorView;
use crate::threads::Interrupt;

/// What an adapter holds.
pub(crate) struct AdapterFile {
    /// The file, or the files.
    pub checkpoint: Checkpoint,
    /// What it changes.
    pub changes: Vec<Change>,
    /// What GGUF calls the models that it is for, if it says so.
    pub architecture: Option<String>,
    /// Whether the rows of queries and keys are in the order of training, with what is rotated together in the halves of a
    /// head.
    pub in_halves: bool,
}

/// A change of one matrix: `w + scale * b a`.
pub(crate) struct Change {
    /// The matrix, as GGUF calls it: `blk.0.attn_q.weight`.
    pub matrix: String,
    /// `(rank, columns)`
    pub a: TensorView,
    /// `(rows, rank)`
    pub b: TensorView,
    /// What the product is multiplied with.
    pub scale: f32,
}

/// Opens the adapter at `path`: maps it, reads and checks its header, and nothing else. `is_there` says whether the model has
/// a tensor of a name.
///
/// # Errors
/// [`Error::File`] if it cannot be mapped, [`Error::Format`] if it is no adapter, [`Error::Unsupported`] for one of another
/// kind.
pub(crate) fn open_adapter(path: &Path, is_there: &dyn Fn(&str) -> bool) -> Result<AdapterFile> {
    let open = |path: &Path| Mapping::open_with(path, LoadOptions::default(), &Interrupt::never());
    let file = if path.is_dir() {
        huggingface::open_adapter(path, &open, is_there)?
    } else {
        let map = open(path)?;
        map.checked(|| super::identify(&map))?;
        let checkpoint = (gguf::FORMAT.open)(&map, &open)?;
        checkpoint
            .checked(|| of_gguf(path, &checkpoint))
            .map(|(changes, architecture)| (changes, Some(architecture)))
            .map(|(changes, architecture)| AdapterFile { checkpoint, changes, architecture, in_halves: false })?
    };
    file.checkpoint.check()?;
    Ok(file)
}

/// What the GGUF file of an adapter says, as llama.cpp's converter writes it.
fn of_gguf(path: &Path, checkpoint: &Checkpoint) -> Result<(Vec<Change>, String)> {
    let metadata = &checkpoint.metadata;
    let unsupported = |what: String| Error::Unsupported { path: path.into(), what };
    match metadata.str("general.type")?.as_deref() {
        Some("adapter") => {}
        _ => return Err(FormatError::new(path, "no adapter: general.type is not adapter").into()),
    }
    match metadata.str("adapter.type")?.as_deref() {
        Some("lora") => {}
        other => {
            let other = super::one_line(other.unwrap_or("none"));
            return Err(unsupported(format!("an adapter of type {other} (adapter.type); supported is lora")));
        }
    }
    if metadata.get("adapter.alora.invocation_tokens").is_some() {
        return Err(unsupported("an adapter that some tokens turn on (adapter.alora.invocation_tokens)".into()));
    }
    let architecture = metadata.str("general.architecture")?.unwrap_or_default();
    let alpha = metadata.f32("adapter.lora.alpha")?.unwrap_or(0.0);
    if !alpha.is_finite() {
        return Err(metadata.error("bad factor", "adapter.lora.alpha").got(alpha).into());
    }
    let mut parts = Parts::new(path);
    for tensor in checkpoint.tensors() {
        let (matrix, which) = match tensor.name().rsplit_once('.') {
            Some((matrix, "lora_a")) => (matrix, Part::A),
            Some((matrix, "lora_b")) => (matrix, Part::B),
            _ => return Err(unsupported(format!("tensor {} of an adapter", super::one_line(tensor.name())))),
        };
        parts.add(matrix, which, tensor.view.clone())?;
    }
    // Without a factor there is none, as llama.cpp has it.
    let changes = parts.finish(|_, rank| if alpha == 0.0 { 1.0 } else { alpha / rank as f32 })?;
    Ok((changes, architecture))
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    A,
    B,
}

/// The thin matrices of each matrix, as they are found.
pub(super) struct Parts<'p> {
    path: &'p Path,
    of: BTreeMap<String, [Option<TensorView>; 2]>,
}

impl<'p> Parts<'p> {
    pub fn new(path: &'p Path) -> Self {
        Self { path, of: BTreeMap::new() }
    }

    /// One of the two of a matrix.
    pub fn add(&mut self, matrix: &str, which: Part, view: TensorView) -> Result<()> {
        let error = |what: &str| FormatError::new(self.path, what).named(matrix);
        if view.shape().len() != 2 {
            return Err(error("part of an adapter that is no matrix").got(format!("{:?}", view.shape())).into());
        }
        match &mut self.of.entry(matrix.into()).or_default()[usize::from(which == Part::B)] {
            Some(_) => Err(error("part of an adapter that is there twice").into()),
            none => {
                *none = Some(view);
                Ok(())
            }
        }
    }

    /// The changes; `scale` says of a matrix and its rank what they are multiplied with.
    pub fn finish(self, scale: impl Fn(&str, usize) -> f32) -> Result<Vec<Change>> {
        let changes = self.of.into_iter().map(|(matrix, parts)| {
            let error = |what: &str| FormatError::new(self.path, what).named(&matrix);
            let [Some(a), Some(b)] = parts else {
                return Err(error("an adapter with one of lora_a and lora_b, and not the other").into());
            };
            let rank = a.n_rows();
            if b.row_len() != rank {
                let e =
                    error("an adapter whose parts do not fit together").got(format!("rank {rank} and {}", b.row_len()));
                return Err(e.into());
            }
            let scale = scale(&matrix, rank);
            Ok(Change { matrix, a, b, scale })
        });
        changes.collect()
    }
}
