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

/// A counting sink of records. Every record is handed to the system at once; nothing is buffered here.
pub struct Writer<'a> {
    sink: Box<dyn Write + Send + 'a>,
    counts: Count,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({:?})", self.counts)
    }
}

impl<'a> Writer<'a> {
    /// Writes to `sink`.
    pub fn new(sink: impl Write + Send + 'a) -> Self {
        Writer { sink: Box::new(sink), counts: Count::new(), buffer: Vec::new() }
    }

    /// Writes one record.
    ///
    /// # Errors
    /// [`WriteError`] when it cannot be encoded or the sink fails.
    pub fn write(&mut self, record: &Record) -> Result<(), WriteError> {
        self.buffer.clear();
        jsonl::write(&mut self.buffer, record).map_err(|e| WriteError::Encode(e.to_string()))?;
        self.sink.write_all(&self.buffer)?;
        *self.counts.entry(record.kind().to_owned()).or_default() += 1;
        Ok(())
    }

    /// Forwards a line as it was read, byte for byte. `parsed` is what [`Line::parse`] made of it.
    ///
    /// # Errors
    /// [`WriteError`] when the sink fails.
    pub fn forward(&mut self, line: &Line, parsed: &Parsed) -> Result<(), WriteError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(line.text.as_bytes());
        self.buffer.push(b'\n');
        self.sink.write_all(&self.buffer)?;
        let kind = match parsed {
            Parsed::Known(r) => r.kind().to_owned(),
            Parsed::Unknown(kind) => kind.clone(),
        };
        *self.counts.entry(kind).or_default() += 1;
        Ok(())
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
        self.sink.flush()?;
        Ok(())
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
