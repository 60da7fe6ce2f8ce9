//! Typed access to the keys of a JSON object; every error names file, key, what stands there and what should.

use crate::Error;
use crate::json::{line, reason, short, strict};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Largest config or template, in bytes. Parsed, a hostile one takes some fifty times its size.
pub(crate) const MAX_TEXT: u64 = 4 << 20;
/// Largest index, in bytes; that of the largest published checkpoint has nine million.
pub(crate) const MAX_INDEX: u64 = 32 << 20;
/// Largest tokenizer.json, in bytes; one with a quarter million tokens has thirty million.
pub(crate) const MAX_TOKENIZER: u64 = 64 << 20;

/// An object of a JSON file, and how its keys are called in errors.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    /// path of the file
    pub file: &'a str,
    /// what stands before the key's name, e.g. `text_config.`
    pub prefix: &'a str,
    /// the object
    pub map: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The object under a key.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(self.bad(key, other, "an object")),
        }
    }

    /// A count from 1 to `max`.
    pub fn count(&self, key: &str, max: usize) -> Result<usize, Error> {
        let expected = format!("an integer from 1 to {max}");
        let value = self.get(key).ok_or_else(|| self.missing(key, &expected))?;
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(n),
            _ => Err(self.bad(key, value, &expected)),
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a finite number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.bad(key, other, "a string")),
        }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.bad(key, value, expected))
    }

    /// The error for an absent key.
    pub fn missing(&self, key: &str, expected: &str) -> Error {
        Error::MissingKey {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            expected: expected.to_owned(),
        }
    }

    /// The error for a value that cannot be.
    pub fn bad(&self, key: &str, found: &Value, expected: &str) -> Error {
        self.wrong(key, short(&found.to_string()), expected)
    }

    /// The error for a value that cannot be, in words.
    pub fn wrong(&self, key: &str, found: impl ToString, expected: &str) -> Error {
        Error::BadKey {
            file: self.file.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    /// The error for a sound checkpoint of another kind.
    pub fn unsupported(&self, what: impl ToString, needed: &str) -> Error {
        let what = line(&what.to_string());
        Error::Unsupported { file: self.file.to_owned(), what, needed: needed.to_owned() }
    }
}

/// Parses a JSON file that must hold an object.
pub(crate) fn object(file: &str, text: &[u8]) -> Result<Map<String, Value>, Error> {
    let json = |reason| Error::Json { file: file.to_owned(), reason };
    match strict(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(json(format!("expected an object, found {}", short(&other.to_string())))),
        Err(e) => Err(json(reason(&e))),
    }
}

/// Opens a regular file (symbolic links are followed) and tells its size.
///
/// What it is gets asked before it is opened: opening a pipe would wait for a writer.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), Error> {
    let file = path.display().to_string();
    let io = |error| Error::Io { file: file.clone(), error };
    let kind = std::fs::metadata(path).map_err(io)?;
    if !kind.is_file() {
        let found = if kind.is_dir() { "a directory" } else { "a pipe, socket or device" };
        return Err(Error::NotAFile { file, found });
    }
    let handle = File::open(path).map_err(io)?;
    let bytes = handle.metadata().map_err(io)?.len();
    Ok((handle, bytes))
}

/// The content of a text file of at most `limit` bytes, or `None` when there is no such file.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let io = |error| Error::Io { file: path.display().to_string(), error };
    let (file, bytes) = match open_file(path) {
        Ok(opened) => opened,
        Err(Error::Io { error, .. })
            if error.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let mut text = Vec::new();
    if bytes <= limit {
        // What grows meanwhile is cut off too.
        file.take(limit + 1).read_to_end(&mut text).map_err(io)?;
    }
    match bytes.max(text.len() as u64) {
        bytes if bytes > limit => Err(Error::FileTooLarge { file: path.display().to_string(), bytes, limit }),
        _ if text.starts_with(b"version https://git-lfs") => {
            Err(Error::LfsPointer { file: path.display().to_string() })
        }
        _ => Ok(Some(text)),
    }
}
