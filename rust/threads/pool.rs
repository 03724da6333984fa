//! The thread pool: one a process, persistent, spinning briefly and then parked.
//!
//! A forward pass is a few hundred short regions. For each the caller posts the address of its [`Region`], which lies on
//! its stack, into the letter boxes of workers that have nothing to do, and starts. A worker enters by taking the letter;
//! when the caller has run out of work it takes back the letters that nobody has taken, and waits for the workers that
//! are inside. Both are one compare-and-swap on the same word, so a worker is either inside and waited for, or it never
//! gets in: nobody waits for a thread that has no core.
//!
//! How many threads are of use is found out, not known: other processes want the cores as well. Each thread asks the kernel
//! now and then how long it ran and how long it waited for a core. One that waits for much of the time says that there is
//! a thread too many. Then there is one less for a while, longer each time it happens again: on two cores beside a busy
//! process one thread is 1.6 times as fast as two.
//!
//! Who waits spins for some microseconds and then sleeps: a core that sleeps is one that the scheduler can give to the
//! thread that is waited for. An idle process burns nothing.
//!
//! After `fork` the child has the pool's memory and none of its threads: it forgets the pool and builds another when it
//! needs one.

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};
use std::thread::{self, Thread};

use super::delay::Delay;
use super::interrupt::now;
use super::{MAX_THREADS, available, spawn};

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;

/// How long a worker spins for the next region: longer than the serial parts between two of a pass.
const SPIN: u64 = 50 * MICROSECOND;

/// How long a caller spins for the workers that are still inside: longer than the last chunks of a queue take.
const SPIN_FOR_WORKERS: u64 = 100 * MICROSECOND;

/// For how long there is one thread less when one was late: the first time, and at most.
const DROP_MIN: u64 = 4 * MILLISECOND;
const DROP_MAX: u64 = 1_024 * MILLISECOND;

/// One that is late so soon after it was tried again was not late by accident.
const SOON: u64 = 50 * MILLISECOND;

pub(super) struct Pool {
    cores: usize,
    workers: [AtomicPtr<Worker>; MAX_THREADS], // null from the first that was not started on; they never end
    starting: AtomicBool,                      // somebody starts one
    startable: AtomicUsize, // workers that can be had; less than MAX_THREADS when one could not be started
    busy: AtomicUsize,      // callers at work
    share: Share,
}

/// How many threads this process uses at the same time, callers included.
struct Share {
    limit: AtomicUsize,
    drop_for: AtomicU64, // nanoseconds
    raise_at: AtomicU64, // see `now`; when one more is tried
    raised_at: AtomicU64,
}

// A line of the cache and its neighbour, which is fetched with it.
#[repr(align(128))]
struct Worker {
    letter: AtomicPtr<Region>, // null: free; INSIDE; or a region to enter
    parked: AtomicBool,        // until somebody unparks it
    thread: OnceLock<Thread>,  // set before others can see the worker
}

const INSIDE: *mut Region = std::ptr::without_provenance_mut(1);

/// A region, on the stack of its caller.
struct Region {
    call: *const (dyn Fn(usize) + Sync),
    next: AtomicUsize, // number of the next worker that enters
    // Twice the number of workers that the caller waits for, less twice those that have left; and 1 if it sleeps.
    waiting: AtomicIsize,
    panicked: AtomicBool,
    sleeper: UnsafeCell<Option<Thread>>, // set before it sleeps
    woken: AtomicBool,                   // the last word of who wakes it
}

thread_local! {
    /// This thread is inside a region: what it runs there it runs alone.
    static INSIDE_REGION: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread, as a caller, gets the core that it asks for.
    static DELAY: Cell<Delay> = const { Cell::new(Delay::NEW) };
    /// This thread's guards of [`Pool::busy`].
    static BUSY: Cell<usize> = const { Cell::new(0) };
}

static POOL: AtomicPtr<Pool> = AtomicPtr::new(null_mut());
static FORKS: AtomicUsize = AtomicUsize::new(0);

/// How often the process was forked on the way to this one, since there is a pool.
pub(super) fn forks() -> usize {
    FORKS.load(Ordering::Relaxed)
}

/// The process's pool; made at the first call, and again by a child after `fork`.
pub(super) fn global() -> &'static Pool {
    static AT_FORK: Once = Once::new();
    extern "C" fn forget() {
        POOL.store(null_mut(), Ordering::Relaxed);
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: `forget` only stores to atomics, which is allowed in a forked child.
    AT_FORK.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(forget));
    });
    let mut at = POOL.load(Ordering::Acquire);
    if at.is_null() {
        let made = Box::into_raw(Box::new(Pool::new(available())));
        match POOL.compare_exchange(null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
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

/// Counts its thread among the callers that are at work, until it is dropped.
pub struct Busy {
    pool: Option<&'static Pool>, // None if the thread was counted already
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.set(BUSY.get() - 1);
        if let Some(pool) = self.pool {
            pool.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Pool {
    fn new(cores: usize) -> Self {
        Self {
            cores,
            workers: [const { AtomicPtr::new(null_mut()) }; MAX_THREADS],
            starting: AtomicBool::new(false),
            startable: AtomicUsize::new(MAX_THREADS),
            busy: AtomicUsize::new(0),
            share: Share {
                limit: AtomicUsize::new(cores),
                drop_for: AtomicU64::new(DROP_MIN),
                raise_at: AtomicU64::new(0),
                raised_at: AtomicU64::new(0),
            },
        }
    }

    pub(super) fn busy(&'static self) -> Busy {
        let outermost = BUSY.replace(BUSY.get() + 1) == 0;
        if outermost {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        Busy { pool: outermost.then_some(self), _of_this_thread: PhantomData }
    }

    pub(super) fn run(&'static self, threads: usize, call: &(dyn Fn(usize) + Sync)) {
        if self.cores == 1 || INSIDE_REGION.get() {
            return call(0);
        }
        let _busy = self.busy();
        // The cores that no caller has are shared by the callers: the first workers, as many as there are such cores.
        let callers = self.busy.load(Ordering::Relaxed).max(1);
        let free = self.share.limit(self.cores, now).saturating_sub(callers);
        let wanted = free.div_ceil(callers).min(threads - 1);
        if wanted == 0 {
            return call(0);
        }
        // SAFETY: only the lifetime is changed. The pointer is dead when this function returns: every worker that enters
        // is waited for in `close`, panic or not.
        let lasting: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), _>(call) };
        let region = Region {
            call: lasting,
            next: AtomicUsize::new(1),
            waiting: AtomicIsize::new(0),
            panicked: AtomicBool::new(false),
            sleeper: UnsafeCell::new(None),
            woken: AtomicBool::new(false),
        };
        let forks_before = forks();
        let mut posted = Posted { workers: [0; MAX_THREADS], len: 0 };
        for i in 0..free.min(self.startable.load(Ordering::Relaxed)) {
            let Some(worker) = self.worker(i) else { break };
            if worker.post(&region) {
                posted.workers[posted.len] = i as u8;
                posted.len += 1;
                if posted.len == wanted {
                    break;
                }
            }
        }
        let (mut delay, now) = (DELAY.get(), now());
        if delay.is_long(now) {
            self.share.too_many(now);
        }
        DELAY.set(delay);
        INSIDE_REGION.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| call(0)));
        INSIDE_REGION.set(false);
        // A child that was forked inside the region has no workers: nobody to wait for.
        if forks() == forks_before {
            self.close(&region, &posted);
        }
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!region.panicked.load(Ordering::Relaxed), "a worker panicked");
    }

    /// Takes back the letters that nobody has taken, and waits for the workers that are inside.
    fn close(&self, region: &Region, posted: &Posted) {
        let mut inside = 0;
        for worker in self.all(posted) {
            let letter = std::ptr::from_ref(region).cast_mut();
            let taken = worker.letter.load(Ordering::Relaxed) != letter
                || worker.letter.compare_exchange(letter, null_mut(), Ordering::Relaxed, Ordering::Relaxed).is_err();
            inside += isize::from(taken);
        }
        if region.waiting.fetch_add(2 * inside, Ordering::AcqRel) + 2 * inside == 0 {
            return;
        }
        let start = now();
        while now() < start + SPIN_FOR_WORKERS {
            for _ in 0..32 {
                if region.waiting.load(Ordering::Acquire) == 0 {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        // Somebody takes long. Sleep, so that there is a core for it if that is what it lacks.
        // SAFETY: no worker reads it before it sees the bit that is set next.
        unsafe { *region.sleeper.get() = Some(thread::current()) };
        if region.waiting.fetch_or(1, Ordering::AcqRel) != 0 {
            while !region.woken.load(Ordering::Acquire) {
                thread::park();
            }
        }
    }

    /// Worker `i`, started if it is not there yet and nobody is starting one.
    fn worker(&'static self, i: usize) -> Option<&'static Worker> {
        let at = self.workers[i].load(Ordering::Acquire);
        if !at.is_null() {
            // SAFETY: what is stored there was leaked.
            return Some(unsafe { &*at });
        }
        if self.starting.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut started = None;
        if self.workers[i].load(Ordering::Acquire).is_null() {
            let worker: &'static Worker = Box::leak(Box::new(Worker {
                letter: AtomicPtr::new(null_mut()),
                parked: AtomicBool::new(false),
                thread: OnceLock::new(),
            }));
            match spawn(format!("llama_rs-{}", i + 1), move || self.work(worker)) {
                Ok(thread) => {
                    let _ = worker.thread.set(thread);
                    self.workers[i].store(std::ptr::from_ref(worker).cast_mut(), Ordering::Release);
                    started = Some(worker);
                }
                Err(_) => self.startable.store(i, Ordering::Relaxed), // do with those there are
            }
        }
        self.starting.store(false, Ordering::Release);
        started
    }

    fn all(&self, posted: &Posted) -> impl Iterator<Item = &'static Worker> {
        posted.workers[..posted.len].iter().map(|&i| {
            let at = self.workers[usize::from(i)].load(Ordering::Relaxed);
            // SAFETY: a letter was posted to it, so it is there; it was leaked, and seen by this thread before.
            unsafe { &*at }
        })
    }

    fn work(&self, worker: &'static Worker) {
        INSIDE_REGION.set(true);
        let mut delay = Delay::NEW;
        loop {
            let region = worker.wait(|now| {
                if delay.is_long(now) {
                    self.share.too_many(now);
                }
            });
            // SAFETY: we took its letter, so its caller waits for us: it lives until we leave. The number is ours alone.
            unsafe {
                let call = &*(*region).call;
                let number = (*region).next.fetch_add(1, Ordering::Relaxed);
                if catch_unwind(AssertUnwindSafe(|| call(number))).is_err() {
                    (*region).panicked.store(true, Ordering::Relaxed);
                }
                worker.letter.store(null_mut(), Ordering::Release);
                Region::leave(region);
            }
        }
    }
}

impl Worker {
    /// Posts a letter if the box is empty, and wakes the worker if it sleeps.
    fn post(&self, region: &Region) -> bool {
        let letter = std::ptr::from_ref(region).cast_mut();
        let empty = self.letter.load(Ordering::Relaxed).is_null();
        if !empty || self.letter.compare_exchange(null_mut(), letter, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        // One that was woken before and has not come has got no core yet: waking it again would help nobody.
        if self.parked.load(Ordering::SeqCst) {
            self.parked.store(false, Ordering::SeqCst);
            self.thread.get().expect("set when it was started").unpark();
        }
        true
    }

    /// Waits for a letter and takes it: spins, then parks. Calls `awake` with the time, at least once in between.
    fn wait(&self, mut awake: impl FnMut(u64)) -> *mut Region {
        loop {
            let start = now();
            awake(start);
            while now() < start + SPIN {
                for _ in 0..32 {
                    if let Some(region) = self.take() {
                        return region;
                    }
                    std::hint::spin_loop();
                }
            }
            self.parked.store(true, Ordering::SeqCst);
            if self.letter.load(Ordering::SeqCst).is_null() {
                // Whoever posts one from here on sees that we are parked, and says no more when it has unparked us.
                while self.parked.load(Ordering::SeqCst) {
                    thread::park();
                }
            } else {
                self.parked.store(false, Ordering::SeqCst);
            }
        }
    }

    fn take(&self) -> Option<*mut Region> {
        let region = self.letter.load(Ordering::Relaxed);
        let is_letter = !region.is_null() && region != INSIDE;
        let take = || self.letter.compare_exchange(region, INSIDE, Ordering::Acquire, Ordering::Relaxed);
        (is_letter && take().is_ok()).then_some(region)
    }
}

impl Region {
    /// A worker's last step.
    ///
    /// # Safety
    /// - The caller of the region waits for this worker, which has not left before.
    unsafe fn leave(this: *const Self) {
        // SAFETY: alive until the subtraction, as the caller says; if that shows that we are the last and that the
        // region's caller sleeps, then until `woken`, which is what it waits for.
        unsafe {
            if (*this).waiting.fetch_sub(2, Ordering::AcqRel) == 3 {
                let sleeper = (*(*this).sleeper.get()).clone();
                (*this).woken.store(true, Ordering::Release);
                sleeper.expect("set before it slept").unpark();
            }
        }
    }
}

struct Posted {
    workers: [u8; MAX_THREADS],
    len: usize,
}

impl Share {
    /// How many threads there may be at the time `now`.
    fn limit(&self, cores: usize, now: impl FnOnce() -> u64) -> usize {
        let limit = self.limit.load(Ordering::Relaxed);
        if limit < cores {
            let (now, raise_at) = (now(), self.raise_at.load(Ordering::Relaxed));
            let next = now + self.drop_for.load(Ordering::Relaxed);
            let turn = || self.raise_at.compare_exchange(raise_at, next, Ordering::Relaxed, Ordering::Relaxed);
            if now >= raise_at && turn().is_ok() {
                self.raised_at.store(now, Ordering::Relaxed);
                let raise = |limit: usize| (limit < cores).then_some(limit + 1);
                let _ = self.limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, raise);
            }
        }
        self.limit.load(Ordering::Relaxed)
    }

    /// One thread less, for a while.
    fn too_many(&self, now: u64) {
        let lower = |limit: usize| (limit > 1).then(|| limit - 1);
        if self.limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower).is_err() {
            return;
        }
        let before = self.drop_for.load(Ordering::Relaxed);
        let again = now < self.raised_at.load(Ordering::Relaxed) + before + SOON;
        let drop_for = if again { (2 * before).min(DROP_MAX) } else { DROP_MIN };
        self.drop_for.store(drop_for, Ordering::Relaxed);
        self.raise_at.store(now + drop_for, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::threads::run;

    /// A pool of its own, as on a machine of so many cores.
    fn pool(cores: usize) -> &'static Pool {
        Box::leak(Box::new(Pool::new(cores)))
    }

    /// Runs a region whose workers wait for each other, so that `threads` of them must come, whatever else the machine
    /// is doing.
    fn meet(pool: &'static Pool, threads: usize) {
        never_drop(pool);
        let here = AtomicUsize::new(0);
        pool.run(threads, &|_| {
            here.fetch_add(1, Ordering::SeqCst);
            while here.load(Ordering::SeqCst) < threads {
                thread::yield_now();
            }
        });
        assert_eq!(here.into_inner(), threads);
    }

    fn never_drop(pool: &Pool) {
        pool.share.limit.store(1 << 20, Ordering::Relaxed);
    }

    fn wait_for(what: impl Fn() -> bool) {
        while !what() {
            thread::yield_now();
        }
    }

    #[test]
    fn workers_come_and_have_numbers_of_their_own() {
        let pool = pool(8);
        for threads in [1, 2, 3, 8] {
            meet(pool, threads);
        }
        for _ in 0..500 {
            let seen: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
            pool.run(8, &|worker| {
                seen[worker].fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(seen[0].load(Ordering::Relaxed), 1);
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) <= 1));
        }
    }

    #[test]
    fn all_that_workers_wrote_is_seen_by_the_caller() {
        // More threads than any test machine has cores, and several callers at once.
        let pool = pool(16);
        thread::scope(|scope| {
            for threads in 2..6 {
                scope.spawn(move || {
                    for round in 0..300 {
                        let mut out = vec![0; 1000];
                        let parts = crate::threads::Disjoint::new(&mut out);
                        let queue = crate::threads::Queue::new(1000, 3, threads);
                        pool.run(threads, &|worker| {
                            queue.run(worker, |chunk| {
                                // SAFETY: the queue hands out each item once.
                                let part = unsafe { parts.slice(chunk.clone()) };
                                part.iter_mut().zip(chunk).for_each(|(out, i)| *out = i * round);
                            });
                        });
                        assert!(out.iter().enumerate().all(|(i, &n)| n == i * round));
                    }
                });
            }
        });
        assert_eq!(pool.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_caller_does_not_wait_for_the_region_of_another() {
        let pool = pool(2); // one worker
        let (held, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                pool.run(2, &|_| {
                    held.fetch_add(1, Ordering::SeqCst);
                    wait_for(|| done.load(Ordering::SeqCst));
                });
            });
            wait_for(|| held.load(Ordering::SeqCst) == 2);
            let ran = AtomicUsize::new(0);
            pool.run(2, &|_| {
                ran.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(ran.into_inner(), 1, "both cores are taken");
            done.store(true, Ordering::SeqCst);
        });
        meet(pool, 2);
    }

    #[test]
    fn callers_at_work_share_the_cores() {
        let pool = pool(8);
        let (inside, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let _busy = pool.busy();
                    inside.fetch_add(1, Ordering::SeqCst);
                    wait_for(|| done.load(Ordering::SeqCst));
                });
            }
            wait_for(|| inside.load(Ordering::SeqCst) == 3);
            let most = AtomicUsize::new(0);
            pool.run(8, &|worker| {
                most.fetch_max(worker + 1, Ordering::SeqCst);
            });
            assert!(most.into_inner() <= 2, "four callers, four cores besides");
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(pool.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_worker_that_gets_no_core_is_not_waited_for_and_never_gets_in() {
        let pool = pool(2);
        // A worker whose thread never runs.
        let worker = Box::leak(Box::new(Worker {
            letter: AtomicPtr::new(null_mut()),
            parked: AtomicBool::new(false),
            thread: OnceLock::new(),
        }));
        pool.workers[0].store(worker, Ordering::Release);
        let ran = AtomicUsize::new(0);
        pool.run(2, &|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 1);
        assert!(worker.take().is_none(), "the letter was taken back");
    }

    #[test]
    fn a_region_in_a_region_runs_on_its_own_thread() {
        let pool = pool(4);
        let inner = AtomicUsize::new(0);
        let outer = AtomicUsize::new(0);
        pool.run(4, &|_| {
            outer.fetch_add(1, Ordering::Relaxed);
            pool.run(4, &|worker| {
                assert_eq!(worker, 0);
                inner.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(inner.into_inner(), outer.into_inner());
    }

    #[test]
    fn a_panic_in_a_worker_or_in_the_caller_reaches_the_caller() {
        let pool = pool(2);
        for who in 0..2 {
            let here = AtomicUsize::new(0);
            never_drop(pool);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(2, &|worker| {
                    here.fetch_add(1, Ordering::SeqCst);
                    wait_for(|| here.load(Ordering::SeqCst) == 2);
                    assert!(worker != who, "on purpose");
                });
            }));
            assert!(caught.is_err());
            meet(pool, 2);
        }
        assert_eq!(pool.busy.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_parked_worker_wakes_up() {
        let pool = pool(2);
        for _ in 0..5 {
            meet(pool, 2);
            // SAFETY: `meet` started it, and it was leaked.
            let worker = unsafe { &*pool.workers[0].load(Ordering::Acquire) };
            wait_for(|| worker.parked.load(Ordering::SeqCst));
        }
    }

    #[test]
    fn a_caller_sleeps_while_a_worker_takes_long_and_is_woken() {
        let pool = pool(2);
        for _ in 0..20 {
            never_drop(pool);
            let (here, finished) = (AtomicUsize::new(0), AtomicBool::new(false));
            pool.run(2, &|worker| {
                here.fetch_add(1, Ordering::SeqCst);
                wait_for(|| here.load(Ordering::SeqCst) == 2);
                if worker == 1 {
                    thread::sleep(std::time::Duration::from_millis(2));
                    finished.store(true, Ordering::Relaxed);
                }
            });
            assert!(finished.into_inner());
        }
    }

    #[test]
    fn a_child_has_a_pool_of_its_own() {
        run(2, &|_| {});
        let in_child = |work: &dyn Fn()| {
            // SAFETY: the child runs this module, made for it, and leaves by `_exit`.
            match unsafe { libc::fork() } {
                0 => {
                    let fine = catch_unwind(AssertUnwindSafe(work)).is_ok();
                    // SAFETY: no preconditions.
                    unsafe { libc::_exit(i32::from(!fine)) }
                }
                child => {
                    let mut status = -1;
                    // SAFETY: writes to `status` only.
                    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                    assert_eq!(status, 0);
                }
            }
        };
        in_child(&|| {
            let ran = AtomicUsize::new(0);
            (0..100).for_each(|_| {
                run(2, &|_| {
                    ran.fetch_add(1, Ordering::Relaxed);
                })
            });
            assert!((100..=200).contains(&ran.into_inner()));
        });
        // In the middle of a region, with a worker inside: the child has not got it, and does not wait for it.
        let pool = pool(2);
        never_drop(pool);
        let (here, forked) = (AtomicUsize::new(0), AtomicBool::new(false));
        let parent = std::process::id();
        let child = Mutex::new(0);
        pool.run(2, &|worker| {
            here.fetch_add(1, Ordering::SeqCst);
            wait_for(|| here.load(Ordering::SeqCst) == 2);
            if worker == 0 {
                // SAFETY: as above: the child returns from `run` and leaves.
                *child.lock().unwrap() = unsafe { libc::fork() };
                forked.store(true, Ordering::SeqCst);
            } else {
                wait_for(|| forked.load(Ordering::SeqCst));
            }
        });
        if std::process::id() != parent {
            // SAFETY: no preconditions.
            unsafe { libc::_exit(0) };
        }
        let mut status = -1;
        // SAFETY: writes to `status` only.
        unsafe { libc::waitpid(child.into_inner().unwrap(), &mut status, 0) };
        assert_eq!(status, 0);
    }

    #[test]
    fn a_late_worker_is_dropped_for_longer_each_time_and_comes_back() {
        let share = &pool(4).share;
        assert_eq!(share.limit(4, || 0), 4);
        let mut now = 100 * DROP_MIN;
        share.too_many(now);
        share.too_many(now);
        assert_eq!(share.limit(4, || now + 1), 2);
        now += DROP_MIN;
        assert_eq!(share.limit(4, || now), 3, "one at a time");
        assert_eq!(share.limit(4, || now + 1), 3);
        now += DROP_MIN;
        assert_eq!(share.limit(4, || now), 4);
        for (i, dropped_for) in [2, 4, 8, 16, 32, 64, 128, 256, 256].into_iter().enumerate() {
            now += DROP_MIN / 2;
            share.too_many(now);
            now += dropped_for * DROP_MIN;
            assert_eq!((i, share.limit(4, || now - 1)), (i, 3));
            assert_eq!((i, share.limit(4, || now)), (i, 4));
        }
        now += 10 * DROP_MAX; // a quiet time, then an accident
        share.too_many(now);
        assert_eq!(share.limit(4, || now + DROP_MIN), 4);
        for _ in 0..10 {
            share.too_many(now + DROP_MIN);
        }
        assert_eq!(share.limit(4, || now + DROP_MIN), 1, "the caller stays");
    }
}
