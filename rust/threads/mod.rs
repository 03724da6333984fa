//! Work for several cores: one pool a process, queues that share work out, and whether to stop.
//!
//! The one idea: a region of work is finished by whoever is there. The caller can do all of it alone; workers that have
//! a core join in and take what is left, and the region ends when everything has been taken and who took it is done. So
//! a core that is taken away costs what its thread had just taken, never the rest of the work, and no number of threads
//! changes a result.

mod delay;
mod disjoint;
mod interrupt;
mod pool;
mod queue;

use std::thread;
use std::time::Duration;

pub use disjoint::Disjoint;
pub use interrupt::Interrupt;
pub use pool::Busy;
pub use queue::Queue;

/// More threads than this are never used.
pub const MAX_THREADS: usize = 256;

/// The number of cores that this process may use: affinity mask and cgroup quota included. A quota of a core and a half
/// is one core: two threads on it would be stopped for a quarter of the time, both at once.
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))
}

/// Calls `region` on the calling thread, as worker 0, and at the same time on some others, with numbers of their own
/// below `threads`; returns when all that entered have left.
///
/// There may be fewer workers than `threads`, or none: cores are shared with the other callers of this process, never
/// taken twice, and left to other processes for a while when those need them. So `region` must do all of the work when
/// it is called once, as it does when it takes the work from a [`Queue`]; workers come as long as the caller is in it.
///
/// No lock is held while `region` runs. A call inside a region is a plain call.
///
/// # Panics
/// If `region` panics in any worker.
pub fn run(threads: usize, region: &(dyn Fn(usize) + Sync)) {
    if threads <= 1 {
        region(0);
    } else {
        pool::global().run(threads.min(MAX_THREADS), region);
    }
}

/// Says that this thread is at work until the guard is dropped: callers that are at work share the cores. To be held over
/// regions that follow one another closely, such as a forward pass; without it each region counts for itself.
pub fn busy() -> Busy {
    pool::global().busy()
}

/// For how long a thread has had a core, if the system tells.
pub fn cpu_time<T>(thread: &thread::JoinHandle<T>) -> Option<Duration> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::thread::JoinHandleExt;
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: the thread has not been joined or detached, so its name is valid even when it has ended; both are written
        // to what is there.
        let told = unsafe {
            libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) == 0
                && libc::clock_gettime(clock, &raw mut time) == 0
        };
        told.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = thread;
        None
    }
}

/// Starts a thread that works for this crate and is no business of the program around it: signals that somebody waits
/// for go to the program's own threads, whatever the mask of the thread that happens to call us. Faults are taken.
///
/// # Errors
/// What the operating system says: no more threads to be had, most likely.
pub fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> std::io::Result<thread::Thread> {
    let work = move || {
        let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // A fault whose signal is blocked ends the process; a profiler wants to know what we do.
        let kept =
            [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGPROF];
        // SAFETY: `sigfillset` initialises the set; the others change the set and this thread's mask, nothing else.
        unsafe {
            libc::sigfillset(mask.as_mut_ptr());
            for signal in kept {
                libc::sigdelset(mask.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), std::ptr::null_mut());
        }
        work();
    };
    Ok(thread::Builder::new().name(name).spawn(work)?.thread().clone())
}
