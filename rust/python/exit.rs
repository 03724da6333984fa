//! The end of the interpreter, and threads that compute meanwhile.
//!
//! Python ends without waiting for daemon threads, and whoever comes back to an interpreter that is being taken apart
//! brings the process down. So a function at exit asks the computations of other threads to stop, and waits for them:
//! they end with `SystemExit`, which ends a thread in silence. From then on no other thread leaves the interpreter here,
//! and one that could not be stopped in time never returns to it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::mapping;

/// How long the end waits for computations that do not stop.
const PATIENCE: Duration = Duration::from_secs(2);

const RUNNING: u8 = 0;
const ENDING: u8 = 1; // computations stop
const ENDED: u8 = 2; // nobody comes back any more

static PHASE: AtomicU8 = AtomicU8::new(RUNNING);
static ENDER: AtomicI32 = AtomicI32::new(0); // the thread that ends the interpreter
static AWAY: AtomicUsize = AtomicUsize::new(0); // calls that are detached
static ARRIVING: AtomicUsize = AtomicUsize::new(0); // of these, the ones that attach again

/// Has Python call us before it ends.
pub fn register(py: Python<'_>) -> PyResult<()> {
    static AT_FORK: Once = Once::new();
    extern "C" fn forget() {
        AWAY.store(0, Ordering::SeqCst); // the child has none of the threads
        ARRIVING.store(0, Ordering::SeqCst);
    }
    // SAFETY: `forget` only stores to atomics, which is allowed in a forked child.
    AT_FORK.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(forget));
    });
    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(at_exit, py)?,))?;
    Ok(())
}

#[pyfunction]
fn at_exit(py: Python<'_>) {
    ENDER.store(thread_id(), Ordering::SeqCst);
    PHASE.store(ENDING, Ordering::SeqCst);
    let start = Instant::now();
    py.detach(|| {
        let wait_for = |calls: &AtomicUsize| {
            while calls.load(Ordering::SeqCst) > 0 && start.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait_for(&AWAY);
        PHASE.store(ENDED, Ordering::SeqCst);
        wait_for(&ARRIVING);
    });
}

/// Whether the interpreter ends, on a thread other than the one that ends it.
pub fn is_ending() -> bool {
    PHASE.load(Ordering::SeqCst) != RUNNING && ENDER.load(Ordering::SeqCst) != thread_id()
}

/// Runs `work` detached from the interpreter; attached, when that is about to end.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    if is_ending() {
        return work();
    }
    let away = Counted::new(&AWAY);
    let (result, arriving) = py.detach(|| {
        let _guarded = mapping::guarded(); // whatever it reads of a file
        let result = catch_unwind(AssertUnwindSafe(work));
        let arriving = Counted::new(&ARRIVING);
        if PHASE.load(Ordering::SeqCst) == ENDED && is_ending() {
            drop(arriving);
            loop {
                std::thread::park();
            }
        }
        (result, arriving)
    });
    drop((away, arriving));
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// One more, for as long as it lives.
struct Counted(&'static AtomicUsize);

impl Counted {
    fn new(calls: &'static AtomicUsize) -> Self {
        calls.fetch_add(1, Ordering::SeqCst);
        Self(calls)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Not below 0: a call that forked comes back in the child too, where nobody was counted.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some(n.saturating_sub(1)));
    }
}

/// Whether this is the main thread, on which Python delivers signals.
pub fn is_main_thread() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: both only read numbers of the calling thread.
    return unsafe { libc::gettid() == libc::getpid() };
    #[cfg(target_os = "macos")]
    // SAFETY: as above.
    return unsafe { libc::pthread_main_np() == 1 };
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    return true;
}

fn thread_id() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: it only reads a number of the calling thread.
    return unsafe { libc::gettid() };
    #[cfg(not(target_os = "linux"))]
    return i32::from(is_main_thread());
}
