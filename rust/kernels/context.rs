//! What computes: kernels, workers, and whether to stop.

use super::Kernels;
use super::matmul::{self, Matmul};
use crate::threads::{self, Interrupt, Queue};

/// What computes: kernels, workers, and whether to stop.
pub struct Context<'a> {
    pub kernels: &'static dyn Kernels,
    pub threads: usize,
    pub interrupt: &'a Interrupt<'a>,
}

impl Context<'_> {
    /// Calls `f` for `0..n`, shared out among the workers.
    pub fn each(&self, n: usize, f: &(dyn Fn(usize) + Sync)) {
        let threads = self.threads.min(n);
        let queue = Queue::new(n, 1, threads);
        threads::run(threads, &|worker| {
            queue.run(worker, |chunk| {
                for i in chunk {
                    if !self.interrupt.poll(worker) {
                        f(i);
                    }
                }
            });
        });
    }

    /// Runs products.
    pub fn matmul(&self, jobs: &[Matmul]) {
        matmul::matmul(self.kernels, self.threads, self.interrupt, jobs);
    }
}
