//! A pool of numbered entries (recurrent slots, KV pages): first in, first out, each with owner and epoch.
//!
//! Entry 0 is reserved and never handed out. Every entry is either free or owned; releasing what one does not
//! own is an error, not a repair.

use crate::Error;
use std::collections::VecDeque;

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
        }
    }

    /// Entries that can be acquired now.
    pub fn free(&self) -> usize {
        self.free.len()
    }
    /// Entries that can be acquired when all are free.
    pub fn capacity(&self) -> usize {
        self.entries.len().saturating_sub(1)
    }

    /// Takes the entry that has been free longest. Returns it and its new epoch (1 for the first use).
    pub fn acquire(&mut self, owner: u64) -> Option<(u32, u64)> {
        let id = self.free.pop_front()?;
        let entry = &mut self.entries[id as usize];
        entry.owner = Some(owner);
        entry.epoch += 1;
        self.acquired += 1;
        Some((id, entry.epoch))
    }

    /// Gives an entry back.
    ///
    /// # Errors
    /// [`Error::Ownership`] when `owner` does not own it: a double free, or somebody else's entry.
    pub fn release(&mut self, id: u32, owner: u64) -> Result<(), Error> {
        match self.entries.get_mut(id as usize) {
            Some(entry) if entry.owner == Some(owner) => {
                entry.owner = None;
                self.free.push_back(id);
                self.released += 1;
                Ok(())
            }
            other => Err(Error::Ownership(format!(
                "{} {id}: released by request {owner}, owned by {}",
                self.name,
                other.and_then(|e| e.owner).map_or("nobody".to_owned(), |o| format!("request {o}"))
            ))),
        }
    }

    /// Checks that `owner` holds `id` in the epoch it believes in.
    ///
    /// # Errors
    /// [`Error::Ownership`] naming both sides.
    pub fn verify(&self, id: u32, owner: u64, epoch: u64) -> Result<(), Error> {
        match self.entries.get(id as usize) {
            Some(e) if e.owner == Some(owner) && e.epoch == epoch => Ok(()),
            e => Err(Error::Ownership(format!(
                "{} {id}: used by request {owner} in epoch {epoch}, but it is {:?}",
                self.name,
                e.map(|e| (e.owner, e.epoch))
            ))),
        }
    }

    /// Checks the algebra: free and owned entries are disjoint and are all there is.
    ///
    /// # Errors
    /// [`Error::Ownership`] with the first entry that is neither or both.
    pub fn check(&self) -> Result<(), Error> {
        let mut free = vec![0u32; self.entries.len()];
        for id in &self.free {
            free[*id as usize] += 1;
        }
        for (id, (entry, free)) in self.entries.iter().zip(free).enumerate().skip(1) {
            if (entry.owner.is_some(), free) != (true, 0) && (entry.owner.is_some(), free) != (false, 1) {
                return Err(Error::Ownership(format!(
                    "{} {id}: owner {:?}, {free} times in the free list",
                    self.name, entry.owner
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_the_order_they_were_released() {
        let mut pool = Pool::new("page", 4);
        let ids: Vec<u32> = (0..3).filter_map(|o| pool.acquire(o)).map(|(id, _)| id).collect();
        assert_eq!((ids, pool.acquire(9)), (vec![1, 2, 3], None));
        pool.release(2, 1).unwrap();
        pool.release(1, 0).unwrap();
        assert_eq!(pool.acquire(7), Some((2, 2)));
        assert_eq!(pool.acquire(7), Some((1, 2)));
        pool.check().unwrap();
    }

    #[test]
    fn a_double_free_and_a_foreign_free_are_refused() {
        let mut pool = Pool::new("slot", 3);
        let (id, epoch) = pool.acquire(5).unwrap();
        assert!(pool.release(id, 6).unwrap_err().to_string().contains("owned by request 5"));
        pool.verify(id, 5, epoch).unwrap();
        pool.release(id, 5).unwrap();
        assert!(pool.release(id, 5).unwrap_err().to_string().contains("owned by nobody"));
        assert!(pool.verify(id, 5, epoch).is_err());
        assert!(pool.release(77, 5).is_err());
        pool.check().unwrap();
    }
}
