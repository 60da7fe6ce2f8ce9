//! The requests of a leg in the order in which the pool saw them, and what each asked of it.
//!
//! Results know what their client asked; the log knows what the server answered. The difference is warm-up, or
//! results that are missing. How many blocks a request took is read from its token counts, else from the usage
//! gauge, else from the length of its prompt, else assumed to be one.

use super::gauge::{self, Served};
use super::placing;
use crate::checks::{Leg, LogLine};
use crate::pool::{Demand, Geometry};
use cute_records::{Completion, Pool};
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
    pub log: Vec<&'a LogLine>,
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
        let within = |e: &&LogLine| match &here {
            None => true,
            Some((file, line)) => {
                let end = next.as_ref().filter(|(f, _)| f == file).map_or(u64::MAX, |(_, l)| *l);
                *e.file == **file && e.line > *line && e.line < end
            }
        };
        out.push(Boot { pool, log: leg.log.iter().filter(within).collect() });
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
    /// the log answered fewer requests than there are results: it ends early, and is not used
    Shorter,
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
        let served = gauge::read(&boot.log, Some(&geometry));
        // Ordinals leave room for results that are known to be missing.
        let expected = rows.iter().map(|c| (c.ordinal as usize).saturating_add(1)).max().unwrap_or(0);
        // Ordinals that leave a thousand times more room than there are results are no order of requests.
        let wild = expected > 1000 * rows.len() + 1000;
        let by_ordinal = |n: usize| {
            let at = |(i, c): (usize, &&Completion)| Some(n + if wild { i } else { c.ordinal as usize });
            rows.iter().enumerate().map(at).collect()
        };
        let (matched, at) = match served.len().checked_sub(expected) {
            _ if served.is_empty() => (Matched::NoLog, by_ordinal(0)),
            Some(n) if n <= MOST_WARMUP => (Matched::Counted(n), by_ordinal(n)),
            Some(_) => (Matched::ByDuration, between(&rows, placing::place(&rows, &served))),
            None => (Matched::Shorter, by_ordinal(0)),
        };
        let served = if matched == Matched::Shorter { Vec::new() } else { served };
        let mut requests = Requests {
            geometry,
            rows,
            matched,
            sequence: Vec::new(),
            basis: Vec::new(),
            running: Vec::new(),
            at,
        };
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

    /// True when the number of requests before the first result must be guessed.
    pub fn guessed(&self) -> bool {
        matches!(self.matched, Matched::NoLog | Matched::Shorter)
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

/// Results without a place of their own, where the results around them leave no choice: both neighbours stand at
/// the same distance from their ordinals.
fn between(rows: &[&Completion], mut at: Vec<Option<usize>>) -> Vec<Option<usize>> {
    let distance =
        |i: usize, at: &[Option<usize>]| at[i].and_then(|p| p.checked_sub(rows[i].ordinal as usize));
    for i in 0..rows.len() {
        if at[i].is_none() {
            let before = (0..i).rev().find_map(|j| distance(j, &at));
            let after = (i + 1..rows.len()).find_map(|j| distance(j, &at));
            if let (Some(a), Some(b)) = (before, after)
                && a == b
            {
                at[i] = (rows[i].ordinal as usize).checked_add(a);
            }
        }
    }
    at
}

fn demand(row: Option<&Completion>, seen: Option<&Served>, g: &Geometry) -> (Demand, Basis) {
    let prompt = row.and_then(|c| c.prompt_tokens);
    if let Some(tokens) = row.and_then(|c| Some(c.prompt_tokens? + c.completion_tokens?)) {
        return (
            Demand { attention: g.attention_blocks(tokens), tokens: Some(tokens), prompt },
            Basis::Tokens,
        );
    }
    let estimate = row.and_then(|c| Some(c.prompt_chars? / CHARACTERS + c.completion_tokens?));
    if let Some((low, _)) = seen.and_then(|s| s.blocks) {
        // Where the gauge leaves a choice, the smaller count: it was certainly reached.
        let attention = (low.saturating_sub(g.state_blocks) / g.attention_groups).max(1);
        let room = ((attention - 1) * g.block_size + 1, attention * g.block_size);
        return (
            Demand { attention, tokens: estimate.map(|t| t.clamp(room.0, room.1)), prompt },
            Basis::Gauge,
        );
    }
    match estimate {
        Some(t) => (Demand { attention: g.attention_blocks(t), tokens: Some(t), prompt }, Basis::Characters),
        None => (Demand { prompt, ..ONE }, Basis::Assumed),
    }
}
