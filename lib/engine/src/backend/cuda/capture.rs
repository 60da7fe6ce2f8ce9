//! Recording a decode step, and what it must leave alone.
//!
//! Recording runs nothing: no slot and no page may change by it. When that is watched, every slot and the pages of the
//! step are digested before and after.

use super::{Cache, Cuda, Recording};
use crate::Error;
use crate::backend::StepOps;
use crate::batch::Batch;
use std::cell::RefCell;

/// What is watched around recordings, when anything is.
#[derive(Debug, Default)]
pub(super) struct Captures {
    pub(super) watched: bool,
    /// the caches, once they are there
    pub(super) cache: RefCell<Option<Cache>>,
    /// slots and pages that changed
    changed: RefCell<Vec<(&'static str, u32)>>,
}

/// A slot or page, and its digest.
type Entry = ((&'static str, u32), String);

impl Cuda {
    /// Records the operations of a step.
    pub(super) fn record(&self, batch: &Batch, ops: &mut StepOps<'_>) -> Result<Recording, Error> {
        let before = self.entries(batch)?;
        self.gpu().begin_capture()?;
        let outcomes = match ops() {
            Ok(outcomes) => outcomes,
            Err(e) => {
                self.gpu().end_capture(false)?;
                return Err(e);
            }
        };
        let Some(graph) = self.gpu().end_capture(true)? else {
            return Err(Error::Device("a recorded step came back empty".into()));
        };
        let after = self.entries(batch)?;
        let changed = before.into_iter().zip(after).filter(|(before, after)| before.1 != after.1);
        self.captures.changed.borrow_mut().extend(changed.map(|((entry, _), _)| entry));
        Ok((graph, outcomes))
    }

    /// Every slot, and the pages of a batch, as they are; nothing when that is not watched.
    fn entries(&self, batch: &Batch) -> Result<Vec<Entry>, Error> {
        let cache = self.captures.cache.borrow();
        let Some(cache) = cache.as_ref().filter(|_| self.captures.watched) else { return Ok(Vec::new()) };
        let slot = |n| Ok((("slot", n), self.digest(cache.parts(n))?));
        let page = |n| Ok((("page", n), self.digest(std::iter::once(cache.page(n)))?));
        let pages = batch.segments.iter().flat_map(|s| s.pages.iter().copied());
        (0..cache.slots()).map(slot).chain(pages.map(page)).collect()
    }

    /// What changed since this was last asked.
    pub(super) fn changed(&self) -> Vec<(&'static str, u32)> {
        self.captures.changed.take()
    }
}
