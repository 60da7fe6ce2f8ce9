//! Text logs of any size to typed records, in one pass and constant memory.
//!
//! Patterns are data: one table per engine ([`packs`]), in the message's own words. [`extract`] reads a log and
//! hands every record to a [`Sink`]:
//!
//! * `dispatch`: a `[PHASE_E_DISPATCH]` line with all its fields; one that is not whole becomes a `finding`,
//! * `pool`: one a boot and process, gathered from a dozen lines, with the block count and the rule behind it,
//! * `event`: every other recognised line, with its captured fields.
//!
//! Every line is counted: `matched + ignored + unmatched = lines`. ANSI colours, CRLF, invalid UTF-8, docker's JSON
//! wrapping, lines of interleaved processes, torn lines and lines of any length are taken as they come.

mod dispatch;
mod event;
mod geometry;
mod literals;
mod pack;
mod packs;
mod pool;
mod prefix;
mod pylit;
mod scan;
mod template;
mod value;

pub(crate) use pylit::dict as python_dict;

pub use event::EventRef;
pub use pack::{Kind, Pack, PackError, PackSet, Pattern, check_tables, listing, markdown, packs};
pub use template::TemplateError;

use cute_records::{Count, Record, WriteError};
use std::io::{BufReader, Read};
use std::path::Path;

/// What was counted while reading: `matched + ignored + unmatched = lines`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// lines read; a last line without newline is one
    pub lines: u64,
    /// lines that became a record or contributed to one
    pub matched: u64,
    /// lines that are known and say nothing, and empty ones
    pub ignored: u64,
    /// lines nothing is known about
    pub unmatched: u64,
    /// bytes read
    pub bytes: u64,
    /// lines too long to be looked at whole: only their start was
    pub overlong: u64,
    /// the last line has no newline
    pub torn: bool,
    /// matched lines by pattern table
    pub by_pack: Vec<(&'static str, u64)>,
}

impl Counters {
    /// The most specific table that matched: the engine this log belongs to.
    pub fn pack(&self) -> Option<&'static str> {
        self.by_pack.iter().find(|(_, n)| *n > 0).map(|(name, _)| *name)
    }

    /// Adds another log's counters.
    pub fn add(&mut self, other: &Counters) {
        self.lines += other.lines;
        self.matched += other.matched;
        self.ignored += other.ignored;
        self.unmatched += other.unmatched;
        self.bytes += other.bytes;
        self.overlong += other.overlong;
        self.torn |= other.torn;
        for (name, n) in &other.by_pack {
            match self.by_pack.iter_mut().find(|(have, _)| have == name) {
                Some((_, have)) => *have += n,
                None => self.by_pack.push((name, *n)),
            }
        }
    }

    /// As they stand in an `end` record.
    pub fn to_count(&self) -> Count {
        let mut out: Count = [
            ("lines", self.lines),
            ("matched", self.matched),
            ("ignored", self.ignored),
            ("unmatched", self.unmatched),
            ("bytes", self.bytes),
            ("overlong_lines", self.overlong),
            ("torn_logs", u64::from(self.torn)),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        out.extend(self.by_pack.iter().map(|(name, n)| (format!("matched_{name}"), *n)));
        out
    }
}

/// Why reading a log stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the log could not be read
    #[error("{file}: {error}")]
    Io {
        /// the log
        file: String,
        /// what the system said
        error: std::io::Error,
    },
    /// the records could not be written
    #[error(transparent)]
    Sink(#[from] WriteError),
    /// the pattern tables could not be compiled
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Where the records of a log go. Any `FnMut(Record) -> Result<(), WriteError>` is one.
pub trait Sink {
    /// Takes a record.
    ///
    /// # Errors
    /// When it cannot be passed on.
    fn record(&mut self, record: Record) -> Result<(), WriteError>;

    /// Takes an event without its becoming a record first.
    ///
    /// # Errors
    /// When it cannot be passed on.
    fn event(&mut self, event: &EventRef<'_>) -> Result<(), WriteError> {
        self.record(event.to_record())
    }

    /// A block of the log is done: a good moment to flush.
    ///
    /// # Errors
    /// When flushing fails.
    fn block_end(&mut self) -> Result<(), WriteError> {
        Ok(())
    }

    /// Hears how many bytes have been read.
    fn progress(&mut self, _bytes: u64) {}
}

impl<F: FnMut(Record) -> Result<(), WriteError>> Sink for F {
    fn record(&mut self, record: Record) -> Result<(), WriteError> {
        self(record)
    }
}

/// Reads a log line by line and hands every record to `sink`; `name` is what records call the log.
///
/// # Errors
/// [`Error`] when the log cannot be read or the sink refuses.
pub fn extract<S: Sink + ?Sized>(
    name: &str,
    reader: impl Read,
    packs: &PackSet,
    sink: &mut S,
) -> Result<Counters, Error> {
    scan::Scanner::new(name, packs, sink).run(reader)
}

/// Reads a whole log file with every table; for logs small enough to hold their records.
///
/// # Errors
/// [`Error`] when the log cannot be read.
pub fn read(path: &Path) -> Result<(Vec<Record>, Counters), Error> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| Error::Io { file: name.clone(), error })?;
    let mut records = Vec::new();
    let mut sink = |record: Record| -> Result<(), WriteError> {
        records.push(record);
        Ok(())
    };
    let counters = extract(&name, BufReader::new(file), &PackSet::auto()?, &mut sink)?;
    Ok((records, counters))
}
