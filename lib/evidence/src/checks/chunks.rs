//! Streamed replies: the chunks of each, put together, are the reply.
//!
//! Chunks come before the reply they belong to, so only those of replies in flight are held.

use super::{FindingExt, finding};
use cute_records::digest::Hasher;
use cute_records::{Chunk, Completion, End, Finding, FinishReason, Run, Severity};
use std::collections::BTreeMap;

/// The chunks of one producer's replies in flight, and what was found.
#[derive(Debug, Default)]
pub struct Chunks {
    open: BTreeMap<u64, Partial>,
    /// the producer was told to stream
    streamed: bool,
    findings: Vec<Finding>,
}

/// A reply, as far as its chunks say.
#[derive(Debug, Default)]
struct Partial {
    id: String,
    parts: u64,
    text: Option<String>,
    tokens: u64,
    ids: Hasher,
    end: Option<(FinishReason, Option<String>)>,
    /// the first thing that is wrong with the chunks themselves
    wrong: Option<String>,
}

impl Chunks {
    /// A producer begins.
    pub fn begin(&mut self, run: &Run) {
        self.open.clear();
        self.streamed = run.config.get("stream").is_some_and(|s| s.value == true);
    }

    /// Takes note of a chunk.
    pub fn note(&mut self, c: &Chunk) {
        let p = self.open.entry(c.ordinal).or_default();
        let mut wrong = None;
        if p.end.is_some() {
            wrong = Some(format!("chunk {} comes after the last one", c.part));
        } else if c.part != p.parts {
            wrong = Some(format!("chunk {} comes where chunk {} should", c.part, p.parts));
        } else if p.parts > 0 && p.id != c.id {
            wrong = Some(format!("chunk {} is of {:?}, those before of {:?}", c.part, c.id, p.id));
        }
        p.wrong = p.wrong.take().or(wrong);
        (p.id, p.parts) = (c.id.clone(), p.parts + 1);
        if let Some(text) = &c.text {
            p.text.get_or_insert_default().push_str(text);
        }
        p.tokens += c.token_ids.len() as u64;
        for id in &c.token_ids {
            p.ids.update(&id.to_le_bytes());
        }
        p.end = c.finish_reason.map(|reason| (reason, c.stop_reason.clone())).or(p.end.take());
    }

    /// Compares a reply with its chunks.
    pub fn close(&mut self, c: &Completion) {
        let why = match self.open.remove(&c.ordinal) {
            Some(partial) => partial.difference(c),
            None if self.streamed && c.text.is_some() => Some("it has none".to_owned()),
            None => None,
        };
        self.findings.extend(why.map(|why| {
            let message = format!(
                "request {} (run {}, index {}): its chunks do not make its reply: {why}",
                c.ordinal, c.run, c.index
            );
            let found = finding("chunks_differ", Severity::Error, message).ordinal(c.ordinal);
            found.with("run", c.run).with("index", c.index)
        }));
    }

    /// A producer ends.
    pub fn end(&mut self, end: &End) {
        for (ordinal, partial) in std::mem::take(&mut self.open).into_iter().filter(|_| end.complete) {
            let message = format!("request {ordinal}: {} chunk(s), and the reply never came", partial.parts);
            self.findings.push(finding("chunks_differ", Severity::Error, message).ordinal(ordinal));
        }
    }

    /// What was found.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.clone()
    }
}

impl Partial {
    /// What differs first between the chunks and the reply.
    fn difference(self, c: &Completion) -> Option<String> {
        let Partial { id, text, tokens, ids, end, wrong, .. } = self;
        let (reason, stop) = end.clone().unzip();
        let token_sha256 = c.token_sha256.as_ref().filter(|sha| **sha != ids.hex());
        let said = |x: Option<FinishReason>| x.map_or("none".to_owned(), |r| format!("{r:?}").to_lowercase());
        if wrong.is_some() {
            wrong
        } else if id != c.id {
            Some(format!("they are of {id:?}, the reply is of {:?}", c.id))
        } else if end.is_none() {
            Some("the last one is missing: none has a finish_reason".to_owned())
        } else if let Some(n) = c.completion_tokens.filter(|n| *n != tokens) {
            Some(format!("they hold {tokens} tokens, the reply has {n}"))
        } else if let (Some(_), n) = (token_sha256, tokens) {
            Some(format!("their {n} tokens are not those of the reply"))
        } else if let (Some(a), Some(b)) = (&text, &c.text)
            && a != b
        {
            let at = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
            Some(format!(
                "their text differs from the reply's at byte {at} ({} and {} bytes)",
                a.len(),
                b.len()
            ))
        } else if text.is_some() != c.text.is_some() {
            let which =
                if text.is_some() { "they have text, and the reply has none" } else { "they lack text" };
            Some(which.to_owned())
        } else if reason != c.finish_reason {
            Some(format!("their finish_reason is {}, the reply's {}", said(reason), said(c.finish_reason)))
        } else if stop.flatten() != c.stop_reason {
            Some("their stop_reason is not the reply's".to_owned())
        } else {
            None
        }
    }
}
