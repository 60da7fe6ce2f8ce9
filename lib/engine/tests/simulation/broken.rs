//! Pools and schedulers broken on purpose, one way each, and the simulator that must see every one of them.

use crate::plan::Plan;
use crate::seed;
use crate::subject::Subject;
use cute_engine::batch::{Batch, BatchKind};
use cute_engine::pool::{Entries, Pool};
use cute_engine::scheduler::Scheduler;
use cute_engine::sequence::Sequence;
use cute_engine::{Error, Request};
use std::collections::VecDeque;

/// What is wrong with a pool.
#[derive(Clone, Copy, Debug, PartialEq)]
enum PoolBug {
    DoubleFree,
    AnyoneMayRelease,
    Leak,
    SameEpoch,
    NullEntry,
    LastInFirstOut,
    OwnerStays,
    HandedOutTwice,
}

/// A pool without scruples: it checks nothing.
#[derive(Debug)]
struct Loose {
    bug: Option<PoolBug>,
    free: VecDeque<u32>,
    entries: Vec<(Option<u64>, u64)>,
    calls: u64,
    used: u64,
}

impl Loose {
    fn new(bug: Option<PoolBug>, len: usize) -> Loose {
        let first = u32::from(bug != Some(PoolBug::NullEntry));
        let entries = vec![(None, 0); len];
        let free = (first..).take(len.saturating_sub(1)).collect();
        Loose { bug, free, entries, calls: 0, used: 0 }
    }
}

impl Entries for Loose {
    fn free(&self) -> usize {
        self.free.len()
    }
    fn capacity(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }
    fn in_use(&self) -> u64 {
        self.used
    }
    fn acquire(&mut self, owner: u64) -> Result<(u32, u64), Error> {
        self.calls += 1;
        let id = match self.bug {
            Some(PoolBug::LastInFirstOut) => self.free.pop_back(),
            Some(PoolBug::HandedOutTwice) if self.calls.is_multiple_of(9) => self.free.front().copied(),
            _ => self.free.pop_front(),
        };
        let id = id.ok_or(Error::ownership("no free entry".into()))?;
        let entry = &mut self.entries[id as usize];
        *entry = (Some(owner), entry.1 + u64::from(self.bug != Some(PoolBug::SameEpoch) || entry.1 == 0));
        self.used += 1;
        Ok((id, entry.1))
    }
    fn release(&mut self, id: u32, _: u64) -> Result<(), Error> {
        self.calls += 1;
        self.used = self.used.saturating_sub(1);
        let times = match self.bug {
            Some(PoolBug::Leak) if self.calls.is_multiple_of(7) => 0,
            Some(PoolBug::DoubleFree) if self.calls.is_multiple_of(5) => 2,
            _ => 1,
        };
        self.free.extend(std::iter::repeat_n(id, times));
        if self.bug != Some(PoolBug::OwnerStays) {
            self.entries[id as usize].0 = None;
        }
        if self.bug == Some(PoolBug::AnyoneMayRelease)
            && let Some((other, e)) = (1u32..).zip(&mut self.entries[1..]).find(|(_, e)| e.0.is_some())
        {
            e.0 = None;
            self.free.push_back(other);
        }
        Ok(())
    }
    fn entry(&self, id: u32) -> Option<(Option<u64>, u64)> {
        self.entries.get(id as usize).copied()
    }
}

/// What is wrong with a scheduler.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    CancelForgetsRelease,
    CancelForgetsPages,
    CancelIsIgnored,
    CancelHitsTheNeighbour,
    PreemptForgetsReply,
    PreemptKeepsState,
    FinishReleasesTwice,
    WrongEpoch,
    PageOfAnEarlierEpoch,
    PageTooMany,
    PageTooFew,
    SomebodyElsesPage,
    BudgetOffByOne,
    OneSequenceTooMany,
    YoungestFirst,
    RequestLost,
    LogitsForgotten,
    StartOffByOne,
    WrongToken,
    SlotOfTheNeighbour,
    RowDropped,
}

struct Broken {
    scheduler: Scheduler<Pool>,
    bug: Option<Bug>,
    calls: u64,
}

impl Broken {
    fn new(bug: Option<Bug>, plan: &Plan) -> Broken {
        let mut limits = plan.limits();
        limits.max_num_batched_tokens += usize::from(bug == Some(Bug::BudgetOffByOne));
        limits.max_num_seqs += usize::from(bug == Some(Bug::OneSequenceTooMany));
        Broken { scheduler: Scheduler::new(limits, plan.num_slots, plan.num_pages), bug, calls: 0 }
    }

    /// Now and then.
    fn now(&mut self, bug: Bug) -> bool {
        self.calls += u64::from(self.bug == Some(bug));
        self.bug == Some(bug) && self.calls.is_multiple_of(3)
    }
}

impl Subject for Broken {
    type Pool = Pool;
    fn scheduler(&mut self) -> &mut Scheduler<Pool> {
        &mut self.scheduler
    }

    fn add(&mut self, request: Request) -> Result<(), Error> {
        if self.now(Bug::RequestLost) { Ok(()) } else { self.scheduler.add(request) }
    }

    fn admit(&mut self) -> Result<Option<usize>, Error> {
        let Some(index) = self.scheduler.admit()? else { return Ok(None) };
        let s = &mut self.scheduler.running[index];
        match self.bug {
            Some(Bug::PreemptForgetsReply) if s.preempted > 0 => {
                s.prefill = s.request.prompt.len();
                s.generated.clear();
            }
            Some(Bug::PreemptKeepsState) if !s.generated.is_empty() => s.computed = s.len() - 1,
            _ => {}
        }
        Ok(Some(index))
    }

    fn cancel(&mut self, ordinal: u64) -> Result<Option<Sequence>, Error> {
        let runs = self.scheduler.index(ordinal);
        match (self.bug, runs) {
            (Some(Bug::CancelForgetsRelease), Some(index)) => Ok(Some(self.scheduler.running.remove(index))),
            (Some(Bug::CancelForgetsPages), Some(index)) => {
                let s = self.scheduler.running.remove(index);
                self.scheduler.slots.release(s.slot, ordinal)?;
                Ok(Some(s))
            }
            (Some(Bug::CancelIsIgnored), _) => Ok(None),
            (Some(Bug::CancelHitsTheNeighbour), Some(_)) => {
                let first = self.scheduler.running[0].request.ordinal;
                self.scheduler.cancel(first)
            }
            _ => self.scheduler.cancel(ordinal),
        }
    }

    fn finish(&mut self, index: usize) -> Result<Sequence, Error> {
        let s = self.scheduler.finish(index)?;
        if self.bug == Some(Bug::FinishReleasesTwice) {
            self.scheduler.slots.release(s.slot, s.request.ordinal)?;
        }
        Ok(s)
    }

    fn schedule(&mut self) -> Result<Option<Batch>, Error> {
        if self.now(Bug::YoungestFirst) {
            self.scheduler.running.reverse();
            let batch = self.scheduler.schedule();
            self.scheduler.running.reverse();
            return batch;
        }
        let Some(mut batch) = self.scheduler.schedule()? else { return Ok(None) };
        let (s, g) = (&mut self.scheduler, &mut batch.segments);
        let (last, count) = (g.len() - 1, g.len());
        let owner = g[last].owner;
        match self.bug {
            Some(Bug::WrongEpoch) => g[last].epoch += 1,
            Some(Bug::PageOfAnEarlierEpoch) => g[last].page_epochs[0] -= 1,
            Some(Bug::PageTooMany) => {
                let (page, epoch) = s.pages.acquire(owner)?;
                let index = s.index(owner).unwrap();
                s.running[index].pages.push(page);
                s.running[index].page_epochs.push(epoch);
                g[last].pages.push(page);
                g[last].page_epochs.push(epoch);
            }
            Some(Bug::PageTooFew) => drop(g[last].pages.pop()),
            Some(Bug::SomebodyElsesPage) if count > 1 => g[last].pages[0] = g[0].pages[0],
            Some(Bug::LogitsForgotten) => drop(batch.logit_rows.pop()),
            Some(Bug::StartOffByOne) if batch.kind == BatchKind::Decode => g[last].start += 1,
            Some(Bug::WrongToken) => batch.tokens[0] ^= 1,
            Some(Bug::SlotOfTheNeighbour) if count > 1 => g[last].slot = g[0].slot,
            Some(Bug::RowDropped) if batch.kind == BatchKind::Decode && count > 1 => {
                g.pop();
                batch.tokens.pop();
                batch.logit_rows.pop();
            }
            _ => {}
        }
        Ok(Some(batch))
    }
}

/// Seeds that are tried before a bug counts as not seen.
const SEEDS: u64 = 300;

/// A bug is seen within [`SEEDS`] seeds, the messages say so, and it shrinks to a few events.
fn seen<S: Subject>(name: &str, expected: &str, make: impl Fn(&Plan) -> S) {
    let found = (0..SEEDS).find_map(|n| seed(n, &make).err());
    let (plan, message) = found.unwrap_or_else(|| panic!("{name} was not seen in {SEEDS} seeds"));
    println!("{name}: {message}");
    assert!(message.contains(expected), "{name}: expected {expected:?} in\n{message}");
    assert!(plan.events.len() <= 8, "{name}: {} events are left of 60\n{message}", plan.events.len());
}

#[test]
fn what_is_not_broken_is_not_seen() {
    for n in 0..SEEDS {
        let loose = |p: &Plan| {
            Scheduler::over(p.limits(), Loose::new(None, p.num_slots), Loose::new(None, p.num_pages))
        };
        let result = seed(n, loose).and(seed(n, |p| Broken::new(None, p)));
        assert!(result.is_ok(), "{}", result.unwrap_err().1);
    }
}

#[test]
fn every_broken_pool_is_seen_through_the_sound_scheduler() {
    for (bug, expected) in [
        (PoolBug::DoubleFree, "free, expected"),
        (PoolBug::AnyoneMayRelease, "the pool has Some((None"),
        (PoolBug::Leak, "free, expected"),
        (PoolBug::SameEpoch, "expected"),
        (PoolBug::NullEntry, "got entry 0, the one free longest is"),
        (PoolBug::LastInFirstOut, "the one free longest is"),
        (PoolBug::OwnerStays, "the pool has Some((Some"),
        (PoolBug::HandedOutTwice, "free"),
    ] {
        seen(&format!("{bug:?} of slots"), expected, |p| {
            Scheduler::over(p.limits(), Loose::new(Some(bug), p.num_slots), Loose::new(None, p.num_pages))
        });
        seen(&format!("{bug:?} of pages"), expected, |p| {
            Scheduler::over(p.limits(), Loose::new(None, p.num_slots), Loose::new(Some(bug), p.num_pages))
        });
    }
}

#[test]
fn every_broken_scheduler_is_seen_over_sound_pools() {
    for (bug, expected) in [
        (Bug::CancelForgetsRelease, "reserved"),
        (Bug::CancelForgetsPages, "reserved"),
        (Bug::CancelIsIgnored, "gave None"),
        (Bug::CancelHitsTheNeighbour, "was cancelled"),
        (Bug::PreemptForgetsReply, "expected"),
        (Bug::PreemptKeepsState, "tokens computed"),
        (Bug::FinishReleasesTwice, "owned by nobody"),
        (Bug::WrongEpoch, "is not what"),
        (Bug::PageOfAnEarlierEpoch, "in epoch"),
        (Bug::PageTooMany, "pages for"),
        (Bug::PageTooFew, "is not what"),
        (Bug::SomebodyElsesPage, "is not what"),
        (Bug::BudgetOffByOne, "rows in a Prefill step of at most"),
        (Bug::OneSequenceTooMany, "sequences run, at most"),
        (Bug::YoungestFirst, "got no row"),
        (Bug::RequestLost, "wait, expected"),
        (Bug::LogitsForgotten, "logits of []"),
        (Bug::StartOffByOne, "expected 1 tokens from"),
        (Bug::WrongToken, "wrong token at 0"),
        (Bug::SlotOfTheNeighbour, "is not what"),
        (Bug::RowDropped, "got no row"),
    ] {
        seen(&format!("{bug:?}"), expected, |p| Broken::new(Some(bug), p));
    }
}
