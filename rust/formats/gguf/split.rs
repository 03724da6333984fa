//! GGUF in parts, as `llama-gguf-split` makes them: `NAME-00001-of-00003.gguf` and so on, in one folder.
//!
//! Each part is a GGUF file. The keys `split.no` (from 0), `split.count` and `split.tensors.count` say which it is; the first
//! has the metadata of the model. The others are found by the name that the opened one has: nothing that a file says is part
//! of a path.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::{OpenPart, identify};
use super::parse;
use crate::checkpoint::{Checkpoint, Metadata, Value};
use crate::error::{Error, FormatError, Result};
use crate::mapping::Mapping;

pub(super) const NO: &str = "split.no";
pub(super) const COUNT: &str = "split.count";
pub(super) const N_TENSORS: &str = "split.tensors.count";

/// What the file holds; if it is a part of a model, what all parts hold.
pub fn open(map: &Arc<Mapping>, open_part: &OpenPart) -> Result<Checkpoint> {
    let file = map.checked(|| parse(map))?;
    let Some(count @ 2..) = file.metadata.usize(COUNT)? else {
        return Checkpoint::new(file.metadata, file.tensors, vec![(Arc::clone(map), file.header)]);
    };
    let no = number(&file.metadata)?;
    if no >= count {
        return Err(file
            .metadata
            .error("no such part", NO)
            .got(no)
            .limit(format!("less than {COUNT}, {count}"))
            .into());
    }
    let name = Name::of(map.path(), no, count)?;

    let (mut opened, mut parts) = (Some((Arc::clone(map), file)), Vec::new());
    for i in 0..count {
        parts.push(match opened.take_if(|_| i == no) {
            Some(part) => part,
            None => {
                let part = open_part(&name.part(i)).map_err(|e| name.missing(e, map.path(), i))?;
                let file = part.checked(|| identify(&part).and_then(|_| parse(&part)))?;
                (part, file)
            }
        });
        let (first, part) = (&parts[0].1.metadata, &parts[i].1.metadata);
        if number(part)? != i || part.usize(COUNT)? != Some(count) {
            let of = part.usize(COUNT)?.map_or(String::new(), |count| format!(" of {count}"));
            let e = part.error("another part than its name says", NO).got(format!("part {}{of}", number(part)? + 1));
            return Err(e.limit(format!("part {} of {count}", i + 1)).into());
        }
        if let Some((key, value)) = part.iter().find(|(key, value)| *key != NO && differs(first.get(key), value)) {
            let e = part.error("a part of another model", key).got(shown(value));
            let theirs = first.get(key).map_or(String::new(), shown);
            return Err(e.limit(format!("{theirs} as in {}", first.path().display())).into());
        }
    }

    let found: usize = parts.iter().map(|(_, file)| file.tensors.len()).sum();
    let first = &parts[0].1.metadata;
    if let Some(n) = first.usize(N_TENSORS)?
        && n != found
    {
        let e = first.error("not the number of tensors in all parts together", N_TENSORS).got(n);
        return Err(e.limit(found).into());
    }
    let (mut metadata, mut tensors, mut maps) = (None, Vec::with_capacity(found), Vec::with_capacity(count));
    for (map, file) in parts {
        metadata.get_or_insert(file.metadata);
        tensors.extend(file.tensors);
        maps.push((map, file.header));
    }
    Checkpoint::new(metadata.expect("there are two parts at least"), tensors, maps)
}

/// Which part it is, from 0.
fn number(metadata: &Metadata) -> Result<usize> {
    metadata.usize(NO)?.ok_or_else(|| metadata.error("missing key", NO).into())
}

/// Whether two parts disagree about a key that both have. They need not both have it.
fn differs(first: Option<&Value>, value: &Value) -> bool {
    match (first, value) {
        (None, _) => false,
        (Some(Value::Unsigned(a)), Value::Unsigned(b)) => a != b,
        (Some(Value::Signed(a)), Value::Signed(b)) => a != b,
        (Some(Value::F32(a)), Value::F32(b)) => a.to_bits() != b.to_bits(),
        (Some(Value::F64(a)), Value::F64(b)) => a.to_bits() != b.to_bits(),
        (Some(Value::Bool(a)), Value::Bool(b)) => a != b,
        (Some(Value::String(a)), Value::String(b)) => a[..] != b[..],
        (Some(Value::Array(a)), Value::Array(b)) => a.bytes[..] != b.bytes[..],
        _ => true,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Unsigned(n) => n.to_string(),
        Value::Signed(n) => n.to_string(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::String(s) => {
            let s = s[..s.len().min(160)].to_vec(); // a copy, then converted
            String::from_utf8_lossy(&s).chars().take(40).flat_map(char::escape_debug).collect()
        }
        Value::Array(a) => format!("an array of {} elements", a.len),
    }
}

/// What the parts of a model are called.
struct Name {
    folder: PathBuf,
    prefix: Vec<u8>, // up to the dash before the number
    count: usize,
}

impl Name {
    /// The name that the part `no` of `count` has.
    fn of(path: &Path, no: usize, count: usize) -> Result<Self> {
        let file = path.file_name().unwrap_or_default().as_bytes();
        let ending = ending(no, count);
        let Some(prefix) = file.strip_suffix(ending.as_bytes()) else {
            let what = format!(
                "part {} of a model split in {count}: the others are found by its name, which has to end in {ending}; \
                 rename it, or join the parts with llama-gguf-split --merge",
                no + 1
            );
            return Err(FormatError::new(path, what).into());
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self { folder, prefix: prefix.to_vec(), count })
    }

    fn part(&self, i: usize) -> PathBuf {
        let name = [&self.prefix, ending(i, self.count).as_bytes()].concat();
        self.folder.join(OsString::from_vec(name))
    }

    /// Why part `i`, which the file at `path` needs, cannot be opened.
    fn missing(&self, e: Error, path: &Path, i: usize) -> Error {
        match e {
            Error::File { path: part, source } if source.kind() == io::ErrorKind::NotFound => {
                let part = part.file_name().unwrap_or_default().display().to_string();
                let what = format!("part {} of {} is missing, {part}: fetch it to the same folder", i + 1, self.count);
                FormatError::new(path, what).into()
            }
            e => e,
        }
    }
}

/// The name of part `i` of `count` that begins with `prefix`.
pub(super) fn name_of(prefix: &Path, i: usize, count: usize) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(ending(i, count));
    name.into()
}

/// `-00001-of-00003.gguf`: the parts are counted from 1 in names.
fn ending(i: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_the_name_of_the_one_that_was_opened() {
        let name = Name::of(Path::new("/models/a-00001-of-00002-00002-of-00003.gguf"), 1, 3).unwrap();
        assert_eq!(name.part(0), Path::new("/models/a-00001-of-00002-00001-of-00003.gguf"));
        assert_eq!(name.part(2), Path::new("/models/a-00001-of-00002-00003-of-00003.gguf"));
        assert_eq!(
            Name::of(Path::new("-00001-of-00002.gguf"), 0, 2).unwrap().part(1),
            Path::new("-00002-of-00002.gguf")
        );
        for wrong in ["a-00001-of-00003.gguf", "a-00002-of-00004.gguf", "a-2-of-3.gguf", "a.gguf", "..", "/"] {
            assert!(Name::of(Path::new(wrong), 1, 3).is_err(), "{wrong}");
        }
    }
}
