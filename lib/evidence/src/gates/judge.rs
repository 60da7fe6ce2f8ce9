//! Gates against a case: the verdict record.

use super::eval::evaluate;
use super::figures::{self, Compared, Sequential};
use super::{Ask, Subject, Threshold, default_gates};
use crate::checks::{Case, EVIDENCE_MISSING, Leg};
use crate::detect::Label;
use crate::stats::{changepoint, intervals, power::Power};
use cute_records::{Finding, Gate, Outcome, RunScore, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What was asked of the judge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// the gates; empty for the default ones
    pub gates: Vec<Ask>,
    /// runs that must be there
    pub runs: Option<u64>,
    /// accuracy of a sound system, for the CUSUM and the power; the first run's own when absent
    pub baseline: Option<f64>,
    /// mean requests between false alarms of the CUSUM
    pub arl0: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { gates: Vec::new(), runs: None, baseline: None, arl0: 10_000.0 }
    }
}

/// The verdict and the figures behind it.
#[derive(Clone, Debug)]
pub struct Judgment {
    /// the record
    pub verdict: Verdict,
    /// the bad stretch of each leg that has one, by leg name
    pub stretches: BTreeMap<String, Stretch>,
    /// CUSUM of each leg that has graded replies, by leg name
    pub charts: BTreeMap<String, Sequential>,
    /// runs of each leg against its first, by leg name
    pub flips: BTreeMap<String, Vec<Compared>>,
    /// what the accuracy gate can see
    pub power: Option<String>,
}

/// A bad stretch of requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// first bad ordinal
    pub onset: u64,
    /// last bad ordinal before recovery; none without recovery
    pub last: Option<u64>,
    /// first good ordinal after it; none when nothing shows a recovery by the end
    pub recovery: Option<u64>,
    /// further bad stretches, as (first, last) ordinals
    pub further: Vec<(u64, u64)>,
    /// how it was found: `degenerate output` or `accuracy`
    pub by: &'static str,
}

/// Judges a case.
pub fn judge(case: &Case, settings: &Settings) -> Judgment {
    let defaults = default_gates();
    let asked: &[Ask] = if settings.gates.is_empty() { &defaults } else { &settings.gates };
    let mut gates: Vec<Gate> = upstream(case);
    gates.extend(missing(case, settings));
    gates.extend(asked.iter().map(|ask| evaluate(ask, case, settings)));
    let outcome = overall(case, &gates);

    let mut charts = BTreeMap::new();
    let mut stretches = BTreeMap::new();
    let mut flips = BTreeMap::new();
    for leg in case.with_completions() {
        if let Some(s) = figures::sequential(leg, settings.baseline, settings.arl0) {
            charts.insert(leg.name.clone(), s);
        }
        if let Some(s) = stretch(leg, charts.get(&leg.name)) {
            stretches.insert(leg.name.clone(), s);
        }
        flips.insert(leg.name.clone(), figures::flips(leg));
    }
    let primary = case
        .with_completions()
        .find(|l| stretches.contains_key(&l.name))
        .or_else(|| case.with_completions().next());
    let power = primary.and_then(|leg| power(asked, leg, settings));
    let mut verdict = base(case, gates, outcome);
    if let Some(leg) = primary {
        verdict.onset_ordinal = stretches.get(&leg.name).map(|s| s.onset);
        verdict.recovery_ordinal = stretches.get(&leg.name).and_then(|s| s.recovery);
        verdict.pool_blocks = leg.pool().and_then(|p| p.num_blocks);
        mechanism(&mut verdict, of_leg(case, leg));
    }
    verdict.explained = explained(case);
    details(&mut verdict, case, &charts, &stretches, &flips, power.as_deref());
    Judgment { verdict, stretches, charts, flips, power }
}

/// Verdicts that the stream brought: what was judged once cannot be judged better by asking less.
fn upstream(case: &Case) -> Vec<Gate> {
    let worse = case.verdicts.iter().filter(|v| v.outcome != Outcome::Pass);
    let why = |v: &Verdict| {
        let of = v.gates.iter().filter(|g| g.outcome == v.outcome);
        of.map(|g| format!("{}: {}", g.gate, g.reason)).collect::<Vec<_>>().join("; ")
    };
    let word = |o| if o == Outcome::Fail { "failed" } else { "was inconclusive" };
    worse
        .map(|v| Gate {
            gate: "upstream verdict".to_owned(),
            outcome: v.outcome,
            reason: format!("a verdict upstream {}: {}", word(v.outcome), why(v)),
        })
        .collect()
}

/// What is missing, as gates nobody asked for and none can pass.
fn missing(case: &Case, settings: &Settings) -> Vec<Gate> {
    let gate =
        |gate: &str, reason: String| Gate { gate: gate.to_owned(), outcome: Outcome::Inconclusive, reason };
    let mut out = Vec::new();
    for check in EVIDENCE_MISSING {
        let found: Vec<&Finding> = case.findings.iter().filter(|f| f.check == *check).collect();
        if let Some(first) = found.first() {
            let more =
                if found.len() > 1 { format!(" (and {} more)", found.len() - 1) } else { String::new() };
            out.push(gate(&format!("evidence: {check}"), format!("{}{more}", first.message)));
        }
    }
    if let Some(asked) = settings.runs {
        for leg in case.with_completions() {
            let there = leg.runs().len() as u64;
            if there < asked {
                let reason = format!("{}: {there} run(s) are there, {asked} were asked for", leg.title());
                out.push(gate("evidence: runs", reason));
            }
        }
    }
    out
}

/// What failed upstream stays failed. A stream that was cut off proves nothing; else one failure fails, and one gap
/// leaves it open.
fn overall(case: &Case, gates: &[Gate]) -> Outcome {
    let any = |o| gates.iter().any(|g| g.outcome == o);
    let cut = case.findings.iter().any(|f| f.check == "stream_cut_off" || f.check == "lines_unreadable");
    if case.verdicts.iter().any(|v| v.outcome == Outcome::Fail) {
        Outcome::Fail
    } else if cut || gates.is_empty() {
        Outcome::Inconclusive
    } else if any(Outcome::Fail) {
        Outcome::Fail
    } else if any(Outcome::Inconclusive) {
        Outcome::Inconclusive
    } else {
        Outcome::Pass
    }
}

fn base(case: &Case, gates: Vec<Gate>, outcome: Outcome) -> Verdict {
    let replies = || figures::replies(case);
    let labels =
        replies().filter(|(c, _)| c.text.is_some() || c.text_tail.is_some() || c.completion_tokens.is_some());
    Verdict {
        outcome,
        gates,
        runs: case.with_completions().flat_map(scores).collect(),
        onset_ordinal: None,
        recovery_ordinal: None,
        degenerate: replies().filter(|(_, l)| l.degenerate()).count() as u64,
        labels: labels.count() as u64,
        explained: None,
        mechanism: None,
        first_bad_block: None,
        pool_blocks: None,
        findings: case.errors().count() as u64,
        details: BTreeMap::new(),
    }
}

/// Scores with their intervals.
pub fn scores(leg: &Leg) -> Vec<RunScore> {
    let mut out = leg.scores();
    for s in &mut out {
        s.wilson = intervals::wilson(s.correct, s.n, 0.95);
        s.clopper_pearson = intervals::clopper_pearson(s.correct, s.n, 0.95);
    }
    out
}

/// The mechanism finding of a leg; one that names no leg belongs to all.
pub fn of_leg<'a>(case: &'a Case, leg: &Leg) -> Option<&'a Finding> {
    let of = |f: &&Finding| match f.data.get("leg").and_then(Value::as_str) {
        Some(name) => name == leg.name,
        None => true,
    };
    case.findings.iter().filter(|f| f.check == "mechanism").find(of)
}

/// Labels explained in all legs, when any leg has a mechanism.
fn explained(case: &Case) -> Option<u64> {
    let of_leg = case.findings.iter().filter(|f| f.check == "mechanism");
    of_leg.filter_map(|f| f.data.get("explained").and_then(Value::as_u64)).reduce(|a, b| a + b)
}

fn mechanism(verdict: &mut Verdict, finding: Option<&Finding>) {
    let Some(f) = finding else { return };
    let number = |key: &str| f.data.get(key).and_then(Value::as_u64);
    verdict.mechanism = f.data.get("mechanism").and_then(Value::as_str).map(str::to_owned);
    verdict.first_bad_block = number("first_bad_block");
    verdict.pool_blocks = number("pool_blocks").or(verdict.pool_blocks);
}

/// Degenerate outputs a stretch holds on average before its edges are taken for those of the trouble.
const DENSE: u64 = 4;

/// The bad stretch of a leg: exact edges where degenerate outputs stand together; else the likeliest stretch of
/// misses; else from the first to the last degenerate output.
pub fn stretch(leg: &Leg, chart: Option<&Sequential>) -> Option<Stretch> {
    let exact = collapsed(leg);
    let count = leg.labels.iter().filter(|l| l.degenerate()).count() as u64;
    match exact {
        Some(s) if count >= DENSE * (1 + s.further.len() as u64) => Some(s),
        Some(s) => by_accuracy(chart).or(Some(s)),
        None => by_accuracy(chart),
    }
}

/// Stretches of degenerate outputs; a failed request says nothing about the output it would have had.
fn collapsed(leg: &Leg) -> Option<Stretch> {
    let known: Vec<(u64, bool)> = leg
        .replies()
        .filter(|(_, l)| l.label != Label::ClientError)
        .map(|(c, l)| (c.ordinal, l.degenerate()))
        .collect();
    let mut stretches: Vec<(u64, u64, Option<u64>)> = Vec::new();
    for (i, (ordinal, bad)) in known.iter().enumerate() {
        let before = i > 0 && known[i - 1].1;
        match (bad, before, stretches.last_mut()) {
            (true, true, Some(s)) => s.1 = *ordinal,
            (true, ..) => stretches.push((*ordinal, *ordinal, None)),
            (false, true, Some(s)) => s.2 = Some(*ordinal),
            _ => {}
        }
    }
    let (onset, last, recovery) = *stretches.first()?;
    let further = stretches[1..].iter().map(|s| (s.0, s.1)).collect();
    Some(Stretch { onset, last: recovery.map(|_| last), recovery, further, by: "degenerate output" })
}

/// Without an alarm a stretch must be this much likelier still.
const WITHOUT_ALARM: f64 = 5.0;

fn by_accuracy(chart: Option<&Sequential>) -> Option<Stretch> {
    let chart = chart?;
    let segment = changepoint::worst_segment(&chart.misses)?;
    let sure = changepoint::penalty(chart.misses.len()) + WITHOUT_ALARM;
    if chart.alarm.is_none() && segment.log_likelihood_ratio < sure {
        return None;
    }
    // Hits at the end, or a pause before misses gather again, are no recovery.
    let behind = chart.misses[segment.end..].iter().copied();
    let recovered =
        changepoint::told_from_rest(&chart.misses, &segment) && chart.chart.run(behind).alarm.is_none();
    let recovery = chart.ordinals.get(segment.end).copied().filter(|_| recovered);
    Some(Stretch {
        onset: chart.ordinals[segment.start],
        last: recovery.map(|_| chart.ordinals[segment.end - 1]),
        recovery,
        further: Vec::new(),
        by: "accuracy",
    })
}

/// The power of the accuracy gate that was asked for.
fn power(asked: &[Ask], leg: &Leg, settings: &Settings) -> Option<String> {
    let scores = leg.scores();
    let first = scores.iter().find(|s| s.n > 0)?;
    let runs = scores.iter().filter(|s| s.n > 0).count() as u64;
    let (num, den) = asked.iter().find_map(|a| match (&a.metric, a.threshold) {
        (Subject::Metric(m), Threshold::Share { num, den }) if m.name == "correct" => Some((num, den)),
        _ => None,
    })?;
    let good = settings.baseline.unwrap_or(first.correct as f64 / first.n as f64);
    let bad = good - 0.06;
    let gate = Power::of_ratio(num.round() as u64, den.round() as u64, first.n, runs);
    (bad > 0.0).then(|| gate.sentence(good, bad))
}

fn details(
    verdict: &mut Verdict,
    case: &Case,
    charts: &BTreeMap<String, Sequential>,
    stretches: &BTreeMap<String, Stretch>,
    flips: &BTreeMap<String, Vec<Compared>>,
    power: Option<&str>,
) {
    let mut labels: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, l) in figures::replies(case) {
        *labels.entry(l.label.name()).or_default() += 1;
    }
    verdict.details.insert("by_label".into(), json!(labels));
    if let Some(power) = power {
        verdict.details.insert("power".into(), json!(power));
    }
    let mut legs = Vec::new();
    for leg in case.with_completions() {
        let mut entry = serde_json::Map::new();
        entry.insert("leg".into(), json!(leg.title()));
        if let Some(s) = stretches.get(&leg.name) {
            entry.insert("onset_ordinal".into(), json!(s.onset));
            entry.insert("recovery_ordinal".into(), json!(s.recovery));
            entry.insert("found_by".into(), json!(s.by));
            entry.insert("further_stretches".into(), json!(s.further));
        }
        if let Some(s) = charts.get(&leg.name) {
            let after =
                s.alarm.zip(stretches.get(&leg.name)).map(|(alarm, st)| alarm.saturating_sub(st.onset) + 1);
            entry.insert(
                "cusum".into(),
                json!({
                    "miss_rate_tolerable": s.chart.p0, "miss_rate_intolerable": s.chart.p1, "baseline": s.baseline,
                    "threshold": s.chart.threshold, "miss_adds": s.chart.up, "hit_takes": s.chart.down,
                    "requests_between_false_alarms": s.chart.arl0, "requests_to_alarm": s.chart.arl1,
                    "alarm_ordinal": s.alarm, "rise_ordinal": s.rise, "requests_after_onset": after,
                }),
            );
            if let Some(c) = changepoint::worst_segment(&s.misses) {
                entry.insert(
                    "change_point".into(),
                    json!({
                        "first_ordinal": s.ordinals[c.start], "last_ordinal": s.ordinals[c.end - 1],
                        "miss_rate_inside": c.inside, "miss_rate_outside": c.outside,
                        "log_likelihood_ratio": c.log_likelihood_ratio,
                    }),
                );
            }
        }
        if let Some(h) = figures::homogeneous(leg) {
            entry.insert(
                "homogeneity".into(),
                json!({"chi2": h.chi2, "df": h.df, "p": h.p, "exact_p": h.exact_p}),
            );
        }
        let pairs = flips.get(&leg.name).into_iter().flatten().map(|c| {
            json!({"run": c.run, "against": c.base, "lost": c.flips.lost, "gained": c.flips.gained,
                   "both_right": c.flips.both_right, "both_wrong": c.flips.both_wrong, "p": c.p, "holm_p": c.holm})
        });
        entry.insert("flips".into(), json!(pairs.collect::<Vec<_>>()));
        legs.push(Value::Object(entry));
    }
    verdict.details.insert("legs".into(), json!(legs));
}
