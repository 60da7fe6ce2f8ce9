//! Blocks of every result: witnessed where the replies carry them, else replayed from the first request on.

use super::hypotheses::{self, Known, Target};
use super::requests::{Matched, Requests};
use crate::pool::exposure::Width;
use crate::pool::{Demand, FreeList, Holding};
use std::collections::BTreeSet;

/// What a replay yields.
#[derive(Clone, Debug)]
pub struct Played {
    /// requests before the first result, where that is known or guessed
    pub warmup: Option<usize>,
    /// requests replayed
    pub requests: usize,
    /// demand and blocks of each result; `None` where it has no place
    pub of_row: Vec<Option<(Demand, Holding)>>,
    /// blocks handed out before each result, counting each time
    pub taken: Vec<Option<u64>>,
    /// results whose blocks depend on the order in which overlapping requests took theirs
    pub unsure: BTreeSet<usize>,
    /// how the blocks are known
    pub how: String,
    /// true when the replies themselves name their blocks
    pub witnessed: bool,
    /// values chosen by looking at the labels: the number of warm-up requests, when no log says it
    pub chosen: u32,
}

impl Played {
    /// Results as the hypotheses see them: those whose blocks are unsure count as unknown.
    pub fn known(&self) -> Vec<Known<'_>> {
        let of = |(i, k): (usize, &'_ Option<(Demand, Holding)>)| match k {
            Some(_) if self.unsure.contains(&i) => None,
            Some(_) => Some(i),
            None => None,
        };
        let at: Vec<Option<usize>> = self.of_row.iter().enumerate().map(of).collect();
        at.into_iter().map(|i| i.and_then(|i| self.of_row[i].as_ref()).map(|(d, h)| (d, h))).collect()
    }

    /// Results that have a place.
    pub fn placed(&self) -> usize {
        self.of_row.iter().flatten().count()
    }
}

/// Finds the blocks of every result. `None` when a request does not fit into the pool.
pub fn play(r: &Requests<'_>, targets: &[Target]) -> Option<Played> {
    if !r.rows.is_empty() && r.rows.iter().all(|c| c.kv_pages.is_some()) {
        return Some(witnessed(r));
    }
    let guesses: Vec<usize> = if r.guessed() { vec![0, 1, 2, 3] } else { vec![0] };
    let tried: Vec<(u64, Played)> = guesses
        .iter()
        .filter_map(|front| {
            let shifted = r.shifted(*front);
            let mut played = replay(&shifted)?;
            if r.guessed() {
                played.warmup = Some(*front);
            }
            let score = hypotheses::overflow(Width::I32, &r.geometry, &played.known(), targets);
            Some((score.explained, played))
        })
        .collect();
    let best = tried.iter().map(|(n, _)| *n).max()?;
    let fits: Vec<String> = tried
        .iter()
        .filter(|(n, _)| *n == best)
        .filter_map(|(_, p)| p.warmup)
        .map(|w| w.to_string())
        .collect();
    let (_, mut played) = tried.into_iter().find(|(n, _)| *n == best)?;
    played.how = match r.matched {
        Matched::Counted(n) => {
            format!("the log answered {} requests, {n} of them before the first result", r.sequence.len())
        }
        Matched::ByDuration => format!(
            "the log answered {} requests; {} of {} results found their place among them by their durations",
            r.sequence.len(),
            played.placed(),
            r.rows.len()
        ),
        Matched::NoLog => format!(
            "no log says how many requests came before the first result; of 0 to 3, {} fit(s) best",
            fits.join(", ")
        ),
        Matched::Shorter => format!(
            "the log ends before the last result; of 0 to 3 requests before the first one, {} fit(s) best",
            fits.join(", ")
        ),
    };
    Some(played)
}

/// In which order requests that ran together take and return their blocks.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// strictly one after the other
    Alone,
    /// together, returned in the order of their start
    Together,
    /// together, the last to start is the first to return
    Reversed,
}

/// Replays the sequence one after the other, and twice more with overlapping requests held together. Results whose
/// blocks differ between the three are unsure.
fn replay(r: &Requests<'_>) -> Option<Played> {
    let (held, taken) = in_order(r, Order::Alone)?;
    let mut unsure = BTreeSet::new();
    if r.running.iter().any(|n| *n > 1) {
        let others = [in_order(r, Order::Together), in_order(r, Order::Reversed)];
        let differs =
            |at: usize| others.iter().any(|o| o.as_ref().is_none_or(|(other, _)| other[at] != held[at]));
        unsure.extend(r.at.iter().enumerate().filter(|(_, at)| at.is_some_and(differs)).map(|(i, _)| i));
    }
    let of_row = r.at.iter().map(|at| at.map(|at| (r.sequence[at], held[at].clone()))).collect();
    let before = r.at.iter().map(|at| at.map(|at| taken[at])).collect();
    let warmup = match r.matched {
        Matched::Counted(n) => Some(n),
        _ => None,
    };
    Some(Played {
        warmup,
        requests: r.sequence.len(),
        of_row,
        taken: before,
        unsure,
        how: String::new(),
        witnessed: false,
        chosen: u32::from(r.guessed()),
    })
}

/// Blocks of every served request and how many had been handed out before it.
fn in_order(r: &Requests<'_>, order: Order) -> Option<(Vec<Holding>, Vec<u64>)> {
    let mut list = FreeList::new(r.geometry);
    let (mut held, mut taken) = (Vec::new(), Vec::new());
    let mut open: Vec<usize> = Vec::new();
    for (i, demand) in r.sequence.iter().enumerate() {
        taken.push(list.taken());
        held.push(list.acquire(demand)?);
        open.push(i);
        let next = r.running.get(i + 1).copied().unwrap_or(0);
        let overlaps =
            order != Order::Alone && r.running[i] > 1 && next > 1 && (open.len() as u64) < r.running[i];
        if !overlaps {
            if order == Order::Reversed {
                open.reverse();
            }
            for done in open.drain(..) {
                list.release(&held[done]);
            }
        }
    }
    Some((held, taken))
}

fn witnessed(r: &Requests<'_>) -> Played {
    let mut seen: BTreeSet<u32> = BTreeSet::new();
    let mut of_row = Vec::new();
    for (i, c) in r.rows.iter().enumerate() {
        let pages = c.kv_pages.clone().unwrap_or_default();
        let recycled = pages.iter().any(|p| seen.contains(p));
        seen.extend(&pages);
        let holding = Holding { state: Vec::new(), attention: vec![pages], recycled };
        of_row.push(r.at[i].map(|at| (r.sequence[at], holding)));
    }
    let taken = vec![None; of_row.len()];
    let how = "the replies name the pages they held".to_owned();
    Played {
        warmup: Some(0),
        requests: of_row.len(),
        of_row,
        taken,
        unsure: BTreeSet::new(),
        how,
        witnessed: true,
        chosen: 0,
    }
}
