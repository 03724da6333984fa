//! Blocks: parts of runs of memory, each with one owner.

use std::sync::Arc;

use crate::error::Result;
use crate::mapping::Memory;

/// Blocks that lie one after another in one map. It is unmapped when the last of them is gone.
struct Run {
    memory: Memory,
    block_bytes: usize,
}

/// A block of keys and values. It owns its part of a run: nobody else has it.
pub struct Block {
    run: Arc<Run>,
    index: usize,
}

impl Block {
    /// Cuts memory into blocks, the first one first. What is left over at the end is not used.
    pub fn cut(memory: Memory, block_bytes: usize) -> impl DoubleEndedIterator<Item = Self> {
        let n = memory.len() / block_bytes;
        let run = Arc::new(Run { memory, block_bytes });
        // Each index once: that is what makes a block the only owner of its part.
        (0..n).map(move |index| Self { run: Arc::clone(&run), index })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `cut` made no more blocks than fit in the memory, and none twice; the run keeps it mapped. Whoever
        // writes has the block for itself (`bytes_mut`).
        unsafe { std::slice::from_raw_parts(self.start(), self.run.block_bytes) }
    }

    /// Its bytes, to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only way to this part of the memory.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.run.block_bytes) }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the block lies in the memory, as `cut` counted.
        unsafe { self.run.memory.as_mut_ptr().add(self.index * self.run.block_bytes) }
    }

    /// Whether the other lies in the same memory.
    pub fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.run, &other.run)
    }

    /// Whether the file that it came from, if any, is still what it was.
    ///
    /// # Errors
    /// [`Error::Changed`](crate::Error::Changed).
    pub fn check(&self) -> Result<()> {
        self.run.memory.check()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // Others of the run live on, so it stays mapped: this part of it need not stay in memory.
        if Arc::strong_count(&self.run) > 1 {
            let start = self.index * self.run.block_bytes;
            // SAFETY: the block is the only owner of this part, and it is going.
            unsafe { self.run.memory.discard(start..start + self.run.block_bytes) };
        }
    }
}
