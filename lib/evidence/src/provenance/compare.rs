//! Several legs side by side.

use super::leg::{Leg, Says};
use cute_records::{Finding, Severity};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A table of knobs by leg.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// heading: `knob`, then one column a leg
    pub columns: Vec<String>,
    /// rows of cells, as many as columns: what differs; `-` where a leg says nothing
    pub rows: Vec<Vec<String>>,
    /// knobs that are equal in all legs, with their value
    pub same: Vec<(String, String)>,
    /// what the table shows and a reader should know, each leg's own contradictions first
    pub findings: Vec<Finding>,
}

/// Knobs that are sides of one thing: differing in several of them is differing in one.
const THINGS: &[(&str, &[&str])] = &[
    ("layers", &["phase_e_layers", "expected_coop_layers"]),
    ("image", &["image", "image_digest", "image_commit", "version", "engine_version"]),
    ("prompts", &["eval_n", "eval_seed", "prompt_set_hash"]),
    ("model", &["model", "revision", "quantization", "digest.model"]),
];

/// Knobs that follow from others, name the leg, or say nothing about what is computed.
const DERIVED: &[&str] = &[
    "coop_layers",
    "lite_layers",
    "attention_block_size",
    "eval_api",
    "eval_model",
    "gsm8k_floor",
    "n_runs",
    "dispatch_log",
    "patched_repo",
    "device",
];

/// Totals that two different outputs are unlikely to share.
const TOTALS: &[&str] = &["sum_completion_tokens"];

/// Compares legs.
pub fn compare(legs: &[Leg]) -> Comparison {
    let mut out = Comparison {
        columns: std::iter::once("knob".to_owned()).chain(legs.iter().map(|l| l.name.clone())).collect(),
        ..Comparison::default()
    };
    out.findings.extend(legs.iter().flat_map(|l| l.findings.iter().cloned()));
    let knobs: BTreeSet<&String> = legs.iter().flat_map(|l| l.knobs.keys()).collect();
    for knob in knobs {
        let cells: Vec<String> =
            legs.iter().map(|l| l.knobs.get(knob).map_or("-".to_owned(), |k| k.cell())).collect();
        out.row(knob, cells);
    }
    let outcomes: BTreeSet<&String> = legs.iter().flat_map(|l| l.outcomes.keys()).collect();
    for name in outcomes {
        let cells =
            legs.iter().map(|l| l.outcomes.get(name).map_or("-".to_owned(), |s| s.value.clone())).collect();
        out.row(&format!("result {name}"), cells);
    }
    for (i, a) in legs.iter().enumerate() {
        for b in &legs[i + 1..] {
            out.pair(a, b);
        }
    }
    out.totals(legs);
    out.boots(legs);
    out
}

/// The things two legs differ in, each with the values; a knob only one of them states is no difference.
fn differences(a: &Leg, b: &Leg) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (name, knob) in a.knobs.iter().filter(|(n, _)| !DERIVED.contains(&n.as_str())) {
        let Some(other) = b.knobs.get(name) else { continue };
        // like is compared with like: what one leg's log says with what the other's log says
        let sides = [Says::Effective, Says::Requested, Says::Recorded];
        let differ =
            sides.iter().find_map(|s| Some((knob.says(*s)?, other.says(*s)?)).filter(|(x, y)| x != y));
        let Some((x, y)) = differ else { continue };
        let thing =
            THINGS.iter().find(|(_, sides)| sides.contains(&name.as_str())).map_or(name.as_str(), |(t, _)| t);
        out.entry(thing.to_owned()).or_insert_with(|| format!("{thing} ({} / {})", short(x), short(y)));
    }
    out
}

/// The first characters of a long value.
fn short(value: &str) -> String {
    match value.char_indices().nth(36) {
        None => value.to_owned(),
        Some(_) => value.chars().take(12).chain(['…']).collect(),
    }
}

impl Comparison {
    fn row(&mut self, name: &str, cells: Vec<String>) {
        let first = cells.first().cloned().unwrap_or_default();
        if cells.iter().all(|c| *c == first) {
            self.same.push((name.to_owned(), first));
        } else {
            self.rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
        }
    }

    fn find(&mut self, check: &str, severity: Severity, message: String, data: BTreeMap<String, Value>) {
        self.findings.push(Finding {
            check: check.to_owned(),
            severity,
            message,
            ordinal: None,
            layer: None,
            at: None,
            data,
        });
    }

    fn pair(&mut self, a: &Leg, b: &Leg) {
        let differ = differences(a, b);
        if differ.len() < 2 {
            return;
        }
        let words: Vec<&str> = differ.values().map(String::as_str).collect();
        let message = format!(
            "{} and {} differ in {} things: {}: a difference in their results has no single cause",
            a.name,
            b.name,
            differ.len(),
            words.join(", ")
        );
        let data = [
            ("legs".to_owned(), json!([a.name, b.name])),
            ("things".to_owned(), json!(differ.keys().collect::<Vec<_>>())),
        ];
        self.find("not_a_single_variable_comparison", Severity::Warning, message, data.into());
    }

    /// Equal totals in legs whose scores differ.
    fn totals(&mut self, legs: &[Leg]) {
        for total in TOTALS {
            let mut groups: BTreeMap<&str, Vec<&Leg>> = BTreeMap::new();
            for leg in legs {
                if let Some(value) = leg.outcomes.get(*total) {
                    groups.entry(&value.value).or_default().push(leg);
                }
            }
            for (value, group) in groups {
                let scores: BTreeSet<&str> = group
                    .iter()
                    .filter_map(|l| l.outcomes.get("correct"))
                    .map(|s| s.value.as_str())
                    .collect();
                if group.len() < 2 || scores.len() < 2 {
                    continue;
                }
                let names: Vec<&str> = group.iter().map(|l| l.name.as_str()).collect();
                let scores: Vec<&str> = scores.into_iter().collect();
                let message = format!(
                    "{total} is {value} in all of {}, whose right answers differ ({}): a coincidence to explain, or one \
                     leg's figures written down for another",
                    names.join(", "),
                    scores.join(" / ")
                );
                let data = [("legs".to_owned(), json!(names)), ("total".to_owned(), json!(value))];
                self.find("identical_totals", Severity::Warning, message, data.into());
            }
        }
    }

    fn boots(&mut self, legs: &[Leg]) {
        let known: Vec<&Leg> = legs.iter().filter(|l| l.boots > 0).collect();
        if known.len() > 1 && known.iter().all(|l| l.boots == 1) {
            let message = format!(
                "each of the {} legs is one boot: differences between boots of one configuration cannot be told from \
                 differences between configurations",
                known.len()
            );
            self.find("one_boot_per_leg", Severity::Info, message, BTreeMap::new());
        }
    }
}
