//! One forward pass has the logits of the reference in numpy.

use std::sync::Arc;

use llama_rs::{Interrupt, Model, Session, SessionOptions};

use crate::bad_gguf::TempFile;
use crate::gguf_builder::Gguf;

const TOKENS: [u32; 4] = [1, 200, 3, 77];

// The first logits of each token, as `tests/reference.py` has them: `tests/test_forward.py` compares.
const LLAMA: [[f32; 6]; 4] = [
    [-0.64027, -0.28533, 0.50648, -2.63734, -0.84362, -0.09573],
    [0.0189, -0.82353, 1.28311, 1.73694, 1.03042, 0.01773],
    [0.3483, -1.57767, 2.32876, 0.70036, 0.08794, -0.54199],
    [-0.47124, -0.36602, 0.45234, 1.30031, 1.15085, 0.35429],
];
const QWEN2: [[f32; 6]; 4] = [
    [-0.50678, -0.94386, 2.56516, -3.70574, -0.8801, -0.94323],
    [0.04212, -1.76866, 2.73597, -1.0683, 0.69957, -1.0903],
    [0.31545, -1.49688, 2.75749, -1.16513, 0.07202, -0.9791],
    [-0.17694, -1.4263, 2.29575, -1.30614, 0.52527, -0.93737],
];

#[test]
fn logits_are_those_of_the_reference() {
    // Two of them, of either rotation; `tests/test_architectures.py` has all.
    for (name, exact) in [("llama", LLAMA), ("qwen2", QWEN2)] {
        let file = TempFile::new(&Gguf::fixed(name).bytes());
        let model = Arc::new(Model::open(&file.0).unwrap());
        let options = SessionOptions { context_length: 4, threads: 1, ..Default::default() };
        let mut session = Session::new(&model, options).unwrap();
        let logits = session.forward_all(&TOKENS, &Interrupt::never()).unwrap();
        for (row, exact) in logits.chunks_exact(model.config().vocab_size).zip(exact) {
            for (x, exact) in row.iter().zip(exact) {
                // Keys and values are kept as f16.
                assert!((x - exact).abs() < 0.002, "{name}: {x}, expected {exact}");
            }
        }
    }
}
