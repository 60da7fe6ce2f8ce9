//! Writing records: each record is one `write_all`, so that concurrent or killed writers never glue two together.

use crate::record::{Count, End, Record};
use crate::{Line, Parsed};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;

/// Why a record could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// the sink failed (a full disk, a closed pipe)
    #[error("cannot write records: {0}")]
    Io(#[from] io::Error),
    /// the record could not be put into JSON
    #[error("cannot encode a record: {0}")]
    Encode(String),
}

impl WriteError {
    /// True when the reader of our output has gone away.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, WriteError::Io(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A counting sink of records. Every record is handed to the system at once, unless [`Writer::batched`]; what is
/// handed over is always whole records in one `write_all`.
pub struct Writer<'a> {
    sink: Box<dyn Write + Send + 'a>,
    counts: Count,
    buffer: Vec<u8>,
    batch: usize,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({:?})", self.counts)
    }
}

impl<'a> Writer<'a> {
    /// Writes to `sink`.
    pub fn new(sink: impl Write + Send + 'a) -> Self {
        Writer { sink: Box::new(sink), counts: Count::new(), buffer: Vec::new(), batch: 0 }
    }

    /// Collects whole records up to about `bytes` before handing them over together; [`Writer::flush`] when
    /// somebody may be waiting for them.
    #[must_use]
    pub fn batched(mut self, bytes: usize) -> Self {
        self.batch = bytes;
        self
    }

    /// Hands over what has been collected.
    ///
    /// # Errors
    /// [`WriteError`] when the sink fails.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        let result = self.sink.write_all(&self.buffer);
        self.buffer.clear();
        result?;
        Ok(self.sink.flush()?)
    }

    /// Writes one record.
    ///
    /// # Errors
    /// [`WriteError`] when it cannot be encoded or the sink fails.
    pub fn write(&mut self, record: &Record) -> Result<(), WriteError> {
        let start = self.buffer.len();
        if let Err(e) = jsonl::write(&mut self.buffer, record) {
            self.buffer.truncate(start);
            return Err(WriteError::Encode(e.to_string()));
        }
        self.wrote(record.kind())
    }

    /// Writes a record that `json` appends as JSON text of type `kind`, without a newline: a borrowed view of a
    /// record need not become one first.
    ///
    /// # Errors
    /// [`WriteError`] when the sink fails.
    pub fn write_json(&mut self, kind: &str, json: impl FnOnce(&mut Vec<u8>)) -> Result<(), WriteError> {
        json(&mut self.buffer);
        self.buffer.push(b'\n');
        self.wrote(kind)
    }

    fn wrote(&mut self, kind: &str) -> Result<(), WriteError> {
        match self.counts.get_mut(kind) {
            Some(n) => *n += 1,
            None => _ = self.counts.insert(kind.to_owned(), 1),
        }
        if self.buffer.len() >= self.batch {
            let result = self.sink.write_all(&self.buffer);
            self.buffer.clear();
            result?;
        }
        Ok(())
    }

    /// Forwards a line as it was read, byte for byte. `parsed` is what [`Line::parse`] made of it.
    ///
    /// # Errors
    /// [`WriteError`] when the sink fails.
    pub fn forward(&mut self, line: &Line, parsed: &Parsed) -> Result<(), WriteError> {
        self.buffer.extend_from_slice(line.text.as_bytes());
        self.buffer.push(b'\n');
        match parsed {
            Parsed::Known(r) => self.wrote(r.kind()),
            Parsed::Unknown(kind) => self.wrote(kind),
        }
    }

    /// Records written so far, by type.
    pub fn counts(&self) -> &Count {
        &self.counts
    }

    /// Closes the stream: writes `end` with the counts of everything written before it, and flushes.
    ///
    /// # Errors
    /// [`WriteError`] when the sink fails.
    pub fn end(&mut self, tool: &str, complete: bool) -> Result<(), WriteError> {
        self.end_with(End { tool: tool.to_owned(), complete, ..End::default() })
    }

    /// As [`Writer::end`], for a tool with more to say; `counts` is filled in here.
    ///
    /// # Errors
    /// [`WriteError`] when the sink fails.
    pub fn end_with(&mut self, mut end: End) -> Result<(), WriteError> {
        end.counts = self.counts.clone();
        self.write(&Record::End(end))?;
        self.flush()
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.buffer.is_empty() {
            // an error path: whoever reports it has no use for a second one
            let _ = self.sink.write_all(&self.buffer);
        }
    }
}

/// Opens a record file for appending and repairs its tail: a last line without newline is completed if it is
/// a whole JSON value, else cut off. Returns the file and how many bytes were cut.
///
/// # Errors
/// What the system returns.
pub fn append(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let len = file.metadata()?.len();
    let mut tail = Vec::new();
    let mut reader = BufReader::new(&file);
    let mut start = 0u64;
    loop {
        tail.clear();
        let n = reader.read_until(b'\n', &mut tail)? as u64;
        if n == 0 || tail.last() != Some(&b'\n') {
            break;
        }
        start += n;
    }
    if start == len {
        return Ok((file, 0));
    }
    if serde_json::from_slice::<serde_json::Value>(&tail).is_ok_and(|v| v.is_object()) {
        file.write_all(b"\n")?;
        return Ok((file, 0));
    }
    file.set_len(start)?;
    file.seek(SeekFrom::End(0))?;
    Ok((file, len - start))
}
