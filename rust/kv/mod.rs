//! The keys and values of the positions computed so far, in blocks of 64 positions.
//!
//! A [`Sequence`] is a list of blocks, which count who uses them: forks share what they have in common, and the last,
//! partly filled block is copied when one of them goes on. A block holds its positions of every layer, so that a saved
//! session is one run of blocks in a file, and one map brings it back, however many layers and heads there are. What
//! recurrent layers remember is in states, which cannot be cut: see [`Recurrent`].

mod block;
mod layout;
mod recurrent;
pub mod saved;
mod sequence;

pub use block::Block;
pub use layout::Layout;
pub use recurrent::{LayerMemory, Recurrent, State};
pub use sequence::Sequence;
