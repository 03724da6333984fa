//! How likely texts are to a model: the log-probability of every token, given all before it.
//!
//! What is scored are [`Choices`]: continuations of a prompt. The prompts of several have their common beginning computed
//! once; the continuations of one are a tree, of which each edge is computed once. Edges of the same depth, of all
//! choices, are spans of one pass: a sequence is forked where they part, which copies at most one block of it. As a row
//! has the same bits in any company, so has a score: sharing changes the time alone.

use std::ops::Range;
use std::path::Path;

use crate::engine::{BATCH, Want};
use crate::error::{Error, Result};
use crate::sampling::{log_probability, log_total};
use crate::session::Session;
use crate::threads::{self, Disjoint, Interrupt, Queue};

/// Rows whose logits are held at a time: 128 of a vocabulary of 128k are 64 MiB.
const ROWS: usize = 128;

/// Memory for the blocks that are copied where sequences part, in bytes.
const FORK_BYTES: usize = 256 << 20;

/// Continuations of a prompt, as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// What stands before each of them, at least one token.
    pub prompt: Vec<u32>,
    /// At least one token each.
    pub continuations: Vec<Vec<u32>>,
}

impl Choices {
    fn longest(&self) -> usize {
        self.continuations.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// Log-probabilities of the tokens of each continuation of each of `choices`, natural logarithms; and then, unless `ends`
/// is empty, that of any of `ends` coming next.
///
/// `session` keeps what the prompts have in common, or the only one: what it has of it already is not computed again.
///
/// # Errors
/// [`Error::Argument`] for an empty prompt or continuation, [`Error::ContextOverflow`] before anything is computed,
/// [`Error::Numeric`] if logits are not finite; as for [`Session::forward`].
pub fn log_probs(
    session: &mut Session,
    choices: &[Choices],
    ends: &[u32],
    interrupt: &Interrupt,
) -> Result<Vec<Vec<Vec<f32>>>> {
    let (context_length, vocab_size) = (session.context_length(), session.model().config().vocab_size);
    if let Some(bad) = ends.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(Error::Argument(format!("token {bad} is not in the vocabulary of {vocab_size}")));
    }
    for Choices { prompt, continuations } in choices {
        if prompt.is_empty() || continuations.iter().any(Vec::is_empty) {
            let which = if prompt.is_empty() { "prompt" } else { "continuation" };
            return Err(Error::Argument(format!("the {which} is empty: it must have at least one token")));
        }
    }
    // The last token of a continuation is computed only if what follows it is asked for.
    let most = choices.iter().map(|c| c.prompt.len() + c.longest() - usize::from(ends.is_empty())).max().unwrap_or(0);
    if most > context_length {
        return Err(Error::ContextOverflow { tokens: most, context_length });
    }
    let mut scores = Scores {
        choices,
        ends,
        vocab_size,
        out: choices.iter().map(|c| vec![Vec::new(); c.continuations.len()]).collect(),
        order: choices.iter().map(order).collect(),
        waiting: Vec::new(),
    };
    match choices {
        [] => {}
        [only] => {
            let n = session.keep_prefix(&only.prompt);
            let logits = session.forward(&only.prompt[n..], interrupt)?.to_vec();
            scores.of_prompts(0..1, vec![session.fork()], &logits, interrupt)?;
        }
        [first, others @ ..] => {
            let common = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let n = others.iter().fold(first.prompt.len(), |n, c| common(&first.prompt[..n], &c.prompt));
            let n = choices.iter().map(|c| c.prompt.len() - 1).fold(n, usize::min);
            // One token more, so that the last of the prefix may be there already.
            let have = session.keep_prefix(&first.prompt[..=n]);
            if have < n {
                let tokens = &first.prompt[have..n];
                Session::pass(&mut [(&mut *session, tokens, Want::Nothing)], interrupt)?;
            }
            let most_forks = most_forks(session);
            let mut at = 0;
            while at < choices.len() {
                let (mut end, mut tokens) = (at + 1, choices[at].prompt.len() - n);
                while end < choices.len()
                    && end - at < most_forks.min(ROWS)
                    && tokens + choices[end].prompt.len() - n <= BATCH
                {
                    tokens += choices[end].prompt.len() - n;
                    end += 1;
                }
                let mut sessions: Vec<Session> = (at..end).map(|_| session.fork()).collect();
                let spans = sessions.iter_mut().zip(&choices[at..end]);
                let mut spans: Vec<_> = spans.map(|(s, c)| (s, &c.prompt[n..], Want::Last)).collect();
                let logits = Session::pass(&mut spans, interrupt)?;
                scores.of_prompts(at..end, sessions, &logits, interrupt)?;
                at = end;
            }
        }
    }
    Ok(scores.out)
}

/// Negative log-likelihood of each token from `first` on, given all before it, in nats.
///
/// # Errors
/// [`Error::Argument`] if `first` is 0 or past the end; as for [`log_probs`].
pub fn negative_log_likelihood(
    session: &mut Session,
    tokens: &[u32],
    first: usize,
    interrupt: &Interrupt,
) -> Result<Vec<f32>> {
    if first == 0 || first >= tokens.len() {
        return Err(Error::Argument(format!("the first token to score is {first}, it must be 1 to {}", tokens.len())));
    }
    let (prompt, continuation) = tokens.split_at(first);
    let choices = Choices { prompt: prompt.to_vec(), continuations: vec![continuation.to_vec()] };
    let mut scores = log_probs(session, &[choices], &[], interrupt)?;
    let scores = scores.pop().and_then(|mut scores| scores.pop()).unwrap_or_default();
    Ok(scores.into_iter().map(|x| -x).collect())
}

/// Sessions that may go on from one at the same time.
fn most_forks(session: &Session) -> usize {
    (FORK_BYTES / session.block_bytes().max(1)).clamp(1, ROWS)
}

/// The continuations in the order of their tokens: those that begin in the same way are neighbours.
fn order(choices: &Choices) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.continuations.len()).collect();
    order.sort_by(|&a, &b| choices.continuations[a].cmp(&choices.continuations[b]));
    order
}

/// Scores that are being made.
struct Scores<'a> {
    choices: &'a [Choices],
    ends: &'a [u32],
    vocab_size: usize,
    out: Vec<Vec<Vec<f32>>>,
    order: Vec<Vec<usize>>,
    waiting: Vec<Edge>,
}

/// An edge of a tree that is to be computed: tokens that some continuations share.
struct Edge {
    choices: usize,
    range: Range<usize>,  // of those continuations, in their order
    tokens: Range<usize>, // of each of them
    session: Session,     // with what stands before
}

impl Scores<'_> {
    /// What follows from the logits of the last tokens of some prompts: all of their scores.
    fn of_prompts(
        &mut self,
        range: Range<usize>,
        sessions: Vec<Session>,
        logits: &[f32],
        interrupt: &Interrupt,
    ) -> Result<()> {
        let threads = sessions.first().map_or(1, Session::threads);
        let totals = log_totals(logits, self.vocab_size, threads);
        let rows = logits.chunks_exact(self.vocab_size).zip(totals);
        for ((i, session), (logits, total)) in range.zip(sessions).zip(rows) {
            self.branch(i, 0..self.order[i].len(), 0, session, logits, total)?;
        }
        while !self.waiting.is_empty() {
            self.edges(interrupt)?;
        }
        Ok(())
    }

    /// Computes as many of the waiting edges as go into a pass, the last first: what they lead to comes before the others,
    /// so that few sessions wait.
    fn edges(&mut self, interrupt: &Interrupt) -> Result<()> {
        let most = self.waiting.last().map_or(1, |edge| most_forks(&edge.session));
        let (mut from, mut rows) = (self.waiting.len(), 0);
        while from > 0 && self.waiting.len() - from < most {
            rows += self.waiting[from - 1].tokens.len();
            if rows > ROWS && from < self.waiting.len() {
                break;
            }
            from -= 1;
        }
        let mut edges = self.waiting.split_off(from);
        let spans = edges.iter_mut().map(|edge| {
            let first = self.order[edge.choices][edge.range.start];
            let tokens = &self.choices[edge.choices].continuations[first][edge.tokens.clone()];
            (&mut edge.session, tokens, Want::All)
        });
        let logits = Session::pass(&mut spans.collect::<Vec<_>>(), interrupt)?;
        let totals = log_totals(&logits, self.vocab_size, edges.first().map_or(1, |edge| edge.session.threads()));
        let mut rows = logits.chunks_exact(self.vocab_size).zip(totals);
        for Edge { choices, range, tokens, session } in edges {
            for next in tokens.start + 1..tokens.end {
                let (logits, total) = rows.next().expect("a row of each token");
                let token = self.token(choices, range.start, next).expect("a token of the edge");
                self.push(choices, range.clone(), &session, log_probability(logits, total, &[token]))?;
            }
            let (logits, total) = rows.next().expect("a row of each token");
            self.branch(choices, range, tokens.end, session, logits, total)?;
        }
        Ok(())
    }

    /// What follows from the logits after the first `depth` tokens of some continuations: they end here or part.
    fn branch(
        &mut self,
        choices: usize,
        range: Range<usize>,
        depth: usize,
        session: Session,
        logits: &[f32],
        total: f64,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end && self.token(choices, at, depth).is_none() {
            at += 1;
        }
        if at > range.start && !self.ends.is_empty() {
            self.push(choices, range.start..at, &session, log_probability(logits, total, self.ends))?;
        }
        let mut edges = Vec::new();
        while at < range.end {
            let token = self.token(choices, at, depth);
            let mut end = at + 1;
            while end < range.end && self.token(choices, end, depth) == token {
                end += 1;
            }
            self.push(choices, at..end, &session, log_probability(logits, total, &[token.expect("longer")]))?;
            // Down to where they part; the first and the last differ most.
            let longest = self.lengths(choices, at..end).max().unwrap_or(0);
            let mut to = depth + 1;
            while to - depth < ROWS
                && self.token(choices, at, to).is_some()
                && self.token(choices, at, to) == self.token(choices, end - 1, to)
            {
                to += 1;
            }
            if to == longest && self.ends.is_empty() {
                // Nothing follows. The last row that is wanted is that of the token before.
                to -= 1;
            }
            if to > depth {
                edges.push((at..end, depth..to));
            }
            at = end;
        }
        let last = edges.pop();
        for (range, tokens) in edges {
            self.waiting.push(Edge { choices, range, tokens, session: session.fork() });
        }
        if let Some((range, tokens)) = last {
            self.waiting.push(Edge { choices, range, tokens, session });
        }
        Ok(())
    }

    /// Token `at` of a continuation, by its place in the order.
    fn token(&self, choices: usize, place: usize, at: usize) -> Option<u32> {
        self.choices[choices].continuations[self.order[choices][place]].get(at).copied()
    }

    fn lengths(&self, choices: usize, range: Range<usize>) -> impl Iterator<Item = usize> {
        self.order[choices][range].iter().map(move |&i| self.choices[choices].continuations[i].len())
    }

    fn push(&mut self, choices: usize, range: Range<usize>, session: &Session, log_prob: f64) -> Result<()> {
        if !log_prob.is_finite() {
            let path: &Path = session.model().checkpoint().path();
            let what = format!("the logits after token {} are not numbers: a weight is damaged", session.position());
            return Err(Error::Numeric { path: path.to_path_buf(), what });
        }
        for &i in &self.order[choices][range] {
            self.out[choices][i].push(log_prob as f32);
        }
        Ok(())
    }
}

/// The logarithm of the sum of the exponentials of each row of logits.
fn log_totals(logits: &[f32], vocab_size: usize, threads: usize) -> Vec<f64> {
    let mut totals = vec![0.0f64; logits.len() / vocab_size];
    let n = totals.len();
    let (out, threads) = (Disjoint::new(&mut totals), threads.min(n));
    let queue = Queue::new(n, 1, threads);
    threads::run(threads, &|worker| {
        queue.run(worker, |rows| {
            let logits = &logits[rows.start * vocab_size..rows.end * vocab_size];
            // SAFETY: each row is one worker's.
            let out = unsafe { out.slice(rows) };
            out.iter_mut().zip(logits.chunks_exact(vocab_size)).for_each(|(out, row)| *out = log_total(row));
        });
    });
    totals
}
