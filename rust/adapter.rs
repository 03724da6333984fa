//! Adapters (LoRA): what a file changes of the matrices of a model that it was trained for.
//!
//! The file is mapped like the model's, and nothing is merged: [`kernels`](crate::kernels) adds two thin products to that
//! with each changed matrix. So any number of adapters share one model, in one process or in many, and each sequence of a
//! batch may have its own.
//!
//! A file is checked against the model when it is opened: each tensor has to belong to a matrix of a layer, of fitting
//! shape. Where a GGUF file has the rows of queries and keys in another order than the model was trained with (llama), the
//! rows of an adapter that PEFT wrote are put there as they are added, and none is copied.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::arch::Config;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, FormatError, Result};
use crate::formats::{self, AdapterFile, Change};
use crate::hash::hash;
use crate::kernels::{Changes, LowRank, LowRanks};
use crate::tensor::TensorView;
use crate::weights::{Linear, Weights};

/// An adapter of a model, open.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    changes: Arc<LowRanks>,
    base: usize, // which checkpoint it was checked against
    hash: u64,
}

impl Adapter {
    /// Opens the adapter at `path`, a GGUF file or a directory as PEFT writes it, for a model.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be mapped, [`Error::Format`] if it is no adapter or not one of this model,
    /// [`Error::Unsupported`] if it changes what this version cannot change, or in another way.
    pub fn open(path: &Path, base: &Arc<Checkpoint>, config: &Config, weights: &Weights) -> Result<Self> {
        let AdapterFile { checkpoint, changes, architecture, in_halves } =
            formats::open_adapter(path, &|name| base.tensor(name).is_some())?;
        if let Some(theirs) = architecture.filter(|theirs| *theirs != config.architecture) {
            let e = FormatError::new(path, "an adapter of another model").got(theirs).limit(&config.architecture);
            return Err(e.into());
        }
        let base_in_halves = base.metadata.str("llama_rs.rope_style")?.is_some_and(|style| style == "half");
        let differ = in_halves != base_in_halves;
        let linears: Vec<(usize, &Linear)> = weights
            .layers
            .iter()
            .enumerate()
            .flat_map(|(i, layer)| layer.linears().into_iter().map(move |linear| (i, linear)))
            .collect();
        let mut all = LowRanks::new(checkpoint.maps());
        for Change { matrix, a, b, scale } in changes {
            let error = |what: &str| FormatError::new(path, what).named(&matrix);
            let unsupported = |what: &str| Error::Unsupported { path: path.into(), what: format!("{what} ({matrix})") };
            let Some(whole) = base.tensor(&matrix) else {
                return Err(error("an adapter of another model: this one has no such tensor").into());
            };
            if a.row_len() != whole.row_len() || b.n_rows() != whole.n_rows() {
                let e = error("an adapter of another model").got(format!("[{}, {}]", a.row_len(), b.n_rows()));
                return Err(e.limit(format!("[{}, {}]", whole.row_len(), whole.n_rows())).into());
            }
            if let Some(dtype) = [&a, &b].map(TensorView::dtype).into_iter().find(|dtype| !dtype.is_supported()) {
                return Err(unsupported(&format!("an adapter of type {dtype}")));
            }
            let order = if differ {
                order(&matrix, whole, config, base_in_halves).map_err(|what| unsupported(&what))?
            } else {
                None
            };
            // All parts of what a file keeps in one tensor.
            let mut rows = 0;
            for (_, linear) in linears.iter().filter(|(_, linear)| is_part(&linear.weight, whole)) {
                if linear.scale.is_some() {
                    return Err(unsupported("an adapter of a matrix with a scale of its own"));
                }
                let first = (linear.weight.bytes().offset() - whole.bytes().offset()) / whole.row_bytes();
                let b = b.rows(first..first + linear.weight.n_rows()).expect("as many rows as the whole");
                rows += linear.weight.n_rows();
                let whole_order = linear.weight.n_rows() == whole.n_rows();
                let order = order.clone().filter(|_| whole_order);
                if !all.insert(&linear.weight, LowRank { a: a.clone(), b, scale, order }) {
                    return Err(error("an adapter that changes a tensor twice").into());
                }
            }
            if rows != whole.n_rows() {
                return Err(unsupported(
                    "an adapter of what is no plain matrix of a layer: experts, embeddings and the output cannot be adapted",
                ));
            }
        }
        if all.is_empty() {
            return Err(FormatError::new(path, "an adapter that changes nothing").into());
        }
        let fingerprint = checkpoint.fingerprint()?;
        let hash = hash(format!("{fingerprint:?}").as_bytes());
        Ok(Self { path: path.into(), changes: Arc::new(all), base: id(base), hash })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of matrices that it changes.
    pub fn n_matrices(&self) -> usize {
        self.changes.len()
    }
}

/// What adapters change of a model, those by 0 left out, and a hash of it: 0 if that is nothing.
///
/// # Errors
/// [`Error::Argument`] if one is of another model, or if a scale is no number.
pub(crate) fn resolved(adapters: &[(Arc<Adapter>, f32)], base: &Arc<Checkpoint>) -> Result<(Arc<Changes>, u64)> {
    let (mut all, mut words) = (Vec::new(), Vec::new());
    for (adapter, scale) in adapters {
        let path = adapter.path.display();
        if adapter.base != id(base) {
            return Err(Error::Argument(format!("{path}: an adapter that was opened for another model")));
        }
        if !scale.is_finite() {
            return Err(Error::Argument(format!(
                "{path}: the scale of the adapter is {scale}, it must be a finite number"
            )));
        }
        if *scale != 0.0 {
            adapter.changes.check()?;
            all.push((Arc::clone(&adapter.changes), *scale));
            words.extend(adapter.hash.to_le_bytes());
            words.extend(scale.to_le_bytes());
        }
    }
    let of_all = if all.is_empty() { 0 } else { hash(&words) };
    Ok((all.into(), of_all))
}

fn id(checkpoint: &Arc<Checkpoint>) -> usize {
    Arc::as_ptr(checkpoint) as usize
}

/// Whether a matrix is rows of a tensor.
fn is_part(part: &TensorView, whole: &TensorView) -> bool {
    let (part, whole) = (part.bytes(), whole.bytes());
    Arc::ptr_eq(part.mapping(), whole.mapping())
        && whole.range().start <= part.range().start
        && part.range().end <= whole.range().end
}

/// The row of the model's matrix for each row of an adapter's, where one of the two has heads as they are trained, with what
/// is rotated together in their halves, and the other as GGUF has them; `None` if they are the same there.
fn order(matrix: &str, whole: &TensorView, config: &Config, to_halves: bool) -> Result<Option<Arc<[u32]>>, String> {
    let (layer, name) = matrix.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).unwrap_or(("", matrix));
    let layer = layer.parse::<usize>().ok().and_then(|i| config.layers.get(i));
    if name.starts_with("ssm_") || layer.is_some_and(|layer| layer.mixer.attention().is_none()) && name.contains("attn")
    {
        return Err("an adapter of a recurrent layer whose heads are in another order than those of the model".into());
    }
    if !formats::has_pairs(&config.architecture) || !matches!(name, "attn_q.weight" | "attn_k.weight") {
        return Ok(None);
    }
    let Some(attention) = layer.and_then(|layer| layer.mixer.attention()) else { return Ok(None) };
    let (head, half) = (attention.head_dim, attention.head_dim / 2);
    if half == 0 || !whole.n_rows().is_multiple_of(head) || head % 2 != 0 {
        return Err("an adapter of heads that cannot be put in order".into());
    }
    let from_halves =
        |row: usize| row / head * head + if row % head < half { 2 * (row % head) } else { 2 * (row % head - half) + 1 };
    let in_pairs = |row: usize| row / head * head + row % head / 2 + half * (row % 2);
    let order = (0..whole.n_rows()).map(|row| if to_halves { in_pairs(row) } else { from_halves(row) } as u32);
    Ok(Some(order.collect()))
}
