//! Files in memory: the only place that maps one.
//!
//! A [`Mapping`] is a whole file, read-only and shared with every other process that maps it. A file that is opened
//! twice in a process is mapped once. [`Bytes`] is a range of it that keeps it alive: views own their share of the map,
//! so nothing above this module needs a lifetime parameter.
//!
//! A map is only as good as its file, which another process may cut short or write over at any moment. Reading is
//! therefore optimistic: read first, compute, and [`Mapping::check`] before the result leaves the crate. What was
//! computed from a broken map is thrown away, and [`faults`] keeps the process alive until then.

mod faults;
mod memory;
mod replace;
mod residency;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::{Deref, Range};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use crate::error::{Error, Result};
use crate::threads::Interrupt;

pub use faults::page_size;
pub use memory::Memory;
pub use replace::replace_file;

/// How a file comes into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Load {
    /// Mapped: one copy for all processes, read when it is touched. Where a file system cannot map, it is read.
    #[default]
    Mmap,
    /// Read whole, into memory of this process alone: for file systems where maps are slow or break.
    Read,
}

/// How to open a file. Nothing here changes what is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// How it comes into memory.
    pub load: Load,
    /// Read all of it before `open` returns, so that a read error is an error of `open`.
    pub prefault: bool,
    /// Keep it in memory: it is read at once and never dropped while it is open.
    pub lock: bool,
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device and inode: which file.
    pub file: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// When it was last written to, in nanoseconds since 1970.
    ///
    /// The change time is left out on purpose: it also moves when the file is renamed or unlinked, which changes
    /// nothing for who holds it open.
    pub modified: i128,
}

impl Identity {
    /// The identity of the file that `meta` is about.
    pub fn of(meta: &Metadata) -> Self {
        let modified = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Self { file: (meta.dev(), meta.ino()), size: meta.len(), modified }
    }
}

/// A whole file, mapped read-only and shared (or, where that cannot be, read into memory).
#[derive(Debug)]
pub struct Mapping {
    storage: Storage,
    path: PathBuf,
    load: Load,                 // as asked for; `storage` is what came of it
    identity: Option<Identity>, // when it was opened; None for what never was a file
    broken: AtomicBool,         // found so by `check`, for good
    note: Option<String>,
}

#[derive(Debug)]
enum Storage {
    // In the order in which they are dropped: nobody guards a range that is no longer mapped.
    Map { guard: faults::Guard, map: memmap2::Mmap, file: File },
    Owned(Vec<u8>),
}

impl Mapping {
    /// Maps the file at `path`. Reads nothing of it.
    ///
    /// # Errors
    /// [`Error::File`] if it is not a regular file, cannot be opened, or cannot be mapped.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        Self::open_with(path, LoadOptions::default(), &Interrupt::never())
    }

    /// Opens the file at `path`, or gives the map that this process has of it.
    ///
    /// # Errors
    /// As for [`Mapping::open`]; [`Error::File`] also for what `prefault` cannot read and `lock` cannot lock,
    /// [`Error::Changed`] if somebody writes to the file meanwhile, [`Error::Interrupted`].
    pub fn open_with(path: &Path, options: LoadOptions, interrupt: &Interrupt) -> Result<Arc<Self>> {
        let fail = |source| Error::File { path: path.to_path_buf(), source };
        // Before it is opened: opening a pipe would wait for a writer.
        let meta = std::fs::metadata(path).map_err(fail)?;
        if !meta.is_file() {
            let kind = if meta.is_dir() { "is a directory" } else { "is not a regular file" };
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, format!("{kind}, expected a model file"))));
        }
        let file = File::open(path).map_err(fail)?;
        let identity = Identity::of(&file.metadata().map_err(fail)?);
        let same = |m: &Arc<Self>| m.load == options.load && m.identity == Some(identity) && !m.is_broken();
        let known = || registry().iter().filter_map(Weak::upgrade).find(same);
        let mapping = match known() {
            Some(known) => known,
            None => {
                let made = Self::make(path, file, identity, options.load).map_err(fail)?;
                let mut registry = registry();
                registry.retain(|other| other.strong_count() > 0);
                // Another thread may have been faster.
                registry.iter().filter_map(Weak::upgrade).find(same).unwrap_or_else(|| {
                    let made = Arc::new(made);
                    registry.push(Arc::downgrade(&made));
                    made
                })
            }
        };
        if options.prefault || options.lock {
            mapping.prefault(interrupt)?;
        }
        if options.lock {
            mapping.lock()?;
        }
        Ok(mapping)
    }

    fn make(path: &Path, mut file: File, identity: Identity, load: Load) -> io::Result<Self> {
        let mut note = None;
        let storage = if identity.size == 0 {
            Storage::Owned(Vec::new()) // an empty file cannot be mapped
        } else if load == Load::Read {
            Storage::Owned(read(&mut file)?)
        } else {
            // SAFETY: the map is read-only, and nothing in this process writes to the file. Another process may write
            // to it or cut it short: then the bytes change, or `faults` puts zeros where a page is gone. Every parser
            // copies a number out before it checks it and never reads it again, no value of a weight can lead the
            // kernels out of bounds, and `check` keeps what they computed from getting out.
            match unsafe { memmap2::MmapOptions::new().map(&file) } {
                Ok(map) => Storage::Map { guard: faults::Guard::new(&map, file.as_fd()), map, file },
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => {
                    note =
                        Some(format!("{}: this file system cannot map files ({e}): read into memory", path.display()));
                    Storage::Owned(read(&mut file)?)
                }
                Err(e) => return Err(e),
            }
        };
        Ok(Self { storage, path: path.into(), load, identity: Some(identity), broken: AtomicBool::new(false), note })
    }

    /// Stands for a file at `path` with the given contents: for tests, and for what is not a file.
    pub fn from_vec(contents: Vec<u8>, path: &Path) -> Arc<Self> {
        let (storage, path) = (Storage::Owned(contents), path.to_path_buf());
        let broken = AtomicBool::new(false);
        Arc::new(Self { storage, path, load: Load::Read, identity: None, broken, note: None })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the file when it was opened; None for what never was a file.
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Whether the pages are those of the file, which all processes share.
    pub fn is_mapped(&self) -> bool {
        matches!(self.storage, Storage::Map { .. })
    }

    /// What a user should know about how it was opened.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The file's bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.storage {
            Storage::Map { map, .. } => map,
            Storage::Owned(bytes) => bytes,
        }
    }

    /// Whether the file is still what it was when it was opened. To be asked after reading: if all is well then,
    /// what was read was the file.
    ///
    /// One `fstat`, half a microsecond. Once broken, a map stays broken.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<()> {
        let Storage::Map { guard, file, .. } = &self.storage else { return Ok(()) };
        faults::keep_installed();
        let found =
            if self.broken.load(Ordering::Relaxed) || guard.is_poisoned() { None } else { file.metadata().ok() };
        if found.map(|meta| Identity::of(&meta)) == self.identity {
            return Ok(());
        }
        self.broken.store(true, Ordering::Relaxed);
        Err(Error::Changed { path: self.path.clone(), what: self.damage(file) })
    }

    /// As [`Mapping::check`], but only for pages that could not be read: two loads, for the middle of a pass.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_pages(&self) -> Result<()> {
        if self.is_broken() { self.check() } else { Ok(()) }
    }

    /// Gives what `read` makes of the file, unless the file changed meanwhile.
    ///
    /// # Errors
    /// [`Error::Changed`], and those of `read`.
    pub fn checked<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = read();
        self.check()?;
        result
    }

    fn is_broken(&self) -> bool {
        let poisoned = matches!(&self.storage, Storage::Map { guard, .. } if guard.is_poisoned());
        poisoned || self.broken.load(Ordering::Relaxed)
    }

    fn damage(&self, file: &File) -> String {
        let before = self.identity.map_or(0, |identity| identity.size);
        match file.metadata() {
            Err(e) => format!("it can no longer be asked about ({e})"),
            Ok(now) if now.len() != before => format!("it had {before} bytes and has {} now", now.len()),
            Ok(now) if Some(Identity::of(&now)) != self.identity => "it was written to".into(),
            Ok(_) => "a part of it could not be read, or was gone for a while".into(),
        }
    }
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let before = Identity::of(&file.metadata()?);
    let mut contents = Vec::new();
    contents.try_reserve_exact(before.size as usize)?;
    file.read_to_end(&mut contents)?;
    if Identity::of(&file.metadata()?) != before {
        return Err(io::Error::other("the file was written to while it was read"));
    }
    Ok(contents)
}

/// The maps of this process.
static REGISTRY: Mutex<Vec<Weak<Mapping>>> = Mutex::new(Vec::new());

/// The maps of this process, locked. The lock is taken around `fork`, so that a child never finds it taken by a thread
/// that it does not have.
fn registry() -> MutexGuard<'static, Vec<Weak<Mapping>>> {
    struct Held(std::cell::UnsafeCell<Option<MutexGuard<'static, Vec<Weak<Mapping>>>>>);
    // SAFETY: only the thread that forks touches it, between `before` and `after`, while it holds the lock.
    unsafe impl Sync for Held {}
    static HELD: Held = Held(std::cell::UnsafeCell::new(None));

    extern "C" fn before() {
        let guard = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: we hold the lock.
        unsafe { *HELD.0.get() = Some(guard) };
    }
    extern "C" fn after() {
        // SAFETY: `before` took the lock in this thread.
        drop(unsafe { (*HELD.0.get()).take() });
    }
    static AT_FORK: Once = Once::new();
    // SAFETY: the handlers lock and unlock, and do nothing else.
    AT_FORK.call_once(|| unsafe {
        libc::pthread_atfork(Some(before), Some(after), Some(after));
    });
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this process has the file `(device, inode)` mapped.
fn is_mapped_here(file: (u64, u64)) -> bool {
    let maps = registry().iter().filter_map(Weak::upgrade).collect::<Vec<_>>(); // dropped after the lock
    maps.iter().any(|m| m.is_mapped() && m.identity.is_some_and(|identity| identity.file == file))
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

    /// Where in the file it lies.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
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
