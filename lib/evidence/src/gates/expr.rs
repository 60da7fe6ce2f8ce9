//! The grammar of gates: `metric op value`.
//!
//! ```text
//! gate    = subject op value
//! subject = metric | "finding." check | "event." pattern | "label." label
//! op      = ">=" | "<=" | "==" | "=" | "!=" | ">" | "<"
//! value   = number [ "/" number | "%" ]
//! ```

use super::metric::{METRICS, Unit};
use super::{Ask, Subject};
use crate::adapters::FIGURES;
use crate::checks::catalogue;
use crate::detect::Label;
use crate::logs::packs;
use std::cmp::Ordering;

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
    /// `=` or `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    More,
    /// `<`
    Less,
}

impl Op {
    /// Whether a value that compares like this to the threshold passes.
    pub fn holds(self, value: Ordering) -> bool {
        match self {
            Op::AtLeast => value.is_ge(),
            Op::AtMost => value.is_le(),
            Op::Equal => value.is_eq(),
            Op::NotEqual => value.is_ne(),
            Op::More => value.is_gt(),
            Op::Less => value.is_lt(),
        }
    }

    /// As it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Op::AtLeast => ">=",
            Op::AtMost => "<=",
            Op::Equal => "=",
            Op::NotEqual => "!=",
            Op::More => ">",
            Op::Less => "<",
        }
    }
}

/// What a value is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// a share: `45/50`, `90%`
    Share {
        /// of these
        num: f64,
        /// out of these
        den: f64,
    },
    /// a plain number
    Number(f64),
}

impl Threshold {
    /// The threshold as one number.
    pub fn value(self) -> f64 {
        match self {
            Threshold::Share { num, den } => num / den,
            Threshold::Number(x) => x,
        }
    }

    /// Compares `k` of `n` with the threshold, without rounding where both are counts.
    pub fn compare_share(self, k: u64, n: u64) -> Ordering {
        let (num, den) = match self {
            Threshold::Share { num, den } => (num, den),
            Threshold::Number(x) => (x, 1.0),
        };
        (k as f64 * den).total_cmp(&(n as f64 * num))
    }
}

/// A malformed gate: which, where, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("gate {text:?}, column {column}: {message}\n  {text}\n  {:>column$}", "^")]
pub struct GateError {
    /// the gate as typed
    pub text: String,
    /// 1-based column of the offending character
    pub column: usize,
    /// what was expected
    pub message: String,
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn fail<T>(&self, at: usize, message: impl Into<String>) -> Result<T, GateError> {
        let column = self.text[..at].chars().count() + 1;
        Err(GateError { text: self.text.to_owned(), column, message: message.into() })
    }

    fn blank(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, good: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !good(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.text[self.at..].starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn number(&mut self, what: &str) -> Result<f64, GateError> {
        self.blank();
        let start = self.at;
        let word = self.take(|c| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E'));
        match word.parse::<f64>() {
            // minus zero is zero
            Ok(x) if x.is_finite() => Ok(x + 0.0),
            _ if word.is_empty() => self.fail(start, format!("expected {what}")),
            _ => self.fail(start, format!("{word:?} is no number: expected {what}")),
        }
    }
}

/// Reads a gate.
///
/// # Errors
/// [`GateError`] that points at the column.
pub fn parse(text: &str) -> Result<Ask, GateError> {
    let mut c = Cursor { text, at: 0 };
    c.blank();
    let start = c.at;
    let word = c.take(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'));
    let subject = subject(&c, start, word)?;
    c.blank();
    let ops = [
        (">=", Op::AtLeast),
        ("<=", Op::AtMost),
        ("!=", Op::NotEqual),
        ("==", Op::Equal),
        ("=", Op::Equal),
        (">", Op::More),
        ("<", Op::Less),
    ];
    let at = c.at;
    let Some((_, op)) = ops.into_iter().find(|(sign, _)| c.eat(sign)) else {
        return c.fail(at, "expected one of >= <= = != > <");
    };
    c.blank();
    let value_at = c.at;
    let first = c.number("a number, such as 45/50, 90% or 0")?;
    c.blank();
    let threshold = if c.eat("/") {
        c.blank();
        let at = c.at;
        let den = c.number("a number of questions after the /")?;
        if den <= 0.0 {
            return c.fail(at, "a share of nothing: expected a number above 0");
        }
        if den.fract() != 0.0 {
            return c.fail(at, "a number of questions is a whole number");
        }
        if first.fract() != 0.0 {
            return c.fail(value_at, "a count is a whole number");
        }
        Threshold::Share { num: first, den }
    } else if c.eat("%") {
        Threshold::Share { num: first, den: 100.0 }
    } else {
        Threshold::Number(first)
    };
    c.blank();
    if c.at < text.len() {
        return c.fail(
            c.at,
            format!(
                "{:?} is left over: a gate is one comparison; give --gate again for the next",
                &text[c.at..]
            ),
        );
    }
    if let Threshold::Share { num, den } = threshold
        && num > den
    {
        return c.fail(value_at, format!("{num} of {den} is more than all"));
    }
    if first < 0.0 {
        return c.fail(value_at, "no metric is ever below 0: this gate could not fail, or not pass");
    }
    scale(&c, value_at, &subject, threshold)?;
    vacuous(&c, at, &subject, op, threshold)?;
    Ok(Ask { text: text.trim().to_owned(), metric: subject, op, threshold })
}

fn subject(c: &Cursor<'_>, start: usize, word: &str) -> Result<Subject, GateError> {
    if let Some(check) = word.strip_prefix("finding.") {
        if check.is_empty() {
            return c
                .fail(start + word.len(), "expected the name of a check, e.g. finding.fingerprint_differs");
        }
        if !catalogue::names().any(|n| n == check) {
            let message =
                format!("no check {check:?}: docs/GATES.md lists them{}", nearest(check, catalogue::names()));
            return c.fail(start + 8, message);
        }
        return Ok(Subject::Finding(check.to_owned()));
    }
    if let Some(event) = word.strip_prefix("event.") {
        if event.is_empty() {
            return c.fail(start + word.len(), "expected the name of a log pattern, e.g. event.first_fire");
        }
        let known = || packs().iter().flat_map(|p| p.patterns).map(|p| p.name).chain(FIGURES);
        if !known().any(|name| name == event) {
            let message =
                format!("no log pattern {event:?}: docs/PATTERNS.md lists them{}", nearest(event, known()));
            return c.fail(start + 6, message);
        }
        return Ok(Subject::Event(event.to_owned()));
    }
    if let Some(name) = word.strip_prefix("label.") {
        return match Label::ALL.into_iter().find(|l| l.name() == name) {
            Some(label) => Ok(Subject::Label(label)),
            None => {
                let names: Vec<&str> = Label::ALL.iter().map(|l| l.name()).collect();
                c.fail(start + 6, format!("no label {name:?}: expected one of {}", names.join(", ")))
            }
        };
    }
    match METRICS.iter().find(|m| m.name == word) {
        Some(metric) => Ok(Subject::Metric(metric)),
        None => {
            let names: Vec<&str> = METRICS.iter().map(|m| m.name).collect();
            let what =
                if word.is_empty() { "expected a metric".to_owned() } else { format!("no metric {word:?}") };
            c.fail(
                start,
                format!("{what}: one of {}, finding.NAME, event.NAME, label.NAME", names.join(", ")),
            )
        }
    }
}

/// A threshold must fit the unit of what it is compared with, and scale with the number of questions.
fn scale(c: &Cursor<'_>, at: usize, subject: &Subject, threshold: Threshold) -> Result<(), GateError> {
    let unit = match subject {
        Subject::Metric(m) => m.unit,
        Subject::Finding(_) | Subject::Event(_) | Subject::Label(_) => Unit::Count,
    };
    match (unit, threshold) {
        (Unit::Share, Threshold::Number(x)) if x > 1.0 => c.fail(
            at,
            format!("a count without its denominator does not scale: write {x}/N (e.g. {x}/50) or a share such as 90%"),
        ),
        (Unit::Probability, t) if t.value() > 1.0 => c.fail(at, "a probability is at most 1"),
        (Unit::Number | Unit::Probability, Threshold::Share { den, .. }) if den != 100.0 => {
            c.fail(at, "this metric is no count of questions: expected a plain number")
        }
        (Unit::Count, Threshold::Share { .. }) if !shares(subject) => {
            c.fail(at, "this metric is no share of anything: expected a whole number")
        }
        (Unit::Count, Threshold::Number(x)) if x.fract() != 0.0 => c.fail(at, "a count is a whole number"),
        _ => Ok(()),
    }
}

/// True for counts that are counted out of something that was asked.
fn shares(subject: &Subject) -> bool {
    const NONE: [&str; 6] =
        ["runs", "dispatch_records", "model_digest", "server_alive", "findings", "warnings"];
    match subject {
        Subject::Metric(m) => !NONE.contains(&m.name),
        Subject::Finding(_) => false,
        Subject::Event(_) | Subject::Label(_) => true,
    }
}

/// The names that share a word with what was typed.
fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> String {
    let shares = |n: &&str| n.split('_').any(|w| w.len() > 3 && word.contains(w));
    let mut close: Vec<&str> = names.filter(shares).collect();
    close.sort_unstable();
    close.dedup();
    if close.is_empty() { String::new() } else { format!(", among them {}", close.join(", ")) }
}

/// Gates that no evidence could fail, or let pass, are refused.
fn vacuous(
    c: &Cursor<'_>,
    at: usize,
    subject: &Subject,
    op: Op,
    threshold: Threshold,
) -> Result<(), GateError> {
    let (name, unit) = match subject {
        Subject::Metric(m) => (m.name, m.unit),
        Subject::Finding(_) | Subject::Event(_) | Subject::Label(_) => ("", Unit::Count),
    };
    let part = matches!(threshold, Threshold::Share { .. }) && matches!(unit, Unit::Share | Unit::Count);
    let most = match name {
        "server_alive" => 1.0,
        "pool_left_percent" => 100.0,
        _ if part || matches!(unit, Unit::Share | Unit::Probability) => 1.0,
        _ => f64::INFINITY,
    };
    // None of these is read as zero: what is not there at all is missing evidence.
    let least = if ["runs", "dispatch_records", "model_digest"].contains(&name) { 1.0 } else { 0.0 };
    let x = threshold.value();
    let never = match op {
        Op::AtLeast => x > most,
        Op::More => x >= most,
        Op::AtMost => x < least,
        Op::Less => x <= least,
        Op::Equal => x < least || x > most,
        Op::NotEqual => false,
    };
    if never {
        return c.fail(at, format!("values lie between {least} and {most}: this gate could not pass"));
    }
    match op {
        Op::AtLeast if x <= 0.0 => c.fail(at, "at least 0 is always true: this gate could not fail"),
        Op::AtMost if x >= most => c.fail(at, "at most all of them is always true: this gate could not fail"),
        Op::Less if x > most => {
            c.fail(at, "less than more than all is always true: this gate could not fail")
        }
        Op::NotEqual if x < least || x > most => {
            c.fail(at, "no such value is ever read: this gate could not fail")
        }
        _ => Ok(()),
    }
}
