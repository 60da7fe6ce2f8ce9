//! What all readers share: a file's text and lines, typed fields that name their value when they are wrong, and the
//! findings about the evidence itself.

use super::Error;
use super::json::Node;
use cute_records::{Completion, Finding, Severity, num};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

/// Largest document that is read whole.
const MAX_DOCUMENT: u64 = 1 << 30;

/// A file in memory.
#[derive(Debug)]
pub(crate) struct Source {
    pub name: String,
    pub text: String,
    newlines: Vec<usize>,
    /// bytes that were no UTF-8
    pub lossy: bool,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let io = |error| Error::Io { file: name.clone(), error };
        let len = std::fs::metadata(path).map_err(io)?.len();
        if len > MAX_DOCUMENT {
            return Err(Error::Bad {
                file: name,
                message: format!("{len} bytes: expected at most {MAX_DOCUMENT}"),
            });
        }
        let bytes = std::fs::read(path).map_err(io)?;
        Ok(Self::from_bytes(&name, bytes))
    }

    pub(crate) fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        let (text, lossy) = match String::from_utf8(bytes) {
            Ok(text) => (text, false),
            Err(e) => (String::from_utf8_lossy(e.as_bytes()).into_owned(), true),
        };
        let newlines = memchr::memchr_iter(b'\n', text.as_bytes()).collect();
        Source { name: name.to_owned(), text, newlines, lossy }
    }

    /// 1-based line of a byte offset.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.newlines.partition_point(|n| *n < at) + 1
    }

    /// `file:line` of a byte offset.
    pub(crate) fn place(&self, at: usize) -> String {
        format!("{}:{}", self.name, self.line(at))
    }

    pub(crate) fn document(&self) -> Node<'_> {
        Node::document(&self.text)
    }
}

/// Findings about one file or directory.
#[derive(Debug, Default)]
pub(crate) struct Notes(pub Vec<Finding>);

impl Notes {
    pub(crate) fn add(
        &mut self,
        check: &str,
        severity: Severity,
        at: impl Into<String>,
        message: impl Into<String>,
    ) {
        let at = at.into();
        self.0.push(Finding {
            check: check.to_owned(),
            severity,
            message: format!("{at}: {}", message.into()),
            ordinal: None,
            layer: None,
            at: Some(at),
            data: BTreeMap::new(),
        });
    }

    pub(crate) fn error(&mut self, check: &str, at: impl Into<String>, message: impl Into<String>) {
        self.add(check, Severity::Error, at, message);
    }

    pub(crate) fn warning(&mut self, check: &str, at: impl Into<String>, message: impl Into<String>) {
        self.add(check, Severity::Warning, at, message);
    }
}

/// A row: an object whose fields say what they should have been.
pub(crate) struct Row(pub Map<String, Value>);

impl Row {
    /// Parses a row; the message says what is wrong with it.
    pub(crate) fn parse(node: Node<'_>) -> Result<Row, String> {
        match node.value() {
            Ok(Value::Object(map)) => Ok(Row(map)),
            Ok(other) => Err(format!("{}: expected an object", short(&other))),
            Err(e) => {
                let text = e.to_string();
                Err(format!("{}: {}", text.split(" at line ").next().unwrap_or(&text), excerpt(node.text)))
            }
        }
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    pub(crate) fn u64(&self, name: &str) -> Result<Option<u64>, String> {
        self.typed(name, "a count", num::whole)
    }

    pub(crate) fn f64(&self, name: &str) -> Result<Option<f64>, String> {
        self.typed(name, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    pub(crate) fn bool(&self, name: &str) -> Result<Option<bool>, String> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, String> {
        self.typed(name, "text", |v| v.as_str().map(str::to_owned))
    }

    /// Text, or a number taken as its text: answers come as either.
    pub(crate) fn word(&self, name: &str) -> Result<Option<String>, String> {
        self.typed(name, "text or a number", |v| match v {
            Value::String(s) => Some(s.clone()),
            Value::Number(n) => Some(n.to_string()),
            _ => None,
        })
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| format!("{name}={}: expected {expected}", short(v))),
        }
    }
}

/// Turns a missing required field into a message.
pub(crate) fn need<T>(name: &str, expected: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("no {name:?}: expected {expected}"))
}

/// Milliseconds of decimal seconds, without the digits that binary multiplication adds.
pub(crate) fn ms(seconds: f64) -> f64 {
    (seconds * 1e9).round() / 1e6
}

/// A value, shortened for a message.
pub(crate) fn short(value: &Value) -> String {
    excerpt(&value.to_string())
}

/// The first 60 characters.
pub(crate) fn excerpt(text: &str) -> String {
    let mut out: String = text.chars().take(60).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}

/// One stretch of requests: a run of questions, a replay, a long decode.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub file: String,
    /// what the file calls itself
    pub label: Option<String>,
    /// rows the file says it has
    pub declared: Option<u64>,
    /// which repetition the file says it is, 0-based
    pub run_index: Option<u64>,
    /// right answers and errors the file states
    pub stated: Option<(u64, u64)>,
    /// what every part of one evaluation should share: `seed`, `n`, `model`, `api`
    pub settings: BTreeMap<String, Value>,
    /// rows by `index`
    pub rows: Vec<Completion>,
    /// where each run and index stands in `rows`
    pub(super) seen: BTreeMap<(u64, u64), usize>,
}

impl Part {
    /// Adds a row unless its run and index are taken; the first one stays.
    pub(crate) fn push(&mut self, row: Completion, notes: &mut Notes) {
        let at = self.rows.len();
        match self.seen.entry((row.run, row.index)) {
            std::collections::btree_map::Entry::Occupied(first) => notes.error(
                "duplicate_row",
                row.source.clone().unwrap_or_default(),
                format!(
                    "run {} index {} stands already at {}: the first one is kept",
                    row.run,
                    row.index,
                    self.rows[*first.get()].source.as_deref().unwrap_or("an earlier row")
                ),
            ),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(at);
                self.rows.push(row);
            }
        }
    }

    /// Rows this part should have: what it declares, or the highest index it holds.
    pub(crate) fn len(&self) -> u64 {
        let held = self.rows.iter().map(|r| r.index.saturating_add(1)).max().unwrap_or(0);
        self.declared.unwrap_or(0).max(held)
    }

    /// Sorts the rows and reports indices that are missing.
    pub(crate) fn check_rows(&mut self, notes: &mut Notes) {
        self.rows.sort_by_key(|r| (r.run, r.index));
        let mut runs: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for row in &self.rows {
            runs.entry(row.run).or_default().push(row.index);
        }
        if runs.is_empty() {
            notes.error(
                "no_rows",
                &self.file,
                format!("no usable row, {} declared", self.declared.unwrap_or(0)),
            );
        }
        let len = self.len();
        for (run, have) in runs {
            // a file that declares absurd lengths must not make us list them
            let missing = len.saturating_sub(have.len() as u64);
            if missing > 0 {
                let first: Vec<u64> = (0..len).filter(|i| have.binary_search(i).is_err()).take(20).collect();
                let of =
                    if self.run_index.is_some() || run > 0 { format!("run {run}: ") } else { String::new() };
                notes.error(
                    "missing_rows",
                    &self.file,
                    format!(
                        "{of}{} of {len} rows, indices {} missing (0-based)",
                        have.len(),
                        list(&first, missing)
                    ),
                );
            }
        }
    }

    /// Compares the stated totals with a recount.
    pub(crate) fn check_totals(&self, notes: &mut Notes) {
        let count = |f: &dyn Fn(&Completion) -> bool| self.rows.iter().filter(|r| f(r)).count() as u64;
        let correct = count(&|r| r.correct == Some(true));
        let errors = count(&|r| r.finish_reason == Some(cute_records::FinishReason::Error));
        if let Some((said_correct, said_errors)) = self.stated {
            for (name, said, counted) in [("correct", said_correct, correct), ("errors", said_errors, errors)]
            {
                if said != counted {
                    notes.error(
                        "count_mismatch",
                        &self.file,
                        format!("states {name} {said}, its {} rows say {counted}", self.rows.len()),
                    );
                }
            }
        }
        if let Some(n) = self.declared.filter(|n| *n < self.rows.len() as u64) {
            notes.error(
                "count_mismatch",
                &self.file,
                format!("states n {n}, holds {} rows", self.rows.len()),
            );
        }
    }
}

/// Some numbers, and how many there are when not all are shown.
pub(crate) fn list<T: Display>(shown: &[T], all: u64) -> String {
    let words: Vec<String> = shown.iter().map(ToString::to_string).collect();
    let more = all.saturating_sub(shown.len() as u64);
    if more > 0 { format!("{} and {more} more", words.join(", ")) } else { words.join(", ") }
}
