//! Reading a configuration: JSON objects whose values are asked for by name and type. What is null counts as absent.

use serde_json::{Map, Value};

use super::file::File;
use crate::error::{Error, Result, Status};

/// One JSON object of a file, and the path to it inside the file.
#[derive(Clone)]
pub(super) struct Config<'a> {
    file: &'a File,
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Config<'a> {
    pub(super) fn new(file: &'a File, map: &'a Map<String, Value>) -> Self {
        Self { file, map, path: String::new() }
    }

    /// Whether the key is there with a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.raw(key).is_some()
    }

    /// The value, of whatever type.
    pub(super) fn raw(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An error about this object.
    pub(super) fn err(&self, status: Status, message: impl std::fmt::Display) -> Error {
        self.file.err(Error::new(status, format!("{}{message}", self.path)))
    }

    fn typed<T>(&self, key: &str, expected: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.raw(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| {
            let found: String = value.to_string().chars().take(80).collect();
            self.err(Status::Format, format!("{key}: expected {expected}, found {found}"))
        })
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| {
            let whole = |v: f64| (v.fract() == 0.0 && (0.0..=9e15).contains(&v)).then_some(v as u64);
            let value = value.as_u64().or_else(|| value.as_f64().and_then(whole))?;
            usize::try_from(value).ok()
        })
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Config<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Config { file: self.file, map, path: format!("{}{key}.", self.path) }))
    }

    /// What a required key holds, or an error that names it.
    pub(super) fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.err(Status::Format, format!("{key} is missing")))
    }
}
