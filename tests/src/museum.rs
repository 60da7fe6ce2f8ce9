//! The museum of faults: every `--fault` is run past every detector, and named by the one it stands for.
//!
//! A *sitting* is one way to run the engine and to listen to it: probes, a storm, a soak, two paths, guards. What is heard
//! is written down by *detector*, a column of the table: the finding of a probe or of the auditor, or the engine's own
//! last words. Black-box sittings leave the engine's checks out (`--unguarded`), so that what a fault does reaches the
//! replies; white-box sittings have them all, or leave them out where a guard is to see what they would have stopped.

mod exhibits;
mod sitting;

pub use exhibits::{EXHIBITS, Exhibit};
pub use sitting::{Heard, Hearing, Sitting};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A detector: its column, and what counts as its voice.
#[derive(Clone, Copy, Debug)]
pub struct Detector {
    /// heading of its column
    pub column: &'static str,
    /// it sees into the engine (`false`: from outside only); both where that makes no difference
    pub white: Option<bool>,
    /// names of findings
    findings: &'static [&'static str],
    /// pieces of an engine's last words, when it ended with exit code 2
    words: &'static [&'static str],
}

const fn by_finding(
    column: &'static str,
    white: Option<bool>,
    findings: &'static [&'static str],
) -> Detector {
    Detector { column, white, findings, words: &[] }
}

const fn by_words(column: &'static str, white: Option<bool>, words: &'static [&'static str]) -> Detector {
    Detector { column, white, findings: &[], words }
}

const INSIDE: Option<bool> = Some(true);
const OUTSIDE: Option<bool> = Some(false);

/// The columns of the table.
pub const DETECTORS: &[Detector] = &[
    by_finding("zero", INSIDE, &["state_not_zero_on_acquire"]),
    by_finding("owner", INSIDE, &["ownership_broken"]),
    by_finding("counter", INSIDE, &["counter_broken"]),
    by_finding("slot0", INSIDE, &["reserved_slot_written", "reserved_page_written"]),
    by_finding("recompute", INSIDE, &["state_not_reproduced"]),
    by_finding("rows", INSIDE, &["row_outside_step_written"]),
    by_finding("capture", INSIDE, &["capture_wrote_live_state"]),
    by_finding("poison", INSIDE, &["logits_not_finite"]),
    by_finding("nonfinite", INSIDE, &["nonfinite_value"]),
    by_finding(
        "trace",
        INSIDE,
        &[
            "trace_contradicts_reply",
            "trace_contradicts_pool",
            "trace_missing_reset",
            "trace_buffer_moved",
            "trace_path_unlogged",
        ],
    ),
    by_finding("end", None, &["pool_in_use_at_end", "pool_unbalanced"]),
    by_finding("aba", OUTSIDE, &["probe_aba"]),
    by_finding("boundary", OUTSIDE, &["probe_boundary"]),
    by_finding("canary", OUTSIDE, &["probe_canary"]),
    by_finding("codeword", OUTSIDE, &["probe_codeword"]),
    by_finding("hash", OUTSIDE, &["fingerprint_differs", "tokens_differ"]),
    by_finding("output", OUTSIDE, &["single_token_run", "lucky_garbage", "client_error"]),
    by_finding(
        "dispatch",
        None,
        &["dispatch_intent_outcome", "dispatch_unexpected", "dispatch_expected_absent"],
    ),
    by_words("cusum", OUTSIDE, &[]),
    by_finding("paths", OUTSIDE, &["path_without_effect"]),
    by_words("unanswered", OUTSIDE, &["requests unanswered"]),
];

/// The museum, with the tools it runs.
#[derive(Debug)]
pub struct Museum {
    /// where the tools are
    pub tools: PathBuf,
    /// the workspace's root
    pub root: PathBuf,
    /// where sittings leave their logs
    pub scratch: PathBuf,
}

/// What all sittings heard of one fault.
#[derive(Debug, Default)]
pub struct Row {
    /// the first time each detector spoke
    pub heard: BTreeMap<&'static str, Heard>,
    /// what is wrong with it: a detector that was silent or late, a tool in trouble
    pub trouble: Vec<String>,
}

/// Recycles of a slot within which the engine's own checks must speak.
const RECYCLES: u64 = 1;
/// Requests within which somebody outside must.
const REQUESTS: u64 = 500;

/// Runs jobs on as many threads as there are cores. Returns their results in the order of the jobs.
pub fn side_by_side<T: Sync, R: Send>(jobs: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((i, job)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, jobs.get(i)?)))
                {
                    let result = run(job);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

impl Museum {
    /// Runs a fault past its two named detectors, or past all of them.
    pub fn visit(&self, exhibit: &Exhibit, all: bool) -> Row {
        let mut row = Row::default();
        let named = [exhibit.white.0, exhibit.black.0];
        for sitting in if all { Sitting::ALL } else { &named } {
            let mut options = vec!["--fault", exhibit.fault];
            options.extend((!sitting.is_checked()).then_some("--unguarded"));
            options.extend(exhibit.options);
            match self.sit(exhibit.fault, *sitting, &options, 0) {
                Ok(hearing) if hearing.requests == 0 && hearing.heard.is_empty() => {
                    row.trouble
                        .push(format!("{sitting:?}: nothing ran: {}", hearing.others.join("; ").trim()));
                }
                Ok(hearing) => {
                    let of = |column| DETECTORS.iter().find(|d| d.column == column);
                    // who listens from outside hears something in the white sitting, too, but is judged by the others
                    let listening = |d: &Detector| d.white.is_none_or(|white| white == sitting.is_white());
                    for (column, heard) in
                        hearing.heard.into_iter().filter(|(c, _)| of(*c).is_some_and(listening))
                    {
                        row.heard.entry(column).or_insert(heard);
                    }
                }
                Err(e) => row.trouble.push(format!("{sitting:?}: {e:#}")),
            }
        }
        let late = |d: &str, heard: Option<&Heard>, white: bool| match heard {
            None => Some(format!("{d} said nothing")),
            Some(h) if white && h.recycles > RECYCLES => Some(format!(
                "{d} spoke after {} recycles of a slot, expected {RECYCLES} at most",
                h.recycles
            )),
            Some(h) if !white && h.requests > REQUESTS => {
                Some(format!("{d} spoke after {} requests, expected {REQUESTS} at most", h.requests))
            }
            _ => None,
        };
        for (detector, white) in [(exhibit.white.1, true), (exhibit.black.1, false)] {
            row.trouble.extend(late(detector, row.heard.get(detector), white));
        }
        row
    }

    /// A sound engine in the sitting that a seed chooses, with other options for other seeds. Returns what was heard all
    /// the same, and how many requests there were.
    ///
    /// # Errors
    /// When a tool cannot be run, or has trouble.
    pub fn alarms(&self, seed: u64) -> anyhow::Result<Hearing> {
        let sitting = Sitting::ALL[seed as usize % Sitting::ALL.len()];
        let mut options = Vec::new();
        let pick = |n: u64, words: &[&'static str]| words[(seed / n) as usize % words.len()];
        for word in [
            pick(1, &["", "--kv-cache-dtype bf16", "--page-size 8", "--max-num-seqs 3"]),
            pick(3, &["", "--pressure 2x", "--wo-split 2", "--storm cancel,preempt --storm-every 9"]),
            pick(7, &["--threads 1", "", "--ignore-eos", "--temperature 0.7"]),
            if sitting == Sitting::Recompute {
                "--guard recompute,slot0,rows/16,capture"
            } else {
                "--guard slot0,rows/16,capture"
            },
            "--poison --trace-nonfinite --trace requests",
        ] {
            options.extend(word.split_whitespace());
        }
        self.sit(&format!("sound-{seed}"), sitting, &options, seed)
    }
}
