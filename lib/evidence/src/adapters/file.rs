//! One file: what it is, and what its reader makes of it.

use super::rows::{Notes, Part, Source};
use super::verdict::Stated;
use super::{Error, Kind, arms, audit, env, gsm8k, lm_eval, perq, sharegpt, sniff, verdict};
use cute_records::{Parsed, ReadError, Reader, Record};
use std::io::BufRead;
use std::path::Path;

/// What one file held.
pub(super) struct FileRead {
    pub kind: Kind,
    pub part: Option<Part>,
    pub records: Vec<Record>,
    pub notes: Notes,
    pub stated: Option<Stated>,
}

impl FileRead {
    fn new(kind: Kind) -> Self {
        FileRead { kind, part: None, records: Vec::new(), notes: Notes::default(), stated: None }
    }
}

/// Reads one file; `None` when nothing recognises it. A log is read only when `alone`.
pub(super) fn read_path(path: &Path, alone: bool) -> Result<Option<FileRead>, Error> {
    let mut kind = sniff::sniff(path)?;
    if kind.is_none() && alone && path.extension().is_some_and(|e| e == "txt") {
        kind = Some(Kind::Text);
    }
    let Some(kind) = kind else { return Ok(None) };
    let mut out = FileRead::new(kind);
    let name = path.display().to_string();
    let open = || std::fs::File::open(path).map_err(|error| Error::Io { file: name.clone(), error });
    match kind {
        Kind::Log if !alone => {}
        // logs and records may be larger than memory allows: they are streamed
        Kind::Log => log(&name, open()?, &mut out)?,
        Kind::Records => records(&name, std::io::BufReader::new(open()?), &mut out)?,
        Kind::Region => {
            out.records =
                crate::region::records(path).map_err(|e| Error::Bad { file: e.file, message: e.message })?;
        }
        _ => out.parse(&Source::open(path)?),
    }
    Ok(Some(out))
}

/// Reads one file of a known kind from memory.
pub(super) fn read_bytes(kind: Kind, name: &str, bytes: Vec<u8>) -> Result<FileRead, Error> {
    let mut out = FileRead::new(kind);
    match kind {
        Kind::Log => log(name, &bytes[..], &mut out)?,
        Kind::Records => records(name, &bytes[..], &mut out)?,
        Kind::Region => {
            let buffer = crate::region::parse(name, &bytes)
                .map_err(|e| Error::Bad { file: e.file, message: e.message })?;
            out.records = crate::region::analyse(&buffer, &crate::region::Layout::default()).records();
        }
        _ => out.parse(&Source::from_bytes(name, bytes)),
    }
    Ok(out)
}

impl FileRead {
    fn parse(&mut self, source: &Source) {
        let notes = &mut self.notes;
        match self.kind {
            Kind::Gsm8k => {
                let (part, records) = gsm8k::read(source, notes);
                (self.part, self.records) = (Some(part), records);
            }
            Kind::EvalLog => self.part = Some(gsm8k::read_log(source, notes)),
            Kind::PerQuestion => self.part = Some(perq::read(source, notes)),
            Kind::ShareGpt => self.part = Some(sharegpt::read(source, notes)),
            Kind::ShareGptTurns => self.part = Some(sharegpt::read_turns(source, notes)),
            Kind::Concurrent => self.part = Some(sharegpt::read_concurrent(source, notes)),
            Kind::Text => self.part = Some(sharegpt::read_text(source, notes)),
            Kind::LmEval => self.part = Some(lm_eval::read(source, notes)),
            Kind::TpotCsv => self.records = sharegpt::read_tpot(source, notes),
            Kind::DispatchAudit => self.records = audit::read(source, notes),
            Kind::Coherence => self.records = sharegpt::read_figures(source, "coherence", notes),
            Kind::Manifest => self.records = sharegpt::read_figures(source, "manifest", notes),
            Kind::Metrics => self.records = sharegpt::read_figures(source, "metrics", notes),
            Kind::Env => self.records = env::read(source, notes),
            Kind::Arms => self.records = arms::read(source, notes),
            Kind::Verdict => {
                let (records, stated) = verdict::read(source, notes);
                self.records = records;
                self.stated = Some(stated);
            }
            Kind::Log | Kind::Region | Kind::Records => {}
        }
    }
}

fn log(name: &str, reader: impl std::io::Read, out: &mut FileRead) -> Result<(), Error> {
    let bad = |e: crate::logs::Error| Error::Bad { file: name.to_owned(), message: e.to_string() };
    let packs = crate::logs::PackSet::auto().map_err(|e| bad(e.into()))?;
    let mut sink = |record: Record| -> Result<(), cute_records::WriteError> {
        match record {
            Record::Finding(f) => out.notes.0.push(f),
            other => out.records.push(other),
        }
        Ok(())
    };
    crate::logs::extract(name, reader, &packs, &mut sink).map_err(bad)?;
    Ok(())
}

fn records(name: &str, reader: impl BufRead, out: &mut FileRead) -> Result<(), Error> {
    let mut part = Part { file: name.to_owned(), ..Part::default() };
    for line in Reader::new(name, reader) {
        match line.and_then(|line| line.parse()) {
            Ok(Parsed::Known(record)) => match *record {
                Record::Completion(c) => part.rows.push(c),
                Record::Finding(f) => out.notes.0.push(f),
                other => out.records.push(other),
            },
            Ok(Parsed::Unknown(_)) => {}
            Err(ReadError::Io { file, error }) => return Err(Error::Io { file: file.to_string(), error }),
            Err(e) => out.notes.error("bad_row", name, e.to_string()),
        }
    }
    out.part = Some(part);
    Ok(())
}
