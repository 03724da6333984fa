//! Reading a cold file in the order in which a forward pass needs it.
//!
//! A pass over a file that is not in memory waits for the disk anyway; what can be had is that the disk never waits for
//! the pass. Before each layer of the first pass of a session, the layers after it are asked for, some way ahead, and the
//! first token comes while the last layers are still being read. Of the embedding only the rows of the tokens are read.
//!
//! A thread of its own reads: pages that are read in by touching them come as large as the file system can make them (2 MiB
//! on ext4 since Linux 6.16), while `MADV_WILLNEED` makes pages of 4 KiB. On a file of 792 MiB that is 0.3 s instead of 0.5 s
//! to read it, 1 ms instead of 97 ms to map it in each process from then on, and 64 tokens a second instead of 43.
//!
//! A warm file is found out by a few samples of each layer: some microseconds, once a session.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use crate::mapping::{Bytes, Mapping, page_size};
use crate::tensor::TensorView;
use crate::threads::{self, Interrupt};
use crate::weights::Weights;

/// How far ahead of the pass the file is asked for, in bytes: enough that the disk always has something to do, and
/// little enough that none of it is dropped again before it is used.
const WINDOW: usize = 96 << 20;

/// Pages of a range that are looked at before it is taken to be in memory.
const SAMPLES: usize = 8;

/// What is still to be asked for.
pub struct ReadAhead {
    steps: Vec<Step>, // in the order of the pass
    next: usize,
    reader: Option<Reader>, // once there is something to read
}

struct Step {
    layer: usize,
    mapping: Arc<Mapping>,
    range: Range<usize>,
    before: usize, // bytes of all steps before it
}

impl ReadAhead {
    /// Everything that a pass reads, in its order.
    pub fn new(weights: &Weights) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        let mut add = |layer: usize, tensors: &mut dyn Iterator<Item = &TensorView>| {
            for bytes in tensors.map(TensorView::bytes) {
                let range = bytes.range();
                match steps.last_mut() {
                    // Only padding between the two: one range.
                    Some(last)
                        if last.layer == layer
                            && Arc::ptr_eq(&last.mapping, bytes.mapping())
                            && range.start.wrapping_sub(last.range.end) < page_size() =>
                    {
                        last.range.end = range.end;
                    }
                    last => {
                        let before = last.map_or(0, |last| last.before + last.range.len());
                        steps.push(Step { layer, mapping: Arc::clone(bytes.mapping()), range, before });
                    }
                }
            }
        };
        for (i, layer) in weights.layers.iter().enumerate() {
            // As they lie in the file: neighbours are read together.
            let mut tensors: Vec<&TensorView> = layer.tensors().collect();
            tensors.sort_by_key(|tensor| (Arc::as_ptr(tensor.bytes().mapping()), tensor.bytes().offset()));
            add(i, &mut tensors.into_iter());
        }
        let output = weights.output_norm.iter().map(|w| &w.weight).chain(weights.output.iter().map(|w| &w.weight));
        add(weights.layers.len(), &mut { output });
        Self { steps, next: 0, reader: None }
    }

    /// Starts again from the first layer.
    pub fn restart(&mut self) {
        self.next = 0;
        self.reader = None;
    }

    /// To be called before `layer` is computed; the output counts as one more layer.
    pub fn before_layer(&mut self, layer: usize) {
        if self.next == self.steps.len() {
            return;
        }
        let here = self.steps.iter().find(|step| step.layer >= layer).map_or(0, |step| step.before);
        while let Some(step) = self.steps.get(self.next).filter(|step| step.before < here + WINDOW) {
            if !seems_resident(&step.mapping, &step.range) {
                let reader = self.reader.get_or_insert_with(Reader::start);
                reader.read(Arc::clone(&step.mapping), step.range.clone());
            }
            self.next += 1;
        }
        if let Some(reader) = &mut self.reader
            && self.next == self.steps.len()
        {
            reader.ranges = None; // that was all: it ends when it has read it
        }
    }

    /// To be called before the rows of `tokens` are read: only they are, and all at once.
    pub fn before_embedding(&self, embedding: &TensorView, tokens: &[u32]) {
        let bytes: &Bytes = embedding.bytes();
        let (mapping, all, len) = (bytes.mapping(), bytes.range(), embedding.row_bytes());
        let is_output = self.steps.iter().any(|step| {
            Arc::ptr_eq(&step.mapping, mapping) && step.range.start <= all.start && all.end <= step.range.end
        });
        for &token in tokens {
            let row = all.start + token as usize * len;
            if mapping.resident(row..row + len) < len {
                if is_output {
                    // All of it will be read soon: no small pages in its midst.
                    return mapping.prefer_large_pages(all);
                }
                mapping.will_need(row..row + len);
            }
        }
    }
}

/// A thread that reads what it is sent, in that order, and stops when this is dropped.
struct Reader {
    ranges: Option<Sender<(Arc<Mapping>, Range<usize>)>>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn start() -> Self {
        let (ranges, wanted) = channel::<(Arc<Mapping>, Range<usize>)>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let read = move || {
            let stopped = || stopped.load(Ordering::Relaxed);
            let interrupt = Interrupt::new(&stopped);
            for (mapping, range) in wanted {
                // What cannot be read is an error of whoever uses it.
                let _ = mapping.read_in(range, &interrupt);
            }
        };
        let _ = threads::spawn("llama_rs-read".into(), read);
        Self { ranges: Some(ranges), stop }
    }

    fn read(&self, mapping: Arc<Mapping>, range: Range<usize>) {
        if let Some(ranges) = &self.ranges {
            // Where no thread could be started, the pages come when they are touched.
            let _ = ranges.send((mapping, range));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn seems_resident(mapping: &Mapping, range: &Range<usize>) -> bool {
    let last = range.len().saturating_sub(1);
    (0..SAMPLES).all(|i| {
        let at = range.start + last / (SAMPLES - 1) * i;
        mapping.resident(at..at + 1) == 1
    })
}
