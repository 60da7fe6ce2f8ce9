//! One gate against a case.

use super::figures;
use super::{Ask, Settings, Subject, Threshold, runs, server};
use crate::checks::case::has_output;
use crate::checks::{Case, is_gap};
use crate::detect::Label;
use crate::stats::power::percent;
use cute_records::{Gate, Outcome, RunScore, Severity};

/// What a metric yields: a number with its story, or the reason why there is none.
pub(super) enum Reading {
    /// a count out of so many
    Count { value: u64, of: u64, story: String },
    /// a number in the unit of its metric
    Number { value: f64, story: String },
    /// no evidence
    Missing(String),
}

use Reading::{Count, Missing, Number};

/// Judges one gate.
pub fn evaluate(ask: &Ask, case: &Case, settings: &Settings) -> Gate {
    let gate = |outcome, reason: String| Gate { gate: ask.text.clone(), outcome, reason };
    if let Subject::Metric(m) = &ask.metric
        && m.name == "correct"
    {
        let (outcome, reason) = correct(ask, case, settings);
        return gate(outcome, reason);
    }
    let reading = match &ask.metric {
        Subject::Metric(m) => read(m.name, case, settings),
        Subject::Finding(check) => finding(check, case),
        Subject::Event(name) => server::event(name, case),
        Subject::Label(label) => label_count(*label, case),
    };
    let verdict = |holds: bool| if holds { Outcome::Pass } else { Outcome::Fail };
    match reading {
        Missing(why) => gate(Outcome::Inconclusive, why),
        Number { value, story } => {
            gate(verdict(ask.op.holds(value.total_cmp(&ask.threshold.value()))), story)
        }
        Count { value, of, story } => {
            let holds = match ask.threshold {
                Threshold::Share { .. } if of == 0 => {
                    return gate(Outcome::Inconclusive, format!("a share of nothing: {story}"));
                }
                Threshold::Share { .. } => ask.op.holds(ask.threshold.compare_share(value, of)),
                // `accuracy>=0.9` is a share as well; counts are compared as they are.
                Threshold::Number(x) if is_share(&ask.metric) => {
                    if of == 0 {
                        return gate(Outcome::Inconclusive, format!("a share of nothing: {story}"));
                    }
                    ask.op.holds((value as f64 / of as f64).total_cmp(&x))
                }
                Threshold::Number(x) => ask.op.holds((value as f64).total_cmp(&x)),
            };
            gate(verdict(holds), story)
        }
    }
}

fn is_share(subject: &Subject) -> bool {
    matches!(subject, Subject::Metric(m) if m.unit == super::metric::Unit::Share)
}

/// `correct`: every single run, by the ratio of its own size.
fn correct(ask: &Ask, case: &Case, settings: &Settings) -> (Outcome, String) {
    let scores: Vec<(String, RunScore)> = case
        .with_completions()
        .flat_map(|l| {
            let prefix =
                if case.with_completions().count() > 1 { format!("{} ", l.title()) } else { String::new() };
            l.scores().into_iter().map(move |s| (format!("{prefix}run {}", s.run + 1), s))
        })
        .filter(|(_, s)| s.n > 0)
        .collect();
    if scores.is_empty() {
        return (Outcome::Inconclusive, "no run with graded completions".to_owned());
    }
    let den = match ask.threshold {
        Threshold::Share { den, .. } => den,
        Threshold::Number(_) => 1.0,
    };
    let bad: Vec<String> = scores
        .iter()
        .filter(|(_, s)| !ask.op.holds(ask.threshold.compare_share(s.correct, s.n)))
        .map(|(name, s)| format!("{name}: {}/{}", s.correct, s.n))
        .collect();
    let scaled: Vec<String> = scores
        .iter()
        .filter(|(_, s)| den > 1.0 && den != 100.0 && (s.n as f64) != den)
        .map(|(name, s)| {
            let need = ask.threshold.value() * s.n as f64;
            format!(
                "{name} has {} questions, not {den}: judged by the share, {} {need:.1}",
                s.n,
                ask.op.sign()
            )
        })
        .collect();
    let scaled = if scaled.is_empty() { String::new() } else { format!(" ({})", scaled.join("; ")) };
    if !bad.is_empty() {
        return (
            Outcome::Fail,
            format!("{} of {} runs fail: {}{scaled}", bad.len(), scores.len(), bad.join(", ")),
        );
    }
    if let Some(ungraded) = ungraded(case) {
        return (Outcome::Inconclusive, ungraded);
    }
    if let Some(asked) = settings.runs.filter(|asked| *asked != scores.len() as u64) {
        return (
            Outcome::Inconclusive,
            format!("{} runs are there, {asked} were asked for{scaled}", scores.len()),
        );
    }
    let all: Vec<String> = scores.iter().map(|(_, s)| format!("{}/{}", s.correct, s.n)).collect();
    (Outcome::Pass, format!("{} run(s): {}{scaled}", scores.len(), all.join(", ")))
}

/// Why counting findings would prove nothing, if it would.
fn unaudited(case: &Case) -> Option<Reading> {
    let nothing = figures::replies(case).next().is_none() && case.dispatch().next().is_none();
    nothing.then(|| Missing("there was nothing to audit: no completion and no dispatch record".to_owned()))
}

fn finding(check: &str, case: &Case) -> Reading {
    if let Some(missing) = unaudited(case) {
        return missing;
    }
    let value = case.findings.iter().filter(|f| f.check == check).count() as u64;
    Count { value, of: case.findings.len() as u64, story: format!("{value} finding(s) of {check}") }
}

fn label_count(label: Label, case: &Case) -> Reading {
    let of = figures::replies(case).filter(|(c, _)| has_output(c)).count() as u64;
    if of == 0 && label != Label::ClientError {
        return Missing("no reply with text, a tail of it, or token ids".to_owned());
    }
    let value = figures::labelled(case, label);
    Count { value, of, story: format!("{value} of {of} replies: {}", label.meaning()) }
}

/// Replies whose right answer is known, and not whether it was given.
fn ungraded(case: &Case) -> Option<String> {
    let replies = || figures::replies(case);
    let n = replies().filter(|(c, _)| c.gold.is_some() && c.correct.is_none() && has_output(c)).count();
    (n > 0).then(|| format!("{n} of {} replies have an expected answer and no grade", replies().count()))
}

fn read(metric: &str, case: &Case, settings: &Settings) -> Reading {
    let replies = figures::replies(case).count() as u64;
    let none = || Missing("no completion in the stream".to_owned());
    match metric {
        "accuracy" => {
            let scores: Vec<RunScore> = case.legs.iter().flat_map(|l| l.scores()).collect();
            let (k, n) = scores.iter().fold((0, 0), |(k, n), s| (k + s.correct, n + s.n));
            if let Some(ungraded) = ungraded(case) {
                return Missing(ungraded);
            }
            if n == 0 {
                return Missing("no graded completion".to_owned());
            }
            Count { value: k, of: n, story: format!("{k} of {n} right ({})", percent(k as f64 / n as f64)) }
        }
        "errors" if replies == 0 => none(),
        "errors" => {
            let value = figures::labelled(case, Label::ClientError);
            Count { value, of: replies, story: format!("{value} of {replies} requests failed") }
        }
        "findings" => findings(case, Severity::Error),
        "warnings" => findings(case, Severity::Warning),
        "completions" if replies == 0 => none(),
        "completions" => {
            let value =
                figures::replies(case).filter(|(c, _)| has_output(c) || c.correct.is_some()).count() as u64;
            Count { value, of: replies, story: format!("{value} replies") }
        }
        "runs" if replies == 0 => none(),
        "runs" => {
            let value = case.with_completions().map(|l| l.runs().len() as u64).sum();
            Count { value, of: value, story: format!("{value} run(s)") }
        }
        "degenerate" => {
            let of = figures::replies(case).filter(|(c, _)| has_output(c)).count() as u64;
            if of == 0 {
                return Missing("no reply with text, a tail of it, or token ids".to_owned());
            }
            let value = figures::replies(case).filter(|(_, l)| l.degenerate()).count() as u64;
            Count { value, of, story: format!("{value} of {of} outputs collapsed into one token") }
        }
        "loops" => label_count(Label::NgramLoop, case),
        "cut_off" => label_count(Label::CutOff, case),
        "empty" => label_count(Label::Empty, case),
        "mcnemar" => runs::mcnemar(case),
        "mcnemar_legs" => runs::mcnemar_legs(case),
        "flips" => runs::flips(case),
        "homogeneity" => runs::homogeneity(case),
        "cusum" => runs::cusum(case, settings),
        "unexplained" => runs::unexplained(case),
        _ => server::read_server(metric, case),
    }
}

fn findings(case: &Case, severity: Severity) -> Reading {
    if let Some(missing) = unaudited(case) {
        return missing;
    }
    let mut by_check: std::collections::BTreeMap<&str, u64> = Default::default();
    // What is missing has gates of its own: a gap is no failure, and no pass.
    for f in case.findings.iter().filter(|f| f.severity == severity && !is_gap(f)) {
        *by_check.entry(f.check.as_str()).or_default() += 1;
    }
    let value: u64 = by_check.values().sum();
    let list: Vec<String> = by_check.iter().map(|(c, n)| format!("{c} {n}")).collect();
    let list = if list.is_empty() { String::new() } else { format!(": {}", list.join(", ")) };
    Count { value, of: case.findings.len() as u64, story: format!("{value} finding(s){list}") }
}
