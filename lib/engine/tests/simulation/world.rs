//! The world around the scheduler: a clock of steps, clients, and a device that remembers who wrote what.
//!
//! [`live`] leads a subject through a [`Plan`] as the engine would, and checks after each step all that must hold.
//! It knows the scheduler only by what it hands out, and keeps books of its own.

use crate::books::{Books, Device};
use crate::plan::{Plan, What};
use crate::subject::{Subject, Tally};
use cute_engine::batch::{Batch, BatchKind};
use cute_engine::pool::Entries as _;
use cute_engine::{Error, Request, SamplingParams};
use std::collections::BTreeMap;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    Waiting,
    Running,
    Ended,
}

/// What the client knows of its request.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub stage: Stage,
    pub prompt: usize,
    /// tokens of the whole reply
    pub reply: usize,
    /// pages of prompt and longest reply
    pub pages: usize,
    pub generated: usize,
    /// tokens that prefill computes: prompt and reply at its last admission
    pub prefill: usize,
    pub preempted: u64,
    /// steps since it last had a row
    pub idle: u64,
}

/// The token at a position of a request, in its prompt and in its reply.
fn token(ordinal: u64, position: usize) -> u32 {
    (ordinal as u32).wrapping_mul(0x9e37_79b9) ^ (position as u32).wrapping_mul(0x85eb_ca6b)
}

/// More than any plan can need: every step computes a token, and no request is preempted without an event.
const MOST_STEPS: u64 = 100_000;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// Leads a subject through a plan. The error says what was violated, and in which step.
pub fn live<S: Subject>(subject: S, plan: &Plan) -> Result<Tally, String> {
    let mut world = World {
        subject,
        plan,
        requests: BTreeMap::new(),
        next: 0,
        device: Device::new(plan),
        books: Books::new(plan),
        tally: Tally::default(),
        last: None,
    };
    let (mut now, mut events, mut due) = (0, plan.events.iter().peekable(), 0);
    loop {
        let at_step = |e: String| format!("step {now}: {e}");
        while let Some(event) = events.next_if(|e| due + e.after <= now) {
            due += event.after;
            world.happen(event.what).map_err(at_step)?;
            world.check().map_err(|e| format!("step {now}, after {:?}: {e}", event.what))?;
        }
        let worked = world.step().map_err(at_step)?;
        world.check().map_err(at_step)?;
        ensure!(world.tally.schedules < MOST_STEPS, "still busy after {MOST_STEPS} steps");
        match events.peek() {
            None if !worked => break,
            Some(event) if !worked => now = due + event.after,
            _ => now += 1,
        }
    }
    world.rest().map_err(|e| format!("at the end, step {now}: {e}"))?;
    Ok(world.tally)
}

struct World<'a, S> {
    subject: S,
    plan: &'a Plan,
    requests: BTreeMap<u64, Known>,
    next: u64,
    device: Device,
    books: Books,
    tally: Tally,
    last: Option<BatchKind>,
}

impl<S: Subject> World<'_, S> {
    fn happen(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Arrive { prompt, max_tokens, reply } => {
                self.arrive(prompt, max_tokens.max(1), reply.max(1))
            }
            What::Cancel { pick } => match self.pick(pick, &[Stage::Waiting, Stage::Running]) {
                Some(ordinal) => self.cancel(ordinal),
                None => Ok(()),
            },
            What::Preempt { pick } => match self.pick(pick, &[Stage::Running]) {
                Some(ordinal) => self.preempt(ordinal),
                None => Ok(()),
            },
        }
    }

    fn pick(&self, pick: usize, stages: &[Stage]) -> Option<u64> {
        let any = pick.is_multiple_of(8);
        let there: Vec<u64> =
            self.requests.iter().filter(|(_, k)| any || stages.contains(&k.stage)).map(|(o, _)| *o).collect();
        (!there.is_empty()).then(|| there[pick % there.len()])
    }

    fn arrive(&mut self, prompt: usize, max_tokens: usize, reply: usize) -> Result<(), String> {
        let ordinal = self.next;
        self.next += 1;
        let limit = (prompt + max_tokens).min(self.plan.max_model_len);
        let pages = limit.div_ceil(self.plan.page_size);
        let serveable = prompt > 0
            && prompt < self.plan.max_model_len
            && pages < self.plan.num_pages
            && self.plan.num_slots > 1;
        let request = Request {
            id: format!("r{ordinal}"),
            ordinal,
            prompt: (0..prompt).map(|p| token(ordinal, p)).collect(),
            params: SamplingParams { max_tokens, ..SamplingParams::default() },
        };
        let stage = match self.subject.add(request) {
            Ok(()) => Stage::Waiting,
            Err(Error::Request { message, .. }) => {
                ensure!(!serveable, "request {ordinal} could be served and was refused: {message}");
                let said = message.contains(|c: char| c.is_ascii_digit()) || prompt == 0;
                ensure!(said, "request {ordinal} was refused without numbers: {message}");
                self.tally.refused += 1;
                Stage::Ended
            }
            Err(e) => return Err(e.to_string()),
        };
        ensure!(serveable || stage == Stage::Ended, "request {ordinal} was taken and can never be served");
        let reply = reply.min(limit.saturating_sub(prompt));
        let known = Known { stage, prompt, reply, pages, generated: 0, prefill: 0, preempted: 0, idle: 0 };
        self.requests.insert(ordinal, known);
        Ok(())
    }

    fn cancel(&mut self, ordinal: u64) -> Result<(), String> {
        let known = self.requests.get_mut(&ordinal).ok_or("no such request")?;
        let stage = std::mem::replace(&mut known.stage, Stage::Ended);
        let out = self.subject.cancel(ordinal).map_err(|e| e.to_string())?;
        ensure!(
            out.is_some() == (stage != Stage::Ended),
            "cancel of request {ordinal}, {stage:?}, gave {:?}",
            out.map(|s| s.request.ordinal)
        );
        let Some(s) = out else { return Ok(()) };
        ensure!(s.generated.len() == known.generated, "request {ordinal} lost tokens when it was cancelled");
        if stage == Stage::Running {
            self.tally.cancelled_running += 1;
            self.books.released(&s)?;
        } else {
            self.tally.cancelled_waiting += 1;
        }
        Ok(())
    }

    fn preempt(&mut self, ordinal: u64) -> Result<(), String> {
        let known = self.requests.get_mut(&ordinal).ok_or("no such request")?;
        let ran = self.subject.preempt(ordinal).map_err(|e| e.to_string())?;
        let stage = known.stage;
        ensure!(
            ran.is_some() == (stage == Stage::Running),
            "preempt of request {ordinal}, {stage:?}, gave {:?}",
            ran.map(|s| s.request.ordinal)
        );
        let Some(ran) = ran else { return Ok(()) };
        (known.stage, known.idle) = (Stage::Waiting, 0);
        known.preempted += 1;
        match ran.prefill_left() {
            0 => self.tally.preempted_in_decode += 1,
            _ => self.tally.preempted_in_prefill += 1,
        }
        self.books.released(&ran)
    }

    /// Admission, one batch, and what the engine makes of it. False when there was nothing to do.
    fn step(&mut self) -> Result<bool, String> {
        self.admit()?;
        let Some(batch) = self.subject.schedule().map_err(|e| e.to_string())? else {
            let left = self.requests.iter().find(|(_, k)| k.stage != Stage::Ended);
            ensure!(left.is_none(), "nothing was scheduled, yet {left:?} is there");
            return Ok(false);
        };
        self.tally.schedules += 1;
        self.well_formed(&batch)?;
        self.books.grown(&self.subject.scheduler().running)?;
        self.subject.scheduler().verify(&batch).map_err(|e| e.to_string())?;
        self.device.run(&batch)?;
        self.append(&batch)?;
        Ok(true)
    }

    fn admit(&mut self) -> Result<(), String> {
        loop {
            let head = self.subject.scheduler().queue().next();
            let Some(index) = self.subject.admit().map_err(|e| e.to_string())? else { break };
            let s = &self.subject.scheduler().running[index].clone();
            let ordinal = s.request.ordinal;
            ensure!(head == Some(ordinal), "request {ordinal} overtook {head:?}");
            let known =
                self.requests.get_mut(&ordinal).ok_or(format!("request {ordinal} was never added"))?;
            (known.stage, known.prefill) = (Stage::Running, known.prompt + known.generated);
            ensure!(s.computed == 0, "request {ordinal} was admitted with {} tokens computed", s.computed);
            self.tally.recycled += u64::from(s.epoch > 1);
            self.books.admitted(s)?;
            self.device.zero(s.slot);
        }
        let plan = self.plan;
        let scheduler = self.subject.scheduler();
        let (running, most) = (scheduler.running.len(), plan.max_num_seqs);
        ensure!(running <= most, "{running} sequences run, at most {most} may");
        let Some(head) = scheduler.queue().next() else { return Ok(()) };
        let pages = self.requests.get(&head).map_or(0, |k| k.pages);
        let (seat, slot) = (running < most, running < plan.num_slots - 1);
        let reserved: usize = scheduler.running.iter().map(|s| s.reserved_pages).sum();
        let room = reserved + pages < plan.num_pages;
        ensure!(!(seat && slot && room), "request {head} waits although there is room for it");
        self.tally.short_of_pages += u64::from(seat && !room);
        self.tally.short_of_slots += u64::from(seat && room);
        Ok(())
    }

    /// What a batch must be, from the queue it was made of.
    fn well_formed(&mut self, batch: &Batch) -> Result<(), String> {
        let plan = self.plan;
        ensure!(!batch.segments.is_empty(), "an empty batch");
        ensure!(batch.segments.len() <= plan.max_num_seqs, "{} sequences in a batch", batch.segments.len());
        let most = match batch.kind {
            BatchKind::Prefill => plan.max_num_batched_tokens,
            BatchKind::Decode => plan.max_num_seqs,
        };
        let rows = batch.rows();
        ensure!(rows <= most, "{rows} rows in a {:?} step of at most {most}", batch.kind);
        let running = &self.subject.scheduler().running;
        let (mut row, mut segments, mut wanted, mut left_over) =
            (0, batch.segments.iter().peekable(), Vec::new(), 0);
        let mut other = false;
        for s in running {
            let ordinal = s.request.ordinal;
            let known =
                self.requests.get_mut(&ordinal).ok_or(format!("request {ordinal} was never added"))?;
            let prefills = s.computed < known.prefill;
            let here = prefills == (batch.kind == BatchKind::Prefill);
            other |= !here;
            known.idle += 1;
            let left = known.prompt + known.generated - s.computed;
            if !here || (prefills && row == most) {
                left_over += if here { left } else { 0 };
                continue;
            }
            let g =
                segments.next_if(|g| g.owner == ordinal).ok_or(format!("request {ordinal} got no row"))?;
            let len = if prefills { left.min(most - row) } else { 1 };
            known.idle = 0;
            ensure!(
                (g.row, g.len, g.start) == (row, len, s.computed),
                "request {ordinal}: expected {len} tokens from {} in row {row}, got {g:?}",
                s.computed
            );
            ensure!(
                (g.slot, g.epoch, &g.pages) == (s.slot, s.epoch, &s.pages),
                "{g:?} is not what its request holds: slot {}, epoch {}, pages {:?}",
                s.slot,
                s.epoch,
                s.pages
            );
            for (i, got) in batch.tokens[row..row + len].iter().enumerate() {
                let position = s.computed + i;
                ensure!(*got == token(ordinal, position), "request {ordinal}: wrong token at {position}");
            }
            row += len;
            left_over += left - len;
            if left == len {
                wanted.push(row - 1);
            } else {
                self.tally.chunks += 1;
            }
        }
        let extra = segments.next();
        ensure!(extra.is_none(), "{extra:?} is nobody's turn");
        ensure!(row == rows, "{rows} rows for {row} tokens");
        ensure!(batch.logit_rows == wanted, "logits of {:?}, expected of {wanted:?}", batch.logit_rows);
        ensure!(left_over == 0 || row == most, "{left_over} tokens left over by a step that was not full");
        let twice = self.last == Some(batch.kind) && other;
        ensure!(!twice, "two {:?} steps in a row while others wait for the other kind", batch.kind);
        self.last = Some(batch.kind);
        // Prefill is in order of admission and never twice in a row, so the oldest prompt goes on in every other step.
        let late =
            self.requests.iter().find(|(_, k)| k.generated > 0 && k.stage == Stage::Running && k.idle > 1);
        let late = late.filter(|(_, k)| k.generated + k.prompt > k.prefill);
        ensure!(late.is_none(), "{late:?} decodes and had no row for two steps");
        Ok(())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), String> {
        for g in &batch.segments {
            let scheduler = self.subject.scheduler();
            let index = scheduler.index(g.owner).ok_or(format!("{g:?} does not run"))?;
            let known = self.requests.get_mut(&g.owner).ok_or("no such request")?;
            let (limit, s) = (scheduler.limit(&scheduler.running[index]), &mut scheduler.running[index]);
            s.computed += g.len;
            if !batch.logit_rows.contains(&(g.row + g.len - 1)) {
                continue;
            }
            s.generated.push(token(g.owner, s.len()));
            known.generated += 1;
            ensure!(s.len() <= limit, "request {} is {} tokens long, its limit is {limit}", g.owner, s.len());
            if known.generated == known.reply {
                known.stage = Stage::Ended;
                let s = self.subject.finish(index).map_err(|e| e.to_string())?;
                let made: Vec<u32> =
                    (known.prompt..known.prompt + known.reply).map(|p| token(g.owner, p)).collect();
                ensure!(s.generated == made, "request {} ended with another reply", g.owner);
                self.tally.finished += 1;
                self.books.released(&s)?;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        self.books.check(self.subject.scheduler(), &self.requests)
    }

    /// When all is over nothing is left in any queue or pool, and every request has ended.
    fn rest(&mut self) -> Result<(), String> {
        let s = self.subject.scheduler();
        ensure!(s.is_idle(), "{} wait and {} run", s.waiting(), s.running.len());
        for (name, pool) in [("slots", &s.slots), ("pages", &s.pages)] {
            let (free, capacity, used) = (pool.free(), pool.capacity(), pool.in_use());
            ensure!(free == capacity && used == 0, "{free} of {capacity} {name} free, {used} in use");
        }
        ensure!(s.reserved() == 0, "{} pages are still reserved", s.reserved());
        let left: Vec<_> = self.requests.iter().filter(|(_, k)| k.stage != Stage::Ended).collect();
        ensure!(left.is_empty(), "no end came to {left:?}");
        let t = &self.tally;
        let ended = t.finished + t.refused + t.cancelled_waiting + t.cancelled_running;
        ensure!(ended == self.next, "{} requests arrived, {ended} ended", self.next);
        Ok(())
    }
}
