//! Runs against their ends: was every producer of this stream complete, and is what it wrote still here?

use crate::record::{Count, End, Record};
use crate::{Parsed, Run};

/// One `run` of the stream and how it ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// the tool that wrote the run
    pub tool: String,
    /// records seen since its `run`, that one included
    pub seen: Count,
    /// its `end`, if it came
    pub end: Option<End>,
}

impl Span {
    /// Why this span is no evidence, if it is not.
    pub fn trouble(&self) -> Option<String> {
        match &self.end {
            None => Some(format!("{}: its stream has no `end` record: the producer was cut off", self.tool)),
            Some(end) if !end.complete => Some(format!(
                "{}: ended incomplete{}",
                self.tool,
                end.reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default()
            )),
            Some(end) if end.counts != self.seen => Some(format!(
                "{}: its `end` counts {} records, {} arrived: lines were lost or altered between the tools",
                self.tool,
                all(&end.counts),
                all(&self.seen)
            )),
            Some(_) => None,
        }
    }
}

/// Records of all types; more than a `u64` holds, if an `end` says so.
fn all(counts: &Count) -> u128 {
    counts.values().map(|n| u128::from(*n)).sum()
}

/// Follows a stream and remembers each `run` and its `end`.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    spans: Vec<Span>,
    orphans: u64,
}

impl Ledger {
    /// Takes note of the next record of the stream.
    pub fn note(&mut self, parsed: &Parsed) {
        let (kind, record) = match parsed {
            Parsed::Known(r) => (r.kind(), Some(&**r)),
            Parsed::Unknown(kind) => (kind.as_str(), None),
        };
        if let Some(Record::End(end)) = record {
            match self.spans.iter_mut().rev().find(|s| s.end.is_none() && s.tool == end.tool) {
                Some(span) => span.end = Some(end.clone()),
                None => self.orphans += 1,
            }
        }
        if let Some(Record::Run(Run { tool, .. })) = record {
            self.spans.push(Span { tool: tool.clone(), seen: Count::new(), end: None });
        }
        for span in self.spans.iter_mut().filter(|s| s.end.is_none()) {
            *span.seen.entry(kind.to_owned()).or_default() += 1;
        }
    }

    /// Every run, in the order of their `run` records.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Everything that keeps this stream from being evidence; empty when all is well.
    pub fn trouble(&self) -> Vec<String> {
        let mut out: Vec<String> = self.spans.iter().filter_map(Span::trouble).collect();
        if self.orphans > 0 {
            out.push(format!("{} `end` record(s) without their `run`", self.orphans));
        }
        out
    }
}
