//! How a matrix lies in device memory: the sizes that kernels and host agree on.

use cute_checkpoint::{Dtype, Format};

/// Outputs of a tile: the n of the tensor cores' m16n8k16.
pub(super) const TILE: usize = 8;
/// Inputs of an output that lie together.
pub(super) const RUN: usize = 32;
/// Inputs of a weight row are padded to a multiple of this with zeros.
pub const CHUNK: usize = 64;
/// Inputs of a block of packed weights, to which these are padded.
pub(super) const BLOCK: usize = 128;

/// How a matrix lies in memory: tiles of 8 outputs, as kernels/weights.cuh says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[n / 8, pieces · kp / 32, 8, 32]` of bf16 values that sum to the weights: 1 piece for bf16, 2 for f16, 3 for f32;
    /// then no bit is lost
    Bf16 {
        /// of each weight
        pieces: usize,
    },
    /// blocks of 128 inputs, as kernels/packed.cuh says
    Fp8,
    /// the same
    Nvfp4,
}

/// One piece a weight.
pub const BF16: Layout = Layout::Bf16 { pieces: 1 };

impl Layout {
    /// The layout that a format has when nothing stands against it.
    pub fn of(format: Format) -> Layout {
        match format {
            Format::Plain(dtype) => Layout::Bf16 { pieces: pieces(dtype) },
            Format::Fp8Tensor | Format::Fp8Channel | Format::Fp8Block => Layout::Fp8,
            Format::Nvfp4 => Layout::Nvfp4,
        }
    }
    /// `k` inputs, padded.
    pub fn kp(self, k: usize) -> usize {
        k.next_multiple_of(if self.is_packed() { BLOCK } else { CHUNK })
    }
    /// Whether codes and scales are kept.
    pub fn is_packed(self) -> bool {
        !matches!(self, Layout::Bf16 { .. })
    }
    /// The type that kernels know it by.
    pub fn name(self) -> String {
        match self {
            Layout::Bf16 { pieces } => format!("Bf16<{pieces}>"),
            Layout::Fp8 => "Fp8".into(),
            Layout::Nvfp4 => "Nvfp4".into(),
        }
    }
    /// Bytes of the scales and of the codes of a block of a tile of packed weights.
    pub(super) fn block(self) -> [usize; 2] {
        match self {
            Layout::Bf16 { .. } => [0, 0],
            Layout::Fp8 => [TILE * 4, TILE * BLOCK],
            Layout::Nvfp4 => [TILE * BLOCK / 16, TILE * BLOCK / 2],
        }
    }
    /// Bytes of such a block.
    pub(super) fn block_bytes(self) -> usize {
        self.block().iter().sum()
    }
    /// Bytes of a tile of `k` inputs.
    pub(super) fn tile_bytes(self, k: usize) -> usize {
        match self {
            Layout::Bf16 { pieces } => TILE * pieces * self.kp(k) * 2,
            Layout::Fp8 | Layout::Nvfp4 => k.div_ceil(BLOCK) * self.block_bytes(),
        }
    }
    /// Bytes of `n` outputs of `k` inputs.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        let factors = if self == Layout::Nvfp4 { TILE * 4 } else { 0 };
        n.div_ceil(TILE) * (self.tile_bytes(k) + factors)
    }
}

/// bf16 pieces that hold a dtype's mantissa.
pub(super) fn pieces(dtype: Dtype) -> usize {
    match dtype {
        Dtype::BF16 => 1,
        Dtype::F16 => 2,
        Dtype::F32 => 3,
    }
}
