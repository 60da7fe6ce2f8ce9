//! Two sets of books: who owns which entry since when, and who wrote which state and which KV cell.

use crate::plan::Plan;
use crate::world::{Known, Stage, ensure};
use cute_engine::batch::Batch;
use cute_engine::pool::Entries;
use cute_engine::scheduler::Scheduler;
use cute_engine::sequence::Sequence;
use std::collections::{BTreeMap, VecDeque};

/// A pool as it must be: free entries in order, and for each entry its owner and epoch.
struct Book {
    free: VecDeque<u32>,
    entries: Vec<(Option<u64>, u64)>,
}

impl Book {
    fn new(len: usize) -> Book {
        Book { free: (1..len as u32).collect(), entries: vec![(None, 0); len] }
    }

    fn acquire(&mut self, id: u32, owner: u64) -> Result<u64, String> {
        let expected = self.free.pop_front();
        ensure!(expected == Some(id), "request {owner} got entry {id}, the one free longest is {expected:?}");
        let entry = &mut self.entries[id as usize];
        *entry = (Some(owner), entry.1 + 1);
        Ok(entry.1)
    }

    fn release(&mut self, id: u32, owner: u64) -> Result<(), String> {
        let entry = self.entries.get_mut(id as usize).ok_or(format!("there is no entry {id}"))?;
        ensure!(entry.0 == Some(owner), "request {owner} gave back entry {id} of {:?}", entry.0);
        entry.0 = None;
        self.free.push_back(id);
        Ok(())
    }

    /// The pool says what the book says, entry by entry, and its sums are right.
    fn check(&self, name: &str, pool: &impl Entries) -> Result<(), String> {
        for (id, expected) in (0u32..).zip(&self.entries) {
            let got = pool.entry(id);
            ensure!(
                got == Some(*expected),
                "{name} {id}: expected owner and epoch {expected:?}, the pool has {got:?}"
            );
        }
        let capacity = self.entries.len().saturating_sub(1);
        let (free, used) = (self.free.len(), capacity - self.free.len());
        ensure!(pool.free() == free, "{} {name}s free, expected {free}", pool.free());
        ensure!(pool.in_use() == used as u64, "{} {name}s in use, expected {used}", pool.in_use());
        ensure!(pool.capacity() == capacity, "{} {name}s in all, expected {capacity}", pool.capacity());
        Ok(())
    }
}

/// Who owns what.
pub struct Books {
    slots: Book,
    pages: Book,
    /// pages of running requests that the books know of
    held: BTreeMap<u64, Vec<u32>>,
    page_size: usize,
}

impl Books {
    pub fn new(plan: &Plan) -> Books {
        Books {
            slots: Book::new(plan.num_slots),
            pages: Book::new(plan.num_pages),
            held: BTreeMap::new(),
            page_size: plan.page_size,
        }
    }

    /// A sequence came into a slot.
    pub fn admitted(&mut self, s: &Sequence) -> Result<(), String> {
        let ordinal = s.request.ordinal;
        let epoch = self.slots.acquire(s.slot, ordinal)?;
        ensure!(
            s.epoch == epoch,
            "request {ordinal}: slot {} in epoch {}, expected {epoch}",
            s.slot,
            s.epoch
        );
        ensure!(s.pages.is_empty(), "request {ordinal} was admitted with pages {:?}", s.pages);
        self.held.insert(ordinal, Vec::new());
        Ok(())
    }

    /// A sequence gave back its slot, then its pages, last first.
    pub fn released(&mut self, s: &Sequence) -> Result<(), String> {
        let ordinal = s.request.ordinal;
        self.take(s)?;
        self.slots.release(s.slot, ordinal)?;
        let held = self.held.remove(&ordinal).unwrap_or_default();
        ensure!(held == s.pages, "request {ordinal} held pages {held:?} and gave back {:?}", s.pages);
        held.iter().rev().try_for_each(|page| self.pages.release(*page, ordinal))
    }

    /// A batch was made: its sequences took pages in the order they were admitted.
    pub fn grown(&mut self, running: &[Sequence]) -> Result<(), String> {
        running.iter().try_for_each(|s| self.take(s))
    }

    /// Pages a sequence took since the books last looked.
    fn take(&mut self, s: &Sequence) -> Result<(), String> {
        let ordinal = s.request.ordinal;
        let held = self.held.get_mut(&ordinal).ok_or(format!("request {ordinal} does not run"))?;
        ensure!(s.pages.starts_with(held), "request {ordinal}: pages {held:?} became {:?}", s.pages);
        for page in &s.pages[held.len()..] {
            self.pages.acquire(*page, ordinal)?;
            held.push(*page);
        }
        Ok(())
    }

    /// All that must hold between two steps.
    pub fn check<P: Entries>(
        &mut self,
        scheduler: &Scheduler<P>,
        requests: &BTreeMap<u64, Known>,
    ) -> Result<(), String> {
        let at = |stage| requests.iter().filter(move |(_, k)| k.stage == stage).map(|(o, _)| *o);
        let waiting: Vec<u64> = scheduler.queue().collect();
        let expected: Vec<u64> = at(Stage::Waiting).collect();
        ensure!(waiting == expected, "requests {waiting:?} wait, expected {expected:?} in order of arrival");
        ensure!(scheduler.waiting() == waiting.len(), "{} wait, {waiting:?} are queued", scheduler.waiting());
        let mut running: Vec<u64> = scheduler.running.iter().map(|s| s.request.ordinal).collect();
        running.sort_unstable();
        let expected: Vec<u64> = at(Stage::Running).collect();
        ensure!(running == expected, "requests {running:?} run, expected {expected:?}");
        let mut reserved = 0;
        for s in &scheduler.running {
            let (ordinal, known) = (s.request.ordinal, &requests[&s.request.ordinal]);
            self.take(s)?;
            let (pages, computed) = (s.pages.len(), s.computed);
            let needed = computed.div_ceil(self.page_size);
            ensure!(
                pages == needed,
                "request {ordinal}: {pages} pages for {computed} tokens, expected {needed}"
            );
            ensure!(
                s.reserved_pages == known.pages && pages <= known.pages,
                "request {ordinal}: {pages} pages, {} reserved, {} needed at most",
                s.reserved_pages,
                known.pages
            );
            reserved += s.reserved_pages;
            ensure!(
                s.generated.len() == known.generated && s.preempted == known.preempted,
                "request {ordinal}: {} tokens and {} preemptions, expected {known:?}",
                s.generated.len(),
                s.preempted
            );
            let whole = computed < known.prefill || computed + 1 == s.len();
            ensure!(whole, "request {ordinal}: {computed} of {} tokens computed", s.len());
        }
        ensure!(
            reserved == scheduler.reserved(),
            "{} pages reserved, expected {reserved}",
            scheduler.reserved()
        );
        ensure!(reserved <= scheduler.pages.capacity(), "{reserved} pages reserved, more than there are");
        self.slots.check("slot", &scheduler.slots)?;
        self.pages.check("page", &scheduler.pages)
    }
}

/// Whose the contents of a KV cell are.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    owner: u64,
    slot: u32,
    epoch: u64,
    position: usize,
}

/// A device without arithmetic: a slot's state is how many tokens of whom it has seen, a cell who wrote it.
pub struct Device {
    states: Vec<Option<(u64, usize)>>,
    cells: Vec<Option<Cell>>,
    page_size: usize,
}

impl Device {
    pub fn new(plan: &Plan) -> Device {
        Device {
            states: vec![None; plan.num_slots],
            cells: vec![None; plan.num_pages * plan.page_size],
            page_size: plan.page_size,
        }
    }

    /// Zeroes the state of a slot.
    pub fn zero(&mut self, slot: u32) {
        self.states[slot as usize] = None;
    }

    /// All rows of a batch write, then all of them read every position up to their own.
    pub fn run(&mut self, batch: &Batch) -> Result<(), String> {
        for g in &batch.segments {
            let seen = if g.start == 0 { None } else { Some((g.owner, g.start)) };
            let state = &mut self.states[g.slot as usize];
            ensure!(*state == seen, "{g:?} goes on from {seen:?}, but its slot holds {state:?}");
            *state = Some((g.owner, g.start + g.len));
            for position in g.start..g.start + g.len {
                let page = g.pages.get(position / self.page_size).copied().unwrap_or(0);
                ensure!(page != 0, "request {}: position {position} has no page", g.owner);
                let cell = Cell { owner: g.owner, slot: g.slot, epoch: g.epoch, position };
                self.cells[page as usize * self.page_size + position % self.page_size] = Some(cell);
            }
        }
        for g in &batch.segments {
            for position in 0..g.start + g.len {
                let page = g.pages[position / self.page_size] as usize;
                let cell = self.cells[page * self.page_size + position % self.page_size];
                let own = Cell { owner: g.owner, slot: g.slot, epoch: g.epoch, position };
                ensure!(cell == Some(own), "{own:?} reads page {page} and finds {cell:?}");
            }
        }
        Ok(())
    }
}
