//! A GGUF cut into parts, and parts joined, as `llama-gguf-split` does.
//!
//! Tensors stay what they are and in their order. The first part has the metadata; each part says which it is and how many
//! there are, see [`split`](mod@super::split).

use std::path::{Path, PathBuf};

use super::split::{COUNT, N_TENSORS, NO, name_of};
use super::write::{Planned, Sink, write};
use crate::checkpoint::{Checkpoint, Pairs, TensorInfo};
use crate::error::{Error, Result};
use crate::formats;
use crate::mapping::guarded;
use crate::threads::Interrupt;

/// How large a part may be. It has one tensor at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many tensors.
    Tensors(usize),
    /// So many bytes of tensors.
    Bytes(u64),
}

/// Writes the GGUF file `source`, which may be in parts itself, in parts called `PREFIX-00001-of-00003.gguf` and so on;
/// gives their paths. `progress` is told how many bytes of how many are written.
///
/// # Errors
/// Those of opening and of [`write`](fn@write): then none of the parts is there. [`Error::Argument`] for a limit of 0, for a directory,
/// and for more than 65,535 parts.
pub fn split(
    source: &Path,
    prefix: &Path,
    limit: Limit,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<PathBuf>> {
    if matches!(limit, Limit::Tensors(0) | Limit::Bytes(0)) {
        return Err(Error::Argument("a part must have room for something: the limit is 0".into()));
    }
    let checkpoint = open(source)?;
    let parts = parts(checkpoint.tensors(), limit);
    let count = u16::try_from(parts.len()).map_err(|_| {
        Error::Argument(format!(
            "{} parts are too many, at most {} can be counted: raise the limit",
            parts.len(),
            u16::MAX
        ))
    })?;
    let paths: Vec<_> = (0..parts.len()).map(|i| name_of(prefix, i, parts.len())).collect();
    let whole = checkpoint.size() as u64;
    let mut before = 0u64; // bytes of the parts that are written
    for (i, (tensors, path)) in parts.iter().zip(&paths).enumerate() {
        let mut pairs = if i == 0 { metadata(&checkpoint) } else { Pairs::new() };
        pairs.u16(NO, i as u16);
        pairs.u16(COUNT, count);
        pairs.i32(N_TENSORS, checkpoint.tensors().len() as i32);
        let mut last = 0;
        let mut tell = |done: u64, size| {
            last = size;
            progress((before + done).min(whole), whole);
        };
        let written = copy(&checkpoint, tensors, path, &pairs, interrupt, &mut tell);
        before += last;
        if let Err(e) = written {
            for path in &paths[..i] {
                let _ = std::fs::remove_file(path); // a part without the others is of no use
            }
            return Err(e);
        }
    }
    progress(whole, whole);
    Ok(paths)
}

/// Writes the model whose parts `source` is one of as one file. `progress` is told how many bytes of how many are written.
///
/// # Errors
/// Those of opening and of [`write`](fn@write). [`Error::Argument`] if it is not in parts.
pub fn merge(source: &Path, target: &Path, interrupt: &Interrupt, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let checkpoint = open(source)?;
    if checkpoint.maps().len() < 2 {
        return Err(Error::Argument(format!("{} is one file already, and no part of a model", source.display())));
    }
    copy(&checkpoint, checkpoint.tensors(), target, &metadata(&checkpoint), interrupt, progress)
}

/// A GGUF file or all parts of one.
fn open(path: &Path) -> Result<Checkpoint> {
    if path.is_dir() {
        return Err(Error::Argument(format!("{} is a directory: make a GGUF file of it first", path.display())));
    }
    formats::open(path)
}

/// The pairs of the whole: without what says of which part they are, and how its tensors are aligned.
fn metadata(checkpoint: &Checkpoint) -> Pairs {
    let mut pairs = Pairs::new();
    pairs.copy_all(&checkpoint.metadata, |key| ![NO, COUNT, N_TENSORS, "general.alignment"].contains(&key));
    pairs
}

/// Tensors in their order, as many in a part as the limit allows.
fn parts(tensors: &[TensorInfo], limit: Limit) -> Vec<&[TensorInfo]> {
    let mut size = 0;
    let mut n = 0;
    let mut parts: Vec<_> = tensors
        .chunk_by(|last, next| {
            let bytes = |tensor: &TensorInfo| (tensor.view.bytes().len() as u64).next_multiple_of(32);
            (n, size) = if n == 0 { (1, bytes(last)) } else { (n, size) };
            (n, size) = (n + 1, size + bytes(next));
            let fits = match limit {
                Limit::Tensors(most) => n <= most,
                Limit::Bytes(most) => size <= most,
            };
            if !fits {
                (n, size) = (0, 0);
            }
            fits
        })
        .collect();
    if parts.is_empty() {
        parts.push(&[]); // a vocabulary without weights
    }
    parts
}

fn copy(
    checkpoint: &Checkpoint,
    tensors: &[TensorInfo],
    path: &Path,
    pairs: &Pairs,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let planned: Vec<_> = tensors.iter().map(Planned::like).collect();
    write(path, pairs, &planned, interrupt, progress, &mut |i, sink: &mut Sink| {
        let bytes = tensors[i].view.bytes();
        let written = {
            let _guarded = guarded();
            sink.write(bytes)
        };
        checkpoint.check()?;
        written
    })
}
