//! A real device: one context, one stream, everything through libcuda.
//!
//! Recording is thread-local: what other threads do to the device meanwhile (allocate, say) does not disturb it, and
//! it ends on the thread that began it. What cannot be recorded (allocations, transfers to or from the host, marks,
//! loading of kernels, waiting) is refused while recording, before CUDA would throw the recording away.
#![allow(unsafe_code)]

use super::ahead::Chip;
use super::api::{self, Context, Device, cu};
use super::compiler::Compiler;
use super::gpu::{Arg, Gpu, Graph, Kernel, Launch, Mark, Ptr, Stage, Unit};
use super::module::{Function, Module};
use super::nvrtc::describe;
use super::stage::{Home, Pinned};
use super::staging::Staging;
use crate::Error;
use cudarc::driver::sys::{self, CUresult};
use std::collections::{BTreeMap, HashMap};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// Uploads up to this go as they are: the driver copies them before it returns.
const DIRECT: usize = 64 << 10;
/// Marks that are remembered; older ones are overwritten.
const MARKS: u64 = 1 << 16;
/// A CUDA device.
pub struct Driver {
    device: Device,
    context: Context,
    stream: sys::CUstream,
    elapsed_time: api::ElapsedTime,
    compiler: Compiler,
    recording: AtomicBool,
    /// address and bytes of what is allocated
    memory: Mutex<BTreeMap<Ptr, u64>>,
    modules: Mutex<HashMap<Unit, Module>>,
    kernels: RwLock<Vec<Function>>,
    graphs: Mutex<(u64, HashMap<u64, sys::CUgraphExec>)>,
    marks: Mutex<(u64, Vec<sys::CUevent>)>,
    staging: Mutex<Option<Staging>>,
}

// SAFETY: libcuda's handles belong to the process, may be used from every thread that has made the context current (each
// method does), and the library is thread-safe. What Rust owns is behind locks.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Whether libcuda is there.
    pub fn installed() -> bool {
        api::installed()
    }

    /// Opens a device by its number, counted from 0.
    ///
    /// # Errors
    /// No driver, no device, none of this number, or one too old for the kernels: a sentence each.
    pub fn open(ordinal: usize) -> Result<Driver, Error> {
        Driver::with(ordinal, Compiler::from_env())
    }

    /// Opens a device, with kernels from this compiler.
    ///
    /// # Errors
    /// As [`Driver::open`].
    pub fn with(ordinal: usize, compiler: Compiler) -> Result<Driver, Error> {
        let device = Device::get(ordinal)?;
        let context = Context::new(&device)?;
        context.enter()?;
        let elapsed_time = api::elapsed_time()?;
        let mut stream = null_mut();
        // SAFETY: the context is current; `stream` lives.
        unsafe {
            cu!(cuStreamCreate(&mut stream, sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32))?;
        }
        Ok(Driver {
            device,
            context,
            stream,
            elapsed_time,
            compiler,
            recording: AtomicBool::new(false),
            memory: Mutex::default(),
            modules: Mutex::default(),
            kernels: RwLock::default(),
            graphs: Mutex::default(),
            marks: Mutex::default(),
            staging: Mutex::default(),
        })
    }

    /// The architecture of a device, e.g. `sm_90a`, without opening it.
    ///
    /// # Errors
    /// As [`Driver::open`].
    pub fn architecture(ordinal: usize) -> Result<String, Error> {
        Device::get(ordinal).map(|device| device.arch)
    }

    /// The architecture kernels are compiled for, e.g. `sm_90a`.
    pub fn arch(&self) -> &str {
        &self.device.arch
    }

    /// Makes the context current, for a call that a recording cannot hold.
    fn enter_unrecorded(&self, what: &str) -> Result<(), Error> {
        if self.recording.load(Ordering::Acquire) {
            return Err(Error::Device(format!("{what} cannot be part of a recording")));
        }
        self.context.enter()
    }

    /// Whether `bytes` bytes at `at` are inside of one allocation.
    fn check_range(&self, what: &str, at: Ptr, bytes: usize) -> Result<(), Error> {
        let memory = lock(&self.memory);
        let inside = memory.range(..=at).next_back().is_some_and(|(start, length)| {
            let offset = at - start;
            offset <= *length && bytes as u64 <= length - offset
        });
        if inside {
            return Ok(());
        }
        Err(Error::Device(format!("{what} of {bytes} bytes at {at:#x}: that is no allocated memory")))
    }

    /// Loads the units that are not loaded yet.
    fn load_all<'a>(&'a self, units: &[Unit]) -> Result<MutexGuard<'a, HashMap<Unit, Module>>, Error> {
        let mut modules = lock(&self.modules);
        let mut missing: Vec<Unit> = units.iter().filter(|u| !modules.contains_key(u)).cloned().collect();
        missing.sort();
        missing.dedup();
        if let Some(first) = missing.first() {
            self.enter_unrecorded(&format!("loading {}", describe(first)))?;
            let compiled = self.compiler.compile(&missing, &self.device.arch)?;
            for (unit, compiled) in missing.into_iter().zip(compiled) {
                let module = Module::load(&unit, &self.device.arch, &compiled.cubin)?;
                modules.insert(unit, module);
            }
        }
        Ok(modules)
    }

    /// What the stream had to say, named as the device's.
    fn waited(&self, result: Result<(), Error>) -> Result<(), Error> {
        result.map_err(|e| Error::Device(format!("work on {} failed: {e}", self.device.name)))
    }
}

impl Home for Driver {
    fn enter(&self) -> Result<(), Error> {
        self.enter_unrecorded("a transfer")
    }
    fn holds(&self, at: Ptr, bytes: usize) -> Result<(), Error> {
        self.check_range("an upload", at, bytes)
    }
}

impl Gpu for Driver {
    fn name(&self) -> String {
        self.device.name.clone()
    }

    fn multiprocessors(&self) -> u32 {
        self.device.multiprocessors
    }

    fn shared_memory(&self) -> u32 {
        self.device.shared_memory
    }
    fn wgmma(&self) -> bool {
        Chip::of(&self.device.arch).wgmma
    }

    fn memory(&self) -> Result<(u64, u64), Error> {
        self.context.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places live.
        unsafe { cu!(cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok((free as u64, total as u64))
    }

    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        self.enter_unrecorded("an allocation")?;
        let mut at = 0;
        // SAFETY: `at` lives. Nothing is no size for CUDA.
        if let Err(e) = unsafe { cu!(cuMemAlloc_v2(&mut at, bytes.max(1))) } {
            let there = self.memory().map_or(String::new(), |(f, t)| format!(", {f} of {t} bytes are free"));
            return Err(Error::Device(format!("{bytes} bytes on {}{there}: {e}", self.device.name)));
        }
        lock(&self.memory).insert(at, bytes as u64);
        Ok(at)
    }

    fn free(&self, at: Ptr) -> Result<(), Error> {
        self.enter_unrecorded("freeing memory")?;
        if lock(&self.memory).remove(&at).is_none() {
            return Err(Error::Device(format!("freeing {at:#x}: nothing is allocated there")));
        }
        // SAFETY: it was allocated, and is not known any more.
        unsafe { cu!(cuMemFree_v2(at)) }
    }

    fn upload(&self, to: Ptr, from: &[u8]) -> Result<(), Error> {
        self.enter_unrecorded("an upload")?;
        self.check_range("an upload", to, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        if from.len() <= DIRECT {
            // SAFETY: the range was checked; the driver has copied pageable memory of this size when it returns.
            return unsafe { cu!(cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream)) };
        }
        let mut staging = lock(&self.staging);
        // SAFETY: the range was checked, the stream is ours and not recording.
        unsafe { staging_of(&mut staging)?.upload(to, from, self.stream) }
    }

    fn stage(&self, bytes: usize) -> Result<Box<dyn Stage + '_>, Error> {
        Ok(Box::new(Pinned::new(self, bytes)?))
    }

    fn download(&self, to: &mut [u8], from: Ptr) -> Result<(), Error> {
        self.enter_unrecorded("a download")?;
        self.check_range("a download", from, to.len())?;
        if to.is_empty() {
            return self.synchronize();
        }
        let mut staging = lock(&self.staging);
        // SAFETY: as in `upload`.
        self.waited(unsafe { staging_of(&mut staging)?.download(to, from, self.stream) })
    }

    fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<(), Error> {
        self.context.enter()?;
        self.check_range("a copy", to, bytes)?;
        self.check_range("a copy", from, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked.
        unsafe { cu!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream)) }
    }

    fn fill(&self, to: Ptr, byte: u8, bytes: usize) -> Result<(), Error> {
        self.context.enter()?;
        self.check_range("a fill", to, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range was checked.
        unsafe { cu!(cuMemsetD8Async(to, byte, bytes, self.stream)) }
    }

    fn compile(&self, units: &[Unit]) -> Result<(), Error> {
        self.load_all(units).map(drop)
    }

    fn kernel(&self, unit: &Unit, name: &str, smem: u32) -> Result<Kernel, Error> {
        let mut modules = self.load_all(std::slice::from_ref(unit))?;
        let lost = || Error::Device(format!("{} is not loaded", describe(unit)));
        let module = modules.get_mut(unit).ok_or_else(lost)?;
        let mut kernels = self.kernels.write().unwrap_or_else(PoisonError::into_inner);
        let number = match module.numbers.get(name) {
            Some(number) => *number,
            None => {
                self.enter_unrecorded(&format!("loading kernel {name}"))?;
                kernels.push(module.function(unit, name)?);
                module.numbers.insert(name.to_owned(), kernels.len() - 1);
                kernels.len() - 1
            }
        };
        self.context.enter()?;
        kernels[number].allow(smem, self.device.shared_memory)?;
        Ok(Kernel(number as u64))
    }

    fn occupancy(&self, kernel: Kernel, block: u32, smem: u32) -> Result<u32, Error> {
        self.context.enter()?;
        let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
        function(&kernels, kernel)?.occupancy(block, smem)
    }

    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), Error> {
        self.context.enter()?;
        let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
        function(&kernels, kernel)?.launch(launch, args, self.stream)
    }

    fn begin_capture(&self) -> Result<(), Error> {
        self.enter_unrecorded("a recording")?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        unsafe { cu!(cuStreamBeginCapture_v2(self.stream, mode)) }?;
        self.recording.store(true, Ordering::Release);
        Ok(())
    }

    fn end_capture(&self, keep: bool) -> Result<Option<Graph>, Error> {
        self.context.enter()?;
        if !self.recording.swap(false, Ordering::AcqRel) {
            return Err(Error::Device("the end of a recording that was not begun".to_owned()));
        }
        let mut graph = null_mut();
        // SAFETY: `graph` lives, and stays null where recording failed.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) };
        match ended {
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED if !keep => return Ok(None),
            // It goes on.
            CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => self.recording.store(true, Ordering::Release),
            _ => {}
        }
        api::check("cuStreamEndCapture", ended)?;
        let mut ready = null_mut();
        // SAFETY: the graph is whole, instantiated at most once and then destroyed; what is made of it stays.
        unsafe {
            let made = match keep {
                true => cu!(cuGraphInstantiateWithFlags(&mut ready, graph, 0)),
                false => Ok(()),
            };
            cu!(cuGraphDestroy(graph))?;
            made?;
        }
        if !keep {
            return Ok(None);
        }
        let mut graphs = lock(&self.graphs);
        graphs.0 += 1;
        let number = graphs.0;
        graphs.1.insert(number, ready);
        // SAFETY: instantiated above. The first replay finds it on the device.
        unsafe { cu!(cuGraphUpload(ready, self.stream)) }?;
        Ok(Some(Graph(number)))
    }

    fn replay(&self, graph: Graph) -> Result<(), Error> {
        self.enter_unrecorded("a replay")?;
        let graphs = lock(&self.graphs);
        let ready = graphs.1.get(&graph.0).ok_or_else(|| no_graph(graph))?;
        // SAFETY: instantiated and not dropped.
        unsafe { cu!(cuGraphLaunch(*ready, self.stream)) }
    }

    fn drop_graph(&self, graph: Graph) -> Result<(), Error> {
        self.enter_unrecorded("dropping a recording")?;
        let ready = lock(&self.graphs).1.remove(&graph.0).ok_or_else(|| no_graph(graph))?;
        // It may still run.
        let waited = self.synchronize();
        // SAFETY: instantiated, and nobody else's any more.
        unsafe { cu!(cuGraphExecDestroy(ready)) }?;
        waited
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.enter_unrecorded("waiting")?;
        // SAFETY: the stream is ours.
        self.waited(unsafe { cu!(cuStreamSynchronize(self.stream)) })
    }

    fn mark(&self) -> Result<Mark, Error> {
        self.enter_unrecorded("a mark")?;
        let mut marks = lock(&self.marks);
        let number = marks.0;
        let slot = (number % MARKS) as usize;
        // SAFETY: the place written to lives; the event exists when it is recorded.
        unsafe {
            if slot == marks.1.len() {
                let mut event = null_mut();
                cu!(cuEventCreate(&mut event, sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32))?;
                marks.1.push(event);
            }
            cu!(cuEventRecord(marks.1[slot], self.stream))?;
        }
        marks.0 += 1;
        Ok(Mark(number))
    }

    fn elapsed(&self, from: Mark, to: Mark) -> Result<f32, Error> {
        self.enter_unrecorded("waiting for a mark")?;
        let marks = lock(&self.marks);
        let event = |mark: Mark| {
            let kept = mark.0 < marks.0 && marks.0 - mark.0 <= MARKS;
            let event = marks.1.get((mark.0 % MARKS) as usize).filter(|_| kept).copied();
            let gone = || format!("mark {} is not among the last {MARKS} of {}", mark.0, marks.0);
            event.ok_or_else(|| Error::Device(gone()))
        };
        let (from, to) = (event(from)?, event(to)?);
        let mut ms = 0.0;
        // SAFETY: both events exist and were recorded; `ms` lives.
        unsafe {
            self.waited(cu!(cuEventSynchronize(from)))?;
            self.waited(cu!(cuEventSynchronize(to)))?;
            api::check("cuEventElapsedTime", (self.elapsed_time)(&mut ms, from, to))?;
        }
        Ok(ms)
    }
}

fn function(kernels: &[Function], kernel: Kernel) -> Result<&Function, Error> {
    kernels
        .get(kernel.0 as usize)
        .ok_or_else(|| Error::Device(format!("no kernel {} on this device", kernel.0)))
}

fn no_graph(graph: Graph) -> Error {
    Error::Device(format!("no recording {} on this device", graph.0))
}

/// The staging buffers, made when first needed. The context is current.
fn staging_of(staging: &mut Option<Staging>) -> Result<&mut Staging, Error> {
    Ok(match staging {
        Some(staging) => staging,
        None => staging.insert(Staging::new()?),
    })
}

/// A panic elsewhere leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: everything was made by this device and is given back once; nothing can be done about errors, and after
        // a failed kernel every call fails. The context goes last, with the fields.
        unsafe {
            if *self.recording.get_mut() {
                let mut graph = null_mut();
                let _ = sys::cuStreamEndCapture(self.stream, &mut graph);
                if !graph.is_null() {
                    let _ = sys::cuGraphDestroy(graph);
                }
            }
            let _ = sys::cuStreamSynchronize(self.stream);
            lock(&self.staging).take();
            for (_, graph) in lock(&self.graphs).1.drain() {
                let _ = sys::cuGraphExecDestroy(graph);
            }
            for event in lock(&self.marks).1.drain(..) {
                let _ = sys::cuEventDestroy_v2(event);
            }
            for at in lock(&self.memory).keys() {
                let _ = sys::cuMemFree_v2(*at);
            }
            for (_, module) in lock(&self.modules).drain() {
                module.unload();
            }
            let _ = sys::cuStreamDestroy_v2(self.stream);
        }
    }
}
