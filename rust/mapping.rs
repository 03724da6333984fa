//! Files in memory: the only place that maps one.
//!
//! A [`Mapping`] is a whole file, read-only and shared with every other process that maps it.
//! [`Bytes`] is a range of it that keeps it alive: views own their share of the map, so nothing
//! above this module needs a lifetime parameter.

use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};

/// A whole file, mapped read-only and shared (or, where that cannot be, read into memory).
#[derive(Debug)]
pub struct Mapping {
    storage: Storage,
    path: PathBuf,
}

#[derive(Debug)]
enum Storage {
    Map(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Mapping {
    /// Maps the file at `path`. Reads nothing of it.
    ///
    /// # Errors
    /// [`Error::File`] if it is not a regular file, cannot be opened, or cannot be mapped.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let fail = |source| Error::File { path: path.to_path_buf(), source };
        let meta = fs::metadata(path).map_err(fail)?;
        if !meta.is_file() {
            let kind = if meta.is_dir() { "is a directory" } else { "is not a regular file" };
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, format!("{kind}, expected a model file"))));
        }
        let file = File::open(path).map_err(fail)?;
        let storage = if meta.len() == 0 {
            Storage::Owned(Vec::new()) // an empty file cannot be mapped
        } else {
            // SAFETY: the map is read-only, and nothing in this process writes to the file. Another
            // process may write to it or cut it short: then the bytes change or a page is gone.
            // Every parser copies a number out before it checks it and never reads it again, and no
            // value of a weight can lead the kernels out of bounds.
            Storage::Map(unsafe { memmap2::MmapOptions::new().map(&file) }.map_err(fail)?)
        };
        Ok(Arc::new(Self { storage, path: path.to_path_buf() }))
    }

    /// Stands for a file at `path` with the given contents: for tests, and for what cannot be mapped.
    pub fn from_vec(contents: Vec<u8>, path: &Path) -> Arc<Self> {
        Arc::new(Self { storage: Storage::Owned(contents), path: path.to_path_buf() })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.storage {
            Storage::Map(map) => map,
            Storage::Owned(bytes) => bytes,
        }
    }
}

/// A range of a mapped file that keeps the map alive.
#[derive(Clone)]
pub struct Bytes {
    mapping: Arc<Mapping>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of the file, or `None` if it reaches past the end.
    pub fn new(mapping: &Arc<Mapping>, range: Range<usize>) -> Option<Self> {
        mapping.as_slice().get(range.clone())?;
        Some(Self { mapping: Arc::clone(mapping), range })
    }

    /// Where in the file the range starts.
    pub fn offset(&self) -> usize {
        self.range.start
    }

    /// The map they lie in.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // `new` checked the range, and a map never changes its length.
        &self.mapping.as_slice()[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({:?} of {})", self.range, self.mapping.path.display())
    }
}
