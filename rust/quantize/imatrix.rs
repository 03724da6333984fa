//! Importance matrices: how much an error of each column of each matrix costs, measured by `imatrix` on a text.
//!
//! Two formats, both of llama.cpp: a GGUF file with `general.type` = `imatrix`, whose tensors `NAME.in_sum2` and `NAME.counts`
//! are sums of squares of what a matrix was multiplied with and how many there were; and the older `.dat`, which has no magic
//! and is known by not being GGUF.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::{Checkpoint, Pairs};
use crate::error::{Error, FormatError, Result};
use crate::formats;
use crate::formats::gguf::{self, Planned};
use crate::kernels::Observer;
use crate::kernels::activations::Activations;
use crate::mapping::Mapping;
use crate::quant::{self, DType};
use crate::tensor::TensorView;
use crate::threads::Interrupt;

/// Importances by the names of matrices.
#[derive(Debug, Default)]
pub struct Imatrix {
    /// For each matrix the mean square of each column of its input; of several matrices in a tensor one after another.
    entries: HashMap<String, Vec<f32>>,
    /// The texts that it was measured on, as it says.
    pub datasets: Vec<String>,
    /// Pieces of text that it was measured on.
    pub chunks: u32,
}

impl Imatrix {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Format`], [`Error::Changed`].
    pub fn open(path: &Path) -> Result<Self> {
        let map = Mapping::open(path)?;
        if map.checked(|| Ok(map.as_slice().starts_with(b"GGUF")))? {
            drop(map);
            let checkpoint = formats::open(path)?;
            return checkpoint.checked(|| Self::of_gguf(&checkpoint));
        }
        // A copy: what is checked is what is used.
        let bytes = map.checked(|| Ok(map.as_slice().to_vec()))?;
        Self::of_dat(&bytes, path)
    }

    /// The importances of the columns of the matrix called `name`.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.entries.get(name).map(Vec::as_slice)
    }

    /// Number of matrices.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn of_gguf(checkpoint: &Checkpoint) -> Result<Self> {
        let m = &checkpoint.metadata;
        if m.str("general.type")?.as_deref() != Some("imatrix") {
            return Err(m.error("no importance matrix", "general.type").limit("the string imatrix").into());
        }
        let mut new = Self { chunks: m.usize("imatrix.chunk_count")?.unwrap_or(0) as u32, ..Self::default() };
        if let Some(names) = m.strings("imatrix.datasets")? {
            new.datasets = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        }
        for tensor in checkpoint.tensors() {
            let Some(name) = tensor.name().strip_suffix(".in_sum2") else { continue };
            let count_name = format!("{name}.counts");
            let counts =
                checkpoint.tensor(&count_name).ok_or_else(|| checkpoint.error("tensor is missing", &count_name))?;
            let floats = |view: &TensorView, name: &str| {
                if view.dtype() != DType::F32 {
                    return Err(Error::from(
                        checkpoint.error("wrong tensor type", name).got(view.dtype()).limit("F32"),
                    ));
                }
                let mut out = vec![0.0; view.bytes().len() / 4];
                quant::dequantize(DType::F32, view.bytes(), &mut out);
                Ok(out)
            };
            let (sums, counts) = (floats(&tensor.view, tensor.name())?, floats(counts, &count_name)?);
            if !sums.len().is_multiple_of(counts.len()) {
                let e = checkpoint.error("counts do not fit the sums", &count_name).got(counts.len());
                return Err(e.limit(format!("a divisor of {}", sums.len())).into());
            }
            let columns = sums.len() / counts.len();
            let mut means = Vec::with_capacity(sums.len());
            for (sums, &count) in sums.chunks_exact(columns).zip(&counts) {
                means.extend(sums.iter().map(|sum| if count > 0.0 { sum / count } else { 1.0 }));
            }
            let fail = |what: &str| checkpoint.error(what, tensor.name());
            new.add(name.into(), means, columns, fail)?;
        }
        Ok(new)
    }

    fn of_dat(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut rest = Rest { bytes, at: 0, path };
        let mut new = Self::default();
        let n_entries = rest.count("entries", 1 << 24)?;
        for _ in 0..n_entries {
            let (at, len) = (rest.at, rest.count("the length of a name", 1 << 16)?);
            let name = String::from_utf8_lossy(rest.take(len)?).into_owned();
            let calls = rest.i32()?.max(1) as f32;
            let len = rest.count("values", 1 << 28)?;
            let bytes = rest.take(4 * len)?;
            let values = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b) / calls).collect();
            let fail = |what: &str| FormatError::new(path, what).at(at).named(&name);
            new.add(name.clone(), values, len, fail)?;
        }
        if rest.at < bytes.len() {
            // Newer ones of these say what they were measured on.
            new.chunks = rest.i32()?.max(0) as u32;
            let len = rest.count("the length of a name", 1 << 16)?;
            new.datasets.push(String::from_utf8_lossy(rest.take(len)?).into_owned());
        }
        Ok(new)
    }

    /// Takes the importances of a matrix after a look at them.
    fn add(
        &mut self,
        name: String,
        mut values: Vec<f32>,
        columns: usize,
        fail: impl Fn(&str) -> FormatError,
    ) -> Result<()> {
        if let Some(bad) = values.iter().find(|value| !(value.is_finite() && **value >= 0.0)) {
            return Err(fail("an importance is not a number of 0 or more").got(bad).into());
        }
        for values in values.chunks_exact_mut(columns.max(1)) {
            // A column that was never used still has weights: it counts very little, not nothing.
            let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
            let least = if mean > 0.0 { (mean * 1e-6) as f32 } else { 1.0 };
            values.iter_mut().for_each(|value| *value = value.max(least));
        }
        self.entries.insert(name, values);
        Ok(())
    }
}

/// Sums up what the matrices of layers are multiplied with while a model computes.
pub struct Collector {
    checkpoint: Arc<Checkpoint>,
    by_position: Vec<(usize, usize)>, // where a tensor lies, and its number
    sums: Mutex<BTreeMap<usize, Sums>>,
}

/// What was seen of the matrices of a tensor.
struct Sums {
    squares: Vec<f64>, // of each column, of one matrix after another
    counts: Vec<u64>,  // of rows that a matrix was multiplied with
}

impl Collector {
    /// Nothing seen so far.
    pub fn new(checkpoint: &Arc<Checkpoint>) -> Self {
        let at = |tensor: &crate::checkpoint::TensorInfo| checkpoint.position(tensor.view.bytes());
        let tensors = checkpoint.tensors().iter().enumerate();
        let mut by_position: Vec<_> = tensors.filter_map(|(i, tensor)| Some((at(tensor)?, i))).collect();
        by_position.sort_unstable();
        Self { checkpoint: Arc::clone(checkpoint), by_position, sums: Mutex::default() }
    }

    /// Writes what was seen, as llama.cpp does: sums of squares and how many there were.
    ///
    /// # Errors
    /// [`Error::Argument`] if nothing was seen, [`Error::Numeric`] if a model computes what is no number, those of
    /// [`gguf::write`].
    pub fn write(&self, path: &Path, dataset: &str, chunks: u32, chunk_size: u32, interrupt: &Interrupt) -> Result<()> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.is_empty() {
            return Err(Error::Argument("nothing was computed: there is no importance to write".into()));
        }
        let mut pairs = Pairs::new();
        pairs.str("general.type", "imatrix");
        pairs.strs("imatrix.datasets", [dataset].iter());
        pairs.u32("imatrix.chunk_count", chunks);
        pairs.u32("imatrix.chunk_size", chunk_size);
        let (mut tensors, mut contents) = (Vec::new(), Vec::new());
        for (&i, Sums { squares, counts }) in sums.iter() {
            let name = self.checkpoint.tensors()[i].name();
            if squares.iter().any(|square| !square.is_finite()) {
                let what = format!("what {name} is multiplied with is not a number: a weight is damaged");
                return Err(Error::Numeric { path: self.checkpoint.path().into(), what });
            }
            let mut add = |suffix: &str, shape: [usize; 2], values: Vec<f32>| {
                tensors.push(Planned { name: format!("{name}.{suffix}"), dtype: DType::F32, shape: shape.into() });
                contents.push(values);
            };
            let columns = squares.len() / counts.len();
            add("in_sum2", [columns, counts.len()], squares.iter().map(|&square| square as f32).collect());
            add("counts", [1, counts.len()], counts.iter().map(|&count| count as f32).collect());
        }
        gguf::write(path, &pairs, &tensors, interrupt, &mut |_, _| {}, &mut |i, sink| {
            sink.write(bytemuck::cast_slice(&contents[i]))
        })
    }
}

impl Observer for Collector {
    fn see(&self, w: &TensorView, x: &Activations, tokens: Range<usize>) {
        let Some(at) = self.checkpoint.position(w.bytes()) else { return };
        let after = self.by_position.partition_point(|&(start, _)| start <= at);
        let Some(&(start, i)) = after.checked_sub(1).and_then(|before| self.by_position.get(before)) else { return };
        let tensor = &self.checkpoint.tensors()[i];
        // As llama.cpp: of the output nothing, which has a type of its own.
        if !tensor.name().starts_with("blk.") {
            return;
        }
        let (shape, columns) = (tensor.view.shape(), x.n());
        let matrices = shape.get(2).copied().unwrap_or(1);
        let matrix_bytes = tensor.view.bytes().len() / matrices;
        let matrix = (at - start) / matrix_bytes.max(1);
        if columns != shape[0] || matrix >= matrices {
            return;
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Sums { squares: vec![0.0; columns * matrices], counts: vec![0; matrices] };
        let Sums { squares, counts } = sums.entry(i).or_insert_with(new);
        counts[matrix] += tokens.len() as u64;
        for t in tokens {
            for (square, &x) in squares[matrix * columns..][..columns].iter_mut().zip(x.x(t)) {
                *square += f64::from(x) * f64::from(x);
            }
        }
    }
}

/// What is left of a file to read.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let bytes = self.bytes.get(self.at..).and_then(|rest| rest.get(..n)).ok_or_else(|| {
            FormatError::new(self.path, "an importance matrix ends early")
                .at(self.at)
                .got(self.bytes.len() - self.at)
                .limit(n)
        })?;
        self.at += n;
        Ok(bytes)
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn count(&mut self, what: &str, limit: i32) -> Result<usize> {
        let at = self.at;
        match self.i32()? {
            n if (1..=limit).contains(&n) => Ok(n as usize),
            n => {
                let e = FormatError::new(self.path, format!("not an importance matrix, by the number of {what}"));
                Err(e.at(at).got(n).limit(format!("1 to {limit}")).into())
            }
        }
    }
}
