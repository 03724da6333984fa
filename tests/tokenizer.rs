//! The tokenizer on vocabularies made by hand: its rules one by one, and every way a vocabulary can be bad.

use std::thread;

use llama_rs::internals::formats;
use llama_rs::internals::sampling::Rng;
use llama_rs::internals::threads::Interrupt;
use llama_rs::internals::tokenizer::Tokenizer;
use llama_rs::internals::tokenizer::huggingface::{Entry, entries};
use llama_rs::{Error, Result};

use crate::bad_gguf::TempFile;
use crate::gguf_builder::{self as build, Gguf, Value};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";

fn types(types: &[i32]) -> Value {
    build::array(5, types.len() as u64, types.iter().flat_map(|t| t.to_le_bytes()).collect())
}

fn scores(scores: &[f32]) -> Value {
    build::array(6, scores.len() as u64, scores.iter().flat_map(|s| s.to_le_bytes()).collect())
}

/// A byte-level vocabulary: 256 bytes, `<|endoftext|>` (256), `he`, `ll`, `hell`.
fn bpe() -> Gguf {
    let mut file = Gguf::llama();
    file.tensors.clear();
    file
}

/// A SentencePiece vocabulary: `<unk> <s> </s>`, 256 bytes (from 3), and from 259 `▁ a b ▁a ab`.
fn spm() -> Gguf {
    let mut file = Gguf::empty();
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let control = ["<unk>", "<s>", "</s>"];
    let text = ["▁", "a", "b", "▁a", "ab"];
    file.set("tokenizer.ggml.model", build::string("llama"));
    file.set(TOKENS, build::strings(control.into_iter().chain(bytes.iter().map(String::as_str)).chain(text)));
    file.set(TYPES, types(&[&[2, 3, 3][..], &[6; 256], &[1; 5]].concat()));
    file.set(SCORES, scores(&[&[0.0; 259][..], &[-9.0, -9.0, -9.0, -2.0, -1.0]].concat()));
    file.set("tokenizer.ggml.bos_token_id", build::u32(1));
    file.set("tokenizer.ggml.eos_token_id", build::u32(2));
    file.set("tokenizer.ggml.unknown_token_id", build::u32(0));
    file
}

/// The tokens of [`spm`] for Unigram: `ab` is more likely than `a` and `b`.
fn unigram() -> Gguf {
    let mut file = spm();
    file.set("tokenizer.ggml.model", build::string("t5"));
    file
}

/// The tokens of [`spm`] for Gemma 4, merged by rank.
fn gemma4() -> Gguf {
    let mut file = spm();
    file.set("tokenizer.ggml.model", build::string("gemma4"));
    file.set(MERGES, build::strings(["a b", "▁ a"]));
    file.unset(SCORES);
    file
}

/// A WordPiece vocabulary: `[PAD] [UNK] [CLS] [SEP]`, and from 4 `▁a ▁ab b c ▁. ▁日`.
fn wordpiece() -> Gguf {
    let mut file = Gguf::empty();
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁a", "▁ab", "b", "c", "▁.", "▁日"];
    file.set("tokenizer.ggml.model", build::string("bert"));
    file.set(TOKENS, build::strings(tokens));
    file.set(TYPES, types(&[&[3, 2, 3, 3][..], &[1; 6]].concat()));
    file.set("tokenizer.ggml.unknown_token_id", build::u32(1));
    file.set("tokenizer.ggml.cls_token_id", build::u32(2));
    file.set("tokenizer.ggml.seperator_token_id", build::u32(3));
    file
}

fn every_kind() -> [Gguf; 5] {
    [bpe(), spm(), unigram(), gemma4(), wordpiece()]
}

fn open(file: &Gguf) -> Result<Tokenizer> {
    // The map outlives the name of the file.
    Tokenizer::from_metadata(&formats::open(&TempFile::new(&file.bytes()).0)?.metadata)
}

fn encode(file: &Gguf, text: &str) -> Result<Vec<u32>> {
    open(file)?.encode(text, false, false)
}

#[test]
fn opening_does_not_look_at_the_tokens() {
    for mut file in every_kind() {
        let n = open(&file).unwrap().vocab_size();
        file.set(TOKENS, build::strings(vec![[0xff]; n]));
        open(&file).unwrap();
    }
}

#[test]
fn merges_go_by_rank() {
    assert_eq!(encode(&bpe(), "hello").unwrap(), [259, u32::from(b'o')]);
    let mut file = bpe();
    file.set(MERGES, build::strings(["he ll", "l l"])); // `he` cannot be made
    assert_eq!(encode(&file, "hell").unwrap(), [u32::from(b'h'), u32::from(b'e'), 258]);
}

#[test]
fn a_word_that_is_a_token_needs_no_merges_for_llama_3() {
    let mut file = bpe();
    file.set(MERGES, build::strings(["l l"]));
    file.set("tokenizer.ggml.pre", build::string("llama-bpe"));
    assert_eq!(encode(&file, "hell").unwrap(), [259]);
    assert_eq!(open(&file).unwrap().encode("hell", true, false).unwrap(), [256, 259]);
}

#[test]
fn the_first_of_two_equal_tokens_is_used() {
    let mut file = bpe();
    let tokens = || (0..260).map(|id| format!("{id}")).collect::<Vec<_>>();
    let mut tokens = tokens();
    for (id, token) in [(7, "h"), (9, "e"), (20, "he"), (21, "he"), (22, "h")] {
        tokens[id] = token.into();
    }
    file.set(TOKENS, build::strings(tokens));
    file.set(MERGES, build::strings(["h e"]));
    assert_eq!(encode(&file, "hehh").unwrap(), [20, 7, 7]);
}

#[test]
fn scores_lead_the_merges_of_sentencepiece() {
    let file = spm();
    assert_eq!(encode(&file, "ab").unwrap(), [259, 263]); // `ab` before `▁a`
    assert_eq!(encode(&file, "a").unwrap(), [262]);
    assert_eq!(encode(&file, "").unwrap(), [0u32; 0]);
    assert_eq!(encode(&file, "é").unwrap(), [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(open(&file).unwrap().encode("a", true, false).unwrap(), [1, 262]);
}

#[test]
fn words_are_made_of_the_longest_pieces_from_left_to_right() {
    let file = wordpiece();
    let encoded = |text: &str| open(&file).unwrap().encode(text, true, true).unwrap();
    assert_eq!(encoded("Ábc a."), [2, 5, 7, 4, 8, 3]);
    assert_eq!(encoded("日a日 abd x"), [2, 9, 4, 9, 1, 1, 3]);
    assert_eq!(encoded("a[SEP]\0\tb"), [2, 4, 3, 1, 3]); // `b` begins no word
    assert_eq!(encoded(&format!("ab{}", "c".repeat(98))).len(), 2 + 99);
    assert_eq!(encoded(&format!("ab{}", "c".repeat(99))), [2, 1, 3]); // of longer words nothing is known
    assert_eq!(encoded("a▁b"), [2, 1, 3]);
    assert_eq!(open(&file).unwrap().decode(&[2, 5, 7, 4, 8, 3], true).unwrap(), "abc a.");
    let lower = with(wordpiece(), "tokenizer.ggml.normalizer.lowercase", build::bool(0));
    assert_eq!(encode(&lower, "A a").unwrap(), [1, 4]);
    let sep = with(wordpiece(), "tokenizer.ggml.add_sep_token", build::bool(0));
    assert_eq!(open(&sep).unwrap().encode("a", true, true).unwrap(), [2, 4]);
}

#[test]
fn unigram_takes_the_likeliest_way() {
    let file = unigram();
    assert_eq!(encode(&file, "ab").unwrap(), [259, 263]); // -10 for `▁` and `ab`, -11 for `▁a` and `b`
    let mut cheap = [0.0; 264];
    cheap[259..].copy_from_slice(&[-9.0, -9.0, -9.0, -2.0, -3.0]);
    assert_eq!(encode(&with(unigram(), SCORES, scores(&cheap)), "ab").unwrap(), [262, 261]);
    assert_eq!(encode(&file, "aé").unwrap(), [262, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(open(&file).unwrap().encode("a", true, false).unwrap(), [262, 2]); // ends with EOS
    assert_eq!(open(&file).unwrap().decode(&[262, 262], true).unwrap(), "a a");
    let no_bytes = with(unigram(), TYPES, types(&[&[2, 3, 3][..], &[5; 256], &[1; 5]].concat()));
    assert_eq!(encode(&no_bytes, "aéé日a日").unwrap(), [262, 0, 260, 0]); // a run of unknown characters is one token
    let spaces = with(unigram(), "tokenizer.ggml.remove_extra_whitespaces", build::bool(1));
    assert_eq!(encode(&spaces, "  a   a ").unwrap(), [262, 262]);
    assert_eq!(encode(&spaces, "   ").unwrap(), [0u32; 0]);
    let nan = with(unigram(), SCORES, scores(&[f32::NAN; 264]));
    expect_notes(&nan, "a", &[3 + 0xe2, 3 + 0x96, 3 + 0x81, 3 + 0x61], &[&["not a finite number", "scores[259]"]]);
}

#[test]
fn gemma_4_merges_by_rank_within_lines() {
    let file = gemma4();
    assert_eq!(encode(&file, "ab a").unwrap(), [263, 262]);
    assert_eq!(open(&file).unwrap().encode("a", true, false).unwrap(), [1, 260]); // always
    let named = with(gemma4(), TYPES, types(&[&[2, 3, 3][..], &[1; 261]].concat()));
    assert_eq!(encode(&named, "\né").unwrap(), [3 + 10, 3 + 0xc3, 3 + 0xa9]); // bytes by their names
    assert_eq!(open(&named).unwrap().decode(&[3 + 0xc3, 3 + 0xa9], true).unwrap(), "é");
}

/// A table of characters that makes `x` of `a`, and nothing of `b`; `bad` puts a number somewhere in its units.
fn charsmap(bad: Option<(usize, u32)>) -> Value {
    let mut units = vec![0u32; 512];
    let leaf = |byte: u8, offset: u32| offset << 10 | 1 << 8 | u32::from(byte);
    units[0] = 256 << 10;
    units[256 ^ 0x61] = leaf(b'a', (256 ^ 0x61) ^ 500);
    units[500] = 1 << 31;
    units[256 ^ 0x62] = leaf(b'b', (256 ^ 0x62) ^ 501);
    units[501] = 1 << 31 | 1; // the zero behind `x`
    if let Some((at, unit)) = bad {
        units[at] = unit;
    }
    let mut bytes = 2048u32.to_le_bytes().to_vec();
    bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    bytes.extend(b"x\0");
    build::array(0, bytes.len() as u64, bytes)
}

#[test]
fn a_table_of_characters_says_what_they_become() {
    let key = "tokenizer.ggml.precompiled_charsmap";
    let encoded = |table: Value| encode(&with(unigram(), key, table), "abba").unwrap();
    let x = 3 + u32::from(b'x');
    assert_eq!(encoded(charsmap(None)), [259, x, x]);
    assert_eq!(encode(&with(spm(), key, charsmap(None)), "abba").unwrap(), [259, x, x]);
    assert_eq!(encoded(charsmap(Some((500, u32::MAX)))), [262, 260]); // where there is no text
    assert_eq!(encoded(charsmap(Some((0, u32::MAX)))).len(), encode(&unigram(), "abba").unwrap().len());
    let mut rng = Rng::new(17);
    for _ in 0..2000 {
        encoded(charsmap(Some((rng.next_u64() as usize % 512, rng.next_u64() as u32))));
    }
}

#[test]
fn a_space_is_added_and_taken_away_where_the_file_wants_it() {
    let mut file = spm();
    assert_eq!(open(&file).unwrap().decode(&[1, 262, 262], true).unwrap(), "a a");
    file.set("tokenizer.ggml.add_space_prefix", build::bool(0));
    assert_eq!(encode(&file, "a").unwrap(), [260]);
    assert_eq!(open(&file).unwrap().decode(&[262, 262], true).unwrap(), " a a");
}

#[test]
fn special_tokens_are_parsed_on_request() {
    let tokenizer = open(&bpe()).unwrap();
    assert_eq!(tokenizer.encode("<|endoftext|>", false, true).unwrap(), [256]);
    assert_eq!(tokenizer.encode("<|endoftext|>", false, false).unwrap().len(), 13);
    let tokenizer = open(&spm()).unwrap();
    assert_eq!(tokenizer.encode("<s>a</s>a", false, true).unwrap(), [1, 262, 2, 262]);
}

#[test]
fn the_stream_gives_whole_characters_only() {
    let tokenizer = open(&bpe()).unwrap();
    let text = "né🎉<|endoftext|>l";
    let ids = tokenizer.encode(text, false, true).unwrap();
    let mut decoder = tokenizer.decoder(false);
    let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(pieces, ["n", "", "é", "", "", "", "🎉", "<|endoftext|>", "l"]);
    assert_eq!(decoder.finish(), "");

    let mut decoder = tokenizer.decoder(true);
    let broken = [0xf0, 0x9f, u32::from(b'a'), 0x80, 256, 0xc3, 0xc3, 0xa9, 0xe2, 0x82];
    let text: String = broken.iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(text, "\u{fffd}a\u{fffd}\u{fffd}é");
    assert_eq!(decoder.finish(), "\u{fffd}");
    assert_eq!(decoder.finish(), "");
    assert_eq!(tokenizer.decode(&broken, true).unwrap(), text + "\u{fffd}");

    // The stream goes on with a text, so the space of its first token is text.
    let tokenizer = open(&spm()).unwrap();
    assert_eq!(tokenizer.decoder(true).push(262).unwrap(), " a");
}

#[test]
fn the_ends_of_an_answer_are_known() {
    let mut file = bpe();
    let ends = |file: &Gguf| open(file).unwrap().end_tokens().unwrap().to_vec();
    file.unset("tokenizer.ggml.eos_token_id");
    assert_eq!(ends(&file), [256]); // by its name
    file.set("tokenizer.ggml.eos_token_id", build::u32(258));
    file.set("tokenizer.ggml.eot_token_id", build::u32(3));
    assert_eq!(ends(&file), [3, 256, 258]);
    let tokenizer = open(&file).unwrap();
    assert!(tokenizer.is_end_of_generation(3) && !tokenizer.is_end_of_generation(4));
    assert!(tokenizer.is_special(256) && !tokenizer.is_special(3) && !tokenizer.is_special(u32::MAX));
}

/// What is wrong with `file`, seen when it is opened, in a line that has all these parts.
#[track_caller]
fn expect(file: &Gguf, parts: &[&str]) {
    let e = open(file).unwrap_err();
    assert!(matches!(e, Error::Format(_) | Error::Unsupported { .. }), "{e:?}");
    let text = e.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text}");
}

fn with(mut file: Gguf, key: &str, value: Value) -> Gguf {
    file.set(key, value);
    file
}

fn without(mut file: Gguf, key: &str) -> Gguf {
    file.unset(key);
    file
}

#[test]
fn bad_keys_are_seen_when_the_file_is_opened() {
    let text = build::string;
    let none: [&str; 0] = [];
    expect(&without(bpe(), "tokenizer.ggml.model"), &["missing key", "tokenizer.ggml.model"]);
    expect(&with(bpe(), "tokenizer.ggml.model", text("rwkv")), &["\"rwkv\"", "gpt2, llama, gemma4, bert, t5"]);
    expect(&with(bpe(), "tokenizer.ggml.model", build::string("\n".repeat(9999))), &["tokenizer.ggml.model"]);
    expect(&with(bpe(), "tokenizer.ggml.pre", text("poetry")), &["\"poetry\"", "default, gpt-2, smollm, llama-bpe"]);
    expect(&with(bpe(), "tokenizer.ggml.pre", build::u32(1)), &["tokenizer.ggml.pre", "a string"]);
    expect(&without(bpe(), TOKENS), &["missing key", TOKENS]);
    expect(&with(bpe(), TOKENS, build::strings(none)), &["empty", TOKENS]);
    expect(&with(bpe(), TOKENS, types(&[1])), &[TOKENS, "I32", "array of String"]);
    expect(&with(bpe(), TYPES, types(&[1; 259])), &[TYPES, "259", "260"]);
    expect(&with(bpe(), TYPES, scores(&[1.0; 260])), &[TYPES, "F32", "I32"]);
    expect(&with(bpe(), SCORES, scores(&[1.0; 261])), &[SCORES, "261", "260"]);
    expect(&without(bpe(), MERGES), &["missing key", MERGES]);
    expect(&with(bpe(), MERGES, build::u32(1)), &[MERGES, "array of String"]);
    expect(&with(bpe(), MERGES, build::strings(vec![""; (1 << 22) + 1])), &["too many", MERGES, "4194305"]);
    expect(&without(spm(), TYPES), &["missing key", TYPES]);
    expect(&without(spm(), SCORES), &["missing key", SCORES]);
    let charsmap = "tokenizer.ggml.precompiled_charsmap";
    expect(&with(spm(), charsmap, build::array(0, 2, vec![1, 2])), &[charsmap, "longer than it is"]);
    expect(&with(spm(), charsmap, build::array(0, 5, vec![2, 0, 0, 0, 1])), &[charsmap, "at most 1"]);
    expect(&with(spm(), charsmap, build::u32(0)), &[charsmap, "an array of U8"]);
    let extra = "tokenizer.ggml.remove_extra_whitespaces";
    expect(&with(spm(), extra, build::u32(1)), &[extra, "a bool"]);
}

/// The tokens of a text, and what there is to note after that in as many lines as there are `parts`.
#[track_caller]
fn expect_notes(file: &Gguf, text: &str, ids: &[u32], parts: &[&[&str]]) {
    let tokenizer = open(file).unwrap();
    assert_eq!(tokenizer.encode(text, false, true).unwrap(), ids);
    // A long text needs the index of all, which sees what the first text has nothing to do with.
    let _ = tokenizer.encode(&"he ".repeat(2 << 10), false, true);
    assert_eq!(tokenizer.encode(text, false, true).unwrap(), ids);
    let notes = tokenizer.take_notes();
    assert_eq!(notes.len(), parts.len(), "{notes:?}");
    for (note, parts) in notes.iter().zip(parts) {
        assert!(!note.contains('\n') && note.len() < 400, "{note}");
        assert!(parts.iter().all(|part| note.contains(part)), "{parts:?} in {note}");
    }
    tokenizer.encode(text, false, true).unwrap();
    assert_eq!(tokenizer.take_notes(), [""; 0], "each is noted once");
}

#[test]
fn a_special_id_that_is_no_token_is_none_and_noted() {
    let hello = [259, u32::from(b'o')];
    expect_notes(&bpe(), "hello", &hello, &[]);
    for name in ["bos", "eos", "eot", "eom", "unknown", "fim_pad"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        for (value, shown) in [
            (build::u32(260), "260"),
            (build::u32(u32::MAX), "4294967295"),
            (build::i32(-1), "-1"),
            (build::u64(u64::MAX), "18446744073709551615"),
        ] {
            let file = with(bpe(), &key, value);
            expect_notes(&file, "hello", &hello, &[&["no such token", &key, shown, "260 tokens"]]);
            let tokenizer = open(&file).unwrap();
            assert_eq!(tokenizer.bos(), Some(256).filter(|_| name != "bos"));
            assert_eq!(tokenizer.eos(), Some(256).filter(|_| name != "eos"));
            assert_eq!(tokenizer.end_tokens().unwrap(), [256]); // by its name too
        }
        expect(&with(bpe(), &key, build::string("1")), &[&key, "non-negative"]);
    }
    for which in ["bos", "eos"] {
        let (add, id) = (format!("tokenizer.ggml.add_{which}_token"), format!("tokenizer.ggml.{which}_token_id"));
        let file = with(without(bpe(), &id), &add, build::bool(1));
        expect_notes(&file, "hello", &hello, &[&["to be added", &add, &id]]);
        assert_eq!(open(&file).unwrap().encode("hello", true, false).unwrap(), hello);
        expect(&with(bpe(), &add, build::u32(1)), &[&add, "a bool"]);
        let file = without(spm(), &id); // where it is only a default, there is just nothing to add
        assert_eq!(open(&file).unwrap().encode("a", true, false).unwrap().contains(&1), which != "bos");
        expect_notes(&file, "a", &[262], &[]);
    }
}

#[test]
fn a_file_without_a_pre_tokenizer_is_split_as_llama_cpp_does() {
    let pre = "tokenizer.ggml.pre";
    let file = without(bpe(), pre);
    expect_notes(&file, "he", &[257], &[&["no pre-tokenizer", pre, "\"default\""]]);
    expect_notes(&with(bpe(), pre, build::string("default")), "he", &[257], &[]);
    // Three digits are a word of their own, and so is punctuation.
    let merges = with(file, MERGES, build::strings(["1 2", "h e"]));
    let mut tokens: Vec<String> = "123 'he".chars().map(|c| if c == ' ' { "Ġ".into() } else { c.into() }).collect();
    tokens.resize(258, "?".into());
    let file = with(merges, TOKENS, build::strings(tokens.into_iter().chain(["12".into(), "'s".into()])));
    let file = with(file, MERGES, build::strings(["1 2", "2 3", "' s"]));
    assert_eq!(encode(&file, "31123 1").unwrap(), [2, 0, 0, 1, 2, 3, 0]);
}

/// The tokens of [`bpe`] with some replaced; of the bytes there are only those from `!` to `~`.
fn bpe_tokens(replaced: &[(usize, &[u8])]) -> Value {
    let byte = |byte: u8| if (33..=126).contains(&byte) { vec![byte] } else { format!("x{byte}").into_bytes() };
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(byte).collect();
    tokens.extend(["<|endoftext|>", "he", "ll", "hell"].map(|text| text.as_bytes().to_vec()));
    for &(id, text) in replaced {
        tokens[id] = text.to_vec();
    }
    build::strings(tokens)
}

fn bpe_token(id: usize, text: &[u8]) -> Gguf {
    with(bpe(), TOKENS, bpe_tokens(&[(id, text)]))
}

/// The tokens of [`spm`] with one replaced.
fn spm_token(id: usize, text: &[u8]) -> Gguf {
    let mut file = spm();
    let mut tokens: Vec<Vec<u8>> = ["<unk>", "<s>", "</s>"].map(|t| t.as_bytes().to_vec()).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>").into_bytes()));
    tokens.extend(["▁", "a", "b", "▁a", "ab"].map(|t| t.as_bytes().to_vec()));
    tokens[id] = text.to_vec();
    file.set(TOKENS, build::strings(tokens));
    file
}

#[test]
fn an_entry_that_no_text_comes_to_harms_nobody() {
    let token = |id: usize| format!("{TOKENS}[{id}]");
    let hello_h = [259, 111, 104];
    expect_notes(&bpe_token(5, b""), "helloh", &hello_h, &[&["without a text", &token(5)]]);
    expect_notes(&bpe_token(256, b""), "helloh", &hello_h, &[&["without a text", &token(256)]]);
    for odd in [&b"a b"[..], "日\n".as_bytes(), b"\xff", b"\0", "<｜User｜>".as_bytes(), b"hell"] {
        expect_notes(&bpe_token(5, odd), "helloh", if odd == b"hell" { &[5, 111, 104] } else { &hello_h }, &[]);
        expect_notes(
            &bpe_token(256, odd),
            "hexhelloh",
            if odd == b"hell" { &[257, 120, 256, 111, 104] } else { &[257, 120, 259, 111, 104] },
            &[],
        );
    }
    for number in [0, 7, -1, i32::MIN] {
        expect_notes(&with(bpe(), TYPES, types(&[number; 260])), "hell", &[259], &[]);
        let kinds = [&[2, 3, 3][..], &[6; 256], &[number; 5]].concat();
        expect_notes(&with(spm(), TYPES, types(&kinds)), "ab", &[259, 263], &[]);
    }

    expect_notes(&spm_token(262, b""), "ab", &[259, 263], &[&["without a text", &token(262)]]);
    expect_notes(&spm_token(1, b""), "ab", &[259, 263], &[&["without a text", &token(1)]]);
    for odd in [&b"\xe2\x96"[..], b"\xff", b"a", b" "] {
        expect_notes(&spm_token(262, odd), "bb", &[259, 261, 261], &[]);
        expect_notes(&spm_token(1, odd), "bb", &[259, 261, 261], &[]);
    }
    for bad in ["<0x-1>", "<0x+1>", "<0x1>", "<0x123>", "<0xGG>", "<0x41", "0x41", "<0x\u{e9}>", "x"] {
        let id = 3 + 0x41;
        let file = spm_token(id, bad.as_bytes());
        expect_notes(&file, "ab", &[259, 263], &[&["byte token", &token(id)]]);
        expect_notes(&file, "Aab", &[259, 0, 263], &[&["byte token", &token(id)]]); // the unknown token
        assert_eq!(open(&file).unwrap().token_bytes(id as u32).unwrap(), bad.as_bytes());
    }
    let file = spm_token(3 + 0x42, b"<0x41>"); // twice: the first is used
    expect_notes(&file, "A", &[259, 3 + 0x41], &[]);
    expect_notes(&file, "B", &[259, 0], &[]);
    assert_eq!(open(&file).unwrap().decode(&[3 + 0x42], true).unwrap(), "A");

    let no_bytes = with(spm(), TYPES, types(&[&[2, 3, 3][..], &[1; 261]].concat()));
    expect_notes(&no_bytes, "aéé", &[262, 0], &[]);
    let no_unknown = without(no_bytes, "tokenizer.ggml.unknown_token_id");
    expect_notes(&no_unknown, "ab", &[259, 263], &[]);
    let e = encode(&no_unknown, "é").unwrap_err().to_string();
    assert!(e.contains("neither byte tokens") && e.contains("é"), "{e}");

    let mut nan = [0.0; 264];
    nan[262] = f32::NAN;
    expect_notes(&with(spm(), SCORES, scores(&nan)), "a", &[259, 260], &[&["not a number", &format!("{SCORES}[262]")]]);
    nan[262] = f32::INFINITY;
    nan[263] = f32::NEG_INFINITY;
    assert_eq!(encode(&with(spm(), SCORES, scores(&nan)), "ab").unwrap(), [262, 261]);
}

#[test]
fn a_merge_that_makes_no_token_of_two_is_left_out() {
    let merges = |merges: &[&str]| with(bpe(), MERGES, build::strings(merges));
    let at = |rank: usize| format!("{MERGES}[{rank}]");
    let h_e_ll = [104, 101, 258];
    for bad in ["ll", "", "hx e", "h ex", " he", "he ", "h  e", "e h", "zzz yyy"] {
        expect_notes(&merges(&["h e", bad]), "he", &[257], &[&["left out", &at(1)]]);
        expect_notes(&merges(&[bad, "l l", bad]), "hell", &h_e_ll, &[&["left out", &at(0), "and 1 more"]]);
    }
    expect_notes(&merges(&["h e", "l l", "h e"]), "hell", &[257, 258], &[]); // listed twice: the first counts
    expect_notes(&merges(&["l l", "h e", "he ll", "l l"]), "hell", &[259], &[]);
}

#[test]
fn what_a_token_stands_for_is_always_known() {
    let tokenizer = open(&bpe_token(5, b"a b")).unwrap();
    assert_eq!(tokenizer.decode(&[5, u32::from(b'a')], false).unwrap(), "a ba");
    for id in [260, u32::MAX] {
        assert!(matches!(tokenizer.decode(&[id], true), Err(Error::Argument(_))));
    }
    let tokenizer = open(&spm_token(262, b"\xff\xe2\x96\x81")).unwrap();
    assert_eq!(tokenizer.token_bytes(262).unwrap(), b"\xff ");
}

#[test]
fn control_tokens_come_of_their_names_alone() {
    // A merge leads to `he`, which is a control token here, and a control token is a word.
    let mut kinds = [1; 260];
    (kinds[257], kinds[258]) = (3, 3);
    for pre in ["gpt-2", "llama-bpe"] {
        let tokenizer =
            open(&with(with(bpe(), TYPES, types(&kinds)), "tokenizer.ggml.pre", build::string(pre))).unwrap();
        assert_eq!(tokenizer.encode("he", false, false).unwrap(), [104, 101]);
        assert_eq!(tokenizer.encode("he", false, true).unwrap(), [257]);
    }
}

#[test]
fn names_end_an_answer_whatever_their_type() {
    let names =
        ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<｜end▁of▁sentence｜>"];
    for (name, number) in names.iter().flat_map(|name| [1, 3, 4, 5, 0].map(|number| (name, number))) {
        let mut kinds = [1; 260];
        kinds[256] = number;
        let file = with(bpe_token(256, name.as_bytes()), TYPES, types(&kinds));
        let tokenizer = open(&with(file, "tokenizer.ggml.eos_token_id", build::u32(7))).unwrap();
        assert_eq!(tokenizer.end_tokens().unwrap(), [7, 256], "{name} {number}");
        assert!(tokenizer.is_special(256) && !tokenizer.is_special(7));
        assert_eq!(tokenizer.encode(name, false, true).unwrap(), [256]);
        assert!(!tokenizer.encode(name, false, false).unwrap().contains(&256));
        assert_eq!(tokenizer.decode(&[256, 97], true).unwrap(), "a");
        assert_eq!(tokenizer.special_tokens(name).unwrap(), [256]);
    }
    assert_eq!(open(&bpe()).unwrap().special_tokens("<|endoftext|>").unwrap(), [256]);
    assert_eq!(open(&bpe()).unwrap().special_tokens("he").unwrap(), [0u32; 0]);

    let ends = |names: &[&str]| {
        let tokens: Vec<&str> = names.iter().copied().chain(["<|end|", "[EOT", "eos", "<", "["]).collect();
        let mut file = bpe();
        file.set(TYPES, types(&vec![4; tokens.len()]));
        file.set(TOKENS, build::strings(tokens));
        file.unset("tokenizer.ggml.bos_token_id");
        file.unset("tokenizer.ggml.eos_token_id");
        open(&file).unwrap().end_tokens().unwrap().to_vec()
    };
    assert_eq!(ends(&["<|end|>", "<|return|>", "[EOS]"]), [0, 1, 2]);
    // What was learnt from web pages is text.
    for (merge, end) in [("</s >", None), ("h e", Some(259))] {
        let tokens = bpe_tokens(&[(257, b"</"), (258, b"</s"), (259, b"</s>")]);
        let file = with(with(bpe(), TOKENS, tokens), MERGES, build::strings(["< /", "</ s", merge]));
        let tokenizer = open(&file).unwrap();
        assert_eq!(tokenizer.end_tokens().unwrap().iter().copied().find(|&id| id != 256), end);
        let text = [257, 115, 62];
        assert_eq!(tokenizer.encode("</s>", false, false).unwrap(), text);
        assert_eq!(tokenizer.encode("</s>", false, true).unwrap(), end.map_or(text.to_vec(), |id| vec![id]));
    }
    assert_eq!(ends(&["<|end|>", "<|return|>", "<|call|>"]), [1, 2]); // gpt-oss
    assert_eq!(ends(&["</s>", "<turn|>", "<|tool_response>"]), [1, 2]); // Gemma 4
}

/// Stops whoever asks: so long ago was it made that the first time is time to.
fn interrupted() -> Interrupt<'static> {
    let interrupt = Interrupt::new(&|| true);
    thread::sleep(Interrupt::PERIOD);
    interrupt
}

#[test]
fn every_long_work_can_be_interrupted() {
    let letters = |c: &str| c.repeat((1 << 20) / c.len());
    let merged = with(bpe(), "tokenizer.ggml.pre", build::string("qwen2"));
    let texts =
        ["hello hell, he; ", "hell", "<|endoftext|>", "é ", "日", "a\u{301}", " ", "12", "ab ", "<s>"].map(letters);
    let normalized = with(unigram(), "tokenizer.ggml.remove_extra_whitespaces", build::bool(1));
    let mapped = with(unigram(), "tokenizer.ggml.precompiled_charsmap", charsmap(None));
    for file in every_kind().into_iter().chain([merged, normalized, mapped]) {
        let tokenizer = open(&file).unwrap();
        tokenizer.encode("a", true, true).unwrap(); // indexes are there
        for text in &texts {
            match tokenizer.encode_at_most(usize::MAX, text, true, true, &interrupted()) {
                Err(e) => assert!(matches!(e, Error::Interrupted), "{e}"),
                // A word that is too long for any token is one unknown token, at once.
                Ok(ids) => assert!(ids.len() <= 3, "{}", ids.len()),
            }
        }
        let e = tokenizer.decode_interruptibly(&vec![5; 1 << 20], true, &interrupted()).unwrap_err();
        assert!(matches!(e, Error::Interrupted), "{e}");
    }
    let many: Vec<String> = (0..1 << 18).map(|i| format!("{i}")).collect();
    let mut file = with(bpe(), TYPES, types(&vec![1; many.len()]));
    file.set(TOKENS, build::strings(&many));
    let tokenizer = open(&file).unwrap();
    let e = tokenizer.encode_at_most(9, "a", true, true, &interrupted()).unwrap_err();
    assert!(matches!(e, Error::Interrupted), "{e}");
    tokenizer.encode("1", true, true).unwrap();
}

#[test]
fn a_text_with_too_many_tokens_ends_early() {
    let qwen = with(bpe(), "tokenizer.ggml.pre", build::string("qwen2"));
    for file in every_kind().into_iter().chain([qwen]) {
        let tokenizer = open(&file).unwrap();
        for (text, special) in
            [("hello hell, ab; é日 he", true), ("", true), ("a", false), ("<s>a<|endoftext|>", false)]
        {
            let ids = tokenizer.encode(text, special, true).unwrap();
            for at_most in 0..ids.len() + 2 {
                let never = Interrupt::never();
                match tokenizer.encode_at_most(at_most, text, special, true, &never) {
                    Ok(same) => assert!(same == ids && ids.len() <= at_most),
                    Err(Error::TooManyTokens { at_least, at_most: wanted }) => {
                        assert!(wanted == at_most && at_most < at_least && at_least <= ids.len(), "{at_least}");
                    }
                    Err(e) => panic!("{e}"),
                }
            }
        }
        // Before it is read: by the longest token, of 13 bytes at most. Merging it would take a minute. A word of any length
        // may be one token for BERT, which looks at it all.
        if format!("{tokenizer:?}").contains("bert") {
            continue;
        }
        for text in ["a".repeat(100 << 20), "hell hello".repeat(10 << 20), "é".repeat(20 << 20)] {
            let e = tokenizer.encode_at_most(4096, &text, true, true, &Interrupt::never()).unwrap_err();
            let Error::TooManyTokens { at_least, at_most: 4096 } = e else { panic!("{e}") };
            assert!(at_least > (20 << 20) / 13, "{at_least}");
        }
    }
    // Bytes that are no token make none, so nothing is certain beforehand.
    let mut file = bpe();
    let mut tokens: Vec<String> = (0..260).map(|i| format!("{i}")).collect();
    tokens[97] = "a".into();
    file.set(TOKENS, build::strings(&tokens));
    let text = format!("{}a{}", " b".repeat(1 << 20), "~".repeat(1 << 20));
    assert_eq!(open(&file).unwrap().encode_at_most(1, &text, false, false, &Interrupt::never()).unwrap(), [97]);
}

#[test]
fn small_files_with_odd_special_tokens_cost_little() {
    let with_specials = |names: Vec<String>| {
        let mut tokens: Vec<String> = (33..=126u8).map(|byte| char::from(byte).into()).collect();
        tokens.resize(260, "?".into());
        let kinds = [vec![1; 260], vec![3; names.len()]].concat();
        tokens.extend(names);
        open(&with(with(bpe(), TOKENS, build::strings(tokens)), TYPES, types(&kinds))).unwrap()
    };
    let equal = with_specials(vec!["<|im_end|>".into(); 300_000]);
    let a = u32::from(b'a' - b'!');
    assert_eq!(equal.encode("a<|im_end|>a", false, true).unwrap(), [a, 260, a]);
    assert_eq!(equal.end_tokens().unwrap().len(), 300_000 + 1);
    let mut rng = Rng::new(4);
    let long: String = (0..4 << 20).map(|_| char::from(b' ' + (rng.next_u64() % 90) as u8)).collect();
    let one = with_specials(vec![long, "<s>".into()]);
    assert_eq!(one.encode("a<s>", false, true).unwrap(), [a, 261]);
    let notes = one.take_notes();
    assert!(notes.iter().any(|note| note.contains("64 KiB") && note.contains(&format!("{TOKENS}[260]"))), "{notes:?}");
    let nested = with_specials(vec!["a".into(); 5000].into_iter().chain(["ba".repeat(10_000) + "!"]).collect());
    assert_eq!(nested.encode(&("ba".repeat(10_000) + "!b"), false, true).unwrap(), [5260, a + 1]);
}

/// A text of what is in the vocabularies here, and of any characters.
fn random_text(rng: &mut Rng) -> String {
    const BITS: [&str; 24] = [
        "hell",
        "he",
        "l",
        "o",
        " ",
        "  ",
        "▁",
        "a",
        "b",
        "ab",
        "<|endoftext|>",
        "<s>",
        "</s>",
        "<|im_end|>",
        "<0x41>",
        "1",
        "12",
        "\n",
        "\r\n",
        "'s",
        "'",
        "é",
        "\u{301}",
        "😀",
    ];
    let mut text = String::new();
    for _ in 0..rng.next_u64() % 12 {
        match rng.next_u64() % 8 {
            0 => text.extend(char::from_u32(rng.next_u64() as u32 % 0x11_0000)),
            1 => text.extend(char::from_u32(rng.next_u64() as u32 % 0x600)),
            _ => text.push_str(BITS[rng.next_u64() as usize % BITS.len()]),
        }
    }
    text
}

/// Replaces, cuts, doubles or damages something of a vocabulary.
fn mutate(file: &mut Gguf, rng: &mut Rng) {
    let texts = [
        "",
        " ",
        "a",
        "h",
        "he",
        "ll",
        "▁",
        "▁a",
        "a▁",
        "a▁b",
        "<|im_end|>",
        "</s>",
        "<0x41>",
        "\u{0}",
        "é",
        "<|end|>",
    ];
    let pres = [
        "deepseek-coder",
        "deepseek-llm",
        "youtu",
        "minicpm5",
        "default",
        "gpt-2",
        "smollm",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "gpt-4o",
        "tekken",
        "deepseek-v3",
        "falcon",
        "seed-coder",
    ];
    match rng.next_u64() % 7 {
        6 => {
            let own = |name: &str| format!("llama_rs.tokenizer.{name}");
            let schemes = ["never", "dummy", "always", "first"];
            let steps =
                ["NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Bert clean accents", "Strip left", "Collapse ▁"];
            let replace = ["Replace a\0", "Replace \u{301}\0bb", "Precompiled", "Strip left right"];
            let any = |rng: &mut Rng, names: &[&'static str]| names[rng.next_u64() as usize % names.len()];
            match rng.next_u64() % 6 {
                0 => file.set(&own("prepend_scheme"), build::string(any(rng, &schemes))),
                1 => file
                    .set(&own("normalizers"), build::strings([any(rng, &steps), any(rng, &replace), any(rng, &steps)])),
                2 => {
                    let flags: Vec<u8> = (0..264).map(|_| rng.next_u64() as u8 & rng.next_u64() as u8).collect();
                    file.set(&own("token_flags"), build::array(0, 264, flags));
                }
                3 => file.set(
                    "tokenizer.ggml.precompiled_charsmap",
                    charsmap(Some((rng.next_u64() as usize % 512, rng.next_u64() as u32))),
                ),
                4 => file.set(
                    &own(any(rng, &["metaspace_split", "whitespace_split", "ignore_merges", "fuse_unknown"])),
                    build::bool(1),
                ),
                _ => file.set(
                    &own(any(rng, &["prefix_token_ids", "suffix_token_ids", "end_token_ids"])),
                    types(&[3, -1, 5, 9999]),
                ),
            }
        }
        0 => {
            let n = file.kv.len();
            let (_, Value(_, bytes)) = &mut file.kv[rng.next_u64() as usize % n];
            let at = rng.next_u64() as usize % bytes.len();
            bytes[at] = rng.next_u64() as u8;
        }
        1 => file.set("tokenizer.ggml.pre", build::string(pres[rng.next_u64() as usize % pres.len()])),
        2 => file.set("tokenizer.ggml.add_space_prefix", build::bool((rng.next_u64() & 1) as u8)),
        3 => {
            let kinds: Vec<i32> =
                (0..264).map(|_| if rng.next_u64() & 3 == 0 { rng.next_u64() as i32 % 7 } else { 1 }).collect();
            let n = file
                .kv
                .iter()
                .find(|(key, _)| key == TOKENS.as_bytes())
                .and_then(|(_, Value(_, bytes))| bytes.get(4..6));
            let n = n.map_or(0, |n| usize::from(u16::from_le_bytes([n[0], n[1]])));
            file.set(TYPES, types(&kinds[..n.min(264)]));
        }
        // An element of an array: the texts of a few tokens, the scores, the merges.
        _ => {
            let keys = [TOKENS, MERGES, SCORES];
            let key = keys[rng.next_u64() as usize % keys.len()].as_bytes();
            let Some((_, Value(_, bytes))) = file.kv.iter_mut().find(|(k, _)| k == key) else { return };
            if key == SCORES.as_bytes() {
                let at = 12 + 4 * (rng.next_u64() as usize % 264);
                let scores = [f32::NAN, f32::INFINITY, -1.0, 0.0, -0.0, f32::MIN_POSITIVE];
                bytes[at..at + 4].copy_from_slice(&scores[rng.next_u64() as usize % scores.len()].to_le_bytes());
                return;
            }
            let mut parts: Vec<Vec<u8>> = Vec::new();
            let mut rest = &bytes[12..];
            while let Some((len, tail)) = rest.split_first_chunk::<8>() {
                let Some((text, tail)) = tail.split_at_checked(u64::from_le_bytes(*len) as usize) else { return };
                parts.push(text.to_vec());
                rest = tail;
            }
            if parts.is_empty() {
                return;
            }
            let at = rng.next_u64() as usize % parts.len();
            let text = texts[rng.next_u64() as usize % texts.len()];
            parts[at] = if key == TOKENS.as_bytes() {
                text.into()
            } else {
                format!("{text} {}", texts[rng.next_u64() as usize % texts.len()]).into()
            };
            *bytes = build::strings(parts).1;
        }
    }
}

/// More of them with `FUZZ_ROUNDS`, others with `FUZZ_SEED`.
#[test]
fn any_vocabulary_ends_in_tokens_or_an_error() {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(3000, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("FUZZ_SEED").map_or(20, |seed| seed.parse().unwrap());
    let mut rng = Rng::new(seed);
    let mut encoded = 0;
    for _ in 0..rounds {
        let kinds = every_kind();
        let mut file = kinds.into_iter().nth(rng.next_u64() as usize % 5).unwrap();
        for _ in 0..1 + rng.next_u64() % 8 {
            mutate(&mut file, &mut rng);
        }
        let Ok(tokenizer) = open(&file) else { continue };
        let _ = tokenizer.end_tokens().unwrap();
        for _ in 0..8 {
            let text = random_text(&mut rng);
            for parse_special in [false, true] {
                let Ok(ids) = tokenizer.encode(&text, false, parse_special) else { continue };
                assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                tokenizer.decode(&ids, false).unwrap();
                let at_most = rng.next_u64() as usize % 8;
                match tokenizer.encode_at_most(at_most, &text, false, parse_special, &Interrupt::never()) {
                    Ok(same) => assert!(same == ids && ids.len() <= at_most, "{text:?}"),
                    Err(Error::TooManyTokens { at_least, .. }) => {
                        let n = ids.len();
                        assert!(at_most < at_least && at_least <= n, "{text:?}: {at_least} of {n}, {tokenizer:?}");
                    }
                    Err(e) => panic!("{e}"),
                }
                encoded += 1;
            }
        }
        assert!(tokenizer.take_notes().iter().all(|note| !note.contains('\n')));
    }
    assert!(encoded > rounds, "{encoded}");
}

/// A file in a directory of its own, which goes when this does.
struct TempDirectory(std::path::PathBuf);

impl TempDirectory {
    fn new(name: &str, contents: &[u8]) -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("llama_rs-tokenizer-{}-{count}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join(name), contents).unwrap();
        Self(path)
    }
}

impl Drop for TempDirectory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A GGUF of what a directory says.
fn gguf_of(entries: Vec<(String, Entry)>) -> Gguf {
    let mut file = Gguf::empty();
    for (key, entry) in entries {
        let value = match entry {
            Entry::Bool(b) => build::bool(b.into()),
            Entry::U32(n) => build::u32(n),
            Entry::F32(x) => build::f32(x),
            Entry::Str(text) => build::string(text),
            Entry::Strings(texts) => build::strings(texts),
            Entry::F32s(numbers) => scores(&numbers),
            Entry::I32s(numbers) => types(&numbers),
            Entry::Bytes(bytes) => build::array(0, bytes.len() as u64, bytes),
        };
        file.set(&key, value);
    }
    file
}

/// Files as Hugging Face has them, one of each kind.
fn hugging_face_files() -> [(&'static str, Vec<u8>); 5] {
    let byte_level = r#"{"added_tokens": [{"id": 4, "content": "<s>", "special": true, "lstrip": true},
        {"id": 5, "content": "ab", "normalized": true, "single_word": true, "rstrip": true}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}],
        "special_tokens": {"<s>": {"ids": [4]}}},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"], "ignore_merges": true}}"#;
    let marked = r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"},
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
        "vocab": {"<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "▁a": 4}, "merges": [["▁", "a"]]}}"#;
    let wordpiece = r#"{"normalizer": {"type": "BertNormalizer", "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": {"type": "BertProcessing", "sep": ["[S]", 1],
        "cls": ["[C]", 2]}, "model": {"type": "WordPiece", "unk_token": "[U]", "max_input_chars_per_word": 9,
        "vocab": {"[U]": 0, "[S]": 1, "[C]": 2, "a": 3, "b": 4, "\u0023\u0023b": 5}}}"#;
    let unigram = r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled",
        "precompiled_charsmap": "CAAAAAAAAAAAAAAAeAA="}, {"type": "Strip"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["▁", -3.5], ["▁a", -2], ["a", -4e0]]}}"#;
    let mut model = Vec::new();
    for (text, kind, score) in [("<unk>", 2, 0.0f32), ("▁", 1, -1.0), ("▁a", 1, -0.5), ("b", 4, 0.0)] {
        let score = score.to_le_bytes();
        let piece = [&[10, text.len() as u8][..], text.as_bytes(), &[21], &score, &[24, kind]].concat();
        model.extend([&[10, piece.len() as u8][..], &piece].concat());
    }
    model.extend([18, 2, 24, 2, 26, 4, 24, 1, 32, 0]);
    [
        ("tokenizer.json", byte_level.into()),
        ("tokenizer.json", marked.into()),
        ("tokenizer.json", wordpiece.into()),
        ("tokenizer.json", unigram.into()),
        ("tokenizer.model", model),
    ]
}

#[test]
fn any_file_of_hugging_face_ends_in_tokens_or_an_error() {
    let rounds = std::env::var("FUZZ_ROUNDS").map_or(3000, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("FUZZ_SEED").map_or(22, |seed| seed.parse().unwrap());
    let files = hugging_face_files();
    for (name, contents) in &files {
        let directory = TempDirectory::new(name, contents);
        let tokenizer = open(&gguf_of(entries(&directory.0).unwrap())).unwrap();
        assert!(!tokenizer.encode("a  b", true, true).unwrap().is_empty());
    }
    let mut rng = Rng::new(seed);
    let mut any = |n: usize| rng.next_u64() as usize % n;
    let bits = [
        "0",
        "-1",
        "99999999999",
        "1e300",
        "\"\"",
        "null",
        "true",
        "[",
        "}",
        "\"type\": \"NFD\"",
        "\\ud800",
        "\0",
        "▁",
    ];
    let mut opened = 0;
    for _ in 0..rounds {
        let (name, mut contents) = files[any(files.len())].clone();
        for _ in 0..1 + any(3) {
            let at = any(contents.len());
            let end = contents.len().min(at + any(40));
            match any(5) {
                0 => contents[at] = any(256) as u8,
                1 => drop(contents.drain(at..end)),
                2 => {
                    let part = contents[at..end].to_vec();
                    let to = any(contents.len());
                    contents.splice(to..to, part);
                }
                3 => drop(contents.splice(at..at + 1, bits[any(bits.len())].bytes())),
                // A number becomes another.
                _ => {
                    if let Some(digit) = contents[at..].iter().position(u8::is_ascii_digit) {
                        contents.splice(at + digit..at + digit + 1, bits[any(4)].bytes());
                    }
                }
            }
        }
        let directory = TempDirectory::new(name, &contents);
        match entries(&directory.0) {
            Err(e) => assert!(!e.to_string().contains('\n'), "{e}"),
            Ok(entries) => {
                let Ok(tokenizer) = open(&gguf_of(entries)) else { continue };
                opened += 1;
                for text in ["a  b ab 日 é", "<s> aab<unk>[S]", "\u{301}\0▁ A"] {
                    for special in [false, true] {
                        let Ok(ids) = tokenizer.encode(text, special, special) else { continue };
                        tokenizer.decode(&ids, special).unwrap();
                    }
                }
                let _ = tokenizer.end_tokens().unwrap();
            }
        }
    }
    assert!(opened > rounds / 20, "{opened}");
}

#[test]
fn bytes_that_change_meanwhile_make_no_panic() {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut rng = Rng::new(21);
    for round in 0..60 {
        let file = every_kind().into_iter().nth(round % 5).unwrap();
        let bytes = file.bytes();
        let path = TempFile::new(&bytes);
        let tokenizer = Tokenizer::from_metadata(&formats::open(&path.0).unwrap().metadata).unwrap();
        let handle = std::fs::File::options().write(true).open(&path.0).unwrap();
        let done = AtomicBool::new(false);
        let seed = rng.next_u64();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = Rng::new(seed);
                while !done.load(Ordering::Relaxed) {
                    let at = rng.next_u64() % bytes.len() as u64;
                    handle.write_all_at(&rng.next_u64().to_le_bytes()[..1 + at as usize % 8], at).unwrap();
                }
            });
            for _ in 0..60 {
                let text = random_text(&mut rng);
                let _ = tokenizer.encode(&text, true, true);
                let _ = tokenizer.decode(&[1, 5, 70, 200, 258, 259], false);
                let _ = tokenizer.end_tokens();
                let _ = tokenizer.special_tokens("<s>");
                let _ = tokenizer.token_bytes(259);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
