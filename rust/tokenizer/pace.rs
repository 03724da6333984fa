//! What keeps long work in hand: it asks now and then whether to stop, it stops when more tokens come than are wanted,
//! and it asks for memory instead of taking it.

use crate::error::{Error, Result};
use crate::threads::Interrupt;

/// Asks an [`Interrupt`] now and then, however short the steps are.
pub(super) struct Pace<'a> {
    interrupt: &'a Interrupt<'a>,
    left: usize, // units of work until the next question
}

impl<'a> Pace<'a> {
    /// Units between two questions: some tenths of a millisecond of bytes or tokens.
    const PERIOD: usize = 1 << 14;

    pub(super) fn new(interrupt: &'a Interrupt<'a>) -> Self {
        Self { interrupt, left: Self::PERIOD }
    }

    /// Counts `units` of work that comes now: bytes, tokens or steps.
    #[inline]
    pub(super) fn work(&mut self, units: usize) -> Result<()> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => self.ask(),
        }
    }

    #[cold]
    fn ask(&mut self) -> Result<()> {
        self.left = Self::PERIOD;
        if self.interrupt.poll(0) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// The tokens that encoding makes, and no more than are wanted.
pub(super) struct Output<'a> {
    pub(super) ids: Vec<u32>,
    pub(super) pace: Pace<'a>,
    at_most: usize,
}

impl<'a> Output<'a> {
    pub(super) fn new(at_most: usize, interrupt: &'a Interrupt<'a>) -> Self {
        Self { ids: Vec::new(), pace: Pace::new(interrupt), at_most }
    }

    /// Adds a token.
    #[inline]
    pub(super) fn push(&mut self, id: u32) -> Result<()> {
        if self.ids.len() >= self.at_most {
            return Err(self.too_many(1));
        }
        reserve(&mut self.ids, 1)?;
        self.ids.push(id);
        Ok(())
    }

    /// Ends it all if `coming` tokens more are too many.
    pub(super) fn expect(&self, coming: usize) -> Result<()> {
        if coming > self.at_most.saturating_sub(self.ids.len()) { Err(self.too_many(coming)) } else { Ok(()) }
    }

    #[cold]
    fn too_many(&self, coming: usize) -> Error {
        Error::TooManyTokens { at_least: self.ids.len().saturating_add(coming), at_most: self.at_most }
    }
}

/// Makes room for `more` elements.
#[inline]
pub(super) fn reserve<T>(vec: &mut Vec<T>, more: usize) -> Result<()> {
    if vec.capacity() - vec.len() >= more {
        return Ok(());
    }
    vec.try_reserve(more).map_err(|_| no_memory(vec.len().saturating_add(more).saturating_mul(size_of::<T>())))
}

/// The report that there is no memory for `bytes`.
#[cold]
pub(super) fn no_memory(bytes: usize) -> Error {
    Error::OutOfMemory { bytes: bytes as u128, what: "a text and its tokens" }
}
