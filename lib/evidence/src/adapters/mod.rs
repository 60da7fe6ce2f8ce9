//! Other people's result files, as they are, to `completion` records.
//!
//! [`read`] decides by content what a file is, and walks a directory: a soak with `run1` … `run5`, its verdict,
//! its environment file. Everything that is wrong with the evidence itself (missing runs, duplicated rows, counts that do not
//! add up) becomes a finding; nothing is averaged over.

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
/// # Errors
/// [`Error`] when nothing can be read from `path`; trouble with single rows is reported in `findings`.
pub fn read(path: &Path) -> Result<Evidence, Error> {
    Err(Error::Bad { file: path.display().to_string(), message: "not read yet".to_owned() })
}
