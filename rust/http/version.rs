//! A model that is served: one version of it, and what requests need to know of it.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::{Answer, Refusal};
use super::prompt;
use crate::chat::{Format, Template};
use crate::checkpoint::Value;
use crate::embedding;
use crate::error::Result;
use crate::generate::Options;
use crate::kernels;
use crate::model::Model;
use crate::session::SessionOptions;
use crate::threads::Interrupt;
use crate::tokenizer::Tokenizer;

/// A version of a model, open.
pub struct Version {
    /// What requests call it.
    pub name: String,
    /// Its number, as its folder has it.
    pub number: String,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
    /// The model.
    pub model: Arc<Model>,
    /// What its answers are computed with.
    pub session: SessionOptions,
    /// What a request has that does not say.
    pub defaults: Options,
    /// The same for all answers with the same bits: our version, kernels, the model.
    pub fingerprint: String,
    template: OnceLock<Answer<Template>>,
    formats: [OnceLock<Answer<Marked>>; 2], // without tools, and with
}

impl Version {
    /// Opens the model at `path`. Reads its header; nothing of its weights.
    ///
    /// # Errors
    /// As for [`Model::open`], [`Model::tokenizer`].
    pub fn open(name: &str, number: &str, path: &Path, session: SessionOptions, set: &Defaults) -> Result<Self> {
        Self::of(name, number, Arc::new(Model::open(path)?), session, set)
    }

    /// The same of a model that is open.
    ///
    /// # Errors
    /// As for [`Model::tokenizer`].
    pub fn of(name: &str, number: &str, model: Arc<Model>, session: SessionOptions, set: &Defaults) -> Result<Self> {
        model.tokenizer()?;
        let mut defaults = of_file(&model);
        for (name, value) in set {
            defaults.set(name, value.clone())?;
        }
        let kernels = kernels::best()?.name();
        let hash = model.checkpoint().header_hash()?;
        let fingerprint = format!("b{}-{kernels}-{:08x}", env!("CARGO_PKG_VERSION"), hash as u32);
        let created = now();
        let (name, number) = (name.to_string(), number.to_string());
        Ok(Self {
            name,
            number,
            created,
            model,
            session,
            defaults,
            fingerprint,
            template: OnceLock::new(),
            formats: Default::default(),
        })
    }

    /// The tokenizer, which was there when the version was opened.
    pub fn tokenizer(&self) -> Answer<&Arc<Tokenizer>> {
        Ok(self.model.tokenizer()?)
    }

    /// The most tokens of a prompt and its answer.
    pub fn context_length(&self) -> usize {
        embedding::longest(&self.model, &self.session)
    }

    /// The chat template, prepared when it is first asked for.
    pub fn template(&self) -> Answer<&Template> {
        self.template.get_or_init(|| prompt::template(&self.model)).as_ref().map_err(Refusal::clone)
    }

    /// How the model marks calls and thoughts, and the control tokens that have to come as text for that. Found by going
    /// through the vocabulary, when it is first asked for.
    pub fn format(&self, with_tools: bool) -> Answer<&Marked> {
        let find = || {
            let template = self.template()?;
            let format = template.format(with_tools, None)?;
            let ids = template.marks(&format)?;
            Ok((format, ids))
        };
        self.formats[usize::from(with_tools)].get_or_init(find).as_ref().map_err(Refusal::clone)
    }

    /// The tokens of a text, which must leave room for an answer.
    pub fn encode(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        interrupt: &Interrupt,
    ) -> Answer<Vec<u32>> {
        let most = self.context_length();
        Ok(self.tokenizer()?.encode_at_most(most, text, add_special, parse_special, interrupt)?)
    }

    /// What a token stands for.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer().ok().and_then(|tokenizer| tokenizer.token_bytes(id).ok()).unwrap_or_default()
    }
}

/// A format, and the control tokens that its parser has to see.
pub type Marked = (Format, Vec<u32>);

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Options by name that are set for all requests.
pub type Defaults = Vec<(String, crate::sampling::Value)>;

/// The options that a model's file asks for (`general.sampling.*`); what it says wrongly counts for nothing.
fn of_file(model: &Model) -> Options {
    const KEYS: [(&str, &str); 8] = [
        ("temp", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("penalty_last_n", "repeat_last_n"),
        ("penalty_repeat", "repeat_penalty"),
        ("penalty_freq", "frequency_penalty"),
        ("penalty_present", "presence_penalty"),
    ];
    let mut options = Options::default();
    for (key, name) in KEYS {
        let value = model.checkpoint().metadata.get(&format!("general.sampling.{key}"));
        let float = matches!(options.get(name), Some(crate::sampling::Value::Float(_)));
        let value = match value {
            Some(Value::F32(x)) if float => crate::sampling::Value::Float(f64::from(*x)),
            Some(Value::F64(x)) if float => crate::sampling::Value::Float(*x),
            Some(Value::Unsigned(n)) if !float => crate::sampling::Value::Int((*n).into()),
            Some(Value::Signed(n)) if !float => crate::sampling::Value::Int((*n).into()),
            _ => continue,
        };
        let _ = options.set(name, value);
    }
    options
}
