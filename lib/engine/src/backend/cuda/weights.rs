//! Weights on the device: matrices in tiles of bf16 pieces, vectors as f32, both filled up with zeros.

use super::arena::Arena;
use super::gpu::Ptr;
use super::units::{CHUNK, Epilogue};
use crate::Error;
use cute_checkpoint::{Dtype, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Outputs of a tile: the n of the tensor cores' m16n8k16.
const TILE: usize = 8;
/// Inputs of an output that lie together.
const RUN: usize = 32;
/// Bytes that are brought into the device's order at once.
const GROUP: usize = 64 << 20;

/// A matrix of weights that are sums of `pieces` bf16 values, in the order of `Bf16` in weights.cuh:
/// `[n / 8, pieces · kp / 32, 8, 32]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub(super) at: Ptr,
    /// outputs
    pub n: usize,
    /// inputs
    pub k: usize,
    /// 1 for bf16 weights, 2 for f16, 3 for f32: then no bit is lost
    pub pieces: usize,
    /// gate over up: both halves of the outputs begin with a tile of their own
    halves: bool,
}

/// Outputs whose tiles follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub at: Ptr,
    /// the first output
    pub first: usize,
    /// outputs
    pub n: usize,
}

impl Matrix {
    /// Inputs, filled up.
    pub fn kp(&self) -> usize {
        self.k.next_multiple_of(CHUNK)
    }
    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.parts().map(|part| part.n.div_ceil(TILE) * self.tile_bytes()).sum()
    }
    fn tile_bytes(&self) -> usize {
        TILE * self.pieces * self.kp() * 2
    }
    /// What a product is made of: all of it, in one piece if both halves give one output.
    pub(super) fn products(&self, epilogue: Epilogue) -> Vec<Part> {
        if epilogue == Epilogue::Swiglu {
            return vec![Part { at: self.at, first: 0, n: self.n / 2 }];
        }
        self.parts().collect()
    }
    /// One part, or the halves if the first does not fill its last tile.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        let count = if self.halves && !(self.n / 2).is_multiple_of(TILE) { 2 } else { 1 };
        let (at, n) = (self.at, self.n / count);
        let bytes = n.div_ceil(TILE) * self.tile_bytes();
        (0..count).map(move |i| Part { at: at + (i * bytes) as Ptr, first: i * n, n })
    }

    /// Memory for a matrix.
    pub(super) fn alloc(memory: &Arena, n: usize, k: usize, pieces: usize) -> Result<Self, Error> {
        Matrix { at: 0, n, k, pieces, halves: false }.placed(memory)
    }
    fn placed(mut self, memory: &Arena) -> Result<Self, Error> {
        self.at = memory.alloc(self.bytes())?;
        Ok(self)
    }

    /// Loads tensors with equal inputs, stacked by rows.
    pub(super) fn load(memory: &Arena, tensors: &[Tensor]) -> Result<Self, Error> {
        let [first, k] = shape(&tensors[0])?;
        let mut rows = Vec::new();
        for t in tensors {
            let [n, inputs] = shape(t)?;
            if inputs != k {
                return Err(Error::Shape(format!(
                    "{} has {inputs} inputs, {} has {k}",
                    t.name, tensors[0].name
                )));
            }
            rows.extend((0..n).map(|row| (t, row)));
        }
        let pieces = tensors.iter().map(|t| pieces(t.dtype)).max().unwrap_or(1);
        let halves = tensors.len() == 2 && rows.len() == 2 * first;
        let matrix = Matrix { at: 0, n: rows.len(), k, pieces, halves }.placed(memory)?;
        let tile_bytes = matrix.tile_bytes();
        for part in matrix.parts() {
            let mut to = part.at;
            for rows in rows[part.first..][..part.n].chunks((GROUP / tile_bytes).max(1) * TILE) {
                let mut group = vec![0u8; rows.len().div_ceil(TILE) * tile_bytes];
                let tiles = group.par_chunks_mut(tile_bytes).zip(rows.par_chunks(TILE));
                tiles.for_each(|(tile, rows)| matrix.pack(tile, rows));
                memory.gpu.upload(to, &group)?;
                to += group.len() as Ptr;
            }
        }
        Ok(matrix)
    }

    /// Fills a tile of zeros with up to [`TILE`] rows.
    fn pack(&self, tile: &mut [u8], rows: &[(&Tensor, usize)]) {
        // the place of an output's inputs from a multiple of RUN on
        let place = |output: usize, run: usize| (run * TILE + output) * RUN * 2;
        for (output, (t, row)) in rows.iter().enumerate() {
            let bytes = self.k * t.dtype.size();
            let row = &t.bytes[row * bytes..][..bytes];
            if t.dtype == Dtype::BF16 {
                for (run, bytes) in row.chunks(RUN * 2).enumerate() {
                    tile[place(output, run)..][..bytes.len()].copy_from_slice(bytes);
                }
                continue;
            }
            for (i, mut rest) in t.dtype.widen(row).into_iter().enumerate() {
                for piece in 0..self.pieces {
                    let value = bf16::from_f32(rest);
                    let at = place(output, (piece * self.kp() + i) / RUN) + i % RUN * 2;
                    tile[at..][..2].copy_from_slice(&value.to_le_bytes());
                    // what is not finite is all in the first piece
                    rest = if value.is_finite() { rest - value.to_f32() } else { 0.0 };
                }
            }
        }
    }
}

fn shape(t: &Tensor) -> Result<[usize; 2], Error> {
    let fail = || Error::Shape(format!("{} has shape {:?}: expected [out, in]", t.name, t.shape));
    t.shape.clone().try_into().map_err(|_| fail())
}

/// bf16 pieces that hold a dtype's mantissa.
fn pieces(dtype: Dtype) -> usize {
    match dtype {
        Dtype::BF16 => 1,
        Dtype::F16 => 2,
        Dtype::F32 => 3,
    }
}

/// A vector of f32.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    pub(super) at: Ptr,
}

impl Vector {
    pub(super) fn load(memory: &Arena, values: &[f32]) -> Result<Self, Error> {
        let mut padded = values.to_vec();
        padded.resize(values.len().next_multiple_of(CHUNK).max(CHUNK), 0.0);
        Ok(Vector { at: memory.filled(bytemuck::cast_slice(&padded))? })
    }
}
