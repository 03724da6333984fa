//! The table of parameters as Python sees it: as data, and as the check of whatever a caller gives.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyInt, PyList, PyMapping, PySequence, PyString, PyTuple};

use super::raise;
use crate::generate::{Options, PromptOptions};
use crate::sampling::{Field, Kind, Parameter, SamplingParams, Value, parameters};
use crate::threads::MAX_THREADS;

parameters! {
    /// How sessions are made.
    pub struct SessionParams {
        context_length: Option<usize> = None, Kind::Int { min: 1, max: u32::MAX as i128 },
            "room for prompt and answer, in tokens; by default 4096, or less if the model was trained for less";
        threads: Option<usize> = None, Kind::Int { min: 1, max: MAX_THREADS as i128 },
            "how many threads compute; by default LLAMA_RS_THREADS, else the cores that this process may use";
        kv_type: String = "f16".into(), Kind::Choice(&["f16", "q8_0"]),
            "how keys and values are stored: q8_0 takes about half the memory and is slightly less exact";
    }
}

parameters! {
    /// What a caller does to an answer by code of its own.
    pub struct CallerParams {
        logits_processor: Functions = Functions, Kind::Functions,
            "a function, or several, that change the logits before a token is chosen: it is called with the token ids so \
             far and the logits, a numpy array to change in place, which is of no use after the call";
    }
}

/// Functions of the caller, which are no data.
#[derive(Debug, Clone, PartialEq)]
pub struct Functions;

impl Field for Functions {
    const OPTIONAL: bool = true;
    fn to_value(&self) -> Value {
        Value::None
    }
    fn from_value(_: Value) -> Option<Self> {
        Some(Self)
    }
}

/// All rows, with the name of their group.
fn rows() -> impl Iterator<Item = (&'static str, &'static Parameter)> {
    let groups = [
        ("sampling", SamplingParams::TABLE),
        ("generation", Options::TABLE),
        ("generation", CallerParams::TABLE),
        ("prompt", PromptOptions::TABLE),
        ("session", SessionParams::TABLE),
    ];
    groups.into_iter().flat_map(|(group, table)| table.iter().map(move |row| (group, row)))
}

fn find(name: &Bound<'_, PyAny>) -> PyResult<&'static Parameter> {
    let name: &str = &name.extract::<String>()?;
    let row = rows().map(|(_, row)| row).find(|row| row.name == name);
    row.ok_or_else(|| PyTypeError::new_err(format!("there is no parameter {name:?}")))
}

/// The table of parameters. A row is its group, name, kind, default, whether it may be None, least and largest value,
/// whether the least itself is out of range, words to choose from, and help.
#[pyfunction]
pub fn parameters(py: Python<'_>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    let (options, prompt, session) = (Options::default(), PromptOptions::default(), SessionParams::default());
    for (group, row) in rows() {
        let default = options.get(row.name).or_else(|| prompt.get(row.name)).or_else(|| session.get(row.name));
        let default = default.or_else(|| CallerParams::default().get(row.name)).expect("each row is of one of these");
        let none = || py.None().into_bound(py);
        let (kind, least, largest, above, words): (_, _, _, _, &[&str]) = match row.kind {
            Kind::Bool => ("bool", none(), none(), false, &[]),
            Kind::Int { min, max } => ("int", min.into_bound_py_any(py)?, max.into_bound_py_any(py)?, false, &[]),
            Kind::Float { min, max, above } => {
                let limit = |x: f64| if x.abs() < f64::from(f32::MAX) { x.into_bound_py_any(py) } else { Ok(none()) };
                ("float", limit(min)?, limit(max)?, above, &[])
            }
            Kind::Choice(words) => ("choice", none(), none(), false, words),
            Kind::Words(words) => ("words", none(), none(), false, words),
            Kind::Text => ("text", none(), none(), false, &[]),
            Kind::Texts => ("strings", none(), none(), false, &[]),
            Kind::Json => ("json", none(), none(), false, &[]),
            Kind::Biases => ("biases", none(), none(), false, &[]),
            Kind::Functions => ("functions", none(), none(), false, &[]),
        };
        let words = PyTuple::new(py, words)?;
        let default = to_python(py, &default)?;
        list.append((group, row.name, kind, default, row.optional, least, largest, above, words, row.help))?;
    }
    Ok(list)
}

/// Checks parameters by name.
#[pyfunction]
pub fn check(py: Python<'_>, values: &Bound<'_, PyDict>) -> PyResult<()> {
    for (name, value) in values {
        let row = find(&name)?;
        row.check(&from_python(row, &value)?).map_err(|e| raise(py, e))?;
    }
    Ok(())
}

/// Sets in `options` what `values` has of them.
pub fn to_options(py: Python<'_>, values: &Bound<'_, PyDict>) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in values {
        let row = find(&name)?;
        options.set(row.name, from_python(row, &value)?).map_err(|e| raise(py, e))?;
    }
    Ok(options)
}

/// What `values` sets, by name.
pub fn from_settings(values: &Bound<'_, PyDict>) -> PyResult<Vec<(String, Value)>> {
    values.iter().map(|(name, value)| Ok((name.extract()?, from_python(find(&name)?, &value)?))).collect()
}

/// A whole number of any size, in the range of the parameter `row`.
pub fn int(row: &Parameter, value: &Bound<'_, PyAny>) -> PyResult<i128> {
    let py = value.py();
    match from_python(row, value)? {
        Value::Int(n) => row.check(&Value::Int(n)).map(|()| n).map_err(|e| raise(py, e)),
        _ => Err(wrong_type(row, value)),
    }
}

/// A row for a number that is not an option, to check it by.
pub const fn count(name: &'static str, min: i128, max: i128) -> Parameter {
    Parameter { name, kind: Kind::Int { min, max }, optional: false, help: "" }
}

/// What `value` is to the parameter `row`. A number that no type of ours holds is out of range at once.
fn from_python(row: &Parameter, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if value.is_none() && row.optional {
        return Ok(Value::None);
    }
    match row.kind {
        Kind::Bool => value.extract().map(Value::Bool).map_err(|_| wrong_type(row, value)),
        Kind::Int { .. } => {
            let number = index(value).ok_or_else(|| wrong_type(row, value))?;
            // Larger than 128 bits; a number of more than 4300 digits has no text in Python.
            let shown = || number.str().map_or("a number of thousands of digits".into(), |text| text.to_string());
            number.extract().map(Value::Int).map_err(|_| raise(value.py(), row.out_of_range(shown())))
        }
        Kind::Float { .. } => match value.extract() {
            Ok(x) if !value.is_instance_of::<PyString>() => Ok(Value::Float(x)),
            Err(e) if e.is_instance_of::<pyo3::exceptions::PyOverflowError>(value.py()) => {
                Ok(Value::Float(f64::INFINITY))
            }
            _ => Err(wrong_type(row, value)),
        },
        Kind::Choice(_) | Kind::Text => value.extract().map(Value::Text).map_err(|_| wrong_type(row, value)),
        Kind::Json if value.is_instance_of::<PyString>() => Ok(Value::Text(value.extract()?)),
        Kind::Json if value.is_instance_of::<PyBool>() || value.cast::<PyMapping>().is_ok() => {
            let text = value.py().import("json")?.call_method1("dumps", (value,));
            text.and_then(|text| text.extract()).map(Value::Text).map_err(|_| wrong_type(row, value))
        }
        Kind::Json => Err(wrong_type(row, value)),
        Kind::Functions => functions(value).map(|_| Value::None).map_err(|_| wrong_type(row, value)),
        Kind::Words(_) if value.is_instance_of::<PyString>() => {
            // As llama.cpp's --samplers.
            let text: String = value.extract()?;
            Ok(Value::Texts(text.split(';').filter(|word| !word.is_empty()).map(String::from).collect()))
        }
        Kind::Texts | Kind::Words(_) => match value.cast::<PyString>() {
            Ok(text) => Ok(Value::Texts(vec![text.to_string()])),
            Err(_) if value.cast::<PySequence>().is_err() => Err(wrong_type(row, value)),
            Err(_) => {
                let item = |item: PyResult<Bound<'_, PyAny>>| {
                    let item = item?;
                    item.extract().map_err(|_| wrong_item(row, &item))
                };
                value.try_iter()?.map(item).collect::<PyResult<_>>().map(Value::Texts)
            }
        },
        Kind::Biases => {
            let mapping = value.cast::<PyMapping>().map_err(|_| wrong_type(row, value))?;
            let mut biases = Vec::new();
            for item in mapping.items()? {
                let (id, bias): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
                let id = int(&count("a token id of logit_bias", 0, u32::MAX as i128), &id)?;
                biases.push((id as u32, bias.extract().map_err(|_| wrong_type(row, value))?));
            }
            Ok(Value::Biases(biases))
        }
    }
}

/// The functions that `value` is: one, several or none.
pub fn functions(value: &Bound<'_, PyAny>) -> PyResult<Vec<Py<PyAny>>> {
    if value.is_none() {
        return Ok(Vec::new());
    }
    if value.is_callable() {
        return Ok(vec![value.clone().unbind()]);
    }
    let is_function = |item: PyResult<Bound<'_, PyAny>>| {
        let item = item?;
        if item.is_callable() { Ok(item.unbind()) } else { Err(PyTypeError::new_err("no function")) }
    };
    value.cast::<PySequence>()?.try_iter()?.map(is_function).collect()
}

/// `value` as an int, if it is one: also numpy's are.
pub fn index<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyInt>> {
    if let Ok(number) = value.cast_exact::<PyInt>() {
        return Some(number.clone());
    }
    value.call_method0("__index__").ok()?.cast_into::<PyInt>().ok()
}

fn wrong_type(row: &Parameter, value: &Bound<'_, PyAny>) -> PyErr {
    let wanted = match row.kind {
        Kind::Bool => "True or False",
        Kind::Int { .. } => "an int",
        Kind::Float { .. } => "a float",
        Kind::Choice(_) | Kind::Text => "a str",
        Kind::Words(_) => "a sequence of str",
        Kind::Json => "a dict, or JSON as a str",
        Kind::Functions => "a function or a sequence of them",
        Kind::Texts => "a str or a sequence of them; for none, leave it out",
        Kind::Biases => "a dict of floats by token id",
    };
    let got = type_name(value);
    let or_none = if row.optional { " or None" } else { "" };
    PyTypeError::new_err(format!("{} is of type {got}, it must be {wanted}{or_none}", row.name))
}

fn wrong_item(row: &Parameter, item: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("{} has an item of type {}, each must be a str", row.name, type_name(item)))
}

/// The name of the type of `value`.
pub fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::None => py.None().into_bound_py_any(py),
        Value::Bool(b) => b.into_bound_py_any(py),
        Value::Int(n) => n.into_bound_py_any(py),
        Value::Float(x) => x.into_bound_py_any(py),
        Value::Text(text) => text.into_bound_py_any(py),
        Value::Texts(texts) => PyTuple::new(py, texts)?.into_bound_py_any(py),
        Value::Biases(biases) => {
            let dict = PyDict::new(py);
            biases.iter().try_for_each(|(id, bias)| dict.set_item(id, bias))?;
            dict.into_bound_py_any(py)
        }
    }
}
