//! GGUF, version 1 (August 2023): the same with 32 bits for counts, lengths and dimensions, and without 64-bit values.
//!
//! The pairs are written again as version 3 has them, in memory, because all who read strings expect that; the tensors stay
//! where they are.

use super::{File, Reader, made};
use crate::checkpoint::{Pairs, ValueType};
use crate::error::Result;

/// The types that there were: up to arrays.
const LAST_TYPE: ValueType = ValueType::Array;

/// Reads what follows the version.
pub(super) fn parse(r: &mut Reader) -> Result<File> {
    let n_tensors = r.count("tensor count", 20)?;
    let n_kv = r.count("metadata count", 9)?;
    r.at_most("metadata count", n_kv)?;
    let mut pairs = Pairs::new();
    for _ in 0..n_kv {
        let (key, at) = r.name("metadata key", super::MAX_KEY_LEN)?;
        if pairs.contains(&key) {
            return Err(r.error("metadata key used twice").at(at).named(&key).into());
        }
        value(r, &key, &mut pairs).map_err(|e| super::blame(e, &key))?;
    }
    let (metadata, _, _) = made(&pairs, &[], r.mapping.path())?;
    let alignment = super::alignment(&metadata)?;
    r.at_most("tensor count", n_tensors)?;
    let entries = (0..n_tensors).map(|_| r.tensor_entry(alignment)).collect::<Result<Vec<_>>>()?;
    let header = r.pos;
    Ok(File { metadata, tensors: r.place(entries, alignment)?, header })
}

fn value(r: &mut Reader, key: &str, pairs: &mut Pairs) -> Result<()> {
    let kind = kind(r)?;
    if let Some(size) = kind.size() {
        let at = r.pos;
        let bytes = r.take(size, "value")?;
        return scalar(r, kind, at, bytes).map(|()| pairs.scalar(key, kind, bytes));
    }
    if kind == ValueType::String {
        let text = r.string("string value")?;
        pairs.str(key, &*text);
        return Ok(());
    }
    let element = self::kind(r)?;
    let len = r.count("array length", element.size().unwrap_or(4))?;
    match element.size() {
        Some(size) => {
            let at = r.pos;
            let bytes = r.take(len * size, "array")?; // `count` knows that the product is in the file
            for (i, bytes) in bytes.chunks_exact(size).enumerate().filter(|_| element == ValueType::Bool) {
                scalar(r, element, at + i, bytes)?;
            }
            pairs.array(key, element, len, bytes);
        }
        None if element == ValueType::String => {
            let texts = (0..len).map(|_| r.string("string of an array")).collect::<Result<Vec<_>>>()?;
            pairs.strs(key, texts.iter().map(|text| &**text));
        }
        None => return Err(r.error("arrays nested too deep").at(r.pos).limit("one level in version 1").into()),
    }
    Ok(())
}

fn scalar(r: &Reader, kind: ValueType, at: usize, bytes: &[u8]) -> Result<()> {
    if kind == ValueType::Bool && bytes[0] > 1 {
        return Err(r.error("bad bool").at(at).got(bytes[0]).limit("0 or 1").into());
    }
    Ok(())
}

fn kind(r: &mut Reader) -> Result<ValueType> {
    let at = r.pos;
    let kind = r.value_type()?;
    if kind.id() > LAST_TYPE.id() {
        return Err(r.error("unknown value type").at(at).got(kind.id()).limit("0 to 9 in version 1").into());
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use crate::error::Result;
    use crate::mapping::Mapping;
    use crate::quant::DType;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn file(pairs: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend([1u32, 1, pairs.len() as u32].map(u32::to_le_bytes).concat());
        for (key, kind, value) in pairs {
            out.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        out.extend([text("t"), [2u32, 3, 2, 0].map(u32::to_le_bytes).concat(), 0u64.to_le_bytes().to_vec()].concat());
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend((0..24).collect::<Vec<u8>>());
        out
    }

    fn read(bytes: Vec<u8>) -> Result<super::File> {
        parse(&Mapping::from_vec(bytes, Path::new("old.gguf")))
    }

    #[test]
    fn it_is_read_as_if_it_were_of_today() {
        let words = [8u32.to_le_bytes().to_vec(), 2u32.to_le_bytes().to_vec(), text("one"), text("")].concat();
        let floats = [[6u32, 1].map(u32::to_le_bytes).concat(), 0.5f32.to_le_bytes().to_vec()].concat();
        let pairs = [("s", 8, text("llama")), ("n", 4, 7u32.to_le_bytes().to_vec()), ("w", 9, words), ("f", 9, floats)];
        let file = read(file(&pairs)).unwrap();
        assert_eq!(file.metadata.str("s").unwrap().unwrap(), "llama");
        assert_eq!(file.metadata.usize("n").unwrap(), Some(7));
        let words = file.metadata.strings("w").unwrap().unwrap();
        assert_eq!(words.iter().collect::<Vec<_>>(), [&b"one"[..], b""]);
        let view = &file.tensors[0].view;
        assert_eq!((file.tensors[0].name(), view.dtype(), view.shape()), ("t", DType::F32, &[3, 2][..]));
        assert_eq!(view.bytes()[..], (0..24).collect::<Vec<u8>>());
    }

    #[test]
    fn what_is_wrong_with_it_is_said() {
        let byte = |key, kind, value: &[u8]| file(&[(key, kind, value.to_vec())]);
        let nested = [[9u32, 1].map(u32::to_le_bytes).concat()].concat();
        let long = [[8u32, 1 << 30].map(u32::to_le_bytes).concat()].concat();
        for (bytes, expected) in [
            (byte("a", 10, &[0; 8]), "unknown value type at byte 21 (a): got 10, expected 0 to 9 in version 1"),
            (byte("a", 7, &[2]), "bad bool at byte 25 (a): got 2, expected 0 or 1"),
            (byte("a", 9, &nested), "arrays nested too deep"),
            (byte("a", 9, &long), "array length is more than the file has room for"),
            (file(&[("a", 0, vec![1]), ("a", 0, vec![1])]), "metadata key used twice at byte 30 (a)"),
            (byte("general.alignment", 4, &[3, 0, 0, 0]), "bad alignment (general.alignment): got 3"),
            (byte("a", 0, &[1])[..40].to_vec(), "reaches past the end of the file"),
        ] {
            let e = read(bytes).err().unwrap_or_else(|| panic!("{expected}")).to_string();
            assert!(e.contains(expected), "{expected}: {e}");
        }
    }
}
