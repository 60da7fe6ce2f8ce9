//! Reading and forwarding a stream.
//!
//! A filter whose reader has gone away, or whose disk is full, still has an exit code to return: writing stops, reading
//! and thinking go on. A line that cannot be understood is reported with its place, and its neighbours are processed.

use super::Case;
use cute_records::{End, Line, Parsed, ReadError, Record, WriteError, Writer};

/// A writer that survives its reader.
#[derive(Debug)]
pub struct Outlet<'a> {
    writer: Option<Writer<'a>>,
    lost: Option<WriteError>,
}

impl<'a> Outlet<'a> {
    /// Writes to `writer` as long as somebody reads it.
    pub fn new(writer: Writer<'a>) -> Self {
        Outlet { writer: Some(writer), lost: None }
    }

    /// True once the reader has gone away.
    pub fn closed(&self) -> bool {
        self.writer.is_none()
    }

    /// Why the output was lost, unless its reader chose to go.
    pub fn lost(&self) -> Option<&WriteError> {
        self.lost.as_ref()
    }

    fn keep(&mut self, result: Result<(), WriteError>) -> Result<(), WriteError> {
        match result {
            Err(e) if e.is_broken_pipe() => {
                self.writer = None;
                Ok(())
            }
            Err(e @ WriteError::Io(_)) => {
                self.writer = None;
                self.lost = Some(e);
                Ok(())
            }
            other => other,
        }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`WriteError`] when a record cannot be encoded.
    pub fn write(&mut self, record: &Record) -> Result<(), WriteError> {
        let done = self.writer.as_mut().map_or(Ok(()), |w| w.write(record));
        self.keep(done)
    }

    /// Forwards a line byte for byte.
    ///
    /// # Errors
    /// [`WriteError`] when a record cannot be encoded.
    pub fn forward(&mut self, line: &Line, parsed: &Parsed) -> Result<(), WriteError> {
        let done = self.writer.as_mut().map_or(Ok(()), |w| w.forward(line, parsed));
        self.keep(done)
    }

    /// Closes the stream with `end`.
    ///
    /// # Errors
    /// [`WriteError`] when a record cannot be encoded.
    pub fn end(&mut self, end: End) -> Result<(), WriteError> {
        let done = self.writer.as_mut().map_or(Ok(()), |w| w.end_with(end));
        self.keep(done)
    }
}

impl Case {
    /// Reads every line, notes it and forwards it. `complain` hears of each line that cannot be understood.
    ///
    /// # Errors
    /// [`WriteError`] when a record cannot be encoded.
    pub fn read(
        &mut self,
        lines: impl Iterator<Item = Result<Line, ReadError>>,
        out: &mut Outlet<'_>,
        complain: &mut dyn FnMut(&ReadError),
    ) -> Result<(), WriteError> {
        for line in lines {
            let torn = line.as_ref().is_ok_and(|line| !line.terminated);
            let understood = line.and_then(|line| line.parse().map(|parsed| (line, parsed)));
            match understood {
                Ok((line, parsed)) => {
                    self.note(&parsed);
                    out.forward(&line, &parsed)?;
                }
                Err(e) => {
                    complain(&e);
                    if torn {
                        self.torn = Some(e.to_string());
                    } else {
                        self.bad_lines.push(e.to_string());
                    }
                }
            }
        }
        Ok(())
    }
}
