//! The engine's guards at work: what they look at, and the findings they make.
//!
//! **`recompute`** computes a sequence once more: the state it leaves must be that of its tokens, and of nothing else. When
//! a sequence ends, all its tokens go through prefill again, alone, cut at other places, into a slot and pages that
//! nobody is ever given. Without fused paths prefill and decode sum in one order on the CPU, so both slots must hold the
//! same bits, whatever company the sequence had, however it was cut, and whatever was in its slot before. It costs a
//! second prefill of everything, and finds what ownership alone cannot: kernels that read a neighbour's rows, states
//! kept in too few bits, a row that was advanced twice.
//!
//! **`slot0`** looks at the slot that nobody is given: who writes there writes without a slot of their own.

use super::{Engine, Event};
use crate::Error;
use crate::backend::{Backend, CacheShape};
use crate::batch::{Batch, BatchKind, Segment};
use cute_records::{Finding, Severity};
use serde_json::Value;

/// The shape of the caches with room for the second computation: one slot and the pages of one sequence, behind all others.
pub(super) fn with_scratch(shape: CacheShape) -> CacheShape {
    let pages = shape.max_len.div_ceil(shape.page_size);
    CacheShape { num_slots: shape.num_slots + 1, num_pages: shape.num_pages + pages, ..shape }
}

impl<B: Backend> Engine<B> {
    /// Computes a sequence that is about to end once more, and reports a state that differs.
    pub(super) fn recompute(&mut self, index: usize, emit: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let Some(every) = self.config.guards.recompute else { return Ok(()) };
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
                page_epochs: vec![0; pages.len()], // nobody's: they lie behind the pools
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
            let message = format!(
                "guard recompute: request {ordinal}: the state it leaves in slot {held} is not that of its {len} tokens, \
                 computed again alone"
            );
            let data = [
                ("id", id.into()),
                ("slot", held.into()),
                ("epoch", epoch.into()),
                ("tokens", len.into()),
                ("digest", left.into()),
                ("recomputed", again.into()),
            ];
            emit(found("state_not_reproduced", message, Some(ordinal), &data));
        }
        Ok(())
    }

    /// Looks at slot 0 after a step, until it has been written to.
    pub(super) fn look_at_slot0(&mut self, batch: &Batch, emit: &mut dyn FnMut(Event)) -> Result<(), Error> {
        if !self.config.guards.slot0 || self.slot0_written || self.backend.slot_is_zero(&self.cache, 0)? {
            return Ok(());
        }
        self.slot0_written = true;
        let step = self.totals.steps;
        let (kind, n) = (format!("{:?}", batch.kind).to_lowercase(), batch.segments.len());
        let first = batch.segments.first().map(|s| s.owner);
        let message = format!(
            "guard slot0: a {kind} step of {n} sequences (step {step}) wrote to slot 0, which is nobody's"
        );
        let data =
            [("step", step.into()), ("kind", kind.into()), ("sequences", n.into()), ("slot", 0.into())];
        emit(found("reserved_slot_written", message, first, &data));
        Ok(())
    }
}

fn found(check: &str, message: String, ordinal: Option<u64>, data: &[(&str, Value)]) -> Event {
    Event::Finding(Finding {
        check: check.to_owned(),
        severity: Severity::Error,
        message,
        ordinal,
        layer: None,
        at: None,
        data: data.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    })
}
