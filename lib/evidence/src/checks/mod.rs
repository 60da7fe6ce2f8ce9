//! The auditor's invariants: records in, findings out.
//!
//! A [`Case`] is everything a stream said, sorted by leg. Each check reads it and returns findings; none of
//! them judges. Whether findings are tolerable is a gate's business ([`crate::gates`]).
//!
//! | module | for |
//! |---|---|
//! | [`catalogue`] | every check by name |
//! | [`case`] | everything a stream said, leg by leg |
//! | [`pipe`] | reading and forwarding a stream; a closed pipe is no reason to stop thinking |
//! | [`logline`] | what is kept of a server's log |
//! | [`dispatch`] | expected layers on the expected path, by outcome |
//! | [`repeat`] | same prompt, same fingerprint |
//! | [`paths`] | different paths, different bits |
//! | [`output`] | one finding for every reply that is not healthy |
//! | [`server`] | trouble that a server logged |
//! | [`state`] | slots and pages: zero on acquire, one owner, epochs, balanced pools |
//! | [`chunks`] | streamed replies are their chunks |
//! | [`trace`] | how requests were served, against replies, pools and the log |
//! | [`stream`] | ends, missing rows, duplicated rows |

pub mod case;
pub mod catalogue;
pub mod chunks;
pub mod dispatch;
pub mod logline;
pub mod output;
pub mod paths;
pub mod pipe;
pub mod repeat;
pub mod server;
pub mod state;
pub mod stream;
pub mod trace;

pub use case::{Case, Leg};
pub use dispatch::{Expectations, Layers, Path};
pub use logline::{LogLine, What};

use cute_records::{Finding, Severity};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Checks whose findings say that evidence is missing: no verdict can rest on what is left.
pub const EVIDENCE_MISSING: &[&str] = &[
    "stream_cut_off",
    "stream_without_run",
    "lines_unreadable",
    "no_records",
    "no_dispatch_records",
    "no_completions",
    "missing_run",
    "missing_rows",
    "duplicate_row",
    "no_rows",
    "file_cut_off",
    "unreadable_file",
    "not_ready",
];

/// True for a finding that says evidence is missing, rather than that something is wrong.
pub fn is_gap(f: &Finding) -> bool {
    EVIDENCE_MISSING.contains(&f.check.as_str())
}

/// Builds a finding; the rest is filled in by [`FindingExt`].
pub fn finding(check: &str, severity: Severity, message: impl Into<String>) -> Finding {
    Finding {
        check: check.to_owned(),
        severity,
        message: message.into(),
        ordinal: None,
        layer: None,
        at: None,
        data: BTreeMap::new(),
    }
}

/// Fills in the optional parts of a finding, one a line.
pub trait FindingExt {
    /// the request it concerns
    fn ordinal(self, ordinal: u64) -> Self;
    /// the layer it concerns
    fn layer(self, layer: Option<u32>) -> Self;
    /// where the evidence stands
    fn at(self, at: Option<String>) -> Self;
    /// a piece of evidence
    fn with(self, key: &str, value: impl Into<Value>) -> Self;
}

impl FindingExt for Finding {
    fn ordinal(mut self, ordinal: u64) -> Self {
        self.ordinal = Some(ordinal);
        self
    }
    fn layer(mut self, layer: Option<u32>) -> Self {
        self.layer = layer;
        self
    }
    fn at(mut self, at: Option<String>) -> Self {
        self.at = at;
        self
    }
    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data.insert(key.to_owned(), value.into());
        self
    }
}

/// Everything the checks find in a case, in a fixed order.
pub fn all(case: &Case, expected: &Expectations) -> Vec<Finding> {
    let mut out = stream::check(case);
    out.extend(dispatch::check(case, expected));
    out.extend(server::check(case));
    out.extend(case.states.findings());
    out.extend(state::pools(&case.ledger));
    out.extend(case.chunks.findings());
    out.extend(trace::check(case));
    out.extend(repeat::check(case));
    out.extend(paths::check(case));
    out.extend(output::check(case));
    out
}

/// Ordinals as ranges: `162-213`, or `3, 7-9`.
pub fn ranges(ordinals: impl IntoIterator<Item = u64>) -> String {
    let mut out: Vec<RangeInclusive<u64>> = Vec::new();
    for n in ordinals {
        match out.last_mut() {
            Some(range) if range.end().checked_add(1) == Some(n) => *range = *range.start()..=n,
            _ => out.push(n..=n),
        }
    }
    in_words(&out)
}

fn in_words(ranges: &[RangeInclusive<u64>]) -> String {
    let word = |r: &RangeInclusive<u64>| match (r.start(), r.end()) {
        (a, b) if a == b => a.to_string(),
        (a, b) => format!("{a}-{b}"),
    };
    ranges.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// How many numbers below `end` are missing in an ascending list, and which. A list may say anything: what it lacks is
/// not counted one by one.
fn missing(list: impl IntoIterator<Item = u64>, end: u64) -> (u64, String) {
    let (mut gaps, mut next) = (Vec::new(), 0);
    for n in list.into_iter().take_while(|n| *n < end).chain([end]) {
        if n > next {
            gaps.push(next..=n - 1);
        }
        next = n.saturating_add(1);
    }
    (gaps.iter().map(|gap| gap.end() - gap.start() + 1).sum(), in_words(&gaps))
}

/// Those of `found` that the stream has not brought already. Each finding that came in answers for one of ours: two
/// producers with the same trouble are two troubles, one producer audited twice is one.
pub fn unknown(case: &Case, found: &[Finding]) -> Vec<Finding> {
    fn key(f: &Finding) -> (&str, Option<u64>, Option<u32>, &str, Option<&str>) {
        (&f.check, f.ordinal, f.layer, &f.message, f.data.get("leg").and_then(Value::as_str))
    }
    let mut known: BTreeMap<_, usize> = BTreeMap::new();
    for f in &case.findings {
        *known.entry(key(f)).or_default() += 1;
    }
    let mut out = Vec::new();
    for f in found {
        match known.get_mut(&key(f)).filter(|n| **n > 0) {
            Some(n) => *n -= 1,
            None => out.push(f.clone()),
        }
    }
    out
}
