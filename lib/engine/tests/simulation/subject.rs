//! What is simulated, the scheduler or a broken one, and what is counted while it lives.

use crate::plan::Plan;
use cute_engine::batch::Batch;
use cute_engine::pool::{Entries, Pool};
use cute_engine::scheduler::Scheduler;
use cute_engine::sequence::Sequence;
use cute_engine::{Error, Request};

/// Something that schedules: the scheduler, or one that was broken on purpose.
pub trait Subject {
    type Pool: Entries;
    fn scheduler(&mut self) -> &mut Scheduler<Self::Pool>;

    fn add(&mut self, request: Request) -> Result<(), Error> {
        self.scheduler().add(request)
    }
    fn admit(&mut self) -> Result<Option<usize>, Error> {
        self.scheduler().admit()
    }
    fn schedule(&mut self) -> Result<Option<Batch>, Error> {
        self.scheduler().schedule()
    }
    fn finish(&mut self, index: usize) -> Result<Sequence, Error> {
        self.scheduler().finish(index)
    }
    fn cancel(&mut self, ordinal: u64) -> Result<Option<Sequence>, Error> {
        self.scheduler().cancel(ordinal)
    }
    fn preempt(&mut self, ordinal: u64) -> Result<Option<Sequence>, Error> {
        self.scheduler().preempt(ordinal)
    }
}

impl<P: Entries> Subject for Scheduler<P> {
    type Pool = P;
    fn scheduler(&mut self) -> &mut Scheduler<P> {
        self
    }
}

/// The scheduler as the engine makes it.
pub fn sound(plan: &Plan) -> Scheduler<Pool> {
    Scheduler::new(plan.limits(), plan.num_slots, plan.num_pages)
}

/// What went on in a life, to show that it was not a quiet one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// calls of `schedule()` that made a batch
    pub schedules: u64,
    pub finished: u64,
    pub refused: u64,
    pub cancelled_waiting: u64,
    pub cancelled_running: u64,
    pub preempted_in_prefill: u64,
    pub preempted_in_decode: u64,
    /// admissions into a slot that had been used before
    pub recycled: u64,
    /// prompts cut by the budget of a step
    pub chunks: u64,
    /// steps in which the head of the queue waited for pages, and for a slot alone
    pub short_of_pages: u64,
    pub short_of_slots: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, t: Tally) {
        self.schedules += t.schedules;
        self.finished += t.finished;
        self.refused += t.refused;
        self.cancelled_waiting += t.cancelled_waiting;
        self.cancelled_running += t.cancelled_running;
        self.preempted_in_prefill += t.preempted_in_prefill;
        self.preempted_in_decode += t.preempted_in_decode;
        self.recycled += t.recycled;
        self.chunks += t.chunks;
        self.short_of_pages += t.short_of_pages;
        self.short_of_slots += t.short_of_slots;
    }
}
