//! The numbers a case yields: a count with what it was counted over, or the reason why there is none.

use crate::checks::{Case, Leg, LogLine};
use crate::detect::Label;
use crate::stats::{cusum::Chart, homogeneity, homogeneity::Homogeneity, mcnemar};
use cute_records::Completion;
use std::collections::{BTreeMap, BTreeSet};

/// Replies of a case, all legs.
pub fn replies(case: &Case) -> impl Iterator<Item = (&Completion, &crate::detect::Labelled)> {
    case.legs.iter().flat_map(Leg::replies)
}

/// Replies with this label.
pub fn labelled(case: &Case, label: Label) -> u64 {
    replies(case).filter(|(_, l)| l.label == label).count() as u64
}

/// One run against the first: flips and p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// the run compared with
    pub base: u64,
    /// the run compared
    pub run: u64,
    /// what flipped
    pub flips: mcnemar::Flips,
    /// exact p
    pub p: f64,
    /// exact p, Holm-corrected over all comparisons of the leg
    pub holm: f64,
}

/// Every later run of a leg against its first.
pub fn flips(leg: &Leg) -> Vec<Compared> {
    let mut by_run: BTreeMap<u64, BTreeMap<u64, bool>> = BTreeMap::new();
    for c in &leg.completions {
        if let Some(correct) = c.correct {
            by_run.entry(c.run).or_default().insert(c.index, correct);
        }
    }
    let mut runs = by_run.iter();
    let Some((base, before)) = runs.next() else { return Vec::new() };
    let mut out: Vec<Compared> = runs
        .map(|(run, after)| {
            let flips = mcnemar::Flips::count(before.iter().filter_map(|(i, b)| Some((*b, *after.get(i)?))));
            Compared { base: *base, run: *run, flips, p: flips.p(), holm: 1.0 }
        })
        .filter(|c| c.flips.pairs() > 0)
        .collect();
    let corrected = mcnemar::holm(&out.iter().map(|c| c.p).collect::<Vec<_>>());
    for (c, holm) in out.iter_mut().zip(corrected) {
        c.holm = holm;
    }
    out
}

/// Every later leg's first run against the first leg's, by leg name.
pub fn leg_flips(case: &Case) -> Vec<(String, Compared)> {
    let first_run = |leg: &Leg| -> BTreeMap<u64, bool> {
        let graded = leg.completions.iter().filter_map(|c| Some((c, c.correct?)));
        let run = graded.clone().map(|(c, _)| c.run).min();
        graded.filter(|(c, _)| Some(c.run) == run).map(|(c, right)| (c.index, right)).collect()
    };
    let mut legs =
        case.with_completions().map(|l| (l, first_run(l))).filter(|(_, answers)| !answers.is_empty());
    let Some((_, before)) = legs.next() else { return Vec::new() };
    let mut out: Vec<(String, Compared)> = legs
        .map(|(leg, after)| {
            let flips = mcnemar::Flips::count(before.iter().filter_map(|(i, b)| Some((*b, *after.get(i)?))));
            (leg.title().to_owned(), Compared { base: 0, run: 0, flips, p: flips.p(), holm: 1.0 })
        })
        .filter(|(_, c)| c.flips.pairs() > 0)
        .collect();
    let corrected = mcnemar::holm(&out.iter().map(|(_, c)| c.p).collect::<Vec<_>>());
    for ((_, c), holm) in out.iter_mut().zip(corrected) {
        c.holm = holm;
    }
    out
}

/// Do the runs of a leg share one accuracy?
pub fn homogeneous(leg: &Leg) -> Option<Homogeneity> {
    let runs: Vec<(u64, u64)> = leg.scores().iter().map(|s| (s.correct, s.n)).collect();
    homogeneity::test(&runs)
}

/// A leg's CUSUM: the chart, and what it saw, with ordinals.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequential {
    /// the chart
    pub chart: Chart,
    /// where the tolerable rate came from
    pub baseline: String,
    /// ordinals of the graded replies, in order
    pub ordinals: Vec<u64>,
    /// misses, in order
    pub misses: Vec<bool>,
    /// the sum after each of them
    pub sums: Vec<u32>,
    /// ordinal of the first alarm
    pub alarm: Option<u64>,
    /// ordinal at which the sum that alarmed left zero
    pub rise: Option<u64>,
}

/// Graded replies a chart needs before it says anything.
pub const CUSUM_LEAST: usize = 20;

/// Runs the chart over the graded replies of a leg. The tolerable miss rate is `baseline` if given, else the first
/// run's own (one miss and one hit added, so that a perfect run leaves room); the intolerable one is 11 points or
/// three quarters of the way to nine misses in ten, whichever is less, above it.
pub fn sequential(leg: &Leg, baseline: Option<f64>, arl0: f64) -> Option<Sequential> {
    let graded: Vec<&Completion> = leg.completions.iter().filter(|c| c.correct.is_some()).collect();
    if graded.len() < CUSUM_LEAST {
        return None;
    }
    let (p0, said) = match baseline {
        Some(accuracy) => (1.0 - accuracy, format!("an accuracy of {accuracy} as given")),
        None => {
            let run = graded[0].run;
            let of_run: Vec<_> = graded.iter().filter(|c| c.run == run).collect();
            let wrong = of_run.iter().filter(|c| c.correct == Some(false)).count();
            let p0 = (wrong + 1) as f64 / (of_run.len() + 2) as f64;
            (p0, format!("run {}, {wrong} of {} missed", run + 1, of_run.len()))
        }
    };
    let p0 = p0.clamp(0.005, 0.8);
    let p1 = p0 + f64::min(0.11, 0.75 * (0.9 - p0));
    let chart = Chart::design(p0, p1, arl0)?;
    let misses: Vec<bool> = graded.iter().map(|c| c.correct == Some(false)).collect();
    let trace = chart.run(misses.iter().copied());
    let ordinal = |at: Option<usize>| at.map(|i| graded[i].ordinal);
    Some(Sequential {
        chart,
        baseline: said,
        ordinals: graded.iter().map(|c| c.ordinal).collect(),
        misses,
        alarm: ordinal(trace.alarm),
        rise: ordinal(trace.onset),
        sums: trace.sums,
    })
}

/// Log lines of all legs, recognised in any way.
pub fn log_lines(case: &Case) -> u64 {
    case.legs.iter().map(|l| l.log_lines).sum()
}

/// Log lines that a sound server does not write, and what each reports.
pub fn log_errors(case: &Case) -> Vec<(&LogLine, &str)> {
    case.legs.iter().flat_map(|l| &l.log).filter_map(|line| Some((line, line.trouble()?))).collect()
}

/// Distinct model digests that producers name.
pub fn model_digests(case: &Case) -> BTreeSet<&str> {
    case.runs.iter().filter_map(|r| r.digests.get("model")).map(String::as_str).collect()
}

/// The p-th quantile (nearest rank) of some values.
pub fn quantile(mut values: Vec<f64>, p: f64) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let rank = (p * (values.len() - 1) as f64).round() as usize;
    values.get(rank).copied()
}
