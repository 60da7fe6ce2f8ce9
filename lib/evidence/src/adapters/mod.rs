//! Other people's result files, as they are, to `completion` records.
//!
//! [`read`] decides by content what a file is, and walks a directory: a soak with `run1` … `run5`, its verdict,
//! its environment file. Everything that is wrong with the evidence itself (missing runs, duplicated rows, counts that do not
//! add up) becomes a finding; nothing is averaged over.

mod arms;
mod audit;
mod env;
mod gsm8k;
mod json;
mod leg;
mod lines;
mod lm_eval;
mod perq;
mod rows;
mod sharegpt;
mod sniff;
mod verdict;

pub use arms::{Arm, Rules, parse as parse_arms};
pub(crate) use leg::leg_name;

use cute_records::{Completion, Finding, Record};
use std::path::{Path, PathBuf};

/// What one file or directory holds.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// replies, by `ordinal`
    pub completions: Vec<Completion>,
    /// everything else as records: `dispatch`, `event`, `timing`
    pub records: Vec<Record>,
    /// what is wrong with the evidence
    pub findings: Vec<Finding>,
    /// text logs found in a directory and left unread, in name order; a log given by itself is read
    pub logs: Vec<PathBuf>,
    /// what was recognised: file and kind, in reading order
    pub sources: Vec<(PathBuf, Kind)>,
    /// files of a directory that nothing recognises
    pub skipped: Vec<PathBuf>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// `gsm8k.json`: one run of graded questions
    Gsm8k,
    /// `perq.jsonl`: one line a question, 1-based
    PerQuestion,
    /// `dispatch_audit.json`
    DispatchAudit,
    /// `sharegpt_outputs.jsonl`
    ShareGpt,
    /// `sharegpt.json`
    ShareGptTurns,
    /// the evaluation's own log: `[13/50] WRONG (gold=36 pred=1) 211.6s`
    EvalLog,
    /// `*_tpot.csv`: latency per request
    TpotCsv,
    /// a generated text by itself (`longdecode_output.txt`)
    Text,
    /// `longdecode_coherence.json`
    Coherence,
    /// `concurrent/summary.json`
    Concurrent,
    /// `verdict.json` of a soak, a sweep arm or an ablation arm
    Verdict,
    /// lm-eval `--log_samples`
    LmEval,
    /// `runner_manifest.json`, `comparison.json`
    Manifest,
    /// `metrics_*.json`
    Metrics,
    /// `KEY=value` lines
    Env,
    /// `arms.csv`
    Arms,
    /// region-timing buffer (`.npy`)
    Region,
    /// a server's text log
    Log,
    /// records of this project
    Records,
}

/// Why a path could not be read at all; a bad row inside a file is a finding instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the system refused
    #[error("{file}: {error}")]
    Io {
        /// the file
        file: String,
        /// what the system said
        error: std::io::Error,
    },
    /// no reader recognises it, or it is not what it claims to be
    #[error("{file}: {message}")]
    Bad {
        /// the file, with `:line` where there is one
        file: String,
        /// the offending value and what was expected
        message: String,
    },
}

/// Reads a result file or a directory of them.
///
/// A directory is one leg: its runs follow one another under one `ordinal`, and text logs in it are only named in
/// [`Evidence::logs`]. Directories below it that are no runs are legs of their own; each reply says its leg. A log,
/// a record file or a region buffer given by itself is read.
///
/// # Errors
/// [`Error`] when nothing can be read from `path`; trouble with single rows is reported in `findings`.
pub fn read(path: &Path) -> Result<Evidence, Error> {
    let named = path.display().to_string();
    let meta = std::fs::metadata(path).map_err(|error| Error::Io { file: named.clone(), error })?;
    if meta.is_dir() {
        let evidence = leg::read(path)?;
        if evidence.sources.is_empty() {
            return Err(Error::Bad { file: named, message: "holds no result file that is known".to_owned() });
        }
        return Ok(evidence);
    }
    let Some(read) = read_file(path, true)? else {
        return Err(Error::Bad {
            file: named,
            message: "no result file that is known: expected gsm8k.json, perq.jsonl, dispatch_audit.json, \
                      sharegpt_outputs.jsonl, verdict.json, lm-eval samples, arms.csv, KEY=value lines, a .npy region \
                      buffer, a server's log or records"
                .to_owned(),
        });
    };
    let mut out = Evidence {
        records: read.records,
        findings: read.notes.0,
        sources: vec![(path.to_owned(), read.kind)],
        ..Evidence::default()
    };
    if let Some(part) = read.part {
        let len = part.len();
        let leg = part.label.clone();
        out.completions.extend(part.rows.into_iter().map(|mut row| {
            if read.kind != Kind::Records {
                row.ordinal = row.run.saturating_mul(len).saturating_add(row.index);
            }
            row.leg = row.leg.or_else(|| leg.clone());
            row
        }));
    }
    Ok(out)
}

/// What one file held.
pub(crate) struct FileRead {
    kind: Kind,
    part: Option<rows::Part>,
    records: Vec<Record>,
    notes: rows::Notes,
    stated: Option<verdict::Stated>,
}

/// Reads one file; `None` when nothing recognises it. Logs, records and buffers are read only when `alone`.
pub(crate) fn read_file(path: &Path, alone: bool) -> Result<Option<FileRead>, Error> {
    let mut kind = sniff::sniff(path)?;
    if kind.is_none() && alone && path.extension().is_some_and(|e| e == "txt") {
        kind = Some(Kind::Text);
    }
    let Some(kind) = kind else { return Ok(None) };
    let mut out =
        FileRead { kind, part: None, records: Vec::new(), notes: rows::Notes::default(), stated: None };
    let file = || path.display().to_string();
    match kind {
        Kind::Log if !alone => return Ok(Some(out)),
        Kind::Log => {
            let (records, _) =
                crate::logs::read(path).map_err(|e| Error::Bad { file: file(), message: e.to_string() })?;
            out.records = records;
            return Ok(Some(out));
        }
        Kind::Region => {
            out.records =
                crate::region::records(path).map_err(|e| Error::Bad { file: e.file, message: e.message })?;
            return Ok(Some(out));
        }
        Kind::Records => {
            if alone {
                read_records(path, &mut out)?;
            }
            return Ok(Some(out));
        }
        _ => {}
    }
    let source = rows::Source::open(path)?;
    let (source, notes) = (&source, &mut out.notes);
    match kind {
        Kind::Gsm8k => {
            let (part, records) = gsm8k::read(source, notes);
            (out.part, out.records) = (Some(part), records);
        }
        Kind::EvalLog => out.part = Some(gsm8k::read_log(source, notes)),
        Kind::PerQuestion => out.part = Some(perq::read(source, notes)),
        Kind::ShareGpt => out.part = Some(sharegpt::read(source, notes)),
        Kind::ShareGptTurns => out.part = Some(sharegpt::read_turns(source, notes)),
        Kind::Concurrent => out.part = Some(sharegpt::read_concurrent(source, path, notes)),
        Kind::Text => out.part = Some(sharegpt::read_text(source, notes)),
        Kind::LmEval => out.part = Some(lm_eval::read(source, notes)),
        Kind::TpotCsv => out.records = sharegpt::read_tpot(source, notes),
        Kind::DispatchAudit => out.records = audit::read(source, notes),
        Kind::Coherence => out.records = sharegpt::read_figures(source, "coherence", notes),
        Kind::Manifest => out.records = sharegpt::read_figures(source, "manifest", notes),
        Kind::Metrics => out.records = sharegpt::read_figures(source, "metrics", notes),
        Kind::Env => out.records = env::read(source, notes),
        Kind::Arms => out.records = arms::read(source, notes),
        Kind::Verdict => {
            let (records, stated) = verdict::read(source, notes);
            out.records = records;
            out.stated = Some(stated);
        }
        Kind::Log | Kind::Region | Kind::Records => {}
    }
    Ok(Some(out))
}

fn read_records(path: &Path, out: &mut FileRead) -> Result<(), Error> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| Error::Io { file: name.clone(), error })?;
    let mut part = rows::Part { file: name.clone(), ..rows::Part::default() };
    for line in cute_records::Reader::new(&name, std::io::BufReader::new(file)) {
        let parsed = line.and_then(|line| line.parse().map(|p| (line, p)));
        match parsed {
            Ok((_, cute_records::Parsed::Known(record))) => match *record {
                Record::Completion(c) => part.rows.push(c),
                Record::Finding(f) => out.notes.0.push(f),
                other => out.records.push(other),
            },
            Ok((_, cute_records::Parsed::Unknown(_))) => {}
            Err(cute_records::ReadError::Io { file, error }) => {
                return Err(Error::Io { file: file.to_string(), error });
            }
            Err(e) => out.notes.error("bad_row", &name, e.to_string()),
        }
    }
    out.part = Some(part);
    Ok(())
}
