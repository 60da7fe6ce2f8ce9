//! A device that keeps nothing: what is left of loading is reading and arranging.

use cute_engine::Error;
use cute_engine::backend::cuda::gpu::{Arg, Gpu, Graph, Kernel, Launch, Mark, Ptr, Unit};
use std::sync::atomic::{AtomicU64, Ordering};

/// It hands out addresses and forgets what is written there.
#[derive(Debug, Default)]
pub struct Nowhere(AtomicU64);

/// Nothing runs on it.
fn none<T>() -> Result<T, Error> {
    Err(Error::Device("this device keeps nothing and runs nothing: it is there to be loaded to".into()))
}

impl Gpu for Nowhere {
    fn name(&self) -> String {
        "none".to_owned()
    }
    fn multiprocessors(&self) -> u32 {
        1
    }
    fn shared_memory(&self) -> u32 {
        0
    }
    fn wgmma(&self) -> bool {
        false
    }
    fn memory(&self) -> Result<(u64, u64), Error> {
        Ok((u64::MAX, u64::MAX))
    }
    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        Ok(self.0.fetch_add(bytes.next_multiple_of(256) as u64, Ordering::Relaxed))
    }
    fn free(&self, _: Ptr) -> Result<(), Error> {
        Ok(())
    }
    fn upload(&self, _: Ptr, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }
    fn download(&self, _: &mut [u8], _: Ptr) -> Result<(), Error> {
        none()
    }
    fn copy(&self, _: Ptr, _: Ptr, _: usize) -> Result<(), Error> {
        Ok(())
    }
    fn fill(&self, _: Ptr, _: u8, _: usize) -> Result<(), Error> {
        Ok(())
    }
    fn compile(&self, _: &[Unit]) -> Result<(), Error> {
        none()
    }
    fn kernel(&self, _: &Unit, _: &str, _: u32) -> Result<Kernel, Error> {
        none()
    }
    fn occupancy(&self, _: Kernel, _: u32, _: u32) -> Result<u32, Error> {
        none()
    }
    fn launch(&self, _: Kernel, _: Launch, _: &[Arg]) -> Result<(), Error> {
        none()
    }
    fn begin_capture(&self) -> Result<(), Error> {
        none()
    }
    fn end_capture(&self, _: bool) -> Result<Option<Graph>, Error> {
        none()
    }
    fn replay(&self, _: Graph) -> Result<(), Error> {
        none()
    }
    fn drop_graph(&self, _: Graph) -> Result<(), Error> {
        none()
    }
    fn synchronize(&self) -> Result<(), Error> {
        Ok(())
    }
    fn mark(&self) -> Result<Mark, Error> {
        none()
    }
    fn elapsed(&self, _: Mark, _: Mark) -> Result<f32, Error> {
        none()
    }
}
