//! A pool of numbered entries (recurrent slots, KV pages): first in, first out, each with owner and epoch.
//!
//! Entry 0 is reserved and never handed out. Every entry is either free or owned; releasing what one does not
//! own is an error, not a repair. Builds with debug assertions check that algebra after every operation.

use crate::Error;
use crate::error::Mismatch;
use crate::fault::Fault;
use std::collections::VecDeque;
use std::fmt::Debug;

/// What the scheduler asks of a pool. [`Pool`] is the one there is; tests bring broken ones.
pub trait Entries: Debug {
    /// Entries that can be acquired now.
    fn free(&self) -> usize;
    /// Entries that can be acquired when all are free.
    fn capacity(&self) -> usize;
    /// Acquisitions less releases: entries that somebody owns.
    fn in_use(&self) -> u64;
    /// Takes the entry that has been free longest. Returns it and its new epoch (1 for the first use).
    ///
    /// # Errors
    /// [`Error::Ownership`] when none is free, or when the free list and the owners contradict each other.
    fn acquire(&mut self, owner: u64) -> Result<(u32, u64), Error>;
    /// Gives an entry back.
    ///
    /// # Errors
    /// [`Error::Ownership`] when `owner` does not own it: a double free, or somebody else's entry.
    fn release(&mut self, id: u32, owner: u64) -> Result<(), Error>;
    /// Owner and epoch of an entry, epoch 0 for one never used; `None` past the end.
    fn entry(&self, id: u32) -> Option<(Option<u64>, u64)>;
}

/// The pool.
#[derive(Clone, Debug)]
pub struct Pool {
    name: &'static str,
    free: VecDeque<u32>,
    entries: Vec<Entry>,
    /// acquisitions so far
    pub acquired: u64,
    /// releases so far
    pub released: u64,
    /// whoever releases or acquires is believed (a fault's pool, its own checks left out)
    credulous: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    owner: Option<u64>,
    epoch: u64,
}

impl Pool {
    /// A pool of `len` entries, the reserved entry 0 included.
    pub fn new(name: &'static str, len: usize) -> Self {
        let last = u32::try_from(len).unwrap_or(u32::MAX);
        Pool {
            name,
            free: (1..last).collect(),
            entries: vec![Entry::default(); len],
            acquired: 0,
            released: 0,
            credulous: false,
        }
    }

    /// Leaves out the checks that the fault would run into, as the pools did that had it.
    pub(crate) fn unguarded(mut self, fault: Fault) -> Self {
        self.credulous = matches!(fault, Fault::DoubleFree | Fault::PadRowSlot0);
        if fault == Fault::PadRowSlot0 {
            self.free.push_front(0);
        }
        self
    }

    /// Checks the algebra: free and owned entries are disjoint and are all there is, entry 0 is neither, and
    /// acquisitions less releases are what is owned.
    ///
    /// # Errors
    /// [`Error::Ownership`] with the first entry that is neither or both, or with the numbers.
    pub fn check(&self) -> Result<(), Error> {
        let mut listed = vec![0u32; self.entries.len()];
        for id in &self.free {
            match listed.get_mut(*id as usize) {
                Some(times) if *id != 0 => *times += 1,
                _ => return self.broken(*id, None, "is no entry to hand out, yet it is in the free list"),
            }
        }
        let mut owned = 0;
        for (id, (entry, listed)) in (0u32..).zip(self.entries.iter().zip(listed)).skip(1) {
            owned += u64::from(entry.owner.is_some());
            if u32::from(entry.owner.is_none()) != listed {
                return self.broken(
                    id,
                    None,
                    &format!("owner {:?}, {listed} times in the free list", entry.owner),
                );
            }
        }
        if self.acquired.checked_sub(self.released) != Some(owned) {
            let (acquired, released) = (self.acquired, self.released);
            return Err(Error::ownership(format!(
                "{} pool: {acquired} acquired, {released} released, but {owned} owned",
                self.name
            )));
        }
        Ok(())
    }

    fn broken<T>(&self, id: u32, request: Option<u64>, what: &str) -> Result<T, Error> {
        let entry = self.entries.get(id as usize);
        Err(Error::Ownership(Box::new(Mismatch {
            message: format!("{} {id}: {what}", self.name),
            entry: Some((self.name, id)),
            request,
            expected_epoch: None,
            owner: entry.and_then(|e| e.owner),
            epoch: entry.map(|e| e.epoch),
        })))
    }

    fn checked<T>(&self, value: T) -> Result<T, Error> {
        if cfg!(debug_assertions) && !self.credulous {
            self.check()?;
        }
        Ok(value)
    }
}

impl Entries for Pool {
    fn free(&self) -> usize {
        self.free.len()
    }

    fn capacity(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }

    fn in_use(&self) -> u64 {
        self.acquired.saturating_sub(self.released)
    }

    fn acquire(&mut self, owner: u64) -> Result<(u32, u64), Error> {
        let Some(id) = self.free.pop_front() else {
            return Err(Error::ownership(format!(
                "request {owner}: no free {}, all {} are owned",
                self.name,
                self.capacity()
            )));
        };
        let entry = &mut self.entries[id as usize];
        if let Some(other) = entry.owner.filter(|_| !self.credulous) {
            return self.broken(
                id,
                Some(owner),
                &format!("free for request {owner}, yet owned by request {other}"),
            );
        }
        entry.owner = Some(owner);
        entry.epoch += 1;
        self.acquired += 1;
        let epoch = entry.epoch;
        self.checked((id, epoch))
    }

    fn release(&mut self, id: u32, owner: u64) -> Result<(), Error> {
        match self.entries.get_mut(id as usize) {
            Some(entry) if entry.owner == Some(owner) || self.credulous => {
                entry.owner = None;
                self.free.push_back(id);
                self.released += 1;
                self.checked(())
            }
            other => {
                let holder =
                    other.and_then(|e| e.owner).map_or("nobody".to_owned(), |o| format!("request {o}"));
                self.broken(id, Some(owner), &format!("released by request {owner}, owned by {holder}"))
            }
        }
    }

    fn entry(&self, id: u32) -> Option<(Option<u64>, u64)> {
        self.entries.get(id as usize).map(|e| (e.owner, e.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_the_order_they_were_released() {
        let mut pool = Pool::new("page", 4);
        let ids: Vec<u32> = (0..3).map(|o| pool.acquire(o).unwrap().0).collect();
        assert_eq!((ids, pool.in_use()), (vec![1, 2, 3], 3));
        let error = pool.acquire(9).unwrap_err().to_string();
        assert_eq!(error, "request 9: no free page, all 3 are owned");
        pool.release(2, 1).unwrap();
        pool.release(1, 0).unwrap();
        assert_eq!(pool.acquire(7).unwrap(), (2, 2));
        assert_eq!(pool.acquire(7).unwrap(), (1, 2));
        pool.check().unwrap();
    }

    #[test]
    fn a_double_free_and_a_foreign_free_are_refused() {
        let mut pool = Pool::new("slot", 3);
        let (id, epoch) = pool.acquire(5).unwrap();
        assert!(pool.release(id, 6).unwrap_err().to_string().contains("owned by request 5"));
        assert_eq!(pool.entry(id), Some((Some(5), epoch)));
        pool.release(id, 5).unwrap();
        assert!(pool.release(id, 5).unwrap_err().to_string().contains("owned by nobody"));
        assert_eq!(pool.entry(id), Some((None, epoch)));
        assert!(pool.release(77, 5).is_err());
        assert_eq!((pool.acquired, pool.released, pool.in_use()), (1, 1, 0));
        pool.check().unwrap();
    }

    #[test]
    fn an_entry_listed_as_free_that_is_owned_is_not_handed_out() {
        let mut pool = Pool::new("page", 4);
        let (id, _) = pool.acquire(1).unwrap();
        pool.free.push_front(id);
        let error = pool.acquire(2).unwrap_err().to_string();
        assert_eq!(error, "page 1: free for request 2, yet owned by request 1");
    }

    #[test]
    fn the_algebra_sees_each_way_it_can_be_broken() {
        let broken = |break_it: &dyn Fn(&mut Pool), expected: &str| {
            let mut pool = Pool::new("page", 4);
            pool.acquire(1).unwrap();
            pool.check().unwrap();
            break_it(&mut pool);
            let error = pool.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(pool.checked(()).is_err() || !cfg!(debug_assertions));
        };
        broken(&|p| p.free.push_back(1), "page 1: owner Some(1), 1 times");
        broken(&|p| p.free.push_back(2), "page 2: owner None, 2 times");
        broken(&|p| p.free.retain(|id| *id != 2), "page 2: owner None, 0 times");
        broken(&|p| p.free.push_back(0), "page 0: is no entry");
        broken(&|p| p.free.push_back(9), "page 9: is no entry");
        broken(&|p| p.released += 1, "1 acquired, 1 released, but 1 owned");
        broken(&|p| p.released += 2, "1 acquired, 2 released, but 1 owned");
    }
}
