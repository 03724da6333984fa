//! From a prompt to a stream of text.
//!
//! An [`Answer`] is fed logits and gives text. A [`Generation`] is the loop that drives it with a session, which is lent
//! to it for each step: so a caller may keep both where it likes, between steps too. What the loop adds are the prefix
//! that the session has already, what to do when the context is full, and where the time went.

mod answer;
mod options;
mod speculate;
mod stop;

pub use answer::{Answer, Decode, Event, FinishReason, LogitsProcessor, TokenLogprobs};
pub use options::{Options, Overflow, PromptOptions};
pub use speculate::{Draft, Drafter, Lookup, guess};
pub use stop::StopStrings;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::grammar::Constraint;
use crate::sampling::Rng;
use crate::threads::Interrupt;
use speculate::Speculation;

/// Where the time went. The caller's own time between two pieces counts nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were in the session already.
    pub cached_tokens: usize,
    /// Time until the prompt was computed.
    pub prompt: Duration,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Time for them: all but the prompt.
    pub generation: Duration,
    /// Tokens that were guessed ahead.
    pub drafted_tokens: usize,
    /// How many of them were right.
    pub accepted_tokens: usize,
}

/// What generation needs of a session.
pub trait Forward {
    /// Computes `tokens` and gives the logits of the last one. On error nothing has changed.
    fn forward(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<&[f32]>;
    /// The same with the logits of each, one after another: the same bits as one by one.
    fn forward_all(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<Vec<f32>>;
    /// Tokens computed so far.
    fn position(&self) -> usize;
    /// Tokens that there is room for.
    fn context_length(&self) -> usize;
    /// Forgets all but the longest common prefix of `tokens`, without the last of them, or what it can go back to. Gives its
    /// length.
    fn keep_prefix(&mut self, tokens: &[u32]) -> usize;
    /// The same; tokens that were shifted count too, though they were computed with others before them.
    fn keep_moved_prefix(&mut self, tokens: &[u32]) -> usize {
        self.keep_prefix(tokens)
    }
    /// Forgets all but the first `n` tokens.
    fn truncate(&mut self, n: usize) -> Result<()>;
    /// Forgets `n_discard` tokens after the first `n_keep`; the others move down.
    fn shift(&mut self, n_keep: usize, n_discard: usize) -> Result<()>;
    /// Whether the model is of those that can.
    fn can_shift(&self) -> bool;
    /// Where the random numbers of the last answer left off.
    fn rng(&mut self) -> &mut Option<Rng>;
    /// The model file, for messages.
    fn path(&self) -> &Path;
}

/// One answer in the making, driven with a session.
///
/// What the session has of the prompt already, from the first token on, is not computed again. Without a seed, the
/// random numbers go on where the session's last answer left off.
#[derive(Debug)]
pub struct Generation<D> {
    answer: Answer<D>,
    on_overflow: Overflow,
    n_keep: usize,
    moved: bool,     // whether what the session has shifted counts
    position: usize, // where the session was left
    timings: Timings,
    speculation: Option<Speculation>,
}

impl<D: Decode> Generation<D> {
    /// Prepares to answer `prompt`. Computes nothing yet.
    ///
    /// # Errors
    /// As for [`Answer::new`].
    pub fn new(prompt: Vec<u32>, end_tokens: &[u32], decoder: D, options: Options) -> Result<Self> {
        let on_overflow = options.on_overflow;
        let n_keep = usize::try_from(options.n_keep).unwrap_or(prompt.len());
        let answer = Answer::new(prompt, end_tokens, decoder, options)?;
        let timings = Timings { prompt_tokens: answer.prompt().len(), ..Timings::default() };
        Ok(Self { answer, on_overflow, n_keep, moved: false, position: 0, timings, speculation: None })
    }

    /// Guesses tokens ahead, which changes the time that the answer takes and nothing else.
    pub fn speculate(&mut self, draft: Box<dyn Draft>) {
        self.speculation = Some(Speculation::new(draft));
    }

    /// See [`Answer::stop_at`].
    pub fn stop_at(&mut self, tokens: &[u32]) {
        self.answer.stop_at(tokens);
    }

    /// Whether tokens that the session has shifted count as those of the prompt, though they were computed with others before
    /// them: so a long conversation loses its beginning, and is not read again.
    pub fn keep_moved(&mut self, moved: bool) {
        self.moved = moved;
    }

    /// See [`Answer::process`].
    pub fn process(&mut self, processor: Box<dyn LogitsProcessor>) {
        self.answer.process(processor);
    }

    /// See [`Answer::constrain`].
    pub fn constrain(&mut self, constraint: Constraint) {
        self.answer.constrain(constraint);
    }

    /// The next piece of the answer, never empty; `None` when it is complete.
    ///
    /// Give it the same session each time, as it left it. After [`Error::Interrupted`] it may be called again and goes on
    /// where it was.
    ///
    /// # Errors
    /// [`Error::ContextOverflow`] if the prompt does not fit, [`Error::SessionBusy`] if the session has been used for
    /// something else meanwhile, [`Error::Numeric`] if the model gives no usable logits, and whatever the session's
    /// `forward` and the decoder say.
    pub fn next<S: Forward>(&mut self, session: &mut S, interrupt: &Interrupt) -> Result<Option<String>> {
        while self.answer.finish_reason().is_none() {
            let text = self.step(session, interrupt)?;
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// A token more, or as many as were guessed right, or the end. Gives the text that is now certain.
    fn step<S: Forward>(&mut self, session: &mut S, interrupt: &Interrupt) -> Result<String> {
        let start = Instant::now();
        let is_prompt = self.answer.generated().is_empty();
        if is_prompt {
            self.begin(session)?;
        } else if session.position() != self.position {
            return Err(Error::SessionBusy(CHANGED));
        } else if self.answer.wants().len() > session.context_length().saturating_sub(session.position()) {
            if self.on_overflow == Overflow::Stop {
                return Ok(self.answer.end(FinishReason::Length));
            }
            let n_discard = session.position().saturating_sub(self.n_keep) / 2;
            session.shift(self.n_keep, n_discard.max(1))?;
            self.position = session.position();
        }

        let guessed = match &mut self.speculation {
            Some(speculation) if !is_prompt => {
                let room = session.context_length() - session.position() - 1;
                let left = self.answer.max_tokens() - self.answer.generated().len();
                speculation.draft(self.answer.tokens(), room.min(left - 1), interrupt)?
            }
            _ => Vec::new(),
        };
        let (mut all, before) = (Vec::new(), session.position());
        let logits = if guessed.is_empty() {
            session.forward(self.answer.wants(), interrupt)?
        } else {
            all = session.forward_all(&[self.answer.wants(), &guessed].concat(), interrupt)?;
            &all
        };
        let after_forward = Instant::now();
        let (mut text, mut accepted, mut failed) = (String::new(), 0, None);
        for (i, logits) in logits.chunks_exact(logits.len() / (guessed.len() + 1)).enumerate() {
            accepted = i;
            match self.answer.accept(logits) {
                Ok(Event::Piece(piece)) => text.push_str(&piece),
                Ok(Event::Silent) => {}
                Ok(Event::End { text: rest, .. }) => {
                    text.push_str(&rest);
                    break;
                }
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
            if self.answer.tokens().last() != guessed.get(i) {
                break;
            }
        }
        if !all.is_empty() {
            session.truncate(before + accepted + 1)?;
        }
        if let Some(speculation) = &mut self.speculation {
            speculation.was(guessed.len(), accepted);
            self.timings.drafted_tokens = speculation.drafted;
            self.timings.accepted_tokens = speculation.accepted;
        }
        if failed.is_some() {
            // The logits are gone: whoever asks again computes the last token again.
            session.truncate(session.position() - 1)?;
            self.answer.set_computed(self.answer.tokens().len() - 1);
        }
        self.position = session.position();
        *session.rng() = Some(self.answer.rng().clone());
        self.timings.generated_tokens = self.answer.generated().len();
        if is_prompt {
            self.timings.prompt = after_forward - start;
            self.timings.generation += after_forward.elapsed();
        } else {
            self.timings.generation += start.elapsed();
        }
        match failed {
            Some(Error::Numeric { what, .. }) => Err(Error::Numeric { path: session.path().to_path_buf(), what }),
            Some(e) => Err(e),
            None => Ok(text),
        }
    }

    /// Finds what the session has of the prompt.
    fn begin<S: Forward>(&mut self, session: &mut S) -> Result<()> {
        let (tokens, context_length) = (self.answer.prompt().len(), session.context_length());
        if tokens > context_length {
            return Err(Error::ContextOverflow { tokens, context_length });
        }
        if self.on_overflow == Overflow::Shift && self.n_keep >= context_length {
            let n_keep = self.n_keep;
            let what = format!("n_keep is {n_keep}, it must be less than the context_length of {context_length}");
            return Err(Error::Argument(what));
        }
        if self.on_overflow == Overflow::Shift && !session.can_shift() {
            let what =
                "on_overflow is shift, which a model with recurrent layers cannot do: their state cannot forget tokens";
            return Err(Error::Argument(what.into()));
        }
        if let Some(rng) = session.rng() {
            self.answer.resume(rng);
        }
        let prompt = self.answer.prompt();
        self.timings.cached_tokens =
            if self.moved { session.keep_moved_prefix(prompt) } else { session.keep_prefix(prompt) };
        self.answer.set_computed(self.timings.cached_tokens);
        Ok(())
    }
}

/// What a stream says when it no longer fits its session.
pub(crate) const CHANGED: &str = "the session was used for something else since the last piece of this answer: ask again, or use a \
                       session for each answer";

impl<D> Generation<D> {
    /// The answer so far.
    pub fn answer(&self) -> &Answer<D> {
        &self.answer
    }

    /// The times so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;

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
        fn forward_all(&mut self, tokens: &[u32], interrupt: &Interrupt) -> Result<Vec<f32>> {
            let mut all = Vec::new();
            for &token in tokens {
                all.extend_from_slice(self.forward(&[token], interrupt)?);
            }
            Ok(all)
        }
        fn truncate(&mut self, n: usize) -> Result<()> {
            self.seen.truncate(n);
            Ok(())
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
        fn can_shift(&self) -> bool {
            self.context_length != 13
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
        fn token_bytes(&self, id: u32) -> Vec<u8> {
            vec![b'a' + id as u8]
        }
    }

    fn counter(context_length: usize) -> Counter {
        Counter { seen: vec![], context_length, logits: vec![], fail: false, rng: None }
    }

    fn greedy() -> Options {
        Options { sampling: SamplingParams::greedy(), ..Options::default() }
    }

    struct Done {
        pieces: Vec<String>,
        ids: Vec<u32>,
        reason: &'static str,
        computed: usize,
    }

    fn answer(prompt: &[u32], context_length: usize, options: Options) -> Result<Done> {
        let mut session = counter(context_length);
        let mut generation = Generation::new(prompt.to_vec(), &[END], Letters::default(), options)?;
        let mut pieces = vec![];
        while let Some(piece) = generation.next(&mut session, &Interrupt::never())? {
            assert!(!piece.is_empty());
            pieces.push(piece);
        }
        assert_eq!(generation.next(&mut session, &Interrupt::never())?, None);
        let timings = generation.timings();
        assert_eq!(
            (timings.prompt_tokens, timings.generated_tokens),
            (prompt.len(), generation.answer().generated().len())
        );
        let reason = generation.answer().finish_reason().unwrap().as_str();
        Ok(Done { pieces, ids: generation.answer().generated().to_vec(), reason, computed: session.seen.len() })
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
    fn a_model_that_cannot_shift_says_so_before_it_begins() {
        let e = answer(&[1, 2], 13, Options { on_overflow: Overflow::Shift, ..greedy() }).err().unwrap();
        assert!(matches!(&e, Error::Argument(what) if what.contains("recurrent")), "{e}");
        assert_eq!(answer(&[1, 2], 13, greedy()).unwrap().reason, "length");
    }

    #[test]
    fn a_full_context_is_shifted_and_the_answer_goes_on() {
        let shift = |n_keep| Options {
            max_tokens: Some(40),
            ignore_eos: true,
            on_overflow: Overflow::Shift,
            n_keep,
            ..greedy()
        };
        for n_keep in 0..8 {
            let mut session = counter(8);
            let options = Options { max_tokens: Some(12), ..shift(n_keep) };
            let mut generation = Generation::new(vec![5, 6], &[END], Letters::default(), options).unwrap();
            while generation.next(&mut session, &Interrupt::never()).unwrap().is_some() {}
            assert_eq!(generation.answer().generated(), (7..19).collect::<Vec<_>>());
            assert_eq!(generation.answer().finish_reason(), Some(FinishReason::Length));
            let kept = n_keep.min(2) as usize;
            assert_eq!(session.seen[..kept], [5, 6][..kept]);
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
            assert_eq!(generation.answer().generated(), [last + 1, last + 2]);
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
                generation.answer().generated().to_vec()
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

    /// What the model of these tests gives after `token`.
    fn logits_after(token: u32) -> Vec<f32> {
        let mut logits = vec![0.0; 40];
        logits[(token as usize + 1).min(39)] = 4.0;
        logits[0] = 3.0;
        logits
    }

    fn drawn(seed: u64) -> Options {
        let sampling = SamplingParams { seed: Some(seed), temperature: 1.5, ..SamplingParams::default() };
        Options { max_tokens: Some(20), sampling, ..Options::default() }
    }

    /// The text and the tokens of an answer that is driven in the plainest way.
    fn plain(prompt: &[u32], options: Options) -> (String, Vec<u32>) {
        let mut answer = Answer::new(prompt.to_vec(), &[END], Letters::default(), options).unwrap();
        let mut text = String::new();
        while let Some(&last) = answer.wants().last() {
            match answer.accept(&logits_after(last)).unwrap() {
                Event::Piece(piece) | Event::End { text: piece, .. } => text.push_str(&piece),
                Event::Silent => {}
            }
        }
        (text, answer.generated().to_vec())
    }

    #[test]
    fn answers_are_driven_by_hand_side_by_side() {
        // As a scheduler does it: three at a time, four tokens at most for each in a pass, and now and then one of them
        // has to leave the cache and is computed again.
        let prompts: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[20, 21], &[0]];
        let mut answers: Vec<_> = (0..)
            .zip(prompts)
            .map(|(seed, prompt)| Answer::new(prompt.to_vec(), &[END], Letters::default(), drawn(seed)).unwrap())
            .collect();
        let mut texts = vec![String::new(); 3];
        let mut computed = [0; 3];
        for pass in 0.. {
            if answers.iter().all(|answer| answer.wants().is_empty()) {
                break;
            }
            if pass % 7 == 6 && answers[pass % 3].finish_reason().is_none() {
                computed[pass % 3] = 0;
                answers[pass % 3].set_computed(0);
            }
            for ((answer, text), computed) in answers.iter_mut().zip(&mut texts).zip(&mut computed) {
                let wants = answer.wants();
                let n = wants.len().min(4);
                let Some(&last) = wants[..n].last() else { continue };
                assert_eq!(answer.tokens()[*computed..][..n], wants[..n]);
                *computed += n;
                if n < wants.len() {
                    answer.set_computed(*computed);
                    continue;
                }
                match answer.accept(&logits_after(last)).unwrap() {
                    Event::Piece(piece) | Event::End { text: piece, .. } => text.push_str(&piece),
                    Event::Silent => {}
                }
            }
        }
        for (seed, (prompt, (answer, text))) in (0..).zip(prompts.iter().zip(answers.iter().zip(texts))) {
            assert_eq!(plain(prompt, drawn(seed)), (text, answer.generated().to_vec()));
            assert_eq!(answer.prompt(), *prompt);
        }
    }

    #[test]
    fn a_draft_saves_passes_and_changes_nothing() {
        // As speculation does it: a pass computes a token and three that were guessed, and the logits after each of them
        // are accepted for as long as the guess was right.
        let mut passes = 0;
        let mut tokens = 0;
        for seed in 0..50 {
            let mut answer = Answer::new(vec![seed as u32 % 9], &[END], Letters::default(), drawn(seed)).unwrap();
            let mut text = String::new();
            while let Some(&last) = answer.wants().last() {
                passes += 1;
                let mut batch = vec![last];
                (0..3).for_each(|_| batch.push(batch[batch.len() - 1] + 1));
                for (i, &token) in batch.iter().enumerate() {
                    if i > 0 && answer.wants() != [token] {
                        break;
                    }
                    match answer.accept(&logits_after(token)).unwrap() {
                        Event::Piece(piece) | Event::End { text: piece, .. } => text.push_str(&piece),
                        Event::Silent => {}
                    }
                }
            }
            tokens += answer.generated().len();
            assert_eq!(plain(&[seed as u32 % 9], drawn(seed)), (text, answer.generated().to_vec()));
        }
        assert!(passes < tokens, "{passes} passes for {tokens} tokens");
    }

    #[test]
    fn after_the_end_nothing_is_wanted_and_nothing_changes() {
        let mut answer =
            Answer::new(vec![1], &[END], Letters::default(), Options { max_tokens: Some(1), ..greedy() }).unwrap();
        let end = Event::End { text: "c".into(), reason: FinishReason::Length };
        assert_eq!(answer.accept(&logits_after(1)).unwrap(), end);
        assert!(answer.wants().is_empty());
        assert_eq!(answer.end(FinishReason::Stop), "");
        let end = Event::End { text: String::new(), reason: FinishReason::Length };
        assert_eq!(answer.accept(&logits_after(2)).unwrap(), end);
        assert_eq!(answer.generated(), [2]);
        let none =
            Answer::new(vec![1], &[END], Letters::default(), Options { max_tokens: Some(0), ..greedy() }).unwrap();
        assert!(none.wants().is_empty() && none.finish_reason() == Some(FinishReason::Length));
    }

    #[test]
    fn a_session_that_was_used_for_something_else_is_noticed() {
        let mut session = counter(100);
        let mut generation = Generation::new(vec![10], &[END], Letters::default(), greedy()).unwrap();
        generation.next(&mut session, &Interrupt::never()).unwrap();
        session.seen.push(3);
        let e = generation.next(&mut session, &Interrupt::never()).unwrap_err();
        assert!(matches!(e, Error::SessionBusy(_)), "{e}");
    }

    #[test]
    fn an_interrupted_answer_goes_on_where_it_was() {
        let mut session = counter(100);
        let mut generation = Generation::new(vec![20], &[END], Letters::default(), greedy()).unwrap();
        assert_eq!(generation.next(&mut session, &Interrupt::never()).unwrap().unwrap(), "v");
        let stop = || true;
        let interrupt = Interrupt::new(&stop);
        std::thread::sleep(Interrupt::PERIOD);
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

    /// Guesses that are right now and then, or always, or never.
    #[derive(Debug)]
    struct Guess {
        right: usize, // so many of the first
    }

    impl Draft for Guess {
        fn draft(&mut self, tokens: &[u32], most: usize, _interrupt: &Interrupt) -> Result<Vec<u32>> {
            let next = tokens.last().unwrap() + 1;
            Ok((0..most.min(5)).map(|i| if i < self.right { (next + i as u32).min(39) } else { 30 }).collect())
        }
    }

    #[test]
    fn guesses_change_no_answer_and_leave_nothing_behind() {
        let options = [
            greedy(),
            Options { max_tokens: Some(3), ..greedy() },
            Options { max_tokens: Some(9), ignore_eos: true, ..greedy() },
            Options { stop: vec!["mn".into()], ..greedy() },
            Options { on_overflow: Overflow::Shift, max_tokens: Some(20), ignore_eos: true, n_keep: 1, ..greedy() },
            Options {
                sampling: SamplingParams { seed: Some(5), temperature: 8.0, ..SamplingParams::default() },
                ..Options::default()
            },
        ];
        for options in options {
            for context_length in [8, 14, 100] {
                for right in 0..6 {
                    let run = |guess: Option<Guess>| {
                        let mut session = counter(context_length);
                        let mut generation =
                            Generation::new(vec![5, 6, 7], &[END], Letters::default(), options.clone()).unwrap();
                        let is_guessed = guess.is_some();
                        if let Some(guess) = guess {
                            generation.speculate(Box::new(guess));
                        }
                        let mut text = String::new();
                        while let Some(piece) = generation.next(&mut session, &Interrupt::never()).unwrap() {
                            text.push_str(&piece);
                        }
                        let timings = generation.timings();
                        assert!(timings.accepted_tokens <= timings.drafted_tokens);
                        assert!(is_guessed || timings.drafted_tokens == 0);
                        let answer = generation.answer();
                        (
                            text,
                            answer.generated().to_vec(),
                            answer.finish_reason(),
                            session.seen,
                            // Without a seed each has numbers of its own.
                            session.rng.filter(|_| options.sampling.seed.is_some()).map(|rng| rng.words()),
                        )
                    };
                    assert_eq!(run(None), run(Some(Guess { right })), "{right} right of {context_length}");
                }
            }
        }
    }

    #[test]
    fn a_model_that_guesses_as_the_other_answers_is_right() {
        let mut session = counter(100);
        let mut generation = Generation::new(vec![1, 2], &[END], Letters::default(), greedy()).unwrap();
        generation.speculate(Box::new(Drafter::new(counter(100), 40)));
        while generation.next(&mut session, &Interrupt::never()).unwrap().is_some() {}
        let timings = generation.timings();
        assert_eq!(generation.answer().generated(), (3..26).collect::<Vec<_>>());
        assert!(timings.accepted_tokens > 12, "{timings:?}");
    }
}
