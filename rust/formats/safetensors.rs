//! safetensors: one file, its header read and validated once, its tensors views of the map.
//!
//! Specification: the README of huggingface/safetensors. Layout of a file:
//!
//! ```text
//! n:u64  n bytes of JSON: {"name": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}, ...}
//! the data; offsets count from here, and it is all tensors, without gaps
//! ```
//!
//! The header is copied before it is parsed, because the file may change; its tensors go from the parser into a list one
//! by one, so that nothing is allocated but by what is there.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::one_line;
use crate::error::{FormatError, Result};
use crate::mapping::{Bytes, Mapping};
use crate::quant::DType;
use crate::tensor::TensorView;

/// Longest header, as in the reference implementation.
pub const MAX_HEADER_LEN: usize = 100_000_000;
/// Most dimensions of a tensor that we look at: those of a video's patches have five.
const MAX_DIMS: usize = 8;

/// What one file holds.
pub(super) struct File {
    pub tensors: Vec<Tensor>,
    /// Bytes before the data.
    pub header: usize,
}

/// A tensor of the file. It need not be one that we can compute with.
pub(super) struct Tensor {
    pub name: Box<str>,
    /// The type as the file spells it.
    pub spelling: Box<str>,
    /// The type, if GGUF has it.
    pub dtype: Option<DType>,
    /// Length of each dimension, slowest first.
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl Tensor {
    /// The tensor with these dimensions, fastest first. `None` if GGUF has no such type, and for another number of weights.
    pub fn view(&self, shape: &[usize]) -> Option<TensorView> {
        TensorView::new(self.bytes.clone(), self.dtype?, shape)
    }
}

/// The types by their spelling: what GGUF calls it, and its bits.
const DTYPES: &[(&str, Option<DType>, usize)] = &[
    ("F32", Some(DType::F32), 32),
    ("F16", Some(DType::F16), 16),
    ("BF16", Some(DType::BF16), 16),
    ("F64", Some(DType::F64), 64),
    ("I64", Some(DType::I64), 64),
    ("I32", Some(DType::I32), 32),
    ("I16", Some(DType::I16), 16),
    ("I8", Some(DType::I8), 8),
    ("U64", None, 64),
    ("U32", None, 32),
    ("U16", None, 16),
    ("U8", None, 8),
    ("BOOL", None, 8),
    ("F8_E4M3", None, 8),
    ("F8_E5M2", None, 8),
    ("F8_E8M0", None, 8),
    ("F8_E4M3FNUZ", None, 8),
    ("F8_E5M2FNUZ", None, 8),
    ("F6_E2M3", None, 6),
    ("F6_E3M2", None, 6),
    ("F4", None, 4),
    ("C64", None, 64),
];

/// Whether a file with these contents is one.
pub(super) fn probe(data: &[u8]) -> bool {
    let Some((len, rest)) = data.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*len) < data.len() as u64
}

/// Reads and checks the header.
pub(super) fn parse(mapping: &Arc<Mapping>) -> Result<File> {
    let data = mapping.as_slice();
    let error = |what: &str| FormatError::new(mapping.path(), what);
    let Some((len, rest)) = data.split_first_chunk::<8>() else {
        let e = error("the file is shorter than a safetensors header (is the download complete?)");
        return Err(e.got(format!("{} bytes", data.len())).limit("at least 8").into());
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER_LEN as u64 {
        let e = error("safetensors header too long, or no safetensors file").at(0).got(len);
        return Err(e.limit(format!("at most {MAX_HEADER_LEN} bytes")).into());
    }
    let len = len as usize;
    let Some(json) = rest.get(..len) else {
        let e = error("safetensors header reaches past the end of the file (is the download complete?)").at(0);
        return Err(e.got(format!("{len} bytes")).limit(format!("at most {}", rest.len())).into());
    };
    let json = json.to_vec(); // then checked: the file may change
    let Header(entries) = serde_json::from_slice(&json)
        .map_err(|e| error(&format!("bad safetensors header: {}", one_line(&e.to_string()))).at(8))?;
    drop(json);
    let start = 8 + len;
    place(mapping, entries, start).map(|tensors| File { tensors, header: start })
}

/// Finds the tensors in the data: none overlaps another, none is missing, and nothing lies between.
fn place(mapping: &Arc<Mapping>, mut entries: Vec<Entry>, start: usize) -> Result<Vec<Tensor>> {
    let error = |what: &str, name: &str| FormatError::new(mapping.path(), what).named(name);
    let room = mapping.as_slice().len() - start;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(error("tensor name used twice", &pair[0].name).into());
    }
    entries.sort_by_key(|entry| (entry.offsets, entry.shape.contains(&0)));
    let mut end = 0u64; // of the data so far
    let mut last = "";
    for entry in &entries {
        let [from, to] = entry.offsets;
        if from < end {
            let e = error("tensors overlap", &entry.name).got(format!("offset {from}"));
            return Err(e.limit(format!("at least {end}, where {} ends", one_line(last))).into());
        }
        if from > end {
            let e = error("a hole in the data", &entry.name).got(format!("offset {from}"));
            return Err(e.limit(format!("{end}, where the tensor before it ends")).into());
        }
        if to < from {
            return Err(error("tensor ends before it starts", &entry.name).got(format!("{from} to {to}")).into());
        }
        (end, last) = (to, &entry.name);
    }
    if end > room as u64 {
        let (have, needed) = (mapping.as_slice().len() as u128, start as u128 + u128::from(end));
        // What no disk holds is a lie, not a download.
        if end >= 1 << 48 {
            let e = error("tensor reaches past the end of the file", last).got(format!("{end} bytes of data"));
            return Err(e.limit(format!("a file of {have} bytes")).into());
        }
        let percent = have * 100 / needed;
        let what = format!("the file has {have} of {needed} bytes ({percent} %): the download is incomplete");
        return Err(FormatError::new(mapping.path(), format!("{what}, fetch it again")).into());
    }
    if end < room as u64 {
        let e = FormatError::new(mapping.path(), "more data than tensors").got(format!("{room} bytes"));
        return Err(e.limit(format!("{end} bytes, where the last tensor ends")).into());
    }
    let place = |Entry { name, spelling, shape, offsets: [from, to] }| {
        let Some(&(_, dtype, bits)) = DTYPES.iter().find(|(known, _, _)| *known == &*spelling) else {
            let e = error("unknown tensor type (the file is damaged or newer than this)", &name);
            return Err(e.got(one_line(&spelling)).into());
        };
        let weights = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        let size = weights.and_then(|n| n.checked_mul(bits as u64)).filter(|bits| bits.is_multiple_of(8));
        if size.map(|bits| bits / 8) != Some(to - from) {
            let e = error("not the bytes that type and shape take", &name).got(format!("{} bytes", to - from));
            return Err(e.limit(format!("{spelling} of shape {shape:?}")).into());
        }
        let range = start + from as usize..start + to as usize;
        let bytes = Bytes::new(mapping, range).expect("before the end of the last");
        Ok(Tensor { name, spelling, dtype, shape, bytes })
    };
    entries.into_iter().map(place).collect()
}

/// What the header says of a tensor.
struct Entry {
    name: Box<str>,
    spelling: Box<str>,
    shape: Vec<usize>,
    offsets: [u64; 2],
}

/// The tensors of a header, in its order; what it says of the file as a whole is left out.
struct Header(Vec<Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let Facts { spelling, shape, offsets } = map.next_value()?;
                    entries.push(Entry { name: name.into(), spelling, shape, offsets });
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// What the header says of a tensor beside its name.
struct Facts {
    spelling: Box<str>,
    shape: Vec<usize>,
    offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Facts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Facts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("dtype, shape and data_offsets of a tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Facts, A::Error> {
                let (mut spelling, mut shape, mut offsets) = (None, None, None);
                while let Some(field) = map.next_key::<String>()? {
                    match &*field {
                        "dtype" => spelling = Some(map.next_value::<String>()?),
                        "shape" => shape = Some(map.next_value::<Shape>()?.0),
                        "data_offsets" => offsets = Some(map.next_value::<[u64; 2]>()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Facts {
                    spelling: spelling.ok_or_else(|| A::Error::missing_field("dtype"))?.into(),
                    shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
                    offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
                })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "at most {MAX_DIMS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut dims: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(n) = dims.next_element::<u64>()? {
                    if shape.len() == MAX_DIMS {
                        return Err(A::Error::invalid_length(MAX_DIMS + 1, &self));
                    }
                    shape.push(usize::try_from(n).map_err(A::Error::custom)?);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    fn read(bytes: Vec<u8>) -> Result<File> {
        parse(&Mapping::from_vec(bytes, Path::new("a.safetensors")))
    }

    fn tensor(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    }

    #[test]
    fn tensors_lie_where_the_header_says() {
        let tensors = [tensor("b", "BF16", "[2,3]", "[4,16]"), tensor("a", "F32", "[1]", "[0,4]")];
        let empty = tensor("none", "F32", "[0,7]", "[16,16]");
        let scalar = tensor("scalar", "U8", "[]", "[16,17]");
        let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{},{empty},{scalar}}}   "#, tensors.join(","));
        let found = read(file(&header, 17)).unwrap();
        assert_eq!(found.header, 8 + header.len());
        let shown: Vec<_> = found.tensors.iter().map(|t| (&*t.name, t.dtype, &t.shape[..], t.bytes.range())).collect();
        let h = found.header;
        assert_eq!(
            shown,
            [
                ("a", Some(DType::F32), &[1][..], h..h + 4),
                ("b", Some(DType::BF16), &[2, 3], h + 4..h + 16),
                ("none", Some(DType::F32), &[0, 7], h + 16..h + 16),
                ("scalar", None, &[], h + 16..h + 17),
            ]
        );
        assert_eq!(found.tensors[1].view(&[3, 2]).unwrap().n_rows(), 2);
        assert!(found.tensors[1].view(&[3, 3]).is_none());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_a_line() {
        let one = |shape: &str, offsets: &str| file(&format!("{{{}}}", tensor("t", "F32", shape, offsets)), 8);
        let two = |a: &str, b: &str| file(&format!("{{{a},{b}}}"), 8);
        let t = |name: &str, offsets: &str| tensor(name, "F32", "[1]", offsets);
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (b"1234".to_vec(), "shorter than a safetensors header"),
            (
                (1u64 << 63).to_le_bytes().to_vec(),
                "header too long, or no safetensors file at byte 0: got 92233720368547",
            ),
            (100_000_001u64.to_le_bytes().to_vec(), "expected at most 100000000 bytes"),
            (99u64.to_le_bytes().to_vec(), "header reaches past the end of the file"),
            (file("{", 0), "bad safetensors header: EOF while parsing"),
            (file("[]", 0), "expected an object of tensors"),
            (file("{\"a\":1}", 0), "expected dtype, shape and data_offsets"),
            (file("{\"a\":{}}", 0), "missing field `dtype`"),
            (file("\u{feff}{}", 0), "bad safetensors header: expected value"),
            (file("{\"\\ud800\":1}", 0), "bad safetensors header:"),
            (one("[2]", "[0,8,9]"), "bad safetensors header: trailing characters"),
            (one("[2]", "[0,18446744073709551616]"), "bad safetensors header: invalid type: floating point"),
            (one("[2]", "[-8,0]"), "bad safetensors header: invalid value: integer `-8`"),
            (one("[1,1,1,1,1,1,1,1,1]", "[0,4]"), "at most 8 dimensions"),
            (one("[3]", "[0,8]"), "not the bytes that type and shape take (t): got 8 bytes, expected F32 of shape [3]"),
            (one("[4294967296,4294967296]", "[0,8]"), "not the bytes that type and shape take"),
            (one("[2]", "[0,9223372036854775808]"), "tensor reaches past the end of the file (t): got 92233720368"),
            (one("[4]", "[0,16]"), "(89 %): the download is incomplete, fetch it again"),
            (one("[1]", "[0,4]"), "more data than tensors: got 8 bytes, expected 4 bytes"),
            (one("[1]", "[4,8]"), "a hole in the data (t): got offset 4, expected 0"),
            (one("[2]", "[0,0]"), "more data than tensors"),
            (file("{}", 8), "more data than tensors"),
            (two(&t("a", "[0,4]"), &t("b", "[2,8]")), "tensors overlap (b): got offset 2, expected at least 4"),
            (two(&t("a", "[0,4]"), &t("a", "[4,8]")), "tensor name used twice (a)"),
            (two(&t("a", "[0,4]"), &tensor("b", "F128", "[1]", "[4,8]")), "unknown tensor type"),
            (file(&format!("{{{}}}", tensor("t", "F4", "[3]", "[0,1]")), 1), "not the bytes that type and shape take"),
        ];
        for (bytes, expected) in cases {
            let e = read(bytes).err().unwrap_or_else(|| panic!("{expected}")).to_string();
            assert!(e.starts_with("a.safetensors: ") && e.contains(expected) && !e.contains('\n'), "{expected}: {e}");
        }
    }
}
