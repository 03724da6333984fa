//! Schedules: whatever else is computed, and whatever becomes of it, each request gets what it gets alone, bit for bit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use llama_rs::internals::embedding::{EmbedOptions, embed};
use llama_rs::internals::generate::{Decode, Generation, Overflow};
use llama_rs::internals::quant::DType;
use llama_rs::internals::sampling::Rng;
use llama_rs::internals::scheduler::{
    Event, Finish, Generate, Inline, Limits, PromptLogprobs, Rejected, Request, Scheduler, Stats, Ticket, TokenLogprob,
    Work,
};
use llama_rs::internals::tokenizer::StreamDecoder;
use llama_rs::{Error, FinishReason, Interrupt, Model, Options, SamplingParams, Session, SessionOptions};

use crate::bad_gguf::TempFile;
use crate::gguf_builder::{Gguf, u32};

const CONTEXT: usize = 330;
/// Of each model; as many as LLAMA_RS_SCHEDULES says, in a long run.
const SCHEDULES: u64 = 60;

fn open(file: &Gguf) -> Arc<Model> {
    Arc::new(Model::open(&TempFile::new(&file.bytes()).0).unwrap()) // mapped: the name may go
}

/// Tiny models: attention to all, to a window, and three with recurrent layers.
fn models() -> Vec<Arc<Model>> {
    let mut windowed = Gguf::llama();
    windowed.set("llama.attention.sliding_window", u32(40));
    let hybrids = ["qwen35", "lfm2", "falcon-h1"].map(Gguf::hybrid);
    [Gguf::llama(), windowed].iter().chain(&hybrids).map(open).collect()
}

fn options(context_length: usize) -> SessionOptions {
    SessionOptions { context_length, threads: 2, kv_type: DType::F16 }
}

/// Something that is asked for, and what comes of it alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Case {
    prompt: Vec<u32>,
    max_tokens: usize,
    seed: Option<u64>, // or greedy
    shift: bool,
}

#[derive(Debug, PartialEq, Clone)]
struct Answer {
    text: String,
    token_ids: Vec<u32>,
    finish: FinishReason,
}

impl Case {
    fn options(&self) -> Options {
        let sampling = match self.seed {
            None => SamplingParams::greedy(),
            seed => SamplingParams { seed, temperature: 1.5, top_k: 0, min_p: 0.0, top_p: 1.0, ..Default::default() },
        };
        let on_overflow = if self.shift { Overflow::Shift } else { Overflow::Stop };
        Options { max_tokens: Some(self.max_tokens), sampling, on_overflow, ..Options::default() }
    }

    /// The answer that a session of its own gives.
    fn alone(&self, model: &Arc<Model>, index: u64) -> Answer {
        let mut options = self.options();
        options.sampling.seed = options.sampling.seed.map(|seed| seed + index);
        let tokenizer = model.tokenizer().unwrap();
        let decoder = StreamDecoder::new(Arc::clone(tokenizer), true);
        let ends = tokenizer.end_tokens().unwrap();
        let mut generation = Generation::new(self.prompt.clone(), ends, decoder, options).unwrap();
        let mut session = Session::new(model, self::options(CONTEXT)).unwrap();
        let mut text = String::new();
        while let Some(piece) = generation.next(&mut session, &Interrupt::never()).unwrap() {
            text.push_str(&piece);
        }
        let answer = generation.answer();
        Answer { text, token_ids: answer.generated().to_vec(), finish: answer.finish_reason().unwrap() }
    }
}

/// The logarithms of the probabilities of the tokens of a prompt from `first` on.
fn scores_alone(model: &Arc<Model>, tokens: &[u32], first: usize) -> Vec<f64> {
    let mut session = Session::new(model, options(CONTEXT)).unwrap();
    let logits = session.forward_all(tokens, &Interrupt::never()).unwrap();
    let rows: Vec<&[f32]> = logits.chunks_exact(model.config().vocab_size).collect();
    let score = |at: usize| {
        let row = rows[at - 1];
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        f64::from(row[tokens[at] as usize]) - total.ln()
    };
    (first.max(1)..tokens.len()).map(score).collect()
}

/// Prompts that have much in common: the beginnings of a few texts, and something after them.
fn prompts(rng: &mut Rng) -> Vec<Vec<u32>> {
    let mut random = |n: u64| rng.next_u64() % n;
    let texts: Vec<Vec<u32>> = (0..3).map(|_| (0..260).map(|_| random(256) as u32).collect()).collect();
    let mut prompts = Vec::new();
    for _ in 0..30 {
        let length = [1, 5, 40, 64, 65, 90, 128, 140, 200][random(9) as usize];
        let mut prompt = texts[random(3) as usize][..length].to_vec();
        prompt.extend((0..random(3) * random(20)).map(|_| random(256) as u32));
        prompts.push(prompt);
    }
    prompts
}

/// What was read of a request so far.
struct Reading {
    ticket: Ticket,
    case: Case,
    n: usize,
    logprobs: Option<PromptLogprobs>,
    events: Vec<Event>,
    ended: bool,
}

impl Reading {
    fn read(&mut self) {
        while let Some(event) = self.ticket.try_next() {
            match event {
                Some(event) => self.events.push(event),
                None => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    fn answer(&self, index: usize) -> Answer {
        let events = self.events.iter().filter(|event| event.index == index);
        let text = events.clone().map(|event| event.text.as_str()).collect();
        let token_ids = events.clone().flat_map(|event| event.token_ids.clone()).collect();
        let last = events.clone().next_back().expect("an event");
        let end = last.end.as_ref().expect("the last event says how it ended");
        let Finish::Done(finish) = end.finish else { panic!("{:?}", end.finish) };
        assert_eq!(events.filter(|event| event.end.is_some()).count(), 1);
        assert_eq!(end.usage.prompt_tokens, self.case.prompt.len());
        Answer { text, token_ids, finish }
    }
}

#[test]
fn random_schedules_give_each_request_what_it_gets_alone() {
    let schedules = std::env::var("LLAMA_RS_SCHEDULES").map_or(SCHEDULES, |n| n.parse().expect("a number"));
    let mut all = Stats::default();
    for (which, model) in models().iter().enumerate() {
        let mut rng = Rng::new(which as u64);
        let prompts = prompts(&mut rng);
        let is_recurrent = which > 1;
        let block = if is_recurrent { 64 << 10 } else { 8 << 10 }; // states take more
        let mut known: HashMap<(Case, u64), Answer> = HashMap::new();
        let mut scored: HashMap<(Vec<u32>, usize), Vec<f64>> = HashMap::new();
        for schedule in 0..schedules {
            let mut rng = Rng::new(1000 * which as u64 + schedule);
            let mut random = |n: usize| (rng.next_u64() % n as u64) as usize;
            let limits = Limits {
                parallel: 1 + random(5),
                kv_bytes: (block * [6, 8, 12, 40, 1000][random(5)]) as u64,
                step: Duration::from_millis([0, 1, 50][random(3)]),
                max_rows: [1, 7, 16, 20, 40, 100, 512][random(7)],
                ring_bytes: [1, 30, 1 << 20][random(3)],
                ..Limits::default()
            };
            let mut engine = Inline::new(limits).unwrap();
            let mut readings: Vec<Reading> = Vec::new();
            let mut left = 2 + random(8);
            let mut steps = 0;
            loop {
                if left > 0 && (random(4) == 0 || readings.iter().all(|reading| reading.ended)) {
                    left -= 1;
                    let seed = [None, Some(1), Some(2)][random(3)];
                    let shift = !is_recurrent && random(6) == 0;
                    let max_tokens = if shift { 200 } else { [0, 1, 3, 20, 70][random(5)] };
                    let prompt = prompts[random(prompts.len())].clone();
                    let case = Case { prompt, max_tokens, seed, shift };
                    let n = [1, 1, 1, 3][random(4)];
                    let first = random(case.prompt.len());
                    let logprobs = (random(5) == 0).then_some(PromptLogprobs { first, top: 2, any_end: false });
                    let mut generate = Generate::new(model, case.prompt.clone(), case.options(), n).unwrap();
                    generate.prompt_logprobs = logprobs;
                    // Several workers change nothing, and take longer: the models are tiny.
                    let session = SessionOptions { threads: 1 + usize::from(schedule % 8 == 0), ..options(CONTEXT) };
                    let mut request = Request::new(model, session, Work::Generate(generate));
                    request.client = random(3) as u64;
                    request.salt = u64::from(random(5) == 0);
                    request.priority = [0, 0, 0, 1, -1][random(5)];
                    match engine.submit(request) {
                        Ok(ticket) => {
                            readings.push(Reading { ticket, case, n, logprobs, events: vec![], ended: false });
                        }
                        // Of one that can never have enough memory that is known at once.
                        Err(Error::ContextOverflow { tokens, .. }) => assert_eq!(tokens, case.prompt.len()),
                        Err(error) => panic!("{error}"),
                    }
                }
                let is_left = engine.step(&Interrupt::never()).unwrap();
                let stats = engine.stats();
                assert!(stats.running <= limits.parallel);
                if !is_recurrent {
                    let begun = (limits.parallel * 4096) as u64; // a block of those that wait for the next step
                    assert!(stats.kv_used + stats.kv_cached <= limits.kv_bytes + begun, "{stats:?}");
                }
                if random(3) > 0 {
                    readings.iter_mut().for_each(Reading::read);
                }
                if random(60) == 0 && !readings.is_empty() {
                    readings.swap_remove(random(readings.len())); // cancelled
                }
                steps += 1;
                assert!(steps < 30_000, "it goes on: {stats:?}");
                if !is_left && left == 0 {
                    break;
                }
            }
            let stats = engine.stats();
            assert_eq!((stats.running, stats.waiting, stats.queued_tokens, stats.kv_used), (0, 0, 0, 0));
            all.preemptions += stats.preemptions;
            all.evicted_tokens += stats.evicted_tokens;
            all.cached_tokens += stats.cached_tokens;
            all.prompt_tokens += stats.prompt_tokens;
            all.generated_tokens += stats.generated_tokens;
            for mut reading in readings {
                reading.read();
                assert!(reading.ended);
                for index in 0..reading.n {
                    let key = (reading.case.clone(), index as u64);
                    let expected =
                        known.entry(key).or_insert_with_key(|(case, index)| case.alone(model, *index)).clone();
                    let got = reading.answer(index);
                    // Where memory ran out for one that was alone, it ends there.
                    let is_cut = got.finish == FinishReason::Length && got.token_ids.len() < expected.token_ids.len();
                    if is_cut && limits.kv_bytes < (block * 40) as u64 {
                        assert_eq!(got.token_ids, expected.token_ids[..got.token_ids.len()]);
                    } else {
                        assert_eq!(got, expected, "model {which}, schedule {schedule}: {limits:?}, {:?}", reading.case);
                    }
                }
                if let Some(PromptLogprobs { first, top, .. }) = reading.logprobs {
                    let key = (reading.case.prompt.clone(), first);
                    let expected = scored.entry(key).or_insert_with_key(|(p, first)| scores_alone(model, p, *first));
                    let got: Vec<&TokenLogprob> =
                        reading.events.iter().flat_map(|event| &event.prompt_logprobs).collect();
                    assert_eq!(got.len(), expected.len());
                    for ((got, expected), &token) in got.iter().zip(expected).zip(&reading.case.prompt[first.max(1)..])
                    {
                        assert!((f64::from(got.chosen.logprob) - *expected).abs() < 1e-4);
                        assert!(got.chosen.token_id == token && got.top.len() == top);
                        assert!(got.top[0].logprob >= got.top[1].logprob.max(got.chosen.logprob));
                    }
                }
            }
        }
    }
    // All that can happen has happened.
    assert!(all.preemptions > 20 && all.evicted_tokens > 1000, "{all:?}");
    assert!(all.cached_tokens * 10 > all.prompt_tokens && all.generated_tokens > 5000, "{all:?}");
}

/// A request for an answer, greedy, that does not end by itself.
fn request(model: &Arc<Model>, prompt: &[u32], max_tokens: usize, n: usize) -> Request {
    let options = Options {
        max_tokens: Some(max_tokens),
        sampling: SamplingParams::greedy(),
        ignore_eos: true,
        ..Options::default()
    };
    let work = Work::Generate(Generate::new(model, prompt.to_vec(), options, n).unwrap());
    Request::new(model, self::options(CONTEXT), work)
}

/// Limits by which a step does not depend on a clock.
fn throughput() -> Limits {
    Limits { step: Duration::ZERO, ..Limits::default() }
}

fn llama() -> Arc<Model> {
    open(&Gguf::llama())
}

fn text(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| (rng.next_u64() % 256) as u32).collect()
}

/// What is there of a ticket, put together.
fn all_there_is(ticket: &mut Ticket) -> Event {
    let mut all = Event::default();
    while let Some(Some(event)) = ticket.try_next() {
        all.token_ids.extend(event.token_ids);
        all.text.push_str(&event.text);
        all.end = event.end.or(all.end);
        all.vectors = event.vectors.or(all.vectors);
    }
    all
}

fn never() -> Interrupt<'static> {
    Interrupt::never()
}

fn run(engine: &mut Inline) -> usize {
    (1..).find(|_| !engine.step(&never()).unwrap()).unwrap()
}

#[test]
fn what_prompts_have_in_common_is_computed_once() {
    let model = llama();
    let prompt = text(1, 150);
    let mut engine = Inline::new(throughput()).unwrap();
    let mut tickets: Vec<Ticket> = (0..5).map(|_| engine.submit(request(&model, &prompt, 20, 1)).unwrap()).collect();
    tickets.push(engine.submit(request(&model, &prompt, 20, 3)).unwrap());
    run(&mut engine);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (8 * 150, 7 * 149));
    // Later too, and of the answer as well; the rest of what does not fill a block is kept where it is long enough.
    let answer = all_there_is(&mut tickets[0]).token_ids;
    let longer = [&prompt[..], &answer, &[7; 10]].concat();
    let mut ticket = engine.submit(request(&model, &longer, 1, 1)).unwrap();
    run(&mut engine);
    let usage = all_there_is(&mut ticket).end.unwrap().usage;
    assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens), (180, 169, 1));
    // Nobody with another salt finds it.
    let mut other = request(&model, &longer, 1, 1);
    other.salt = 1;
    let mut ticket = engine.submit(other).unwrap();
    run(&mut engine);
    assert_eq!(all_there_is(&mut ticket).end.unwrap().usage.cached_tokens, 0);
}

#[test]
fn what_nobody_waits_for_is_freed_with_the_next_step() {
    let model = llama();
    let mut engine = Inline::new(Limits { max_rows: 16, parallel: 2, ..throughput() }).unwrap();
    // In decode, in prefill, in the queue.
    let mut tickets = vec![engine.submit(request(&model, &text(1, 10), 100, 1)).unwrap()];
    (0..5).for_each(|_| assert!(engine.step(&never()).unwrap()));
    tickets.push(engine.submit(request(&model, &text(2, 300), 9, 1)).unwrap());
    tickets.push(engine.submit(request(&model, &text(3, 100), 9, 1)).unwrap());
    (0..3).for_each(|_| assert!(engine.step(&never()).unwrap()));
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting), (2, 1));
    let (prompt, computed, _) = stats.slots[1];
    assert!(prompt == 300 && computed > 0 && computed < 300, "{:?}", stats.slots);
    drop(tickets);
    assert!(!engine.step(&never()).unwrap());
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.queued_tokens, stats.kv_used), (0, 0, 0, 0));
    assert!(stats.kv_cached > 0);
}

#[test]
fn answers_go_on_while_a_long_prompt_is_computed() {
    let model = llama();
    let mut engine = Inline::new(Limits { max_rows: 20, ..throughput() }).unwrap();
    let mut first = engine.submit(request(&model, &text(1, 10), 200, 1)).unwrap();
    engine.step(&never()).unwrap();
    let mut second = engine.submit(request(&model, &text(2, 300), 1, 1)).unwrap();
    let mut steps = 0;
    while all_there_is(&mut second).end.is_none() {
        engine.step(&never()).unwrap();
        steps += 1;
    }
    assert_eq!(steps, 300usize.div_ceil(19)); // a row of each is the answer's
    assert_eq!(all_there_is(&mut first).token_ids.len(), 1 + steps);
}

#[test]
fn a_slow_reader_pauses_its_own_answer_alone() {
    let model = llama();
    let limits = Limits { ring_bytes: 16, slow_reader: Duration::from_secs(3600), ..throughput() };
    let mut engine = Inline::new(limits).unwrap();
    let mut slow = engine.submit(request(&model, &text(1, 10), 50, 1)).unwrap();
    let mut quick = engine.submit(request(&model, &text(2, 10), 50, 1)).unwrap();
    let mut read = 0;
    while read < 50 {
        engine.step(&never()).unwrap();
        read += all_there_is(&mut quick).token_ids.len();
    }
    let there = all_there_is(&mut slow);
    assert!(there.token_ids.len() <= 4 && there.end.is_none(), "{there:?}");
    // It goes on where it was.
    let mut ids = there.token_ids;
    while engine.step(&never()).unwrap() {
        ids.extend(all_there_is(&mut slow).token_ids);
    }
    ids.extend(all_there_is(&mut slow).token_ids);
    let case = Case { prompt: text(1, 10), max_tokens: 50, seed: None, shift: false };
    let alone = case.alone(&model, 0);
    assert!(ids.len() == 50 && ids.starts_with(&alone.token_ids));

    let mut engine = Inline::new(Limits { slow_reader: Duration::ZERO, ..limits }).unwrap();
    let mut slow = engine.submit(request(&model, &text(1, 10), 50, 1)).unwrap();
    run(&mut engine);
    assert!(matches!(all_there_is(&mut slow).end.unwrap().finish, Finish::SlowReader));
}

#[test]
fn what_is_late_ends() {
    let model = llama();
    let mut engine = Inline::new(Limits { parallel: 1, ..throughput() }).unwrap();
    let mut first = request(&model, &text(1, 10), 300, 1);
    first.deadline = Some(Instant::now() + Duration::from_secs(3600));
    let mut first = engine.submit(first).unwrap();
    engine.step(&never()).unwrap();
    let mut second = request(&model, &text(2, 10), 300, 1);
    second.deadline = Some(Instant::now());
    let mut second = engine.submit(second).unwrap();
    engine.step(&never()).unwrap();
    assert!(matches!(all_there_is(&mut second).end.unwrap().finish, Finish::Deadline));
    assert!(all_there_is(&mut first).end.is_none());
}

#[test]
fn a_client_that_comes_is_served_soon_and_priorities_count() {
    let model = llama();
    for (priority, waits) in [(0, false), (1, false), (-1, true)] {
        let mut engine = Inline::new(Limits { parallel: 2, max_rows: 64, ..throughput() }).unwrap();
        let mut busy: Vec<Ticket> =
            (0..6).map(|i| engine.submit(request(&model, &text(i, 60), 250, 1)).unwrap()).collect();
        (0..20).for_each(|_| assert!(engine.step(&never()).unwrap()));
        let mut other = request(&model, &text(9, 100), 5, 1);
        (other.client, other.priority) = (1, priority);
        let mut other = engine.submit(other).unwrap();
        let mut steps = 0;
        let mut ids = Vec::new();
        while ids.len() < 5 {
            let is_left = engine.step(&never()).unwrap();
            ids.extend(all_there_is(&mut other).token_ids);
            assert!(is_left || ids.len() == 5);
            steps += 1;
        }
        assert_eq!(steps > 500, waits, "{priority}: {steps} steps");
        assert!(waits || steps < 10, "{steps}");
        // Who made room goes on, and gets the answer that it gets alone.
        run(&mut engine);
        for (i, ticket) in (0..).zip(&mut busy) {
            let case = Case { prompt: text(i, 60), max_tokens: 250, seed: None, shift: false };
            let alone = case.alone(&model, 0).token_ids;
            let got = all_there_is(ticket).token_ids;
            assert!(got.len() == 250 && got.starts_with(&alone));
        }
    }
}

#[test]
fn short_prompts_overtake_a_long_one_a_few_times() {
    let model = llama();
    let mut engine = Inline::new(Limits { parallel: 1, ..throughput() }).unwrap();
    let _first = engine.submit(request(&model, &text(1, 10), 3, 1)).unwrap();
    engine.step(&never()).unwrap();
    let mut long = engine.submit(request(&model, &text(2, 200), 1, 1)).unwrap();
    let mut short: Vec<Ticket> = (3..10).map(|i| engine.submit(request(&model, &text(i, 10), 1, 1)).unwrap()).collect();
    while all_there_is(&mut long).end.is_none() {
        engine.step(&never()).unwrap();
    }
    let done = short.iter_mut().filter_map(|ticket| all_there_is(ticket).end).count();
    assert_eq!(done, 4);
    run(&mut engine);
}

#[test]
fn numbers_that_make_no_sense_end_one_answer_and_no_other() {
    let mut file = Gguf::llama();
    let embedding = file.tensors.iter_mut().find(|tensor| tensor.name == b"token_embd.weight").unwrap();
    embedding.data[7 * 32 * 4..8 * 32 * 4].fill(0xff); // token 7 is not a number
    let model = open(&file);
    let mut engine = Inline::new(throughput()).unwrap();
    let mut ill = engine.submit(request(&model, &[1, 2, 7], 10, 1)).unwrap();
    let mut well = engine.submit(request(&model, &[1, 2, 8], 10, 1)).unwrap();
    run(&mut engine);
    let Finish::Failed(error) = all_there_is(&mut ill).end.unwrap().finish else { panic!("it has failed") };
    assert!(matches!(&*error, Error::Numeric { path, .. } if path == model.checkpoint().path()), "{error}");
    assert_eq!(all_there_is(&mut well).token_ids.len(), 10);
    assert_eq!(engine.stats().kv_used, 0);
}

#[test]
fn a_bug_in_one_answer_ends_that_one() {
    struct Bug(usize);
    impl Decode for Bug {
        fn token_bytes(&self, _id: u32) -> Vec<u8> {
            Vec::new()
        }
        fn push(&mut self, _: u32) -> Result<String, Error> {
            self.0 += 1;
            assert!(self.0 < 4, "this is a test of what a bug does");
            Ok("a".into())
        }
        fn finish(&mut self) -> String {
            String::new()
        }
    }
    let model = llama();
    let mut engine = Inline::new(throughput()).unwrap();
    let options = Options { sampling: SamplingParams::greedy(), ..Options::default() };
    let decoder: Box<dyn Decode + Send> = Box::new(Bug(0));
    let answers = vec![llama_rs::Answer::new(text(1, 10), &[], decoder, options).unwrap()];
    let generate = Generate { answers, prompt_logprobs: None, on_overflow: Overflow::Stop, n_keep: 0 };
    let ill = Request::new(&model, self::options(CONTEXT), Work::Generate(generate));
    let mut ill = engine.submit(ill).unwrap();
    let mut well = engine.submit(request(&model, &text(2, 10), 20, 1)).unwrap();
    run(&mut engine);
    let event = all_there_is(&mut ill);
    assert!(event.text == "aaa" && matches!(event.end.unwrap().finish, Finish::Crashed));
    assert_eq!(all_there_is(&mut well).token_ids.len(), 20);
}

#[test]
fn vectors_are_those_that_texts_have_alone() {
    let model = llama();
    let texts: Vec<Vec<u32>> = (0..9).map(|i| text(i, 20 * i as usize + 1)).collect();
    let embedding = EmbedOptions { normalize: true, session: options(CONTEXT), ..EmbedOptions::default() };
    let (expected, dim) = embed(&model, &texts, &embedding, &[], &never()).unwrap();
    let mut engine = Inline::new(Limits { step: Duration::from_nanos(1), ..throughput() }).unwrap();
    let mut answer = engine.submit(request(&model, &text(1, 10), 20, 1)).unwrap();
    engine.step(&never()).unwrap();
    let work = Work::Embed { texts: texts.clone(), options: embedding };
    let mut ticket = engine.submit(Request::new(&model, options(CONTEXT), work)).unwrap();
    run(&mut engine);
    let event = all_there_is(&mut ticket);
    let vectors = event.vectors.unwrap();
    assert!(vectors.dim == dim && bits(&vectors.data) == bits(&expected));
    assert_eq!(event.end.unwrap().usage.prompt_tokens, texts.iter().map(Vec::len).sum::<usize>());
    assert_eq!(all_there_is(&mut answer).token_ids.len(), 20);
    let empty = Work::Embed { texts: vec![vec![1], vec![]], options: embedding };
    let error = engine.submit(Request::new(&model, options(CONTEXT), empty)).unwrap_err();
    assert!(error.to_string().contains("text 1 is empty"), "{error}");
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn models_take_turns() {
    let models = [llama(), open(&Gguf::hybrid("lfm2"))];
    let mut engine = Inline::new(throughput()).unwrap();
    let mut tickets: Vec<Ticket> =
        models.iter().map(|model| engine.submit(request(model, &text(1, 30), 100, 1)).unwrap()).collect();
    (0..40).for_each(|_| assert!(engine.step(&never()).unwrap()));
    tickets.iter_mut().for_each(|ticket| assert_eq!(all_there_is(ticket).token_ids.len(), 20));
    assert_eq!(engine.stats().predicted.len(), 2);
    drop(tickets);
    drop(models);
    engine.step(&never()).unwrap();
    assert_eq!(engine.stats().predicted.len(), 0); // nothing of them is left
    assert_eq!(engine.stats().kv_cached, 0);
}

#[test]
fn what_could_never_be_computed_is_refused() {
    let model = llama();
    let mut engine = Inline::new(Limits { kv_bytes: 64 << 10, ..throughput() }).unwrap();
    let refused = |engine: &mut Inline, request: Request| engine.submit(request).unwrap_err().to_string();
    assert!(refused(&mut engine, request(&model, &[1, 260], 1, 1)).contains("token 260 is not in the vocabulary"));
    assert!(refused(&mut engine, request(&model, &text(1, CONTEXT + 1), 1, 1)).contains("do not fit"));
    assert!(refused(&mut engine, request(&model, &[1], 1, 0)).contains("n must be 1 or more"));
    let mut small = Inline::new(Limits { kv_bytes: 8 << 10, ..throughput() }).unwrap();
    assert!(refused(&mut small, request(&model, &text(1, 300), 1, 1)).contains("do not fit"));
    assert!(Inline::new(Limits { parallel: 0, ..throughput() }).is_err());
}

#[test]
fn threads_get_what_they_get_alone() {
    let model = llama();
    let scheduler = Scheduler::start(Limits { parallel: 3, ..throughput() }).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (model, scheduler) = (&model, &scheduler);
            scope.spawn(move || {
                for i in 0..12 {
                    let prompt = text(i % 3, 30 + 10 * (i as usize % 5));
                    let mut ticket = scheduler.submit(request(model, &prompt, 20, 1)).unwrap();
                    if (i + thread) % 4 == 0 {
                        continue; // cancelled
                    }
                    let mut ids = Vec::new();
                    while let Some(event) = ticket.next(&never()).unwrap() {
                        ids.extend(event.token_ids);
                    }
                    let alone = Case { prompt, max_tokens: 20, seed: None, shift: false }.alone(model, 0);
                    assert!(ids.len() == 20 && ids.starts_with(&alone.token_ids));
                }
            });
        }
    });
    while !scheduler.is_idle() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = scheduler.stats();
    assert_eq!((stats.kv_used, stats.queued_tokens), (0, 0));

    // Stopping ends what there is, and takes nothing more.
    let mut ticket = scheduler.submit(request(&model, &text(1, 10), 300, 1)).unwrap();
    scheduler.stop();
    let mut last = None;
    while let Some(event) = ticket.next(&never()).unwrap() {
        last = event.end;
    }
    assert!(matches!(last.unwrap().finish, Finish::Cancelled | Finish::Done(_)));
    assert!(matches!(scheduler.submit(request(&model, &[1], 1, 1)), Err(Rejected::Stopping)));
}

#[test]
fn a_full_queue_says_so_at_once() {
    let model = llama();
    let limits = Limits { parallel: 1, max_queue: 2, max_queued_tokens: 100, ring_bytes: 1, ..throughput() };
    let scheduler = Scheduler::start(limits).unwrap();
    let running = scheduler.submit(request(&model, &text(1, 10), 300, 1)).unwrap(); // it waits for its reader
    while scheduler.stats().running == 0 || scheduler.stats().waiting > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // One that waits alone may be of any size.
    let mut long = scheduler.submit(request(&model, &text(2, 200), 1, 1)).unwrap();
    let rejected = scheduler.submit(request(&model, &[1, 2, 3], 1, 1)).unwrap_err();
    assert!(matches!(rejected, Rejected::TokensFull { retry_after } if retry_after >= Duration::from_millis(100)));
    let rejected = scheduler.submit(request(&model, &[1], 1, 2)).unwrap_err();
    assert!(matches!(rejected, Rejected::QueueFull { .. }), "{rejected:?}");
    let stats = scheduler.stats();
    assert_eq!((stats.rejected_queue, stats.rejected_tokens, stats.waiting), (1, 1, 1));
    // It drains: what it has goes on.
    scheduler.drain();
    assert!(matches!(scheduler.submit(request(&model, &[1], 1, 1)), Err(Rejected::Stopping)));
    drop(running);
    while let Some(event) = long.next(&never()).unwrap() {
        assert!(event.end.is_none_or(|end| matches!(end.finish, Finish::Done(_))));
    }
}

#[test]
fn readers_are_woken_and_may_be_interrupted() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    struct Count(AtomicUsize, std::thread::Thread);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.unpark();
        }
    }
    let model = llama();
    let scheduler = Scheduler::start(Limits { ring_bytes: 1, ..throughput() }).unwrap();
    let mut ticket = scheduler.submit(request(&model, &text(1, 10), 30, 1)).unwrap();
    let count = Arc::new(Count(AtomicUsize::new(0), std::thread::current()));
    let waker = Waker::from(Arc::clone(&count));
    let mut context = std::task::Context::from_waker(&waker);
    let mut ids = Vec::new();
    loop {
        match std::pin::Pin::new(&mut ticket).poll_next(&mut context) {
            std::task::Poll::Ready(Some(event)) => ids.extend(event.token_ids),
            std::task::Poll::Ready(None) => break,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
    assert!(ids.len() == 30 && count.0.load(Ordering::SeqCst) > 0);

    // Nothing comes of what waits for its turn: who waits for it can be asked to stop, and go on.
    let scheduler = Scheduler::start(Limits { parallel: 1, ring_bytes: 1, ..throughput() }).unwrap();
    let first = scheduler.submit(request(&model, &text(1, 10), 30, 1)).unwrap();
    let mut second = scheduler.submit(request(&model, &text(2, 10), 5, 1)).unwrap();
    let stop = || true;
    assert!(matches!(second.next(&Interrupt::new(&stop)), Err(Error::Interrupted)));
    drop(first);
    assert!(second.next(&never()).unwrap().is_some());
}

#[test]
fn a_saved_prompt_is_the_start_of_those_that_begin_with_it_and_stays() {
    for model in [llama(), open(&Gguf::hybrid("qwen35"))] {
        let prompt = text(1, 200);
        let saved = TempFile::new(b"");
        let mut session = Session::new(&model, options(CONTEXT)).unwrap();
        session.forward(&prompt, &never()).unwrap();
        session.save(&saved.0).unwrap();
        let mut engine = Inline::new(Limits { kv_bytes: 512 << 10, ..throughput() }).unwrap();
        assert_eq!(engine.pin(&model, options(CONTEXT), &saved.0, 0).unwrap(), 200);
        // Much else goes through, and is evicted.
        let others: Vec<Ticket> =
            (2..60).map(|i| engine.submit(request(&model, &text(i, 300), 1, 1)).unwrap()).collect();
        run(&mut engine);
        assert!(engine.stats().evicted_tokens > 0);
        drop(others);
        let case = Case { prompt: [&prompt[..150], &[3; 20]].concat(), max_tokens: 9, seed: None, shift: false };
        let mut ticket = engine.submit(request(&model, &case.prompt, 9, 1)).unwrap();
        run(&mut engine);
        let event = all_there_is(&mut ticket);
        assert!(event.token_ids.starts_with(&case.alone(&model, 0).token_ids));
        let cached = event.end.unwrap().usage.cached_tokens;
        assert!(cached == 150 || model.config().is_recurrent() && cached <= 128, "{cached}");

        // Of a file that has changed nothing is used, not even by who has begun with it.
        let mut begun = engine.submit(request(&model, &case.prompt, 9, 1)).unwrap();
        engine.step(&never()).unwrap();
        let mut other = engine.submit(request(&model, &text(70, 20), 9, 1)).unwrap();
        std::fs::write(&saved.0, b"").unwrap();
        let mut later = engine.submit(request(&model, &case.prompt, 9, 1)).unwrap();
        run(&mut engine);
        let Finish::Failed(error) = all_there_is(&mut begun).end.unwrap().finish else { panic!("it has failed") };
        assert!(matches!(&*error, Error::Changed { .. }), "{error}");
        assert_eq!(all_there_is(&mut other).token_ids.len(), 9);
        assert!(all_there_is(&mut later).token_ids.starts_with(&case.alone(&model, 0).token_ids));
    }
}
