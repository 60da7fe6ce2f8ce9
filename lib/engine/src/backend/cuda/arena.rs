//! The device memory of one model: freed together with it.

use super::gpu::{Gpu, Ptr};
use crate::Error;
use std::cell::RefCell;
use std::sync::Arc;

/// Allocations on a device.
pub(super) struct Arena {
    pub(super) gpu: Arc<dyn Gpu>,
    owned: RefCell<Vec<Ptr>>,
}

impl Arena {
    pub(super) fn new(gpu: Arc<dyn Gpu>) -> Self {
        Arena { gpu, owned: RefCell::default() }
    }
    /// Uninitialised memory.
    pub(super) fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        let at = self.gpu.alloc(bytes.max(4))?;
        self.owned.borrow_mut().push(at);
        Ok(at)
    }
    /// Gives back memory that nothing uses any more.
    pub(super) fn free(&self, at: Ptr) -> Result<(), Error> {
        self.owned.borrow_mut().retain(|owned| *owned != at);
        self.gpu.free(at)
    }
    /// Zeroed memory.
    pub(super) fn zeroed(&self, bytes: usize) -> Result<Ptr, Error> {
        let at = self.alloc(bytes)?;
        self.gpu.fill(at, 0, bytes.max(4))?;
        Ok(at)
    }
    /// Memory with the given contents.
    pub(super) fn filled(&self, bytes: &[u8]) -> Result<Ptr, Error> {
        let at = self.alloc(bytes.len())?;
        self.gpu.upload(at, bytes)?;
        Ok(at)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // what is queued may still use the memory; a device that has failed keeps it
        if self.gpu.synchronize().is_ok() {
            self.owned.borrow().iter().for_each(|at| drop(self.gpu.free(*at)));
        }
    }
}
