//! The guard that computes a sequence once more: the state it leaves must be that of its tokens, and of nothing else.
//!
//! When a sequence ends, all its tokens go through prefill again, alone, cut at other places, into a slot and pages that
//! nobody is ever given. Without fused paths prefill and decode sum in one order on the CPU, so both slots must hold the
//! same bits, whatever company the sequence had, however it was cut, and whatever was in its slot before. It costs a
//! second prefill of everything, and finds what ownership alone cannot: kernels that read a neighbour's rows, states
//! kept in too few bits, a row that was advanced twice.

use super::{Engine, Event};
use crate::Error;
use crate::backend::{Backend, CacheShape};
use crate::batch::{Batch, BatchKind, Segment};
use cute_records::{Finding, Severity};
use std::collections::BTreeMap;

/// The shape of the caches with room for the second computation: one slot and the pages of one sequence, behind all others.
pub(super) fn with_scratch(shape: CacheShape) -> CacheShape {
    let pages = shape.max_len.div_ceil(shape.page_size);
    CacheShape { num_slots: shape.num_slots + 1, num_pages: shape.num_pages + pages, ..shape }
}

impl<B: Backend> Engine<B> {
    /// Computes a sequence that is about to end once more, and reports a state that differs.
    pub(super) fn recompute(&mut self, index: usize, emit: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let Some(every) = self.config.recompute else { return Ok(()) };
        self.totals.ended += 1;
        if !self.totals.ended.is_multiple_of(every) {
            return Ok(());
        }
        let shape = self.config.cache_shape();
        let (slot, first) = (shape.num_slots as u32, shape.num_pages as u32);
        let s = &self.scheduler.running[index];
        let (ordinal, id, len) = (s.request.ordinal, s.request.id.clone(), s.computed);
        let (held, epoch) = (s.slot, s.epoch);
        let tokens: Vec<u32> = s.tokens(0..len).collect();
        let pages: Vec<u32> = (first..).take(len.div_ceil(shape.page_size)).collect();
        self.backend.zero_slot(&mut self.cache, slot)?;
        // cut where no other step cuts, unless a prompt is a multiple of both
        let budget = self.config.max_num_batched_tokens;
        let multiple = self.backend.chunk_multiple();
        let step = (budget * 2 / 3 / multiple * multiple).max(multiple);
        for start in (0..len).step_by(step) {
            let end = len.min(start + step);
            let segment = Segment {
                owner: ordinal,
                slot,
                epoch,
                pages: pages.clone(),
                start,
                row: 0,
                len: end - start,
            };
            let tokens = tokens[start..end].to_vec();
            let kind = BatchKind::Prefill;
            self.forward(&Batch { kind, tokens, segments: vec![segment], logit_rows: Vec::new() })?;
        }
        self.totals.recomputed += 1;
        let left = self.backend.slot_digest(&self.cache, held)?;
        let again = self.backend.slot_digest(&self.cache, slot)?;
        if left != again {
            let data = [
                ("id", id.into()),
                ("slot", held.into()),
                ("epoch", epoch.into()),
                ("tokens", len.into()),
                ("digest", left.into()),
                ("recomputed", again.into()),
            ];
            emit(Event::Finding(Finding {
                check: "state_not_reproduced".to_owned(),
                severity: Severity::Error,
                message: format!(
                    "guard recompute: request {ordinal}: the state it leaves in slot {held} is not that of its {len} \
                     tokens, computed again alone"
                ),
                ordinal: Some(ordinal),
                layer: None,
                at: None,
                data: data
                    .map(|(k, v): (_, serde_json::Value)| (k.to_owned(), v))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
            }));
        }
        Ok(())
    }
}
