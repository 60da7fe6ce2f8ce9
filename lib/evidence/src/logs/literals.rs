//! Finds the first of many literals, several gigabytes a second where the processor has vector instructions.

use super::template::TemplateError;
use aho_corasick::packed::{Config, MatchKind as Packed, Searcher};
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind, Span};

/// Literals one vector search takes.
const PART: usize = 56;

/// A set of literals, numbered in the order given.
#[derive(Debug)]
pub(crate) struct Literals {
    lens: Vec<usize>,
    /// searches over consecutive parts of the set; empty where there are no vector instructions
    parts: Vec<Searcher>,
    all: AhoCorasick,
}

/// A literal's occurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub start: usize,
    pub literal: usize,
}

/// What is known about the hits ahead, one entry a part.
#[derive(Debug, Default)]
pub(crate) struct Ahead(Vec<Option<Option<Hit>>>);

impl Literals {
    pub(crate) fn new(literals: &[&'static str]) -> Result<Self, TemplateError> {
        let all = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::DFA))
            .match_kind(MatchKind::LeftmostLongest)
            .build(literals)
            .map_err(|e| TemplateError { template: "all literals".to_owned(), message: e.to_string() })?;
        let part =
            |part: &[&str]| Config::new().match_kind(Packed::LeftmostLongest).builder().extend(part).build();
        let parts: Option<Vec<Searcher>> = literals.chunks(PART).map(part).collect();
        let lens = literals.iter().map(|l| l.len()).collect();
        Ok(Literals { lens, parts: parts.unwrap_or_default(), all })
    }

    /// The first hit in `bytes`; of two at one place the longer literal.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<Hit> {
        self.find_from(bytes, 0, &mut Ahead::default())
    }

    /// The first hit at or behind `from`. `ahead` belongs to this `bytes` and remembers what was found further on.
    pub(crate) fn find_from(&self, bytes: &[u8], from: usize, ahead: &mut Ahead) -> Option<Hit> {
        let span = Span { start: from, end: bytes.len() };
        if self.parts.is_empty() {
            let m = self.all.find(aho_corasick::Input::new(bytes).span(span))?;
            return Some(Hit { start: m.start(), literal: m.pattern().as_usize() });
        }
        ahead.0.resize(self.parts.len(), None);
        let mut best: Option<Hit> = None;
        for (i, (part, known)) in self.parts.iter().zip(&mut ahead.0).enumerate() {
            let fresh = known.is_some_and(|hit| hit.is_none_or(|h| h.start >= from));
            if !fresh {
                let hit = part.find_in(bytes, span);
                *known =
                    Some(hit.map(|m| Hit { start: m.start(), literal: i * PART + m.pattern().as_usize() }));
            }
            if let Some(Some(hit)) = *known {
                let before = |b: Hit| (hit.start, self.lens[b.literal]) < (b.start, self.lens[hit.literal]);
                if best.is_none_or(before) {
                    best = Some(hit);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_search_and_automaton_find_the_same_hits() {
        let words: Vec<&'static str> = (0..150).map(|i| &*format!("word{i}x").leak()).collect();
        let mut literals = words.clone();
        literals.extend(["word1", "ord1", "[C2", "[C2_DIAG]"]);
        let set = Literals::new(&literals).unwrap();
        let mut text = Vec::new();
        for i in 0..2000usize {
            text.extend_from_slice(b"some text ");
            text.extend_from_slice(literals[i * 7 % literals.len()].as_bytes());
            text.push(if i % 3 == 0 { b'\n' } else { 0xff });
        }
        let mut ahead = Ahead::default();
        let mut from = 0;
        loop {
            let expect = set.all.find(aho_corasick::Input::new(&text).span(from..text.len()));
            let expect = expect.map(|m| Hit { start: m.start(), literal: m.pattern().as_usize() });
            let got = set.find_from(&text, from, &mut ahead);
            assert_eq!(got, expect, "from {from}");
            match got {
                Some(hit) => from = hit.start + 1,
                None => break,
            }
        }
    }
}
