//! Files in memory: the only place that maps one.
//!
//! A [`Mapping`] is a whole file, read-only and shared with every other process that maps it. A file that is opened
//! twice in a process is mapped once. [`Bytes`] is a range of it that keeps it alive: views own their share of the map,
//! so nothing above this module needs a lifetime parameter.
//!
//! A map is only as good as its file, which another process may cut short or write over at any moment. Reading is
//! therefore optimistic: read first, compute, and [`Mapping::check`] before the result leaves the crate. What was
//! computed from a broken map is thrown away, and `faults` keeps the process alive until then. What is found, and what is
//! not, is written in `watch`; where a process dies all the same, in `faults`.

mod faults;
mod memory;
mod replace;
mod residency;
mod samples;
mod watch;

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

pub use faults::{Guarded, guarded, page_size};
pub use memory::Memory;
pub use replace::replace_file;
use watch::Watch;

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
    load: Load,           // as asked for; `storage` is what came of it
    watch: Option<Watch>, // None for what never was a file
    broken: AtomicBool,   // found so by `check`, for good
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
        let meta = file.metadata().map_err(fail)?;
        let mapping = match Self::known(options.load, &meta) {
            Some(known) => known,
            None => {
                let made = Arc::new(Self::make(path, file, &meta, options.load, interrupt)?);
                let same = |m: &Arc<Self>| m.load == made.load && m.identity() == made.identity() && !m.is_broken();
                let mut registry = registry();
                registry.retain(|other| other.strong_count() > 0);
                // Another thread may have been faster.
                registry.iter().filter_map(Weak::upgrade).find(same).unwrap_or_else(|| {
                    registry.push(Arc::downgrade(&made));
                    Arc::clone(&made)
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

    /// The map that this process has of the file in its state of now.
    fn known(load: Load, meta: &Metadata) -> Option<Arc<Self>> {
        let now = Identity::of(meta);
        let of_file = |m: &Arc<Self>| m.load == load && m.identity().is_some_and(|identity| identity.file == now.file);
        let found: Vec<_> = registry().iter().filter_map(Weak::upgrade).filter(of_file).collect();
        found.into_iter().find(|m| match &m.storage {
            Storage::Map { .. } => m.identity().is_some_and(|then| then.size == now.size) && m.check().is_ok(),
            Storage::Owned(_) => m.watch.as_ref().is_some_and(|watch| watch.is_as(meta)),
        })
    }

    fn make(path: &Path, file: File, meta: &Metadata, load: Load, interrupt: &Interrupt) -> Result<Self> {
        let fail = |source| Error::File { path: path.to_path_buf(), source };
        let read = |file| match read(file, meta, interrupt) {
            Ok(Some(bytes)) => Ok(Storage::Owned(bytes)),
            Ok(None) => Err(Error::Interrupted),
            Err(e) => Err(fail(e)),
        };
        let mut note = None;
        let storage = if meta.len() == 0 {
            Storage::Owned(Vec::new()) // an empty file cannot be mapped
        } else if load == Load::Read {
            read(&file)?
        } else {
            // SAFETY: the map is read-only, and nothing in this process writes to the file. Another process may write
            // to it or cut it short: then the bytes change, or `faults` puts zeros where a page is gone. Every parser
            // copies a number out before it checks it and never reads it again, no value of a weight can lead the
            // kernels out of bounds, and `check` keeps what they computed from getting out.
            match unsafe { memmap2::MmapOptions::new().map(&file) } {
                Ok(map) => {
                    let watch = Watch::new(&file, meta, true);
                    let guard = faults::Guard::new(&map, file.as_fd());
                    return Ok(Self::of(Storage::Map { guard, map, file }, path, load, Some(watch), None));
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => {
                    note =
                        Some(format!("{}: this file system cannot map files ({e}): read into memory", path.display()));
                    read(&file)?
                }
                Err(e) => return Err(fail(e)),
            }
        };
        Ok(Self::of(storage, path, load, Some(Watch::new(&file, meta, false)), note))
    }

    fn of(storage: Storage, path: &Path, load: Load, watch: Option<Watch>, note: Option<String>) -> Self {
        Self { storage, path: path.into(), load, watch, broken: AtomicBool::new(false), note }
    }

    /// Stands for a file at `path` with the given contents: for tests, and for what is not a file.
    pub fn from_vec(contents: Vec<u8>, path: &Path) -> Arc<Self> {
        Arc::new(Self::of(Storage::Owned(contents), path, Load::Read, None, None))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state of the file when it was opened; None for what never was a file.
    pub fn identity(&self) -> Option<Identity> {
        self.watch.as_ref().map(Watch::identity)
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
    /// what was read was the file. A file that was merely touched, renamed or unlinked is what it was.
    ///
    /// Two system calls, half a microsecond, and a thousandth of the time that passes for a sample of the contents. Once
    /// broken, a map stays broken.
    ///
    /// A new size, and any write that the kernel dates, is always found. Bytes that were written without a trace in the
    /// file's times (through a shared map that was dirty before; or the times were put back, as `cp -p` and `rsync -t`
    /// do) are found if they meet the sample: nearly always where 16 KiB or more were written over, in time, and by
    /// chance where it was less.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check(&self) -> Result<()> {
        let (Storage::Map { guard, map, file }, Some(watch)) = (&self.storage, &self.watch) else { return Ok(()) };
        faults::keep_installed();
        let what = match watch.damage(file, map, guard) {
            None if !self.broken.load(Ordering::Relaxed) => return Ok(()),
            None => watch::OTHER_CONTENTS.into(), // of what was found before, all that can still not be seen
            Some(what) => what,
        };
        self.broken.store(true, Ordering::Relaxed);
        Err(Error::Changed { path: self.path.clone(), what })
    }

    /// As [`Mapping::check`], but only for pages that could not be read: two loads, for the middle of a pass.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_pages(&self) -> Result<()> {
        if self.is_broken() { self.check() } else { Ok(()) }
    }

    /// Gives what `read` makes of the file, unless the file changed meanwhile. It runs [`guarded`].
    ///
    /// # Errors
    /// [`Error::Changed`], and those of `read`.
    pub fn checked<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        let _guarded = guarded();
        let result = read();
        self.check()?;
        result
    }

    fn is_broken(&self) -> bool {
        let poisoned = matches!(&self.storage, Storage::Map { guard, .. } if guard.is_poisoned());
        poisoned || self.broken.load(Ordering::Relaxed)
    }
}

/// Reads a file whole, in pieces between which it looks whether to stop: None if so.
fn read(file: &File, meta: &Metadata, interrupt: &Interrupt) -> io::Result<Option<Vec<u8>>> {
    const PIECE: usize = 8 << 20;
    let mut contents = Vec::new();
    contents.try_reserve_exact(usize::try_from(meta.len()).map_err(io::Error::other)?)?;
    loop {
        if interrupt.poll(0) {
            return Ok(None);
        }
        let n = file.take(PIECE as u64).read_to_end(&mut contents)?;
        if n < PIECE || contents.len() as u64 > meta.len() {
            break;
        }
    }
    let now = file.metadata()?;
    // What says that it has no bytes, such as the files of sysfs and proc, may have some.
    let whole = contents.len() as u64 == meta.len() || meta.blocks() == 0;
    if Identity::of(&now) != Identity::of(meta) || !whole {
        return Err(io::Error::other("the file was written to while it was read"));
    }
    Ok(Some(contents))
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
    maps.iter().any(|m| m.is_mapped() && m.identity().is_some_and(|identity| identity.file == file))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, SystemTime};

    use super::*;

    struct TempFile(PathBuf);

    impl TempFile {
        fn new(name: &str, contents: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("llama_rs-mapping-{name}-{}", std::process::id()));
            fs::write(&path, contents).unwrap();
            Self(path)
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    const LEN: usize = 1 << 20;

    fn truncate(file: &TempFile, len: u64) {
        File::options().write(true).open(&file.0).unwrap().set_len(len).unwrap();
    }

    fn changed(result: Result<()>) -> String {
        match result {
            Err(Error::Changed { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_opened_twice_is_mapped_once() {
        let file = TempFile::new("twice", &[1; LEN]);
        let (a, b) = (Mapping::open(&file.0).unwrap(), Mapping::open(&file.0).unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        let read = LoadOptions { load: Load::Read, ..LoadOptions::default() };
        let c = Mapping::open_with(&file.0, read, &Interrupt::never()).unwrap();
        assert!(!c.is_mapped() && c.as_slice() == a.as_slice());
        File::options().append(true).open(&file.0).unwrap().write_all(b"more").unwrap();
        assert!(!Arc::ptr_eq(&a, &Mapping::open(&file.0).unwrap()), "another state of the file is another map");
    }

    #[test]
    fn a_page_that_is_gone_reads_as_zeros_and_is_an_error() {
        let file = TempFile::new("gone", &[1; LEN]);
        let map = Mapping::open(&file.0).unwrap();
        truncate(&file, 10_000);
        assert_eq!(map.as_slice()[20_000..].iter().max(), Some(&0));
        assert_eq!(map.as_slice()[9_999], 1);
        assert!(changed(map.check_pages()).contains("has 10000 now"));
        truncate(&file, LEN as u64);
        changed(map.check()); // for good
        assert!(!Arc::ptr_eq(&map, &Mapping::open(&file.0).unwrap()));
    }

    #[test]
    fn a_page_that_was_gone_for_a_while_is_an_error() {
        let file = TempFile::new("while", &[1; LEN]);
        let map = Mapping::open(&file.0).unwrap();
        let modified = fs::metadata(&file.0).unwrap().modified().unwrap();
        truncate(&file, 0);
        assert_eq!(map.as_slice()[LEN - 1], 0);
        truncate(&file, LEN as u64);
        File::options().write(true).open(&file.0).unwrap().set_modified(modified).unwrap();
        assert!(changed(map.check()).contains("gone for a while"));
    }

    #[test]
    fn writing_is_a_change_and_a_new_name_is_not() {
        let file = TempFile::new("rename", &[1; LEN]);
        let map = Mapping::open(&file.0).unwrap();
        let moved = TempFile(file.0.with_extension("moved"));
        fs::rename(&file.0, &moved.0).unwrap();
        map.check().unwrap();
        let held = File::options().write(true).open(&moved.0).unwrap();
        fs::remove_file(&moved.0).unwrap();
        map.check().unwrap();
        (&held).write_all(b"x").unwrap();
        assert_eq!(changed(map.check()), "it was written to");
        assert!(map.checked(|| Ok(())).is_err());
    }

    /// Uses all of the file, of which the next round of samples then sees all.
    fn use_all(map: &Mapping) -> Result<()> {
        std::hint::black_box(map.as_slice().iter().map(|&b| u64::from(b)).sum::<u64>());
        map.check()
    }

    /// Contents that differ everywhere.
    fn contents(seed: u8) -> Vec<u8> {
        (0..LEN).map(|i| (i / 11) as u8 ^ (i / 1000) as u8 ^ seed).collect()
    }

    fn set_times(file: &TempFile, accessed: SystemTime, modified: SystemTime) {
        let times = fs::FileTimes::new().set_accessed(accessed).set_modified(modified);
        File::options().write(true).open(&file.0).unwrap().set_times(times).unwrap();
    }

    #[test]
    fn a_file_that_was_merely_touched_is_the_same() {
        let file = TempFile::new("touched", &contents(0));
        let map = Mapping::open(&file.0).unwrap();
        use_all(&map).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (accessed, modified) in [
            (SystemTime::now(), None),                 // touch
            (long_ago, None),                          // touch -d
            (SystemTime::now(), Some(long_ago)),       // rsync -t of the same contents
            (long_ago + Duration::from_secs(1), None), // and once more
        ] {
            set_times(&file, accessed, modified.unwrap_or(accessed));
            map.check().unwrap();
            assert!(Arc::ptr_eq(&map, &Mapping::open(&file.0).unwrap()));
        }
        let mut mode = fs::metadata(&file.0).unwrap().permissions();
        mode.set_readonly(true);
        fs::set_permissions(&file.0, mode).unwrap();
        map.check().unwrap();
    }

    #[test]
    fn a_file_that_was_written_over_and_given_its_times_back_is_not() {
        for (name, used) in [("backdated", true), ("backdated-unused", false)] {
            let file = TempFile::new(name, &contents(0));
            let before = fs::metadata(&file.0).unwrap();
            let map = Mapping::open(&file.0).unwrap();
            if used {
                use_all(&map).unwrap();
            }
            fs::write(&file.0, contents(1)).unwrap();
            set_times(&file, before.accessed().unwrap(), before.modified().unwrap());
            assert_eq!(changed(map.check()), "its contents are no longer what they were, and its time was set by hand");
            changed(map.check()); // for good
            let again = Mapping::open(&file.0).unwrap();
            assert!(!Arc::ptr_eq(&map, &again));
            again.check().unwrap();
        }
    }

    #[test]
    fn a_part_that_was_written_over_and_backdated_is_found_if_it_is_16_kib_and_was_used() {
        for at in [0, 300_000, LEN - (16 << 10)] {
            let file = TempFile::new(&format!("part-{at}"), &contents(0));
            let before = fs::metadata(&file.0).unwrap();
            let map = Mapping::open(&file.0).unwrap();
            use_all(&map).unwrap();
            let at = at / (16 << 10) * (16 << 10);
            let out = File::options().write(true).open(&file.0).unwrap();
            out.write_all_at(&vec![0xaa; 16 << 10], at as u64).unwrap();
            set_times(&file, before.accessed().unwrap(), before.modified().unwrap());
            changed(map.check());
        }
    }

    #[test]
    fn bytes_that_no_time_tells_of_are_found_by_a_sample() {
        let file = TempFile::new("undated", &contents(0));
        let writer = File::options().read(true).write(true).open(&file.0).unwrap();
        // SAFETY: a map of a file that only this test writes to.
        let mut writer = unsafe { memmap2::MmapMut::map_mut(&writer) }.unwrap();
        writer.copy_from_slice(&contents(0)); // all its pages are dirty from here on: dated for the last time
        let map = Mapping::open(&file.0).unwrap();
        use_all(&map).unwrap();
        writer[LEN / 2..].fill(7);
        let watch = map.watch.as_ref().unwrap();
        let samples_alone = || changed(use_all(&map));
        assert!(watch.is_as(&fs::metadata(&file.0).unwrap()), "no time tells of it");
        assert_eq!(samples_alone(), "its contents are no longer what they were");
        assert_eq!(samples_alone(), "its contents are no longer what they were");
    }

    #[test]
    fn reading_a_file_stops_when_it_is_asked_to() {
        let file = TempFile::new("stop", b"");
        truncate(&file, 64 << 20);
        let asked = AtomicUsize::new(0);
        let check = || asked.fetch_add(1, Ordering::Relaxed) > 0;
        let interrupt = Interrupt::new(&check);
        // Until the first answer that is yes: however fast it is read, then at the latest.
        let read = LoadOptions { load: Load::Read, ..LoadOptions::default() };
        while !interrupt.poll(0) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(matches!(Mapping::open_with(&file.0, read, &interrupt), Err(Error::Interrupted)));
    }

    #[test]
    fn any_number_of_maps_is_guarded() {
        let file = TempFile::new("many", &[1; 8192]);
        let open = || {
            let file = File::open(&file.0).unwrap();
            let meta = file.metadata().unwrap();
            let interrupt = Interrupt::never();
            Mapping::make(Path::new("many"), file, &meta, Load::Mmap, &interrupt).unwrap()
        };
        let maps: Vec<Mapping> = (0..1100).map(|_| open()).collect();
        truncate(&file, 4096);
        assert!(maps.iter().all(|map| map.as_slice()[5000] == 0 && map.check().is_err()));
    }

    #[test]
    fn a_thread_that_blocks_signals_takes_faults_inside_a_scope() {
        let file = TempFile::new("blocked", &[1; LEN]);
        let map = Mapping::open(&file.0).unwrap();
        truncate(&file, 4096);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let blocked = || {
                    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
                    // SAFETY: the call initialises the mask.
                    unsafe {
                        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr());
                        libc::sigismember(mask.as_ptr(), libc::SIGBUS) == 1
                    }
                };
                let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
                // SAFETY: the first call initialises the set; the second changes the mask of a thread of this test.
                unsafe {
                    libc::sigfillset(all.as_mut_ptr());
                    libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
                }
                let sum = map.checked(|| Ok(map.as_slice()[LEN / 2])).map_err(|e| e.to_string());
                assert!(sum.unwrap_err().contains("changed while it was in use"));
                assert!(blocked(), "as before");
                let outer = guarded();
                drop(guarded());
                assert!(!blocked(), "until the last scope ends");
                drop(outer);
                assert!(blocked());
            });
        });
    }

    #[test]
    fn residency_is_known_of_ones_own_files() {
        let file = TempFile::new("own", &[1; LEN]);
        assert!(Mapping::open(&file.0).unwrap().residency_known());
    }

    #[test]
    fn what_cannot_be_mapped_is_read_and_says_so() {
        let map = Mapping::open(Path::new("/sys/kernel/uevent_seqnum")).unwrap(); // sysfs refuses with ENODEV
        assert!(!map.is_mapped() && map.as_slice().ends_with(b"\n"));
        assert!(map.note().unwrap().contains("read into memory"));
    }

    #[test]
    fn residency_counts_bytes() {
        let file = TempFile::new("resident", &[1; LEN]);
        let map = Mapping::open(&file.0).unwrap();
        map.read_in(0..LEN, &Interrupt::never()).unwrap();
        assert_eq!(map.resident(0..LEN), LEN);
        assert_eq!(map.resident(5..4099), 4094);
        assert_eq!(map.resident(7..7), 0);
    }

    #[test]
    fn pages_that_are_dropped_come_back() {
        let bytes: Vec<u8> = (0..LEN).map(|i| i as u8).collect();
        let file = TempFile::new("enlarge", &bytes);
        let map = Mapping::open(&file.0).unwrap();
        for drop in [false, true] {
            map.sync();
            map.enlarge_pages(5..LEN, drop, &Interrupt::never()).unwrap();
            assert_eq!(map.resident(0..LEN), LEN);
            assert_eq!(map.as_slice(), bytes);
        }
        truncate(&file, 4096);
        changed(map.enlarge_pages(0..LEN, true, &Interrupt::never()));
    }

    #[test]
    fn reading_in_what_is_gone_is_an_error() {
        let file = TempFile::new("read-in", &[1; LEN]);
        let map = Mapping::open(&file.0).unwrap();
        truncate(&file, 4096);
        changed(map.read_in(0..LEN, &Interrupt::never()));
    }
}
