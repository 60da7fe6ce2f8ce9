//! A label for every output: what kind of reply is this, and what in it says so.
//!
//! Each detector looks at one reply, or only at its last characters, and names its evidence. [`across()`] then
//! compares the runs of one prompt set: a miss that every healthy run repeats is the model's own, one that
//! comes and goes sits on a knife edge. Nothing here knows about pools, time or order.
//!
//! | module | for |
//! |---|---|
//! | [`run`] | one token to the end: NaN logits, token 0, `!!!!` |
//! | [`looping`] | a phrase that repeats to the end |
//! | [`mod@across`] | misses compared over several runs |

pub mod across;
pub mod looping;
pub mod run;

pub use across::across;
pub use looping::Loop;
pub use run::SingleRun;

use cute_records::{Completion, FinishReason};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What kind of reply it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// nothing wrong was seen
    Healthy,
    /// one token or character to the end
    SingleTokenRun,
    /// a phrase that repeats to the end
    NgramLoop,
    /// sensible text that the token limit cut off
    CutOff,
    /// no text at all
    Empty,
    /// wrong in the same way in every healthy run
    StableMiss,
    /// right in one healthy run and wrong in another, or wrong in different ways
    KnifeEdge,
    /// degenerate and yet graded correct
    LuckyGarbage,
    /// its client gave up before the reply was whole
    Cancelled,
    /// the request failed
    ClientError,
}

impl Label {
    /// Every label, in the order of tables and legends.
    pub const ALL: [Label; 10] = [
        Label::Healthy,
        Label::StableMiss,
        Label::KnifeEdge,
        Label::CutOff,
        Label::NgramLoop,
        Label::SingleTokenRun,
        Label::LuckyGarbage,
        Label::Empty,
        Label::Cancelled,
        Label::ClientError,
    ];

    /// The name as it stands in records.
    pub fn name(self) -> &'static str {
        match self {
            Label::Healthy => "healthy",
            Label::SingleTokenRun => "single_token_run",
            Label::NgramLoop => "ngram_loop",
            Label::CutOff => "cut_off",
            Label::Empty => "empty",
            Label::StableMiss => "stable_miss",
            Label::KnifeEdge => "knife_edge",
            Label::LuckyGarbage => "lucky_garbage",
            Label::Cancelled => "cancelled",
            Label::ClientError => "client_error",
        }
    }

    /// What a reader should know about it, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Label::Healthy => "nothing wrong was seen",
            Label::SingleTokenRun => "one token to the end",
            Label::NgramLoop => "a phrase repeats to the end",
            Label::CutOff => "cut off before its end",
            Label::Empty => "no text",
            Label::StableMiss => "the same wrong answer in every healthy run",
            Label::KnifeEdge => "flips between healthy runs",
            Label::LuckyGarbage => "degenerate, yet graded correct",
            Label::Cancelled => "cancelled by its client",
            Label::ClientError => "the request failed",
        }
    }
}

/// A reply's label and the evidence for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// the label
    pub label: Label,
    /// the single-token run, if there is one
    pub run: Option<SingleRun>,
    /// the loop, if there is one
    pub looping: Option<Loop>,
    /// what was seen, by name
    pub evidence: BTreeMap<String, Value>,
}

impl Labelled {
    /// True when the output collapsed into a single token, graded correct or not. Loops are counted apart:
    /// a healthy model may loop on one question, but it never ends in a run of one token.
    pub fn degenerate(&self) -> bool {
        self.run.is_some()
    }
}

/// Labels one reply by itself.
pub fn label(c: &Completion) -> Labelled {
    let mut out = Labelled { label: Label::Healthy, run: None, looping: None, evidence: BTreeMap::new() };
    let mut say = |key: &str, value: Value| {
        out.evidence.insert(key.to_owned(), value);
    };
    if c.finish_reason == Some(FinishReason::Error) || c.error.is_some() {
        out.label = Label::ClientError;
        say("error", json!(c.error.as_deref().unwrap_or("finish_reason is error")));
        return out;
    }
    let (text, tail) = match (&c.text, &c.text_tail) {
        (Some(text), _) => (Some(text.as_str()), false),
        (None, Some(tail)) => (Some(tail.as_str()), true),
        (None, None) => (None, false),
    };
    let cancelled = c.finish_reason == Some(FinishReason::Cancelled);
    let limited = c.finish_reason.map(|r| r == FinishReason::Length || cancelled);
    out.run = run::find(text, tail, c.token_ids.as_deref(), limited);
    if let Some(run) = &out.run {
        out.label = if c.correct == Some(true) { Label::LuckyGarbage } else { Label::SingleTokenRun };
        say("token", json!(run.token));
        say("length", json!(run.length));
        say("start_from_end", json!(run.length));
        say("start", json!(run.start));
        say("unit", json!(run.unit));
        say("seen", json!(run.seen()));
        if let Some(answer) = c.extracted.as_ref().filter(|a| tail && !a.is_empty()) {
            say("before_the_run", json!(format!("the answer {answer:?} was read from text before the tail")));
        }
        return out;
    }
    if cancelled {
        out.label = Label::Cancelled;
        say("completion_tokens", json!(c.completion_tokens));
        return out;
    }
    let nothing = text.is_some_and(|t| t.trim().is_empty()) && !tail;
    if nothing || c.completion_tokens == Some(0) {
        out.label = Label::Empty;
        say("completion_tokens", json!(c.completion_tokens));
        return out;
    }
    out.looping = text.and_then(|t| looping::find(t, tail, limited));
    if let Some(l) = &out.looping {
        out.label = Label::NgramLoop;
        say("period", json!(l.period));
        say("repeats", json!((l.repeats * 10.0).round() / 10.0));
        say("unit", json!(l.unit));
        say("unit_of_period", json!("characters"));
        return out;
    }
    if limited == Some(true) {
        out.label = Label::CutOff;
        say("finish_reason", json!("length"));
        say("completion_tokens", json!(c.completion_tokens));
    } else if limited.is_none() && c.correct == Some(false) && text.is_some_and(ends_in_the_middle) {
        out.label = Label::CutOff;
        say("inferred", json!("no finish reason is known; the text ends inside a sentence"));
    }
    out
}

/// Labels the replies of one leg, each by itself and then across runs.
pub fn label_all<'a>(completions: impl IntoIterator<Item = &'a Completion>) -> Vec<Labelled> {
    let completions: Vec<&Completion> = completions.into_iter().collect();
    let mut labels: Vec<Labelled> = completions.iter().map(|c| label(c)).collect();
    across(&completions, &mut labels);
    labels
}

/// True when a text stops where no sentence, list or formula would.
fn ends_in_the_middle(text: &str) -> bool {
    if text.ends_with('\n') {
        return false;
    }
    match text.chars().next_back() {
        Some(c) => {
            c.is_alphanumeric() || matches!(c, ' ' | ',' | '-' | '(' | '=' | '+' | '*' | '/' | '$' | '<')
        }
        None => false,
    }
}
