//! Bad files: each malformation has one error that says what, where and which value; nothing panics.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use llama_rs::arch::Config;
use llama_rs::checkpoint::{MAX_ARRAY_DEPTH, Value as Parsed};
use llama_rs::formats;
use llama_rs::quant::DType;
use llama_rs::sampling::{Rng, Sampler, SamplingParams};
use llama_rs::threads::Interrupt;
use llama_rs::tokenizer::Tokenizer;
use llama_rs::weights::Weights;
use llama_rs::{Error, FormatError, Result};
use llama_rs::{Model, Session, SessionOptions};

use crate::gguf_builder::{self as build, Gguf, Tensor};

/// A file that is gone when the test is over.
pub struct TempFile(pub PathBuf);

impl TempFile {
    pub fn new(bytes: &[u8]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("llama_rs-{}-{n}.gguf", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens a file and looks at all that is in it, as far as it goes.
fn load(path: &Path) -> Result<()> {
    let checkpoint = formats::open(path)?;
    for (key, value) in checkpoint.metadata.iter() {
        assert!(checkpoint.metadata.get(key).is_some());
        if let Parsed::Array(array) = value {
            assert_eq!(array.iter().count(), array.len);
        }
    }
    for tensor in checkpoint.tensors() {
        assert!(checkpoint.tensor(tensor.name()).is_some());
        let view = &tensor.view;
        assert_eq!(view.row(view.n_rows() - 1).len(), view.row_bytes());
    }
    let model = Config::from_checkpoint(&checkpoint).and_then(|config| Weights::from_checkpoint(&checkpoint, &config));
    let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata).and_then(use_tokenizer);
    model.and(tokenizer)
}

/// Makes the tokenizer read all of its vocabulary.
fn use_tokenizer(tokenizer: Tokenizer) -> Result<()> {
    for (add_special, parse_special) in [(false, false), (true, true)] {
        let ids = tokenizer.encode("Hello, hell! <|endoftext|> é\u{1f980}\0", add_special, parse_special)?;
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&ids, false)?;
    }
    for id in 0..tokenizer.vocab_size() as u32 {
        tokenizer.token_bytes(id)?;
    }
    tokenizer.end_tokens()?;
    Ok(())
}

fn load_bytes(bytes: &[u8]) -> Result<()> {
    load(&TempFile::new(bytes).0)
}

fn one_line(e: &Error) -> String {
    let text = e.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
    text
}

/// The report about a file that is damaged.
#[track_caller]
fn format_error(bytes: &[u8]) -> FormatError {
    match load_bytes(bytes) {
        Err(e @ Error::Format(_)) => {
            one_line(&e);
            let Error::Format(e) = e else { unreachable!() };
            *e
        }
        other => panic!("expected a format error, got {other:?}"),
    }
}

/// The report about a file that is fine, but not for us.
#[track_caller]
fn unsupported(bytes: &[u8]) -> String {
    match load_bytes(bytes) {
        Err(e @ Error::Unsupported { .. }) => one_line(&e),
        other => panic!("expected an unsupported file, got {other:?}"),
    }
}

/// A llama with one thing changed.
fn llama(change: impl FnOnce(&mut Gguf)) -> Vec<u8> {
    let mut file = Gguf::llama();
    change(&mut file);
    file.bytes()
}

fn with_key(key: &str, value: build::Value) -> Vec<u8> {
    llama(|f| f.set(key, value))
}

/// Expects a report with these facts: (name, got, limit); an empty text matches anything.
#[track_caller]
fn expect(bytes: &[u8], what: &str, (name, got, limit): (&str, &str, &str)) -> FormatError {
    let e = format_error(bytes);
    let has = |fact: &Option<String>, part: &str| fact.as_deref().unwrap_or("").contains(part);
    let all = e.what.contains(what) && has(&e.name, name) && has(&e.got, got) && has(&e.limit, limit);
    assert!(all, "expected {what:?} ({name}) {got:?} {limit:?} in: {e}");
    e
}

#[test]
fn the_llama_of_these_tests_is_good() {
    load_bytes(&Gguf::llama().bytes()).unwrap();
    load_bytes(&llama(|f| f.version = 2)).unwrap();
    for alignment in [1usize, 8, 64, 4096] {
        let bytes = llama(|f| {
            f.alignment = alignment;
            f.set("general.alignment", build::u32(alignment as u32));
        });
        load_bytes(&bytes).unwrap();
    }
    let trailing = [Gguf::llama().bytes(), vec![7; 100]].concat();
    load_bytes(&trailing).unwrap();
    load_bytes(&llama(|f| f.tensors.reverse())).unwrap();
    let gap = llama(|f| {
        let hole = Tensor { name: "hole".into(), dims: vec![1], dtype: 0, offset: None, data: vec![0; 64] };
        f.tensors.insert(3, hole);
    });
    assert!(unsupported(&gap).contains("tensor hole"));
}

// Container: the start of the file.

#[test]
fn a_file_without_a_whole_header_is_refused() {
    expect(b"", "empty", ("", "", ""));
    expect(b"GG", "not a GGUF file", ("", "", ""));
    for n in 4..24 {
        let got = format!("{n} bytes");
        expect(&Gguf::llama().bytes()[..n], "shorter than a header", ("", &got, "at least 24"));
    }
}

#[test]
fn look_alikes_are_named() {
    let safetensors = [&32u64.to_le_bytes()[..], b"{\"__metadata__\":{}} ............"].concat();
    for (bytes, name) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:1"[..], "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf\n  <HTML>", "web page"),
        (b"<?xml version='1.0'?><Error>", "XML"),
        (b"{\"error\": \"not found\"}", "JSON"),
        (b"PK\x03\x04........", "zip"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x1f\x8b\x08\0\0\0", "gzip"),
        (b"\x28\xb5\x2f\xfd\0\0", "Zstandard"),
        (b"lmgg\0\0\0\0", "GGML"),
        (b"fmgg\x01\0\0\0", "GGMF"),
        (b"tjgg\x03\0\0\0", "GGJT"),
        (b"MZqFpD='\n", "llamafile"),
        (b"\x7fELF\x02\x01\x01", "Linux program"),
        (b"\0\0\0\0\0\0\0\0\0\0", "zeros"),
        (&safetensors, "safetensors"),
    ] {
        expect(bytes, name, ("", "", ""));
    }
    assert_eq!(format_error(b"something else").what, "not a GGUF file");
}

#[test]
fn versions_that_we_do_not_read_are_refused() {
    let version = |v| llama(|f| f.version = v);
    expect(&version(0), "version", ("", "0", "2 or 3"));
    assert!(unsupported(&version(1)).contains("version 1"));
    assert!(unsupported(&version(4)).contains("version 4"));
    assert!(unsupported(&version(3u32.swap_bytes())).contains("big-endian"));
}

#[test]
fn counts_that_the_file_has_no_room_for_are_refused() {
    for (n, got) in [(u64::MAX, "-1"), (1 << 63, "-9223372036854775808"), (1 << 40, "1099511627776"), (10_000, "10000")]
    {
        let e = expect(&llama(|f| f.n_tensors = Some(n)), "tensor count", ("", got, "at most"));
        assert_eq!(e.offset, Some(8));
        let e = expect(&llama(|f| f.n_kv = Some(n)), "metadata count", ("", got, "at most"));
        assert_eq!(e.offset, Some(16));
    }
    format_error(&llama(|f| f.n_kv = Some(f.kv.len() as u64 + 1)));
    format_error(&llama(|f| f.n_kv = Some(f.kv.len() as u64 - 1)));
    format_error(&llama(|f| f.n_tensors = Some(f.tensors.len() as u64 + 1)));
}

// Container: metadata.

#[test]
fn bad_keys_are_refused() {
    let key = |key: &[u8]| llama(|f| f.kv.push((key.to_vec(), build::u32(1))));
    expect(&key(b""), "metadata key", ("", "0", "1 to 65535"));
    load_bytes(&key(&[b'k'; 65_535])).unwrap();
    expect(&key(&[b'k'; 65_536]), "metadata key", ("", "65536", "1 to 65535"));
    expect(&key(b"bad\xff"), "not valid UTF-8", ("bad", "", ""));
    expect(&key(b"a\0b"), "zero byte", ("a\\0b", "", ""));
    expect(&key(b"llama.block_count"), "used twice", ("llama.block_count", "", "byte 77"));
    for n in [u64::MAX, 1 << 63, 1 << 50] {
        let bytes = [Gguf { n_kv: Some(1), ..Gguf::empty() }.header(), n.to_le_bytes().to_vec(), vec![1; 50]].concat();
        let e = expect(&bytes, "metadata key", ("", &(n as i64).to_string(), "at most 50"));
        assert_eq!(e.offset, Some(24));
    }
}

#[test]
fn bad_values_are_refused() {
    use build::{Value, array};
    expect(&with_key("k", Value(13, vec![0; 8])), "unknown value type", ("k", "13", "0 to 12"));
    expect(&with_key("k", Value(u32::MAX, vec![0; 8])), "unknown value type", ("k", "4294967295", ""));
    expect(&with_key("k", build::bool(2)), "bad bool", ("k", "2", "0 or 1"));
    expect(&with_key("k", array(7, 3, vec![0, 1, 9])), "bad bool", ("k", "9", "0 or 1"));
    expect(&with_key("k", Value(8, vec![0xff; 8])), "string value", ("k", "-1", ""));
    expect(&with_key("k", array(4, 1 << 61, vec![0; 8])), "array length", ("k", "2305843009213693952", ""));
    expect(&with_key("k", array(10, 1 << 61, vec![0; 8])), "array length", ("k", "", ""));
    expect(&with_key("k", array(8, 1 << 40, vec![0; 8])), "array length", ("k", "1099511627776", ""));
    expect(&with_key("k", array(8, 1, vec![0xff; 8])), "string of an array", ("k", "", ""));
    expect(&with_key("k", array(13, 1, vec![0; 8])), "unknown value type", ("k", "13", ""));
    expect(&with_key("k", array(9, 1 << 32, vec![0; 8])), "array length", ("k", "4294967296", ""));
}

#[test]
fn arrays_nest_up_to_a_limit() {
    let nested = |levels: usize| {
        let inner = build::array(4, 1, 7u32.to_le_bytes().to_vec());
        let value = (1..levels).fold(inner, |inner, _| build::array(9, 1, inner.1));
        with_key("k", value)
    };
    for levels in 1..=MAX_ARRAY_DEPTH {
        load_bytes(&nested(levels)).unwrap();
    }
    expect(&nested(MAX_ARRAY_DEPTH + 1), "nested too deep", ("k", "", "at most 4"));
    expect(&nested(10_000), "nested too deep", ("k", "", "at most 4"));
}

#[test]
fn bad_alignments_are_refused() {
    for n in [0, 3, 13, 33, 1 << 21, 1 << 31] {
        expect(
            &with_key("general.alignment", build::u32(n)),
            "bad alignment",
            ("general.alignment", &n.to_string(), ""),
        );
    }
    let e = expect(
        &with_key("general.alignment", build::string("32")),
        "value type",
        ("general.alignment", "a string", ""),
    );
    assert!(e.offset.is_some());
}

#[test]
fn a_part_of_a_split_model_is_refused() {
    let part = llama(|f| {
        f.set("split.no", build::u32(1));
        f.set("split.count", build::u32(3));
    });
    expect(&part, "part 2 of a model split in 3", ("", "", ""));
    expect(&with_key("split.count", build::string("3")), "value type", ("split.count", "", ""));
    load_bytes(&with_key("split.count", build::u32(1))).unwrap();
}

// Container: tensors.

#[test]
fn bad_tensor_names_are_refused() {
    let name = |name: &[u8]| llama(|f| f.tensors[4].name = name.to_vec());
    expect(&name(b""), "tensor name", ("", "0", "1 to 1024"));
    let longest = Tensor { name: vec![b'n'; 1024], dims: vec![1], dtype: 0, offset: None, data: vec![0; 4] };
    assert!(unsupported(&llama(|f| f.tensors.push(longest))).contains("nnn"));
    expect(&name(&[b'n'; 1025]), "tensor name", ("", "1025", "1 to 1024"));
    expect(&name(b"n\xc3"), "not valid UTF-8", ("n", "", ""));
    expect(&name(b"n\0"), "zero byte", ("n\\0", "", ""));
    let e = expect(&name(b"blk.0.attn_q.weight"), "used twice", ("blk.0.attn_q.weight", "", "byte"));
    assert!(e.offset.is_some());
}

#[test]
fn bad_shapes_are_refused() {
    let q = "blk.0.attn_q.weight";
    let dims = |dims: &[u64]| llama(|f| f.tensor(q).dims = dims.to_vec());
    expect(&dims(&[]), "number of dimensions", (q, "0", "1 to 4"));
    expect(&dims(&[32, 32, 1, 1, 1]), "number of dimensions", (q, "5", "1 to 4"));
    load_bytes(&dims(&[32, 32, 1, 1])).unwrap();
    expect(&dims(&[32, 0]), "bad dimension", (q, "0", "at least 1"));
    expect(&dims(&[32, u64::MAX]), "bad dimension", (q, "-1", "at least 1"));
    expect(&dims(&[1 << 40, 1 << 40]), "larger than any file", (q, "", ""));
    expect(&dims(&[(1 << 62) + 1]), "larger than any file", (q, "", ""));
    expect(&dims(&[32, 33]), "overlap", ("blk.0.attn_k.weight", "", q));
    expect(&dims(&[32, 1 << 50]), "overlap", ("blk.0.attn_k.weight", "", q));
    expect(&dims(&[32, 31]), "wrong shape", (q, "[32, 31]", "[32, 32]"));
    expect(&dims(&[1024]), "wrong shape", (q, "[1024]", "[32, 32]"));
    let bytes = llama(|f| {
        let q = f.tensor(q);
        (q.dtype, q.dims[0]) = (2, 33);
    });
    expect(&bytes, "whole number of blocks", (q, "33", "a multiple of 32 for Q4_0"));
}

#[test]
fn types_that_we_do_not_know_are_named() {
    let q = "blk.0.attn_q.weight";
    let dtype = |id| llama(|f| f.tensor(q).dtype = id);
    for (id, name) in [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (38, "IQ4_NL_8_8"), (40, "NVFP4")] {
        let text = unsupported(&dtype(id));
        assert!(text.contains(name) && text.contains(q), "{text}");
    }
    for id in [43, 1000, u32::MAX] {
        expect(&dtype(id), "unknown tensor type", (q, &id.to_string(), ""));
    }
    let integers = unsupported(&dtype(26));
    assert!(integers.contains("I32") && integers.contains("Q4_K"), "{integers}");
    let norm = unsupported(&llama(|f| f.tensor("output_norm.weight").dtype = 1));
    assert!(norm.contains("output_norm.weight") && norm.contains("F16"), "{norm}");
}

#[test]
fn bad_offsets_are_refused() {
    let q = "blk.0.attn_q.weight";
    let offset = |n| llama(|f| f.tensor(q).offset = Some(n));
    expect(&offset(33), "unaligned", (q, "33", "a multiple of 32"));
    expect(&offset(u64::MAX), "unaligned", (q, "-1", ""));
    expect(&offset(u64::MAX - 31), "past the end", (q, "", ""));
    expect(&offset(1 << 40), "past the end", (q, "", "a file of"));
    expect(&offset(0), "overlap", ("", "offset 0", "where"));
    expect(&offset(32), "overlap", (q, "offset 32", "where token_embd.weight ends"));
}

#[test]
fn a_truncated_download_says_how_much_is_there() {
    let bytes = Gguf::llama().bytes();
    let header = Gguf::llama().header().len();
    for n in [header, header + 1, bytes.len() / 2, bytes.len() - 1] {
        let percent = n * 100 / bytes.len();
        let e = format_error(&bytes[..n]);
        assert!(e.what.starts_with(&format!("the file has {n} of {} bytes ({percent} %)", bytes.len())), "{e}");
        assert!(e.what.contains("download is incomplete"), "{e}");
    }
    // Where the header itself is cut, nothing says how long the file should be.
    for n in 24..header {
        let e = format_error(&bytes[..n]);
        assert!(e.what.contains("is the download complete?") && e.offset.is_some(), "{e}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = std::env::temp_dir();
    let refused = |path: &Path, text: &str| {
        let e = load(path).unwrap_err();
        assert!(matches!(e, Error::File { .. }) && one_line(&e).contains(text), "{e}");
    };
    refused(&dir, "directory");
    refused(Path::new("/dev/zero"), "not a regular file");
    refused(Path::new("/nonexistent/model.gguf"), "No such file");

    let unreadable = TempFile::new(b"GGUF");
    std::fs::set_permissions(&unreadable.0, std::fs::Permissions::from_mode(0o000)).unwrap();
    // SAFETY: it only asks who we are. Root may read anything.
    if unsafe { libc::geteuid() } != 0 {
        refused(&unreadable.0, "ermission denied");
    }
    let looped = TempFile::new(b"");
    std::fs::remove_file(&looped.0).unwrap();
    symlink(&looped.0, &looped.0).unwrap();
    refused(&looped.0, "symbolic link");

    let fifo = TempFile::new(b"");
    std::fs::remove_file(&fifo.0).unwrap();
    let path = std::ffi::CString::new(fifo.0.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: `path` is a C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    refused(&fifo.0, "not a regular file");
}

#[test]
fn many_keys_and_tensors_take_no_quadratic_time() {
    let mut file = Gguf::llama();
    for i in 0..200_000 {
        file.kv.push((format!("key.{i}").into(), build::u8(1)));
    }
    let start = std::time::Instant::now();
    load_bytes(&file.bytes()).unwrap();
    for i in 0..200_000 {
        let name = format!("tensor.{i}").into();
        file.tensors.push(Tensor { name, dims: vec![1], dtype: 24, offset: None, data: vec![0] });
    }
    unsupported(&file.bytes());
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

// Hyper-parameters.

#[test]
fn architectures_that_we_do_not_run_are_named() {
    expect(&llama(|f| f.unset("general.architecture")), "missing key", ("general.architecture", "", ""));
    expect(
        &with_key("general.architecture", build::u32(1)),
        "value type",
        ("general.architecture", "the integer 1", ""),
    );
    expect(&with_key("general.architecture", build::string(b"\xff")), "UTF-8", ("general.architecture", "", ""));
    for name in ["gemma3", "", "LLAMA"] {
        assert!(unsupported(&with_key("general.architecture", build::string(name))).contains("architecture"));
    }
}

#[test]
fn keys_that_have_to_be_there_are_named() {
    for key in [
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        expect(&llama(|f| f.unset(key)), "missing key", (key, "", ""));
        expect(&with_key(key, build::string("7")), "wrong value type", (key, "a string", ""));
        expect(&with_key(key, build::i32(-7)), "", (key, "-7", ""));
    }
}

#[test]
fn sizes_out_of_range_are_refused() {
    let max_dim = llama_rs::arch::MAX_DIM as u32;
    for (key, values) in [
        ("llama.block_count", &[0, 1_000_000_000][..]),
        ("llama.context_length", &[0]),
        ("llama.embedding_length", &[0, max_dim + 1, u32::MAX]),
        ("llama.feed_forward_length", &[0, max_dim + 1, u32::MAX]),
        ("llama.attention.head_count", &[0, max_dim + 1, u32::MAX]),
        ("llama.attention.head_count_kv", &[0, 3, 8, u32::MAX]),
        ("llama.attention.key_length", &[0, max_dim, u32::MAX]),
        ("llama.rope.dimension_count", &[0, 7, 10, u32::MAX]),
    ] {
        for &n in values {
            let e = expect(&with_key(key, build::u32(n)), "", (key, &n.to_string(), ""));
            assert!(e.offset.is_some() && e.limit.is_some(), "{e}");
        }
    }
    let three_heads = llama(|f| {
        f.set("llama.attention.head_count", build::u32(3));
        f.unset("llama.attention.head_count_kv");
    });
    expect(
        &three_heads,
        "number of heads",
        ("llama.attention.head_count", "3", "a divisor of the embedding length 32"),
    );
    // What is in range, but is not what the tensors say.
    for (key, n) in [
        ("llama.embedding_length", max_dim),
        ("llama.feed_forward_length", 65),
        ("llama.feed_forward_length", max_dim),
        ("llama.attention.head_count_kv", 1),
        ("llama.attention.key_length", 16),
    ] {
        expect(&with_key(key, build::u32(n)), "wrong shape", ("weight", "[", "["));
    }
    assert!(unsupported(&with_key("llama.attention.value_length", build::u32(4))).contains("length 4"));
}

#[test]
fn a_context_length_may_be_any_number() {
    // A session allocates by request, not by what the file says.
    load_bytes(&with_key("llama.context_length", build::u64(1 << 40))).unwrap();
    load_bytes(&with_key("llama.context_length", build::u64(i64::MAX as u64))).unwrap();
}

#[test]
fn sizes_by_layer_have_to_agree() {
    let array =
        |values: &[u32]| build::array(4, values.len() as u64, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    let key = "llama.attention.head_count";
    load_bytes(&with_key(key, array(&[4]))).unwrap();
    expect(&with_key(key, array(&[])), "one value per layer", (key, "0", "1 value"));
    expect(&with_key(key, array(&[4, 4])), "one value per layer", (key, "2", "1 value"));
    expect(&with_key(key, array(&[0])), "", (key, "0", ""));
    expect(&with_key(key, array(&[u32::MAX])), "", (key, "4294967295", ""));
    expect(&with_key(key, build::strings(["4"])), "wrong value type", (key, "String", ""));
}

#[test]
fn floats_that_make_no_sense_are_refused() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for (key, values) in [
        ("llama.attention.layer_norm_rms_epsilon", &[0.0, -1e-5, 1.0, nan, inf][..]),
        ("llama.rope.freq_base", &[0.0, -10000.0, 0.5, nan, inf]),
        ("llama.rope.scaling.factor", &[0.0, -2.0, nan, inf]),
        ("llama.rope.scale_linear", &[0.0, nan]),
    ] {
        for &x in values {
            expect(&with_key(key, build::f32(x)), "bad value", (key, &x.to_string(), ""));
        }
    }
}

#[test]
fn variants_that_would_be_run_wrongly_are_refused() {
    for (key, value, says) in [
        ("llama.rope.scaling.type", build::string("yarn"), "rope scaling yarn"),
        ("llama.rope.scaling.attn_factor", build::f32(1.2), "attn_factor"),
        ("llama.expert_count", build::u32(8), "8 experts"),
        ("llama.attention.causal", build::bool(0), "causal"),
        ("llama.attention.sliding_window", build::u32(16), "sliding-window"),
    ] {
        let text = unsupported(&with_key(key, value));
        assert!(text.contains(says), "{text}");
    }
    let bias = Tensor { name: "blk.0.attn_q.bias".into(), dims: vec![32], dtype: 0, offset: None, data: vec![0; 128] };
    assert!(unsupported(&llama(|f| f.tensors.push(bias))).contains("blk.0.attn_q.bias"));
}

#[test]
fn a_missing_tensor_is_named() {
    let names: Vec<_> = Gguf::llama().tensors.into_iter().map(|t| String::from_utf8(t.name).unwrap()).collect();
    assert_eq!(names.len(), 11);
    for name in names {
        let bytes = llama(|f| f.tensors.retain(|t| t.name != name.as_bytes()));
        expect(&bytes, "missing tensor", (&name, "", ""));
    }
}

#[test]
fn key_vocabulary_and_embedding_agree_about_the_number_of_tokens() {
    let key = "llama.vocab_size";
    expect(&with_key(key, build::u32(261)), "not the length of the vocabulary", (key, "261", "260"));
    expect(&with_key("tokenizer.ggml.tokens", build::strings(["a"])), "vocabulary", (key, "260", "1,"));
    let without_key = llama(|f| {
        f.unset(key);
        f.set("tokenizer.ggml.tokens", build::strings(["a"]));
    });
    expect(&without_key, "wrong shape", ("token_embd.weight", "[32, 260]", "[32, 1]"));
    expect(&with_key("tokenizer.ggml.tokens", build::u32(3)), "value type", ("tokenizer.ggml.tokens", "", ""));
    let neither = llama(|f| {
        f.unset(key);
        f.unset("tokenizer.ggml.tokens");
    });
    Model::open(&TempFile::new(&neither).0).unwrap(); // it can run, from token ids
    expect(&neither, "missing key", ("tokenizer.ggml.tokens", "", ""));
}

// Vocabulary.

fn spm(change: impl FnOnce(&mut Gguf)) -> Vec<u8> {
    let mut file = Gguf::llama_with_spm();
    change(&mut file);
    file.bytes()
}

/// The texts of the tokens with some replaced.
fn tokens(file: &Gguf, change: &[(usize, &[u8])]) -> build::Value {
    let file = TempFile::new(&file.bytes());
    let checkpoint = formats::open(&file.0).unwrap();
    let tokens = checkpoint.metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let mut tokens: Vec<Vec<u8>> = tokens.iter().map(<[u8]>::to_vec).collect();
    change.iter().for_each(|&(id, text)| tokens[id] = text.to_vec());
    build::strings(tokens)
}

#[test]
fn vocabularies_that_we_do_not_know_are_named() {
    load_bytes(&spm(|_| {})).unwrap();
    expect(&llama(|f| f.unset("tokenizer.ggml.model")), "missing key", ("tokenizer.ggml.model", "", ""));
    assert!(unsupported(&with_key("tokenizer.ggml.model", build::string("rwkv"))).contains("rwkv"));
    assert!(unsupported(&with_key("tokenizer.ggml.pre", build::string("poetry"))).contains("poetry"));
}

#[test]
fn arrays_beside_the_tokens_have_their_length_and_type() {
    let floats = |n: u64| build::array(6, n, vec![0; 4 * n as usize]);
    let integers = |n: u64| build::array(5, n, [1, 0, 0, 0].repeat(n as usize));
    for n in [0, 1, 259, 261] {
        let got = n.to_string();
        for (key, value) in [("tokenizer.ggml.scores", floats(n)), ("tokenizer.ggml.token_type", integers(n))] {
            expect(&spm(|f| f.set(key, value)), "one element for each token", (key, &got, "260"));
        }
    }
    expect(
        &spm(|f| f.set("tokenizer.ggml.scores", integers(260))),
        "value type",
        ("tokenizer.ggml.scores", "I32", "F32"),
    );
    expect(&spm(|f| f.set("tokenizer.ggml.token_type", floats(260))), "value type", ("token_type", "F32", "I32"));
    expect(&spm(|f| f.set("tokenizer.ggml.tokens", integers(260))), "value type", ("tokenizer.ggml.tokens", "I32", ""));
    expect(&llama(|f| f.set("tokenizer.ggml.merges", integers(3))), "value type", ("tokenizer.ggml.merges", "I32", ""));
    expect(&llama(|f| f.unset("tokenizer.ggml.merges")), "missing key", ("tokenizer.ggml.merges", "", ""));
}

#[test]
fn what_no_text_comes_to_makes_no_file_bad() {
    for name in ["bos", "eos", "unknown", "eot", "eom"] {
        for id in [build::u32(260), build::i32(-1), build::u64(1 << 32)] {
            load_bytes(&with_key(&format!("tokenizer.ggml.{name}_token_id"), id)).unwrap();
        }
    }
    for odd in [&b""[..], b"\xff", b"a b", b"he"] {
        load_bytes(&llama(|f| f.set("tokenizer.ggml.tokens", tokens(f, &[(97, odd)])))).unwrap();
    }
    for (id, odd) in [(259, &b""[..]), (259, b"\xff"), (50, b"<0x-1>"), (50, b"<0xGG>"), (50, b"<0x00>"), (50, b"x")] {
        load_bytes(&spm(|f| f.set("tokenizer.ggml.tokens", tokens(f, &[(id, odd)])))).unwrap();
    }
    for merges in [&["he"][..], &["h  e"], &[" "], &[""], &["x y"], &["h e", "h e"], &["h e l"], &["\u{fffd} e"]] {
        load_bytes(&llama(|f| f.set("tokenizer.ggml.merges", build::strings(merges)))).unwrap();
    }
}

// Anything at all.

/// Damages up to three of the first `range` bytes.
fn flip(bytes: &mut [u8], range: usize, rng: &mut Rng) {
    for _ in 0..1 + rng.next_u64() % 3 {
        let at = rng.next_u64() as usize % range;
        bytes[at] = match rng.next_u64() % 4 {
            0 => bytes[at] ^ 1 << (rng.next_u64() % 8),
            1 => 0,
            2 => 0xff,
            _ => rng.next_u64() as u8,
        };
    }
}

#[test]
fn no_flipped_byte_makes_it_panic() {
    let (bpe, bpe_header) = (Gguf::llama().bytes(), Gguf::llama().header().len());
    let (spm, spm_header) = (Gguf::llama_with_spm().bytes(), Gguf::llama_with_spm().header().len());
    let (mut rng, mut refused) = (Rng::new(1), 0);
    for i in 0..4000 {
        let (good, header) = if i % 3 == 0 { (&spm, spm_header) } else { (&bpe, bpe_header) };
        let mut bytes = good.clone();
        flip(&mut bytes, header, &mut rng);
        let file = TempFile::new(&bytes); // a new one each time: ext4 is slow to write over an old one
        match load(&file.0) {
            Ok(()) if i % 10 == 0 => drop(run(&file.0)), // a session may still be refused, for a lack of memory
            Ok(()) => {}
            Err(e) => {
                one_line(&e);
                refused += 1;
            }
        }
    }
    assert!(refused > 1000, "only {refused} of 4000 were refused: are the flips where they matter?");
}

#[test]
fn no_truncation_is_taken_for_a_whole_file() {
    let good = Gguf::llama().bytes();
    let header = Gguf::llama().header().len();
    let mut rng = Rng::new(2);
    let in_data = (0..200).map(|_| header + rng.next_u64() as usize % (good.len() - header));
    for n in (0..header).step_by(3).chain(in_data) {
        one_line(&load_bytes(&good[..n]).unwrap_err());
    }
}

/// Runs a model for a few tokens; what it says is as may be.
fn run(path: &Path) -> Result<()> {
    let model = Arc::new(Model::open(path)?);
    let mut session = Session::new(&model, SessionOptions { context_length: 8, threads: 1, ..Default::default() })?;
    for params in [SamplingParams::greedy(), SamplingParams { seed: Some(1), ..Default::default() }] {
        let mut sampler = Sampler::new(params)?;
        session.truncate(0)?;
        let mut tokens = vec![1, 2, 3];
        while session.position() + tokens.len() <= session.context_length() {
            let logits = session.forward(&tokens, &Interrupt::never())?;
            let Some(token) = sampler.sample(logits, &tokens) else { break };
            assert!((token as usize) < model.config().vocab_size);
            tokens = vec![token];
        }
    }
    Ok(())
}

#[test]
fn any_bytes_can_be_weights() {
    for &dtype in DType::ALL.iter().filter(|dtype| dtype.is_supported()) {
        let file = TempFile::new(&Gguf::llama_of(dtype).bytes());
        run(&file.0).unwrap_or_else(|e| panic!("{dtype}: {e}"));
    }
    let mut floats = Gguf::llama();
    for (i, x) in
        [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 2.0].into_iter().enumerate()
    {
        for tensor in &mut floats.tensors {
            tensor.data[4 * i..4 * i + 4].copy_from_slice(&x.to_le_bytes());
            let file = TempFile::new(&llama_file(tensor));
            run(&file.0).unwrap();
        }
    }
}

/// The llama of these tests with one tensor replaced.
fn llama_file(tensor: &Tensor) -> Vec<u8> {
    llama(|f| f.tensors.iter_mut().find(|t| t.name == tensor.name).unwrap().data.clone_from(&tensor.data))
}
