//! From a prompt to a stream of text.
//!
//! A [`Generation`] is a state machine that owns everything about one answer but the session, which is
//! lent to it for each step: so a caller may keep both where it likes, between steps too. What it adds
//! to `forward` and `sample` are the rules of when to stop, and that only text which is surely part of
//! the answer goes out: whole characters, and nothing that a stop string may still swallow.

use std::borrow::Borrow;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sampling::{Rng, Sampler, SamplingParams};
use crate::threads::Interrupt;
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// How to generate.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Most tokens to generate; `None` goes on until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// How a token is chosen.
    pub sampling: SamplingParams,
    /// Never choose an end token.
    pub ignore_eos: bool,
    /// What to do when the context is full.
    pub on_overflow: Overflow,
}

/// What to do when the context is full and the answer has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// End the answer.
    #[default]
    Stop,
    /// Make room and go on: keep the first `n_keep` tokens, discard the older half of the others.
    Shift {
        /// Tokens from the start that stay for ever, less than the context has. A few of them should: models
        /// lean on them (Xiao et al., "Efficient streaming language models with attention sinks", 2023).
        n_keep: usize,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as in OpenAI's API.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Where the time went. The caller's own time between two pieces counts nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// So many of them were in the session already.
    pub cached_tokens: usize,
    /// Time until the prompt was computed.
    pub prompt: Duration,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Time for them: all but the prompt.
    pub generation: Duration,
}

/// What generation needs of a session.
pub trait Forward {
    /// Computes `tokens` and gives the logits of the last one. On error nothing has changed.
    fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&[f32]>;
    /// Tokens computed so far.
    fn position(&self) -> usize;
    /// Tokens that there is room for.
    fn context_length(&self) -> usize;
    /// Forgets all but the longest common prefix of `tokens`, without the last of them. Gives its length.
    fn keep_prefix(&mut self, tokens: &[u32]) -> usize;
    /// Forgets `n_discard` tokens after the first `n_keep`; the others move down.
    fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()>;
    /// Where the random numbers of the last answer left off.
    fn rng(&mut self) -> &mut Option<Rng>;
    /// The model file, for messages.
    fn path(&self) -> &Path;
}

/// Turns token ids into text, bit by bit.
pub trait Decode {
    /// The text that this token completes: whole characters only.
    fn push(&mut self, id: u32) -> Result<String>;
    /// What is left when no more tokens come.
    fn finish(&mut self) -> String;
}

impl<T: Borrow<Tokenizer>> Decode for StreamDecoder<T> {
    fn push(&mut self, id: u32) -> Result<String> {
        StreamDecoder::push(self, id)
    }

    fn finish(&mut self) -> String {
        StreamDecoder::finish(self)
    }
}

/// One answer in the making.
///
/// What the session has of the prompt already, from the first token on, is not computed again. Without a seed, the
/// random numbers go on where the session's last answer left off.
pub struct Generation<D> {
    decoder: D,
    sampler: Sampler,
    stop: StopStrings,
    end_tokens: Vec<u32>,
    max_tokens: usize,
    on_overflow: Overflow,
    tokens: Vec<u32>, // the prompt, and then the answer
    pending: usize,   // so many of them, the last ones, are not computed yet
    finish: Option<FinishReason>,
    timings: Timings,
}

impl<D: Decode> Generation<D> {
    /// Prepares to answer `prompt`. Computes nothing yet.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt, an empty stop string, or a sampling parameter out of range.
    pub fn new(prompt: Vec<u32>, end_tokens: &[u32], decoder: D, options: Options) -> Result<Self> {
        let Options { max_tokens, stop, mut sampling, ignore_eos, on_overflow } = options;
        if prompt.is_empty() {
            return Err(Error::Argument("the prompt has no tokens: it must have at least one".into()));
        }
        if ignore_eos {
            sampling.logit_bias.extend(end_tokens.iter().map(|&id| (id, f32::NEG_INFINITY)));
        }
        Ok(Self {
            decoder,
            sampler: Sampler::new(sampling)?,
            stop: StopStrings::new(stop)?,
            end_tokens: end_tokens.to_vec(),
            max_tokens: max_tokens.unwrap_or(usize::MAX),
            on_overflow,
            timings: Timings { prompt_tokens: prompt.len(), ..Timings::default() },
            pending: prompt.len(),
            tokens: prompt,
            finish: None,
        })
    }

    /// The next piece of the answer, never empty; `None` when it is complete.
    ///
    /// Give it the same session each time. After [`Error::Interrupted`] it may be called again and goes
    /// on where it was.
    ///
    /// # Errors
    /// [`Error::ContextOverflow`] if the prompt does not fit, [`Error::Numeric`] if the model gives no
    /// usable logits, and whatever the session's `forward` and the decoder say.
    pub fn next<S: Forward>(&mut self, session: &mut S, interrupt: &Interrupt) -> Result<Option<String>> {
        while self.finish.is_none() {
            let piece = self.step(session, interrupt)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// One token more, or the end. Gives the text that is now certain.
    fn step<S: Forward>(&mut self, session: &mut S, interrupt: &Interrupt) -> Result<String> {
        let start = Instant::now();
        let is_prompt = self.generated().is_empty();
        if self.generated().len() >= self.max_tokens {
            return Ok(self.end(FinishReason::Length));
        }
        if is_prompt {
            self.begin(session)?;
        } else if self.pending > session.context_length().saturating_sub(session.position()) {
            match self.on_overflow {
                Overflow::Stop => return Ok(self.end(FinishReason::Length)),
                Overflow::Shift { n_keep } => {
                    let n_discard = session.position().saturating_sub(n_keep) / 2;
                    session.shift(n_keep, n_discard.max(1))?;
                }
            }
        }

        let computed = self.tokens.len() - self.pending;
        let logits = session.forward(&self.tokens[computed..], interrupt)?;
        let after_forward = Instant::now();
        let token = self.sampler.sample(logits, &self.tokens);
        self.pending = 0;
        *session.rng() = Some(self.sampler.rng().clone());
        let Some(token) = token else {
            let what = format!("no logit after token {} is a number: a weight is damaged", self.tokens.len());
            return Err(Error::Numeric { path: session.path().to_path_buf(), what });
        };

        let text = if self.end_tokens.contains(&token) {
            self.end(FinishReason::Stop)
        } else {
            self.tokens.push(token);
            self.pending = 1;
            self.timings.generated_tokens += 1;
            let text = self.decoder.push(token)?;
            let (text, stopped) = self.stop.push(&text);
            if stopped {
                self.finish = Some(FinishReason::Stop);
            }
            text
        };
        if is_prompt {
            self.timings.prompt = after_forward - start;
            self.timings.generation += after_forward.elapsed();
        } else {
            self.timings.generation += start.elapsed();
        }
        Ok(text)
    }

    /// Finds what the session has of the prompt.
    fn begin<S: Forward>(&mut self, session: &mut S) -> Result<()> {
        let (tokens, context_length) = (self.tokens.len(), session.context_length());
        if tokens > context_length {
            return Err(Error::ContextOverflow { tokens, context_length });
        }
        match self.on_overflow {
            Overflow::Shift { n_keep } if n_keep >= context_length => {
                let what = format!("n_keep is {n_keep}, it must be less than the context_length of {context_length}");
                return Err(Error::Argument(what));
            }
            _ => {}
        }
        if let Some(rng) = session.rng() {
            self.sampler.resume(rng);
        }
        self.timings.cached_tokens = session.keep_prefix(&self.tokens);
        self.pending = tokens - self.timings.cached_tokens;
        Ok(())
    }

    /// Ends the answer: what was held back for a character or a stop string is text after all.
    fn end(&mut self, reason: FinishReason) -> String {
        let rest = self.decoder.finish();
        let (mut text, stopped) = self.stop.push(&rest);
        self.finish = Some(if stopped { FinishReason::Stop } else { reason });
        if !stopped {
            text.push_str(&std::mem::take(&mut self.stop.held));
        }
        text
    }
}

impl<D> Generation<D> {
    /// The tokens of the answer so far, without an end token.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.timings.prompt_tokens..]
    }

    /// Why the answer ended; `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The times so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The seed, given or drawn.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }
}

/// Finds stop strings in text that comes in pieces.
///
/// How the text is cut into pieces makes no difference: the stop string that is complete first counts,
/// and of two that are complete at the same time the longer.
struct StopStrings {
    stop: Vec<String>,
    held: String, // the start of a stop string, perhaps
}

impl StopStrings {
    fn new(stop: Vec<String>) -> Result<Self> {
        if stop.iter().any(String::is_empty) {
            return Err(Error::Argument("a stop string is empty: it must have at least one character".into()));
        }
        Ok(Self { stop, held: String::new() })
    }

    /// Takes a piece; gives the text that is certain, and whether a stop string ended it.
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop).map(|start| (start + stop.len(), start)));
        if let Some((_, start)) = found.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, true);
        }
        let may_start = |&(i, _): &(usize, char)| self.stop.iter().any(|stop| stop.starts_with(&self.held[i..]));
        let certain = self.held.char_indices().find(may_start).map_or(self.held.len(), |(i, _)| i);
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts upwards: after token `t` comes `t + 1`. Its tokens are letters.
    struct Counter {
        seen: Vec<u32>,
        context_length: usize,
        logits: Vec<f32>,
        fail: bool,
        rng: Option<Rng>,
    }

    const END: u32 = 26;

    impl Forward for Counter {
        fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&[f32]> {
            assert!(!tokens.is_empty() && self.seen.len() + tokens.len() <= self.context_length);
            if interrupt.poll(0) {
                return Err(Error::Interrupted);
            }
            self.seen.extend(tokens);
            let next = (self.seen.last().unwrap() + 1) as usize;
            self.logits = vec![if self.fail { f32::NAN } else { 0.0 }; 40];
            if !self.fail {
                self.logits[next.min(39)] = 10.0;
                self.logits[0] = 5.0;
            }
            Ok(&self.logits)
        }
        fn position(&self) -> usize {
            self.seen.len()
        }
        fn context_length(&self) -> usize {
            self.context_length
        }
        fn keep_prefix(&mut self, tokens: &[u32]) -> usize {
            let n = self.seen.iter().zip(&tokens[..tokens.len() - 1]).take_while(|(a, b)| a == b).count();
            self.seen.truncate(n);
            n
        }
        fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()> {
            self.seen.drain(n_keep..n_keep + n_discard);
            Ok(())
        }
        fn rng(&mut self) -> &mut Option<Rng> {
            &mut self.rng
        }
        fn path(&self) -> &Path {
            Path::new("counter.gguf")
        }
    }

    /// Token 3 is half of an `é`, token 4 the other half.
    #[derive(Default)]
    struct Letters {
        half: bool,
    }

    impl Decode for Letters {
        fn push(&mut self, id: u32) -> Result<String> {
            Ok(match id {
                3 => {
                    self.half = true;
                    String::new()
                }
                4 if std::mem::take(&mut self.half) => "é".into(),
                id => ((b'a' + id as u8) as char).into(),
            })
        }
        fn finish(&mut self) -> String {
            if std::mem::take(&mut self.half) { "\u{fffd}".into() } else { String::new() }
        }
    }

    fn counter(context_length: usize) -> Counter {
        Counter { seen: vec![], context_length, logits: vec![], fail: false, rng: None }
    }

    fn greedy() -> Options {
        Options { sampling: SamplingParams::greedy(), ..Options::default() }
    }

    struct Answer {
        pieces: Vec<String>,
        ids: Vec<u32>,
        reason: &'static str,
        computed: usize,
    }

    fn answer(prompt: &[u32], context_length: usize, options: Options) -> Result<Answer> {
        let mut session = counter(context_length);
        let mut generation = Generation::new(prompt.to_vec(), &[END], Letters::default(), options)?;
        let mut pieces = vec![];
        while let Some(piece) = generation.next(&mut session, &Interrupt::never())? {
            assert!(!piece.is_empty());
            pieces.push(piece);
        }
        assert_eq!(generation.next(&mut session, &Interrupt::never())?, None);
        let timings = generation.timings();
        assert_eq!((timings.prompt_tokens, timings.generated_tokens), (prompt.len(), generation.generated().len()));
        let reason = generation.finish_reason().unwrap().as_str();
        Ok(Answer { pieces, ids: generation.generated().to_vec(), reason, computed: session.seen.len() })
    }

    #[test]
    fn ends_at_the_end_token() {
        let a = answer(&[20, 21], 100, greedy()).unwrap();
        assert_eq!((a.pieces.concat().as_str(), a.reason), ("wxyz", "stop"));
        assert_eq!(a.ids, [22, 23, 24, 25]);
    }

    #[test]
    fn an_end_token_can_be_ruled_out() {
        let a = answer(&[24], 100, Options { max_tokens: Some(3), ignore_eos: true, ..greedy() }).unwrap();
        assert_eq!((a.ids, a.reason), (vec![25, 0, 1], "length"));
    }

    #[test]
    fn ends_after_max_tokens_and_computes_none_too_many() {
        for n in 0..5 {
            let a = answer(&[10], 100, Options { max_tokens: Some(n), ..greedy() }).unwrap();
            assert_eq!((a.ids.len(), a.reason), (n, "length"));
            assert_eq!(a.computed, n); // the prompt counts for one, the last token is not computed
        }
    }

    #[test]
    fn ends_when_the_context_is_full() {
        let a = answer(&[5, 6, 7], 3, greedy()).unwrap();
        assert_eq!((a.ids, a.reason), (vec![8], "length"));
        let a = answer(&[5, 6, 7], 5, greedy()).unwrap();
        assert_eq!((a.ids, a.reason), (vec![8, 9, 10], "length"));
    }

    #[test]
    fn a_prompt_that_does_not_fit_is_refused() {
        let e = answer(&[5, 6, 7], 2, greedy()).err().unwrap();
        assert!(matches!(e, Error::ContextOverflow { tokens: 3, context_length: 2 }), "{e}");
        assert!(matches!(answer(&[], 2, greedy()).err().unwrap(), Error::Argument(_)));
    }

    #[test]
    fn a_full_context_is_shifted_and_the_answer_goes_on() {
        let shift = |n_keep| Options {
            max_tokens: Some(40),
            ignore_eos: true,
            on_overflow: Overflow::Shift { n_keep },
            ..greedy()
        };
        for n_keep in 0..8 {
            let mut session = counter(8);
            let options = Options { max_tokens: Some(12), ..shift(n_keep) };
            let mut generation = Generation::new(vec![5, 6], &[END], Letters::default(), options).unwrap();
            while generation.next(&mut session, &Interrupt::never()).unwrap().is_some() {}
            assert_eq!(generation.generated(), (7..19).collect::<Vec<_>>());
            assert_eq!(generation.finish_reason(), Some(FinishReason::Length));
            assert_eq!(session.seen[..n_keep.min(2)], [5, 6][..n_keep.min(2)]);
        }
        let e = answer(&[5, 6, 7], 8, shift(8)).err().unwrap();
        assert!(matches!(e, Error::Argument(_)), "{e}");
        // a prompt is not cut in any case
        let e = answer(&[5, 6, 7], 2, shift(0)).err().unwrap();
        assert!(matches!(e, Error::ContextOverflow { .. }), "{e}");
    }

    #[test]
    fn what_the_session_has_of_the_prompt_is_not_computed_again() {
        let mut session = counter(100);
        for (prompt, cached) in
            [(vec![1, 2, 3], 0), (vec![1, 2, 3], 2), (vec![1, 2, 3, 4, 5, 6], 4), (vec![1, 9], 1), (vec![7], 0)]
        {
            let options = Options { max_tokens: Some(2), ..greedy() };
            let mut generation = Generation::new(prompt.clone(), &[END], Letters::default(), options).unwrap();
            while generation.next(&mut session, &Interrupt::never()).unwrap().is_some() {}
            assert_eq!(generation.timings().cached_tokens, cached, "{prompt:?}");
            let last = prompt[prompt.len() - 1];
            assert_eq!(generation.generated(), [last + 1, last + 2]);
        }
    }

    #[test]
    fn random_numbers_go_on_from_answer_to_answer_unless_a_seed_is_given() {
        let answers = |seeds: [Option<u64>; 2]| {
            let mut session = counter(100);
            seeds.map(|seed| {
                let sampling = SamplingParams {
                    seed,
                    temperature: 50.0,
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    ..SamplingParams::default()
                };
                let options = Options { max_tokens: Some(8), ignore_eos: true, sampling, ..Options::default() };
                let mut generation = Generation::new(vec![1], &[END], Letters::default(), options).unwrap();
                while generation.next(&mut session, &Interrupt::never()).unwrap().is_some() {}
                generation.generated().to_vec()
            })
        };
        let [first, second] = answers([Some(7), None]);
        assert_ne!(first, second);
        assert_eq!([first.clone(), second], answers([Some(7), None]));
        assert_eq!(answers([Some(7), Some(7)]), [first.clone(), first]);
    }

    #[test]
    fn half_a_character_waits_for_the_other_half() {
        let a = answer(&[0], 100, Options { max_tokens: Some(5), ..greedy() }).unwrap();
        assert_eq!(a.pieces, ["b", "c", "é", "f"]);
        let a = answer(&[0], 100, Options { max_tokens: Some(3), ..greedy() }).unwrap();
        assert_eq!(a.pieces, ["b", "c", "\u{fffd}"]);
    }

    #[test]
    fn stop_strings_end_the_answer_and_are_not_part_of_it() {
        let stop = |stop: &[&str]| Options { stop: stop.iter().map(|s| s.to_string()).collect(), ..greedy() };
        for (strings, text, reason) in [
            (&["j"][..], "ghi", "stop"),
            (&["g"], "", "stop"),
            (&["ijk"], "gh", "stop"),
            (&["ijx", "k"], "ghij", "stop"),
            (&["ijkl", "jk"], "ghi", "stop"),
            (&["hijx", "ijkl"], "gh", "stop"),
            (&["xyz!"], "ghijklmnopqrstuvwxyz", "stop"),
            (&["zz", "A"], "ghijklmnopqrstuvwxyz", "stop"),
        ] {
            let a = answer(&[5], 100, stop(strings)).unwrap();
            assert_eq!((a.pieces.concat().as_str(), a.reason), (text, reason), "{strings:?}");
        }
        // What may be the start of a stop string is held back, and comes when it is not.
        let a = answer(&[5], 100, Options { max_tokens: Some(6), ..stop(&["hix", "klm"]) }).unwrap();
        assert_eq!((a.pieces, a.reason), (["g", "hij", "kl"].map(String::from).to_vec(), "length"));
        assert!(matches!(answer(&[5], 100, stop(&["x", ""])).err().unwrap(), Error::Argument(_)));
    }

    #[test]
    fn the_cut_of_the_text_into_pieces_makes_no_difference() {
        let stops = ["ab", "bcb", "cbc", "é!", "aé"];
        let mut rng = crate::sampling::Rng::new(5);
        let mut random = |n: u64| rng.next_u64() % n;
        for _ in 0..3000 {
            let text: String = (0..12).map(|_| ['a', 'b', 'c', 'é', '!'][random(5) as usize]).collect();
            let chosen: Vec<String> = stops.iter().filter(|_| random(2) == 0).map(|s| s.to_string()).collect();
            let run = |mut cut: Box<dyn FnMut() -> bool + '_>| {
                let mut finder = StopStrings::new(chosen.clone()).unwrap();
                let (mut out, mut piece) = (String::new(), String::new());
                for c in text.chars() {
                    piece.push(c);
                    if cut() {
                        let (text, stopped) = finder.push(&std::mem::take(&mut piece));
                        out.push_str(&text);
                        if stopped {
                            return out;
                        }
                    }
                }
                let (text, stopped) = finder.push(&piece);
                out + &text + if stopped { "" } else { &finder.held }
            };
            let one_by_one = run(Box::new(|| true));
            assert_eq!(run(Box::new(|| false)), one_by_one, "{text} {chosen:?}");
            assert_eq!(run(Box::new(|| random(3) == 0)), one_by_one, "{text} {chosen:?}");
        }
    }

    #[test]
    fn an_interrupted_answer_goes_on_where_it_was() {
        let mut session = counter(100);
        let mut generation = Generation::new(vec![20], &[END], Letters::default(), greedy()).unwrap();
        assert_eq!(generation.next(&mut session, &Interrupt::never()).unwrap().unwrap(), "v");
        let stop = || true;
        let interrupt = Interrupt::new(&stop);
        std::thread::sleep(Duration::from_millis(25));
        assert!(matches!(generation.next(&mut session, &interrupt), Err(Error::Interrupted)));
        assert_eq!(generation.next(&mut session, &Interrupt::never()).unwrap().unwrap(), "w");
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        let mut session = Counter { fail: true, ..counter(100) };
        let mut generation = Generation::new(vec![20], &[END], Letters::default(), greedy()).unwrap();
        let e = generation.next(&mut session, &Interrupt::never()).unwrap_err();
        assert!(matches!(e, Error::Numeric { .. }), "{e}");
    }
}
