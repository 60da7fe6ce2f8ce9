//! Weights on the device: matrices in tiles of bf16 pieces or packed, vectors as f32, all filled up with zeros.

use super::arena::Arena;
use super::gpu::Ptr;
use super::pack;
use super::units::{CHUNK, Epilogue};
use crate::Error;
use cute_checkpoint::{Dtype, Tensor, Weight};
use half::bf16;
use rayon::prelude::*;

/// Outputs of a tile: the n of the tensor cores' m16n8k16.
pub(super) const TILE: usize = 8;
/// Inputs of an output that lie together.
const RUN: usize = 32;
/// Bytes that are brought into the device's order at once.
const GROUP: usize = 64 << 20;

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
    /// Bytes of a tile of `k` inputs.
    pub(super) fn tile_bytes(self, k: usize) -> usize {
        match self {
            Layout::Bf16 { pieces } => TILE * pieces * self.kp(k) * 2,
            Layout::Fp8 | Layout::Nvfp4 => pack::tile_bytes(self, k),
        }
    }
    /// Bytes of `n` outputs of `k` inputs.
    pub fn bytes(self, n: usize, k: usize) -> usize {
        let factors = if self == Layout::Nvfp4 { TILE * 4 } else { 0 };
        n.div_ceil(TILE) * (self.tile_bytes(k) + factors)
    }
}

/// Outputs of one layout, whose tiles follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub(super) at: Ptr,
    /// the first output
    pub first: usize,
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
    /// its outputs, or the first of them
    pub head: Part,
    /// its last outputs, where they are plain and the others packed
    pub tail: Option<Part>,
    /// gate over up: both halves of the head begin with a tile of their own
    halves: bool,
}

impl Matrix {
    /// Outputs.
    pub fn n(&self) -> usize {
        self.head.n + self.tail.map_or(0, |t| t.n)
    }
    /// Inputs of the first outputs, filled up.
    pub fn kp(&self) -> usize {
        self.head.layout.kp(self.k)
    }
    /// bf16 pieces of a weight, if all outputs have them.
    pub fn pieces(&self) -> Option<usize> {
        match (self.head.layout, self.tail) {
            (Layout::Bf16 { pieces }, None) => Some(pieces),
            _ => None,
        }
    }
    /// What a product is made of: all of it, in one piece if both halves give one output.
    pub(super) fn products(&self, epilogue: Epilogue) -> Result<Vec<Part>, Error> {
        match (epilogue, self.tail) {
            (Epilogue::Swiglu, None) => Ok(vec![Part { n: self.head.n / 2, ..self.head }]),
            (Epilogue::Swiglu, Some(_)) => Err(Error::Launch("gate and up have different layouts".into())),
            _ => Ok(self.parts()),
        }
    }
    /// The head, or its halves if the first does not fill its last tile; the tail.
    pub(super) fn parts(&self) -> Vec<Part> {
        let head = self.head;
        let count = if self.halves && !(head.n / 2).is_multiple_of(TILE) { 2 } else { 1 };
        let n = head.n / count;
        let bytes = n.div_ceil(TILE) * head.layout.tile_bytes(self.k);
        let part = |i| Part { at: head.at + (i * bytes) as Ptr, first: i * n, n, ..head };
        (0..count).map(part).chain(self.tail).collect()
    }

    /// Memory for a matrix of one layout.
    pub(super) fn alloc(memory: &Arena, n: usize, k: usize, layout: Layout) -> Result<Self, Error> {
        let head = Part { at: 0, first: 0, n, layout };
        Matrix { k, head, tail: None, halves: false }.placed(memory)
    }
    fn placed(mut self, memory: &Arena) -> Result<Self, Error> {
        self.head.at = memory.alloc(self.bytes())?;
        Ok(self)
    }
    /// Bytes of its head, or of both its halves.
    pub(super) fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.layout.bytes(part.n, self.k)).sum()
    }
    /// A matrix of one layout that has no memory yet; a `pair` of equal weights may be gate and up.
    pub(super) fn unplaced(shapes: &[(&str, &[usize])], layout: Layout, pair: bool) -> Result<Self, Error> {
        let (n, k) = stacked(shapes.iter().copied())?;
        let halves = pair && !layout.is_packed() && n == 2 * shapes[0].1[0];
        Ok(Matrix { k, head: Part { at: 0, first: 0, n, layout }, tail: None, halves })
    }

    /// Loads tensors with equal inputs, stacked by rows.
    pub(super) fn load(memory: &Arena, tensors: &[Tensor]) -> Result<Self, Error> {
        let pieces = tensors.iter().map(|t| pieces(t.dtype)).max().unwrap_or(1);
        Self::load_pieces(memory, tensors, pieces, tensors.len() == 2)
    }

    /// `pair`: two tensors of equal outputs may be gate and up.
    fn load_pieces(memory: &Arena, tensors: &[Tensor], pieces: usize, pair: bool) -> Result<Self, Error> {
        let shapes: Vec<_> = tensors.iter().map(|t| (&t.name[..], &t.shape[..])).collect();
        let matrix = Matrix::unplaced(&shapes, Layout::Bf16 { pieces }, pair)?.placed(memory)?;
        matrix.fill(memory, tensors, pieces)?;
        Ok(matrix)
    }

    /// Writes the bf16 pieces of tensors, one below the other.
    pub(super) fn fill(&self, memory: &Arena, tensors: &[Tensor], pieces: usize) -> Result<(), Error> {
        let rows: Vec<_> = tensors.iter().flat_map(|t| (0..t.shape[0]).map(move |row| (t, row))).collect();
        let (k, kp) = (self.k, self.kp());
        let tile_bytes = self.head.layout.tile_bytes(k);
        for part in self.parts() {
            let mut to = part.at;
            for rows in rows[part.first..][..part.n].chunks((GROUP / tile_bytes).max(1) * TILE) {
                let mut group = vec![0u8; rows.len().div_ceil(TILE) * tile_bytes];
                let tiles = group.par_chunks_mut(tile_bytes).zip(rows.par_chunks(TILE));
                tiles.for_each(|(tile, rows)| fill([k, kp, pieces], tile, rows));
                memory.gpu.upload(to, &group)?;
                to += group.len() as Ptr;
            }
        }
        Ok(())
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
            return Self::widen(memory, weights);
        };
        let mut matrix = Self::alloc(memory, n - rest, k, *layout)?;
        pack::upload(memory, &matrix.head, k, packed)?;
        if !tensors.is_empty() {
            let pieces = tensors.iter().map(|t| pieces(t.dtype)).max().unwrap_or(1);
            let tail = Self::load_pieces(memory, &tensors, pieces, false)?.head;
            matrix.tail = Some(Part { first: n - rest, ..tail });
        }
        Ok(matrix)
    }

    fn widen(memory: &Arena, weights: &[Weight]) -> Result<Self, Error> {
        let pieces = weights.iter().map(pieces_in).max().unwrap_or(1);
        let tensors: Vec<Tensor> = weights.iter().map(|w| w.clone().into_tensor()).collect();
        Self::load_pieces(memory, &tensors, pieces, weights.len() == 2)
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

/// Fills a tile of zeros with up to [`TILE`] rows of `k` inputs, as bf16 pieces.
fn fill([k, kp, pieces]: [usize; 3], tile: &mut [u8], rows: &[(&Tensor, usize)]) {
    // the place of an output's inputs from a multiple of RUN on
    let place = |output: usize, run: usize| (run * TILE + output) * RUN * 2;
    for (output, (t, row)) in rows.iter().enumerate() {
        let bytes = k * t.dtype.size();
        let row = &t.bytes[row * bytes..][..bytes];
        if t.dtype == Dtype::BF16 {
            for (run, bytes) in row.chunks(RUN * 2).enumerate() {
                tile[place(output, run)..][..bytes.len()].copy_from_slice(bytes);
            }
            continue;
        }
        for (i, mut rest) in t.dtype.widen(row).into_iter().enumerate() {
            for piece in 0..pieces {
                let value = bf16::from_f32(rest);
                let at = place(output, (piece * kp + i) / RUN) + i % RUN * 2;
                tile[at..][..2].copy_from_slice(&value.to_le_bytes());
                // what is not finite is all in the first piece
                rest = if value.is_finite() { rest - value.to_f32() } else { 0.0 };
            }
        }
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

/// bf16 pieces that hold every value of a weight.
pub(super) fn pieces_in(w: &Weight) -> usize {
    w.to_f32().into_iter().map(pieces_of).max().unwrap_or(1)
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
