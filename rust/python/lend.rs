//! Something that one call at a time may use, and that says so to a second one at once.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::error::{Error, Result};

const BUSY: &str = "the session is in use by another call: wait for that to end, or use a session for each thread";
const ORPHANED: &str = "the session was in use when this process was forked: start another one";

/// A lock that is never waited for. The one who has it may be running Python code, this call among it.
pub struct Lent<T> {
    inner: Mutex<T>,
    process: AtomicU32, // in which it was lent last
}

impl<T> Lent<T> {
    pub fn new(value: T) -> Self {
        Self { inner: Mutex::new(value), process: AtomicU32::new(process::id()) }
    }

    /// The thing, if nobody uses it.
    ///
    /// # Errors
    /// [`Error::SessionBusy`] if it is in use; [`Error::Argument`] if it was when this process was forked: a child has
    /// the locks of its parent, but not the threads that would unlock them.
    pub fn lend(&self) -> Result<MutexGuard<'_, T>> {
        match self.inner.try_lock() {
            Ok(guard) => {
                self.process.store(process::id(), Ordering::Relaxed);
                Ok(guard)
            }
            Err(TryLockError::Poisoned(e)) => Ok(e.into_inner()),
            Err(TryLockError::WouldBlock) if self.process.load(Ordering::Relaxed) != process::id() => {
                Err(Error::Argument(ORPHANED.into()))
            }
            Err(TryLockError::WouldBlock) => Err(Error::SessionBusy(BUSY)),
        }
    }

    /// An error if it was in use when this process was forked.
    ///
    /// # Errors
    /// As for [`Lent::lend`], but that it may be in use.
    pub fn check(&self) -> Result<()> {
        match self.lend() {
            Err(e @ Error::Argument(_)) => Err(e),
            _ => Ok(()),
        }
    }
}
