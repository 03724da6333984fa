//! Whether a file is still what it was when it was opened.
//!
//! The times of a file say when it may have been written to, and its contents whether it was. In the order in which they
//! are asked, with what it costs:
//!
//! 1. Size, modification and change time, one `fstat`: as they were? Then nobody has written, by any call that the kernel
//!    dates, and it dates a write before it does it. (0.3 microseconds)
//! 2. A new modification time is a write, unless it was set by hand: `touch` sets the time of access to the same, and a
//!    time before the last change of the file cannot come from a write that is later.
//! 3. A time that was set by hand, or none but the change time that is new (it moves when a file is renamed, linked,
//!    unlinked or given other rights): the contents decide, as far as [`Samples`] knows them. If they are as they were,
//!    the new times are those of the file from now on.
//! 4. And now and then a round of samples, for who wrote without being dated: through a shared map of a page that was
//!    dirty already, or on a file system that does not date maps at all (tmpfs). (50 microseconds, a thousandth of the time)
//!
//! So a change of the size or a dated write is always found; an undated or backdated overwriting is found if it meets a
//! spot that was seen. What is written over 16 KiB or more of pages that were used is found in time; of less, such as a
//! few weights whose file is then given back its old time, there is a chance that nobody notices.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicI64, Ordering};

use super::Identity;
use super::faults::Guard;
use super::samples::Samples;

pub(super) const OTHER_CONTENTS: &str = "its contents are no longer what they were";

/// The times of a file that is held open, and a sample of its contents.
#[derive(Debug)]
pub(super) struct Watch {
    identity: Identity,
    modified: AtomicI64, // nanoseconds since 1970, as is
    changed: AtomicI64,
    samples: Option<Samples>,
}

impl Watch {
    /// Watches `file`, which is as `meta` says; its contents as well if all of it is mapped, read-only.
    pub(super) fn new(file: &File, meta: &Metadata, contents: bool) -> Self {
        Self {
            identity: Identity::of(meta),
            modified: AtomicI64::new(times(meta).0),
            changed: AtomicI64::new(times(meta).1),
            samples: contents.then(|| Samples::new(meta.len() as usize, file)),
        }
    }

    /// The state of the file when it was opened.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether `meta` has the file's size and times, and is about it.
    pub(super) fn is_as(&self, meta: &Metadata) -> bool {
        (self.identity.file, self.identity.size) == ((meta.dev(), meta.ino()), meta.len())
            && self.times() == times(meta)
    }

    fn times(&self) -> (i64, i64) {
        (self.modified.load(Ordering::Relaxed), self.changed.load(Ordering::Relaxed))
    }

    /// What has happened to the file, whose map is `bytes`, as a phrase for a message; None if all is well.
    pub(super) fn damage(&self, file: &File, bytes: &[u8], guard: &Guard) -> Option<String> {
        let gone = || guard.is_poisoned().then(|| "a part of it could not be read, or was gone for a while".into());
        let now = match file.metadata() {
            Ok(now) => now,
            Err(e) => return Some(format!("it can no longer be asked about ({e})")),
        };
        let before = self.identity.size;
        if now.len() != before {
            return Some(format!("it had {before} bytes and has {} now", now.len()));
        }
        if let Some(gone) = gone() {
            return Some(gone);
        }
        let ((modified_before, changed_before), (modified, changed)) = (self.times(), times(&now));
        if (modified, changed) == (modified_before, changed_before) {
            let as_seen = self.samples.as_ref().is_none_or(|samples| samples.round(bytes));
            return gone().or_else(|| (!as_seen).then(|| OTHER_CONTENTS.into()));
        }
        let touched = nanoseconds(now.atime(), now.atime_nsec()) == modified;
        if modified != modified_before && modified >= changed_before && !touched {
            return Some("it was written to".into());
        }
        if !self.samples.as_ref().is_none_or(|samples| samples.all_as_seen(bytes)) {
            return gone().or_else(|| Some(format!("{OTHER_CONTENTS}, and its time was set by hand")));
        }
        self.modified.store(modified, Ordering::Relaxed);
        self.changed.store(changed, Ordering::Relaxed);
        None
    }
}

/// When the file was written to, and when it was last changed in any way.
fn times(meta: &Metadata) -> (i64, i64) {
    (nanoseconds(meta.mtime(), meta.mtime_nsec()), nanoseconds(meta.ctime(), meta.ctime_nsec()))
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}
