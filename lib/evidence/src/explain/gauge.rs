//! The pool's usage gauge as a witness: how many blocks did each request hold?
//!
//! A server's statistics lines say every few seconds how many requests run and what share of the pool is in use.
//! While one runs, that share is what this one request holds. The gauge is rounded, so it bounds the number of
//! blocks from both sides; in pools of under a thousand blocks the bounds meet.
//!
//! A server logs a plain request when it has ended and a streamed one when it begins: readings belong to the
//! request line after them, or before them. A log that ends with readings of a running request ends streamed; the
//! change shows as two request lines with no reading in between, one ending and the next beginning.

use crate::checks::{LogLine, What};
use crate::pool::Geometry;

/// What the log says about one served request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Served {
    /// least and most blocks held, by the largest reading with one request running
    pub blocks: Option<(u64, u64)>,
    /// most requests running at once while it ran
    pub running: u64,
    /// true when its line was logged as it began
    pub streamed: bool,
    /// when its line was logged, in seconds, between the readings around it
    pub logged: Option<(f64, f64)>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    running: u64,
    percent: f64,
    at: Option<f64>,
}

/// Reads the gauge of one boot; lines in log order. One entry for each request that made the server generate.
pub fn read(log: &[&LogLine], g: Option<&Geometry>) -> Vec<Served> {
    // Readings before the first request line, between each two, and after the last.
    let mut between: Vec<Vec<Reading>> = vec![Vec::new()];
    for line in log {
        match line.what {
            What::Reading { running, percent } => {
                if let Some(last) = between.last_mut() {
                    last.push(Reading { running, percent, at: line.at });
                }
            }
            What::Request => between.push(Vec::new()),
            What::Trouble(_) => {}
        }
    }
    let n = between.len() - 1;
    let streamed_from = first_streamed(&between);
    (0..n)
        .map(|i| {
            let streamed = i >= streamed_from;
            let own = if streamed { &between[i + 1] } else { &between[i] };
            let alone = own
                .iter()
                .filter(|r| r.running == 1 && r.percent > 0.0 && r.percent <= 100.0)
                .map(|r| r.percent);
            let largest = alone.fold(None, |most: Option<f64>, p| Some(most.map_or(p, |m| m.max(p))));
            let before = between[..=i].iter().rev().find_map(|b| b.iter().rev().find_map(|r| r.at));
            let after = between[i + 1..].iter().find_map(|b| b.iter().find_map(|r| r.at));
            Served {
                blocks: largest.zip(g).map(|(p, g)| bounds(p, g.usable())),
                running: own.iter().map(|r| r.running).max().unwrap_or(0),
                streamed,
                logged: before.zip(after),
            }
        })
        .collect()
}

/// The first request whose line was logged as it began; as many as there are when none was.
fn first_streamed(between: &[Vec<Reading>]) -> usize {
    let n = between.len() - 1;
    let busy = |b: &Vec<Reading>| b.iter().any(|r| r.running > 0);
    if n == 0 || !between.last().is_some_and(busy) {
        return n;
    }
    // Lines i-1 and i with nothing between: one ended, the next began.
    (1..n).find(|i| between[*i].is_empty() && busy(&between[*i - 1])).unwrap_or(0)
}

/// Block counts that a gauge of `usable` blocks shows as `percent`, rounded to a tenth.
fn bounds(percent: f64, usable: u64) -> (u64, u64) {
    let blocks = |p: f64| p / 100.0 * usable as f64;
    let low = blocks(percent - 0.05).ceil().max(0.0) as u64;
    let high = blocks(percent + 0.05).floor().max(0.0) as u64;
    // In pools so small that a tenth of a percent is less than a block the nearest count is the only one.
    let nearest = blocks(percent).round() as u64;
    if low > high { (nearest, nearest) } else { (low, high) }
}
