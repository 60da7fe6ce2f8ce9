//! One line a run, and below it what the order of requests says.

use super::Table;
use crate::checks::{Leg, ranges};
use crate::gates::{Judgment, figures, judge};
use crate::stats::power::{interval, p_value, percent};
use cute_records::RunScore;
use std::collections::{BTreeMap, BTreeSet};

/// Runs a table shows at most; of more, the first, the last and the worst.
const MOST: usize = 40;

/// What a run took and where it stands.
#[derive(Default)]
struct Span {
    seconds: f64,
    ordinals: Vec<u64>,
}

/// Score, interval, errors, degenerate outputs and time of every run.
pub fn table(leg: &Leg, j: &Judgment) -> Table {
    let heads = [
        ">run",
        ">correct",
        ">accuracy",
        "95 % Wilson",
        "95 % exact",
        ">errors",
        ">degenerate",
        ">wall s",
        "ordinals",
    ];
    let mut t = Table::new(format!("Runs of {}", leg.title()), &heads);
    let mut spans: BTreeMap<u64, Span> = BTreeMap::new();
    for c in &leg.completions {
        let span = spans.entry(c.run).or_default();
        span.seconds += c.wall_ms.unwrap_or(0.0) / 1e3;
        span.ordinals.push(c.ordinal);
    }
    let scores = judge::scores(leg);
    let shown = shown(&scores);
    for s in scores.iter().filter(|s| shown.contains(&s.run)) {
        t.row(row(s, &spans[&s.run]));
    }
    if shown.len() < scores.len() {
        t.note(format!(
            "{} of {} runs: the first, the last, and those with the lowest score.",
            shown.len(),
            scores.len()
        ));
    }
    for note in notes(leg, j) {
        t.note(note);
    }
    t
}

fn shown(scores: &[RunScore]) -> BTreeSet<u64> {
    if scores.len() <= MOST {
        return scores.iter().map(|s| s.run).collect();
    }
    let share =
        |s: &RunScore| if s.n > 0 { s.correct as f64 / s.n as f64 } else { 1.0 - s.degenerate as f64 };
    let mut worst: Vec<&RunScore> = scores.iter().collect();
    worst.sort_by(|a, b| share(a).total_cmp(&share(b)));
    let ends = scores.iter().take(MOST / 4).chain(scores.iter().rev().take(MOST / 4));
    ends.chain(worst.into_iter().take(MOST / 2)).map(|s| s.run).collect()
}

fn row(s: &RunScore, span: &Span) -> [String; 9] {
    let bounds = |i: Option<(f64, f64)>| i.map_or("-".into(), interval);
    let graded = s.n > 0;
    [
        (s.run + 1).to_string(),
        if graded { format!("{}/{}", s.correct, s.n) } else { format!("-/{}", span.ordinals.len()) },
        if graded { percent(s.correct as f64 / s.n as f64) } else { "-".into() },
        bounds(s.wilson),
        bounds(s.clopper_pearson),
        s.errors.to_string(),
        s.degenerate.to_string(),
        if span.seconds > 0.0 { format!("{:.1}", span.seconds) } else { "-".into() },
        ranges(span.ordinals.iter().copied()),
    ]
}

/// Onset and recovery, the CUSUM, and whether one accuracy explains all runs.
fn notes(leg: &Leg, j: &Judgment) -> Vec<String> {
    let mut out = Vec::new();
    let stretch = j.stretches.get(&leg.name);
    if let Some(s) = stretch {
        let recovery = match s.recovery {
            Some(r) => format!("recovery at ordinal {r}{}", place(leg, r)),
            None => "not recovered by the end".to_owned(),
        };
        out.push(format!("Onset at ordinal {}{}, {recovery} (by {}).", s.onset, place(leg, s.onset), s.by));
        if !s.further.is_empty() {
            let more: Vec<String> = s.further.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            out.push(format!("Further bad stretches: {}.", more.join(", ")));
        }
    }
    if let Some(s) = j.charts.get(&leg.name) {
        out.push(cusum(s, stretch.map(|s| s.onset)));
    }
    if let Some(h) = figures::homogeneous(leg) {
        let exact = h.exact_p.map(|p| format!(", exact p = {}", p_value(p))).unwrap_or_default();
        out.push(format!(
            "One accuracy for all runs? chi-squared {:.1} on {} degrees of freedom, p = {}{exact}.",
            h.chi2,
            h.df,
            p_value(h.p)
        ));
    }
    out
}

fn place(leg: &Leg, ordinal: u64) -> String {
    let found = leg.completions.iter().find(|c| c.ordinal == ordinal);
    found.map(|c| format!(" (run {}, Q{})", c.run + 1, c.index)).unwrap_or_default()
}

/// What the CUSUM saw, in one sentence.
fn cusum(s: &figures::Sequential, onset: Option<u64>) -> String {
    let setting = format!(
        "misses of {} tolerable (from {}), one false alarm in {:.0} requests",
        percent(s.chart.p0),
        s.baseline,
        s.chart.arl0
    );
    match (s.alarm, onset) {
        (Some(alarm), Some(onset)) if alarm >= onset => {
            format!(
                "CUSUM alarms at ordinal {alarm}, {} request(s) after onset ({setting}).",
                alarm - onset + 1
            )
        }
        (Some(alarm), _) => format!("CUSUM alarms at ordinal {alarm} ({setting})."),
        (None, _) => format!("CUSUM: no alarm ({setting})."),
    }
}
