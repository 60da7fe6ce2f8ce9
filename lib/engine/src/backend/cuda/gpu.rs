//! What the CUDA backend asks of a device: memory, compiled kernels, launches, graphs.
//!
//! [`Driver`](super::driver::Driver) is a real device behind libcuda and NVRTC. [`Emulated`](super::emulated::Emulated)
//! compiles the same kernel files with the host's C++ compiler and runs them thread by thread, so that every
//! kernel and all of the backend's host code are tested on machines without a GPU.

use super::stage::Plain;
pub use super::stage::Stage;
use crate::Error;

/// An address in device memory.
pub type Ptr = u64;

/// One translation unit: a file of `kernels/` and the shapes it is specialised to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    /// name of the file, e.g. `linear.cu`
    pub file: &'static str,
    /// `-D` name and value, in a fixed order
    pub defines: Vec<(&'static str, String)>,
}

/// A kernel that can be launched.
#[derive(Clone, Copy, Debug)]
pub struct Kernel(pub(super) u64);

/// A recorded step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub(super) u64);

/// A point in the stream, for timing.
#[derive(Clone, Copy, Debug)]
pub struct Mark(pub(super) u64);

/// How a kernel joins the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// after everything before it
    Plain,
    /// may start while its predecessor runs: it calls `wait_for_previous` itself (programmatic dependent launch)
    Overlapped,
    /// all blocks resident at once, so that a grid barrier cannot hang
    Cooperative,
    /// both
    CooperativeOverlapped,
}

impl Join {
    /// Whether it may start while its predecessor runs.
    pub(super) fn overlapped(self) -> bool {
        matches!(self, Join::Overlapped | Join::CooperativeOverlapped)
    }
    /// Whether all blocks are resident at once.
    pub(super) fn cooperative(self) -> bool {
        matches!(self, Join::Cooperative | Join::CooperativeOverlapped)
    }
}

/// Grid, block and shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch {
    /// blocks in x, y, z
    pub grid: [u32; 3],
    /// threads of a block, in x
    pub block: u32,
    /// bytes of dynamic shared memory
    pub smem: u32,
    /// how it joins the stream
    pub join: Join,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// a device address
    Ptr(Ptr),
    /// `u32` or `int`
    U32(u32),
    /// `u64` or `i64`
    U64(u64),
    /// `float`
    F32(f32),
}

/// A device. Work goes to one stream, in order; errors name the call.
pub trait Gpu: Send + Sync {
    /// What the device is called in records, e.g. `cuda:0 NVIDIA H200 (sm_90a)`.
    fn name(&self) -> String;
    /// Streaming multiprocessors.
    fn multiprocessors(&self) -> u32;
    /// Bytes of shared memory one block can have.
    fn shared_memory(&self) -> u32;
    /// Whether it has the asynchronous tensor cores of sm_90a.
    fn wgmma(&self) -> bool;
    /// Free and total bytes of device memory.
    fn memory(&self) -> Result<(u64, u64), Error>;

    /// Uninitialised memory, 256-byte aligned, freed with the device.
    fn alloc(&self, bytes: usize) -> Result<Ptr, Error>;
    /// Returns memory of [`Gpu::alloc`].
    fn free(&self, at: Ptr) -> Result<(), Error>;
    /// Host to device, in stream order; `from` may be reused on return.
    fn upload(&self, to: Ptr, from: &[u8]) -> Result<(), Error>;
    /// Buffers of so many bytes that one thread fills and sends beside the stream. What is in the stream before and after
    /// is not ordered against it: wait for both.
    fn stage(&self, bytes: usize) -> Result<Box<dyn Stage + '_>, Error> {
        Ok(Box::new(Plain::new(self, bytes)))
    }
    /// Device to host; waits for the stream.
    fn download(&self, to: &mut [u8], from: Ptr) -> Result<(), Error>;
    /// Device to device, in stream order.
    fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<(), Error>;
    /// Sets bytes, in stream order.
    fn fill(&self, to: Ptr, byte: u8, bytes: usize) -> Result<(), Error>;

    /// Compiles (or finds in the cache) and loads units, several at a time.
    fn compile(&self, units: &[Unit]) -> Result<(), Error>;
    /// A kernel of a unit, allowed to use `smem` bytes of dynamic shared memory. Compiles the unit when needed.
    fn kernel(&self, unit: &Unit, name: &str, smem: u32) -> Result<Kernel, Error>;
    /// Blocks of a kernel that one multiprocessor holds at once.
    fn occupancy(&self, kernel: Kernel, block: u32, smem: u32) -> Result<u32, Error>;
    /// Queues a launch.
    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), Error>;

    /// Everything queued until [`Gpu::end_capture`] is recorded instead of run.
    fn begin_capture(&self) -> Result<(), Error>;
    /// Ends recording; `keep` false throws the recording away.
    fn end_capture(&self, keep: bool) -> Result<Option<Graph>, Error>;
    /// Queues a recording.
    fn replay(&self, graph: Graph) -> Result<(), Error>;
    /// Forgets a recording.
    fn drop_graph(&self, graph: Graph) -> Result<(), Error>;

    /// Waits for the stream, and reports what went wrong in it.
    fn synchronize(&self) -> Result<(), Error>;
    /// A mark in the stream.
    fn mark(&self) -> Result<Mark, Error>;
    /// Milliseconds between two marks; waits for the second.
    fn elapsed(&self, from: Mark, to: Mark) -> Result<f32, Error>;
}
