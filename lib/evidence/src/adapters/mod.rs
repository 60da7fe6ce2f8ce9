//! Other people's result files, as they are, to `completion` records.
//!
//! [`read`] decides by content what a file is, and walks a directory: a soak with `run1` … `run5`, its verdict,
//! its environment file. Everything that is wrong with the evidence itself (missing runs, duplicated rows, counts that do not
//! add up) becomes a finding; nothing is averaged over.

mod arms;
mod audit;
mod env;
mod file;
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
mod walk;

pub use arms::{Arm, Rules, parse as parse_arms};
pub(crate) use walk::leg_name;

use cute_records::{Completion, Finding, Record};
use std::path::{Path, PathBuf};

/// Pack of the events that result files become.
pub(crate) const PACK: &str = "results";
/// Names of these events.
pub(crate) const FIGURES: [&str; 7] =
    ["arm", "coherence", "environment", "evaluation", "manifest", "metrics", "recorded_verdict"];

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
/// [`Evidence::logs`]. Directories below it that are no runs are legs of their own; each reply says its leg. A log
/// given by itself is read.
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
    alone(&named, file::read_path(path, true)?)
}

/// Reads a result file from memory; `name` is what its records call it, and settles what its content cannot.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(name: &str, bytes: Vec<u8>) -> Result<Evidence, Error> {
    let kind = sniff::kind(&bytes, name);
    alone(name, kind.map(|kind| file::read_bytes(kind, name, bytes)).transpose()?)
}

/// Reads a result file from memory as what the caller says it is.
///
/// # Errors
/// As [`read`].
pub fn read_as(kind: Kind, name: &str, bytes: Vec<u8>) -> Result<Evidence, Error> {
    alone(name, Some(file::read_bytes(kind, name, bytes)?))
}

fn alone(name: &str, read: Option<file::FileRead>) -> Result<Evidence, Error> {
    let Some(read) = read else {
        return Err(Error::Bad {
            file: name.to_owned(),
            message: "no result file that is known: expected gsm8k.json, perq.jsonl, dispatch_audit.json, \
                      sharegpt_outputs.jsonl, verdict.json, lm-eval samples, arms.csv, KEY=value lines, a .npy region \
                      buffer, a server's log or records"
                .to_owned(),
        });
    };
    let mut out = Evidence {
        records: read.records,
        findings: read.notes.0,
        sources: vec![(PathBuf::from(name), read.kind)],
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
