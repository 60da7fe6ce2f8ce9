//! The text of the kernels, so that a binary needs no files beside it.

/// Name and text of every file of `kernels/` that a unit is compiled from.
pub const SOURCES: &[(&str, &str)] = &[
    ("common.cuh", include_str!("../../../../../kernels/common.cuh")),
    ("selftest.cu", include_str!("../../../../../kernels/selftest.cu")),
];
