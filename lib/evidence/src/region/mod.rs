//! Region-timing buffers (`.npy`, int64 `[ctas, regions, 2]`, nanoseconds): span, coverage, stale rows.
//!
//! The honest cost of a kernel is the time from the first entry to the last exit. A sum of medians taken over
//! different sets of thread blocks, as if they ran one after the other, is not: on the incident's buffer it says
//! 5.5 ms where the kernel took 26.6. [`read`] loads a buffer, [`analyse`] measures it, [`Report::records`] turns
//! the result into `timing` and `finding` records.

mod analyse;
mod layout;
mod npy;

pub use analyse::{RegionStats, Report, StaleRow, analyse};
pub use layout::{Class, Layout, REGIONS, Region};
pub use npy::{Buffer, parse, read};

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

impl Error {
    pub(crate) fn new(file: &str, message: String) -> Self {
        Error { file: file.to_owned(), message }
    }
}

/// Reads a region buffer, measures it with the default launch shape and returns `timing` and `finding` records.
///
/// # Errors
/// [`Error`] when the file is no int64 array of shape `[ctas, regions, 2]`.
pub fn records(path: &Path) -> Result<Vec<Record>, Error> {
    Ok(analyse(&read(path)?, &Layout::default()).records())
}
