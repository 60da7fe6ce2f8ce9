//! `verdict.json` of every schema: a soak (`gate_2b_pass`, `gate_d2_<k>_pass`), a sweep arm, an ablation arm, and the
//! short form of a server that never came up. The verdict is evidence too: it becomes an event with all its fields,
//! and what contradicts itself in it becomes a finding.

use super::rows::{Notes, Row, Source};
use super::sharegpt::figures;
use cute_records::{Record, num};
use serde_json::{Value, json};

/// What a verdict states, for comparison with the results beside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stated {
    /// 1-based run, right answers, errors
    pub runs: Vec<(u64, Option<u64>, Option<u64>)>,
    pub n_runs: Option<u64>,
    pub correct: Option<u64>,
    pub errors: Option<u64>,
}

/// Reads a verdict.
pub(crate) fn read(source: &Source, notes: &mut Notes) -> (Vec<Record>, Stated) {
    let row = match Row::parse(source.document()) {
        Ok(row) => row,
        Err(message) => {
            notes.error("bad_field", &source.name, message);
            return Default::default();
        }
    };
    let mut number = |name: &str| {
        row.u64(name).unwrap_or_else(|message| {
            notes.error("bad_field", &source.name, message);
            None
        })
    };
    let mut stated = Stated {
        n_runs: number("n_runs"),
        correct: number("gsm8k_correct"),
        errors: number("gsm8k_errors"),
        ..Stated::default()
    };
    let floor = number("gsm8k_floor");
    let schema = schema(&row);
    let gate = row.0.keys().find(|k| k.starts_with("gate") && k.ends_with("_pass")).cloned();
    let gate = gate.or_else(|| row.0.contains_key("ok").then(|| "ok".to_owned()));
    let passed = gate.as_ref().and_then(|g| row.get(g)).and_then(Value::as_bool);
    let mut all_pass = true;
    for run in row.get("runs").and_then(Value::as_array).into_iter().flatten() {
        all_pass &= check_run(run, floor, &mut stated, source, notes);
    }
    if schema == "soak" || schema == "ablation" {
        check_soak(&row, &stated, gate.as_deref().zip(passed), all_pass, source, notes);
    } else if schema == "sweep" {
        check_sweep(&row, &stated, floor, passed, source, notes);
    }
    if schema == "not_ready" {
        let reason = row.get("reason").map_or("no reason given".to_owned(), Value::to_string);
        notes.error("no_rows", &source.name, format!("a verdict without results: {reason}"));
    }
    let mut fields: std::collections::BTreeMap<String, Value> = row.0.into_iter().collect();
    fields.insert("schema".to_owned(), schema.into());
    fields.insert("gate".to_owned(), json!(gate));
    fields.insert("gate_passed".to_owned(), json!(passed));
    (vec![figures(source, "recorded_verdict", fields)], stated)
}

fn schema(row: &Row) -> &'static str {
    let has = |name: &str| row.0.contains_key(name);
    if has("harness_validation") || has("ssm_sentinel") {
        "ablation"
    } else if has("gsm8k_correct") || has("dispatch_audit") {
        "sweep"
    } else if has("runs") {
        "soak"
    } else if has("reason") {
        "not_ready"
    } else {
        "other"
    }
}

fn check_run(
    run: &Value,
    floor: Option<u64>,
    stated: &mut Stated,
    source: &Source,
    notes: &mut Notes,
) -> bool {
    let number = |name: &str| run.get(name).and_then(num::whole);
    let Some(which) = number("run") else {
        notes.error("bad_field", &source.name, format!("a run without a number: {run}"));
        return false;
    };
    let (correct, errors) = (number("correct"), number("errors"));
    if stated.runs.iter().any(|(r, ..)| *r == which) {
        notes.error("duplicate_row", &source.name, format!("run {which} is stated twice"));
    }
    stated.runs.push((which, correct, errors));
    let (Some(correct), Some(errors)) = (correct, errors) else {
        let reason = run.get("reason").map_or("no result".to_owned(), Value::to_string);
        notes.error("missing_run", &source.name, format!("run {which}: {reason}"));
        return false;
    };
    let pass = floor.is_none_or(|f| correct >= f) && errors == 0;
    let said = run.get("pass").and_then(Value::as_bool);
    if said.is_some_and(|said| said != pass) {
        notes.error(
            "gate_contradicts_runs",
            &source.name,
            format!(
                "run {which} states pass {said:?} with {correct} correct, {errors} errors, floor {floor:?}"
            ),
        );
    }
    pass
}

fn check_soak(
    row: &Row,
    stated: &Stated,
    gate: Option<(&str, bool)>,
    all_pass: bool,
    source: &Source,
    notes: &mut Notes,
) {
    let found = stated.runs.len() as u64;
    if let Some(n) = stated.n_runs.filter(|n| *n != found) {
        notes.error("missing_run", &source.name, format!("states n_runs {n}, lists {found} run(s)"));
    }
    let Some((name, passed)) = gate else {
        notes.error("bad_field", &source.name, "no gate: expected a field gate…_pass with true or false");
        return;
    };
    if passed && found == 0 {
        notes.error("vacuous_gate", &source.name, format!("{name} is true over no run at all"));
    }
    let alive = row.get("container_alive_at_end").and_then(Value::as_bool).unwrap_or(true);
    let hits = row.get("docker_log_corruption_hits").and_then(Value::as_u64).unwrap_or(0);
    let expected = all_pass && alive && hits == 0;
    if passed != expected && found > 0 {
        notes.error(
            "gate_contradicts_runs",
            &source.name,
            format!("{name} is {passed}; its own fields (runs pass: {all_pass}, alive: {alive}, hits: {hits}) say {expected}"),
        );
    }
}

fn check_sweep(
    row: &Row,
    stated: &Stated,
    floor: Option<u64>,
    ok: Option<bool>,
    source: &Source,
    notes: &mut Notes,
) {
    if let (Some(correct), Some(errors), Some(floor), Some(ok)) = (stated.correct, stated.errors, floor, ok) {
        let pass = correct >= floor && errors == 0;
        if pass != ok {
            notes.error(
                "gate_contradicts_runs",
                &source.name,
                format!("ok is {ok} with {correct} correct, {errors} errors, floor {floor}"),
            );
        }
    }
    let empty = |name: &str| row.get(name).and_then(Value::as_str).is_some_and(str::is_empty);
    if row.get("dispatch_audit").and_then(Value::as_str) == Some("pass") && empty("expected_coop_layers") {
        notes.warning(
            "vacuous_gate",
            &source.name,
            "dispatch_audit pass with no layer expected: nothing was checked",
        );
    }
    if row.0.contains_key("beta_per_call_gate_ms") && row.get("beta_per_call_median_ms").is_none() {
        notes.warning(
            "vacuous_gate",
            &source.name,
            "beta_per_call_gate_ms is set and beta_per_call_median_ms is null: the latency gate was never evaluated",
        );
    }
}
