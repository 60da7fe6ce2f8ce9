//! CUDA: a device behind libcuda, kernels compiled by NVRTC for the model's shapes and kept on disk.
//!
//! | module | for |
//! |---|---|
//! | [`gpu`] | what is asked of a device |
//! | [`driver`] | a real device |
//! | [`compiler`] | units to cubins: [`kernel_cache`] first, then [`nvrtc`] |
//! | [`cubin`] | what a compiled kernel needs |
//! | [`sources`], [`units`] | the text of the kernels, and which of them a model uses |

mod api;
pub mod compiler;
pub mod cubin;
pub mod driver;
pub mod gpu;
pub mod kernel_cache;
mod module;
pub mod nvrtc;
pub mod sources;
mod staging;
pub mod units;

pub use driver::Driver;
