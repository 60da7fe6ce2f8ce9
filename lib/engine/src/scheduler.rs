//! Waiting and running queues to batches. No device, no floats, no clock.
//!
//! Admission reserves the pages a request can need at most, so no running sequence is ever preempted for want of
//! pages and its bits never depend on pressure; pages are taken from the pool only when a position needs them. A
//! step is either prefill or decode, alternating while both wait.
//!
//! The waiting queue is in order of arrival and nobody overtakes its head. A sequence preempted on request gives
//! back all it holds and waits in its old place; recurrent state cannot be rolled back, so it is prefilled again
//! from its first token, with what it had generated behind its prompt.

use crate::Error;
use crate::batch::{Batch, BatchKind, Segment};
use crate::error::Mismatch;
use crate::fault::Fault;
use crate::pool::{Entries, Pool};
use crate::sequence::{Request, Sequence};
use std::collections::VecDeque;

/// Limits of the scheduler.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// sequences running at once
    pub max_num_seqs: usize,
    /// prompt and reply of one sequence
    pub max_model_len: usize,
    /// prompt tokens of one step
    pub max_num_batched_tokens: usize,
    /// tokens of a page
    pub page_size: usize,
    /// prompts are cut at multiples of this, see [`Backend::chunk_multiple`](crate::backend::Backend::chunk_multiple)
    pub chunk_multiple: usize,
}

impl Limits {
    /// # Errors
    /// [`Error::Config`] when a step has too few tokens for a prompt to be cut where it may be.
    pub fn validate(&self) -> Result<(), Error> {
        let (tokens, multiple) = (self.max_num_batched_tokens, self.chunk_multiple);
        if tokens < multiple {
            return Err(Error::Config(format!(
                "--max-num-batched-tokens {tokens} is too few: prompts are cut at multiples of {multiple} tokens here"
            )));
        }
        Ok(())
    }
}

/// The queues and pools.
#[derive(Debug)]
pub struct Scheduler<P = Pool> {
    limits: Limits,
    waiting: VecDeque<Sequence>,
    /// admitted sequences, in order of admission
    pub running: Vec<Sequence>,
    /// recurrent slots
    pub slots: P,
    /// KV pages
    pub pages: P,
    reserved: usize,
    last: BatchKind,
    latest: Option<u64>,
    fault: Option<Fault>,
}

impl Scheduler {
    /// Empty queues over full pools.
    pub fn new(limits: Limits, num_slots: usize, num_pages: usize) -> Self {
        Scheduler::over(limits, Pool::new("slot", num_slots), Pool::new("page", num_pages))
    }

    /// The same with a fault; `unguarded` leaves out the pool's checks that would stop it.
    pub(crate) fn with_fault(mut self, fault: Option<Fault>, unguarded: bool) -> Self {
        self.fault = fault;
        if let Some(fault) = fault.filter(|_| unguarded) {
            self.slots = self.slots.unguarded(fault);
        }
        self
    }
}

impl<P: Entries> Scheduler<P> {
    /// Empty queues over these pools.
    pub fn over(limits: Limits, slots: P, pages: P) -> Self {
        Scheduler {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            slots,
            pages,
            reserved: 0,
            last: BatchKind::Decode,
            latest: None,
            fault: None,
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::Request`] when it could never be served, or its ordinal is not a new one; the queues are untouched.
    pub fn add(&mut self, request: Request) -> Result<(), Error> {
        let refuse = |message: String| Err(Error::Request { id: request.id.clone(), message });
        let prompt = request.prompt.len();
        if prompt == 0 {
            return refuse("its prompt has no tokens".into());
        }
        if prompt >= self.limits.max_model_len {
            return refuse(format!(
                "{prompt} prompt tokens leave no room below --max-model-len {}",
                self.limits.max_model_len
            ));
        }
        let pages = self.pages_needed(&request);
        if pages > self.pages.capacity() {
            return refuse(format!(
                "it needs up to {pages} KV pages, the pool has {}",
                self.pages.capacity()
            ));
        }
        if self.slots.capacity() == 0 {
            return refuse("it needs a recurrent slot, the pool has 0".into());
        }
        if let Some(latest) = self.latest.filter(|latest| request.ordinal <= *latest) {
            let ordinal = request.ordinal;
            return refuse(format!("its ordinal is {ordinal}: expected more than {latest}, the one before"));
        }
        self.latest = Some(request.ordinal);
        self.waiting.push_back(Sequence::new(request));
        Ok(())
    }

    /// Tokens a request may hold at most.
    fn max_len(&self, request: &Request) -> usize {
        request.prompt.len().saturating_add(request.params.max_tokens).min(self.limits.max_model_len)
    }

    fn pages_needed(&self, request: &Request) -> usize {
        self.max_len(request).div_ceil(self.limits.page_size)
    }

    /// Requests waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Ordinals of the requests waiting, the next one first.
    pub fn queue(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().map(|s| s.request.ordinal)
    }

    /// Pages that running sequences may come to hold.
    pub fn reserved(&self) -> usize {
        self.reserved
    }

    /// True when nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Admits the next waiting request when a slot and its pages are there. Returns its index in `running`.
    ///
    /// # Errors
    /// [`Error::Ownership`] when the pool of slots contradicts itself.
    pub fn admit(&mut self) -> Result<Option<usize>, Error> {
        let Some(next) = self.waiting.front() else { return Ok(None) };
        let need = self.pages_needed(&next.request);
        if self.running.len() >= self.limits.max_num_seqs
            || self.reserved + need > self.pages.capacity()
            || self.slots.free() == 0
        {
            return Ok(None);
        }
        let (slot, epoch) = self.slots.acquire(next.request.ordinal)?;
        let Some(next) = self.waiting.pop_front() else { return Ok(None) };
        self.reserved += need;
        self.running.push(Sequence { prefill: next.len(), slot, epoch, reserved_pages: need, ..next });
        Ok(Some(self.running.len() - 1))
    }

    /// The next step, or `None` when nothing runs.
    ///
    /// # Errors
    /// [`Error::Ownership`] when the pool has fewer pages than were reserved.
    pub fn schedule(&mut self) -> Result<Option<Batch>, Error> {
        let prefill = self.running.iter().any(|s| s.prefill_left() > 0);
        let decode = self.running.iter().any(|s| s.prefill_left() == 0);
        let kind = match (prefill, decode) {
            (false, false) => return Ok(None),
            (true, true) if self.last == BatchKind::Prefill => BatchKind::Decode,
            (true, _) => BatchKind::Prefill,
            (false, true) => BatchKind::Decode,
        };
        self.last = kind;
        let mut batch = Batch { kind, tokens: Vec::new(), segments: Vec::new(), logit_rows: Vec::new() };
        let mut budget = self.limits.max_num_batched_tokens;
        for s in &mut self.running {
            let left = s.prefill_left();
            let len = match kind {
                BatchKind::Prefill if left <= budget => left,
                BatchKind::Prefill => budget - budget % self.limits.chunk_multiple,
                BatchKind::Decode => usize::from(left == 0),
            };
            if len == 0 {
                continue;
            }
            budget = budget.saturating_sub(len);
            let end = s.computed + len;
            while s.pages.len() * self.limits.page_size < end {
                let (page, epoch) = self.pages.acquire(s.request.ordinal)?;
                s.pages.push(page);
                s.page_epochs.push(epoch);
            }
            let row = batch.tokens.len();
            batch.tokens.extend(s.tokens(s.computed..end));
            if end >= s.prefill {
                batch.logit_rows.push(batch.tokens.len() - 1);
            }
            batch.segments.push(Segment {
                owner: s.request.ordinal,
                slot: s.slot,
                epoch: s.epoch,
                pages: s.pages.clone(),
                page_epochs: s.page_epochs.clone(),
                start: s.computed,
                row,
                len,
            });
        }
        Ok(Some(batch))
    }

    /// Takes a finished sequence out and gives back what it held: its slot, then its pages, last first.
    ///
    /// # Errors
    /// [`Error::Ownership`] when it did not own what it held.
    pub fn finish(&mut self, index: usize) -> Result<Sequence, Error> {
        let s = self.running.remove(index);
        self.slots.release(s.slot, s.request.ordinal)?;
        if self.fault == Some(Fault::DoubleFree) {
            self.slots.release(s.slot, s.request.ordinal)?;
        }
        for page in s.pages.iter().rev() {
            self.pages.release(*page, s.request.ordinal)?;
        }
        self.reserved -= s.reserved_pages;
        Ok(s)
    }

    /// Takes a request out, waiting or running, and gives back what it held. `None` when it is neither.
    ///
    /// # Errors
    /// [`Error::Ownership`] when it did not own what it held.
    pub fn cancel(&mut self, ordinal: u64) -> Result<Option<Sequence>, Error> {
        match self.index(ordinal) {
            Some(index) if self.fault == Some(Fault::LostRelease) => Ok(Some(self.running.remove(index))),
            Some(index) => self.finish(index).map(Some),
            None => {
                let at = self.waiting.iter().position(|s| s.request.ordinal == ordinal);
                Ok(at.and_then(|at| self.waiting.remove(at)))
            }
        }
    }

    /// Sends a running sequence back to wait, and gives back what it held. Returns it as it ran; `None` when it
    /// does not run.
    ///
    /// # Errors
    /// [`Error::Ownership`] when it did not own what it held.
    pub fn preempt(&mut self, ordinal: u64) -> Result<Option<Sequence>, Error> {
        let Some(index) = self.index(ordinal) else { return Ok(None) };
        let ran = self.finish(index)?;
        let place = self.waiting.partition_point(|s| s.request.ordinal < ordinal);
        let (generated, preempted) = (ran.generated.clone(), ran.preempted + 1);
        let again = Sequence { generated, preempted, ..Sequence::new(ran.request.clone()) };
        self.waiting.insert(place, again);
        Ok(Some(ran))
    }

    /// Where a request runs.
    pub fn index(&self, ordinal: u64) -> Option<usize> {
        self.running.iter().position(|s| s.request.ordinal == ordinal)
    }

    /// Checks that every sequence of a batch still owns its slot in the epoch it was admitted with, and its pages
    /// in the epochs they were taken with.
    ///
    /// # Errors
    /// [`Error::Ownership`] naming the request and the slot or page.
    pub fn verify(&self, batch: &Batch) -> Result<(), Error> {
        for s in &batch.segments {
            let user = (s.owner, s.epoch);
            holds(("slot", s.slot), user, self.slots.entry(s.slot))?;
            if s.pages.len() != s.page_epochs.len() {
                let (pages, epochs) = (s.pages.len(), s.page_epochs.len());
                return Err(Error::ownership(format!(
                    "request {}: {pages} pages, but epochs of {epochs}",
                    s.owner
                )));
            }
            for (page, epoch) in s.pages.iter().zip(&s.page_epochs) {
                holds(("page", *page), (s.owner, *epoch), self.pages.entry(*page))?;
            }
        }
        Ok(())
    }

    /// Checks that what is owned is what running sequences hold: nobody who is gone has kept anything.
    ///
    /// # Errors
    /// [`Error::Ownership`] with the numbers.
    pub fn balance(&self) -> Result<(), Error> {
        let pages: usize = self.running.iter().map(|s| s.pages.len()).sum();
        for (name, owned, held) in
            [("slots", self.slots.in_use(), self.running.len()), ("pages", self.pages.in_use(), pages)]
        {
            if owned != held as u64 {
                return Err(Error::ownership(format!(
                    "{name}: {owned} are owned, and the {} sequences that run hold {held} of them",
                    self.running.len()
                )));
            }
        }
        Ok(())
    }

    /// Longest prompt plus reply of a request.
    pub fn limit(&self, sequence: &Sequence) -> usize {
        self.max_len(&sequence.request)
    }
}

/// Checks that a user, with the epoch it expects, is who the pool says owns an entry.
fn holds(
    entry: (&'static str, u32),
    (user, expected): (u64, u64),
    found: Option<(Option<u64>, u64)>,
) -> Result<(), Error> {
    if found == Some((Some(user), expected)) {
        return Ok(());
    }
    let (name, id) = entry;
    Err(Error::Ownership(Box::new(Mismatch {
        message: format!("{name} {id}: used by request {user} in epoch {expected}, but it is {found:?}"),
        entry: Some(entry),
        request: Some(user),
        expected_epoch: Some(expected),
        owner: found.and_then(|(owner, _)| owner),
        epoch: found.map(|(_, epoch)| epoch),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::SamplingParams;

    /// Pages of 4 tokens, two seats, sequences of up to 16 tokens.
    fn scheduler(num_slots: usize, num_pages: usize) -> Scheduler {
        let limits = Limits {
            max_num_seqs: 2,
            max_model_len: 16,
            max_num_batched_tokens: 8,
            page_size: 4,
            chunk_multiple: 1,
        };
        Scheduler::new(limits, num_slots, num_pages)
    }

    fn request(ordinal: u64, prompt: usize, max_tokens: usize) -> Request {
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        Request { id: format!("r{ordinal}"), ordinal, prompt: vec![7; prompt], params }
    }

    fn admitted(s: &mut Scheduler) -> Vec<u64> {
        while s.admit().unwrap().is_some() {}
        s.running.iter().map(|s| s.request.ordinal).collect()
    }

    #[test]
    fn what_can_never_fit_is_refused_with_numbers_and_the_next_is_served() {
        let mut s = scheduler(3, 4);
        let mut refused = |r| s.add(r).unwrap_err().to_string();
        assert_eq!(refused(request(0, 9, 4)), "request r0: it needs up to 4 KV pages, the pool has 3");
        assert_eq!(
            refused(request(0, 16, 1)),
            "request r0: 16 prompt tokens leave no room below --max-model-len 16"
        );
        s.add(request(0, 9, 3)).unwrap();
        let again = s.add(request(0, 1, 1)).unwrap_err().to_string();
        assert_eq!(again, "request r0: its ordinal is 0: expected more than 0, the one before");
        assert_eq!(admitted(&mut s), [0]);
        let slotless = scheduler(1, 4).add(request(0, 1, 1)).unwrap_err().to_string();
        assert_eq!(slotless, "request r0: it needs a recurrent slot, the pool has 0");
    }

    #[test]
    fn admission_waits_for_pages_that_others_may_still_take() {
        let mut s = scheduler(3, 6); // five pages, one slot more than needed
        s.add(request(0, 2, 10)).unwrap(); // up to 3 pages, today none
        s.add(request(1, 2, 8)).unwrap(); // up to 3
        s.add(request(2, 2, 2)).unwrap(); // 1 would fit, but nobody overtakes
        assert_eq!((admitted(&mut s), s.reserved(), s.pages.free()), (vec![0], 3, 5));
        s.finish(0).unwrap();
        assert_eq!((admitted(&mut s), s.reserved()), (vec![1, 2], 4));
    }

    #[test]
    fn admission_waits_for_a_slot() {
        let mut s = scheduler(2, 99);
        s.add(request(0, 1, 1)).unwrap();
        s.add(request(1, 1, 1)).unwrap();
        assert_eq!((admitted(&mut s), s.waiting()), (vec![0], 1));
        s.cancel(0).unwrap().unwrap();
        assert_eq!((admitted(&mut s), s.running[0].slot, s.running[0].epoch), (vec![1], 1, 2));
    }

    #[test]
    fn preempted_sequences_wait_in_order_of_arrival_and_start_anew_with_their_reply() {
        let mut s = scheduler(3, 99);
        (0..3).for_each(|o| s.add(request(o, 3, 9)).unwrap());
        assert_eq!(admitted(&mut s), [0, 1]);
        s.schedule().unwrap();
        for r in &mut s.running {
            (r.computed, r.generated) = (3, vec![40 + r.request.ordinal as u32]);
        }
        assert_eq!(s.preempt(0).unwrap().unwrap().pages, [1]);
        assert_eq!(s.preempt(1).unwrap().unwrap().pages, [2]);
        assert!(s.preempt(1).unwrap().is_none() && s.preempt(2).unwrap().is_none());
        assert_eq!((s.queue().collect::<Vec<_>>(), s.pages.in_use(), s.reserved()), (vec![0, 1, 2], 0, 0));
        assert_eq!(admitted(&mut s), [0, 1]);
        let batch = s.schedule().unwrap().unwrap();
        assert_eq!((batch.kind, batch.tokens), (BatchKind::Prefill, vec![7, 7, 7, 40, 7, 7, 7, 41]));
        assert_eq!(batch.logit_rows, [3, 7]);
    }

    #[test]
    fn a_batch_on_a_slot_or_page_of_another_is_refused() {
        let mut s = scheduler(3, 99);
        (0..2).for_each(|o| s.add(request(o, 3, 9)).unwrap());
        admitted(&mut s);
        let batch = s.schedule().unwrap().unwrap();
        s.verify(&batch).unwrap();
        let refused = |change: &dyn Fn(&mut Segment)| {
            let mut batch = batch.clone();
            change(&mut batch.segments[1]);
            s.verify(&batch).unwrap_err().to_string()
        };
        let slot = "slot 2: used by request 1 in epoch 9, but it is Some((Some(1), 1))";
        assert_eq!(refused(&|g| g.epoch = 9), slot);
        assert!(refused(&|g| g.slot = 1).contains("slot 1: used by request 1"));
        assert!(refused(&|g| g.slot = 99).contains("but it is None"));
        let another = "page 1: used by request 1 in epoch 1, but it is Some((Some(0), 1))";
        assert_eq!(refused(&|g| g.pages[0] = 1), another);
        let null = "page 0: used by request 1 in epoch 1, but it is Some((None, 0))";
        assert_eq!(refused(&|g| (g.pages[0], g.page_epochs[0]) = (0, 1)), null);
        let earlier = "page 2: used by request 1 in epoch 7, but it is Some((Some(1), 1))";
        assert_eq!(refused(&|g| g.page_epochs[0] = 7), earlier);
        assert_eq!(refused(&|g| g.pages.push(0)), "request 1: 2 pages, but epochs of 1");
    }
}
