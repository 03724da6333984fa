//! A Hugging Face directory into a GGUF file: what `llama-rs convert` does.
//!
//! The directory is read as when it runs, by [`formats`](crate::formats). What its weights differ in from those of GGUF files
//! is made good here, row by row: each tensor of the new file is a function from the number of a row to its numbers. So
//! nothing is in memory but the rows that are being written, and what is done to them reads as it is defined.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use crate::checkpoint::{Metadata, Pairs, TensorInfo};
use crate::error::{Error, FormatError, Result};
use crate::formats::gguf::{self, Planned, Sink};
use crate::formats::huggingface::{self, Directory};
use crate::mapping::{LoadOptions, Mapping};
use crate::quant::{self, DType};
use crate::quantize::encode_row;
use crate::tensor::TensorView;
use crate::threads::{self, Interrupt, Queue};

/// What is made before it is written: enough for all cores to have something to do.
const PIECE: usize = 8 << 20;
/// Rows that a worker takes, in bytes that are written.
const GRAIN: usize = 128 << 10;

/// The types that matrices may get.
pub const OUTPUT_TYPES: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::Q8_0];

/// Writes the model in the directory `source` as the GGUF file `target`. Matrices get the type `output`; without one they
/// keep theirs. `progress` is told how many bytes of how many are written.
///
/// # Errors
/// Those of opening the directory and of [`gguf::write`]. [`Error::Argument`] if `source` is no directory.
pub fn convert(
    source: &Path,
    target: &Path,
    output: Option<DType>,
    threads: usize,
    interrupt: &Interrupt,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    if source.is_file() {
        let what = format!("{} is a file, and convert takes the directory of a model", source.display());
        return Err(Error::Argument(what));
    }
    let open = |path: &Path| Mapping::open_with(path, LoadOptions::default(), interrupt);
    let directory = huggingface::read(source, &open)?;
    let outputs = Outputs::of(&directory)?;
    let planned: Vec<_> = outputs.tensors.iter().map(|tensor| tensor.planned(output)).collect();
    let mut pairs = general(&directory, &planned, output)?;
    pairs.append(&outputs.pairs);
    if huggingface::has_tokenizer(source) {
        let embedding = outputs.tensors.iter().find(|tensor| tensor.name == huggingface::EMBEDDING);
        let vocab_size = embedding.map_or(0, |tensor| tensor.shape[1..].iter().product());
        pairs.append(&huggingface::tokenizer(source, vocab_size)?);
    } else {
        pairs.str("tokenizer.ggml.model", "none"); // as llama.cpp calls it
    }
    gguf::write(target, &pairs, &planned, interrupt, progress, &mut |i, sink| {
        let tensor = &outputs.tensors[i];
        tensor.write(planned[i].dtype, threads, interrupt, sink)?;
        directory.maps.iter().try_for_each(|(map, _)| map.check())
    })
}

/// The keys of any file.
fn general(directory: &Directory, planned: &[Planned], output: Option<DType>) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let folder = std::fs::canonicalize(&directory.path).unwrap_or_else(|_| directory.path.clone());
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    pairs.str("general.type", "model");
    pairs.str("general.name", &*name);
    // The type of most matrices.
    let common = output.unwrap_or_else(|| {
        let bytes = |dtype: &DType| planned.iter().filter(|p| p.dtype == *dtype).map(Planned::size).sum::<usize>();
        *OUTPUT_TYPES.iter().max_by_key(|dtype| bytes(dtype)).expect("there are some")
    });
    pairs.u32("general.file_type", file_type(common));
    pairs.u32("general.quantization_version", 2);
    huggingface::sampling(&directory.path, &mut pairs)?;
    Ok(pairs)
}

/// `general.file_type` of a file whose matrices have this type.
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q8_0 => 7,
        DType::BF16 => 32,
        other => unreachable!("{other} is no output type"),
    }
}

/// Gives the numbers of a row.
type Row = Box<dyn Fn(usize, &mut [f32]) + Send + Sync>;

/// A tensor of the new file.
struct Output {
    name: String,
    shape: Vec<usize>,
    /// The type of what it is made of.
    dtype: DType,
    /// What is the same in both: its bytes can be written as they are.
    same: Vec<TensorView>,
    /// Length of the rows that `row` gives.
    row_len: usize,
    row: Row,
}

impl Output {
    /// Rows of `view`: the row `r` is its row `order(r)`.
    fn rows(
        name: String,
        view: &TensorView,
        n_rows: usize,
        order: impl Fn(usize) -> usize + Send + Sync + 'static,
    ) -> Self {
        let (source, row_len) = (view.clone(), view.row_len());
        let row = Box::new(move |r: usize, out: &mut [f32]| {
            quant::dequantize(source.dtype(), source.row(order(r)), out);
        });
        let shape = vec![row_len, n_rows];
        Self { name, shape, dtype: view.dtype(), same: Vec::new(), row_len, row }
    }

    /// The tensor as it is.
    fn same(name: String, view: &TensorView) -> Self {
        let shape = view.shape().to_vec();
        Self { shape, same: vec![view.clone()], ..Self::rows(name, view, view.n_rows(), |r| r) }
    }

    /// The tensors one after another, as a tensor of one dimension more.
    fn stacked(name: String, views: Vec<TensorView>) -> Self {
        let first = views[0].clone();
        let n_rows = first.n_rows();
        let shape = [first.shape(), &[views.len()]].concat();
        let same = views.clone();
        let row = Box::new(move |r: usize, out: &mut [f32]| {
            let view = &views[r / n_rows];
            quant::dequantize(view.dtype(), view.row(r % n_rows), out);
        });
        Self { name, shape, dtype: first.dtype(), same, row_len: first.row_len(), row }
    }

    /// The same with other dimensions.
    fn shaped(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.shape.iter().product::<usize>(), "{}", self.name);
        self.shape = shape.to_vec();
        self
    }

    /// The same with each row changed, whose number `change` is told.
    fn changed(mut self, change: impl Fn(usize, &mut [f32]) + Send + Sync + 'static) -> Self {
        let row = self.row;
        self.row = Box::new(move |r, out| {
            row(r, out);
            change(r, out);
        });
        self.same.clear();
        self
    }

    /// The same with `x` for each number.
    fn each(self, x: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Self {
        self.changed(move |_, row| row.iter_mut().for_each(|number| *number = x(*number)))
    }

    /// The tensor with the type that it gets.
    fn planned(&self, output: Option<DType>) -> Planned {
        // What is small, and what has to be exact, as llama.cpp has it.
        const EXACT: &[&str] =
            &["ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types", "ssm_conv1d", "shortconv.conv"];
        let part = self.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(&*self.name, |(_, p)| p);
        let stem = part.strip_suffix(".weight");
        let exact = self.shape.len() < 2 || stem.is_none_or(|stem| stem.ends_with("_norm") || EXACT.contains(&stem));
        let dtype = match output {
            _ if exact => DType::F32,
            Some(dtype) if self.shape[0].is_multiple_of(dtype.block_len()) => dtype,
            Some(_) => DType::F16,
            None => self.dtype,
        };
        Planned { name: self.name.clone(), dtype, shape: self.shape.clone() }
    }

    fn write(&self, dtype: DType, threads: usize, interrupt: &Interrupt, sink: &mut Sink) -> Result<()> {
        if !self.same.is_empty() && self.same.iter().all(|view| view.dtype() == dtype) {
            return self.same.iter().try_for_each(|view| {
                let _guarded = crate::mapping::guarded();
                sink.write(view.bytes())
            });
        }
        let n_rows = self.shape.iter().product::<usize>() / self.row_len;
        let row_bytes = dtype.row_bytes(self.row_len).expect("rows of whole blocks");
        let at_once = (PIECE / row_bytes).max(1).min(n_rows);
        let grain = (GRAIN / row_bytes).max(1);
        let mut bytes = vec![0; at_once * row_bytes];
        let mut start = 0;
        while start < n_rows {
            let n = at_once.min(n_rows - start);
            let bytes = &mut bytes[..n * row_bytes];
            let parts: Vec<_> = bytes.chunks_mut(grain * row_bytes).map(Mutex::new).collect();
            let queue = Queue::new(parts.len(), 1, threads);
            let _guarded = crate::mapping::guarded();
            threads::run(threads, &|worker| {
                let mut numbers = vec![0.0; self.row_len];
                queue.run(worker, |range| {
                    for i in range {
                        if interrupt.poll(worker) {
                            return;
                        }
                        let mut part = parts[i].lock().expect("nobody panics with it");
                        for (k, out) in part.chunks_mut(row_bytes).enumerate() {
                            (self.row)(start + i * grain + k, &mut numbers);
                            encode_row(dtype, &numbers, None, out);
                        }
                    }
                });
            });
            drop(parts);
            if interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
            sink.write(bytes)?;
            start += n;
        }
        Ok(())
    }
}

/// The tensors of the new file, and its keys.
struct Outputs {
    tensors: Vec<Output>,
    pairs: Pairs,
}

impl Outputs {
    fn of(directory: &Directory) -> Result<Self> {
        let config_path = directory.maps[0].0.path();
        let (metadata, more, _) = gguf::made(&directory.made.pairs, &directory.made.tensors, config_path)?;
        let architecture = metadata.str("general.architecture")?.expect("it was just set");
        let source = Source { directory, metadata: &metadata, architecture };
        let mut tensors = Vec::new();
        let mut experts: HashMap<String, Vec<(usize, TensorView)>> = HashMap::new();
        for tensor in directory.tensors.iter().chain(&more) {
            match expert(tensor.name()) {
                None => tensors.extend(source.outputs(tensor)?),
                Some((name, number)) => {
                    let all = experts.entry(name.clone()).or_insert_with(|| {
                        tensors.push(Output::same(name, &tensor.view)); // its place; what it is made of is known later
                        Vec::new()
                    });
                    all.push((number, tensor.view.clone()));
                }
            }
        }
        for tensor in &mut tensors {
            if let Some(mut all) = experts.remove(&tensor.name) {
                all.sort_by_key(|(number, _)| *number);
                let shape = all[0].1.shape().to_vec();
                let name = std::mem::take(&mut tensor.name);
                let whole = all.iter().enumerate().all(|(i, (number, view))| *number == i && view.shape() == shape);
                if !whole {
                    let what = "its experts are not all there, or not of one shape";
                    return Err(FormatError::new(&directory.path, what).named(name).into());
                }
                *tensor = Output::stacked(name, all.into_iter().map(|(_, view)| view).collect());
            }
        }
        tensors.sort_by_key(|tensor| place(&tensor.name));
        let mut seen = HashMap::new();
        if let Some(twice) = tensors.iter().find(|tensor| seen.insert(&tensor.name, ()).is_some()) {
            return Err(FormatError::new(&directory.path, "tensor name used twice").named(&twice.name).into());
        }
        Ok(Self { tensors, pairs: directory.made.pairs.clone() })
    }
}

/// Where a tensor stands in the file: the embedding, the layers, the rest.
fn place(name: &str) -> (usize, usize) {
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')?.0.parse().ok()) {
        Some(layer) => (1, layer),
        None if name.starts_with("output") => (2, 0),
        None => (0, 0),
    }
}

/// The tensor of all experts that one of an expert belongs to, and its number: of `blk.0.ffn_up.7.weight`.
fn expert(name: &str) -> Option<(String, usize)> {
    let (before, number) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    let part = before.strip_prefix("blk.")?.split_once('.')?.1;
    let number = number.parse().ok().filter(|_| matches!(part, "ffn_gate" | "ffn_up" | "ffn_down"))?;
    Some((format!("{before}_exps.weight"), number))
}

/// What is being converted.
struct Source<'a> {
    directory: &'a Directory,
    metadata: &'a Metadata,
    architecture: String,
}

/// The value heads of a gated delta rule: in a directory those of one key head stand together, in most GGUF files they take
/// turns.
#[derive(Clone, Copy)]
struct Heads {
    n_k: usize,
    k_dim: usize,
    n_v: usize,
    v_dim: usize,
}

impl Heads {
    /// Where number `i` of the heads in turns, each of `dim` numbers, stands in the heads in groups.
    fn grouped(self, i: usize, dim: usize) -> usize {
        let (head, x) = (i / dim, i % dim);
        let (turn, key) = (head / self.n_k, head % self.n_k);
        (key * (self.n_v / self.n_k) + turn) * dim + x
    }

    /// The numbers before the values: queries and keys.
    fn before(self) -> usize {
        2 * self.n_k * self.k_dim
    }
}

impl Source<'_> {
    /// What a tensor of the directory becomes.
    fn outputs(&self, tensor: &TensorInfo) -> Result<Vec<Output>> {
        let (name, view) = (tensor.name(), &tensor.view);
        let (prefix, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (format!("blk.{layer}."), part),
            None => (String::new(), name),
        };
        let family = self.directory.family;
        let one = |output: Output| Ok(vec![output]);
        if family.pairs && matches!(part, "attn_q.weight" | "attn_q.bias" | "attn_k.weight" | "attn_k.bias") {
            return one(self.in_pairs(tensor, part.starts_with("attn_q"))?);
        }
        if family.norm_offset && part.ends_with("norm.weight") && part != "ssm_norm.weight" {
            return one(Output::same(name.into(), view).each(|x| x + 1.0));
        }
        if self.directory.made.differences.grouped_heads
            && let Some(output) = self.in_turns(tensor, part)?
        {
            return one(output);
        }
        match part {
            "ssm_a" if self.directory.made.differences.log_a => one(Output::same(name.into(), view).each(|x| -x.exp())),
            "ssm_in.weight" if self.architecture == "qwen3next" => self.apart(tensor, &prefix),
            "attn_kv_b.weight" if self.architecture == "deepseek2" => self.absorbed(tensor, &prefix),
            "ffn_gate_up_exps.weight" if self.architecture != "gemma4" => self.halves(tensor, &prefix),
            _ if self.architecture == "falcon-h1" => one(self.multiplied(tensor, part)?),
            _ => one(Output::same(name.into(), view)),
        }
    }

    fn bad(&self, tensor: &TensorInfo, expected: String) -> Error {
        let path = tensor.view.bytes().mapping().path();
        let e = FormatError::new(path, "tensor of the wrong shape").named(tensor.name());
        e.got(format!("{:?}", tensor.view.shape())).limit(expected).into()
    }

    fn key(&self, name: &str) -> Result<usize> {
        let key = format!("{}.{name}", self.architecture);
        self.metadata.usize(&key)?.ok_or_else(|| self.metadata.error("missing key", &key).into())
    }

    /// The rows of each head, and the numbers of a bias, with what is rotated together side by side.
    fn in_pairs(&self, tensor: &TensorInfo, is_query: bool) -> Result<Output> {
        let config = &self.directory.config;
        let n_heads = config.required_int("num_attention_heads")?;
        let n_heads = if is_query { n_heads } else { config.int("num_key_value_heads")?.unwrap_or(n_heads) } as usize;
        let view = column(&tensor.view);
        if n_heads == 0 || !view.n_rows().is_multiple_of(2 * n_heads) {
            return Err(self.bad(tensor, format!("{n_heads} heads of even length")));
        }
        let dim = view.n_rows() / n_heads;
        let order = move |r: usize| r / dim * dim + r % 2 * (dim / 2) + r % dim / 2;
        Ok(Output::rows(tensor.name().into(), &view, view.n_rows(), order).shaped(tensor.view.shape()))
    }

    /// The value heads of a gated delta rule in turns.
    fn in_turns(&self, tensor: &TensorInfo, part: &str) -> Result<Option<Output>> {
        let (n_k, n_v) = (self.key("ssm.group_count")?, self.key("ssm.time_step_rank")?);
        if n_k == 0 || n_v == 0 || !n_v.is_multiple_of(n_k) {
            let e = self.metadata.error("bad number of value heads", "linear_num_value_heads").got(n_v);
            return Err(e.limit(format!("a multiple of the {n_k} key heads")).into());
        }
        let heads = Heads { n_k, n_v, k_dim: self.key("ssm.state_size")?, v_dim: self.key("ssm.inner_size")? / n_v };
        let values = n_v * heads.v_dim;
        let view = &tensor.view;
        let (rows, dim, before) = match part {
            "attn_qkv.weight" | "ssm_conv1d.weight" => (heads.before() + values, heads.v_dim, heads.before()),
            "attn_gate.weight" => (values, heads.v_dim, 0),
            "ssm_beta.weight" | "ssm_alpha.weight" | "ssm_a" | "ssm_dt.bias" => (n_v, 1, 0),
            "ssm_out.weight" => {
                if view.row_len() != values {
                    return Err(self.bad(tensor, format!("rows of {values}")));
                }
                let source = view.clone();
                return Ok(Some(Output::same(tensor.name().into(), view).changed(move |r, out| {
                    let mut whole = vec![0.0; out.len()];
                    quant::dequantize(source.dtype(), source.row(r), &mut whole);
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = whole[heads.grouped(i, heads.v_dim)];
                    }
                })));
            }
            _ => return Ok(None),
        };
        let view = column(view);
        if view.n_rows() != rows {
            return Err(self.bad(tensor, format!("{rows} rows")));
        }
        let order = move |r: usize| if r < before { r } else { before + heads.grouped(r - before, dim) };
        let output = Output::rows(tensor.name().into(), &view, rows, order).shaped(tensor.view.shape());
        Ok(Some(if part == "ssm_a" { output.each(|x| -x.exp()) } else { output }))
    }

    /// Queries, keys and values of all heads, then their gates; of Qwen3-Next, which has all of one key head together.
    fn apart(&self, tensor: &TensorInfo, prefix: &str) -> Result<Vec<Output>> {
        let (n_k, n_v) = (self.key("ssm.group_count")?, self.key("ssm.time_step_rank")?);
        let (k_dim, values) = (self.key("ssm.state_size")?, self.key("ssm.inner_size")?);
        let group = 2 * k_dim + 2 * values / n_k.max(1);
        let view = &tensor.view;
        if n_k == 0 || n_v == 0 || !values.is_multiple_of(n_k) || view.n_rows() != n_k * group {
            return Err(self.bad(tensor, format!("{n_k} groups of {group} rows")));
        }
        let each = values / n_k;
        let keys = n_k * k_dim;
        let qkv = move |r: usize| match r {
            r if r < keys => r / k_dim * group + r % k_dim,
            r if r < 2 * keys => (r - keys) / k_dim * group + k_dim + r % k_dim,
            r => (r - 2 * keys) / each * group + 2 * k_dim + (r - 2 * keys) % each,
        };
        let gate = move |r: usize| r / each * group + 2 * k_dim + each + r % each;
        Ok(vec![
            Output::rows(format!("{prefix}attn_qkv.weight"), view, 2 * keys + values, qkv),
            Output::rows(format!("{prefix}attn_gate.weight"), view, values, gate),
        ])
    }

    /// What makes keys and values of the latent vector, apart, and the first with rows and columns exchanged: so a query can
    /// be brought to the latent vectors, which are all that has to be kept.
    fn absorbed(&self, tensor: &TensorInfo, prefix: &str) -> Result<Vec<Output>> {
        let view = tensor.view.clone();
        let (lora, n_heads) = (self.key("attention.kv_lora_rank")?, self.key("attention.head_count")?);
        let rope = self.key("rope.dimension_count")?;
        let nope = self.key("attention.key_length_mla")?.saturating_sub(rope);
        let v_dim = self.key("attention.value_length_mla")?;
        let head = nope + v_dim;
        if view.row_len() != lora || view.n_rows() != n_heads * head || nope == 0 || v_dim == 0 {
            return Err(self.bad(tensor, format!("{n_heads} heads of {head} rows of {lora}")));
        }
        let values = Output::rows(format!("{prefix}attn_v_b.weight"), &view, n_heads * v_dim, move |r| {
            r / v_dim * head + nope + r % v_dim
        });
        let number = view.row_bytes() / lora;
        let keys = Output {
            name: format!("{prefix}attn_k_b.weight"),
            shape: vec![nope, lora, n_heads],
            dtype: view.dtype(),
            same: Vec::new(),
            row_len: nope,
            row: Box::new(move |r, out| {
                let (h, column) = (r / lora, r % lora);
                for (i, out) in out.iter_mut().enumerate() {
                    let bytes = &view.row(h * head + i)[column * number..][..number];
                    quant::dequantize(view.dtype(), bytes, std::slice::from_mut(out));
                }
            }),
        };
        Ok(vec![keys, values.shaped(&[lora, v_dim, n_heads])])
    }

    /// Gate and up of all experts, apart.
    fn halves(&self, tensor: &TensorInfo, prefix: &str) -> Result<Vec<Output>> {
        let shape = tensor.view.shape();
        let &[dim, both, n] = shape else { return Err(self.bad(tensor, "three dimensions".into())) };
        if !both.is_multiple_of(2) {
            return Err(self.bad(tensor, "two matrices in one".into()));
        }
        let half = both / 2;
        let output = |name: &str, first: usize| {
            let order = move |r: usize| r / half * both + first + r % half;
            Output::rows(format!("{prefix}{name}.weight"), &tensor.view, half * n, order).shaped(&[dim, half, n])
        };
        Ok(vec![output("ffn_gate_exps", 0), output("ffn_up_exps", half)])
    }

    /// Falcon-H1 has factors for what its matrices give, and a GGUF file has them in the weights.
    fn multiplied(&self, tensor: &TensorInfo, part: &str) -> Result<Output> {
        let config = &self.directory.config;
        let factor = |name: &str| config.float(name).map(|factor| factor.unwrap_or(1.0));
        let factors = |name: &str, i: usize| -> Result<f64> {
            Ok(config.floats(name)?.and_then(|all| all.get(i).copied()).unwrap_or(1.0))
        };
        let by = match part {
            "ffn_down.weight" => factors("mlp_multipliers", 1)?,
            "ffn_gate.weight" => factors("mlp_multipliers", 0)?,
            "attn_k.weight" => factor("key_multiplier")? * factor("attention_in_multiplier")?,
            "attn_q.weight" | "attn_v.weight" => factor("attention_in_multiplier")?,
            "attn_output.weight" => factor("attention_out_multiplier")?,
            "ssm_out.weight" => factor("ssm_out_multiplier")?,
            "output.weight" => factor("lm_head_multiplier")?,
            "token_embd.weight" => factor("embedding_multiplier")?,
            "ssm_in.weight" => factor("ssm_in_multiplier")?,
            "ssm_a" => return Ok(Output::same(tensor.name().into(), &tensor.view).each(|x| -x.exp())),
            _ => 1.0,
        } as f32;
        let output = Output::same(tensor.name().into(), &tensor.view);
        if part == "ssm_in.weight" {
            // z, x, B, C and the steps have factors of their own.
            let inner = self.key("ssm.inner_size")?;
            let state = self.key("ssm.group_count")? * self.key("ssm.state_size")?;
            let ends = [inner, 2 * inner, 2 * inner + state, 2 * (inner + state)];
            let mut own = [1.0f32; 5];
            for (i, own) in own.iter_mut().enumerate() {
                *own = factors("ssm_multipliers", i)? as f32;
            }
            return Ok(output.changed(move |r, row| {
                let own = own[ends.iter().filter(|&&end| r >= end).count()];
                row.iter_mut().for_each(|x| *x = *x * by * own);
            }));
        }
        Ok(if by == 1.0 { output } else { output.each(move |x| x * by) })
    }
}

/// A vector as a matrix of one column: so it has rows to put in order.
fn column(view: &TensorView) -> TensorView {
    match view.shape() {
        &[n] => TensorView::new(view.bytes().clone(), view.dtype(), &[1, n]).expect("as many numbers"),
        _ => view.clone(),
    }
}
