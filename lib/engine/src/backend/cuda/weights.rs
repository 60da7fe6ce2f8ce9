//! Weights on the device: matrices in tiles of bf16 pieces or packed, vectors as f32, all filled up with zeros.

use super::arena::Arena;
use super::gpu::Ptr;
use super::layout::{CHUNK, Layout, TILE, pieces};
use super::pack;
use super::units::Epilogue;
use crate::Error;
use cute_checkpoint::{Format, LazyWeight};
use half::bf16;
use rayon::prelude::*;

/// Bytes that are looked through at once.
const SCAN: usize = 1 << 20;

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
    /// The same where one launch takes the head with its tail.
    pub(super) fn launches(&self, epilogue: Epilogue) -> Result<Vec<(Part, Option<Part>)>, Error> {
        let mut parts = self.products(epilogue)?;
        let tail = if self.tail.is_some() { parts.pop() } else { None };
        Ok(parts.into_iter().map(|part| (part, tail)).collect())
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
        Self::of(n, k, layout).placed(memory)
    }
    /// One that has no memory yet.
    pub(super) fn of(n: usize, k: usize, layout: Layout) -> Self {
        Matrix { k, head: Part { at: 0, first: 0, n, layout }, tail: None, halves: false }
    }
    fn placed(mut self, memory: &Arena) -> Result<Self, Error> {
        self.head.at = memory.alloc(self.bytes())?;
        Ok(self)
    }
    /// Bytes of its head, or of both its halves.
    pub(super) fn bytes(&self) -> usize {
        self.parts().iter().map(|part| part.layout.bytes(part.n, self.k)).sum()
    }
    /// The same for weights stacked by rows; two weights of equal outputs may be gate and up.
    pub(super) fn unplaced(weights: &[LazyWeight], layout: Layout) -> Result<Self, Error> {
        let (n, k) = stacked(weights.iter().map(|w| (w.name(), w.shape())))?;
        let halves = weights.len() == 2 && !layout.is_packed() && n == 2 * weights[0].rows();
        Ok(Matrix { halves, ..Self::of(n, k, layout) })
    }

    /// Memory for weights with equal inputs, stacked by rows. They stay packed where the kernels can decode them: all of
    /// one packed layout, or the first of one and a small rest plain. Else, and if `widen`, they become bf16 pieces, as
    /// many as hold every value.
    pub(super) fn plan(memory: &Arena, weights: &[LazyWeight], widen: bool) -> Result<Self, Error> {
        let (n, k) = stacked(weights.iter().map(|w| (w.name(), w.shape())))?;
        let cut = weights.iter().take_while(|w| w.format().is_packed()).count();
        let (packed, plain) = weights.split_at(cut);
        if let Some(layout) = one_layout(packed, weights.len() > 1).filter(|_| !widen)
            && let Some(pieces) = plain.iter().map(stored_pieces).try_fold(1, |a, b| Some(a.max(b?)))
        {
            let rest: usize = plain.iter().map(LazyWeight::rows).sum();
            if 4 * rest < n {
                let mut matrix = Self::alloc(memory, n - rest, k, layout)?;
                if rest > 0 {
                    let tail = Self::alloc(memory, rest, k, Layout::Bf16 { pieces })?.head;
                    matrix.tail = Some(Part { first: n - rest, ..tail });
                }
                return Ok(matrix);
            }
        }
        let layout = Layout::Bf16 { pieces: most_pieces(weights.iter())? };
        Self::unplaced(weights, layout)?.placed(memory)
    }

    /// The memory it lies in.
    pub(super) fn allocations(&self) -> impl Iterator<Item = Ptr> {
        [Some(self.head.at), self.tail.map(|tail| tail.at)].into_iter().flatten()
    }
}

/// The packed layout of all these weights, if they have one.
pub(super) fn one_layout<'a>(
    packed: impl IntoIterator<Item = &'a LazyWeight>,
    of_several: bool,
) -> Option<Layout> {
    let mut layouts = packed.into_iter().map(|w| pack::layout(w, of_several));
    let first = layouts.next()??;
    layouts.all(|layout| layout == Some(first)).then_some(first)
}

/// bf16 pieces that hold all of these: if all are plain, whatever their values.
pub(super) fn most_pieces<'a>(weights: impl Iterator<Item = &'a LazyWeight> + Clone) -> Result<usize, Error> {
    match weights.clone().all(|w| !w.format().is_packed()) {
        true => Ok(weights.filter_map(stored_pieces).max().unwrap_or(1)),
        false => weights.map(needed_pieces).try_fold(1, |a, b| Ok(a.max(b?))),
    }
}

/// bf16 pieces that hold a plain weight of this dtype, whatever its values.
fn stored_pieces(w: &LazyWeight) -> Option<usize> {
    match w.format() {
        Format::Plain(dtype) => Some(pieces(dtype)),
        _ => None,
    }
}

/// bf16 pieces that hold every value of a weight, which is read for it.
fn needed_pieces(w: &LazyWeight) -> Result<usize, Error> {
    let step = (SCAN / w.row_bytes().max(1)).max(1);
    let block = |i: usize| {
        let read = w.read(i * step..((i + 1) * step).min(w.rows()), Vec::new())?;
        Ok(read.to_f32().into_iter().map(pieces_of).max().unwrap_or(1))
    };
    (0..w.rows().div_ceil(step)).into_par_iter().map(block).try_reduce(|| 1, |a, b| Ok(a.max(b)))
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
