//! Readings about the server: its log, its pool, its speed, its kernels.

use super::eval::Reading::{self, Count, Missing, Number};
use super::figures::{self, quantile};
use crate::adapters::FIGURES;
use crate::checks::{Case, LogLine, What};
use crate::detect::Label;
use crate::stats::power::percent;

pub(super) fn read_server(metric: &str, case: &Case) -> Reading {
    match metric {
        "dispatch_records" => {
            let value = case.dispatch().filter(|d| d.is_decode_only).count() as u64;
            if value == 0 {
                return Missing("no dispatch record of a decode step".to_owned());
            }
            Count { value, of: value, story: format!("{value} dispatch records of decode steps") }
        }
        "log_errors" | "server_alive" => {
            let lines = figures::log_lines(case);
            if lines == 0 {
                return Missing("no recognised line of a server log".to_owned());
            }
            let bad = figures::log_errors(case);
            let first = bad.first().map(|(l, name)| format!(", first {name} at {}:{}", l.file, l.line));
            if metric == "log_errors" {
                let story = format!("{} such lines of {lines}{}", bad.len(), first.unwrap_or_default());
                return Count { value: bad.len() as u64, of: lines, story };
            }
            alive(case, &bad)
        }
        "pool_left_percent" => pool_left(case),
        "region_span_ms" => match case.timings.iter().find(|t| t.name.starts_with("kernel span")) {
            Some(t) => Number { value: t.ms, story: format!("{:.2} ms from first entry to last exit", t.ms) },
            None => Missing("no region buffer was read: cute-audit --region FILE.npy".to_owned()),
        },
        "wall_p95_ms" => {
            let walls: Vec<f64> = figures::replies(case).filter_map(|(c, _)| c.wall_ms).collect();
            let n = walls.len();
            match quantile(walls, 0.95) {
                Some(value) if n >= 20 => Number {
                    value,
                    story: format!("95 of 100 of {n} requests took at most {:.1} s", value / 1e3),
                },
                _ => Missing(format!("{n} completions have a wall time; 20 are needed")),
            }
        }
        "decode_tok_s" => {
            let rate = |c: &cute_records::Completion| {
                Some(c.completion_tokens? as f64 * 1e3 / c.decode_ms.or(c.wall_ms).filter(|t| *t > 0.0)?)
            };
            match quantile(figures::replies(case).filter_map(|(c, _)| rate(c)).collect(), 0.5) {
                Some(value) => Number { value, story: format!("median {value:.2} tokens/s") },
                None => Missing("no completion has both tokens and a time".to_owned()),
            }
        }
        "model_digest" => {
            let digests = figures::model_digests(case);
            if digests.is_empty() {
                return Missing("no producer names a model digest".to_owned());
            }
            let value = digests.len() as u64;
            Count { value, of: value, story: format!("{value} model digest(s)") }
        }
        other => Missing(format!("{other} cannot be read yet")),
    }
}

pub(super) fn alive(case: &Case, bad: &[(&LogLine, &str)]) -> Reading {
    let fatal = bad.iter().find(|(_, name)| ["died", "fatal", "traceback"].iter().any(|w| name.contains(w)));
    let last = case.with_completions().filter_map(|l| l.replies().last()).last();
    let (value, story) = match (fatal, last) {
        (Some((line, name)), _) => (0, format!("{name} at {}:{}", line.file, line.line)),
        (None, None) => return Missing("no completion in the stream".to_owned()),
        (None, Some((c, l))) if l.label == Label::ClientError => {
            (0, format!("the last request, {}, failed", c.ordinal))
        }
        (None, Some((c, _))) => {
            (1, format!("the last request, {}, was answered and the log reports no crash", c.ordinal))
        }
    };
    Count { value, of: 1, story }
}

/// What the gauge shows after the last request, with nothing running.
pub(super) fn pool_left(case: &Case) -> Reading {
    let after = |leg: &crate::checks::Leg| {
        let last = leg.log.iter().rposition(|l| l.what == What::Request)?;
        leg.log[last..].iter().rev().find_map(|l| match l.what {
            What::Reading { running: 0, percent } => Some(percent),
            _ => None,
        })
    };
    match case.legs.iter().filter_map(after).reduce(f64::max) {
        Some(value) => Number {
            value,
            story: format!("{} of the pool in use with nothing running", percent(value / 100.0)),
        },
        None => Missing("no statistics line with nothing running after the last request".to_owned()),
    }
}

pub(super) fn event(name: &str, case: &Case) -> Reading {
    let of = match FIGURES.contains(&name) {
        true => case.legs.iter().flat_map(|l| l.log_events.values()).sum(),
        false => figures::log_lines(case),
    };
    if of == 0 {
        return Missing("no recognised line of a server log".to_owned());
    }
    let value = case.legs.iter().filter_map(|l| l.log_events.get(name)).sum();
    Count { value, of, story: format!("{value} line(s) of {name} among {of} recognised ones") }
}
