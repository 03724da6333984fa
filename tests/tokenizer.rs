//! The tokenizer on vocabularies made by hand: its rules one by one, and every way a vocabulary can be bad.

use llama_rs::tokenizer::Tokenizer;
use llama_rs::{Error, Result, formats};

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

fn open(file: &Gguf) -> Result<Tokenizer> {
    // The map outlives the name of the file.
    Tokenizer::from_metadata(&formats::open(&TempFile::new(&file.bytes()).0)?.metadata)
}

fn encode(file: &Gguf, text: &str) -> Result<Vec<u32>> {
    open(file)?.encode(text, false, false)
}

#[test]
fn opening_does_not_look_at_the_tokens() {
    for mut file in [bpe(), spm()] {
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

/// What is wrong with `file`, seen when it is opened or else when it is used, in a line that has all these parts.
#[track_caller]
fn expect(seen: Seen, file: &Gguf, parts: &[&str]) {
    let opened = open(file);
    let e = match (seen, opened) {
        (Seen::Opened, Err(e)) => e,
        (Seen::Used, Ok(tokenizer)) => tokenizer.encode("hello", true, true).unwrap_err(),
        (_, opened) => panic!("seen too early or too late: {opened:?}"),
    };
    assert!(matches!(e, Error::Format(_) | Error::Unsupported { .. }), "{e:?}");
    let text = e.to_string();
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text}");
}

enum Seen {
    Opened,
    Used,
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
    use Seen::Opened;
    let text = build::string;
    let none: [&str; 0] = [];
    expect(Opened, &without(bpe(), "tokenizer.ggml.model"), &["missing key", "tokenizer.ggml.model"]);
    expect(Opened, &with(bpe(), "tokenizer.ggml.model", text("bert")), &["\"bert\"", "gpt2 and llama"]);
    expect(Opened, &with(bpe(), "tokenizer.ggml.model", build::string("\n".repeat(9999))), &["tokenizer.ggml.model"]);
    expect(
        Opened,
        &with(bpe(), "tokenizer.ggml.pre", text("tekken")),
        &["\"tekken\"", "gpt-2, smollm, llama-bpe, qwen2"],
    );
    expect(Opened, &with(bpe(), "tokenizer.ggml.pre", build::u32(1)), &["tokenizer.ggml.pre", "a string"]);
    expect(Opened, &without(bpe(), TOKENS), &["missing key", TOKENS]);
    expect(Opened, &with(bpe(), TOKENS, build::strings(none)), &["empty", TOKENS]);
    expect(Opened, &with(bpe(), TOKENS, types(&[1])), &[TOKENS, "I32", "array of String"]);
    expect(Opened, &with(bpe(), TYPES, types(&[1; 259])), &[TYPES, "259", "260"]);
    expect(Opened, &with(bpe(), TYPES, scores(&[1.0; 260])), &[TYPES, "F32", "I32"]);
    expect(Opened, &with(bpe(), SCORES, scores(&[1.0; 261])), &[SCORES, "261", "260"]);
    expect(Opened, &without(bpe(), MERGES), &["missing key", MERGES]);
    expect(Opened, &with(bpe(), MERGES, build::u32(1)), &[MERGES, "array of String"]);
    expect(Opened, &with(bpe(), MERGES, build::strings(vec![""; (1 << 22) + 1])), &["too many", MERGES, "4194305"]);
    expect(Opened, &without(spm(), TYPES), &["missing key", TYPES]);
    expect(Opened, &without(spm(), SCORES), &["missing key", SCORES]);
    let charsmap = "tokenizer.ggml.precompiled_charsmap";
    expect(Opened, &with(spm(), charsmap, build::array(0, 2, vec![1, 2])), &[charsmap, "not supported"]);
    let extra = "tokenizer.ggml.remove_extra_whitespaces";
    expect(Opened, &with(spm(), extra, build::bool(1)), &[extra, "not supported"]);
}

#[test]
fn special_ids_are_checked_when_the_file_is_opened() {
    for name in ["bos", "eos", "eot", "eom", "unknown"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        for id in [260, u32::MAX] {
            expect(Seen::Opened, &with(bpe(), &key, build::u32(id)), &["no such token", &key, &id.to_string(), "260"]);
        }
        expect(Seen::Opened, &with(bpe(), &key, build::i32(-1)), &[&key, "non-negative"]);
        expect(Seen::Opened, &with(bpe(), &key, build::string("1")), &[&key, "non-negative"]);
    }
    for which in ["bos", "eos"] {
        let (add, id) = (format!("tokenizer.ggml.add_{which}_token"), format!("tokenizer.ggml.{which}_token_id"));
        expect(Seen::Opened, &with(without(bpe(), &id), &add, build::bool(1)), &[&add, &id]);
        expect(Seen::Opened, &with(bpe(), &add, build::u32(1)), &[&add, "a bool"]);
        let file = without(spm(), &id); // where it is only a default, there is just nothing to add
        assert_eq!(open(&file).unwrap().encode("a", true, false).unwrap().contains(&1), which != "bos");
    }
}

/// The tokens of [`bpe`] with one replaced.
fn bpe_token(id: usize, text: &[u8]) -> Gguf {
    let mut file = bpe();
    let alphabet = open(&file).unwrap();
    let spelt = |id: u32| match id {
        256 => b"<|endoftext|>".to_vec(),
        _ => alphabet.token_bytes(id).unwrap(),
    };
    let mut tokens: Vec<Vec<u8>> = (0..260).map(spelt).collect();
    for (byte, token) in tokens.iter_mut().enumerate().take(256) {
        *token = match byte as u8 {
            33..=126 => vec![byte as u8],
            _ => format!("x{byte}").into_bytes(),
        };
    }
    tokens[id] = text.to_vec();
    file.set(TOKENS, build::strings(tokens));
    file
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
fn bad_tokens_are_seen_when_they_are_used() {
    use Seen::Used;
    let token = |id: usize| format!("{TOKENS}[{id}]");
    expect(Used, &bpe_token(5, b""), &["empty token", &token(5), "at byte"]);
    expect(Used, &bpe_token(256, b""), &["empty token", &token(256)]);
    expect(Used, &bpe_token(5, b"a b"), &["alphabet", &token(5), "a b"]);
    expect(Used, &bpe_token(5, "日\n".as_bytes()), &["alphabet", &token(5), "\\n"]);
    expect(Used, &bpe_token(5, b"\xff"), &["alphabet", &token(5)]);
    expect(Used, &bpe_token(256, b"\xff"), &["special token is not valid UTF-8", &token(256)]);
    expect(Used, &spm_token(259, b""), &["empty token", &token(259)]);
    expect(Used, &spm_token(260, b"\xe2\x96"), &["UTF-8", &token(260)]);
    for bad in ["<0x-1>", "<0x+1>", "<0x1>", "<0x123>", "<0xGG>", "<0x41", "0x41", "<0x\u{e9}>", "x"] {
        expect(Used, &spm_token(3 + 0x41, bad.as_bytes()), &["bad byte token", &token(3 + 0x41), "<0x00> to <0xFF>"]);
    }
    expect(Used, &spm_token(3 + 0x41, b"<0x42>"), &["same byte", &token(3 + 0x42)]);

    let mut kinds = [&[2, 3, 3][..], &[6; 256], &[1; 5]].concat();
    kinds[3] = 1;
    expect(Used, &with(spm(), TYPES, types(&kinds)), &["missing byte token", "<0x00>"]);
    for number in [0, 7, -1, i32::MIN] {
        kinds[3] = number;
        expect(Used, &with(spm(), TYPES, types(&kinds)), &["token type", &format!("{TYPES}[3]"), &number.to_string()]);
        let file = with(bpe(), TYPES, types(&[&[1; 200][..], &[number; 60]].concat()));
        expect(Used, &file, &["token type", &format!("{TYPES}[200]"), &number.to_string()]);
    }
    let no_bytes = with(spm(), TYPES, types(&[&[2, 3, 3][..], &[1; 261]].concat()));
    expect(Used, &without(no_bytes, "tokenizer.ggml.unknown_token_id"), &["neither byte tokens nor an unknown token"]);

    let mut nan = [0.0; 264];
    nan[262] = f32::NAN;
    expect(Used, &with(spm(), SCORES, scores(&nan)), &["not a number", &format!("{SCORES}[262]"), "NaN"]);
    nan[262] = f32::INFINITY;
    nan[263] = f32::NEG_INFINITY;
    assert_eq!(encode(&with(spm(), SCORES, scores(&nan)), "ab").unwrap(), [262, 261]);
}

#[test]
fn bad_merges_are_seen_when_they_are_used() {
    let merges = |merges: &[&str]| with(bpe(), MERGES, build::strings(merges));
    let at = |rank: usize| format!("{MERGES}[{rank}]");
    expect(Seen::Used, &merges(&["h e", "ll"]), &["without a space", &at(1), "\"ll\""]);
    expect(Seen::Used, &merges(&[""]), &["without a space", &at(0)]);
    expect(Seen::Used, &merges(&["h e", "hx e"]), &["not a token", &at(1), "hx e"]);
    expect(Seen::Used, &merges(&["h ex"]), &["not a token", &at(0)]);
    expect(Seen::Used, &merges(&[" he"]), &["not a token", &at(0)]);
    expect(Seen::Used, &merges(&["h  e"]), &["not a token", &at(0)]);
    expect(Seen::Used, &merges(&["e h"]), &["makes something that is not a token", &at(0), "e h"]);
    expect(Seen::Used, &merges(&["h e", "l l", "h e"]), &["twice", &at(2)]);
}

#[test]
fn damaged_tokens_are_errors_of_decoding_too() {
    let tokenizer = open(&bpe_token(5, b"a b")).unwrap();
    let e = tokenizer.decode(&[5], false).unwrap_err().to_string();
    assert!(e.contains("alphabet") && e.contains(&format!("{TOKENS}[5]")), "{e}");
    assert_eq!(tokenizer.decode(&[u32::from(b'a')], false).unwrap(), "a");
    for id in [260, u32::MAX] {
        assert!(matches!(tokenizer.decode(&[id], true), Err(Error::Argument(_))));
    }
    let tokenizer = open(&spm_token(4, b"<0x-1>")).unwrap();
    assert!(matches!(tokenizer.decode(&[4], true), Err(Error::Format(_))));
}

#[test]
fn any_vocabulary_of_random_bytes_ends_in_tokens_or_an_error() {
    let mut rng = llama_rs::sampling::Rng::new(20);
    let texts = ["hello <|endoftext|> hell", "ab a é\0 <s>", "   \n\n12"];
    for _ in 0..2000 {
        let mut file = if rng.next_u64() & 1 == 0 { bpe() } else { spm() };
        let n = file.kv.len();
        for _ in 0..1 + rng.next_u64() % 8 {
            let (_, Value(_, bytes)) = &mut file.kv[rng.next_u64() as usize % n];
            let at = rng.next_u64() as usize % bytes.len();
            bytes[at] = rng.next_u64() as u8;
        }
        let Ok(tokenizer) = open(&file) else { continue };
        for text in texts {
            let Ok(ids) = tokenizer.encode(text, true, true) else { continue };
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            let _ = tokenizer.decode(&ids, false);
        }
        let _ = tokenizer.end_tokens();
    }
}
