//! Waiting and running queues to batches. No device, no floats, no clock but the admission time.
//!
//! Admission reserves the pages a request can need at most, so a running sequence is never preempted and its
//! bits never depend on pressure; pages are taken from the pool only when a position needs them. A step is
//! either prefill or decode, alternating while both wait.

use crate::Error;
use crate::batch::{Batch, BatchKind, Segment};
use crate::pool::Pool;
use crate::sequence::{Request, Sequence};
use std::collections::VecDeque;
use std::time::Instant;

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
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Request>,
    /// admitted sequences, oldest first
    pub running: Vec<Sequence>,
    /// recurrent slots
    pub slots: Pool,
    /// KV pages
    pub pages: Pool,
    reserved: usize,
    last: BatchKind,
}

impl Scheduler {
    /// Empty queues over full pools.
    pub fn new(limits: Limits, num_slots: usize, num_pages: usize) -> Self {
        Scheduler {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            slots: Pool::new("slot", num_slots),
            pages: Pool::new("page", num_pages),
            reserved: 0,
            last: BatchKind::Decode,
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::Request`] when it could never be served; the queues are untouched.
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
        self.waiting.push_back(request);
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

    /// True when nothing waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Admits the next waiting request when a slot and its pages are there. Returns its index in `running`.
    pub fn admit(&mut self) -> Option<usize> {
        let need = self.pages_needed(self.waiting.front()?);
        if self.running.len() >= self.limits.max_num_seqs
            || self.reserved + need > self.pages.capacity()
            || self.slots.free() == 0
        {
            return None;
        }
        let request = self.waiting.pop_front()?;
        let (slot, epoch) = self.slots.acquire(request.ordinal)?;
        self.reserved += need;
        self.running.push(Sequence {
            generated: Vec::new(),
            computed: 0,
            slot,
            epoch,
            pages: Vec::new(),
            reserved_pages: need,
            admitted: Instant::now(),
            request,
        });
        Some(self.running.len() - 1)
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
                let (page, _) = self.pages.acquire(s.request.ordinal).ok_or_else(|| {
                    Error::Ownership(format!(
                        "request {}: no free KV page although one was reserved",
                        s.request.ordinal
                    ))
                })?;
                s.pages.push(page);
            }
            let row = batch.tokens.len();
            match kind {
                BatchKind::Prefill => batch.tokens.extend(&s.request.prompt[s.computed..end]),
                BatchKind::Decode => batch.tokens.extend(s.generated.last()),
            }
            if end >= s.request.prompt.len() {
                batch.logit_rows.push(batch.tokens.len() - 1);
            }
            batch.segments.push(Segment {
                owner: s.request.ordinal,
                slot: s.slot,
                epoch: s.epoch,
                pages: s.pages.clone(),
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
        for page in s.pages.iter().rev() {
            self.pages.release(*page, s.request.ordinal)?;
        }
        self.reserved -= s.reserved_pages;
        Ok(s)
    }

    /// Checks that every sequence of a batch still owns its slot in the epoch it was admitted with.
    ///
    /// # Errors
    /// [`Error::Ownership`] naming the request and the slot.
    pub fn verify(&self, batch: &Batch) -> Result<(), Error> {
        batch.segments.iter().try_for_each(|s| self.slots.verify(s.slot, s.owner, s.epoch))
    }

    /// Longest prompt plus reply of a request.
    pub fn limit(&self, sequence: &Sequence) -> usize {
        self.max_len(&sequence.request)
    }
}
