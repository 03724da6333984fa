//! Whether to stop.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::pool::forks;

/// Asks the caller, now and then, whether to stop.
///
/// The check runs on the calling thread only (a signal handler's flag, say), at most once in [`Self::PERIOD`]; the other
/// workers see its answer. No lock is held meanwhile: the check may run anything, this crate included.
pub struct Interrupt<'a> {
    check: Option<&'a (dyn Fn() -> bool + Sync)>,
    last: AtomicU64, // see `now`
    stop: AtomicBool,
}

impl<'a> Interrupt<'a> {
    /// How often the check is asked, at most.
    pub const PERIOD: Duration = Duration::from_millis(20);

    /// Never stops.
    pub fn never() -> Self {
        Self { check: None, last: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    /// Stops when `check` returns true.
    pub fn new(check: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { check: Some(check), last: AtomicU64::new(now()), ..Self::never() }
    }

    /// Whether to stop. Worker 0, the calling thread, asks the check if it is time to.
    pub fn poll(&self, worker: usize) -> bool {
        if let Some(check) = self.check
            && worker == 0
        {
            let now = now();
            if now - self.last.load(Ordering::Relaxed) >= Self::PERIOD.as_nanos() as u64 {
                self.last.store(now, Ordering::Relaxed);
                self.ask(check);
            }
        }
        self.stop.load(Ordering::Relaxed)
    }

    /// The same for the calling thread, asked however long ago it was asked last: before what cannot be undone.
    pub fn poll_now(&self) -> bool {
        if let Some(check) = self.check {
            self.ask(check);
        }
        self.stop.load(Ordering::Relaxed)
    }

    fn ask(&self, check: &dyn Fn() -> bool) {
        let forks_before = forks();
        // A check that forks comes back twice, and in the child without the workers of the region.
        if check() || forks() != forks_before {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Nanoseconds since this process first asked, monotonic.
pub(super) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn the_check_is_asked_by_the_caller_and_heard_by_all() {
        let asked = AtomicUsize::new(0);
        let check = || asked.fetch_add(1, Ordering::Relaxed) == 1;
        let interrupt = Interrupt::new(&check);
        assert!(!interrupt.poll(0)); // not yet
        let mut polls = 0;
        while !interrupt.poll(1) {
            thread::sleep(Duration::from_millis(5));
            interrupt.poll(0);
            polls += 1;
        }
        assert_eq!(asked.into_inner(), 2);
        assert!(polls > 2, "rarely");
        assert!(!Interrupt::never().poll(0));
    }

    #[test]
    fn a_check_may_poll_and_run_regions() {
        let check = || {
            let inner = || true;
            let inner = Interrupt::new(&inner);
            crate::threads::run(4, &|worker| assert!(!inner.poll(worker)));
            true
        };
        let interrupt = Interrupt::new(&check);
        thread::sleep(Interrupt::PERIOD);
        crate::threads::run(2, &|worker| while !interrupt.poll(worker) {});
    }
}
