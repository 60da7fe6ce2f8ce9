//! Reading records: lines with their file, line number and byte offset, bounded in length.
//!
//! A [`Reader`] yields every line once, good or bad: a bad line is an error that names where it is, and the
//! next call goes on behind it, so no good neighbour is lost. Typed parsing happens on demand
//! ([`Line::parse`]); the raw text stays with the line, so that filters forward it byte for byte.

use crate::record::{Body, Record, TYPES};
use serde::Deserialize;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

/// Longest accepted line, in bytes, unless [`Reader::max_line`] says otherwise.
pub const MAX_LINE: usize = 64 << 20;

/// What can be wrong with a line, and where.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source itself failed.
    #[error("{file}: {error}")]
    Io {
        /// name of the source
        file: Arc<str>,
        /// what the system said
        error: io::Error,
    },
    /// The line is not what it should be.
    #[error("{file}:{line}: {message}: {excerpt}")]
    Bad {
        /// name of the source
        file: Arc<str>,
        /// 1-based line number
        line: u64,
        /// byte offset of the start of the line
        byte: u64,
        /// what was expected and what stands there
        message: String,
        /// the start of the line
        excerpt: String,
    },
}

/// One line of a stream and where it stands.
#[derive(Clone, Debug)]
pub struct Line {
    /// name of the source, `stdin` for standard input
    pub file: Arc<str>,
    /// 1-based line number
    pub line: u64,
    /// byte offset of the start of the line
    pub byte: u64,
    /// the line without its newline
    pub text: String,
    /// false when the source ended without a newline: the writer was cut off
    pub terminated: bool,
}

/// A line understood: a record of this format, or one of a type or version this build does not know.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// a record
    Known(Box<Record>),
    /// an object with a `type` this build does not know; filters forward it
    Unknown(String),
}

#[derive(Deserialize)]
struct Head {
    r#type: Option<String>,
    v: Option<u64>,
}

impl Line {
    /// An error that points at this line.
    pub fn error(&self, message: impl Into<String>) -> ReadError {
        ReadError::Bad {
            file: self.file.clone(),
            line: self.line,
            byte: self.byte,
            message: message.into(),
            excerpt: excerpt(&self.text),
        }
    }

    /// Deserializes the line as a `T`.
    ///
    /// # Errors
    /// [`ReadError::Bad`] with serde's reason and the column.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, ReadError> {
        jsonl::read(self.text.as_bytes()).map_err(|e| match e {
            jsonl::ReadError::Deserialize(e) => {
                let text = e.to_string();
                let reason = text.split(" at line ").next().unwrap_or(&text);
                self.error(format!("column {}: {reason}", e.column()))
            }
            other => self.error(other.to_string()),
        })
    }

    /// Understands the line as a record.
    ///
    /// # Errors
    /// [`ReadError::Bad`] when it is no JSON object, has no `type`, or a known type lacks what it must have.
    pub fn parse(&self) -> Result<Parsed, ReadError> {
        if !self.terminated {
            return Err(self.error("the last line has no newline: its writer was cut off"));
        }
        let head: Head = self.json()?;
        let Some(kind) = head.r#type else {
            return Err(self.error("no \"type\": every record is an object {\"type\":…,\"v\":1,…}"));
        };
        if !TYPES.contains(&kind.as_str()) {
            return Ok(Parsed::Unknown(kind));
        }
        match head.v {
            Some(v) if v == u64::from(crate::VERSION) => {}
            Some(v) => {
                return Err(
                    self.error(format!("record version {v}: this build reads version {}", crate::VERSION))
                );
            }
            None => {
                return Err(
                    self.error(format!("no \"v\" in a {kind:?} record: expected \"v\":{}", crate::VERSION))
                );
            }
        }
        let body = Body::parse(&kind, self)?;
        Ok(Parsed::Known(Box::new(body)))
    }
}

/// Lines of one source.
#[derive(Debug)]
pub struct Reader<R> {
    file: Arc<str>,
    inner: R,
    line: u64,
    byte: u64,
    max_line: usize,
    blank: u64,
    done: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads `inner`; `name` is what errors call it.
    pub fn new(name: &str, inner: R) -> Self {
        Reader { file: name.into(), inner, line: 0, byte: 0, max_line: MAX_LINE, blank: 0, done: false }
    }

    /// Lines longer than this many bytes are refused (and skipped) instead of filling memory.
    pub fn max_line(mut self, bytes: usize) -> Self {
        self.max_line = bytes;
        self
    }

    /// Blank lines skipped so far.
    pub fn blank(&self) -> u64 {
        self.blank
    }

    /// Lines seen so far.
    pub fn lines(&self) -> u64 {
        self.line
    }

    fn next_line(&mut self) -> Option<Result<Line, ReadError>> {
        loop {
            let start = self.byte;
            let mut bytes = Vec::new();
            let taken = (&mut self.inner).take(self.max_line as u64 + 1).read_until(b'\n', &mut bytes);
            match taken {
                Ok(0) => return None,
                Ok(n) => self.byte += n as u64,
                Err(error) => {
                    self.done = true;
                    return Some(Err(ReadError::Io { file: self.file.clone(), error }));
                }
            }
            self.line += 1;
            let terminated = bytes.last() == Some(&b'\n');
            if !terminated && bytes.len() > self.max_line {
                return Some(Err(self.overlong(start, &bytes)));
            }
            while matches!(bytes.last(), Some(b'\n' | b'\r')) {
                bytes.pop();
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                self.blank += 1;
                continue;
            }
            let line =
                |text| Line { file: self.file.clone(), line: self.line, byte: start, text, terminated };
            return Some(match String::from_utf8(bytes) {
                Ok(text) => Ok(line(text)),
                // cut off within a character: what stands before it is the torn line
                Err(e) if !terminated && e.utf8_error().error_len().is_none() => {
                    let whole = e.utf8_error().valid_up_to();
                    Ok(line(String::from_utf8_lossy(&e.as_bytes()[..whole]).into_owned()))
                }
                Err(e) => {
                    let at = e.utf8_error().valid_up_to();
                    let text = String::from_utf8_lossy(e.as_bytes()).into_owned();
                    Err(line(text).error(format!("invalid UTF-8 at byte {at} of the line")))
                }
            });
        }
    }

    fn overlong(&mut self, start: u64, head: &[u8]) -> ReadError {
        let mut skipped = Vec::new();
        loop {
            skipped.clear();
            match (&mut self.inner).take(1 << 16).read_until(b'\n', &mut skipped) {
                Ok(0) => break,
                Ok(n) => self.byte += n as u64,
                Err(error) => {
                    self.done = true;
                    return ReadError::Io { file: self.file.clone(), error };
                }
            }
            if skipped.last() == Some(&b'\n') {
                break;
            }
        }
        ReadError::Bad {
            file: self.file.clone(),
            line: self.line,
            byte: start,
            message: format!("line longer than {} bytes", self.max_line),
            excerpt: excerpt(&String::from_utf8_lossy(&head[..head.len().min(200)])),
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Line, ReadError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.done { None } else { self.next_line() }
    }
}

/// The first 80 characters, for error messages; control characters as `\u{1b}`, so that a terminal shows them.
fn excerpt(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(80) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if text.chars().nth(80).is_some() {
        out.push('…');
    }
    out
}
