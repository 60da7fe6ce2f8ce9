//! Experts in device memory: one after the other at equal distances, so that a kernel finds one by its number.

use super::Matrix;
use super::arena::Arena;
use super::gpu::Ptr;
use super::layout::Layout;
use super::weights::{most_pieces, one_layout};
use crate::Error;
use cute_checkpoint::LazyWeight;

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

/// Memory for experts, each a stack of weights. They stay packed if all of them can in one layout; else, and if `widen`, all
/// become bf16 pieces, as many as hold every value.
pub(super) fn plan(memory: &Arena, experts: &[Vec<LazyWeight>], widen: bool) -> Result<Vec<Matrix>, Error> {
    let Some(first) = experts.first() else { return Err(Error::Shape("a layer without experts".into())) };
    let shapes = |weights: &[LazyWeight]| -> Vec<(String, Vec<usize>)> {
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
    let all = experts.iter().flatten();
    let layout = match one_layout(all.clone(), first.len() > 1).filter(|_| !widen) {
        Some(layout) => layout,
        None => Layout::Bf16 { pieces: most_pieces(all)? },
    };
    place(memory, Matrix::unplaced(first, layout)?, experts.len())
}
