//! Text logs of any size to typed records, in one pass and constant memory.

use cute_records::{Record, WriteError};
use std::io::BufRead;

/// What was counted while reading: `matched + ignored + unmatched = lines`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// lines read
    pub lines: u64,
    /// lines that became a record or contributed to one
    pub matched: u64,
    /// lines that are known and say nothing
    pub ignored: u64,
    /// lines nothing is known about
    pub unmatched: u64,
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
}

/// Reads a log line by line and hands every record to `sink`.
///
/// # Errors
/// [`Error`] when the log cannot be read or the sink refuses.
pub fn extract(
    _name: &str,
    _reader: impl BufRead,
    _packs: &PackSet,
    _sink: &mut dyn FnMut(Record) -> Result<(), WriteError>,
) -> Result<Counters, Error> {
    Ok(Counters::default())
}

/// Pattern tables, compiled together.
#[derive(Clone, Debug, Default)]
pub struct PackSet {}

impl PackSet {
    /// Every table: which one a log belongs to is decided line by line.
    pub fn auto() -> Self {
        PackSet {}
    }
    /// The table of one engine (`cute`, `nvllm`, `vllm`) and those it builds on.
    pub fn named(_name: &str) -> Option<Self> {
        Some(PackSet {})
    }
}
