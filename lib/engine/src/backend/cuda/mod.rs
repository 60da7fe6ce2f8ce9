//! The CUDA backend: what it asks of a device, and the devices there are.

pub mod emulated;
pub mod gpu;
pub mod sources;

pub use emulated::Emulated;
pub use gpu::Gpu;
