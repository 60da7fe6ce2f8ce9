//! Experts in device memory: one after the other at equal distances, so that a kernel finds one by its number.

use super::Matrix;
use super::arena::Arena;
use super::gpu::Ptr;
use super::pack;
use super::weights::{Layout, pieces, pieces_in};
use crate::Error;
use cute_checkpoint::{Tensor, Weight};
use rayon::prelude::*;

/// Memory for `count` matrices like this one.
pub(super) fn place(memory: &Arena, one: Matrix, count: usize) -> Result<Vec<Matrix>, Error> {
    let stride = one.bytes();
    let all = stride
        .checked_mul(count)
        .ok_or_else(|| Error::Shape(format!("{count} experts of {stride} bytes")))?;
    let at = memory.alloc(all)?;
    let placed = |i: usize| {
        let mut matrix = one;
        matrix.head.at = at + (i * stride) as Ptr;
        matrix
    };
    Ok((0..count).map(placed).collect())
}

/// Loads experts, each a stack of weights. They stay packed if all of them can in one layout; else all become bf16 pieces, as
/// many as hold every value.
pub(super) fn load(memory: &Arena, experts: Vec<Vec<Weight>>) -> Result<Vec<Matrix>, Error> {
    let Some(first) = experts.first() else { return Err(Error::Shape("a layer without experts".into())) };
    let pair = first.len() == 2;
    let shapes = |weights: &[Weight]| -> Vec<(String, Vec<usize>)> {
        weights.iter().map(|w| (w.name().to_owned(), w.shape().to_vec())).collect()
    };
    let of_first = shapes(first);
    for (expert, weights) in experts.iter().enumerate() {
        let of_this = shapes(weights);
        let alike = of_this.len() == of_first.len() && of_this.iter().zip(&of_first).all(|(a, b)| a.1 == b.1);
        if !alike {
            return Err(Error::Shape(format!(
                "expert {expert} has {of_this:?}, expert 0 has {of_first:?}: they must be alike"
            )));
        }
    }
    let layout = match packed(&experts) {
        Some(layout) => layout,
        None => Layout::Bf16 { pieces: most_pieces(&experts) },
    };
    let of_first: Vec<(&str, &[usize])> = of_first.iter().map(|(n, s)| (&n[..], &s[..])).collect();
    let all = place(memory, Matrix::unplaced(&of_first, layout, pair)?, experts.len())?;
    for (matrix, weights) in all.iter().zip(experts) {
        match layout {
            Layout::Bf16 { pieces } => {
                let tensors: Vec<Tensor> = weights.into_iter().map(Weight::into_tensor).collect();
                matrix.fill(memory, &tensors, pieces)?;
            }
            Layout::Fp8 | Layout::Nvfp4 => pack::upload(memory, &matrix.head, matrix.k, &weights)?,
        }
    }
    Ok(all)
}

/// The packed layout that all experts can have.
fn packed(experts: &[Vec<Weight>]) -> Option<Layout> {
    let mut all = experts.iter().flat_map(|w| w.iter().map(|one| pack::layout(one, w.len() > 1)));
    let first = all.next()??;
    all.all(|layout| layout == Some(first)).then_some(first)
}

/// bf16 pieces that hold the values of all experts.
fn most_pieces(experts: &[Vec<Weight>]) -> usize {
    let of = |w: &Weight| match w {
        Weight::Plain(t) => pieces(t.dtype),
        packed => pieces_in(packed),
    };
    experts.par_iter().flatten().map(of).max().unwrap_or(1)
}
