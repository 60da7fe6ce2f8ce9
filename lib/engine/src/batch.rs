//! What one step computes: rows of tokens, and for each sequence where its rows, slot and pages are.

/// The kind of a step. A sequence's decode rows never share a step with prefill rows, so that the path of a
/// row, and with it its bits, does not depend on its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// prompt tokens, any number a sequence
    Prefill,
    /// one generated token a sequence
    Decode,
}

impl BatchKind {
    /// As it stands in records.
    pub fn name(self) -> &'static str {
        match self {
            BatchKind::Prefill => "prefill",
            BatchKind::Decode => "decode",
        }
    }
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// ordinal of the request
    pub owner: u64,
    /// recurrent slot
    pub slot: u32,
    /// epoch the slot must have
    pub epoch: u64,
    /// KV pages, in order of position
    pub pages: Vec<u32>,
    /// epoch each of them must have
    pub page_epochs: Vec<u64>,
    /// position of the first token
    pub start: usize,
    /// first row in the batch
    pub row: usize,
    /// rows
    pub len: usize,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// prefill or decode
    pub kind: BatchKind,
    /// token of each row
    pub tokens: Vec<u32>,
    /// the sequences, rows ascending and without gaps
    pub segments: Vec<Segment>,
    /// rows whose logits are wanted
    pub logit_rows: Vec<usize>,
}

impl Batch {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}
