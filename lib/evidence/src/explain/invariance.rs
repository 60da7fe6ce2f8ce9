//! Over several legs: which counter is the same at every onset, and which is not?
//!
//! A cause that counts something fires when its counter reaches a value. Legs that run at different speeds, on
//! different text, reach the onset at different times; the counter that agrees all the same names the cause.

use crate::checks::{FindingExt, finding};
use crate::report::Table;
use cute_records::{Finding, Severity};
use serde_json::json;

/// A leg's counters at its onset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AtOnset {
    /// name of the leg
    pub leg: String,
    /// requests before, warm-up not counted
    pub ordinal: u64,
    /// first good request after; none when it never recovers
    pub recovery: Option<u64>,
    /// seconds of requests before
    pub seconds: Option<f64>,
    /// tokens before
    pub tokens: Option<u64>,
    /// blocks handed out before, each time counted
    pub blocks: Option<u64>,
    /// highest attention block of the first bad request
    pub highest: Option<u64>,
    /// blocks of the pool
    pub pool: Option<u64>,
}

/// A counter and its value in every leg.
type Counter = (&'static str, fn(&AtOnset) -> Option<f64>);

const COUNTERS: [Counter; 6] = [
    ("ordinal", |l| Some(l.ordinal as f64)),
    ("blocks handed out", |l| l.blocks.map(|x| x as f64)),
    ("highest attention block", |l| l.highest.map(|x| x as f64)),
    ("seconds", |l| l.seconds),
    ("tokens", |l| l.tokens.map(|x| x as f64)),
    ("recovery ordinal", |l| l.recovery.map(|x| x as f64)),
];

/// Compares the onsets of several legs. Nothing with fewer than two.
pub fn compare(legs: &[AtOnset]) -> Option<(Finding, Table)> {
    if legs.len() < 2 {
        return None;
    }
    let heads =
        ["leg", ">ordinal", ">blocks out", ">highest block", ">seconds", ">tokens", ">recovery", ">pool"];
    let mut t = Table::new("Counters at onset, leg by leg", &heads);
    let show = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.0}"));
    for l in legs {
        let mut row = vec![l.leg.clone()];
        row.extend(COUNTERS.iter().map(|(_, of)| show(of(l))));
        row.push(l.pool.map_or("-".to_owned(), |p| p.to_string()));
        t.row(row);
    }
    let (mut same, mut differ, mut data) = (Vec::new(), Vec::new(), serde_json::Map::new());
    for (name, of) in COUNTERS {
        let values: Vec<f64> = legs.iter().filter_map(of).collect();
        if values.len() < legs.len() {
            continue;
        }
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
        let spread = if low > 0.0 { high / low } else { f64::INFINITY };
        data.insert(name.to_owned(), json!({"least": low, "most": high, "spread": spread}));
        if low == high {
            same.push(format!("{name} ({low:.0})"));
        } else {
            differ.push(format!("{name} ({low:.0} to {high:.0}, factor {spread:.2})"));
        }
    }
    let what = |list: &[String]| if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    let message = format!(
        "over {} legs the onset agrees in {}; it does not in {}",
        legs.len(),
        what(&same),
        what(&differ)
    );
    t.note(format!("{}.", capital(&message)));
    let names: Vec<&str> = legs.iter().map(|l| l.leg.as_str()).collect();
    let f = finding("invariance", Severity::Info, message)
        .with("legs", json!(names))
        .with("constant", json!(same))
        .with("varying", json!(differ))
        .with("counters", data);
    Some((f, t))
}

fn capital(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map(|c| c.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}
