//! Is the evidence whole? Streams without an end, runs and rows that are missing, rows that stand there twice.

use super::{Case, FindingExt, Leg, finding, missing, ranges};
use cute_records::{Completion, Finding, Severity};
use std::collections::{BTreeMap, BTreeSet};

/// Looks for gaps in a case.
pub fn check(case: &Case) -> Vec<Finding> {
    let mut out = broken(case);
    // Rows of result files were counted where they were read.
    let streamed = |l: &&Leg| l.completions.iter().any(|c| c.source.is_none());
    for leg in case.with_completions().filter(streamed) {
        out.extend(rows(leg));
    }
    out.extend(mixed(case, "model", "mixed_models", Severity::Error));
    out.extend(mixed(case, "prompts", "mixed_prompts", Severity::Warning));
    out
}

/// Producers whose replies name no leg are judged as one; they must have read the same files. Replies that name
/// their leg are arms, compared on purpose.
fn mixed(case: &Case, input: &str, check: &str, severity: Severity) -> Option<Finding> {
    let digests: BTreeSet<&str> = case
        .answered
        .iter()
        .filter_map(|at| case.runs.get(*at)?.digests.get(input))
        .map(String::as_str)
        .collect();
    let short = |d: &&str| d.chars().take(12).collect::<String>();
    let list: Vec<String> = digests.iter().map(short).collect();
    (list.len() > 1).then(|| {
        let message = format!(
            "replies of {} different {input} digests stand in one stream as one: {}",
            list.len(),
            list.join(", ")
        );
        finding(check, severity, message)
    })
}

/// What the stream itself says about being whole.
pub fn broken(case: &Case) -> Vec<Finding> {
    let cut = case.ledger.trouble().into_iter().map(|why| finding("stream_cut_off", Severity::Warning, why));
    let mut out: Vec<Finding> = cut.collect();
    if let Some(torn) = &case.torn {
        out.push(finding("stream_cut_off", Severity::Warning, torn.as_str()));
    }
    if case.unowned > 0 {
        let message = format!(
            "{} record(s) came outside every `run` … `end`: no producer vouches for them, and none can say how many there were",
            case.unowned
        );
        out.push(finding("stream_without_run", Severity::Warning, message).with("count", case.unowned));
    }
    if let Some(first) = case.bad_lines.first() {
        out.push(
            finding(
                "lines_unreadable",
                Severity::Warning,
                format!("{} line(s) could not be understood, first {first}", case.bad_lines.len()),
            )
            .with("count", case.bad_lines.len()),
        );
    }
    out
}

/// Runs that lack rows, and rows that stand there twice.
fn rows(leg: &Leg) -> Vec<Finding> {
    let mut by_run: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    for c in &leg.completions {
        *by_run.entry(c.run).or_default().entry(c.index).or_default() += 1;
    }
    let mut out = Vec::new();
    // What every graded run should hold is what any of them held; ungraded single requests set no measure.
    let rows_of = |c: &Completion| c.index.saturating_add(1);
    let size = leg.completions.iter().filter(|c| c.correct.is_some()).map(rows_of).max().unwrap_or(0);
    for (run, rows) in &by_run {
        let twice: Vec<u64> = rows.iter().filter(|(_, n)| **n > 1).map(|(i, _)| *i).collect();
        if !twice.is_empty() {
            let message =
                format!("{}: run {run}: index {} stands there more than once", leg.title(), ranges(twice));
            out.push(finding("duplicate_row", Severity::Warning, message).with("run", *run));
        }
        let highest = rows.keys().next_back().map_or(0, |i| i.saturating_add(1));
        let expect = if graded(leg, *run) { size } else { highest };
        let (count, which) = missing(rows.keys().copied(), expect);
        if count > 0 {
            let message =
                format!("{}: run {run}: {count} of {expect} rows are missing: index {which}", leg.title());
            out.push(finding("missing_rows", Severity::Warning, message).with("run", *run));
        }
    }
    let last = by_run.keys().next_back().copied().unwrap_or(0);
    let (count, which) = missing(by_run.keys().copied(), last);
    if count > 0 {
        let message = format!("{}: run {which} of {} is missing", leg.title(), last.saturating_add(1));
        out.push(finding("missing_run", Severity::Warning, message));
    }
    out
}

fn graded(leg: &Leg, run: u64) -> bool {
    leg.completions.iter().any(|c| c.run == run && c.correct.is_some())
}
