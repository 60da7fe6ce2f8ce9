//! A checkpoint against the `model` record of an earlier one: every difference, by name.

use crate::json::short;
use crate::{Error, chat, digest};
use cute_records::{FileDigest, Ledger, Model, ReadError, Reader, Record};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

/// Fields that say where and how the checkpoint was loaded, not what it is.
const CIRCUMSTANCES: [&str; 7] = ["path", "repository", "revision", "plan", "non_finite", "files", "digest"];

/// Why a stream holds no record to compare with.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// a line is broken
    #[error(transparent)]
    Read(#[from] ReadError),
    /// the stream was cut off, or lines of it were lost
    #[error("{file}: {reason}")]
    CutOff {
        /// name of the source
        file: String,
        /// which run, and how
        reason: String,
    },
    /// there is not exactly one `model` record
    #[error("{file}: {found} model records: expected exactly one, as cute-load prints it")]
    Count {
        /// name of the source
        file: String,
        /// how many there are
        found: usize,
    },
}

/// A difference between a checkpoint and a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// the field of the record: `files`, `config`, `tensors_by_dtype`, …
    pub field: String,
    /// one sentence with both values
    pub message: String,
}

/// The one `model` record of a stream that came to its end.
///
/// # Errors
/// When a line is broken, the stream was cut off, or there is not exactly one.
pub fn read_model<R: BufRead>(file: &str, reader: Reader<R>) -> Result<Model, RecordError> {
    let (mut ledger, mut models) = (Ledger::default(), Vec::new());
    for line in reader {
        let parsed = line?.parse()?;
        ledger.note(&parsed);
        if let cute_records::Parsed::Known(record) = parsed
            && let Record::Model(model) = *record
        {
            models.push(model);
        }
    }
    if let Some(reason) = ledger.trouble().into_iter().next() {
        return Err(RecordError::CutOff { file: file.to_owned(), reason });
    }
    if ledger.spans().is_empty() && !models.is_empty() {
        let reason = "it has no `run` and no `end` record: nothing says that it is complete".to_owned();
        return Err(RecordError::CutOff { file: file.to_owned(), reason });
    }
    match <[Model; 1]>::try_from(models) {
        Ok([model]) => Ok(model),
        Err(models) => Err(RecordError::Count { file: file.to_owned(), found: models.len() }),
    }
}

/// Every difference between a checkpoint and the record of an earlier one. Where and how either was loaded
/// (path, memory plan, scan) does not count.
///
/// # Errors
/// When a record cannot be put into JSON.
pub fn differences(found: &Model, recorded: &Model) -> Result<Vec<Difference>, serde_json::Error> {
    let mut out = file_differences(&found.files, &recorded.files);
    if out.is_empty() && found.digest != recorded.digest {
        out.push(Difference {
            field: "digest".to_owned(),
            message: format!(
                "digest is {}, recorded {}, though no file differs",
                found.digest, recorded.digest
            ),
        });
    }
    let (found, recorded) = (serde_json::to_value(found)?, serde_json::to_value(recorded)?);
    for (field, a, b) in pairs(&found, &recorded) {
        // A record from before formats were counted says nothing of them.
        let unsaid = field == "formats" && b.is_null();
        if !CIRCUMSTANCES.contains(&field) && !unsaid {
            compare(field, field, a, b, &mut out);
        }
    }
    Ok(out)
}

/// Differences between the files of a directory and those of a record, without opening the checkpoint: for
/// one that is refused.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn directory_differences(dir: &Path, recorded: &Model) -> Result<Vec<Difference>, Error> {
    let templates = chat::more(dir);
    let mut names: Vec<&str> = recorded.files.iter().map(|f| f.name.as_str()).collect();
    names.extend(digest::DEFINING);
    names.extend(templates.iter().map(String::as_str));
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    for name in names {
        // A record may say anything; only files of the directory itself are looked at.
        let name_alone = name.strip_prefix(chat::MORE).and_then(|n| n.strip_prefix('/')).unwrap_or(name);
        if !name_alone.contains(['/', '\\']) {
            found.extend(digest::file(dir, name)?);
        }
    }
    Ok(file_differences(&found, &recorded.files))
}

fn file_differences(found: &[FileDigest], recorded: &[FileDigest]) -> Vec<Difference> {
    let index = |files: &[FileDigest]| -> BTreeMap<String, FileDigest> {
        files.iter().map(|f| (f.name.clone(), f.clone())).collect()
    };
    let (found, recorded) = (index(found), index(recorded));
    let mut names: Vec<&String> = found.keys().chain(recorded.keys()).collect();
    names.sort();
    names.dedup();
    let message = |name: &String| match (found.get(name), recorded.get(name)) {
        (Some(a), None) => Some(format!("file {name} was added ({} bytes)", a.bytes)),
        (None, Some(b)) => Some(format!("file {name} is gone (recorded with {} bytes)", b.bytes)),
        (Some(a), Some(b)) if a.bytes != b.bytes => {
            Some(format!("file {name} has {} bytes, recorded {}", a.bytes, b.bytes))
        }
        (Some(a), Some(b)) if a.sha256 != b.sha256 => {
            Some(format!("file {name} has sha256 {}, recorded {}", a.sha256, b.sha256))
        }
        _ => None,
    };
    names
        .into_iter()
        .filter_map(message)
        .map(|message| Difference { field: "files".to_owned(), message })
        .collect()
}

fn compare(field: &str, name: &str, found: &Value, recorded: &Value, out: &mut Vec<Difference>) {
    match (found, recorded) {
        (a, b) if a == b => {}
        (Value::Object(_), Value::Object(_)) => {
            for (key, a, b) in pairs(found, recorded) {
                compare(field, &format!("{name}.{key}"), a, b, out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(field, &format!("{name}[{i}]"), a, b, out);
            }
        }
        (a, b) => out.push(Difference {
            field: field.to_owned(),
            message: format!("{name} is {}, recorded {}", words(a), words(b)),
        }),
    }
}

fn words(value: &Value) -> String {
    if value.is_null() { "absent".to_owned() } else { short(&value.to_string()) }
}

/// Keys of either object, sorted, with both values; `null` where one lacks it.
fn pairs<'a>(a: &'a Value, b: &'a Value) -> Vec<(&'a str, &'a Value, &'a Value)> {
    let keys = |v: &'a Value| v.as_object().into_iter().flat_map(|m| m.keys().map(String::as_str));
    let mut names: Vec<&str> = keys(a).chain(keys(b)).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|k| (k, a.get(k).unwrap_or(&Value::Null), b.get(k).unwrap_or(&Value::Null)))
        .collect()
}
