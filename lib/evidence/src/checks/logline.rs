//! What is kept of a server's log: the few facts that checks and replays need, small enough for millions of lines.

use cute_records::Event;
use std::sync::Arc;

/// One recognised line.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// the log
    pub file: Arc<str>,
    /// its line, 1-based
    pub line: u64,
    /// when it was written, in seconds on the log's own axis
    pub at: Option<f64>,
    /// what it says
    pub what: What,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// engine statistics: requests running, share of the pool in use
    Reading {
        /// requests running
        running: u64,
        /// percent of the pool in use
        percent: f64,
    },
    /// a request that made the server generate, and that it answered
    Request,
    /// an error, a fallback, a death: the name of the pattern
    Trouble(String),
}

/// Words in the name of a pattern that a sound server's log never matches.
const TROUBLE: [&str; 11] = [
    "error",
    "fallback_",
    "fatal",
    "traceback",
    "died",
    "diverged",
    "failed",
    "corrupt",
    "exception",
    "out_of_memory",
    "assertion",
];
/// Patterns that hold such a word and are no trouble: settings, not events.
const SETTINGS: [&str; 1] = ["fallback_raise"];

impl LogLine {
    /// The facts of an event; `None` when it holds none that are needed.
    pub fn of(e: &Event, file: &Arc<str>) -> Option<LogLine> {
        let number = |key: &str| e.fields.get(key).and_then(serde_json::Value::as_f64);
        let what = match e.event.as_str() {
            "engine_stats" => What::Reading {
                running: number("running").unwrap_or(0.0) as u64,
                percent: number("kv_cache_usage_percent").unwrap_or(0.0),
            },
            "http_request" if generates(e) => What::Request,
            "http_request" => return None,
            name if SETTINGS.contains(&name) => return None,
            name if TROUBLE.iter().any(|w| name.contains(w)) => What::Trouble(name.to_owned()),
            name if text(e, "result") == "FAIL" => What::Trouble(name.to_owned()),
            _ => return None,
        };
        let at = e.source.timestamp.as_deref().and_then(seconds);
        Some(LogLine { file: file.clone(), line: e.source.line, at, what })
    }

    /// The name of the trouble it reports.
    pub fn trouble(&self) -> Option<&str> {
        match &self.what {
            What::Trouble(name) => Some(name),
            _ => None,
        }
    }
}

/// True for a request that made the server generate, and that it answered.
fn generates(e: &Event) -> bool {
    let status = e.fields.get("status").and_then(serde_json::Value::as_u64).unwrap_or(0);
    text(e, "method") == "POST" && text(e, "path").contains("completions") && (200..300).contains(&status)
}

/// A field that is a text.
fn text<'e>(e: &'e Event, key: &str) -> &'e str {
    e.fields.get(key).and_then(serde_json::Value::as_str).unwrap_or("")
}

/// Seconds of a log's `MM-DD hh:mm:ss` or `YYYY-MM-DDThh:mm:ss`, on an axis of its own: months count as 31 days.
fn seconds(stamp: &str) -> Option<f64> {
    let numbers: Vec<f64> = stamp
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .filter(|w| !w.is_empty())
        .map_while(|w| w.parse().ok())
        .collect();
    let n = match numbers.as_slice() {
        [year, rest @ ..] if *year > 999.0 => rest,
        all => all,
    };
    match n {
        [month, day, h, m, s, ..] => Some((((month * 31.0 + day) * 24.0 + h) * 60.0 + m) * 60.0 + s),
        _ => None,
    }
}
