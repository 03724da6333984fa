//! What happens when a page of a map is gone: the file was cut short, or the disk would not give it.
//!
//! The kernel says so with SIGBUS, which ends the process. Our handler looks whether the address lies in one of our maps.
//! If so it marks the map as poisoned and puts zeros where the page should be, so that whoever read it goes on, with
//! wrong numbers that [`Mapping::check`](super::Mapping::check) throws away. All other SIGBUS go to the handler that was
//! there before (Python's `faulthandler`, say), or end the process as ever.
//!
//! The kernel asks no handler if the thread that reads has SIGBUS blocked, as in programs that block every signal in all
//! threads but one: it ends the process. So whatever reads maps in this crate does it inside [`guarded`], which unblocks
//! that signal for as long as it takes. The promise ends where others read: a buffer of a tensor (an array of numpy over
//! it) that is read in a thread which blocks SIGBUS, after the file was cut short, ends the process; and so does a fault
//! where some other library has replaced our handler since the last check.
//!
//! `LLAMA_RS_SIGBUS=0` in the environment leaves the signal alone.
//!
//! All that the handler touches is atomic and never freed; all it calls is safe in a signal handler.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering, fence};

/// A guarded range; free where `start` is 0.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    file: AtomicI32, // -1 if there is not one file from `start` on
    writable: AtomicBool,
    poisoned: AtomicBool,
}

/// Slots, and where there are more: the list only ever grows.
struct Chunk {
    slots: [Slot; 64],
    next: AtomicPtr<Chunk>, // null at the end; otherwise leaked
}

static FIRST: Chunk = Chunk::new();

impl Chunk {
    const fn new() -> Self {
        let slots = [const {
            Slot {
                taken: AtomicBool::new(false),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                file: AtomicI32::new(-1),
                writable: AtomicBool::new(false),
                poisoned: AtomicBool::new(false),
            }
        }; 64];
        Self { slots, next: AtomicPtr::new(null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // SAFETY: null, or leaked by `Slot::take`.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

impl Slot {
    /// All there are.
    fn all() -> impl Iterator<Item = &'static Slot> {
        std::iter::successors(Some(&FIRST), |chunk| chunk.next()).flat_map(|chunk| &chunk.slots)
    }

    /// A free one.
    fn take() -> &'static Slot {
        let free = |slot: &&Slot| !slot.taken.load(Ordering::Relaxed) && !slot.taken.swap(true, Ordering::Acquire);
        loop {
            if let Some(slot) = Self::all().find(free) {
                return slot;
            }
            let last = std::iter::successors(Some(&FIRST), |chunk| chunk.next()).last().unwrap_or(&FIRST);
            let more = Box::into_raw(Box::new(Chunk::new()));
            if last.next.compare_exchange(null_mut(), more, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // SAFETY: it came from a Box, and nobody else has seen it: somebody was faster.
                drop(unsafe { Box::from_raw(more) });
            }
        }
    }
}

/// Guards a map for as long as it lives.
pub(super) struct Guard {
    slot: Option<&'static Slot>, // None if the user has forbidden it
}

impl Guard {
    /// Guards `map`, which must be dropped after the guard, as must `file`, which it is a map of.
    pub(super) fn new(map: &[u8], file: BorrowedFd<'_>) -> Self {
        Self::of(map, file.as_raw_fd(), false)
    }

    /// Guards private memory over which parts of files are mapped. It must be dropped after the guard.
    pub(super) fn writable(map: &[u8]) -> Self {
        Self::of(map, -1, true)
    }

    fn of(map: &[u8], file: c_int, writable: bool) -> Self {
        keep_installed();
        let slot = is_enabled().then(Slot::take);
        if let Some(slot) = slot {
            slot.poisoned.store(false, Ordering::Relaxed);
            slot.file.store(file, Ordering::Relaxed);
            slot.writable.store(writable, Ordering::Relaxed);
            slot.end.store((map.as_ptr() as usize + map.len()).next_multiple_of(page_size()), Ordering::Relaxed);
            slot.start.store(map.as_ptr() as usize, Ordering::Release);
        }
        Self { slot }
    }

    /// Whether a page of the map could not be read, up to now.
    pub(super) fn is_poisoned(&self) -> bool {
        fence(Ordering::Acquire); // what was read from the map was read before the flag is
        self.slot.is_some_and(|slot| slot.poisoned.load(Ordering::Relaxed))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.start.store(0, Ordering::Relaxed);
            slot.taken.store(false, Ordering::Release);
        }
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Guard(poisoned: {})", self.is_poisoned())
    }
}

thread_local! {
    /// Scopes of [`guarded`] that this thread is in.
    static SCOPES: Cell<usize> = const { Cell::new(0) };
}

/// Lets this thread take a fault of a map, until the scope is dropped; see the module.
///
/// The threads of `threads` always can. One system call, or three where the signal is blocked; none inside
/// another scope.
pub fn guarded() -> Guarded {
    let mut blocked = false;
    if SCOPES.replace(SCOPES.get() + 1) == 0 && is_enabled() {
        let mut before = MaybeUninit::uninit();
        // SAFETY: `change_mask` as below; when it succeeds it has initialised `before`.
        unsafe {
            blocked = change_mask(libc::SIG_UNBLOCK, before.as_mut_ptr())
                && libc::sigismember(before.as_ptr(), libc::SIGBUS) == 1;
        }
    }
    Guarded { blocked, _of_this_thread: PhantomData }
}

/// A scope in which this thread can take a fault of a map.
pub struct Guarded {
    blocked: bool, // the signal was, and will be again
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        SCOPES.set(SCOPES.get() - 1);
        if self.blocked {
            // SAFETY: a null pointer is one that is not written to.
            unsafe { change_mask(libc::SIG_BLOCK, null_mut()) };
        }
    }
}

/// Blocks or unblocks SIGBUS for this thread; gives whether that worked.
///
/// # Safety
/// - `before` is null, or what the mask was can be written there.
unsafe fn change_mask(how: c_int, before: *mut libc::sigset_t) -> bool {
    let mut bus = MaybeUninit::uninit();
    // SAFETY: the first call initialises the set; `before` is as the caller says.
    unsafe {
        libc::sigemptyset(bus.as_mut_ptr());
        libc::sigaddset(bus.as_mut_ptr(), libc::SIGBUS);
        libc::pthread_sigmask(how, bus.as_ptr(), before) == 0
    }
}

/// Whether the user lets us have the signal.
fn is_enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| std::env::var_os("LLAMA_RS_SIGBUS").is_none_or(|value| value != "0"))
}

/// Bytes of a page of memory.
pub fn page_size() -> usize {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    if PAGE.load(Ordering::Relaxed) == 0 {
        // SAFETY: no preconditions.
        PAGE.store(unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize, Ordering::Relaxed);
    }
    PAGE.load(Ordering::Relaxed)
}

/// Who had the signal before us. What it points to is never freed: a handler may be reading it.
static FORMER: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

/// Sees to it that the handler is ours: installs it, or installs it again where somebody replaced it. One system call.
pub(super) fn keep_installed() {
    if !is_enabled() {
        return;
    }
    // SAFETY: all zeros is a valid sigaction; the calls read and write only what they are given.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut now) != 0
            || now.sa_sigaction == handler as *const () as usize
        {
            return;
        }
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as *const () as usize;
        // SA_NODEFER: the handler of before us may itself raise the signal.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        libc::sigemptyset(&mut ours.sa_mask);
        FORMER.store(Box::into_raw(Box::new(now)), Ordering::Release);
        libc::sigaction(libc::SIGBUS, &ours, null_mut());
    }
}

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid pointers; errno belongs to this thread and is put back.
    unsafe {
        let errno = *libc::__errno_location();
        // Positive: from the kernel, about an address. Otherwise somebody sent it with kill or raise.
        let ours = (*info).si_code > 0 && mend((*info).si_addr() as usize);
        if !ours {
            pass_on(signal, info, context);
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts zeros at `address` if it is in one of our maps.
///
/// # Safety
/// - Called from a signal handler, for a fault at `address`.
unsafe fn mend(address: usize) -> bool {
    let holds = |slot: &&Slot| {
        let start = slot.start.load(Ordering::Acquire);
        start != 0 && (start..slot.end.load(Ordering::Relaxed)).contains(&address)
    };
    let Some(slot) = Slot::all().find(holds) else { return false };
    // First: whoever reads the zeros, in whatever thread, finds the flag set afterwards.
    slot.poisoned.store(true, Ordering::SeqCst);
    let (start, end) = (slot.start.load(Ordering::Relaxed), slot.end.load(Ordering::Relaxed));
    let page = address & !(page_size() - 1);
    let protection = libc::PROT_READ | if slot.writable.load(Ordering::Relaxed) { libc::PROT_WRITE } else { 0 };
    // SAFETY: fstat writes to `meta` only. The ranges lie in the map, which is alive: somebody is reading it.
    unsafe {
        let mut meta: libc::stat = std::mem::zeroed();
        if libc::fstat(slot.file.load(Ordering::Relaxed), &mut meta) == 0 {
            // Past the end of a file that was cut short everything is gone: one call for all of it.
            let first_gone = start + (meta.st_size as usize).next_multiple_of(page_size());
            if page >= first_gone && put_zeros(first_gone, end, protection) {
                return true;
            }
        }
        // A page that cannot be read; or, where the map would fall into too many parts, all after it.
        put_zeros(page, page + page_size(), protection) || put_zeros(page, end, protection)
    }
}

/// # Safety
/// - The pages `start..end` belong to one of our maps.
unsafe fn put_zeros(start: usize, end: usize, protection: c_int) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: as the caller promises. Nothing but the contents changes for who reads there.
    let at = unsafe { libc::mmap(start as *mut c_void, end - start, protection, flags, -1, 0) };
    at != libc::MAP_FAILED
}

/// Gives the signal to the handler of before us, or to the system.
///
/// # Safety
/// - Called from a signal handler, with what it was given.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // A former handler that puts back the one of before it and raises the signal again, as faulthandler does, may come
    // back here: then nobody is left but the system.
    static PASSING: AtomicI32 = AtomicI32::new(0);
    // SAFETY: no preconditions; the former action was valid when the kernel gave it to us.
    unsafe {
        let me = libc::syscall(libc::SYS_gettid) as i32;
        let nested = PASSING.load(Ordering::Relaxed) == me;
        let former = FORMER.load(Ordering::Acquire);
        let action = if nested || former.is_null() { libc::SIG_DFL } else { (*former).sa_sigaction };
        match action {
            libc::SIG_DFL => {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal); // a fault comes again by itself when we return
                }
            }
            libc::SIG_IGN => {
                if (*info).si_code > 0 {
                    let mut ignore: libc::sigaction = std::mem::zeroed();
                    ignore.sa_sigaction = libc::SIG_IGN;
                    libc::sigaction(signal, &ignore, null_mut());
                }
            }
            action => {
                PASSING.store(me, Ordering::Relaxed);
                if (*former).sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = std::mem::transmute(action);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(c_int) = std::mem::transmute(action);
                    call(signal);
                }
                PASSING.store(0, Ordering::Relaxed);
            }
        }
    }
}
