//! Whether a thread gets the core that it asks for: the kernel counts how long it ran, and how long it was ready to and
//! had to wait.

use std::fs::File;
use std::io::Read;

/// Time that a thread wanted to run for, in nanoseconds, after which it is judged.
const PERIOD: u64 = 10_000_000;

/// The times of one thread, which asks about itself.
#[derive(Clone, Copy)]
pub(super) struct Delay {
    judged: Times, // up to here
    next: u64,     // when to look again, on the clock of the caller
}

/// Nanoseconds, since the thread began.
#[derive(Clone, Copy, Default)]
struct Times {
    ran: u64,
    waited: u64,
}

impl Delay {
    /// Of a thread that has not been judged.
    pub(super) const NEW: Self = Self { judged: Times { ran: 0, waited: 0 }, next: 0 };

    /// Whether the thread had to wait for more than two fifths of the time lately. To be asked often: it looks every ten
    /// milliseconds, which takes five microseconds, and otherwise says no.
    pub(super) fn is_long(&mut self, now: u64) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + PERIOD;
        Times::of_this_thread().is_some_and(|times| self.judge(times))
    }

    fn judge(&mut self, now: Times) -> bool {
        if now.ran < self.judged.ran {
            self.judged = Times::default(); // a child, whose times began anew
        }
        let (ran, waited) = (now.ran - self.judged.ran, now.waited.saturating_sub(self.judged.waited));
        if ran + waited < PERIOD {
            return false;
        }
        self.judged = now;
        waited > ran / 3 * 2
    }
}

impl Times {
    /// None where the kernel does not say.
    fn of_this_thread() -> Option<Self> {
        let mut text = [0; 96];
        let n = File::open("/proc/thread-self/schedstat").ok()?.read(&mut text).ok()?;
        let mut numbers = std::str::from_utf8(&text[..n]).ok()?.split_ascii_whitespace().map(|n| n.parse().ok());
        Some(Self { ran: numbers.next()??, waited: numbers.next()?? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_judged_by_what_it_got_since_it_was_judged() {
        const MS: u64 = 1_000_000;
        let mut delay = Delay::NEW;
        let mut now = Times::default();
        let mut after = |ran: u64, waited: u64| {
            now = Times { ran: now.ran + ran * MS, waited: now.waited + waited * MS };
            delay.judge(now)
        };
        assert!(!after(100, 3), "a core of its own, and an accident");
        assert!(!after(1, 8), "not long enough to say");
        assert!(after(0, 1), "all of it together");
        assert!(!after(7, 4));
        assert!(after(5, 5), "half a core");
        assert!(after(0, 40), "it came late");
        assert!(!after(1000, 0));
        assert!(delay.judge(Times { ran: 10 * MS, waited: 10 * MS }), "of a child");
    }

    #[test]
    fn the_kernel_knows_what_this_thread_ran_for() {
        let before = Times::of_this_thread().unwrap();
        let mut x = 1u64;
        while Times::of_this_thread().unwrap().ran < before.ran + 1_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let mut delay = Delay::NEW;
        delay.is_long(5);
        assert!(!delay.is_long(6), "it has just looked");
    }
}
