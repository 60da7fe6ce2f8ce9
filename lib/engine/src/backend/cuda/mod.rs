//! The CUDA backend: the operations as kernel launches, and decode steps as recorded graphs.
//!
//! [`gpu`] is the device it runs on; [`units`] says what kernels are specialised to, [`ahead`] which a model needs;
//! `kernels/` holds their text.
//! Everything that changes from step to step lies in device memory ([`batch`]), so one recording serves all steps of
//! the same shape; recordings are keyed by rows, logit rows and the paths of all layers.

pub mod ahead;
mod api;
mod arena;
mod batch;
mod bytes;
mod cache;
mod capture;
mod choose;
pub mod compiler;
pub mod cubin;
pub mod driver;
pub mod emulated;
mod experts;
mod fill;
mod fused;
pub mod gemm;
pub mod gpu;
pub mod kernel_cache;
pub mod layout;
pub mod layouts;
mod loading;
mod module;
mod moe;
pub mod nvrtc;
mod ops;
mod pack;
mod products;
pub mod profile;
mod random;
mod regions;
pub mod sources;
pub mod stage;
mod staging;
pub mod units;
mod weights;
pub mod wgmma;

pub use cache::Cache;
pub use driver::Driver;
pub use emulated::{Emulated, Settings};
pub use layout::{BF16, Layout};
pub use stage::LoadOptions;
pub use weights::{Matrix, Part, Vector};

use super::{CacheShape, GdnShape, Watch};
use crate::Error;
use crate::batch::{Batch, BatchKind};
use crate::dispatch::{Decision, Path};
use crate::fault::Fault;
use crate::knobs::Knobs;
use arena::Arena;
use batch::DeviceBatch;
use cute_checkpoint::Config;
use gpu::{Arg, Gpu, Graph, Join, Kernel, Launch, Ptr};
use loading::Loading;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use units::AttentionUnit;

/// Activations `[rows, ld]` of f32; columns from `width` to `ld` are zero.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    at: Ptr,
    rows: usize,
    width: usize,
    ld: usize,
}

/// Cosines and sines, each `[positions, rotary_dim / 2]`.
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    cos: Ptr,
    sin: Ptr,
}

/// What one recorded step is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StepKey {
    rows: usize,
    logit_rows: usize,
    paths: Vec<Path>,
    /// splits, timings and layers that fuse without a path of their own
    knobs: Knobs,
}

/// A recorded step, and the paths its attention layers took.
type Recording = (Graph, Vec<Path>);

/// How the backend runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// decode steps are recorded and replayed
    pub graphs: bool,
    /// kernels may overlap their predecessors
    pub overlap: bool,
    /// the fault to inject, if any
    pub fault: Option<Fault>,
    /// prompts go through the gated delta rule in chunks of [`units::GDN_CHUNK`] tokens, which tensor cores multiply,
    /// and are cut at multiples of it only
    pub gdn_chunked: bool,
    /// how weights are brought to the device
    pub load: LoadOptions,
    /// most rows whose experts are computed at once: longer prompts take turns. It bounds memory and changes no bit
    pub expert_rows: usize,
}

impl Default for Options {
    fn default() -> Self {
        let load = LoadOptions::default();
        Options { graphs: true, overlap: true, fault: None, gdn_chunked: false, load, expert_rows: 4096 }
    }
}

/// A GPU serving one model.
pub struct Cuda {
    /// the loading under way, if any: it ends before the memory it fills
    loading: RefCell<Option<Loading>>,
    /// matrices whose values cannot be kept packed, by the names of their first weights
    odd: RefCell<BTreeSet<String>>,
    memory: Arena,
    options: Options,
    multiprocessors: u32,
    /// of the attention kernels; known once the cache is
    attention: Cell<Option<AttentionUnit>>,
    batch: RefCell<Option<DeviceBatch>>,
    /// of the step being built
    kind: Cell<BatchKind>,
    kernels: RefCell<HashMap<(gpu::Unit, &'static str), Kernel>>,
    /// a step's first run is eager, so that its kernels are loaded; its second is recorded
    graphs: RefCell<HashMap<StepKey, Option<Recording>>>,
    /// scratch of argmax, `[rows, blocks, 2]`
    argmax: Ptr,
    /// most rows of `argmax`
    argmax_rows: usize,
    /// what tokens are chosen in, once the cache is there
    choosing: Cell<Option<choose::Choosing>>,
    /// one barrier counter a layer, reset by the step's first kernel
    counters: Ptr,
    layers: usize,
    /// partial sums of W_O, `[slot, row, H]`
    slots: Ptr,
    /// H, padded
    hidden: usize,
    /// prompts are multiplied on the tensor cores
    tensor_cores: bool,
    /// activations of a prompt as bf16
    narrow_rows: Cell<Ptr>,
    /// of the delta rule over prompts, `[rows, Hv, 8]`
    delta_scalars: Cell<Ptr>,
    /// matrices of the chunks of a prompt, with `gdn_chunked`
    gdn_chunks: Cell<Ptr>,
    /// entry and exit of each phase and block, `[layer, phase, block, 2]`
    timings: Ptr,
    /// where operations report to, when they are watched
    watch: Option<Watch>,
    /// address and bytes of what prompts and attention are computed in, once the cache is there
    workspaces: RefCell<Vec<(Ptr, usize)>>,
    /// what recordings are held to
    captures: capture::Captures,
    /// who takes which expert, and what they give, where a model has experts and the cache is there
    mixture: RefCell<Option<moe::Mixture>>,
}

/// Most rows of a cooperative launch.
const MAX_COOP_ROWS: usize = 16;
/// Most slots of W_O.
const MAX_WO_SPLIT: usize = 8;
/// Most phases of a cooperative launch.
const PHASES: usize = 8;

impl Cuda {
    /// The backend of a model on a device. Compiles nothing yet.
    ///
    /// # Errors
    /// When the kernels cannot serve the model's shapes, or the device has no memory.
    pub fn new(gpu: Arc<dyn Gpu>, config: &Config, options: Options) -> Result<Self, Error> {
        if let Some(reason) = units::unsupported(config) {
            return Err(Error::Config(reason));
        }
        let argmax_rows = 1024;
        let memory = Arena::new(gpu);
        let multiprocessors = memory.gpu.multiprocessors();
        let argmax = memory.alloc(argmax_rows * units::ARGMAX_BLOCKS as usize * 8)?;
        let layers = config.num_hidden_layers;
        let counters = memory.alloc(layers * 4)?;
        let hidden = config.hidden_size.next_multiple_of(layout::CHUNK);
        let slots = memory.alloc(MAX_WO_SPLIT * MAX_COOP_ROWS * hidden * 4)?;
        let timings = memory.zeroed(layers * PHASES * multiprocessors as usize * 16)?;
        Ok(Cuda {
            loading: RefCell::default(),
            odd: RefCell::default(),
            multiprocessors,
            options,
            attention: Cell::new(None),
            batch: RefCell::new(None),
            kind: Cell::new(BatchKind::Decode),
            kernels: RefCell::default(),
            graphs: RefCell::default(),
            argmax,
            argmax_rows,
            choosing: Cell::new(None),
            counters,
            layers,
            slots,
            hidden,
            timings,
            tensor_cores: config.hidden_size >= gemm::LEAST_HIDDEN,
            narrow_rows: Cell::new(0),
            delta_scalars: Cell::new(0),
            gdn_chunks: Cell::new(0),
            watch: None,
            workspaces: RefCell::default(),
            captures: capture::Captures::default(),
            mixture: RefCell::default(),
            memory,
        })
    }

    /// Compiles (or finds in the cache) what serving the model needs, several units at a time.
    ///
    /// # Errors
    /// When a unit does not compile.
    pub fn compile_ahead(&self, config: &Config, layouts: &layouts::Layouts) -> Result<(), Error> {
        let chip = ahead::Chip { shared: self.gpu().shared_memory(), wgmma: self.gpu().wgmma() };
        self.gpu().compile(&ahead::units(config, layouts, chip))
    }

    /// The device.
    pub fn gpu(&self) -> &dyn Gpu {
        &*self.memory.gpu
    }

    /// Fills the workspaces of fused kernels with a byte: what a launch does not write first must not matter.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn poison(&self, byte: u8) -> Result<(), Error> {
        let slots = MAX_WO_SPLIT * MAX_COOP_ROWS * self.hidden * 4;
        for (at, bytes) in [
            (self.slots, slots),
            (self.counters, self.layers * 4),
            (self.argmax, self.argmax_rows * units::ARGMAX_BLOCKS as usize * 8),
        ] {
            self.gpu().fill(at, byte, bytes)?;
        }
        self.workspaces.borrow().iter().try_for_each(|(at, bytes)| self.gpu().fill(*at, byte, *bytes))?;
        self.mixture.borrow().iter().flat_map(moe::Mixture::bufs).try_for_each(|buf| self.fill_buf(buf, byte))
    }

    /// Steps recorded so far.
    pub fn recordings(&self) -> usize {
        self.graphs.borrow().values().flatten().count()
    }

    fn kernel(&self, unit: gpu::Unit, name: &'static str, smem: u32) -> Result<Kernel, Error> {
        if let Some(kernel) = self.kernels.borrow().get(&(unit.clone(), name)) {
            return Ok(*kernel);
        }
        let kernel = self.gpu().kernel(&unit, name, smem)?;
        self.kernels.borrow_mut().insert((unit, name), kernel);
        Ok(kernel)
    }

    /// Launches a kernel that may overlap its predecessor.
    fn launch(
        &self,
        (unit, name): (gpu::Unit, &'static str),
        grid: [usize; 3],
        block: u32,
        smem: u32,
        args: &[Arg],
    ) -> Result<(), Error> {
        if grid.contains(&0) {
            return Ok(());
        }
        let kernel = self.kernel(unit, name, smem)?;
        let join = if self.options.overlap { Join::Overlapped } else { Join::Plain };
        self.gpu().launch(kernel, Launch { grid: grid.map(|n| n as u32), block, smem, join }, args)
    }

    /// Runs a step: eagerly, or as a recording of an earlier step with the same key.
    fn run_step(
        &self,
        batch: &Batch,
        intent: &[Decision],
        knobs: &Knobs,
        ops: &mut super::StepOps<'_>,
    ) -> Result<Vec<Path>, Error> {
        self.kind.set(batch.kind);
        match &*self.batch.borrow() {
            Some(device) => device.upload(self.gpu(), batch)?,
            None => return Err(Error::Config("a step before the cache was made".into())),
        }
        if batch.kind != BatchKind::Decode || !self.options.graphs {
            return ops();
        }
        let key = StepKey {
            rows: batch.rows(),
            logit_rows: batch.logit_rows.len(),
            paths: intent.iter().map(|d| d.path).collect(),
            knobs: knobs.clone(),
        };
        let known = self.graphs.borrow().get(&key).cloned();
        match known {
            Some(Some((graph, outcomes))) => {
                self.gpu().replay(graph)?;
                return Ok(outcomes);
            }
            Some(None) => {}
            None => {
                let outcomes = ops()?;
                self.graphs.borrow_mut().insert(key, None);
                return Ok(outcomes);
            }
        }
        let (graph, outcomes) = self.record(batch, ops)?;
        self.gpu().replay(graph)?;
        self.graphs.borrow_mut().insert(key, Some((graph, outcomes.clone())));
        Ok(outcomes)
    }

    /// Where the phases of a layer's cooperative launch are timed.
    fn timing(&self, layer: usize) -> Ptr {
        self.timings + (layer * PHASES * self.multiprocessors as usize * 16) as u64
    }

    /// The attention kernels' geometry.
    fn attention_unit(&self) -> Result<AttentionUnit, Error> {
        self.attention.get().ok_or_else(|| Error::Config("attention before the cache was made".into()))
    }

    fn on_batch<R>(&self, f: impl FnOnce(&DeviceBatch) -> R) -> Result<R, Error> {
        match &*self.batch.borrow() {
            Some(batch) => Ok(f(batch)),
            None => Err(Error::Config("an operation before the cache was made".into())),
        }
    }

    fn make_cache(&self, config: &Config, shape: CacheShape) -> Result<Cache, Error> {
        let cache = Cache::new(&self.memory, config, shape, self.options.fault)?;
        let s = GdnShape::of(config, 0);
        let workspace = |bytes: usize| {
            let at = self.memory.zeroed(bytes)?;
            self.workspaces.borrow_mut().push((at, bytes));
            Ok::<Ptr, Error>(at)
        };
        self.workspaces.borrow_mut().push((cache.pieces, cache.pieces_bytes));
        self.delta_scalars.set(workspace(shape.max_rows * s.num_v_heads * units::DELTA_SCALARS * 4)?);
        if self.options.gdn_chunked {
            let bytes = units::chunk_bytes(&s, shape.max_rows, shape.num_slots);
            self.gdn_chunks.set(workspace(bytes)?);
        }
        if self.tensor_cores {
            let heads = config.num_attention_heads * config.head_dim;
            let shared = config.moe.as_ref().map_or(0, |m| m.shared_expert_intermediate_size);
            let (h, i) = (config.hidden_size, config.intermediate_size);
            let inputs = [h, i, shared, heads, s.num_v_heads * s.v_dim];
            let widest = inputs.into_iter().max().unwrap_or(0).next_multiple_of(layout::BLOCK);
            let lines =
                config.moe.as_ref().map_or(0, |m| moe::narrow_elements(m, self.rows_at_once(shape.max_rows)));
            let rows = shape.max_rows.next_multiple_of(wgmma::ROWS);
            self.narrow_rows.set(workspace(2 * lines.max(rows * widest))?);
        }
        if let Some(m) = &config.moe {
            let (mixture, plan) = self.make_mixture(m, config.hidden_size, shape.max_rows)?;
            self.workspaces.borrow_mut().push(plan);
            *self.mixture.borrow_mut() = Some(mixture);
        }
        let choosing = choose::Choosing::new(&self.memory, config.vocab_size, &shape)?;
        self.workspaces.borrow_mut().extend(choosing.iter().map(choose::Choosing::extent));
        self.choosing.set(choosing);
        *self.captures.cache.borrow_mut() = Some(cache.clone());
        self.attention.set(Some(AttentionUnit::of(config, &shape, cache.offset_bits)));
        *self.batch.borrow_mut() = Some(DeviceBatch::new(&self.memory, &shape)?);
        Ok(cache)
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        for (graph, _) in self.graphs.borrow().values().flatten() {
            let _ = self.gpu().drop_graph(*graph);
        }
    }
}

/// Blocks of 256 columns.
fn columns(width: usize) -> usize {
    width.div_ceil(256)
}

fn ptr(at: Ptr) -> Arg {
    Arg::Ptr(at)
}

fn int(n: usize) -> Arg {
    Arg::U32(n as u32)
}
