//! Writing GGUF, version 3: pairs, then tensors, whose bytes come in pieces.
//!
//! The header is known before the first weight is: names, types and shapes say where everything lies. So a tensor of any
//! size goes through in pieces of its maker's choice, and nothing of it is kept. The file appears under its name when it
//! is whole, see [`replace_file`].

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{DEFAULT_ALIGNMENT, MAX_DIMS, MAX_NAME_LEN};
use crate::checkpoint::{Pairs, TensorInfo};
use crate::error::{Error, Result};
use crate::mapping::replace_file;
use crate::quant::DType;
use crate::threads::Interrupt;

/// What is given to the file at a time, between two looks at whether to stop.
const PIECE: usize = 1 << 20;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How its weights are encoded.
    pub dtype: DType,
    /// Length of each dimension, fastest first, as [`TensorView::shape`](crate::tensor::TensorView::shape).
    pub shape: Vec<usize>,
}

impl Planned {
    /// A tensor as another is.
    pub fn like(tensor: &TensorInfo) -> Self {
        Self { name: tensor.name().into(), dtype: tensor.view.dtype(), shape: tensor.view.shape().to_vec() }
    }

    /// Bytes of all its rows.
    ///
    /// # Panics
    /// If a row is not a whole number of blocks, or if there are more bytes than can be counted.
    pub fn size(&self) -> usize {
        let row = self.dtype.row_bytes(self.shape[0]).expect("rows of whole blocks");
        self.shape[1..].iter().try_fold(row, |size, &n| size.checked_mul(n)).expect("a tensor that fits in a file")
    }
}

/// Where the bytes of a tensor go, in their order.
pub struct Sink<'a> {
    file: &'a mut File,
    path: &'a Path,
    interrupt: &'a Interrupt<'a>,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,   // bytes of the file
    whole: u64,  // when it is ready
    left: usize, // of this tensor
}

impl Sink<'_> {
    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be written, [`Error::Interrupted`].
    ///
    /// # Panics
    /// If the tensor has not so many.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len()).expect("no more than the tensor has");
        self.put(bytes)
    }

    /// Bytes of this tensor that are still to come.
    pub fn left(&self) -> usize {
        self.left
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE) {
            if self.interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
            self.file.write_all(piece).map_err(|source| Error::File { path: self.path.into(), source })?;
            self.done += piece.len() as u64;
            (self.progress)(self.done, self.whole);
        }
        Ok(())
    }

    fn pad(&mut self, alignment: u64) -> Result<()> {
        let zeros = self.done.next_multiple_of(alignment) - self.done;
        self.put(&vec![0; zeros as usize])
    }
}

/// Writes a GGUF file, or replaces it, in one step. `fill` is asked for the bytes of one tensor after another, by their
/// number in `tensors`, and writes all of them to the [`Sink`]. `progress` is told how many bytes of how many are written.
///
/// # Errors
/// [`Error::File`] if it cannot be written or is mapped by this process, [`Error::Interrupted`], and those of `fill`: the
/// file at `path` is as it was then. [`Error::Argument`] for a tensor that GGUF cannot hold.
///
/// # Panics
/// If a row of a tensor is not a whole number of blocks; if a pair says another alignment; if `fill` writes less or more than the tensor has.
pub fn write(
    path: &Path,
    pairs: &Pairs,
    tensors: &[Planned],
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
    fill: &mut dyn FnMut(usize, &mut Sink) -> Result<()>,
) -> Result<()> {
    assert!(!pairs.contains("general.alignment"), "files are written with the default alignment");
    let alignment = DEFAULT_ALIGNMENT as u64;
    let header = header(pairs, tensors)?;
    let padded = |n: u64| n.next_multiple_of(alignment);
    let whole = tensors.iter().fold(padded(header.len() as u64), |sum, tensor| sum + padded(tensor.size() as u64));
    replace_file(path, |file| {
        let mut sink = Sink { file, path, interrupt, progress, done: 0, whole, left: 0 };
        sink.put(&header)?;
        sink.pad(alignment)?;
        for (i, tensor) in tensors.iter().enumerate() {
            sink.left = tensor.size();
            fill(i, &mut sink)?;
            assert_eq!(sink.left, 0, "bytes of {} that did not come", tensor.name);
            sink.pad(alignment)?;
        }
        if interrupt.poll_now() { Err(Error::Interrupted) } else { Ok(()) }
    })
}

/// A file in memory, whose tensor `i` has the bytes `data(i)`.
pub(super) fn to_vec<'a>(pairs: &Pairs, tensors: &[Planned], data: impl Fn(usize) -> &'a [u8]) -> Result<Vec<u8>> {
    let mut out = header(pairs, tensors)?;
    for i in 0..tensors.len() {
        out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
        out.extend_from_slice(data(i));
    }
    Ok(out)
}

/// The file before its data, which has the default alignment.
fn header(pairs: &Pairs, tensors: &[Planned]) -> Result<Vec<u8>> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    out.extend(pairs.bytes());
    let mut offset = 0u64;
    for tensor in tensors {
        if !(1..=MAX_NAME_LEN).contains(&tensor.name.len()) || !(1..=MAX_DIMS).contains(&tensor.shape.len()) {
            let name: String = tensor.name.chars().take(80).flat_map(char::escape_debug).collect();
            let n = tensor.shape.len();
            return Err(Error::Argument(format!("GGUF holds no tensor {name} of {n} dimensions")));
        }
        out.extend((tensor.name.len() as u64).to_le_bytes());
        out.extend(tensor.name.as_bytes());
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(tensor.dtype.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + tensor.size() as u64).next_multiple_of(DEFAULT_ALIGNMENT as u64);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::checkpoint::{Value, ValueType};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("llama_rs-write-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn planned(name: &str, dtype: DType, shape: &[usize]) -> Planned {
        Planned { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = Folder::new("round");
        let path = folder.0.join("a.gguf");
        let mut pairs = Pairs::new();
        pairs.str("general.architecture", "llama");
        pairs.u32("u32", 7);
        pairs.u16("u16", 7);
        pairs.i32("i32", -7);
        pairs.u64("u64", 1 << 40);
        pairs.f32("f32", 0.5);
        pairs.bool("bool", true);
        pairs.bools("bools", &[true, false]);
        pairs.f32s("f32s", &[1.0, 2.0, 3.0]);
        pairs.strs("strs", ["one", "", "three"].iter());
        let tensors =
            [planned("a", DType::F32, &[3]), planned("b", DType::Q8_0, &[32, 2, 2]), planned("c", DType::F16, &[5, 3])];
        let bytes = |i: usize| (0..tensors[i].size()).map(|k| (k * 7 + i) as u8).collect::<Vec<_>>();
        let mut told = Vec::new();
        write(
            &path,
            &pairs,
            &tensors,
            &Interrupt::never(),
            &mut |done, whole| told.push((done, whole)),
            &mut |i, sink| bytes(i).chunks(5).try_for_each(|piece| sink.write(piece)),
        )
        .unwrap();
        let size = fs::metadata(&path).unwrap().len();
        assert_eq!(told.last(), Some(&(size, size)));
        assert!(told.is_sorted() && told.iter().all(|(_, whole)| *whole == size));

        let file = crate::formats::open(&path).unwrap();
        let m = &file.metadata;
        assert_eq!(m.iter().count(), pairs.len());
        assert_eq!(m.str("general.architecture").unwrap().unwrap(), "llama");
        assert_eq!([m.usize("u32"), m.usize("u16")].map(|n| n.unwrap().unwrap()), [7, 7]);
        assert!(matches!(m.get("i32"), Some(Value::Signed(-7))));
        assert_eq!(m.usize("u64").unwrap(), Some(1 << 40));
        assert_eq!((m.f32("f32").unwrap(), m.bool("bool").unwrap()), (Some(0.5), Some(true)));
        let floats = m.array("f32s", ValueType::F32).unwrap().unwrap();
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&floats.bytes), [1.0, 2.0, 3.0]);
        assert_eq!(m.array("bools", ValueType::Bool).unwrap().unwrap().bytes[..], [1, 0]);
        let strings: Vec<_> = m.strings("strs").unwrap().unwrap().iter().map(<[u8]>::to_vec).collect();
        assert_eq!(strings, [&b"one"[..], b"", b"three"]);
        assert_eq!(file.tensors().iter().map(Planned::like).collect::<Vec<_>>(), tensors);
        for (i, tensor) in file.tensors().iter().enumerate() {
            assert_eq!(tensor.view.bytes()[..], bytes(i), "{}", tensor.name());
            assert!(tensor.view.bytes().offset().is_multiple_of(32));
        }

        // A copy has the same bytes, the widths of integers included.
        let mut copy = Pairs::new();
        copy.copy_all(m, |_| true);
        assert_eq!(copy.bytes(), pairs.bytes());
        copy.copy(m, "absent");
        assert!(!copy.contains("absent"));
    }

    #[test]
    fn a_file_that_was_not_finished_is_not_there() {
        let folder = Folder::new("stop");
        let path = folder.0.join("a.gguf");
        let tensors = [planned("a", DType::F32, &[1 << 20])];
        let zeros = vec![0; tensors[0].size()];
        let stop = || true;
        let interrupt = Interrupt::new(&stop);
        let result =
            write(&path, &Pairs::new(), &tensors, &interrupt, &mut |_, _| {}, &mut |_, sink| sink.write(&zeros));
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);

        let long = [planned(&"n".repeat(MAX_NAME_LEN + 1), DType::F32, &[1])];
        let e =
            write(&path, &Pairs::new(), &long, &Interrupt::never(), &mut |_, _| {}, &mut |_, _| Ok(())).unwrap_err();
        assert!(e.to_string().starts_with("GGUF holds no tensor nnn"), "{e}");
    }
}
