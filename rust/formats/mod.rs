//! From a path to a [`Checkpoint`]: the table of formats.
//!
//! One file a format. Parsers hold no unsafe code, use checked arithmetic over a byte slice, allocate
//! nothing by a size that the file declares, and hand out views that cannot fail.

#![forbid(unsafe_code)]

mod adapter;
mod ggml;
pub mod gguf;
pub(crate) mod huggingface;
mod safetensors;

pub(crate) use adapter::{AdapterFile, Change, open_adapter};
pub(crate) use huggingface::has_pairs;

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, FormatError, Result};
use crate::mapping::{Load, LoadOptions, Mapping};
use crate::threads::Interrupt;

/// A format of model files: a row in the table.
pub struct Format {
    /// The name.
    pub name: &'static str,
    /// Whether a file with these contents is one; a few bytes of them have to tell.
    pub probe: fn(&[u8]) -> bool,
    /// What the file holds, or what all the files hold that it is a part of.
    pub open: fn(&Arc<Mapping>, &OpenPart) -> Result<Checkpoint>,
}

/// Opens another part of a model, as the first was opened.
pub type OpenPart<'a> = dyn Fn(&Path) -> Result<Arc<Mapping>> + 'a;

/// The formats that we read.
pub const FORMATS: &[Format] = &[gguf::FORMAT, ggml::FORMAT];

/// Opens the model at `path`, a file or a directory: maps it, reads and checks its header, and nothing else. Any part of a
/// model that is split opens all of it.
///
/// # Errors
/// [`Error::File`] if it cannot be mapped, [`Error::Format`] if it is not a valid model file,
/// [`Error::Unsupported`] for a version, a byte order or a tensor type that we do not read.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let (checkpoint, ()) = open_with(path, LoadOptions::default(), &Interrupt::never(), |_| Ok(()))?;
    Ok(checkpoint)
}

/// Opens the model file at `path`, and brings it into memory as `options` say if `accept` has no objection: a file that
/// is refused is refused before it is read.
///
/// # Errors
/// As for [`open`], [`Mapping::open_with`] and `accept`.
pub fn open_with<T>(
    path: &Path,
    options: LoadOptions,
    interrupt: &Interrupt,
    accept: impl Fn(&Checkpoint) -> Result<T>,
) -> Result<(Checkpoint, T)> {
    let open = |load: Load| -> Result<(Checkpoint, T)> {
        let options = LoadOptions { load, ..LoadOptions::default() };
        let open = |path: &Path| Mapping::open_with(path, options, interrupt);
        let checkpoint = if path.is_dir() {
            huggingface::open(path, &open)?
        } else {
            let map = open(path)?;
            let format = map.checked(|| identify(&map))?;
            (format.open)(&map, &open)?
        };
        let accepted = checkpoint.checked(|| accept(&checkpoint))?;
        Ok((checkpoint, accepted))
    };
    let mut opened = open(Load::Mmap)?;
    if options.load == Load::Read {
        opened = open(Load::Read)?;
    }
    opened.0.bring_in(options, interrupt)?;
    Ok(opened)
}

/// The format of a file.
fn identify(map: &Mapping) -> Result<&'static Format> {
    let data = map.as_slice();
    if data.is_empty() {
        return Err(FormatError::new(map.path(), "the file is empty").into());
    }
    FORMATS.iter().find(|format| (format.probe)(data)).ok_or_else(|| {
        let is = look_alike(data).map_or(String::new(), |is| format!(", but {is}"));
        Error::from(FormatError::new(map.path(), format!("not a {} file{is}", FORMATS[0].name)))
    })
}

/// The beginning of a text that a file has, as it can stand in a message.
fn one_line(text: &str) -> String {
    let escaped = |c: char| if matches!(c, '"' | '\'') { c.to_string() } else { c.escape_debug().to_string() };
    text.chars().take(80).map(escaped).collect()
}

/// What a file that is no model file starts with, and what it is then.
const LOOK_ALIKES: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", "a Git LFS pointer and not the model that it points to: run git lfs pull"),
    (b"<!doctype", "a web page, most likely an error or login page: download the file itself"),
    (b"<html", "a web page, most likely an error or login page: download the file itself"),
    (b"<?xml", "an XML document, most likely an error message: download the file itself"),
    (b"{", "a JSON document"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint: convert or unpack it first"),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x80\x03", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x80\x04", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x80\x05", "a Python pickle, perhaps a PyTorch checkpoint: convert it first"),
    (b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "Zstandard-compressed: unpack it first"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"lmgg", "a GGML file of before March 2023, whose vocabulary has no scores: take a GGUF file of the model"),
    (b"algg", "a GGLA adapter: it is no model"),
    (b"24ka", "a llama2.c checkpoint: convert it to GGUF first"),
    (b"llama_rs", "a saved session of llama_rs: it is no model"),
    (b"MZqFpD", "a llamafile: extract the GGUF from it first (unzip)"),
    (b"MZ", "a Windows program"),
    (b"\x7fELF", "a Linux program, perhaps a llamafile: extract the GGUF from it first (unzip)"),
    (b"\0\0\0\0", "zeros where the header belongs, perhaps an unfinished download"),
];

/// Says what the file is instead.
fn look_alike(data: &[u8]) -> Option<&'static str> {
    if safetensors::probe(data) {
        return Some("a safetensors file: name the directory that it is in, with its config.json");
    }
    let text = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data); // a byte-order mark
    let text = text[..text.len().min(64)].trim_ascii_start();
    let starts = |data: &[u8], magic: &[u8]| data.get(..magic.len()).is_some_and(|d| d.eq_ignore_ascii_case(magic));
    LOOK_ALIKES.iter().find(|(magic, _)| starts(data, magic) || starts(text, magic)).map(|(_, name)| *name)
}
