//! Batches of spans: each sequence gets the bits that it gets alone, whatever else is in the batch.

use std::sync::Arc;

use llama_rs::internals::likelihood::{Choices, log_probs};
use llama_rs::internals::quant::DType;
use llama_rs::internals::sampling::Rng;
use llama_rs::{Error, Interrupt, Model, Session, SessionOptions};

use crate::bad_gguf::TempFile;
use crate::gguf_builder::Gguf;

const VOCAB: u64 = 260;

/// A tiny llama whose matrices are of this type, with sane numbers.
fn model(dtype: DType) -> Arc<Model> {
    let mut file = Gguf::llama();
    let mut rng = Rng::new(3);
    for tensor in &mut file.tensors {
        if tensor.dims.len() == 2 {
            let n: u64 = tensor.dims.iter().product();
            tensor.dtype = dtype.id();
            tensor.data = match dtype {
                DType::F32 => (0..n).flat_map(|_| (rng.next_f64() as f32 - 0.5).to_le_bytes()).collect(),
                DType::Q8_0 => (0..n / 32)
                    .flat_map(|_| [&[0x00, 0x1c][..], &[(); 32].map(|()| rng.next_u64() as u8)].concat()) // d = 2^-8
                    .collect(),
                DType::Q4_0 => (0..n / 32)
                    .flat_map(|_| [&[0x00, 0x2c][..], &[(); 16].map(|()| rng.next_u64() as u8)].concat()) // d = 2^-4
                    .collect(),
                other => unreachable!("{other}"),
            };
        }
    }
    let path = TempFile::new(&file.bytes());
    Arc::new(Model::open(&path.0).unwrap()) // mapped: the name may go
}

fn session(model: &Arc<Model>, threads: usize, kv_type: DType) -> Session {
    Session::new(model, SessionOptions { context_length: 1000, threads, kv_type }).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// Random schedules of sessions that go on alone and together, in pieces of any size, are forked, cut and shifted: what
/// each gets is what a session gets that computes the same tokens one after another.
#[test]
fn each_sequence_gets_the_bits_that_it_gets_alone() {
    for (dtype, kv_type) in [(DType::F32, DType::F16), (DType::Q8_0, DType::F16), (DType::Q4_0, DType::F16)] {
        let model = model(dtype);
        for seed in 0..6 {
            let mut rng = Rng::new(seed);
            let mut random = |n: u64| rng.next_u64() % n;
            let mut sessions: Vec<Session> = (0..3).map(|i| session(&model, i + 1, kv_type)).collect();
            for _ in 0..40 {
                let i = random(sessions.len() as u64) as usize;
                match random(10) {
                    0 if sessions.len() < 6 => {
                        let fork = sessions[i].fork();
                        sessions.push(fork);
                    }
                    1 => {
                        let n = random(sessions[i].position() as u64 + 1) as usize;
                        sessions[i].truncate(n).unwrap();
                    }
                    _ => {
                        let tokens: Vec<Vec<u32>> = sessions
                            .iter()
                            .map(|_| {
                                let n = [1, 1, 1, 2, 5, 17, 70][random(7) as usize];
                                (0..n).map(|_| random(VOCAB) as u32).collect()
                            })
                            .collect();
                        let chosen = random(1 << sessions.len()) | 1 << i;
                        let mut batch: Vec<_> = sessions
                            .iter_mut()
                            .zip(&tokens)
                            .enumerate()
                            .filter(|(i, (s, t))| chosen >> i & 1 == 1 && s.position() + t.len() <= 1000)
                            .map(|(_, (session, tokens))| (session, &tokens[..]))
                            .collect();
                        let logits = Session::forward_batch(&mut batch, &Interrupt::never()).unwrap();
                        for ((session, _), got) in batch.iter().zip(logits.chunks_exact(VOCAB as usize)) {
                            let mut alone = self::session(&model, 1, kv_type);
                            let expected = alone.forward_all(session.tokens(), &Interrupt::never()).unwrap();
                            let expected = &expected[expected.len() - VOCAB as usize..];
                            assert!(bits(got) == bits(expected), "{dtype}, seed {seed}, {} tokens", session.position());
                        }
                    }
                }
            }
        }
    }
}

/// The same with layers that remember a state, which is cut, forked, saved and restored as the rest is. With short
/// pieces and long ones, which cross many borders of chunks and of blocks.
#[test]
fn sequences_of_hybrids_get_the_bits_that_they_get_alone() {
    for architecture in ["qwen35", "lfm2", "falcon-h1"] {
        let path = TempFile::new(&Gguf::hybrid(architecture).bytes());
        let model = Arc::new(Model::open(&path.0).unwrap());
        let all_at_once = |tokens: &[u32]| {
            let logits = session(&model, 1, DType::F16).forward_all(tokens, &Interrupt::never()).unwrap();
            assert!(logits.iter().all(|x| x.is_finite()), "{architecture}");
            bits(&logits[logits.len() - VOCAB as usize..])
        };
        for seed in 0..4 {
            let mut rng = Rng::new(seed);
            let mut random = |n: u64| rng.next_u64() % n;
            let mut sessions: Vec<Session> = (0..3).map(|i| session(&model, i + 1, DType::F16)).collect();
            for _ in 0..60 {
                let i = random(sessions.len() as u64) as usize;
                let position = sessions[i].position();
                match random(12) {
                    0 if sessions.len() < 5 => {
                        let fork = sessions[i].fork();
                        sessions.push(fork);
                    }
                    1 => sessions[i].truncate(random(position as u64 + 1) as usize).unwrap(),
                    2 => {
                        // back by a little, as when the end of an answer is taken off
                        sessions[i].truncate(position.saturating_sub(random(9) as usize)).unwrap();
                    }
                    3 => {
                        let mut prompt = sessions[i].tokens()[..random(position as u64 + 1) as usize].to_vec();
                        prompt.extend([random(VOCAB) as u32; 3]);
                        let kept = sessions[i].keep_prefix(&prompt);
                        assert!(kept <= prompt.len() && sessions[i].tokens() == &prompt[..kept]);
                    }
                    4 => {
                        let saved = TempFile::new(b"");
                        let options = SessionOptions { context_length: 1000, threads: 2, kv_type: DType::F16 };
                        let n = random(position as u64 + 1) as usize;
                        if n < position / 2 {
                            sessions[i].save_prefix(&saved.0, n).unwrap();
                            sessions[i] = Session::load_prefix(&model, &saved.0, options, &[]).unwrap();
                            assert_eq!(sessions[i].position(), n);
                        } else {
                            sessions[i].save(&saved.0).unwrap();
                            let loaded = Session::load(&model, &saved.0, options, &[]).unwrap();
                            assert_eq!(sessions[i].tokens(), loaded.tokens());
                            sessions[i] = loaded;
                        }
                    }
                    _ => {
                        let tokens: Vec<Vec<u32>> = sessions
                            .iter()
                            .map(|_| {
                                let n = [1, 1, 1, 2, 5, 15, 17, 64, 70, 230][random(10) as usize];
                                (0..n).map(|_| random(VOCAB) as u32).collect()
                            })
                            .collect();
                        let chosen = random(1 << sessions.len()) | 1 << i;
                        let mut batch: Vec<_> = sessions
                            .iter_mut()
                            .zip(&tokens)
                            .enumerate()
                            .filter(|(i, (s, t))| chosen >> i & 1 == 1 && s.position() + t.len() <= 1000)
                            .map(|(_, (session, tokens))| (session, &tokens[..]))
                            .collect();
                        let logits = Session::forward_batch(&mut batch, &Interrupt::never()).unwrap();
                        for ((session, _), got) in batch.iter().zip(logits.chunks_exact(VOCAB as usize)) {
                            let expected = all_at_once(session.tokens());
                            let n = session.position();
                            assert!(bits(got) == expected, "{architecture}, seed {seed}, {n} tokens");
                        }
                    }
                }
            }
        }
        // A pass of several batches, and one that stops between two of them.
        let tokens: Vec<u32> = (0..900).map(|i| i * 7 % VOCAB as u32).collect();
        let mut session = session(&model, 2, DType::F16);
        let logits = session.forward_all(&tokens, &Interrupt::never()).unwrap();
        let mut one_by_one = self::session(&model, 2, DType::F16);
        for (token, expected) in tokens.iter().zip(logits.chunks_exact(VOCAB as usize)) {
            let got = one_by_one.forward(std::slice::from_ref(token), &Interrupt::never()).unwrap();
            assert!(bits(got) == bits(expected), "{architecture}");
        }
    }
}

#[test]
fn a_hybrid_that_is_interrupted_or_to_be_shifted_is_left_as_it_was() {
    let path = TempFile::new(&Gguf::hybrid("qwen35").bytes());
    let model = Arc::new(Model::open(&path.0).unwrap());
    let tokens: Vec<u32> = (0..600).map(|i| i * 7 % VOCAB as u32).collect();
    let mut alone = session(&model, 1, DType::F16);
    let expected = alone.forward_all(&tokens, &Interrupt::never()).unwrap();
    let row = |i: usize| bits(&expected[i * VOCAB as usize..(i + 1) * VOCAB as usize]);
    for (before, stop_after) in [(10, 0), (40, 3), (90, 30)] {
        let mut session = session(&model, 1, DType::F16);
        session.forward(&tokens[..before], &Interrupt::never()).unwrap();
        let polls = std::sync::atomic::AtomicUsize::new(0);
        let stop = || polls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= stop_after;
        let interrupt = Interrupt::new(&stop);
        let long: Vec<u32> = tokens[before..].iter().rev().copied().cycle().take(900).collect();
        while let Ok(logits) = session.forward(&long, &interrupt) {
            assert_eq!(logits.len(), VOCAB as usize); // it was done before anybody asked
            session.truncate(before).unwrap();
        }
        assert_eq!(session.tokens(), &tokens[..before]);
        let got = session.forward(&tokens[before..before + 25], &Interrupt::never()).unwrap();
        assert!(bits(got) == row(before + 24), "after {before}");
    }

    let e = alone.shift(2, 100).unwrap_err().to_string();
    assert!(e.contains("recurrent layers"), "{e}");
    assert_eq!(alone.tokens(), tokens);
    alone.shift(500, 100).unwrap(); // nothing follows: it is a cut
    assert_eq!(alone.tokens(), &tokens[..500]);
    let got = alone.forward(&tokens[500..510], &Interrupt::never()).unwrap();
    assert!(bits(got) == row(509));
}

#[test]
fn one_by_one_is_all_at_once_to_the_bit() {
    for (dtype, kv_type) in [(DType::F32, DType::F16), (DType::Q8_0, DType::F16), (DType::Q4_0, DType::F16)] {
        let model = model(dtype);
        let tokens: Vec<u32> = (0..600).map(|i| (i * 37 % VOCAB as u32 + i / 7) % VOCAB as u32).collect();
        let at_once = session(&model, 2, kv_type).forward_all(&tokens, &Interrupt::never()).unwrap();
        let mut one_by_one = session(&model, 3, kv_type);
        for (token, expected) in tokens.iter().zip(at_once.chunks_exact(VOCAB as usize)) {
            let got = one_by_one.forward(std::slice::from_ref(token), &Interrupt::never()).unwrap();
            assert!(bits(got) == bits(expected), "{dtype}");
        }
    }
}

#[test]
fn a_batch_that_fails_changes_nothing() {
    let model = model(DType::Q8_0);
    let (mut a, mut b) = (session(&model, 1, DType::F16), session(&model, 1, DType::F16));
    a.forward(&[1, 2, 3], &Interrupt::never()).unwrap();
    let good = bits(a.fork().forward(&[4], &Interrupt::never()).unwrap());
    for bad in [&[7, VOCAB as u32][..], &[], &[1; 1001]] {
        let e = Session::forward_batch(&mut [(&mut a, &[4]), (&mut b, bad)], &Interrupt::never()).unwrap_err();
        assert!(matches!(e, Error::Argument(_) | Error::ContextOverflow { .. }), "{e}");
        assert_eq!((a.tokens(), b.tokens()), (&[1, 2, 3][..], &[][..]));
    }
    let stop = || true;
    let interrupt = Interrupt::new(&stop);
    std::thread::sleep(Interrupt::PERIOD);
    let e = Session::forward_batch(&mut [(&mut a, &[4]), (&mut b, &[1])], &interrupt).unwrap_err();
    assert!(matches!(e, Error::Interrupted) && a.position() == 3 && b.position() == 0);
    assert_eq!(bits(a.forward(&[4], &Interrupt::never()).unwrap()), good);

    let other = self::model(DType::F32);
    let mut stranger = session(&other, 1, DType::F16);
    let e = Session::forward_batch(&mut [(&mut a, &[4]), (&mut stranger, &[4])], &Interrupt::never()).unwrap_err();
    assert!(e.to_string().contains("cannot be computed together"), "{e}");
}

/// What a session says of the tokens after a prompt, one after another, and of `ends` after them.
fn one_by_one(model: &Arc<Model>, prompt: &[u32], tokens: &[u32], ends: &[u32]) -> Vec<f32> {
    let all = [prompt, tokens].concat();
    let logits = session(model, 1, DType::F16).forward_all(&all, &Interrupt::never()).unwrap();
    let rows = logits.chunks_exact(VOCAB as usize).skip(prompt.len() - 1);
    let scores = rows.enumerate().map(|(i, row)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total = row.iter().map(|l| f64::from((l - largest).exp())).sum::<f64>().ln() + f64::from(largest);
        let log = |id: u32| f64::from(row[id as usize]) - total;
        match tokens.get(i) {
            Some(&token) => log(token) as f32,
            None => ends.iter().map(|&id| log(id).exp()).sum::<f64>().ln() as f32,
        }
    });
    scores.take(tokens.len() + usize::from(!ends.is_empty())).collect()
}

/// Prompts with a common beginning or none, and continuations that are the same, that begin in the same way, that begin
/// others and that are long: each has the score, to the bit, that it has alone.
#[test]
fn a_continuation_has_the_score_that_it_has_alone() {
    for architecture in ["qwen35", "lfm2", "falcon-h1"] {
        let path = TempFile::new(&Gguf::hybrid(architecture).bytes());
        scores_are_those_of_one_by_one(&Arc::new(Model::open(&path.0).unwrap()), 3);
    }
    let model = model(DType::Q8_0);
    let mut shared = scores_are_those_of_one_by_one(&model, 12);
    let choices = |prompt: &[u32], continuation: &[u32]| Choices {
        prompt: prompt.to_vec(),
        continuations: vec![vec![1], continuation.to_vec()],
    };
    let fails = |choices: &[Choices], ends: &[u32]| {
        let mut session = session(&model, 1, DType::F16);
        let e = log_probs(&mut session, choices, ends, &Interrupt::never()).unwrap_err();
        assert_eq!(session.position(), 0, "{e}");
        e
    };
    assert!(matches!(fails(&[choices(&[], &[1])], &[]), Error::Argument(_)));
    assert!(matches!(fails(&[choices(&[1], &[1]), choices(&[1], &[])], &[]), Error::Argument(_)));
    assert!(matches!(fails(&[choices(&[1], &[1])], &[VOCAB as u32]), Error::Argument(_)));
    let full = choices(&[1; 999], &[1]);
    assert!(log_probs(&mut shared, std::slice::from_ref(&full), &[], &Interrupt::never()).is_ok());
    let e = fails(&[choices(&[1], &[1]), choices(&[1; 999], &[1, 1, 1])], &[]);
    assert!(matches!(e, Error::ContextOverflow { tokens: 1001, context_length: 1000 }), "{e}");
    assert!(log_probs(&mut shared, &[full], &[2], &Interrupt::never()).is_ok());
}

/// For as many seeds; gives the session, used.
fn scores_are_those_of_one_by_one(model: &Arc<Model>, seeds: u64) -> Session {
    let mut shared = session(model, 2, DType::F16);
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let mut random = |n: u64| rng.next_u64() % n;
        let mut some = |n: u64, ids: u64| -> Vec<u32> { (0..n).map(|_| random(ids) as u32).collect() };
        let beginning = some(if seed % 3 == 0 { 0 } else { 70 }, VOCAB);
        let (n_choices, n_continuations) = ([1, 2, 9][seed as usize % 3], 1 + seed % 7);
        let choices: Vec<Choices> = (0..n_choices)
            .map(|i| Choices {
                prompt: [beginning.clone(), some(1 + (i * 37) % 90, VOCAB)].concat(),
                continuations: (0..n_continuations)
                    .map(|j| some(if (seed + j) % 6 == 5 { 300 } else { 1 + j % 4 }, 2))
                    .collect(),
            })
            .collect();
        for ends in [&[][..], &[3, 4]] {
            let scores = log_probs(&mut shared, &choices, ends, &Interrupt::never()).unwrap();
            for (Choices { prompt, continuations }, scores) in choices.iter().zip(scores) {
                for (tokens, scores) in continuations.iter().zip(scores) {
                    let expected = one_by_one(model, prompt, tokens, ends);
                    assert_eq!(bits(&scores), bits(&expected), "seed {seed}, {} tokens", tokens.len());
                }
            }
        }
    }
    shared
}
