//! What happens in a simulated life of the scheduler, when, and how a failing one is made small.

use cute_engine::scheduler::Limits;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use std::fmt::{Display, Formatter};
use std::ops::RangeInclusive;

/// A life: limits, pools, and events in order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub max_num_seqs: usize,
    pub max_model_len: usize,
    pub max_num_batched_tokens: usize,
    pub page_size: usize,
    /// with the reserved slot 0
    pub num_slots: usize,
    /// with the null page 0
    pub num_pages: usize,
    pub events: Vec<Event>,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// steps after the event before
    pub after: usize,
    pub what: What,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// a request of `prompt` tokens, at most `max_tokens` more, whose model stops after `reply`
    Arrive { prompt: usize, max_tokens: usize, reply: usize },
    /// of the requests that wait or run the `pick`th, counted around; of all there ever were when 8 divides `pick`
    Cancel { pick: usize },
    /// likewise, of those that run
    Preempt { pick: usize },
}

impl Plan {
    /// A life made of a seed: bursts and lulls, pools too small for all, cancels and preemptions in storms.
    pub fn random(seed: u64) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut pick = |range: RangeInclusive<usize>| {
            range.start() + rng.next_u32() as usize % (range.end() - range.start() + 1)
        };
        let max_model_len = pick(2..=48);
        let page_size = [1, 2, 3, 4, 8, 16, 64][pick(0..=6)];
        let whole = max_model_len.div_ceil(page_size);
        let max_num_seqs = pick(1..=8);
        let num_slots =
            1 + [pick(1..=max_num_seqs), max_num_seqs, max_num_seqs, max_num_seqs + 2][pick(0..=3)];
        // from too small for the longest request to enough for all
        let num_pages = 1 + pick((whole / 2).max(1)..=whole * max_num_seqs);
        let max_num_batched_tokens = [1, 2, 7, 16, 64][pick(0..=4)];
        let (cancels, preempts, lull) = (pick(0..=30), pick(0..=30), pick(1..=12));
        let event = |_| {
            let what = match pick(0..=99) {
                n if n < cancels => What::Cancel { pick: pick(0..=255) },
                n if n < cancels + preempts => What::Preempt { pick: pick(0..=255) },
                _ => What::Arrive {
                    prompt: pick(0..=max_model_len * 3 / 4),
                    max_tokens: pick(1..=max_model_len),
                    reply: pick(1..=24),
                },
            };
            Event { after: if pick(0..=2) == 0 { pick(0..=lull) } else { 0 }, what }
        };
        let events = (0..60).map(event).collect();
        Plan { max_num_seqs, max_model_len, max_num_batched_tokens, page_size, num_slots, num_pages, events }
    }

    /// The scheduler's limits.
    pub fn limits(&self) -> Limits {
        Limits {
            max_num_seqs: self.max_num_seqs,
            max_model_len: self.max_model_len,
            max_num_batched_tokens: self.max_num_batched_tokens,
            page_size: self.page_size,
        }
    }

    /// The smallest plan found that still fails: events are left out by halves, quarters, … and one by one, then
    /// every number is lowered as far as it goes.
    pub fn shrink(mut self, fails: impl Fn(&Plan) -> bool) -> Plan {
        loop {
            let before = self.clone();
            let mut size = self.events.len();
            while size > 0 {
                let mut at = 0;
                while at < self.events.len() {
                    let mut less = self.clone();
                    less.events.drain(at..(at + size).min(self.events.len()));
                    if fails(&less) { self = less } else { at += size }
                }
                size /= 2;
            }
            for number in 0..self.numbers().len() {
                let least = usize::from((1..6).contains(&number));
                let mut step = *self.numbers()[number];
                while step > 0 {
                    let mut less = self.clone();
                    let value = &mut *less.numbers()[number];
                    if *value >= least + step {
                        *value -= step;
                        if fails(&less) {
                            self = less;
                            continue;
                        }
                    }
                    step /= 2;
                }
            }
            if self == before {
                return self;
            }
        }
    }

    /// Every number of the plan, to be lowered.
    fn numbers(&mut self) -> Vec<&mut usize> {
        let mut all = vec![
            &mut self.max_model_len,
            &mut self.max_num_seqs,
            &mut self.max_num_batched_tokens,
            &mut self.page_size,
            &mut self.num_slots,
            &mut self.num_pages,
        ];
        for event in &mut self.events {
            all.push(&mut event.after);
            match &mut event.what {
                What::Arrive { prompt, max_tokens, reply } => all.extend([prompt, max_tokens, reply]),
                What::Cancel { pick } | What::Preempt { pick } => all.push(pick),
            }
        }
        all
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Plan { num_slots, num_pages, .. } = self;
        writeln!(f, "{:?}, {num_slots} slots, {num_pages} pages", self.limits())?;
        let mut time = 0;
        for event in &self.events {
            time += event.after;
            writeln!(f, "  step {time}: {:?}", event.what)?;
        }
        Ok(())
    }
}
