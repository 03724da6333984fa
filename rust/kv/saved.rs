//! Sessions in files.
//!
//! What is in memory is in the file: the blocks of a [`Sequence`], one after another, so that a session comes back by one
//! map. Numbers are little-endian.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `llama_rs` |
//! | 8 | 4 | version of the format |
//! | 12 | 4 | alignment of the blocks: a page, where the file was written |
//! | 16 | 24 | the model: bytes of its files, hash of its header, hash of samples of every tensor |
//! | 40 | 8 | hash of what keys and values depend on: heads, rotations, adapters |
//! | 48 | 8 | their type, as GGUF numbers types |
//! | 56 | 8 | number of tokens, `n` |
//! | 64 | 8 | the first token that was shifted, or all ones |
//! | 72 | 48 | 1 if there are random numbers, their seed, their state |
//! | 120 | 32 | recurrent layers: tokens that they know, those of them that the state knows, checksums of state and tail |
//! | 152 | 8 | hash of all of the above |
//! | 160 | 272 per block | its 64 tokens (4 bytes each, all ones where there is none), its checksum, hash of these two and its number |
//! | aligned | | the blocks, see [`Layout`]; positions past the last token are zero |
//! | | | the state of recurrent layers and its tail, if they know any token, see [`Recurrent`](super::Recurrent) |
//!
//! The number of tokens says how long the file is, to the byte; that is compared before anything of this length is read.
//! The checksum of a block is compared when the block is first used (`Sequence::verify`), that of a state at once: all
//! of it is read for the next token.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sequence::Unverified;
use super::{Block, Layout, Sequence};
use crate::arch::Config;
use crate::checkpoint::{Checkpoint, Fingerprint};
use crate::error::{Error, Result};
use crate::hash::{checksum, hash};
use crate::kernels::{BLOCK, CHUNK, value_row, zero_key};
use crate::mapping::{Identity, Memory, guarded, page_size, replace_file};
use crate::quant::DType;
use crate::sampling::Rng;

const MAGIC: &[u8; 8] = b"llama_rs";
/// Of the format. Files of another version are refused: they can be made again.
const VERSION: u32 = 3;
const FIXED_LEN: usize = 160;
/// Bytes of a block's entry in the table.
const ENTRY_LEN: usize = 4 * BLOCK + 16;
/// A token that is none.
const NO_TOKEN: u32 = u32::MAX;
/// Pages of all systems that we know of.
const ALIGNMENTS: std::ops::RangeInclusive<usize> = 1 << 12..=1 << 16;

/// The model that a session is one of.
#[derive(Clone, Copy)]
pub struct Of<'a> {
    /// Its file.
    pub checkpoint: &'a Checkpoint,
    /// Its hyper-parameters.
    pub config: &'a Config,
    /// A hash of what adapters change, 0 if there are none.
    pub adapters: u64,
}

/// What of a session is saved besides the blocks.
pub struct State<'a> {
    /// Tokens to save, from the first.
    pub n: usize,
    /// The first of them that was shifted.
    pub shifted_from: Option<usize>,
    /// Where the random numbers are.
    pub rng: Option<&'a Rng>,
}

/// Saves the first tokens of a sequence.
///
/// # Errors
/// [`Error::File`] if the file cannot be written, [`Error::SavedSession`] if the sequence came from a damaged one.
pub fn write(path: &Path, model: Of, sequence: &mut Sequence, state: State) -> Result<()> {
    let State { n, shifted_from, rng } = state;
    let _guarded = guarded();
    sequence.verify()?; // what is damaged must not get a new checksum
    let layout = Arc::clone(sequence.layout());
    let alignment = page_size();
    let mut header = Vec::with_capacity(FIXED_LEN + n.div_ceil(BLOCK) * ENTRY_LEN);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((alignment as u32).to_le_bytes());
    header.extend(fingerprint(model.checkpoint)?.iter().flat_map(|word| word.to_le_bytes()));
    header.extend((settings(model.config) ^ model.adapters).to_le_bytes());
    header.extend(u64::from(layout.kv_type().id()).to_le_bytes());
    header.extend((n as u64).to_le_bytes());
    header.extend(shifted_from.map_or(u64::MAX, |from| from as u64).to_le_bytes());
    header.extend(u64::from(rng.is_some()).to_le_bytes());
    header.extend(rng.map_or([0; 5], Rng::words).iter().flat_map(|word| word.to_le_bytes()));
    let state = sequence.saved_state(n);
    let of_state = state
        .as_ref()
        .map_or([0; 4], |state| [state.computed as u64, state.at as u64, checksum(state.state), checksum(&state.tail)]);
    header.extend(of_state.iter().flat_map(|word| word.to_le_bytes()));
    header.extend(hash(&header).to_le_bytes());

    // The last block may still have what was truncated, which is nobody's business.
    let last =
        (!n.is_multiple_of(BLOCK)).then(|| clean(&layout, sequence.blocks(n).last().expect("a block"), n % BLOCK));
    let whole = n / BLOCK;
    let blocks = || sequence.blocks(n).take(whole).chain(last.as_deref());
    for (i, (tokens, block)) in sequence.tokens()[..n].chunks(BLOCK).zip(blocks()).enumerate() {
        header.extend(entry(i, tokens, checksum(block)));
    }

    let mut start = [0; 4];
    if File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && &start == b"GGUF" {
        let what = "is a model file: not replaced by a session, save it to another file";
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, what);
        return Err(Error::File { path: path.into(), source });
    }
    replace_file(path, |file| {
        let fail = |source| Error::File { path: path.into(), source };
        let mut file = BufWriter::new(file);
        header.resize(header.len().next_multiple_of(alignment), 0);
        file.write_all(&header).map_err(fail)?;
        blocks().try_for_each(|block| file.write_all(block)).map_err(fail)?;
        if let Some(state) = &state {
            file.write_all(state.state).and_then(|()| file.write_all(&state.tail)).map_err(fail)?;
        }
        file.flush().map_err(fail)?;
        sequence.check() // what was read from another file was that file
    })
}

/// A block with zeros from position `end` on.
fn clean(layout: &Layout, block: &[u8], end: usize) -> Vec<u8> {
    let mut block = block.to_vec();
    let mut padding = 0;
    for (_, heads, at) in layout.attention() {
        padding = at.end;
        let bytes = &mut block[at];
        for (head, slot) in (0..heads.n_kv_heads).flat_map(|head| (end..BLOCK).map(move |slot| (head, slot))) {
            zero_key(heads, bytes, head, slot);
            bytes[value_row(heads, head, slot)].fill(0);
        }
    }
    block[padding..].fill(0);
    block
}

/// The entry of a block in the table.
fn entry(index: usize, tokens: &[u32], checksum: u64) -> Vec<u8> {
    let padded = tokens.iter().copied().chain(std::iter::repeat(NO_TOKEN)).take(BLOCK);
    let mut entry: Vec<u8> = padded.flat_map(u32::to_le_bytes).collect();
    entry.extend(checksum.to_le_bytes());
    entry.extend(hash(&[&entry[..], &(index as u64).to_le_bytes()].concat()).to_le_bytes());
    entry
}

/// A saved session, open; its header is checked.
pub struct Saved {
    file: File,
    path: PathBuf,
    identity: Identity,
    n_tokens: usize,
    vocab_size: usize,
    shifted_from: Option<usize>,
    rng: Option<Rng>,
    state: Option<SavedState>,
    blocks_at: usize, // offset of the first
}

/// What recurrent layers remember, in a file.
struct SavedState {
    computed: usize,
    at: usize,
    checksums: [u64; 2], // of state and tail
}

impl Saved {
    /// Opens the file at `path`, and checks that what it holds is a session of `model` with blocks of this layout.
    ///
    /// # Errors
    /// [`Error::SavedSession`] if not, [`Error::File`] if it cannot be read.
    pub fn open(path: &Path, model: Of, layout: &Layout) -> Result<Self> {
        let fail = |source| Error::File { path: path.into(), source };
        let wrong = |what: String| Error::SavedSession { path: path.into(), what };
        let meta = std::fs::metadata(path).map_err(fail)?;
        if !meta.is_file() {
            return Err(wrong("not a file".into())); // opening a pipe would wait for a writer
        }
        let mut file = File::open(path).map_err(fail)?;
        let identity = Identity::of(&file.metadata().map_err(fail)?);

        // Read, not mapped: nobody can change it between a check and a use.
        let mut header = Vec::new();
        (&mut file).take(FIXED_LEN as u64).read_to_end(&mut header).map_err(fail)?;
        if !header.starts_with(MAGIC) {
            return Err(wrong("not a saved session".into()));
        }
        let cut_short = || wrong(format!("cut short at byte {}", header.len()));
        let version = u32::from_le_bytes(*header[8..].first_chunk().ok_or_else(cut_short)?);
        if version != VERSION {
            let what =
                format!("a saved session of version {version}: this llama_rs reads version {VERSION}; make it again");
            return Err(wrong(what));
        }
        let header: [u8; FIXED_LEN] = header[..].try_into().map_err(|_| cut_short())?;
        let u64_at = |at: usize| u64::from_le_bytes(*header[at..].first_chunk().expect("8 bytes"));
        let alignment = u32::from_le_bytes(*header[12..].first_chunk().expect("4 bytes")) as usize;
        let damaged = || wrong("a saved session with a damaged header".into());
        if hash(&header[..FIXED_LEN - 8]) != u64_at(FIXED_LEN - 8)
            || !alignment.is_power_of_two()
            || !ALIGNMENTS.contains(&alignment)
        {
            return Err(damaged());
        }

        // From here on it is what somebody saved; is it ours?
        let theirs: [u64; 3] = std::array::from_fn(|i| u64_at(16 + 8 * i));
        let ours = fingerprint(model.checkpoint)?;
        let name = model.checkpoint.path().display();
        if theirs[0] != ours[0] {
            let (theirs, ours) = (theirs[0], ours[0]);
            return Err(wrong(format!("the session of another model: of a file of {theirs} bytes, {name} has {ours}")));
        }
        if theirs != ours {
            return Err(wrong(format!("the session of another model than {name}")));
        }
        let kv_type = layout.kv_type();
        match u32::try_from(u64_at(48)).ok().and_then(DType::from_id) {
            Some(theirs) if theirs == kv_type => {}
            Some(theirs) => return Err(wrong(format!("a session with keys and values in {theirs}, not in {kv_type}"))),
            None => return Err(damaged()),
        }
        if u64_at(40) != settings(model.config) ^ model.adapters {
            return Err(wrong(format!("a session of {name} with other settings or other adapters (lora)")));
        }
        let n = usize::try_from(u64_at(56)).map_err(|_| damaged())?;
        let shifted_from = Some(u64_at(64)).filter(|&from| from != u64::MAX);
        if shifted_from.is_some_and(|from| from >= n as u64) {
            return Err(damaged());
        }
        let n_blocks = n.div_ceil(BLOCK);
        let blocks_at = n_blocks.checked_mul(ENTRY_LEN).and_then(|len| len.checked_add(FIXED_LEN));
        let blocks_at = blocks_at.and_then(|len| len.checked_next_multiple_of(alignment)).ok_or_else(damaged)?;
        let [computed, at, state, tail] = std::array::from_fn(|i| u64_at(120 + 8 * i));
        if computed > n as u64 || at > computed || computed - at >= CHUNK as u64 || !at.is_multiple_of(CHUNK as u64) {
            return Err(damaged());
        }
        let (computed, at) = (computed as usize, at as usize);
        let state = (computed > 0).then_some(SavedState { computed, at, checksums: [state, tail] });
        if state.is_some() && !layout.is_recurrent() {
            return Err(damaged());
        }
        let state_bytes = state.as_ref().map_or(0, |_| layout.state_bytes() + layout.tail_bytes());
        let len = n_blocks.checked_mul(layout.block_bytes()).and_then(|len| len.checked_add(blocks_at));
        let len = len.and_then(|len| len.checked_add(state_bytes)).ok_or_else(damaged)?;
        if len as u64 != identity.size {
            let size = identity.size;
            return Err(wrong(format!("a saved session cut short: {size} bytes, expected {len} for its {n} tokens")));
        }
        let rng = (u64_at(72) == 1).then(|| Rng::from_words(std::array::from_fn(|i| u64_at(80 + 8 * i))));
        let (path, vocab_size) = (path.to_path_buf(), model.config.vocab_size);
        let shifted_from = shifted_from.map(|from| from as usize);
        Ok(Self { file, path, identity, n_tokens: n, vocab_size, shifted_from, rng, state, blocks_at })
    }

    /// Number of its tokens.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// So many of them, from the first, are just as computing them again would have them.
    pub fn exact(&self) -> usize {
        self.shifted_from.unwrap_or(self.n_tokens)
    }

    /// Where the last answer left off.
    pub fn rng(&self) -> Option<Rng> {
        self.rng.clone()
    }

    /// Gives its first `n` tokens to an empty sequence, with what was computed of them.
    ///
    /// # Errors
    /// [`Error::SavedSession`] if the file is damaged, [`Error::File`], [`Error::Changed`].
    pub fn restore(mut self, sequence: &mut Sequence, n: usize) -> Result<()> {
        let n = n.min(self.n_tokens);
        let n_blocks = n.div_ceil(BLOCK);
        if n == 0 {
            return Ok(());
        }
        let fail = |source| Error::File { path: self.path.clone(), source };
        let mut table = Vec::new();
        (&mut self.file).take((n_blocks * ENTRY_LEN) as u64).read_to_end(&mut table).map_err(fail)?;
        let path: Arc<Path> = self.path.as_path().into();
        let (mut tokens, mut unverified) = (Vec::with_capacity(n), Vec::with_capacity(n_blocks));
        for (index, bytes) in table.chunks_exact(ENTRY_LEN).enumerate() {
            let (ids, rest) = bytes.split_at(4 * BLOCK);
            let ids: Vec<u32> = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
            let checksum = u64::from_le_bytes(*rest.first_chunk().expect("8 bytes"));
            let used = BLOCK.min(self.n_tokens - index * BLOCK);
            let (known, padding) = ids.split_at(used);
            if entry(index, &ids, checksum) != bytes
                || known.iter().any(|&id| id as usize >= self.vocab_size)
                || padding.iter().any(|&id| id != NO_TOKEN)
            {
                let what = format!("a damaged saved session: it does not say which token number {} is", index * BLOCK);
                return Err(Error::SavedSession { path: self.path, what });
            }
            tokens.extend_from_slice(known);
            unverified.push(Unverified { index, checksum, path: Arc::clone(&path) });
        }
        if unverified.len() != n_blocks {
            return Err(Error::SavedSession { path: self.path, what: "a saved session cut short".into() });
        }
        tokens.truncate(n);
        let layout = Arc::clone(sequence.layout());
        let bytes = layout.block_bytes();
        let mut end = self.blocks_at + self.n_tokens.div_ceil(BLOCK) * bytes;
        let mut part = |file: File, bytes: usize| {
            let memory = Memory::of_file(file, &self.path, self.identity, end, bytes)?;
            end += bytes;
            Ok::<_, Error>(Block::cut(memory, bytes).next().expect("one block"))
        };
        let state = match self.state.filter(|state| state.at <= n) {
            None => None,
            Some(SavedState { computed, at, checksums }) => {
                let state = part(self.file.try_clone().map_err(fail)?, layout.state_bytes())?;
                let tail = part(self.file.try_clone().map_err(fail)?, layout.tail_bytes())?;
                if [&state, &tail].map(|block| checksum(block.bytes())) != checksums {
                    state.check()?; // it may have changed just now, which says more
                    let what = "a damaged saved session: what recurrent layers remember is not what was saved";
                    return Err(Error::SavedSession { path: self.path, what: what.into() });
                }
                Some((computed.min(n), at, state, tail))
            }
        };
        let memory = Memory::of_file(self.file, &self.path, self.identity, self.blocks_at, n_blocks * bytes)?;
        let shifted_from = self.shifted_from.filter(|&from| from < n);
        sequence.restore(tokens, shifted_from, Block::cut(memory, bytes).collect(), unverified, state);
        Ok(())
    }
}

/// What tells the model from others, as it is written: see [`Checkpoint::fingerprint`].
fn fingerprint(checkpoint: &Checkpoint) -> Result<[u64; 3]> {
    let Fingerprint { size, header, weights } = checkpoint.fingerprint()?;
    Ok([size, header, weights])
}

/// A hash of all of a config that keys and values depend on.
fn settings(config: &Config) -> u64 {
    // All of it: a session is a help, and can be made again.
    hash(format!("{config:?}").as_bytes())
}
