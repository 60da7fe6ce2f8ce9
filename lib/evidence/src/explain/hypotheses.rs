//! Rival mechanisms, each scored label by label.
//!
//! A hypothesis says of every request, before its label is looked at, whether its output must be bad. Those with a
//! free parameter (after which request? after how many seconds?) are given the best value the labels allow, and
//! the number of parameters is said, so that a reader sees when a rival loses in spite of that help.

use crate::pool::exposure::{Exposure, Width};
use crate::pool::{Demand, Geometry, Holding};
use crate::stats::power::percent;
use cute_records::Completion;

/// What a hypothesis says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// the output must be bad
    Bad,
    /// the output must be good
    Good,
    /// either: the evidence does not decide it
    Open,
}

/// A reply's label as the hypotheses see it; `None` where a failed request left no output.
pub type Target = Option<bool>;

/// One hypothesis and how it fared.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// identifier
    pub id: String,
    /// what it claims
    pub says: String,
    /// values that were chosen by looking at the labels
    pub free: u32,
    /// what it says of each request
    pub calls: Vec<Call>,
    /// labels it explains
    pub explained: u64,
    /// bad outputs it calls good
    pub missed: u64,
    /// good outputs it calls bad
    pub false_alarms: u64,
    /// labels it leaves open
    pub open: u64,
    /// the width, for those about offsets
    pub width: Option<Width>,
}

impl Score {
    fn new(
        id: impl Into<String>,
        says: impl Into<String>,
        free: u32,
        calls: Vec<Call>,
        targets: &[Target],
    ) -> Score {
        let mut s = Score {
            id: id.into(),
            says: says.into(),
            free,
            explained: 0,
            missed: 0,
            false_alarms: 0,
            open: 0,
            width: None,
            calls,
        };
        for (call, target) in s.calls.iter().zip(targets) {
            match (call, target) {
                (_, None) => {}
                (Call::Open, Some(_)) => s.open += 1,
                (Call::Bad, Some(true)) | (Call::Good, Some(false)) => s.explained += 1,
                (Call::Good, Some(true)) => s.missed += 1,
                (Call::Bad, Some(false)) => s.false_alarms += 1,
            }
        }
        s
    }

    /// Positions at which it is contradicted or says nothing.
    pub fn unexplained<'a>(&'a self, targets: &'a [Target]) -> impl Iterator<Item = usize> + 'a {
        let right = |i: &usize| {
            matches!(
                (self.calls[*i], targets[*i]),
                (_, None) | (Call::Bad, Some(true)) | (Call::Good, Some(false))
            )
        };
        (0..targets.len()).filter(move |i| !right(i))
    }

    /// Positions it calls bad.
    pub fn bad(&self) -> impl Iterator<Item = usize> + '_ {
        self.calls.iter().enumerate().filter(|(_, c)| **c == Call::Bad).map(|(i, _)| i)
    }
}

/// Fewer bad tokens than this at the end of an output cannot be told from style.
const VISIBLE: u64 = 8;

/// What is known of one result: its demand and its blocks; `None` when it has no place in the sequence.
pub type Known<'a> = Option<(&'a Demand, &'a Holding)>;

/// Calls of an index width on requests whose blocks are known.
pub fn overflow(width: Width, g: &Geometry, known: &[Known<'_>], targets: &[Target]) -> Score {
    let call = |(d, h): (&Demand, &Holding)| match width.exposure(g, d, h) {
        Exposure::Clean => Call::Good,
        Exposure::Open => Call::Open,
        Exposure::Bad { shows: 0, .. } => Call::Good,
        Exposure::Bad { shows, .. } if shows < VISIBLE => Call::Open,
        Exposure::Bad { .. } => Call::Bad,
    };
    let calls: Vec<Call> = known.iter().map(|k| k.map_or(Call::Open, call)).collect();
    let says = if width.reachable(g) {
        let token = match width.first_bad_token(g) {
            0 => String::new(),
            t => format!(" token {t}"),
        };
        format!(
            "a KV byte offset beyond {} is bad: block {}{token} upward",
            width.words(),
            width.first_bad_block(g)
        )
    } else {
        format!("a KV byte offset beyond {} is bad: the pool ends before it", width.words())
    };
    // Widths that no computer has were found by trying them all.
    let free = u32::from(width != Width::I32 && width != Width::U32);
    Score { width: Some(width), ..Score::new(width.mechanism(), says, free, calls, targets) }
}

/// Widths worth trying on evidence that witnesses its blocks: all that the pool straddles. On replayed evidence only
/// the widths that computers have are tried, so that nothing is chosen by looking at the labels.
pub fn widths(g: &Geometry, witnessed: bool) -> Vec<Width> {
    let mut out = vec![Width::I32, Width::U32];
    if witnessed {
        out.extend((8..48).map(Width).filter(|w| w.first_bad_block(g) > 0 && w.reachable(g)));
        out.sort_unstable();
        out.dedup();
    }
    out
}

/// The rivals that need the replay: recycled blocks, the null block.
pub fn of_blocks(known: &[Known<'_>], targets: &[Target]) -> Vec<Score> {
    let call = |bad: Option<bool>| bad.map_or(Call::Open, |bad| if bad { Call::Bad } else { Call::Good });
    let recycled = known.iter().map(|k| call(k.map(|(_, h)| h.recycled))).collect();
    let null = known.iter().map(|k| call(k.map(|(_, h)| h.all().any(|b| b == 0)))).collect();
    vec![
        Score::new(
            "recycled_block",
            "a block is bad when it is used again: the free list has wrapped",
            0,
            recycled,
            targets,
        ),
        Score::new("null_block", "a request that was given block 0 is bad", 0, null, targets),
    ]
}

/// The rivals that look at order, time or tokens only.
pub fn of_order(rows: &[&Completion], targets: &[Target]) -> Vec<Score> {
    let mut out = Vec::new();
    let order: Vec<f64> = rows.iter().map(|c| c.ordinal as f64).collect();
    out.extend(threshold(
        "after_n_requests",
        "bad for ever after so many requests",
        "request",
        &order,
        targets,
    ));
    let seconds = cumulative(rows, |c| c.wall_ms.map(|t| t / 1e3));
    if let Some(seconds) = seconds {
        out.extend(threshold(
            "after_elapsed_time",
            "bad for ever after so many seconds",
            "second",
            &seconds,
            targets,
        ));
    }
    if let Some(tokens) =
        cumulative(rows, |c| Some((c.prompt_tokens.unwrap_or(0) + c.completion_tokens?) as f64))
    {
        out.extend(threshold(
            "after_n_tokens",
            "bad for ever after so many tokens",
            "token",
            &tokens,
            targets,
        ));
    }
    let bad = targets.iter().flatten().filter(|b| **b).count();
    let good = targets.iter().flatten().count() - bad;
    let rate = percent(bad as f64 / (bad + good).max(1) as f64);
    let call = if bad > good { Call::Bad } else { Call::Good };
    let says =
        format!("each request is bad by itself, with a chance of {rate}: the likelier outcome is called");
    out.push(Score::new("independent", says, 1, vec![call; rows.len()], targets));
    out.push(Score::new("nothing", "no request is ever bad", 0, vec![Call::Good; rows.len()], targets));
    out
}

/// Sum of a counter before each request; `None` when a row lacks it.
fn cumulative(rows: &[&Completion], of: impl Fn(&Completion) -> Option<f64>) -> Option<Vec<f64>> {
    let mut sum = 0.0;
    rows.iter()
        .map(|c| {
            let before = sum;
            sum += of(c)?;
            Some(before)
        })
        .collect()
}

/// The best "for ever after" that the labels allow.
fn threshold(id: &str, says: &str, unit: &str, counter: &[f64], targets: &[Target]) -> Option<Score> {
    let cut =
        |at: f64| counter.iter().map(|x| if *x >= at { Call::Bad } else { Call::Good }).collect::<Vec<_>>();
    let bad: Vec<usize> = (0..targets.len()).filter(|i| targets[*i] == Some(true)).collect();
    let good: Vec<usize> = (0..targets.len()).filter(|i| targets[*i] == Some(false)).collect();
    // Only an edge from good to bad can be the best cut, or no cut at all.
    let edges = bad.iter().filter(|i| **i == 0 || targets[**i - 1] != Some(true));
    let right = |at: f64| {
        bad.iter().filter(|i| counter[**i] >= at).count() + good.iter().filter(|i| counter[**i] < at).count()
    };
    let best = edges.map(|i| counter[*i]).max_by_key(|at| right(*at))?;
    let says = format!("{says}; best: {unit} {best:.0}");
    Some(Score::new(id, says, 1, cut(best), targets))
}

/// Best first: most labels explained, then fewest chosen values, then fewest open labels.
pub fn rank(scores: &mut [Score]) {
    scores.sort_by(|a, b| b.explained.cmp(&a.explained).then(a.free.cmp(&b.free)).then(a.open.cmp(&b.open)));
}
