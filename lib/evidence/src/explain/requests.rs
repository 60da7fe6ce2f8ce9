//! The requests of a leg in the order in which the pool saw them, and what each asked of it.
//!
//! Results know what their client asked; the log knows what the server answered. The difference is warm-up, or
//! results that are missing. How many blocks a request took is read from its token counts, else from the usage
//! gauge, else from the length of its prompt, else assumed to be one.

use super::gauge::{self, Served};
use super::placing;
use crate::checks::Leg;
use crate::pool::{Demand, Geometry};
use cute_records::{Completion, Event, Pool};
use std::collections::BTreeMap;

/// How a request's demand is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// prompt and completion tokens of the result
    Tokens,
    /// the usage gauge of the log
    Gauge,
    /// characters of the prompt
    Characters,
    /// nothing: one attention block
    Assumed,
}

impl Basis {
    /// As words.
    pub fn word(self) -> &'static str {
        match self {
            Basis::Tokens => "token counts",
            Basis::Gauge => "usage gauge",
            Basis::Characters => "prompt characters, four a token",
            Basis::Assumed => "assumed to be one block",
        }
    }
}

/// One boot of a server: its pool and what happened on it.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// the pool it reported
    pub pool: &'a Pool,
    /// its recognised log lines, in order
    pub events: Vec<&'a Event>,
}

/// A leg's boots, split where its log reports a pool anew.
pub fn boots(leg: &Leg) -> Vec<Boot<'_>> {
    let place = |p: &Pool| p.source.as_ref().map(|s| (s.file.clone(), s.line));
    let mut pools: Vec<&Pool> = leg.pools.iter().collect();
    pools.sort_by_key(|p| place(p));
    pools.dedup_by(|a, b| a.source.is_none() && b.source.is_none());
    let mut out: Vec<Boot<'_>> = Vec::new();
    for (i, pool) in pools.iter().enumerate() {
        let here = place(pool);
        let next = pools.get(i + 1).and_then(|p| place(p));
        let within = |e: &&Event| match &here {
            None => true,
            Some((file, line)) => {
                let end = next.as_ref().filter(|(f, _)| f == file).map_or(u64::MAX, |(_, l)| *l);
                e.source.file == *file && e.source.line > *line && e.source.line < end
            }
        };
        out.push(Boot { pool, events: leg.events.iter().filter(within).collect() });
    }
    out
}

/// How results were matched with served requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matched {
    /// the log answered so many requests before the first result, and one for each result
    Counted(usize),
    /// results are missing; those that could be were placed by their durations
    ByDuration,
    /// the log says nothing about requests
    NoLog,
    /// the log answered fewer or other requests than there are results
    Unmatched,
}

/// The requests of one leg on one boot.
#[derive(Clone, Debug)]
pub struct Requests<'a> {
    /// the geometry of the pool
    pub geometry: Geometry,
    /// results in order
    pub rows: Vec<&'a Completion>,
    /// how they were matched with the log
    pub matched: Matched,
    /// what every served request asked, in order
    pub sequence: Vec<Demand>,
    /// how that is known
    pub basis: Vec<Basis>,
    /// requests that ran together: of each served request, how many ran at most while it did
    pub running: Vec<u64>,
    /// place of each result in the sequence
    pub at: Vec<Option<usize>>,
}

const ONE: Demand = Demand { attention: 1, tokens: None, prompt: None };
/// More requests than this before the first result are no warm-up: results are missing.
const MOST_WARMUP: usize = 8;
/// Characters of a token, for prompts whose tokens were not counted.
const CHARACTERS: u64 = 4;

impl<'a> Requests<'a> {
    /// Puts a leg's results on a boot.
    pub fn of(leg: &'a Leg, boot: &Boot<'_>, geometry: Geometry) -> Self {
        let rows: Vec<&Completion> = leg.completions.iter().collect();
        let served = gauge::read(&boot.events, Some(&geometry));
        let surplus = served.len().checked_sub(rows.len());
        let (matched, at) = match surplus {
            _ if served.is_empty() => (Matched::NoLog, (0..rows.len()).map(Some).collect()),
            Some(n) if n <= MOST_WARMUP => (Matched::Counted(n), (0..rows.len()).map(|i| Some(i + n)).collect()),
            Some(_) => (Matched::ByDuration, placing::place(&rows, &served)),
            None => (Matched::Unmatched, vec![None; rows.len()]),
        };
        let mut requests = Requests { geometry, rows, matched, sequence: Vec::new(), basis: Vec::new(), running: Vec::new(), at };
        requests.fill(&served);
        requests
    }

    fn fill(&mut self, served: &[Served]) {
        let mut row_of: BTreeMap<usize, &Completion> = BTreeMap::new();
        for (row, at) in self.rows.iter().zip(&self.at) {
            if let Some(at) = at {
                row_of.insert(*at, row);
            }
        }
        let len = served.len().max(self.at.iter().flatten().map(|p| p + 1).max().unwrap_or(0));
        for i in 0..len {
            let (demand, basis) = demand(row_of.get(&i).copied(), served.get(i), &self.geometry);
            self.sequence.push(demand);
            self.basis.push(basis);
            self.running.push(served.get(i).map_or(0, |s| s.running));
        }
    }

    /// The sequence with so many unknown requests in front, for logs that say nothing about warm-up.
    pub fn shifted(&self, front: usize) -> Requests<'a> {
        let mut out = self.clone();
        out.sequence.splice(0..0, std::iter::repeat_n(ONE, front));
        out.basis.splice(0..0, std::iter::repeat_n(Basis::Assumed, front));
        out.running.splice(0..0, std::iter::repeat_n(0, front));
        for at in out.at.iter_mut().flatten() {
            *at += front;
        }
        out
    }

    /// How demands are known, counted over the results that have a place.
    pub fn bases(&self) -> BTreeMap<Basis, u64> {
        let mut out = BTreeMap::new();
        for at in self.at.iter().flatten() {
            *out.entry(self.basis[*at]).or_default() += 1;
        }
        out
    }

    /// Ordinal of the first result from which on requests overlapped, so that the order of blocks is not certain.
    pub fn ambiguous_from(&self) -> Option<u64> {
        let first = self.running.iter().position(|n| *n > 1)?;
        let row = self.at.iter().position(|at| at.is_some_and(|at| at >= first))?;
        Some(self.rows[row].ordinal)
    }
}

fn demand(row: Option<&Completion>, seen: Option<&Served>, g: &Geometry) -> (Demand, Basis) {
    let prompt = row.and_then(|c| c.prompt_tokens);
    if let Some(tokens) = row.and_then(|c| Some(c.prompt_tokens? + c.completion_tokens?)) {
        return (Demand { attention: g.attention_blocks(tokens), tokens: Some(tokens), prompt }, Basis::Tokens);
    }
    let estimate = row.and_then(|c| Some(c.prompt_chars? / CHARACTERS + c.completion_tokens?));
    if let Some((low, _)) = seen.and_then(|s| s.blocks) {
        // Where the gauge leaves a choice, the smaller count: it was certainly reached.
        let attention = (low.saturating_sub(g.state_blocks) / g.attention_groups).max(1);
        let room = ((attention - 1) * g.block_size + 1, attention * g.block_size);
        return (Demand { attention, tokens: estimate.map(|t| t.clamp(room.0, room.1)), prompt }, Basis::Gauge);
    }
    match estimate {
        Some(t) => (Demand { attention: g.attention_blocks(t), tokens: Some(t), prompt }, Basis::Characters),
        None => (Demand { prompt, ..ONE }, Basis::Assumed),
    }
}
