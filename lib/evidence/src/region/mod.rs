//! Region-timing buffers (`.npy`, int64 `[ctas, regions, 2]`, nanoseconds): span, coverage, stale rows.
//!
//! The honest cost of a kernel is the time from the first entry to the last exit, not the sum of medians taken
//! over different sets of thread blocks. [`read`] loads a buffer, [`analyse`] measures it, and
//! [`Report::records`] turns the result into `timing` and `finding` records.

use cute_records::Record;
use std::path::Path;

/// Why a buffer could not be read; names the file, the value and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {message}")]
pub struct Error {
    /// the file
    pub file: String,
    /// what is wrong
    pub message: String,
}

/// Reads a region buffer, measures it and returns `timing` and `finding` records.
///
/// # Errors
/// [`Error`] when the file is no int64 array of shape `[ctas, regions, 2]`.
pub fn records(path: &Path) -> Result<Vec<Record>, Error> {
    Err(Error { file: path.display().to_string(), message: "not read yet".to_owned() })
}
