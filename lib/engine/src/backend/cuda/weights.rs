//! Weights on the device: matrices as sums of bf16 pieces, vectors as f32, both padded with zeros.

use super::arena::Arena;
use super::gpu::Ptr;
use super::units::CHUNK;
use crate::Error;
use cute_checkpoint::{Dtype, Tensor};
use half::bf16;

/// A matrix `[n, pieces · kp]` of bf16, whose row is `pieces` blocks of `kp` values that sum to the weights.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub(super) at: Ptr,
    /// outputs
    pub n: usize,
    /// inputs
    pub k: usize,
    /// 1 for bf16 weights, 2 for f16, 3 for f32: then no bit is lost
    pub pieces: usize,
}

impl Matrix {
    /// Inputs, padded.
    pub fn kp(&self) -> usize {
        self.k.next_multiple_of(CHUNK)
    }
    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.n * self.pieces * self.kp() * 2
    }

    /// Memory for a matrix.
    pub(super) fn alloc(memory: &Arena, n: usize, k: usize, pieces: usize) -> Result<Self, Error> {
        let mut matrix = Matrix { at: 0, n, k, pieces };
        matrix.at = memory.alloc(matrix.bytes())?;
        Ok(matrix)
    }

    /// Loads tensors with equal inputs, stacked by rows.
    pub(super) fn load(memory: &Arena, tensors: &[Tensor]) -> Result<Self, Error> {
        let [_, k] = shape(&tensors[0])?;
        let pieces = tensors.iter().map(|t| pieces(t.dtype)).max().unwrap_or(1);
        let mut n = 0;
        for t in tensors {
            let [rows, inputs] = shape(t)?;
            if inputs != k {
                return Err(Error::Shape(format!(
                    "{} has {inputs} inputs, {} has {k}",
                    t.name, tensors[0].name
                )));
            }
            n += rows;
        }
        let matrix = Self::alloc(memory, n, k, pieces)?;
        let mut to = matrix.at;
        for t in tensors {
            let bytes = matrix.pack(t);
            memory.gpu.upload(to, &bytes)?;
            to += bytes.len() as u64;
        }
        Ok(matrix)
    }

    /// The rows of a tensor in this matrix's layout.
    fn pack<'a>(&self, t: &'a Tensor) -> std::borrow::Cow<'a, [u8]> {
        if t.dtype == Dtype::BF16 && self.pieces == 1 && self.kp() == self.k {
            return (&t.bytes[..]).into();
        }
        let (kp, values) = (self.kp(), t.to_f32());
        let mut out = vec![bf16::ZERO; values.len() / self.k.max(1) * self.pieces * kp];
        for (row, out) in values.chunks_exact(self.k.max(1)).zip(out.chunks_exact_mut(self.pieces * kp)) {
            for (i, &x) in row.iter().enumerate() {
                let mut rest = x;
                for piece in out.chunks_exact_mut(kp) {
                    piece[i] = bf16::from_f32(rest);
                    // what is not finite is all in the first piece
                    rest = if piece[i].is_finite() { rest - piece[i].to_f32() } else { 0.0 };
                }
            }
        }
        out.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
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
