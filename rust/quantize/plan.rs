//! A model file into another one: the plan, which is known before a weight is read, and the work.
//!
//! The one idea: rows are independent. A piece of a tensor is read where it is mapped, its rows are shared out, and what
//! they became is written; nothing larger than a piece is ever in private memory.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::imatrix::Imatrix;
use super::mix::{self, Mix, Wishes};
use super::{LARGEST, encode_row, is_encodable};
use crate::checkpoint::{Checkpoint, Pairs, TensorInfo};
use crate::error::{Error, Result};
use crate::formats::gguf::{self, Planned, Sink};
use crate::mapping::guarded;
use crate::quant::{self, DType};
use crate::threads::{self, Disjoint, Interrupt, Queue};

/// Weights of a piece: some tenths of a second of work, a few MiB of memory.
const PIECE: usize = 1 << 20;

/// What becomes of a model file.
#[derive(Debug)]
pub struct Plan {
    checkpoint: Arc<Checkpoint>,
    mix: &'static Mix,
    imatrix: Option<Imatrix>,
    tensors: Vec<Planned>,
}

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// The mix.
    pub mix: &'static Mix,
    /// What else decides about types.
    pub wishes: Wishes,
    /// How much errors cost.
    pub imatrix: Option<Imatrix>,
    /// Whether what is quantised already may be so again.
    pub allow_requantize: bool,
    /// Whether a mix that needs an importance matrix may be planned without one; it cannot be carried out then.
    pub dry: bool,
}

impl Plan {
    /// Plans a file.
    ///
    /// # Errors
    /// [`Error::Argument`] if it cannot be done: importances that are missing or of another model, a type that cannot be made,
    /// a tensor that must not or cannot be converted. Those of the metadata.
    pub fn new(checkpoint: &Arc<Checkpoint>, request: Request) -> Result<Self> {
        let Request { mix, mut wishes, imatrix, allow_requantize, dry } = request;
        wishes.seeing = imatrix.is_some();
        for dtype in wishes.tensors.values().chain(&wishes.output).chain(&wishes.token_embedding).chain([&mix.base]) {
            if !is_encodable(*dtype) {
                return Err(Error::Argument(format!("no weights can be made into {dtype}")));
            }
        }
        if let Some(name) = wishes.tensors.keys().find(|name| checkpoint.tensor(name).is_none()) {
            return Err(checkpoint.error("no such tensor", name).into());
        }
        let types = mix::types(checkpoint, mix, &wishes)?;
        let mut tensors = Vec::new();
        for (tensor, dtype) in checkpoint.tensors().iter().zip(types) {
            let (name, old) = (tensor.name(), tensor.view.dtype());
            let fail = |what: String| Err(Error::Argument(format!("{}: {name}: {what}", checkpoint.path().display())));
            if dtype != old {
                if !is_encodable(dtype) {
                    return fail(format!("no weights can be made into {dtype}"));
                }
                if !old.is_supported() {
                    return fail(format!("{old} cannot be converted to {dtype}"));
                }
                if old.is_quantized() && !allow_requantize {
                    let what = "is quantized already: what is lost twice is lost for good, so start from a file of F16, BF16 or F32";
                    return fail(format!("{what}, or allow it to be requantized (from {old} to {dtype})"));
                }
                let importance = importance(imatrix.as_ref(), tensor)?;
                if importance.is_none() && mix::needs_importance(mix, name, dtype) && !dry {
                    let what = if imatrix.is_some() {
                        "the importance matrix has nothing for it"
                    } else {
                        "there is no importance matrix: llama-rs imatrix makes one"
                    };
                    return fail(format!("{dtype} has too few bits to do without importances, and {what}"));
                }
            }
            tensors.push(Planned { dtype, ..Planned::like(tensor) });
        }
        Ok(Self { checkpoint: Arc::clone(checkpoint), mix, imatrix, tensors })
    }

    /// What becomes of each tensor, in the order of the file.
    pub fn tensors(&self) -> &[Planned] {
        &self.tensors
    }

    /// Writes the file at `path`, or replaces it, in one step. `progress` is told how many bytes of how many are there.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written, [`Error::Changed`] if the model changed meanwhile, [`Error::Interrupted`],
    /// [`Error::Numeric`] for weights that are no numbers or too large for f16 scales. The file at `path` is as it was then.
    pub fn write(
        &self,
        path: &Path,
        threads: usize,
        interrupt: &Interrupt,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let pairs = self.pairs();
        self.checkpoint.checked(|| {
            gguf::write(path, &pairs, &self.tensors, interrupt, progress, &mut |i, sink| {
                self.convert(i, threads, interrupt, sink)?;
                self.checkpoint.check_pages() // before it gets its name
            })
        })
    }

    fn pairs(&self) -> Pairs {
        let old = &self.checkpoint.metadata;
        let ours = ["general.alignment", "general.file_type", "general.quantization_version"];
        let mut pairs = Pairs::new();
        let is_kept =
            |key: &str| !ours.contains(&key) && !key.starts_with("split.") && !key.starts_with("quantize.imatrix.");
        pairs.copy_all(old, is_kept);
        pairs.u32("general.file_type", self.mix.file_type);
        pairs.u32("general.quantization_version", 2); // of the layouts of blocks, since 2023
        if let Some(imatrix) = &self.imatrix {
            if let Some(dataset) = imatrix.datasets.first() {
                pairs.str("quantize.imatrix.dataset", dataset);
            }
            pairs.u32("quantize.imatrix.entries_count", imatrix.len() as u32);
            pairs.u32("quantize.imatrix.chunks_count", imatrix.chunks);
        }
        pairs
    }

    /// Writes the bytes of tensor `i`.
    fn convert(&self, i: usize, threads: usize, interrupt: &Interrupt, sink: &mut Sink) -> Result<()> {
        let (old, new) = (&self.checkpoint.tensors()[i], &self.tensors[i]);
        if new.dtype == old.view.dtype() {
            return sink.write(old.view.bytes());
        }
        let (row, n_rows) = (old.view.row_len(), old.view.n_rows());
        let matrix_rows = old.view.shape().get(1).copied().unwrap_or(1);
        let importance = importance(self.imatrix.as_ref(), old)?;
        let row_bytes = new.dtype.row_bytes(row).expect("rows of whole blocks");
        let rows = (PIECE / row).clamp(1, n_rows);
        let mut out = Vec::new();
        let bytes = rows as u128 * row_bytes as u128;
        out.try_reserve_exact(rows * row_bytes).map_err(|_| Error::OutOfMemory { bytes, what: "rows of blocks" })?;
        out.resize(rows * row_bytes, 0u8);
        for first in (0..n_rows).step_by(rows) {
            let rows = rows.min(n_rows - first);
            let bad = Mutex::new(None);
            let queue = Queue::new(rows, 1, threads);
            let cells = Disjoint::new(&mut out);
            threads::run(threads, &|worker| {
                let _guarded = guarded();
                let mut x = vec![0.0; row];
                queue.run(worker, |chunk| {
                    for k in chunk {
                        if interrupt.poll(worker) {
                            return;
                        }
                        let at = first + k;
                        quant::dequantize(old.view.dtype(), old.view.row(at), &mut x);
                        if let Some(what) = complaint(&x, new.dtype) {
                            bad.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((at, what));
                            return;
                        }
                        let importance = importance.map(|all| match all.len() == row {
                            true => all,
                            false => &all[at / matrix_rows * row..][..row],
                        });
                        // SAFETY: the queue hands out each row once.
                        encode_row(new.dtype, &x, importance, unsafe {
                            cells.slice(k * row_bytes..(k + 1) * row_bytes)
                        });
                    }
                });
            });
            if interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
            if let Some((at, what)) = bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
                self.checkpoint.check()?; // zeros of a file that was cut short are no news
                let path = self.checkpoint.path().into();
                return Err(Error::Numeric { path, what: format!("row {at} of {} {what}", old.name()) });
            }
            sink.write(&out[..rows * row_bytes])?;
        }
        Ok(())
    }
}

/// What is wrong with a row that shall become `dtype`.
fn complaint(x: &[f32], dtype: DType) -> Option<String> {
    let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if x.iter().any(|x| !x.is_finite()) {
        return Some("has a weight that is not a number: the model is damaged".into());
    }
    let limited = !matches!(dtype, DType::F32 | DType::BF16);
    (limited && largest > LARGEST).then(|| format!("has the weight {largest}, and {dtype} holds none above {LARGEST}"))
}

/// The importances for a tensor, for one matrix or for each of those in it.
fn importance<'a>(imatrix: Option<&'a Imatrix>, tensor: &TensorInfo) -> Result<Option<&'a [f32]>> {
    let Some(values) = imatrix.and_then(|imatrix| imatrix.get(tensor.name())) else { return Ok(None) };
    let shape = tensor.view.shape();
    let expected = shape[0] * shape.get(2).copied().unwrap_or(1);
    if values.len() == expected || values.len() == shape[0] {
        return Ok(Some(values));
    }
    if tensor.name() == "token_embd.weight" {
        return Ok(None); // measured as the output, if at all
    }
    Err(Error::Argument(format!(
        "the importance matrix has {} importances for {}, expected {expected}: it is of another model",
        values.len(),
        tensor.name()
    )))
}
