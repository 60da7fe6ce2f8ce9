//! The tables of a verdict: gates, runs, misses, flips, dispatch, findings, hypotheses.

use super::table::cut;
use super::{Table, runs};
use crate::checks::{Case, Leg, dispatch, ranges};
use crate::detect::Label;
use crate::gates::Judgment;
use crate::stats::power::p_value;
use cute_records::{Finding, Outcome, Severity};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A word for an outcome.
pub fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::Inconclusive => "inconclusive",
    }
}

/// Every table of a judgment, in reading order.
pub fn all(case: &Case, j: &Judgment) -> Vec<Table> {
    let mut out = Vec::new();
    for leg in case.with_completions() {
        out.push(runs::table(leg, j));
        out.extend(misses(leg, Rows::Folded));
        out.extend(flips(leg, j));
    }
    out.extend(mechanisms(case));
    out.extend(dispatch_table(case));
    out.extend(findings(case));
    out.push(gates(j));
    out.retain(|t| !t.rows.is_empty() || !t.notes.is_empty());
    out
}

/// The gates and what came of them.
pub fn gates(j: &Judgment) -> Table {
    let mut t = Table::new(format!("Verdict: {}", word(j.verdict.outcome)), &["gate", "outcome", "because"]);
    for g in &j.verdict.gates {
        t.row([g.gate.as_str(), word(g.outcome), &g.reason]);
    }
    if let Some(power) = &j.power {
        t.note(format!("Power: {power}."));
    }
    t
}

/// How much of a long table to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// every row
    All,
    /// questions missed by nothing but a collapse become one line, and long tables end early
    Folded,
}

/// Rows a folded table shows at most.
const MOST_ROWS: usize = 40;
/// Fewer collapsed questions than this are not worth folding.
const FOLD: usize = 6;

/// Questions that any run missed, against the answers given.
pub fn misses(leg: &Leg, show: Rows) -> Option<Table> {
    let runs = leg.runs();
    if runs.len() > 12 {
        return None;
    }
    let mut rows: BTreeMap<u64, BTreeMap<u64, (String, Label)>> = BTreeMap::new();
    let mut golds: BTreeMap<u64, &str> = BTreeMap::new();
    let mut missed = BTreeSet::new();
    for (c, l) in leg.replies() {
        if c.correct.is_none() && l.label != Label::ClientError {
            continue;
        }
        if c.correct != Some(true) {
            missed.insert(c.index);
        }
        if let Some(gold) = &c.gold {
            golds.insert(c.index, gold);
        }
        let answer = c.extracted.as_deref().unwrap_or("");
        let cell = match (c.correct, l.label) {
            (_, Label::ClientError) => "error".to_owned(),
            (Some(true), Label::LuckyGarbage) => format!("{answer} lucky"),
            (Some(true), _) => "·".to_owned(),
            (_, Label::SingleTokenRun) => format!("{} !", if answer.is_empty() { "-" } else { answer }),
            (_, Label::NgramLoop) => format!("{answer} loop"),
            (_, Label::CutOff) => format!("{answer} cut"),
            (_, Label::Empty) => "empty".to_owned(),
            _ if answer.is_empty() => "-".to_owned(),
            _ => answer.to_owned(),
        };
        rows.entry(c.index).or_default().insert(c.run, (cell, l.label));
    }
    rows.retain(|index, _| missed.contains(index));
    if rows.is_empty() {
        return None;
    }
    let names: Vec<String> = runs.iter().map(|r| format!("run {}", r + 1)).collect();
    let mut heads: Vec<&str> = vec![">Q", ">gold"];
    heads.extend(names.iter().map(String::as_str));
    heads.push("read as");
    let mut t =
        Table::new(format!("Questions missed in {} (0-based; · is right, ! collapsed)", leg.title()), &heads);
    let only_collapsed = |cells: &BTreeMap<u64, (String, Label)>| {
        cells
            .values()
            .all(|(cell, l)| cell == "·" || matches!(l, Label::SingleTokenRun | Label::LuckyGarbage))
    };
    let folded: Vec<u64> = rows.iter().filter(|(_, cells)| only_collapsed(cells)).map(|(i, _)| *i).collect();
    let folded = if show == Rows::Folded && folded.len() >= FOLD { folded } else { Vec::new() };
    rows.retain(|index, _| !folded.contains(index));
    let most = if show == Rows::Folded { MOST_ROWS } else { usize::MAX };
    let total = rows.len();
    for (index, cells) in rows.into_iter().take(most) {
        let mut row = vec![format!("Q{index}"), cut(golds.get(&index).unwrap_or(&"?"), 10)];
        row.extend(runs.iter().map(|r| cells.get(r).map_or("missing".into(), |(c, _)| cut(c, 12))));
        let mut kinds: Vec<Label> =
            cells.values().map(|(_, l)| *l).filter(|l| *l != Label::Healthy).collect();
        kinds.sort_unstable();
        kinds.dedup();
        row.push(kinds.iter().map(|l| l.name()).collect::<Vec<_>>().join(", "));
        t.row(row);
    }
    if !folded.is_empty() {
        t.note(format!(
            "{} questions were missed by collapsed outputs only: Q{}.",
            folded.len(),
            ranges(folded)
        ));
    }
    if total > most {
        t.note(format!(
            "{} more questions were missed; the report and the records hold them all.",
            total - most
        ));
    }
    Some(t)
}

/// Each run against the first.
pub fn flips(leg: &Leg, j: &Judgment) -> Option<Table> {
    let flips = j.flips.get(&leg.name).filter(|f| !f.is_empty())?;
    let heads = [">run", ">against", ">both right", ">lost", ">gained", ">both wrong", ">exact p", ">Holm p"];
    let mut t = Table::new(format!("Flips in {} (exact McNemar)", leg.title()), &heads);
    // Of many runs those that differ most.
    let mut shown: Vec<_> = flips.iter().collect();
    shown.sort_by(|a, b| a.p.total_cmp(&b.p));
    shown.truncate(MOST_ROWS);
    shown.sort_by_key(|c| c.run);
    if shown.len() < flips.len() {
        t.note(format!("{} of {} runs: those that differ most.", shown.len(), flips.len()));
    }
    for c in shown {
        let f = c.flips;
        t.row([
            (c.run + 1).to_string(),
            (c.base + 1).to_string(),
            f.both_right.to_string(),
            f.lost.to_string(),
            f.gained.to_string(),
            f.both_wrong.to_string(),
            p_value(c.p),
            p_value(c.holm),
        ]);
    }
    Some(t)
}

/// Layers against the paths they took in decode steps.
pub fn dispatch_table(case: &Case) -> Option<Table> {
    let lines: Vec<_> = case.dispatch().filter(|d| d.is_decode_only).collect();
    if lines.is_empty() {
        return None;
    }
    let layers = dispatch::by_layer(lines.iter().copied());
    let heads =
        [">layer", ">coop", ">lite", ">paged", ">outcome differs", ">intent only", "batches", "reasons"];
    let mut t = Table::new("Dispatch of decode steps, lines by layer and path", &heads);
    for (layer, seen) in layers {
        let count = |p| seen.paths.get(&p).map_or("·".to_owned(), |(n, _): &(u64, String)| n.to_string());
        let batches: Vec<String> = seen.num_seqs.iter().map(u64::to_string).collect();
        let reasons: Vec<String> = seen.reasons.iter().map(|(r, n)| format!("{r} ({n})")).collect();
        t.row([
            layer.map_or("?".to_owned(), |l| l.to_string()),
            count(dispatch::Path::Coop),
            count(dispatch::Path::Lite),
            count(dispatch::Path::Paged),
            seen.differ.to_string(),
            seen.intent_only.to_string(),
            batches.join(","),
            reasons.join(", "),
        ]);
    }
    Some(t)
}

/// Findings, gathered by check where one check has many.
pub fn findings(case: &Case) -> Option<Table> {
    let mut by_check: BTreeMap<(std::cmp::Reverse<Severity>, &str), Vec<&Finding>> = BTreeMap::new();
    for f in &case.findings {
        by_check.entry((std::cmp::Reverse(f.severity), f.check.as_str())).or_default().push(f);
    }
    if by_check.is_empty() {
        return None;
    }
    let mut t = Table::new("Findings", &["severity", ">count", "check", "first of them"]);
    for ((severity, check), found) in by_check {
        let severity = severity_word(severity.0);
        t.row([severity.to_owned(), found.len().to_string(), check.to_owned(), found[0].message.clone()]);
    }
    Some(t)
}

/// A word for a severity.
pub fn severity_word(s: Severity) -> &'static str {
    match s {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    }
}

/// The hypotheses a mechanism finding weighed.
pub fn mechanisms(case: &Case) -> Vec<Table> {
    case.findings.iter().filter(|f| f.check == "mechanism").filter_map(hypotheses).collect()
}

/// The hypotheses that one mechanism finding weighed.
pub fn hypotheses(f: &Finding) -> Option<Table> {
    let list = f.data.get("hypotheses")?.as_array()?;
    let leg = f.data.get("leg").and_then(Value::as_str).map(|l| format!(" of {l}")).unwrap_or_default();
    let mut t = Table::new(
        format!("Hypotheses against the labels{leg}"),
        &["hypothesis", ">explains", ">missed", ">false", "predicts bad", "says"],
    );
    for h in list {
        let text = |key: &str| h.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let number = |key: &str| h.get(key).and_then(Value::as_u64).map_or("-".to_owned(), |n| n.to_string());
        let labels = f.data.get("labels").and_then(Value::as_u64).unwrap_or(0);
        t.row([
            text("id"),
            format!("{} of {labels}", number("explained")),
            number("missed"),
            number("false_alarms"),
            cut(&text("predicted"), 24),
            text("says"),
        ]);
    }
    t.note(f.message.clone());
    Some(t)
}

/// Knobs by leg.
pub fn comparison(c: &crate::provenance::Comparison) -> Table {
    let heads: Vec<&str> = c.columns.iter().map(String::as_str).collect();
    let mut t = Table::new("What differs between the legs", &heads);
    for row in &c.rows {
        t.row(row.clone());
    }
    t
}
