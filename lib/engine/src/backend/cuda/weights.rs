//! Weights on the device: matrices as sums of bf16 pieces or packed, vectors as f32, all padded with zeros.

use super::arena::Arena;
use super::gpu::Ptr;
use super::pack;
use super::units::CHUNK;
use crate::Error;
use cute_checkpoint::{Dtype, Tensor, Weight};
use half::bf16;

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[n, pieces · kp]`, whose row is `pieces` blocks of `kp` values that sum to the weights: 1 piece for bf16, 2 for
    /// f16, 3 for f32; then no bit is lost
    Bf16 {
        /// of each weight
        pieces: usize,
    },
    /// tiles of 8 outputs, blocks of 128 inputs, as kernels/packed.cuh says
    Fp8,
    /// the same
    Nvfp4,
}

/// One piece a weight.
pub const BF16: Layout = Layout::Bf16 { pieces: 1 };

impl Layout {
    /// `k` inputs, padded.
    pub fn kp(self, k: usize) -> usize {
        k.next_multiple_of(if self.is_packed() { pack::BLOCK } else { CHUNK })
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
    /// Bytes of `n` outputs of `k` inputs.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        match self {
            Layout::Bf16 { pieces } => n * pieces * self.kp(k) * 2,
            Layout::Fp8 => n.div_ceil(8) * pack::tile_bytes(self, k),
            Layout::Nvfp4 => n.div_ceil(8) * (pack::tile_bytes(self, k) + 8 * 4),
        }
    }
}

/// Rows of a matrix that have one layout.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub(super) at: Ptr,
    /// outputs
    pub n: usize,
    /// of all of them
    pub layout: Layout,
}

/// A matrix `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// inputs
    pub k: usize,
    /// its rows, or the first of them
    pub head: Part,
    /// its last rows, where they are plain and the others packed
    pub tail: Option<Part>,
}

impl Matrix {
    /// Outputs.
    pub fn n(&self) -> usize {
        self.head.n + self.tail.map_or(0, |t| t.n)
    }
    /// Inputs of the first rows, padded.
    pub fn kp(&self) -> usize {
        self.head.layout.kp(self.k)
    }
    /// bf16 pieces of a weight, if all rows have them.
    pub fn pieces(&self) -> Option<usize> {
        match (self.head.layout, self.tail) {
            (Layout::Bf16 { pieces }, None) => Some(pieces),
            _ => None,
        }
    }

    /// Memory for a matrix of one layout.
    pub(super) fn alloc(memory: &Arena, n: usize, k: usize, layout: Layout) -> Result<Self, Error> {
        let at = memory.alloc(layout.bytes(n, k))?;
        Ok(Matrix { k, head: Part { at, n, layout }, tail: None })
    }

    /// Loads tensors with equal inputs, stacked by rows.
    pub(super) fn load(memory: &Arena, tensors: &[Tensor]) -> Result<Self, Error> {
        let (n, k) = stacked(tensors.iter().map(|t| (&t.name[..], &t.shape[..])))?;
        let pieces = tensors.iter().map(|t| pieces(t.dtype)).max().unwrap_or(1);
        let matrix = Self::alloc(memory, n, k, Layout::Bf16 { pieces })?;
        let mut to = matrix.head.at;
        for t in tensors {
            let bytes = rows(t, k, pieces);
            memory.gpu.upload(to, &bytes)?;
            to += bytes.len() as u64;
        }
        Ok(matrix)
    }

    /// Loads weights with equal inputs, stacked by rows, and keeps them packed where the kernels can: all of one packed
    /// layout, or the first of one and a small rest plain. Else they become bf16 pieces, as many as hold every value.
    pub(super) fn load_packed(memory: &Arena, weights: &[Weight]) -> Result<Self, Error> {
        let (n, k) = stacked(weights.iter().map(|w| (w.name(), w.shape())))?;
        let layouts: Vec<Option<Layout>> =
            weights.iter().map(|w| pack::layout(w, weights.len() > 1)).collect();
        let cut = weights.iter().take_while(|w| w.format().is_packed()).count();
        let (packed, plain) = weights.split_at(cut);
        let one = layouts[..cut].iter().all(|l| l.is_some() && *l == layouts[0]);
        let tensors: Option<Vec<Tensor>> =
            plain.iter().map(|w| if let Weight::Plain(t) = w { Some(t.clone()) } else { None }).collect();
        let rest: usize = plain.iter().map(|w| w.shape()[0]).sum();
        let (Some(Some(layout)), true, Some(tensors)) = (layouts.first(), one && 4 * rest < n, tensors)
        else {
            return Self::widen(memory, weights, n, k);
        };
        let mut matrix = Self::alloc(memory, n - rest, k, *layout)?;
        pack::upload(memory, &matrix.head, k, packed)?;
        if !tensors.is_empty() {
            matrix.tail = Some(Self::load(memory, &tensors)?.head);
        }
        Ok(matrix)
    }

    fn widen(memory: &Arena, weights: &[Weight], n: usize, k: usize) -> Result<Self, Error> {
        let pieces = weights.iter().map(|w| w.to_f32().into_iter().map(pieces_of).max().unwrap_or(1));
        let pieces = pieces.max().unwrap_or(1);
        let matrix = Self::alloc(memory, n, k, Layout::Bf16 { pieces })?;
        let mut to = matrix.head.at;
        for w in weights {
            let wide = w.clone().into_tensor();
            let bytes = rows(&wide, k, pieces);
            memory.gpu.upload(to, &bytes)?;
            to += bytes.len() as u64;
        }
        Ok(matrix)
    }
}

/// Outputs and inputs of matrices stacked by rows.
fn stacked<'a>(shapes: impl Iterator<Item = (&'a str, &'a [usize])>) -> Result<(usize, usize), Error> {
    let (mut n, mut first) = (0, None);
    for (name, shape) in shapes {
        let &[rows, inputs] = shape else {
            return Err(Error::Shape(format!("{name} has shape {shape:?}: expected [out, in]")));
        };
        let (of, k) = *first.get_or_insert((name, inputs));
        if inputs != k {
            return Err(Error::Shape(format!("{name} has {inputs} inputs, {of} has {k}")));
        }
        n += rows;
    }
    let (_, k) = first.ok_or_else(|| Error::Shape("a matrix of no tensors".into()))?;
    Ok((n, k))
}

/// The rows of a tensor as bf16 pieces.
fn rows(t: &Tensor, k: usize, pieces: usize) -> std::borrow::Cow<'_, [u8]> {
    let kp = k.next_multiple_of(CHUNK);
    if t.dtype == Dtype::BF16 && pieces == 1 && kp == k {
        return (&t.bytes[..]).into();
    }
    let values = t.to_f32();
    let mut out = vec![bf16::ZERO; values.len() / k.max(1) * pieces * kp];
    for (row, out) in values.chunks_exact(k.max(1)).zip(out.chunks_exact_mut(pieces * kp)) {
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

/// bf16 pieces that hold a dtype's mantissa.
pub(super) fn pieces(dtype: Dtype) -> usize {
    match dtype {
        Dtype::BF16 => 1,
        Dtype::F16 => 2,
        Dtype::F32 => 3,
    }
}

/// bf16 pieces that hold a value.
fn pieces_of(x: f32) -> usize {
    let first = bf16::from_f32(x);
    if !first.is_finite() || first.to_f32() == x {
        return 1;
    }
    let rest = x - first.to_f32();
    if bf16::from_f32(rest).to_f32() == rest { 2 } else { 3 }
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
