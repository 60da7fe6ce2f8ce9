//! What the CPU's recurrent layers do under a fault: each of these was somebody's kernel.

use super::{Buf, Cpu, SlotState, gdn};
use crate::backend::DeltaGate;
use crate::batch::{Batch, BatchKind};
use half::bf16;

/// Tokens of a chunk; so few that short prompts have several.
const CHUNK: usize = 16;

/// `shared-scratch`: the rows of q, k and v from the third sequence on are one piece of memory, so what is read in each
/// of them is what was written last.
pub(super) fn share_rows(qkv: &mut Buf, batch: &Batch) {
    if batch.kind == BatchKind::Decode && batch.rows() > 3 {
        let (width, last) = (qkv.width, batch.rows() - 1);
        for row in 2..last {
            qkv.data.copy_within(last * width..(last + 1) * width, row * width);
        }
    }
}

/// `state-bf16`: what a step leaves of each recurrent state.
pub(super) fn round_states(slots: &mut [SlotState], batch: &Batch) {
    for s in &batch.segments {
        slots[s.slot as usize].recurrent.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
    }
}

/// `chunk-grid`: the state before every [`CHUNK`]th token of the *batch* is kept; what is left of a sequence behind its
/// last whole chunk goes on from there, and looks its state up as if only whole chunks of whole sequences were kept.
pub(super) fn delta_rule_over_one_grid(
    o: &mut Buf,
    qkv: &Buf,
    proj: &Buf,
    args: &DeltaGate<'_, Cpu>,
    slots: &mut [SlotState],
    batch: &Batch,
) {
    let mut grid: Vec<Vec<f32>> = Vec::new();
    for s in &batch.segments {
        for row in s.row..s.row + s.len {
            let state = &mut slots[s.slot as usize].recurrent;
            if row % CHUNK == 0 {
                grid.push(state.clone());
            }
            gdn::step(o.row_mut(row), qkv.row(row), proj.row(row), args, state);
        }
    }
    let mut chunks = 0;
    for s in &batch.segments {
        let whole = s.len / CHUNK;
        let rows = s.row + whole * CHUNK..s.row + s.len;
        if let Some(kept) = grid.get(chunks + whole).filter(|_| whole > 0 && !rows.is_empty()) {
            let state = &mut slots[s.slot as usize].recurrent;
            state.clone_from(kept);
            for row in rows {
                gdn::step(o.row_mut(row), qkv.row(row), proj.row(row), args, state);
            }
        }
        chunks += whole;
    }
}
