//! Sessions in files.
//!
//! What is in memory is in the file: a region for the keys and one for the values of every head of every layer, see
//! [`KvCache`], so that a session comes back by mapping them. Numbers are little-endian.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `llama_rs` |
//! | 8 | 4 | version of the format |
//! | 12 | 4 | alignment of the regions: a page, where the file was written |
//! | 16 | 24 | the model: bytes of its file, hash of its header, hash of a sample of its weights |
//! | 40 | 32 | what the cache depends on: `n_layers, n_kv_heads, head_dim`, type, `rope_dim, rope_theta, rope_scale`, style |
//! | 72 | 8 | number of tokens, `n` |
//! | 80 | 8 | the first token that was shifted, or all ones |
//! | 88 | 48 | 1 if there are random numbers, their seed, their state |
//! | 136 | 4 n | the tokens |
//! | | 8 | hash of all of the above |
//! | aligned | | the regions `(n_layers, [k, v], n_kv_heads)`, each `(n, head_dim)` and zeros up to the alignment |
//!
//! All but the regions is checked before anything is used. The regions are numbers, whatever their bits are.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::kv_cache::KvCache;
use super::{Config, Model, RopeStyle};
use crate::error::{Error, Result};
use crate::formats::gguf::hash;
use crate::mapping::{Identity, guarded, page_size, replace_file};
use crate::quant::DType;
use crate::sampling::Rng;

const MAGIC: &[u8; 8] = b"llama_rs";
/// Of the format. Files of another version are refused: they can be made again.
const VERSION: u32 = 1;
const FIXED_LEN: usize = 136;
/// Which of the settings is the type of keys and values, as GGUF numbers types.
const KV_TYPE: usize = 3;
/// Pages of all systems that we know of.
const ALIGNMENTS: std::ops::RangeInclusive<usize> = 1 << 12..=1 << 16;

/// What of a session is saved besides the cache.
pub(super) struct State<'a> {
    pub tokens: &'a [u32],
    pub shifted_from: Option<usize>,
    pub rng: Option<&'a Rng>,
}

/// Saves the cache of `state.tokens`, its first positions.
pub(super) fn write(path: &Path, model: &Model, cache: &KvCache, state: State) -> Result<()> {
    let State { tokens, shifted_from, rng } = state;
    let _guarded = guarded();
    let alignment = page_size();
    let mut header = Vec::with_capacity(FIXED_LEN + 4 * tokens.len() + 8);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((alignment as u32).to_le_bytes());
    header.extend(fingerprint(model)?.iter().flat_map(|word| word.to_le_bytes()));
    header.extend(settings(model.config(), cache.dtype()).iter().flat_map(|word| word.to_le_bytes()));
    header.extend((tokens.len() as u64).to_le_bytes());
    header.extend(shifted_from.map_or(u64::MAX, |from| from as u64).to_le_bytes());
    header.extend(u64::from(rng.is_some()).to_le_bytes());
    header.extend(rng.map_or([0; 5], Rng::words).iter().flat_map(|word| word.to_le_bytes()));
    header.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    header.extend(hash(&header).to_le_bytes());

    replace_file(path, |file| {
        let fail = |source| Error::File { path: path.into(), source };
        let mut file = BufWriter::new(file);
        let zeros = vec![0; alignment];
        let mut put = |bytes: &[u8]| {
            file.write_all(bytes)?;
            file.write_all(&zeros[..bytes.len().next_multiple_of(alignment) - bytes.len()])
        };
        put(&header).map_err(fail)?;
        cache.regions(tokens.len()).try_for_each(&mut put).map_err(fail)?;
        file.flush().map_err(fail)?;
        cache.check() // what was read from another file was that file
    })
}

/// A saved session, open and checked.
pub(super) struct Saved {
    file: File,
    path: PathBuf,
    identity: Identity,
    tokens: Vec<u32>,
    shifted_from: Option<usize>,
    rng: Option<Rng>,
    first_region: usize, // its offset
    region: usize,       // bytes from one to the next
}

impl Saved {
    /// Opens the file at `path`, and checks that what it holds is a session of `model`.
    pub fn open(path: &Path, model: &Model, kv_type: DType) -> Result<Self> {
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
        let mut read_to = |header: &mut Vec<u8>, len: usize| {
            (&mut file).take((len - header.len()) as u64).read_to_end(header).map_err(fail)?;
            if header.len() < len { Err(wrong(format!("cut short at byte {}", header.len()))) } else { Ok(()) }
        };
        read_to(&mut header, MAGIC.len()).ok();
        if header != MAGIC {
            return Err(wrong("not a saved session".into()));
        }
        read_to(&mut header, FIXED_LEN)?;
        let u32_at = |header: &[u8], at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |header: &[u8], at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let version = u32_at(&header, 8);
        if version != VERSION {
            return Err(wrong(format!("a saved session of version {version}: this llama_rs reads version {VERSION}")));
        }
        let alignment = u32_at(&header, 12) as usize;
        let damaged = || wrong("a saved session with a damaged header".into());
        if !alignment.is_power_of_two() || !ALIGNMENTS.contains(&alignment) {
            return Err(damaged());
        }
        let n = usize::try_from(u64_at(&header, 72)).map_err(|_| damaged())?;
        let header_len = n.checked_mul(4).and_then(|len| len.checked_add(FIXED_LEN + 8)).ok_or_else(damaged)?;
        if header_len as u64 > identity.size {
            return Err(wrong(format!("cut short: {n} tokens do not fit in {} bytes", identity.size)));
        }
        read_to(&mut header, header_len)?;
        if hash(&header[..header_len - 8]) != u64_at(&header, header_len - 8) {
            return Err(damaged());
        }

        // From here on it is what somebody saved; is it ours?
        let words = |at: usize| std::array::from_fn::<_, 3, _>(|i| u64_at(&header, at + 8 * i));
        let (theirs, ours) = (words(16), fingerprint(model)?);
        let name = model.checkpoint().mapping().path().display();
        if theirs != ours {
            let what = match theirs[0] == ours[0] {
                true => format!("the session of another model than {name}"),
                false => {
                    format!("the session of another model: of a file of {} bytes, {name} has {}", theirs[0], ours[0])
                }
            };
            return Err(wrong(what));
        }
        let config = model.config();
        let theirs = std::array::from_fn(|i| u32_at(&header, 40 + 4 * i));
        let ours = settings(config, kv_type);
        if let Some(other) = DType::from_id(theirs[KV_TYPE]).filter(|&other| other != kv_type) {
            return Err(wrong(format!("a session with keys and values in {other}, not in {kv_type}")));
        }
        if theirs != ours {
            return Err(wrong(format!("a session of {name} with other settings")));
        }
        let (tokens, _) = header[FIXED_LEN..header_len - 8].as_chunks::<4>();
        let tokens: Vec<u32> = tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let shifted_from = Some(u64_at(&header, 80)).filter(|&from| from != u64::MAX);
        if tokens.iter().any(|&token| token as usize >= config.vocab_size)
            || shifted_from.is_some_and(|from| from >= n as u64)
        {
            return Err(damaged());
        }

        let first_region = header_len.next_multiple_of(alignment);
        let expected = || {
            let region = n.checked_mul(kv_type.row_bytes(config.head_dim)?)?.checked_next_multiple_of(alignment)?;
            let regions = region.checked_mul(2 * config.n_layers * config.n_kv_heads)?;
            Some((region, regions.checked_add(first_region)? as u64))
        };
        let (region, len) = expected().ok_or_else(damaged)?;
        if len != identity.size {
            let size = identity.size;
            return Err(wrong(format!("a saved session cut short: {size} bytes, expected {len} for its {n} tokens")));
        }
        let rng =
            (u64_at(&header, 88) == 1).then(|| Rng::from_words(std::array::from_fn(|i| u64_at(&header, 96 + 8 * i))));
        let shifted_from = shifted_from.map(|from| from as usize);
        Ok(Self { file, path: path.into(), identity, tokens, shifted_from, rng, first_region, region })
    }

    /// The tokens in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// From here on the cache knows of tokens that were discarded.
    pub fn shifted_from(&self) -> Option<usize> {
        self.shifted_from
    }

    /// Where the last answer left off.
    pub fn rng(&self) -> Option<Rng> {
        self.rng.clone()
    }

    /// Lays the first `n` positions over an empty cache; gives it with their tokens.
    pub fn lay(mut self, cache: KvCache, n: usize) -> Result<(KvCache, Vec<u32>)> {
        self.tokens.truncate(n);
        let offsets = (self.first_region..).step_by(self.region.max(1));
        let cache = cache.lay(self.file, &self.path, self.identity, offsets, self.tokens.len())?;
        Ok((cache, self.tokens))
    }
}

/// What tells a model from others: bytes of its file, its header, and a sample of its weights, for models that were
/// trained on have the same header. A copy has the same.
fn fingerprint(model: &Model) -> Result<[u64; 3]> {
    const SAMPLES: usize = 64;
    const SAMPLE_LEN: usize = 64;
    let _guarded = guarded();
    let checkpoint = model.checkpoint();
    let header = checkpoint.header_hash()?;
    let mapping = checkpoint.mapping();
    let bytes = mapping.as_slice();
    let start = checkpoint.tensors().iter().map(|t| t.view.bytes().offset()).min().unwrap_or(bytes.len());
    let weights = &bytes[start..];
    let spots = (0..SAMPLES).map(|i| weights.len() / SAMPLES * i);
    let sample: Vec<u8> = spots.flat_map(|at| &weights[at..(at + SAMPLE_LEN).min(weights.len())]).copied().collect();
    mapping.check()?;
    Ok([bytes.len() as u64, header, hash(&sample)])
}

/// All of a config that keys and values depend on, and their layout.
fn settings(config: &Config, kv_type: DType) -> [u32; 8] {
    let &Config { n_layers, n_kv_heads, head_dim, rope_dim, rope_theta, rope_scale, rope, .. } = config;
    let rope = match rope {
        RopeStyle::Interleaved => 0,
    };
    let [n_layers, n_kv_heads, head_dim, rope_dim] = [n_layers, n_kv_heads, head_dim, rope_dim].map(|n| n as u32);
    [n_layers, n_kv_heads, head_dim, kv_type.id(), rope_dim, rope_theta.to_bits(), rope_scale.to_bits(), rope]
}
