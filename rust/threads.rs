//! The thread pool: one a process, persistent, spinning briefly and then parked.
//!
//! A forward pass is a few hundred short regions that every worker enters together; the caller is worker 0.
//! [`run`] hands a region to the workers and returns when all have left it. Workers spin for some
//! microseconds before they park, so that the next region of the same pass finds them awake and an idle
//! process burns nothing. Work inside a region is shared out by a [`Queue`], so a core that is stolen
//! for a while costs its own chunk and no more.
//!
//! After `fork` the child has the pool's memory and none of its threads: it forgets the pool and
//! builds another when it needs one.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// More workers than this are never used.
pub const MAX_THREADS: usize = 256;

/// Spins before a worker parks: some 50 microseconds, longer than the serial parts between regions.
const SPINS: u32 = 2_000;

/// The number of cores that this process may use: affinity mask and cgroup quota included.
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))
}

/// Calls `region(worker)` for workers `0..threads` at once and waits for all of them.
///
/// The caller is worker 0. With one thread the call is a plain call. Regions of different callers take turns.
///
/// # Panics
/// If `region` panics in any worker.
pub fn run(threads: usize, region: &(dyn Fn(usize) + Sync)) {
    let threads = threads.clamp(1, MAX_THREADS);
    if threads == 1 {
        region(0);
    } else {
        pool().run(threads, region);
    }
}

/// Items `0..len`, shared out among the workers of a region.
///
/// Each worker first does a contiguous part of its own, which costs no traffic between the cores and reads memory in
/// order; what is left is handed out in chunks that shrink towards the end, so that a worker whose core is taken away
/// for a while leaves the rest to the others.
pub struct Queue {
    next: AtomicUsize,
    len: usize,
    grain: usize,
    workers: usize,
    own: usize, // items of each worker's own part
}

impl Queue {
    /// Shares out `0..len` to `workers`, `grain` or more at a time: for items that cost much.
    pub fn new(len: usize, grain: usize, workers: usize) -> Self {
        Self { next: AtomicUsize::new(0), len, grain, workers, own: 0 }
    }

    /// The same with three quarters fixed beforehand: for items so short that handing them out is felt.
    pub fn mostly_fixed(len: usize, grain: usize, workers: usize) -> Self {
        let own = len * 3 / 4 / workers / grain * grain;
        Self { next: AtomicUsize::new(own * workers), len, grain, workers, own }
    }

    /// Calls `work` with chunks until all are taken.
    pub fn run(&self, worker: usize, mut work: impl FnMut(std::ops::Range<usize>)) {
        if self.own > 0 && worker < self.workers {
            work(worker * self.own..(worker + 1) * self.own);
        }
        while let Some(chunk) = self.take() {
            work(chunk);
        }
    }

    fn take(&self) -> Option<std::ops::Range<usize>> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.len.checked_sub(start).filter(|&n| n > 0)?;
            // Half of a fair share: the last chunks are then small without many trips to the counter.
            let share = (left / (2 * self.workers)).next_multiple_of(self.grain).max(self.grain).min(left);
            match self.next.compare_exchange_weak(start, start + share, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..start + share),
                Err(now) => start = now,
            }
        }
    }
}

/// A mutable slice of which each worker of a region writes its own, disjoint parts.
pub struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`, which may be sent if T may; `slice`'s contract keeps the parts disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for the length of a region.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// The part `range`.
    ///
    /// # Safety
    /// - No two parts that are alive at the same time may overlap.
    ///
    /// # Panics
    /// If the range does not lie in the slice.
    #[allow(clippy::mut_from_ref)] // that is what it is for
    pub unsafe fn slice(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// A pointer to element `i`, for kernels that write with a stride.
    ///
    /// # Panics
    /// If `i` is past the end.
    pub fn as_ptr(&self, i: usize) -> *mut T {
        assert!(i <= self.len);
        // SAFETY: in bounds, or one past the end.
        unsafe { self.start.add(i) }
    }
}

/// Asks the caller, now and then, whether to stop.
///
/// The check runs on the calling thread only (a signal handler's flag, say), at most every 20 ms;
/// the other workers see its answer.
pub struct Interrupt<'a> {
    check: Option<&'a (dyn Fn() -> bool + Sync)>,
    last: Mutex<Instant>,
    stop: AtomicBool,
}

impl<'a> Interrupt<'a> {
    const PERIOD: Duration = Duration::from_millis(20);

    /// Never stops.
    pub fn never() -> Self {
        Self { check: None, last: Mutex::new(Instant::now()), stop: AtomicBool::new(false) }
    }

    /// Stops when `check` returns true.
    pub fn new(check: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { check: Some(check), ..Self::never() }
    }

    /// Whether to stop. Worker 0, the calling thread, asks the check if it is time to.
    pub fn poll(&self, worker: usize) -> bool {
        if let Some(check) = self.check
            && worker == 0
        {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= Self::PERIOD {
                *last = Instant::now();
                if check() {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
        }
        self.stop.load(Ordering::Relaxed)
    }
}

/// What a worker runs: a region on the stack of the caller, which waits until every worker has left it.
#[derive(Clone, Copy)]
struct Job {
    region: *const (dyn Fn(usize) + Sync),
}

struct Pool {
    turn: Mutex<Vec<Worker>>, // held during a region: one at a time
    shared: Shared,
}

struct Worker {
    thread: Thread,
    parked: &'static AtomicBool,
}

struct Shared {
    // Region number << 16 | workers in it, the caller included; a change calls the workers. One word, so that
    // a late worker cannot take the number of one region for that of the next.
    call: AtomicU64,
    job: UnsafeCell<Option<Job>>, // written before `call` changes, read by the region's workers after
    remaining: AtomicUsize,       // workers that have not left the region
    panicked: AtomicBool,
}

// SAFETY: `job` is written by the one caller that holds `turn`, while no worker is in a region, and the
// region that it points to is `Sync` and borrowed until every worker has left it.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

/// The process's pool; made at the first call, and again by a child after `fork`.
fn pool() -> &'static Pool {
    static AT_FORK: Once = Once::new();
    extern "C" fn forget() {
        POOL.store(std::ptr::null_mut(), Ordering::Relaxed);
    }
    // SAFETY: `forget` only stores to an atomic, which is allowed in a forked child.
    AT_FORK.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(forget));
    });
    let mut at = POOL.load(Ordering::Acquire);
    if at.is_null() {
        let made = Box::into_raw(Box::new(Pool {
            turn: Mutex::new(Vec::new()),
            shared: Shared {
                call: AtomicU64::new(0),
                job: UnsafeCell::new(None),
                remaining: AtomicUsize::new(0),
                panicked: AtomicBool::new(false),
            },
        }));
        match POOL.compare_exchange(std::ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => at = made,
            Err(other) => {
                // SAFETY: `made` came from a Box and nobody else has seen it.
                drop(unsafe { Box::from_raw(made) });
                at = other;
            }
        }
    }
    // SAFETY: a pool that was stored in POOL is never freed.
    unsafe { &*at }
}

impl Pool {
    fn run(&'static self, threads: usize, region: &(dyn Fn(usize) + Sync)) {
        let mut workers = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() < threads - 1 {
            let parked: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
            let index = workers.len() + 1;
            let seen = self.shared.call.load(Ordering::Relaxed);
            let spawned = thread::Builder::new()
                .name(format!("llama_rs-{index}"))
                .spawn(move || self.shared.work(index, seen, parked));
            match spawned {
                Ok(handle) => workers.push(Worker { thread: handle.thread().clone(), parked }),
                Err(_) => break, // no more threads to be had: do with those there are
            }
        }
        let threads = threads.min(workers.len() + 1);
        let shared = &self.shared;
        // SAFETY: only the lifetime is changed. The pointer is dead when this function returns: every
        // worker that takes it is counted in `remaining`, which we wait for below, panic or not.
        let region_static: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), _>(region) };
        // SAFETY: we hold `turn`, and the workers of the last region have left it: nobody reads `job` now.
        unsafe { *shared.job.get() = Some(Job { region: region_static }) };
        shared.remaining.store(threads - 1, Ordering::Relaxed);
        let number = (shared.call.load(Ordering::Relaxed) >> 16) + 1;
        shared.call.store(number << 16 | threads as u64, Ordering::SeqCst);
        for worker in &workers[..threads - 1] {
            if worker.parked.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| region(0)));
        let mut spins = 0;
        while shared.remaining.load(Ordering::Acquire) > 0 {
            spins += 1;
            // More workers than cores: let them have this one.
            if spins > SPINS { thread::yield_now() } else { std::hint::spin_loop() }
        }
        drop(workers);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a worker panicked");
    }
}

impl Shared {
    fn work(&self, index: usize, mut seen: u64, parked: &AtomicBool) {
        loop {
            seen = self.wait(seen, parked);
            if index >= (seen & 0xffff) as usize {
                continue; // not in this region
            }
            // SAFETY: `run` wrote `job` before the call that we have seen, and counts on us in `remaining`
            // before it writes again.
            if let Some(job) = unsafe { *self.job.get() } {
                // SAFETY: `run` waits for this worker before its borrow of the region ends.
                let region = unsafe { &*job.region };
                if catch_unwind(AssertUnwindSafe(|| region(index))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.remaining.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a call after `seen`: spins, then parks.
    fn wait(&self, seen: u64, parked: &AtomicBool) -> u64 {
        for _ in 0..SPINS {
            let now = self.call.load(Ordering::Acquire);
            if now != seen {
                return now;
            }
            std::hint::spin_loop();
        }
        parked.store(true, Ordering::SeqCst);
        loop {
            let now = self.call.load(Ordering::SeqCst);
            if now != seen {
                parked.store(false, Ordering::SeqCst);
                return now;
            }
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_region_once() {
        for threads in [1, 2, 3, 8] {
            for _ in 0..500 {
                let seen: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
                run(threads, &|worker| {
                    seen[worker].fetch_add(1, Ordering::Relaxed);
                });
                assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn callers_take_turns() {
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for threads in 2..6 {
                let total = &total;
                scope.spawn(move || {
                    for _ in 0..200 {
                        run(threads, &|_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 200 * (2 + 3 + 4 + 5));
    }

    #[test]
    fn a_queue_hands_out_each_item_once() {
        for (len, grain, workers) in [(0, 1, 2), (1, 4, 2), (100, 4, 2), (4096, 32, 3), (7, 32, 64), (1000, 1, 7)] {
            for queue in [Queue::new(len, grain, workers), Queue::mostly_fixed(len, grain, workers)] {
                let taken = Mutex::new(Vec::new());
                run(workers, &|worker| queue.run(worker, |chunk| taken.lock().unwrap().extend(chunk)));
                let mut taken = taken.into_inner().unwrap();
                taken.sort_unstable();
                assert_eq!(taken, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_panic_in_a_worker_reaches_the_caller() {
        let caught = catch_unwind(|| run(2, &|worker| assert!(worker == 0, "on purpose")));
        assert!(caught.is_err());
        run(2, &|_| {});
    }

    #[test]
    fn a_parked_pool_wakes_up() {
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(20));
            let n = AtomicUsize::new(0);
            run(2, &|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.into_inner(), 2);
        }
    }
}
