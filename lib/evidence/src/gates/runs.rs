//! Readings that compare runs and legs: flips, homogeneity, the CUSUM, what a mechanism leaves unexplained.

use super::Settings;
use super::eval::Reading::{self, Count, Missing, Number};
use super::figures;
use crate::checks::Case;
use crate::stats::power::p_value;

pub(super) fn mcnemar(case: &Case) -> Reading {
    let compared: Vec<_> = case
        .with_completions()
        .flat_map(|l| figures::flips(l).into_iter().map(move |c| (l.title(), c)))
        .collect();
    let Some((_, worst)) = compared.iter().min_by(|a, b| a.1.holm.total_cmp(&b.1.holm)) else {
        return Missing("no two runs of the same graded questions".to_owned());
    };
    let story = format!(
        "run {} against run {}: {} lost, {} gained of {}, exact p = {}, Holm-corrected {}",
        worst.run + 1,
        worst.base + 1,
        worst.flips.lost,
        worst.flips.gained,
        worst.flips.pairs(),
        p_value(worst.p),
        p_value(worst.holm)
    );
    Number { value: worst.holm, story }
}

pub(super) fn mcnemar_legs(case: &Case) -> Reading {
    let compared = figures::leg_flips(case);
    let Some((leg, worst)) = compared.iter().min_by(|a, b| a.1.holm.total_cmp(&b.1.holm)) else {
        return Missing("no two legs with the same graded questions".to_owned());
    };
    let f = worst.flips;
    let story = format!(
        "{leg} against the first leg: {} lost, {} gained of {}, exact p = {}, Holm-corrected {}",
        f.lost,
        f.gained,
        f.pairs(),
        p_value(worst.p),
        p_value(worst.holm)
    );
    Number { value: worst.holm, story }
}

pub(super) fn flips(case: &Case) -> Reading {
    let (mut asked, mut flipped) = (0, Vec::new());
    for leg in case.with_completions() {
        let mut of: std::collections::BTreeMap<u64, Vec<bool>> = Default::default();
        for c in &leg.completions {
            if let Some(correct) = c.correct {
                of.entry(c.index).or_default().push(correct);
            }
        }
        of.retain(|_, seen| seen.len() > 1);
        asked += of.len() as u64;
        flipped.extend(of.into_iter().filter(|(_, seen)| seen.iter().any(|c| *c != seen[0])).map(|(i, _)| i));
    }
    if asked == 0 {
        return Missing("no question was asked twice".to_owned());
    }
    let value = flipped.len() as u64;
    Count {
        value,
        of: asked,
        story: format!("{value} of {asked} questions are right in one run and wrong in another"),
    }
}

pub(super) fn homogeneity(case: &Case) -> Reading {
    let worst =
        case.with_completions().filter_map(figures::homogeneous).min_by(|a, b| a.best().total_cmp(&b.best()));
    let Some(h) = worst else { return Missing("no two graded runs".to_owned()) };
    let exact = h.exact_p.map(|p| format!(", exact p = {}", p_value(p))).unwrap_or_default();
    let story =
        format!("chi-squared {:.1} with {} degrees of freedom, p = {}{exact}", h.chi2, h.df, p_value(h.p));
    Number { value: h.best(), story }
}

pub(super) fn cusum(case: &Case, settings: &Settings) -> Reading {
    let charts: Vec<_> = case
        .with_completions()
        .filter_map(|l| figures::sequential(l, settings.baseline, settings.arl0))
        .collect();
    if charts.is_empty() {
        return Missing(format!("fewer than {} graded completions in order", figures::CUSUM_LEAST));
    }
    let value = charts.iter().filter(|s| s.alarm.is_some()).count() as u64;
    let rate = format!("one false alarm in {:.0} requests", charts[0].chart.arl0);
    let story = match charts.iter().find_map(|s| Some((s.rise?, s.alarm?))) {
        Some((rise, alarm)) => {
            format!("misses gather from request {rise}, alarm at request {alarm} ({rate})")
        }
        None => format!("no alarm ({rate})"),
    };
    Count { value, of: charts.len() as u64, story }
}

pub(super) fn unexplained(case: &Case) -> Reading {
    let mut found = case.findings.iter().filter(|f| f.check == "mechanism").peekable();
    if found.peek().is_none() {
        return Missing("no mechanism finding: cute-audit --explain upstream".to_owned());
    }
    let (mut labels, mut explained) = (0, 0);
    for f in found {
        let number = |key: &str| f.data.get(key).and_then(serde_json::Value::as_u64);
        let (Some(n), Some(degenerate)) = (number("labels"), number("degenerate")) else {
            return Missing("the mechanism finding counts no labels".to_owned());
        };
        labels = n.saturating_add(labels);
        // A leg without a collapse has nothing to explain, and one without a mechanism explains nothing.
        let of_leg = if degenerate == 0 { n } else { number("explained").unwrap_or(0) };
        explained = of_leg.saturating_add(explained);
    }
    Count {
        value: labels - explained.min(labels),
        of: labels,
        story: format!("{explained} of {labels} labels are explained"),
    }
}
