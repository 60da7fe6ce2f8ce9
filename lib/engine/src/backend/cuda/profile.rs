//! A device that times every launch, for steps that run eagerly: which kernel takes which share.

use super::gpu::{Arg, Gpu, Graph, Kernel, Launch, Mark, Ptr, Stage, Unit};
use crate::Error;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device whose launches are timed one by one.
pub struct Profiled {
    inner: Arc<dyn Gpu>,
    names: Mutex<BTreeMap<u64, String>>,
    spans: Mutex<Vec<(u64, Mark, Mark)>>,
}

/// What all launches of a kernel took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// launches
    pub launches: u64,
    /// milliseconds between the marks before and after them
    pub ms: f64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Profiled {
    /// Times the launches on `inner`.
    pub fn new(inner: Arc<dyn Gpu>) -> Self {
        Profiled { inner, names: Mutex::default(), spans: Mutex::default() }
    }

    /// What each kernel took since the last call, by name and the first of its defines.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn take(&self) -> Result<BTreeMap<String, Share>, Error> {
        let names = lock(&self.names);
        let mut shares: BTreeMap<String, Share> = BTreeMap::new();
        for (kernel, from, to) in lock(&self.spans).drain(..) {
            let ms = self.inner.elapsed(from, to)?;
            let share = shares.entry(names.get(&kernel).cloned().unwrap_or_default()).or_default();
            share.launches += 1;
            share.ms += f64::from(ms);
        }
        Ok(shares)
    }
}

impl Gpu for Profiled {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn multiprocessors(&self) -> u32 {
        self.inner.multiprocessors()
    }
    fn shared_memory(&self) -> u32 {
        self.inner.shared_memory()
    }
    fn wgmma(&self) -> bool {
        self.inner.wgmma()
    }
    fn memory(&self) -> Result<(u64, u64), Error> {
        self.inner.memory()
    }
    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        self.inner.alloc(bytes)
    }
    fn free(&self, at: Ptr) -> Result<(), Error> {
        self.inner.free(at)
    }
    fn upload(&self, to: Ptr, from: &[u8]) -> Result<(), Error> {
        self.inner.upload(to, from)
    }
    fn stage(&self, bytes: usize) -> Result<Box<dyn Stage + '_>, Error> {
        self.inner.stage(bytes)
    }
    fn download(&self, to: &mut [u8], from: Ptr) -> Result<(), Error> {
        self.inner.download(to, from)
    }
    fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<(), Error> {
        self.inner.copy(to, from, bytes)
    }
    fn fill(&self, to: Ptr, byte: u8, bytes: usize) -> Result<(), Error> {
        self.inner.fill(to, byte, bytes)
    }
    fn compile(&self, units: &[Unit]) -> Result<(), Error> {
        self.inner.compile(units)
    }
    fn kernel(&self, unit: &Unit, name: &str, smem: u32) -> Result<Kernel, Error> {
        let kernel = self.inner.kernel(unit, name, smem)?;
        let what: Vec<String> = unit
            .defines
            .iter()
            .filter(|(name, _)| ["INPUTS", "EPILOGUE", "K", "ROWS"].contains(name))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        lock(&self.names).insert(kernel.0, format!("{name} {}", what.join(" ")).trim().to_owned());
        Ok(kernel)
    }
    fn occupancy(&self, kernel: Kernel, block: u32, smem: u32) -> Result<u32, Error> {
        self.inner.occupancy(kernel, block, smem)
    }
    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), Error> {
        let from = self.inner.mark()?;
        self.inner.launch(kernel, launch, args)?;
        let to = self.inner.mark()?;
        lock(&self.spans).push((kernel.0, from, to));
        Ok(())
    }
    fn begin_capture(&self) -> Result<(), Error> {
        Err(Error::Device("a profiled step runs eagerly".into()))
    }
    fn end_capture(&self, keep: bool) -> Result<Option<Graph>, Error> {
        self.inner.end_capture(keep)
    }
    fn replay(&self, graph: Graph) -> Result<(), Error> {
        self.inner.replay(graph)
    }
    fn drop_graph(&self, graph: Graph) -> Result<(), Error> {
        self.inner.drop_graph(graph)
    }
    fn synchronize(&self) -> Result<(), Error> {
        self.inner.synchronize()
    }
    fn mark(&self) -> Result<Mark, Error> {
        self.inner.mark()
    }
    fn elapsed(&self, from: Mark, to: Mark) -> Result<f32, Error> {
        self.inner.elapsed(from, to)
    }
}
