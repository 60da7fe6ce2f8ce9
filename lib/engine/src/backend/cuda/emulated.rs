//! A device without a GPU: the kernels, compiled for the host, run thread by thread.
//!
//! Meant for tests, so it is strict where a device is lenient: unwritten memory is NaN, whoever leaves a buffer is
//! stopped, and a grid is small and uneven. A launch that fails says which thread did what, and the device is unusable
//! from then on, as a GPU is after a fault. Work is done when it is queued.
#![allow(unsafe_code)] // loads libraries and copies between buffers

mod compile;
mod machine;
mod memory;

use super::gpu::{Arg, Gpu, Graph, Join, Kernel, Launch, Mark, Ptr, Unit};
use super::sources::SOURCES;
use crate::Error;
use compile::Compiler;
use machine::{Entry, Machine, Shape};
use memory::Memory;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes of shared memory one block can have, as on sm_90.
const SHARED_MEMORY: u32 = 227 * 1024;

/// What an emulated device is like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// streaming multiprocessors; few, so that grids are small
    pub multiprocessors: u32,
    /// bytes of device memory
    pub memory: u64,
    /// bytes of shared memory one block can have
    pub shared_memory: u32,
    /// whether it multiplies the rows of prompts as sm_90a does
    pub wgmma: bool,
    /// the order in which blocks and threads run; 0 is the ascending one, any other is random. Results must not depend on it
    pub seed: u64,
    /// where compiled kernels are kept; the user's cache directory when absent
    pub cache: Option<PathBuf>,
    /// kernel files beside [`SOURCES`], name and text
    pub sources: Vec<(&'static str, String)>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            multiprocessors: 3,
            memory: 1 << 30,
            shared_memory: SHARED_MEMORY,
            wgmma: true,
            seed: 0,
            cache: None,
            sources: Vec::new(),
        }
    }
}

/// See the head of this file.
pub struct Emulated {
    settings: Settings,
    compiler: Compiler,
    since: Instant,
    state: Mutex<State>,
}

struct State {
    memory: Memory,
    machine: Machine,
    libraries: HashMap<Unit, libloading::Library>,
    kernels: Vec<Loaded>,
    graphs: BTreeMap<u64, Vec<Work>>,
    next_graph: u64,
    /// what has been queued since `begin_capture`
    capture: Option<Vec<Work>>,
    /// why the device is unusable
    broken: Option<String>,
}

/// A kernel that was asked for.
#[derive(Clone)]
struct Loaded {
    name: String,
    entry: Entry,
    /// one letter an argument: pointer `p`, 4 bytes `u`, 8 bytes `U`, float `f`
    kinds: String,
    /// shared memory it may use
    smem: u32,
}

/// What can be recorded.
#[derive(Clone)]
enum Work {
    Launch(Loaded, Launch, Vec<Arg>),
    Copy { to: Ptr, from: Ptr, bytes: usize },
    Fill { to: Ptr, byte: u8, bytes: usize },
}

fn error<T>(message: String) -> Result<T, Error> {
    Err(Error::Device(message))
}

impl Emulated {
    /// An emulated device; an error when there is no C++ compiler.
    pub fn new(settings: Settings) -> Result<Emulated, Error> {
        let compiler = Compiler::find(settings.cache.clone())?;
        let state = State {
            memory: Memory::new(settings.memory),
            machine: Machine::new(settings.seed),
            libraries: HashMap::new(),
            kernels: Vec::new(),
            graphs: BTreeMap::new(),
            next_graph: 0,
            capture: None,
            broken: None,
        };
        Ok(Emulated { settings, compiler, since: Instant::now(), state: Mutex::new(state) })
    }

    /// The state, if the device still works. `call` is named in errors.
    fn state(&self, call: &str) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.broken {
            Some(why) => error(format!("{call}: the device has failed before: {why}")),
            None => Ok(state),
        }
    }

    /// The state, outside of a recording.
    fn eager(&self, call: &str) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.state(call)?;
        match state.capture {
            Some(_) => error(format!("{call}: not while a graph is captured")),
            None => Ok(state),
        }
    }

    fn build(&self, unit: &Unit) -> Result<PathBuf, Error> {
        let own = self.settings.sources.iter().map(|(name, text)| (*name, text.as_str()));
        let sources: Vec<_> = SOURCES.iter().copied().chain(own).collect();
        self.compiler.library(unit, &sources)
    }

    /// Does work now, or records it.
    fn queue(&self, call: &str, work: Work) -> Result<(), Error> {
        let mut state = self.state(call)?;
        match &mut state.capture {
            Some(capture) => {
                capture.push(work);
                Ok(())
            }
            None => state.run(&work),
        }
    }

    /// Blocks of a kernel on one multiprocessor.
    fn blocks_at_once(&self, block: u32, smem: u32) -> u32 {
        let shared_memory = self.settings.shared_memory;
        if block == 0 || block > 1024 || smem > shared_memory {
            0
        } else if block <= 512 && smem <= shared_memory / 2 {
            2
        } else {
            1
        }
    }
}

impl State {
    fn run(&mut self, work: &Work) -> Result<(), Error> {
        match work {
            Work::Copy { to, from, bytes } => {
                let source = self.memory.range("copy from", *from, *bytes)?;
                let target = self.memory.range("copy to", *to, *bytes)?;
                if to.abs_diff(*from) < *bytes as u64 {
                    return error(format!("copy: {bytes} bytes from {from:#x} to {to:#x} overlap"));
                }
                // SAFETY: both ranges lie inside buffers and do not overlap.
                unsafe { target.copy_from_nonoverlapping(source, *bytes) };
                Ok(())
            }
            Work::Fill { to, byte, bytes } => {
                let target = self.memory.range("fill", *to, *bytes)?;
                // SAFETY: the range lies inside a buffer.
                unsafe { target.write_bytes(*byte, *bytes) };
                Ok(())
            }
            Work::Launch(kernel, launch, args) => self.launch(kernel, launch, args),
        }
    }

    fn launch(&mut self, kernel: &Loaded, launch: &Launch, args: &[Arg]) -> Result<(), Error> {
        let mut values: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Ptr(x) | Arg::U64(x) => x,
                Arg::U32(x) => u64::from(x),
                Arg::F32(x) => u64::from(x.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let join = match launch.join {
            Join::Plain => 0,
            Join::Overlapped => 1,
            Join::Cooperative | Join::CooperativeOverlapped => 2,
        };
        let shape = Shape { grid: launch.grid, block: launch.block, smem: launch.smem, join };
        // SAFETY: the entry belongs to a library that lives as long as the device; `check` compared the arguments'
        // kinds with the kernel's, and on a little-endian host the lower bytes of a value come first.
        let outcome = unsafe { self.machine.run(kernel.entry, &shape, &mut pointers) }?;
        let Err(failure) = outcome else { return Ok(()) };
        let place = failure.address.map(|address| {
            let place = self.memory.describe(address);
            place.or_else(|| self.machine.describe(&shape, address)).unwrap_or("in no buffer".to_owned())
        });
        let message = match place {
            Some(place) => format!("{}, {place}", failure.message),
            None => failure.message,
        };
        self.broken = Some(message.clone());
        error(message)
    }
}

impl Gpu for Emulated {
    fn name(&self) -> String {
        format!("emulated ({} multiprocessors)", self.settings.multiprocessors)
    }

    fn multiprocessors(&self) -> u32 {
        self.settings.multiprocessors
    }

    fn shared_memory(&self) -> u32 {
        self.settings.shared_memory
    }
    fn wgmma(&self) -> bool {
        self.settings.wgmma
    }

    fn memory(&self) -> Result<(u64, u64), Error> {
        Ok(self.state("memory")?.memory.free_and_total())
    }

    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        self.eager("alloc")?.memory.alloc(bytes)
    }

    fn free(&self, at: Ptr) -> Result<(), Error> {
        let mut state = self.eager("free")?;
        state.memory.check_edges()?;
        state.memory.free(at)
    }

    fn upload(&self, to: Ptr, from: &[u8]) -> Result<(), Error> {
        let state = self.eager("upload")?;
        let target = state.memory.range("upload", to, from.len())?;
        // SAFETY: the range lies inside a buffer, which no slice of the host overlaps.
        unsafe { target.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn download(&self, to: &mut [u8], from: Ptr) -> Result<(), Error> {
        let state = self.eager("download")?;
        let source = state.memory.range("download", from, to.len())?;
        // SAFETY: the range lies inside a buffer, which no slice of the host overlaps.
        unsafe { source.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<(), Error> {
        self.queue("copy", Work::Copy { to, from, bytes })
    }

    fn fill(&self, to: Ptr, byte: u8, bytes: usize) -> Result<(), Error> {
        self.queue("fill", Work::Fill { to, byte, bytes })
    }

    fn compile(&self, units: &[Unit]) -> Result<(), Error> {
        let missing: Vec<&Unit> = {
            let state = self.state("compile")?;
            units.iter().filter(|unit| !state.libraries.contains_key(unit)).collect()
        };
        let built = missing.par_iter().map(|unit| self.build(unit)).collect::<Result<Vec<_>, _>>()?;
        let mut state = self.state("compile")?;
        for (unit, path) in missing.into_iter().zip(built) {
            // SAFETY: made by `build` from our own text; nothing runs when it is loaded.
            let library = unsafe { libloading::Library::new(&path) }
                .map_err(|e| Error::Device(format!("{}: {e}", path.display())))?;
            state.libraries.entry(unit.clone()).or_insert(library);
        }
        Ok(())
    }

    fn kernel(&self, unit: &Unit, name: &str, smem: u32) -> Result<Kernel, Error> {
        let most = self.settings.shared_memory;
        if smem > most {
            return error(format!("kernel `{name}`: {smem} bytes of shared memory, a block has {most}"));
        }
        self.compile(std::slice::from_ref(unit))?;
        let mut state = self.state("kernel")?;
        let Some(library) = state.libraries.get(unit) else {
            return error(format!("kernel `{name}`: {} is not loaded", unit.file));
        };
        let missing = |_| Error::Device(format!("{} has no kernel `{name}`, or no EXPORT of it", unit.file));
        // SAFETY: EXPORT defines both symbols with these types.
        let (entry, kinds) = unsafe {
            let entry = *library.get::<Entry>(format!("cute_launch_{name}")).map_err(missing)?;
            let kinds = library
                .get::<unsafe extern "C" fn() -> *const c_char>(format!("cute_kinds_{name}"))
                .map_err(missing)?;
            (entry, CStr::from_ptr(kinds()).to_string_lossy().into_owned())
        };
        state.kernels.push(Loaded { name: name.to_owned(), entry, kinds, smem });
        Ok(Kernel(state.kernels.len() as u64 - 1))
    }

    fn occupancy(&self, kernel: Kernel, block: u32, smem: u32) -> Result<u32, Error> {
        self.state("occupancy")?.loaded(kernel)?;
        Ok(self.blocks_at_once(block, smem))
    }

    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), Error> {
        let kernel = self.state("launch")?.loaded(kernel)?.clone();
        let resident = self.blocks_at_once(launch.block, launch.smem) * self.settings.multiprocessors;
        check(&kernel, &launch, args, resident)?;
        self.queue("launch", Work::Launch(kernel, launch, args.to_vec()))
    }

    fn begin_capture(&self) -> Result<(), Error> {
        self.eager("begin_capture")?.capture = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, keep: bool) -> Result<Option<Graph>, Error> {
        let mut state = self.state("end_capture")?;
        let Some(work) = state.capture.take() else {
            return error("end_capture: no graph is captured".to_owned());
        };
        if !keep {
            return Ok(None);
        }
        let graph = state.next_graph;
        state.next_graph += 1;
        state.graphs.insert(graph, work);
        Ok(Some(Graph(graph)))
    }

    fn replay(&self, graph: Graph) -> Result<(), Error> {
        let mut state = self.eager("replay")?;
        let Some(work) = state.graphs.remove(&graph.0) else {
            return error(format!("replay: there is no graph {}", graph.0));
        };
        let outcome = work.iter().try_for_each(|work| state.run(work));
        state.graphs.insert(graph.0, work);
        outcome
    }

    fn drop_graph(&self, graph: Graph) -> Result<(), Error> {
        match self.state("drop_graph")?.graphs.remove(&graph.0) {
            Some(_) => Ok(()),
            None => error(format!("drop_graph: there is no graph {}", graph.0)),
        }
    }

    fn synchronize(&self) -> Result<(), Error> {
        self.eager("synchronize")?.memory.check_edges()
    }

    fn mark(&self) -> Result<Mark, Error> {
        drop(self.eager("mark")?);
        Ok(Mark(self.since.elapsed().as_nanos() as u64))
    }

    fn elapsed(&self, from: Mark, to: Mark) -> Result<f32, Error> {
        Ok((to.0 as f64 - from.0 as f64) as f32 / 1e6)
    }
}

impl State {
    fn loaded(&self, kernel: Kernel) -> Result<&Loaded, Error> {
        let missing = || Error::Device(format!("there is no kernel {}", kernel.0));
        usize::try_from(kernel.0).ok().and_then(|i| self.kernels.get(i)).ok_or_else(missing)
    }
}

/// What a device refuses at the launch, and arguments a device would misread.
fn check(kernel: &Loaded, launch: &Launch, args: &[Arg], resident: u32) -> Result<(), Error> {
    let Loaded { name, kinds, .. } = kernel;
    let Launch { grid, block, smem, join } = *launch;
    let blocks = grid.iter().map(|n| u64::from(*n)).product::<u64>();
    if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return error(format!("kernel `{name}`: a grid of {grid:?} blocks"));
    }
    if blocks > u64::from(u32::MAX) {
        return error(format!("kernel `{name}`: {blocks} blocks are too many to emulate"));
    }
    if block == 0 || block > 1024 || block % 32 != 0 {
        return error(format!(
            "kernel `{name}`: blocks of {block} threads; it must be a multiple of 32, up to 1024"
        ));
    }
    if smem > kernel.smem {
        return error(format!(
            "kernel `{name}`: {smem} bytes of shared memory, but it was asked for with {}",
            kernel.smem
        ));
    }
    if join.cooperative() && blocks > u64::from(resident) {
        return error(format!(
            "kernel `{name}`: a cooperative launch of {blocks} blocks, but {resident} are resident at once"
        ));
    }
    let given: String = args
        .iter()
        .map(|arg| match arg {
            Arg::Ptr(_) => 'p',
            Arg::U32(_) => 'u',
            Arg::U64(_) => 'U',
            Arg::F32(_) => 'f',
        })
        .collect();
    if given != *kinds {
        return error(format!(
            "kernel `{name}`: takes {kinds:?}, was given {given:?} (p pointer, u 4 bytes, U 8 bytes, f float)"
        ));
    }
    Ok(())
}
