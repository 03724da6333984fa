//! The steps: what a scheduler computes, one after another, on the thread of whoever calls [`Core::step`].
//!
//! A step is one pass over the weights: a token of each answer that is being made, then as much of the prompts as fits into
//! the time of a step. All that is decided here is who takes part. What the others do never changes what one gets, so an
//! answer can be put off, cut into pieces, taken out and brought back at any time: it costs time and nothing else.
//!
//! Who waits is served by priority, then in turns between clients, then in the order of arrival. A client's turn is told by
//! the tokens that were computed for it (fair queueing, with a token as the unit): who has had least is next.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::group::{Group, Key};
use super::prefix::Place;
use super::request::{
    AnyAnswer, Choice, End, Event, Finish, Generate, Limits, PromptLogprobs, Request, Stats, TokenLogprob, Usage,
    Vectors, Work,
};
use super::thread::Load;
use super::ticket::Sink;
use crate::adapter::{self, Adapter};
use crate::embedding::{self, EmbedOptions};
use crate::engine::{BATCH, Span, Want};
use crate::error::{Error, Result};
use crate::generate::{self, FinishReason, Overflow};
use crate::kernels::{BLOCK, Changes};
use crate::kv::Sequence;
use crate::model::Model;
use crate::sampling::{log_probabilities, log_probability, log_total};
use crate::session::{Session, SessionOptions};
use crate::threads::{self, Interrupt};

/// Fewer tokens of a prompt are not worth a place in a step, unless no prompt has one.
const CHUNK: usize = 16;
/// Tokens of a prompt whose logits are all wanted, at a time: of a vocabulary of 256k they are 32 MiB.
const CHUNK_OF_LOGITS: usize = 32;
/// A step in which no answer waits for its next token may take so many times as long.
const ALONE: u32 = 4;
/// An answer that is taken in is expected to have so many tokens, or `max_tokens`.
const EXPECTED: usize = 256;
/// A prompt of which fewer tokens have to be computed may go before one with more ...
const SHORT: usize = 64;
/// ... so many times.
const OVERTAKEN: u8 = 4;
/// So many of those that wait are looked at for the next one.
const LOOKED_AT: usize = 64;
/// A client that has had so many tokens more than one that waits gives it its place.
const QUANTUM: u64 = 256;

/// A request that was taken, and where its events go.
pub(super) struct Job {
    pub request: Request,
    pub sink: Sink,
    pub arrival: Instant,
}

/// What was computed once and saved.
pub(super) struct Pin {
    pub model: Arc<Model>,
    pub session: SessionOptions,
    pub sequence: Sequence,
    pub salt: u64,
}

impl Pin {
    /// Brings it back, and looks at all of it: what is damaged is found now.
    ///
    /// # Errors
    /// As for [`Session::load_prefix`], and [`Error::SavedSession`].
    pub fn load(model: &Arc<Model>, session: SessionOptions, path: &Path, salt: u64) -> Result<Self> {
        let mut sequence = Session::load_prefix(model, path, session, &[])?.into_sequence();
        sequence.verify()?;
        Ok(Self { model: Arc::clone(model), session, sequence, salt })
    }
}

/// What is known of an answer, whether it waits or is being made.
pub(super) struct About {
    pub model: Arc<Model>,
    session: SessionOptions,
    sink: Sink,
    index: usize,
    client: u64,
    pub salt: u64,
    adapters: Vec<(Arc<Adapter>, f32)>,
    changes: Arc<Changes>, // theirs
    priority: i8,
    deadline: Option<Instant>,
    arrival: Instant,
    number: u64, // in the order of arrival
    started: Option<Instant>,
    prompt_done: Option<Instant>,
    usage: Usage,
    has_ended: Cell<bool>,
}

/// What there is to do for it.
enum Task {
    Answer(Box<Answering>),
    Texts(Box<Texts>),
}

/// An answer, without what was computed of it.
pub(super) struct Answering {
    pub answer: AnyAnswer,
    prompt_logprobs: Option<PromptLogprobs>, // `first` is the next one to report
    on_overflow: Overflow,
    n_keep: usize,
}

/// Texts that become vectors.
struct Texts {
    texts: Vec<Vec<u32>>,
    embed: Option<EmbedOptions>, // else they are ranked
    done: usize,
    data: Vec<f32>,
    dim: usize,
}

struct Waiting {
    key: Key,
    about: About,
    task: Task,
    queued: usize, // tokens that it counts for in the queue
    overtaken: u8,
}

/// An answer that is being made.
pub(super) struct Running {
    about: About,
    pub of: Box<Answering>,
    pub sequence: Sequence,
    pub place: Place,
    pub shares: bool, // its blocks with the tree; not after a shift
    paused: Option<Instant>,
}

/// Texts that are being computed.
pub(super) struct RunningTexts {
    about: About,
    texts: Box<Texts>,
}

impl RunningTexts {
    pub fn about(&self) -> &About {
        &self.about
    }
}

/// Who takes part in a step.
struct Planned {
    number: u64,
    tokens: usize,
}

/// What a step has to be within.
struct Budget {
    seconds: f64, // infinite for none
    rows: usize,
    positions: u64,
    bytes: u64, // of the blocks that they will need
}

pub(super) struct Core {
    limits: Limits,
    groups: Vec<Group>,
    waiting: Vec<Waiting>,
    clients: HashMap<u64, u64>, // tokens that were computed for them, and what they were given when they came
    has_priorities: bool,       // any request had one
    clock: u64,
    turn: usize,            // the group whose turn it is
    current: Option<usize>, // the group that is being computed
    logits: Vec<f32>,
    stats: Stats,
    last_end: Option<Instant>,
    is_busy: bool,
}

impl Core {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            groups: Vec::new(),
            waiting: Vec::new(),
            clients: HashMap::new(),
            has_priorities: false,
            clock: 0,
            turn: 0,
            current: None,
            logits: Vec::new(),
            stats: Stats { kv_budget: limits.kv_bytes, ..Stats::default() },
            last_end: None,
            is_busy: false,
        }
    }

    /// Takes a request into the queue.
    pub fn add(&mut self, job: Job, load: &Load) {
        let Job { request, sink, arrival } = job;
        let tokens = request.prompt_tokens();
        let Request { model, session, work, client, salt, priority, deadline, adapters } = request;
        self.is_busy = true;
        self.has_priorities |= priority != 0;
        self.arrives(client);
        let key = Key::new(&model, &session);
        let resolved = self.group(&key, &model).map(|_| ());
        let resolved = resolved.and_then(|()| adapter::resolved(&adapters, model.checkpoint()));
        let (changes, changes_hash) = match resolved {
            Ok(resolved) => resolved,
            Err(error) => {
                let n = work.n();
                load.leave(n, tokens);
                let error = Arc::new(error);
                for index in 0..n {
                    let end = End { finish: Finish::Failed(Arc::clone(&error)), usage: Usage::default(), seed: 0 };
                    sink.push(Event { index, end: Some(end), ..Event::default() });
                }
                return;
            }
        };
        let mut wait = |index: usize, task: Task, prompt_tokens: usize| {
            self.clock += 1;
            let about = About {
                model: Arc::clone(&model),
                session,
                sink: sink.clone(),
                index,
                client,
                salt: salt ^ changes_hash, // what was computed with others is no use
                adapters: adapters.clone(),
                changes: Arc::clone(&changes),
                priority,
                deadline,
                arrival,
                number: self.clock,
                started: None,
                prompt_done: None,
                usage: Usage { prompt_tokens, ..Usage::default() },
                has_ended: Cell::new(false),
            };
            self.waiting.push(Waiting {
                key: key.clone(),
                about,
                task,
                queued: if index == 0 { tokens } else { 0 },
                overtaken: 0,
            });
        };
        match work {
            Work::Generate(Generate { answers, prompt_logprobs, on_overflow, n_keep }) => {
                for (index, answer) in answers.into_iter().enumerate() {
                    let prompt_logprobs = prompt_logprobs.filter(|_| index == 0);
                    let prompt_logprobs = prompt_logprobs.map(|p| PromptLogprobs { first: p.first.max(1), ..p });
                    let task = Task::Answer(Box::new(Answering { answer, prompt_logprobs, on_overflow, n_keep }));
                    wait(index, task, tokens);
                }
            }
            Work::Embed { texts, options } => {
                let embed = Some(EmbedOptions { session, ..options });
                wait(0, Task::Texts(Box::new(Texts { texts, embed, done: 0, data: Vec::new(), dim: 1 })), tokens);
            }
            Work::Rank { texts } => {
                let texts = Texts { texts, embed: None, done: 0, data: Vec::new(), dim: 1 };
                wait(0, Task::Texts(Box::new(texts)), tokens);
            }
        }
    }

    /// Keeps a sequence for good, for all that begin with it.
    pub fn pin(&mut self, pin: Pin) -> Result<()> {
        let Pin { model, session, mut sequence, salt } = pin;
        let g = self.group(&Key::new(&model, &session), &model)?;
        self.clock += 1;
        self.groups[g].prefixes.pin(&mut sequence, salt, self.clock);
        Ok(())
    }

    /// The group of requests that are computed together, made if there is none.
    fn group(&mut self, key: &Key, model: &Arc<Model>) -> Result<usize> {
        if let Some(i) = self.groups.iter().position(|group| group.key == *key) {
            return Ok(i);
        }
        self.groups.push(Group::new(key.clone(), model)?);
        Ok(self.groups.len() - 1)
    }

    /// A client comes: it is next, but does not catch up for the time when it wanted nothing.
    fn arrives(&mut self, client: u64) {
        if self.waiting.last().is_some_and(|last| last.about.client == client) {
            return; // it is here already
        }
        let active = self.active_clients();
        if active.contains(&client) {
            return;
        }
        let least = active.iter().filter_map(|other| self.clients.get(other)).min().copied();
        if least.is_none() {
            self.clients.clear();
        } else if self.clients.len() > 4096 {
            self.clients.retain(|client, _| active.contains(client));
        }
        let had = self.clients.entry(client).or_default();
        *had = least.map_or(QUANTUM + 1, |least| least.saturating_sub(QUANTUM + 1)).max(*had);
    }

    fn active_clients(&self) -> Vec<u64> {
        let running = self.groups.iter().flat_map(|group| group.abouts());
        running.chain(self.waiting.iter().map(|waiting| &waiting.about)).map(|about| about.client).collect()
    }

    fn had(&self, client: u64) -> u64 {
        self.clients.get(&client).copied().unwrap_or_default()
    }

    fn charge(&mut self, client: u64, tokens: usize) {
        *self.clients.entry(client).or_default() += tokens as u64;
    }

    /// Whether the next step would do something, as far as it is known.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Whether nothing is being made and nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.groups.iter().all(Group::is_idle)
    }

    /// When to look again if nothing happens before.
    pub fn wait_until(&self) -> Option<Instant> {
        let running = self.groups.iter().flat_map(|group| &group.running);
        let paused = running.filter_map(|running| Some(running.paused? + self.limits.slow_reader));
        let abouts = self.groups.iter().flat_map(Group::abouts);
        let abouts = abouts.chain(self.waiting.iter().map(|waiting| &waiting.about));
        paused.chain(abouts.filter_map(|about| about.deadline)).min()
    }

    pub fn stats(&self) -> Stats {
        let used: u64 = self.used();
        let kv_cached = self.groups.iter().map(|group| group.prefixes.unused_bytes()).sum::<u64>();
        let running = || self.groups.iter().flat_map(|group| &group.running);
        Stats {
            running: running().count() + self.groups.iter().map(|group| group.texts.len()).sum::<usize>(),
            waiting: self.waiting.len(),
            kv_used: used.saturating_sub(kv_cached),
            kv_cached,
            predicted: self.groups.iter().map(|group| (group.path.clone(), group.cost.curve())).collect(),
            slots: running()
                .map(|r| {
                    let n = r.of.answer.prompt().len();
                    (n, n.min(r.sequence.position()), r.of.answer.generated().len())
                })
                .collect(),
            ..self.stats.clone()
        }
    }

    /// Ends all that there is.
    pub fn end_all(&mut self, finish: &Finish, load: &Load) {
        for group in &mut self.groups {
            group.running.drain(..).for_each(|running| running.about.end(finish.clone(), String::new(), None));
            group.texts.drain(..).for_each(|texts| texts.about.end(finish.clone(), String::new(), None));
        }
        for waiting in self.waiting.drain(..) {
            load.leave(1, waiting.queued);
            waiting.about.end(finish.clone(), String::new(), None);
        }
    }

    /// After a panic: whatever was being computed is lost, and so is what was kept of that model.
    pub fn crashed(&mut self) {
        let Some(i) = self.current.take() else { return };
        let mut group = self.groups.remove(i);
        group.running.drain(..).for_each(|running| running.about.end(Finish::Crashed, String::new(), None));
        group.texts.drain(..).for_each(|texts| texts.about.end(Finish::Crashed, String::new(), None));
        self.is_busy = true;
    }

    /// Computes one step: of the model whose turn it is, if there is anything to do.
    pub fn step(&mut self, interrupt: &Interrupt, load: &Load) {
        let now = Instant::now();
        self.drop_ended(now, load);
        self.is_busy = false;
        for i in 0..self.groups.len() {
            let g = (self.turn + i) % self.groups.len();
            self.current = Some(g);
            let plan = self.plan(g, now, load);
            let has_texts = !self.groups[g].texts.is_empty();
            if plan.is_empty() && !has_texts {
                continue;
            }
            self.is_busy = true;
            self.turn = g + 1;
            if !plan.is_empty() {
                self.compute(g, &plan, interrupt, load);
            }
            if has_texts {
                self.compute_texts(g, !plan.is_empty(), interrupt);
            }
            self.stats.steps += 1;
            let took = now.elapsed().as_secs_f64();
            self.stats.step_seconds += took;
            self.stats.last_step = took;
            break;
        }
        self.current = None;
    }

    /// Lets go of what was cancelled, is too late, or is not read; and of models that nobody else has.
    fn drop_ended(&mut self, now: Instant, load: &Load) {
        let is_late = |about: &About| about.deadline.is_some_and(|deadline| deadline <= now);
        let why = |about: &About| match about.sink.is_cancelled() {
            true => Some(Finish::Cancelled),
            false => is_late(about).then_some(Finish::Deadline),
        };
        let mut ended = Vec::new();
        self.waiting.retain_mut(|waiting| {
            let why = why(&waiting.about);
            if let Some(finish) = &why {
                load.leave(1, waiting.queued);
                waiting.about.end(finish.clone(), String::new(), None);
            }
            why.is_none()
        });
        for (g, group) in self.groups.iter_mut().enumerate() {
            group.texts.retain(|texts| {
                let why = why(&texts.about);
                if let Some(finish) = &why {
                    texts.about.end(finish.clone(), String::new(), None);
                }
                why.is_none()
            });
            for running in &mut group.running {
                let slow = running.paused.is_some_and(|since| now >= since + self.limits.slow_reader);
                let why = why(&running.about).or_else(|| slow.then_some(Finish::SlowReader));
                if let Some(finish) = why {
                    ended.push((g, running.about.number, finish));
                }
            }
        }
        for (g, number, finish) in ended {
            self.leave(g, number, finish, String::new(), Vec::new());
        }
        self.groups.retain(|group| !group.is_idle() || group.model.strong_count() > 0);
    }

    /// An answer has ended: it leaves, and what was computed of it is kept for others.
    fn leave(&mut self, g: usize, number: u64, finish: Finish, text: String, token_ids: Vec<u32>) {
        let Some(mut running) = self.take_out(g, number) else { return };
        let seed = running.of.answer.seed();
        running.about.usage.generated_tokens = running.of.answer.generated().len();
        let event = Event { token_ids, ..Event::default() };
        running.about.end_with(finish, text, Some(seed), event);
    }

    /// Takes an answer out of those that are being made.
    fn take_out(&mut self, g: usize, number: u64) -> Option<Running> {
        self.clock += 1;
        let group = &mut self.groups[g];
        let i = group.index(number)?;
        let mut running = group.running.remove(i);
        if running.shares {
            group.prefixes.take_in(&mut running.sequence, &mut running.place, self.clock);
            group.prefixes.take_in_end(&mut running.sequence, running.place, self.clock);
        }
        Some(running)
    }

    /// Takes an answer out that will be taken up again.
    fn preempt(&mut self, g: usize, number: u64, load: &Load) {
        let Some(Running { about, mut of, .. }) = self.take_out(g, number) else { return };
        if of.answer.finish_reason().is_none() {
            of.answer.set_computed(0);
        }
        let queued = of.answer.tokens().len();
        let waiting = Waiting { key: self.groups[g].key.clone(), about, task: Task::Answer(of), queued, overtaken: 0 };
        load.enter(1, queued);
        self.waiting.push(waiting);
        self.stats.preemptions += 1;
    }

    // Memory.

    /// Bytes of keys and values, those that are kept for later included.
    fn used(&self) -> u64 {
        self.groups.iter().map(Group::bytes).sum()
    }

    /// Sees to it that there are so many bytes more: drops what is only kept, what was not used for longest first.
    fn evict(&mut self, bytes: u64) -> bool {
        loop {
            let used = self.used();
            if used + bytes <= self.limits.kv_bytes {
                return true;
            }
            let groups = self.groups.iter().enumerate();
            let leaves = groups.flat_map(|(g, group)| group.prefixes.leaves().map(move |(used, id)| (used, g, id)));
            let mut leaves: Vec<_> = leaves.collect();
            if leaves.is_empty() {
                return false;
            }
            leaves.sort_unstable();
            let mut over = (used + bytes - self.limits.kv_bytes) as i64;
            for (_, g, id) in leaves {
                let before = self.groups[g].prefixes.bytes();
                self.stats.evicted_tokens += self.groups[g].prefixes.evict(id) as u64;
                over -= (before - self.groups[g].prefixes.bytes()) as i64;
                if over <= 0 {
                    break;
                }
            }
        }
    }

    /// Makes room for `tokens` more of an answer, if need be by taking out those that came after it. Gives whether there
    /// is room; if not, it is this one that has to make room.
    fn make_room(&mut self, g: usize, number: u64, tokens: usize, budget: &mut Budget, load: &Load) -> bool {
        loop {
            let group = &self.groups[g];
            let Some(i) = group.index(number) else { return false };
            let position = group.running[i].sequence.position();
            let blocks = (position + tokens).div_ceil(BLOCK) - position.div_ceil(BLOCK);
            let (bytes, mine) = (blocks as u64 * group.layout.block_bytes() as u64, group.running[i].rank());
            if self.evict(budget.bytes + bytes) {
                budget.bytes += bytes;
                return true;
            }
            match self.last_in_rank(|running| running.rank() > mine) {
                Some((g, victim)) => self.preempt(g, victim, load),
                None => return false,
            }
        }
    }

    /// Of the answers that can be taken out, the one that came last of the lowest priority.
    fn last_in_rank(&self, may: impl Fn(&Running) -> bool) -> Option<(usize, u64)> {
        let all = self.groups.iter().enumerate().flat_map(|(g, group)| group.running.iter().map(move |r| (g, r)));
        let all = all.filter(|(_, running)| running.shares && may(running));
        all.max_by_key(|(_, running)| running.rank()).map(|(g, running)| (g, running.about.number))
    }

    // Who takes part.

    /// Who takes part in the next step of a group.
    fn plan(&mut self, g: usize, now: Instant, load: &Load) -> Vec<Planned> {
        let mut plan = Vec::new();
        let mut budget = Budget { seconds: self.limits.step.as_secs_f64(), rows: 0, positions: 0, bytes: 0 };
        self.take_texts(g, now, load);
        for number in self.groups[g].in_order(Running::is_decoding) {
            let Some(i) = self.groups[g].index(number) else { continue }; // it had to make room
            let running = &mut self.groups[g].running[i];
            if running.about.sink.is_full(self.limits.ring_bytes) {
                running.paused.get_or_insert(now);
                continue;
            }
            running.paused = None;
            let wants = running.todo().len();
            if self.has_context(g, number) {
                self.take_part(g, number, wants, &mut plan, &mut budget, load);
            }
        }
        let is_alone = plan.is_empty();
        if self.limits.step.is_zero() {
            budget.seconds = f64::INFINITY;
        } else if is_alone {
            budget.seconds *= f64::from(ALONE);
        }
        let mut is_first = true; // that one goes on in any case
        for number in self.groups[g].in_order(|running| !running.is_decoding()) {
            if !self.has_context(g, number) {
                continue;
            }
            let Some(i) = self.groups[g].index(number) else { continue };
            let tokens = self.chunk(g, &self.groups[g].running[i], &budget, is_first);
            if tokens > 0 {
                is_first &= !self.take_part(g, number, tokens, &mut plan, &mut budget, load);
            }
        }
        while is_first || self.fits(g, &budget, CHUNK, 0) {
            let Some(number) = self.take_next(g, now, load) else { break };
            let Some(i) = self.groups[g].index(number) else { continue };
            if self.groups[g].running[i].todo().is_empty() {
                self.leave_done(g, number, String::new()); // nothing was wanted
                continue;
            }
            if !self.has_context(g, number) {
                continue;
            }
            let tokens = self.chunk(g, &self.groups[g].running[i], &budget, is_first);
            if tokens == 0 {
                break;
            }
            is_first &= !self.take_part(g, number, tokens, &mut plan, &mut budget, load);
        }
        plan
    }

    /// An answer takes part with so many tokens, if there is room for them; else it has to make room for others.
    fn take_part(
        &mut self,
        g: usize,
        number: u64,
        tokens: usize,
        plan: &mut Vec<Planned>,
        budget: &mut Budget,
        load: &Load,
    ) -> bool {
        if !self.make_room(g, number, tokens, budget, load) {
            let is_last = self.groups.iter().map(|group| group.running.len()).sum::<usize>() == 1;
            let Some(i) = self.groups[g].index(number) else { return false };
            let running = &mut self.groups[g].running[i];
            if !is_last && running.shares {
                self.preempt(g, number, load);
            } else {
                // It has all the memory that there is, or cannot be taken up again.
                let text = running.of.answer.end(FinishReason::Length);
                let reason = running.of.answer.finish_reason().unwrap_or(FinishReason::Length);
                self.leave(g, number, Finish::Done(reason), text, Vec::new());
            }
            return false;
        }
        let Some(i) = self.groups[g].index(number) else { return false };
        budget.rows += tokens;
        budget.positions += positions(&self.groups[g].running[i], tokens);
        plan.push(Planned { number, tokens });
        true
    }

    /// Whether a step with so many rows more is short enough.
    fn fits(&self, g: usize, budget: &Budget, rows: usize, positions: u64) -> bool {
        let rows = budget.rows + rows;
        let most = self.limits.max_rows.min(BATCH);
        rows <= most && self.groups[g].cost.predict(rows, budget.positions + positions) <= budget.seconds
    }

    /// So many tokens of a prompt are computed in this step.
    fn chunk(&self, g: usize, running: &Running, budget: &Budget, is_first: bool) -> usize {
        // One that was taken out when its context was full, and shifts, has more tokens than there is room for.
        let todo = running.todo().len().min(running.sequence.context_length() - running.sequence.position());
        let most = if running.of.prompt_logprobs.is_some() { todo.min(CHUNK_OF_LOGITS) } else { todo.min(BATCH) };
        let least = most.min(CHUNK);
        let fits = |n: usize| self.fits(g, budget, n, positions(running, n));
        if !fits(least) {
            return if is_first { self.least_chunk(g, running, budget, least) } else { 0 };
        }
        let (mut fit, mut too_many) = (least, most + 1);
        while fit + 1 < too_many {
            let middle = fit.midpoint(too_many);
            *(if fits(middle) { &mut fit } else { &mut too_many }) = middle;
        }
        fit
    }

    /// So many tokens of the first prompt, at most `most`, are computed where no more of them fit: as many as do not make the
    /// step more than twice as long as it may be, or as it is without them; and one at least.
    fn least_chunk(&self, g: usize, running: &Running, budget: &Budget, most: usize) -> usize {
        let cost = &self.groups[g].cost;
        let seconds = 2.0 * budget.seconds.max(cost.predict(budget.rows, budget.positions));
        let is_short = |n: &usize| {
            budget.rows + n <= self.limits.max_rows
                && cost.predict(budget.rows + n, budget.positions + positions(running, *n)) <= seconds
        };
        (1..=most).rev().find(is_short).unwrap_or(1.min(most))
    }

    /// Whether an answer has room in its context for what it wants. If not, the answer ends, or room is made.
    fn has_context(&mut self, g: usize, number: u64) -> bool {
        let Some(i) = self.groups[g].index(number) else { return false };
        let running = &mut self.groups[g].running[i];
        let (wants, room) = (running.todo().len(), running.sequence.context_length() - running.sequence.position());
        let Running { about, of, sequence, shares, .. } = running;
        let shifts = of.on_overflow == Overflow::Shift;
        if wants <= room || shifts && room > 0 {
            return true;
        }
        if shifts {
            let n_discard = sequence.position().saturating_sub(of.n_keep) / 2;
            *shares = false; // it has its own blocks from now on, and tokens that are not those before them
            let shifted = about.model.engine().and_then(|engine| engine.shift(sequence, of.n_keep, n_discard.max(1)));
            return match shifted {
                Ok(()) => true,
                Err(error) => {
                    self.leave(g, number, Finish::Failed(Arc::new(error)), String::new(), Vec::new());
                    false
                }
            };
        }
        let text = of.answer.end(FinishReason::Length);
        self.leave_done(g, number, text);
        false
    }

    fn leave_done(&mut self, g: usize, number: u64, text: String) {
        let Some(i) = self.groups[g].index(number) else { return };
        let reason = self.groups[g].running[i].of.answer.finish_reason().unwrap_or(FinishReason::Length);
        self.leave(g, number, Finish::Done(reason), text, Vec::new());
    }

    // Who is next.

    /// The first ones of a group that wait for this kind of work, the next one first.
    fn queue(&self, g: usize, is_kind: impl Fn(&Task) -> bool) -> Vec<usize> {
        let key = &self.groups[g].key;
        let of_kind = |waiting: &Waiting| is_kind(&waiting.task) && waiting.key == *key;
        let of_group = self.waiting.iter().enumerate().filter(|(_, waiting)| of_kind(waiting));
        let mut order: Vec<usize> = of_group.map(|(i, _)| i).collect();
        let rank = |&i: &usize| {
            let about = &self.waiting[i].about;
            (-i16::from(about.priority), self.had(about.client), about.number)
        };
        if order.len() > LOOKED_AT {
            order.select_nth_unstable_by_key(LOOKED_AT, rank);
            order.truncate(LOOKED_AT);
        }
        order.sort_unstable_by_key(rank);
        order
    }

    /// Takes the next texts out of the queue, if none are being computed. They take no place of an answer.
    fn take_texts(&mut self, g: usize, now: Instant, load: &Load) {
        if !self.groups[g].texts.is_empty() {
            return;
        }
        let Some(&i) = self.queue(g, |task| matches!(task, Task::Texts(_))).first() else { return };
        let Waiting { mut about, task, queued, .. } = self.waiting.remove(i);
        if let Task::Texts(texts) = task {
            about.start(now);
            load.leave(1, queued);
            self.charge(about.client, about.usage.prompt_tokens);
            self.groups[g].texts.push(RunningTexts { about, texts });
        }
    }

    /// Takes the next one of a group out of the queue, if there is one and room for it.
    fn take_next(&mut self, g: usize, now: Instant, load: &Load) -> Option<u64> {
        let is_full = self.groups[g].running.len() >= self.limits.parallel;
        if is_full && self.clients.len() <= 1 && !self.has_priorities {
            return None; // nobody gives a place to another
        }
        let order = self.queue(g, |task| matches!(task, Task::Answer(_)));
        // What is about to be computed for another need not be computed again.
        let cached: Vec<(usize, usize)> = order
            .into_iter()
            .filter_map(|i| Some((i, self.groups[g].cached(self.waiting[i].answering()?, &self.waiting[i].about)?)))
            .collect();
        let &(first, found) = cached.first()?;
        let left = |i: usize, found: usize| self.waiting[i].tokens() - found;
        let mut next = first;
        if left(first, found) >= SHORT && self.waiting[first].overtaken < OVERTAKEN {
            let is_short = |&&(i, found): &&(usize, usize)| {
                left(i, found) < SHORT && self.waiting[i].about.priority == self.waiting[first].about.priority
            };
            if let Some(&(short, _)) = cached.iter().find(is_short) {
                next = short;
            }
        }
        if is_full {
            next = first;
        }
        if !self.has_room_for(g, next) {
            return None;
        }
        if is_full {
            let giver = self.who_gives_place(g, &self.waiting[next].about)?;
            self.preempt(g, giver, load);
        }
        if next != first {
            self.waiting[first].overtaken += 1;
        }
        self.start(g, next, now, load)
    }

    /// All places are taken: who gives its place to one that waits, if anybody does.
    fn who_gives_place(&self, g: usize, taker: &About) -> Option<u64> {
        let running = || self.groups[g].running.iter().filter(|running| running.shares);
        let lower = running().filter(|running| running.about.priority < taker.priority);
        if let Some(lower) = lower.max_by_key(|running| running.rank()) {
            return Some(lower.about.number);
        }
        let has_had_enough = |running: &&Running| {
            let about = &running.about;
            about.priority == taker.priority
                && about.client != taker.client
                && self.had(about.client) > self.had(taker.client) + QUANTUM
        };
        let most = running().filter(has_had_enough).max_by_key(|r| (self.had(r.about.client), r.about.number))?;
        Some(most.about.number)
    }

    /// Whether there is memory for one that waits, for what those that are being made will still need, and for as much as
    /// it is expected to need.
    fn has_room_for(&self, g: usize, i: usize) -> bool {
        if self.groups.iter().all(|group| group.running.is_empty()) {
            return true;
        }
        let group = &self.groups[g];
        let Some(of) = self.waiting[i].answering() else { return true };
        let unused: u64 = self.groups.iter().map(|group| group.prefixes.unused_bytes()).sum();
        let promised: u64 = self.groups.iter().map(Group::promised_bytes).sum();
        let about = &self.waiting[i].about;
        let blocks = expected(&of.answer).min(about.session.context_length).div_ceil(BLOCK);
        let blocks = blocks - group.in_use(of, about).min(blocks);
        let needs = blocks as u64 * group.layout.block_bytes() as u64;
        self.used() - unused + promised + needs + group.own_bytes() <= self.limits.kv_bytes
    }

    /// One that waited is being made from now on.
    fn start(&mut self, g: usize, i: usize, now: Instant, load: &Load) -> Option<u64> {
        let waiting = self.waiting.remove(i);
        let tokens = waiting.tokens();
        let Waiting { mut about, task: Task::Answer(of), queued, .. } = waiting else {
            unreachable!("texts take no place")
        };
        load.leave(1, queued);
        let is_new = about.started.is_none();
        about.start(now);
        self.clock += 1;
        let (number, client) = (about.number, about.client);
        let context_length = embedding::longest(&about.model, &about.session);
        let group = &mut self.groups[g];
        match group.begin(&of, &about, context_length, self.clock) {
            Ok((sequence, place)) => {
                let found = sequence.position();
                if is_new {
                    about.usage.cached_tokens = found;
                    self.stats.prompt_tokens += of.answer.prompt().len() as u64;
                    self.stats.cached_tokens += found as u64;
                }
                let mut running = Running { about, of, sequence, place, shares: true, paused: None };
                running.computed();
                let at = group.running.partition_point(|other| other.rank() < running.rank());
                group.running.insert(at, running);
                self.charge(client, tokens - found);
            }
            Err(error) => about.end(Finish::Failed(Arc::new(error)), String::new(), None),
        }
        Some(number)
    }

    // Computing.

    fn compute(&mut self, g: usize, plan: &[Planned], interrupt: &Interrupt, load: &Load) {
        self.clock += 1;
        let Self { groups, logits, .. } = self;
        let group = &mut groups[g];
        let mut parts: Vec<(&mut Running, usize)> = Vec::with_capacity(plan.len());
        for running in &mut group.running {
            if let Some(planned) = plan.iter().find(|planned| planned.number == running.about.number) {
                parts.push((running, planned.tokens));
            }
        }
        let n_rows: usize = parts.iter().map(|(_, tokens)| tokens).sum();
        let n_positions: u64 = parts.iter().map(|(running, tokens)| positions(running, *tokens)).sum();
        let sinks: Vec<Sink> = parts.iter().map(|(running, _)| running.about.sink.clone()).collect();
        let stop = || interrupt.poll_now() || sinks.iter().all(Sink::is_cancelled);
        let Some((first, _)) = parts.first() else { return };
        let (model, threads) = (Arc::clone(&first.about.model), first.about.session.threads);
        let vocab_size = model.config().vocab_size;
        let start = Instant::now();
        let mut spans: Vec<Span> = parts.iter_mut().map(|(running, n)| running.span(*n)).collect();
        let rows: Vec<usize> = spans.iter().map(Span::n_wanted).collect();
        logits.resize(rows.iter().sum::<usize>() * vocab_size, 0.0);
        let passed = model.engine().and_then(|engine| engine.pass(&mut spans, logits, threads, &Interrupt::new(&stop)));
        drop(spans);
        if let Err(error) = passed {
            return self.failed(g, plan, error, load);
        }
        group.cost.learn(n_rows, n_positions, start.elapsed());

        // Each is sampled by whoever is free.
        let mut rest = &logits[..];
        let mut done: Vec<(&mut Running, &[f32], usize, Outcome)> = Vec::with_capacity(parts.len());
        for ((running, tokens), rows) in parts.into_iter().zip(rows) {
            let (own, others) = rest.split_at(rows * vocab_size);
            rest = others;
            done.push((running, own, tokens, Outcome::default()));
        }
        let n = done.len();
        let jobs = Mutex::new(done.iter_mut());
        let work = |_: usize| {
            loop {
                let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((running, logits, tokens, outcome)) = job else { break };
                // A bug in one answer ends that one.
                let accepted = catch_unwind(AssertUnwindSafe(|| running.accept(logits, *tokens, vocab_size)));
                *outcome = accepted.unwrap_or_else(|_| Outcome { end: Some(Finish::Crashed), ..Outcome::default() });
            }
        };
        if n > 1 {
            threads::run(threads, &work)
        } else {
            work(0)
        }
        let outcomes: Vec<(u64, u64, Outcome)> = done
            .into_iter()
            .map(|(running, _, _, outcome)| (running.about.number, running.about.client, outcome))
            .collect();

        let now = Instant::now();
        for (number, client, outcome) in outcomes {
            let group = &mut self.groups[g];
            let Some(i) = group.index(number) else { continue };
            let running = &mut group.running[i];
            if running.shares {
                group.prefixes.take_in(&mut running.sequence, &mut running.place, self.clock);
            }
            if outcome.first {
                running.about.prompt_done.get_or_insert(now);
            }
            self.stats.generated_tokens += outcome.event.token_ids.len() as u64;
            self.deliver(g, number, outcome, now, load);
            self.charge(client, 1);
        }
    }

    /// Gives out what came of an answer in a step.
    fn deliver(&mut self, g: usize, number: u64, outcome: Outcome, now: Instant, load: &Load) {
        let Outcome { mut event, end, .. } = outcome;
        let Some(i) = self.groups[g].index(number) else { return };
        event.index = self.groups[g].running[i].about.index;
        let Some(finish) = end else {
            if !event.is_empty() {
                self.groups[g].running[i].about.sink.push(event);
            }
            return;
        };
        if let Some(mut running) = self.take_out(g, number) {
            let seed = running.of.answer.seed();
            running.about.usage.generated_tokens = running.of.answer.generated().len();
            let text = std::mem::take(&mut event.text);
            running.about.end_with(finish, text, Some(seed), event);
        }
        if let (Some(last), false) = (self.last_end, self.waiting.is_empty()) {
            let interval = (now - last).as_micros() as u64;
            let before = load.interval.load(Ordering::Relaxed);
            let mean = if before == 0 { interval } else { (7 * before + interval) / 8 };
            load.interval.store(mean, Ordering::Relaxed);
        }
        self.last_end = Some(now);
    }

    /// A pass has failed, and no sequence has changed.
    fn failed(&mut self, g: usize, plan: &[Planned], error: Error, load: &Load) {
        match error {
            Error::Interrupted => {} // who was cancelled goes with the next step
            Error::OutOfMemory { .. } if plan.len() > 1 => {
                let last = plan.iter().filter_map(|planned| self.groups[g].index(planned.number)).max();
                if let Some(i) = last {
                    let number = self.groups[g].running[i].about.number;
                    self.preempt(g, number, load);
                }
            }
            error => {
                // Those fail whose saved prefix has changed. Else all that took part; and of a model whose file has changed
                // nothing can be computed any more, by nobody.
                let running = || self.groups[g].running.iter();
                let numbers = |of: &dyn Fn(&&Running) -> bool| running().filter(of).map(Running::number).collect();
                let took_part = |running: &&Running| plan.iter().any(|planned| planned.number == running.number());
                let is_changed =
                    running().next().is_none_or(|running| running.about.model.checkpoint().check().is_err());
                let mut failed: Vec<u64> = numbers(&|running| running.sequence.check().is_err());
                if is_changed {
                    failed = numbers(&|_| true);
                } else if failed.is_empty() {
                    failed = numbers(&took_part);
                }
                let finish = Finish::Failed(Arc::new(error));
                for number in failed {
                    let group = &mut self.groups[g];
                    if let Some(i) = group.index(number) {
                        let running = group.running.remove(i); // and nothing of it is kept
                        running.about.end(finish.clone(), String::new(), Some(running.of.answer.seed()));
                    }
                }
            }
        }
    }

    /// Computes some of the texts that become vectors: as many as fit into a step, and at least one.
    fn compute_texts(&mut self, g: usize, in_company: bool, interrupt: &Interrupt) {
        let group = &mut self.groups[g];
        let RunningTexts { about, mut texts } = group.texts.remove(0);
        let seconds = self.limits.step.as_secs_f64();
        let (start, mut end, mut tokens) = (texts.done, texts.done, 0);
        while let Some(text) = texts.texts.get(end) {
            tokens += text.len();
            let is_short = !in_company || seconds == 0.0 || group.cost.predict(tokens, 0) <= seconds;
            if end > start && (tokens > BATCH || !is_short) {
                break;
            }
            end += 1;
        }
        let stop = || interrupt.poll_now() || about.sink.is_cancelled();
        let interrupt = Interrupt::new(&stop);
        let some = &texts.texts[start..end];
        let made = match &texts.embed {
            Some(options) => embedding::embed(&about.model, some, options, &about.adapters, &interrupt),
            None => embedding::rank(&about.model, some, &about.session, &about.adapters, &interrupt),
        };
        match made {
            Ok((data, dim)) => {
                texts.data.extend(data);
                texts.dim = dim;
                texts.done = end;
                if end == texts.texts.len() {
                    let vectors = Some(Vectors { data: std::mem::take(&mut texts.data), dim });
                    let finish = Finish::Done(FinishReason::Stop);
                    about.end_with(finish, String::new(), None, Event { vectors, ..Event::default() });
                } else {
                    self.groups[g].texts.push(RunningTexts { about, texts });
                }
            }
            Err(Error::Interrupted) => self.groups[g].texts.push(RunningTexts { about, texts }),
            Err(error) => about.end(Finish::Failed(Arc::new(error)), String::new(), None),
        }
    }
}

/// What came of an answer in a step.
#[derive(Default)]
struct Outcome {
    event: Event,
    end: Option<Finish>,
    first: bool, // the prompt is computed
}

/// Positions that so many tokens more attend to in all.
fn positions(running: &Running, tokens: usize) -> u64 {
    let before = running.sequence.position() as u64;
    tokens as u64 * before + (tokens * tokens) as u64 / 2
}

/// Tokens that an answer is expected to have in the end, with its prompt.
pub(super) fn expected(answer: &AnyAnswer) -> usize {
    let left = answer.max_tokens().saturating_sub(answer.generated().len());
    answer.tokens().len() + left.min(EXPECTED)
}

impl Work {
    /// Answers that it gives.
    pub(super) fn n(&self) -> usize {
        match self {
            Work::Generate(generate) => generate.answers.len(),
            Work::Embed { .. } | Work::Rank { .. } => 1,
        }
    }
}

impl Waiting {
    fn answering(&self) -> Option<&Answering> {
        match &self.task {
            Task::Answer(of) => Some(of),
            Task::Texts(_) => None,
        }
    }

    /// Tokens that wait with it.
    fn tokens(&self) -> usize {
        self.answering().map_or(self.about.usage.prompt_tokens, |of| of.answer.tokens().len())
    }
}

impl Answering {
    /// So many tokens may come from what others have computed: not the last one, whose logits are wanted, and none whose
    /// logits are to be reported.
    pub fn most_cached(&self) -> usize {
        let most = self.answer.tokens().len() - 1;
        self.prompt_logprobs.map_or(most, |logprobs| most.min(logprobs.first - 1))
    }
}

impl About {
    fn start(&mut self, now: Instant) {
        if self.started.is_none() {
            self.started = Some(now);
            self.usage.queued = now.saturating_duration_since(self.arrival);
        }
    }

    fn end(&self, finish: Finish, text: String, seed: Option<u64>) {
        self.end_with(finish, text, seed, Event::default());
    }

    /// The last event.
    fn end_with(&self, finish: Finish, text: String, seed: Option<u64>, event: Event) {
        let mut usage = self.usage;
        let now = Instant::now();
        if let Some(started) = self.started {
            let prompt_done = self.prompt_done.unwrap_or(now);
            usage.prompt = prompt_done.saturating_duration_since(started);
            usage.generation = now.saturating_duration_since(prompt_done);
        } else {
            usage.queued = now.saturating_duration_since(self.arrival);
        }
        let end = Some(End { finish, usage, seed: seed.unwrap_or_default() });
        if !self.has_ended.replace(true) {
            self.sink.push(Event { index: self.index, text, end, ..event });
        }
    }
}

impl Drop for About {
    /// Nobody waits for ever: what is lost in a panic has ended too.
    fn drop(&mut self) {
        self.end(Finish::Crashed, String::new(), None);
    }
}

impl Running {
    /// Who comes first among those that are being made: by priority, then by arrival.
    fn rank(&self) -> (i16, u64) {
        (-i16::from(self.about.priority), self.about.number)
    }

    pub fn number(&self) -> u64 {
        self.about.number
    }

    pub fn salt(&self) -> u64 {
        self.about.salt
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    /// Whether the prompt is computed and the next token is due.
    fn is_decoding(&self) -> bool {
        self.about.prompt_done.is_some() && self.todo().len() < CHUNK
    }

    /// The tokens that are to be computed next.
    pub fn todo(&self) -> &[u32] {
        let answer = &self.of.answer;
        match (answer.finish_reason(), self.of.prompt_logprobs) {
            (None, _) => answer.wants(),
            // Of the last token of a prompt nothing is wanted if no answer is.
            (Some(_), Some(_)) => {
                answer.prompt().get(self.sequence.position()..answer.prompt().len() - 1).unwrap_or(&[])
            }
            (Some(_), None) => &[],
        }
    }

    /// Tells the answer what is computed of a prompt.
    fn computed(&mut self) {
        let n = self.sequence.position();
        if self.of.answer.finish_reason().is_none() && n > 0 {
            self.of.answer.set_computed(n);
        }
    }

    /// Its part of a step.
    fn span(&mut self, tokens: usize) -> Span<'_> {
        let answer = &self.of.answer;
        let ends = answer.finish_reason().is_none() && tokens == answer.wants().len();
        let reports = self.of.prompt_logprobs.is_some_and(|p| p.first < answer.prompt().len());
        let want = match (reports, ends) {
            (true, _) => Want::All,
            (false, true) => Want::Last,
            (false, false) => Want::Nothing,
        };
        let at = self.sequence.position();
        let todo = match answer.finish_reason() {
            None => answer.wants(),
            Some(_) => &answer.prompt()[at..],
        };
        Span { sequence: &mut self.sequence, tokens: &todo[..tokens], want, adapters: &self.about.changes }
    }

    /// Takes what a step has computed: `tokens` of them, and the logits that were wanted.
    fn accept(&mut self, logits: &[f32], tokens: usize, vocab_size: usize) -> Outcome {
        let mut outcome = Outcome::default();
        if let Err(error) = self.try_accept(logits, tokens, vocab_size, &mut outcome) {
            let path = || self.about.model.checkpoint().path().to_path_buf();
            let error = match error {
                Error::Numeric { what, .. } => Error::Numeric { path: path(), what },
                error => error,
            };
            outcome.end = Some(Finish::Failed(Arc::new(error)));
        }
        outcome
    }

    fn try_accept(&mut self, logits: &[f32], tokens: usize, vocab_size: usize, outcome: &mut Outcome) -> Result<()> {
        let before = self.sequence.position() - tokens;
        let prompt_len = self.of.answer.prompt().len();
        if let Some(logprobs) = &mut self.of.prompt_logprobs
            && logits.len() == tokens * vocab_size
        {
            for (at, row) in (before + 1..).zip(logits.chunks_exact(vocab_size)) {
                if at >= logprobs.first && at < prompt_len {
                    let token = self.of.answer.prompt()[at];
                    let (mut logprob, top) = log_probabilities(row, token, logprobs.top);
                    if logprobs.any_end && at == prompt_len - 1 {
                        let ends = self.about.model.tokenizer()?.end_tokens()?;
                        logprob = log_probability(row, log_total(row), ends) as f32;
                    }
                    if !logprob.is_finite() {
                        let what = format!("the logits after token {at} are not numbers: a weight is damaged");
                        return Err(Error::Numeric { path: PathBuf::new(), what });
                    }
                    outcome.event.prompt_logprobs.push(TokenLogprob::new(token, logprob, &top));
                    logprobs.first = at + 1;
                }
            }
        }
        if self.of.answer.finish_reason().is_some() {
            if self.todo().is_empty() {
                outcome.first = true;
                outcome.end = self.of.answer.finish_reason().map(Finish::Done);
            }
            return Ok(());
        }
        if tokens < self.of.answer.wants().len() {
            self.computed();
            return Ok(());
        }
        outcome.first = true;
        let n = self.of.answer.generated().len();
        let event = self.of.answer.accept(&logits[logits.len() - vocab_size..])?;
        outcome.event.token_ids = self.of.answer.generated()[n..].to_vec();
        let logprobs = self.of.answer.logprobs().get(n..).unwrap_or_default(); // one per token, or none
        outcome.event.logprobs =
            logprobs.iter().map(|token| TokenLogprob::new(token.id, token.logprob, &token.top)).collect();
        match event {
            generate::Event::Piece(text) => outcome.event.text = text,
            generate::Event::Silent => {}
            generate::Event::End { text, reason } => {
                outcome.event.text = text;
                outcome.end = Some(Finish::Done(reason));
            }
        }
        Ok(())
    }
}

impl TokenLogprob {
    fn new(token_id: u32, logprob: f32, top: &[(u32, f32)]) -> Self {
        let choice = |&(token_id, logprob): &(u32, f32)| Choice { token_id, logprob };
        Self { chosen: choice(&(token_id, logprob)), top: top.iter().map(choice).collect() }
    }
}

impl Event {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.token_ids.is_empty() && self.prompt_logprobs.is_empty()
    }
}
