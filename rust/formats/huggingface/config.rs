//! `config.json`: its values by name, each checked when it is read.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, FormatError, Result};
use crate::formats::one_line;

/// Longest `config.json`. Real ones have some kilobytes.
const MAX_LEN: usize = 16 << 20;

/// The configuration of a model: that of its text part, where there are several.
pub struct Config {
    path: PathBuf,
    root: Map<String, Value>,
    text: Map<String, Value>,
}

impl Config {
    /// Reads the file at `path`, if it is there. What is no regular file is not waited for.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let fail = |source| Error::File { path: path.into(), source };
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() && meta.len() <= MAX_LEN as u64 => {
                Self::parse(path, &std::fs::read(path).map_err(fail)?).map(Some)
            }
            Ok(_) => Err(FormatError::new(path, "no JSON file, or one that is too long").into()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(fail(e)),
        }
    }

    /// Reads the contents of the file at `path`.
    pub fn parse(path: &Path, contents: &[u8]) -> Result<Self> {
        if contents.len() > MAX_LEN {
            let e = FormatError::new(path, "too long").got(format!("{} bytes", contents.len()));
            return Err(e.limit(format!("at most {MAX_LEN}")).into());
        }
        let contents = contents.to_vec(); // then checked: the file may change
        let root: Value = serde_json::from_slice(&contents)
            .map_err(|e| FormatError::new(path, format!("not valid JSON: {}", one_line(&e.to_string()))))?;
        let Value::Object(mut root) = root else {
            return Err(FormatError::new(path, "not a JSON object").into());
        };
        let text = match root.remove("text_config").or_else(|| root.remove("llm_config")) {
            Some(Value::Object(text)) => text,
            _ => Map::new(),
        };
        Ok(Self { path: path.into(), root, text })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value called `name`, or of an object in an object `name.of.it`; `null` is none.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let whole = if name == "model_type" { [&self.root, &self.text] } else { [&self.text, &self.root] };
        whole.into_iter().find_map(|object| {
            let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
            let mut value = object.get(first)?;
            for part in rest.into_iter().flat_map(|rest| rest.split('.')) {
                value = value.as_object()?.get(part)?;
            }
            Some(value).filter(|value| !value.is_null())
        })
    }

    /// Whether there is a value called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A non-negative integer that GGUF's 32 bits hold.
    pub fn int(&self, name: &str) -> Result<Option<u32>> {
        self.of(name, "an integer from 0 to 4294967295", integer)
    }

    /// The first of these integers that is there.
    pub fn first_int(&self, names: &[&str]) -> Result<Option<u32>> {
        names.iter().find(|name| self.has(name)).map_or(Ok(None), |name| self.int(name))
    }

    /// An integer that has to be there.
    pub fn required_int(&self, name: &str) -> Result<u32> {
        self.required(name, self.int(name)?)
    }

    /// A number.
    pub fn float(&self, name: &str) -> Result<Option<f64>> {
        self.of(name, "a number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    /// The first of these numbers that is there.
    pub fn first_float(&self, names: &[&str]) -> Result<Option<f64>> {
        names.iter().find(|name| self.has(name)).map_or(Ok(None), |name| self.float(name))
    }

    /// A number that has to be there.
    pub fn required_float(&self, name: &str) -> Result<f64> {
        self.required(name, self.float(name)?)
    }

    /// A truth value.
    pub fn bool(&self, name: &str) -> Result<Option<bool>> {
        self.of(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn str(&self, name: &str) -> Result<Option<&str>> {
        self.of(name, "a text", Value::as_str)
    }

    /// The first of these texts that is there.
    pub fn first_str(&self, names: &[&str]) -> Result<Option<&str>> {
        names.iter().find(|name| self.has(name)).map_or(Ok(None), |name| self.str(name))
    }

    /// `model_type` of the text part, where there are several.
    pub fn text_model_type(&self) -> Result<Option<&str>> {
        Ok(self.text.get("model_type").and_then(Value::as_str))
    }

    /// A list of texts.
    pub fn strs(&self, name: &str) -> Result<Option<Vec<&str>>> {
        self.of(name, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<u32>>> {
        self.of(name, "a list of integers", |value| value.as_array()?.iter().map(integer).collect())
    }

    /// A list of numbers.
    pub fn floats(&self, name: &str) -> Result<Option<Vec<f64>>> {
        self.of(name, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// What has to be there.
    pub fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error("missing key", name).into())
    }

    /// A report about a value.
    pub fn error(&self, what: &str, name: &str) -> FormatError {
        FormatError::new(&self.path, what).named(name)
    }

    /// What we do not run.
    pub fn unsupported(&self, what: String) -> Error {
        Error::Unsupported { path: self.path.clone(), what }
    }

    fn of<'b, T>(&'b self, name: &str, expected: &str, read: impl Fn(&'b Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            let got = one_line(&value.to_string());
            self.error("wrong value", name).got(got).limit(expected).into()
        })
    }
}

fn integer(value: &Value) -> Option<u32> {
    let whole = |x: f64| (x.fract() == 0.0 && (0.0..4294967296.0).contains(&x)).then_some(x as u32);
    value.as_u64().map_or_else(|| value.as_f64().and_then(whole), |n| u32::try_from(n).ok())
}
