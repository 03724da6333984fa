//! Items of work, shared out to whoever asks.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Items `0..len`, shared out among the workers of a region.
///
/// Chunks are contiguous and shrink towards the end, so that all finish at about the same time. Nothing is set aside for
/// a worker before it asks: one that does not come leaves its share to the others.
pub struct Queue {
    next: AtomicUsize,
    len: usize,
    grain: usize,
    workers: usize,
    first: usize, // items of the first chunk of each worker
}

impl Queue {
    /// Shares out `0..len` to `workers`, `grain` or more at a time: for items that cost much.
    pub fn new(len: usize, grain: usize, workers: usize) -> Self {
        Self { next: AtomicUsize::new(0), len, grain: grain.max(1), workers: workers.max(1), first: 0 }
    }

    /// The same with three quarters of a fair share for the first chunk of each worker: for items so short that handing
    /// them out is felt.
    pub fn mostly_fixed(len: usize, grain: usize, workers: usize) -> Self {
        let queue = Self::new(len, grain, workers);
        Self { first: len * 3 / 4 / queue.workers / queue.grain * queue.grain, ..queue }
    }

    /// Calls `work` with chunks until all are taken.
    pub fn run(&self, _worker: usize, mut work: impl FnMut(Range<usize>)) {
        let mut first = self.first;
        while let Some(chunk) = self.take(first) {
            work(chunk);
            first = 0;
        }
    }

    fn take(&self, first: usize) -> Option<Range<usize>> {
        let n = self.workers;
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let left = self.len.checked_sub(start).filter(|&left| left > 0)?;
            // The last of n workers that come in time finds `first * (n + 3) / 3` items: it gets its `first`, and one
            // that comes later the same part of what it finds. Then half of a fair share: the last chunks are small
            // without many trips to the counter.
            let share = if first > 0 { first.min(left * 3 / (n + 3)) } else { left / (2 * n) };
            let share = share.next_multiple_of(self.grain).max(self.grain).min(left);
            match self.next.compare_exchange_weak(start, start + share, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..start + share),
                Err(now) => start = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::threads::run;

    const CASES: [(usize, usize, usize); 7] =
        [(0, 1, 2), (1, 4, 2), (100, 4, 2), (4096, 32, 3), (7, 32, 64), (1000, 1, 7), (5, 0, 0)];

    fn queues(len: usize, grain: usize, workers: usize) -> [Queue; 2] {
        [Queue::new(len, grain, workers), Queue::mostly_fixed(len, grain, workers)]
    }

    #[test]
    fn each_item_is_handed_out_once() {
        for (len, grain, workers) in CASES {
            for queue in queues(len, grain, workers) {
                let taken = Mutex::new(Vec::new());
                run(workers, &|worker| queue.run(worker, |chunk| taken.lock().unwrap().extend(chunk)));
                let mut taken = taken.into_inner().unwrap();
                taken.sort_unstable();
                assert_eq!(taken, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn one_worker_does_what_was_meant_for_many() {
        for (len, grain, workers) in CASES {
            for queue in queues(len, grain, workers) {
                let mut taken = Vec::new();
                queue.run(0, |chunk| taken.extend(chunk));
                assert_eq!(taken, (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn workers_that_come_in_time_get_equal_first_chunks_and_late_ones_a_part_of_what_is_left() {
        for workers in [2, 3, 16] {
            let queue = Queue::mostly_fixed(1600, 1, workers);
            let firsts: Vec<usize> = (0..workers).map(|_| queue.take(queue.first).unwrap().len()).collect();
            assert_eq!(firsts, vec![1200 / workers; workers]);
            let left = 1600 - firsts.iter().sum::<usize>();
            assert!(queue.take(queue.first).unwrap().len() <= left * 3 / 5);
        }
    }
}
