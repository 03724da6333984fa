//! Classification: what a model is asked about a text, and what follows from how likely it finds each label as the answer.
//!
//! The prompt ends where the answer begins, and each label is tokenized together with it: what ends a prompt may be one token
//! with what begins an answer. What a model would say to a text without content is what it prefers for no reason, and is
//! taken out (contextual calibration, Zhao et al. 2021; per token, arXiv 2511.14385). Whoever asks, in the shell, in Python
//! or over HTTP, asks by this: the same labels and text give the same numbers.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::chat::{self, Question, Template, Value};
use crate::error::{Error, Result};
use crate::likelihood::Choices;
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;

/// Texts that say nothing, as Zhao et al. have them.
pub const CONTENT_FREE: [&str; 3] = ["N/A", "", "[MASK]"];

/// Where a template has the text.
const TEXT: &str = "{text}";

/// What a model is told, but for the text.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// What stands for each label as an answer.
    pub answers: Vec<String>,
    /// What the model is told to do; `{labels}` in it is all answers. Without any it is to classify.
    pub instructions: Option<String>,
    /// What it is asked about a text, with `{text}` in it once.
    pub template: Option<String>,
    /// Texts and the answers to them, which are shown first.
    pub examples: Vec<(String, String)>,
    /// Other variables of the chat template.
    pub variables: Vec<(String, Value)>,
}

/// What a model is asked: the same before and behind each text.
#[derive(Debug)]
pub struct Asking {
    intro: String,
    around: (String, String),
    examples: Vec<(String, String)>,
    spelt: Vec<String>, // the answers, as they come after the prompt
    variables: Vec<(String, Value)>,
    now: i64,
}

impl Asking {
    /// For conversations or for texts.
    ///
    /// # Errors
    /// [`Error::Argument`] for a template without a place for the text.
    pub fn new(asked: Asked, is_chat: bool) -> Result<Self> {
        let Asked { answers, instructions, template, examples, mut variables } = asked;
        let instructions = instructions.unwrap_or_else(|| {
            let alone = if is_chat { " Answer with the category alone." } else { "" };
            format!("Classify the text into one of these categories: {{labels}}.{alone}")
        });
        let instructions = instructions.replace("{labels}", &answers.join(", "));
        let template = template.as_deref().unwrap_or(if is_chat { "Text: {text}" } else { "Text: {text}\nLabel:" });
        let around = match template.split_once(TEXT) {
            Some((before, after)) if !after.contains(TEXT) => (before.to_string(), after.to_string()),
            _ => return Err(Error::Argument(format!("template is {template:?}, it must have {TEXT} in it, once"))),
        };
        if !variables.iter().any(|(name, _)| name == "enable_thinking") {
            // A model that thinks before it answers would have its thoughts scored.
            variables.push(("enable_thinking".into(), Value::from(false)));
        }
        // After a colon comes a space, and the answer ends with its line.
        let spelt = answers.into_iter().map(|answer| if is_chat { answer } else { format!(" {answer}\n") }).collect();
        let intro = if instructions.is_empty() { String::new() } else { format!("{instructions}\n\n") };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        Ok(Self { intro, around, examples, spelt, variables, now })
    }

    /// The tokens of the prompt about a text, and those of each answer after it; `template` is there for conversations.
    ///
    /// # Errors
    /// As for [`Template::text`] and [`Tokenizer::encode_at_most`]; [`Error::Argument`] if nothing stands before an answer.
    pub fn choices(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&Template>,
        text: &str,
        at_most: usize,
        interrupt: &Interrupt,
    ) -> Result<Choices> {
        let (open, closed) = match template {
            Some(template) => self.conversation(template, text, at_most, interrupt)?,
            None => self.text(tokenizer, text, at_most, interrupt)?,
        };
        let shared = |ids: &Vec<u32>| common(&open, ids).min(ids.len().saturating_sub(1));
        let n = closed.iter().map(shared).min().unwrap_or(0);
        if n == 0 {
            return Err(Error::Argument("nothing is asked: there must be a token before the answer".into()));
        }
        let continuations = closed.into_iter().map(|ids| ids[n..].to_vec()).collect();
        Ok(Choices { prompt: open[..n].to_vec(), continuations })
    }

    fn question(&self, text: &str) -> String {
        format!("{}{text}{}", self.around.0, self.around.1)
    }

    /// The tokens of a text with nothing behind it, and with each answer.
    fn text(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        at_most: usize,
        interrupt: &Interrupt,
    ) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
        let mut before = self.intro.clone();
        for (text, answer) in &self.examples {
            before.push_str(&format!("{} {answer}\n\n", self.question(text)));
        }
        before.push_str(&self.question(text));
        let encoded = |answer: &str| {
            let mut ids = tokenizer.encode_at_most(at_most, &format!("{before}{answer}"), true, false, interrupt)?;
            if ids.last().is_some_and(|&id| tokenizer.is_end_of_generation(id)) {
                ids.pop(); // some files add it
            }
            Ok(ids)
        };
        Ok((encoded("")?, self.spelt.iter().map(|answer| encoded(answer)).collect::<Result<_>>()?))
    }

    /// The tokens of a conversation with nothing behind it, and with each answer.
    fn conversation(
        &self,
        template: &Template,
        text: &str,
        at_most: usize,
        interrupt: &Interrupt,
    ) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
        let guard = template.guard()?;
        let mut messages = Vec::new();
        let mut say = |role: &str, content: &str| -> Result<()> {
            let content = Value::from(guard.broken(content)?);
            messages.push(Value::from_pairs([("role", Value::from(role)), ("content", content)]));
            Ok(())
        };
        let mut intro = self.intro.as_str();
        for (text, answer) in &self.examples {
            say("user", &format!("{}{}", std::mem::take(&mut intro), self.question(text)))?;
            say("assistant", answer)?;
        }
        say("user", &format!("{intro}{}", self.question(text)))?;
        let question = Question {
            messages: Value::from(messages),
            variables: self.variables.clone(),
            add_generation_prompt: true,
            now: self.now,
            ..Question::default()
        };
        let prompt = template.text(&question)?;
        let tokenizer = template.tokenizer();
        let encode = |text: &str| chat::encode(tokenizer, text, at_most, interrupt);
        let open = encode(&prompt)?;
        let answers = self.spelt.iter().map(|answer| guard.broken(answer)).collect::<Result<Vec<_>>>()?;
        let (first, others) = answers.split_first().map_or((None, &[][..]), |(first, others)| (Some(first), others));
        let mut closed: Vec<Vec<u32>> = Vec::with_capacity(answers.len());
        closed.extend(first.map(|answer| encode(&format!("{prompt}{answer}"))).transpose()?);
        // Behind the last control token stands little, and what stands before it does not depend on that: a long prompt is
        // not read once for each label. The first shows whether the vocabulary cuts there, too.
        let cut = guard.last_end(&prompt);
        let (head, tail) = prompt.split_at(cut);
        let short = |answer: &str| -> Result<Vec<u32>> {
            let mut ids = Vec::new();
            for part in format!("{tail}{answer}").split(chat::MARK).filter(|part| !part.is_empty()) {
                ids.extend(tokenizer.encode_at_most(at_most, part, false, true, interrupt)?);
            }
            Ok(ids)
        };
        let head = if cut > 0 && !others.is_empty() { encode(head)? } else { Vec::new() };
        let cuts = match (first, closed.first()) {
            (Some(answer), Some(whole)) if !head.is_empty() => *whole == [head.as_slice(), &short(answer)?].concat(),
            _ => false,
        };
        for answer in others {
            closed.push(match cuts {
                true => [head.as_slice(), &short(answer)?].concat(),
                false => encode(&format!("{prompt}{answer}"))?,
            });
        }
        Ok((open, closed))
    }
}

/// How many tokens two sequences begin with in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The score of an answer by the log-probabilities of its tokens: their mean, or their sum.
pub fn score(log_probs: &[f32], by_sum: bool) -> f64 {
    let sum: f64 = log_probs.iter().map(|&x| f64::from(x)).sum();
    if by_sum { sum } else { sum / log_probs.len().max(1) as f64 }
}

/// The logarithm of the mean probability of each label over rows of scores: what is liked for no reason if the rows are of
/// [`CONTENT_FREE`]. Without a row it is 0.
pub fn prior(rows: &[Vec<f64>]) -> Vec<f64> {
    let n = rows.first().map_or(0, Vec::len);
    let mut mean = vec![0.0; n];
    for row in rows {
        softmax(row).iter().zip(&mut mean).for_each(|(p, mean)| *mean += p / rows.len() as f64);
    }
    mean.iter().map(|mean| mean.max(f64::MIN_POSITIVE).ln()).collect()
}

/// The probability of each label, by its score without what `prior` says (if it is not empty). They sum to 1; with
/// `multi_label` each is held against the mean of the others alone.
pub fn probabilities(scores: &[f64], prior: &[f64], multi_label: bool) -> Vec<f64> {
    let scores: Vec<f64> = (0..scores.len()).map(|i| scores[i] - prior.get(i).unwrap_or(&0.0)).collect();
    let probs = softmax(&scores);
    if !multi_label {
        return probs;
    }
    let others = scores.len() as f64 - 1.0;
    probs.iter().map(|p| p * others / (p * others + 1.0 - p)).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mass: Vec<f64> = scores.iter().map(|x| (x - max).exp()).collect();
    let total: f64 = mass.iter().sum();
    mass.iter().map(|x| x / total).collect()
}
