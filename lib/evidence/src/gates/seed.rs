//! The fields of the original scripts' verdict.json, for comparison with theirs.
//!
//! `gate_2b_pass` follows their rule (every run at least 45 right and no error, no suspicious word in the log,
//! container alive) where evidence is there, and is null where theirs would have passed on nothing.

use super::Judgment;
use super::eval::Reading;
use super::figures;
use super::server::read_server;
use crate::checks::Case;
use serde_json::{Value, json};

/// Their floor, for runs of 50.
const FLOOR: u64 = 45;

/// Their fields. Runs are 1-based, as theirs are.
pub fn compat(case: &Case, j: &Judgment) -> Value {
    let runs: Vec<Value> = j
        .verdict
        .runs
        .iter()
        .filter(|s| s.n > 0)
        .map(|s| {
            let pass = s.correct >= FLOOR && s.errors == 0;
            json!({"run": s.run + 1, "correct": s.correct, "errors": s.errors, "pass": pass})
        })
        .collect();
    let hits = corruption_hits(case);
    let alive = match read_server("server_alive", case) {
        Reading::Count { value, .. } => Some(value == 1),
        _ => None,
    };
    let all = runs.iter().all(|r| r["pass"] == json!(true));
    let gate = match (runs.is_empty(), hits, alive) {
        (false, Some(hits), Some(alive)) => json!(all && hits == 0 && alive),
        (false, _, _) if !all => json!(false),
        _ => Value::Null,
    };
    json!({
        "arm": case.with_completions().next().map(|l| l.title().to_owned()),
        "n_runs": runs.len(),
        "gsm8k_floor": FLOOR,
        "runs": runs,
        "container_alive_at_end": alive,
        "docker_log_corruption_hits": hits,
        "gate_2b_pass": gate,
    })
}

/// Lines in which their pattern `ERROR|FATAL|state.*corrupt` would have matched; null without a log.
fn corruption_hits(case: &Case) -> Option<u64> {
    let dispatch = case.dispatch().next().is_some();
    (figures::log_lines(case) > 0 || dispatch).then(|| figures::log_errors(case).len() as u64)
}
