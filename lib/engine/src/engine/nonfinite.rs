//! Values that are not finite: where the first of a request came from, and what became of its logits.
//!
//! With `--trace-nonfinite` every operation of a step reports what it wrote ([`Watch`](crate::backend::Watch)), and the
//! first value of a request that is NaN or infinite is attributed to layer, operation, slot and position. What an operation
//! reads from a slot or from pages shows in what it writes. A row of logits that has no largest one is a finding always.

use super::guards::found;
use super::{Engine, Event};
use crate::backend::{Backend, NonFinite};
use crate::batch::Batch;
use crate::sequence::Sequence;

impl<B: Backend> Engine<B> {
    /// The step that follows is one to be watched.
    pub(super) fn watch(&self, batch: &Batch) {
        if let Some(watch) = self.backend.watching() {
            watch.begin(batch.rows());
        }
    }

    /// Reports, once for every request, the first value of it in this step that is not finite.
    pub(super) fn report_nonfinite(&mut self, batch: &Batch, emit: &mut dyn FnMut(Event)) {
        let Some(watch) = self.backend.watching() else { return };
        let rows = watch.end();
        let step = self.totals.steps;
        for s in &batch.segments {
            let bad = (0..s.len).filter_map(|i| rows.get(s.row + i).copied().flatten().map(|bad| (i, bad)));
            let Some((i, bad)) = bad.min_by_key(|(i, bad)| (bad.order, *i)) else { continue };
            let Some(track) = self.tracks.get_mut(&s.owner).filter(|t| !t.nonfinite) else { continue };
            track.nonfinite = true;
            let NonFinite { layer, phase, column, value, .. } = bad;
            let place = layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
            let (position, slot) = (s.start + i, s.slot);
            let message = format!(
                "request {}: the first value that is not finite is {value}, written by {phase}{place} at position {position} \
                 (column {column}, slot {slot}, step {step})",
                s.owner
            );
            let id = self.scheduler.index(s.owner).map(|i| self.scheduler.running[i].request.id.as_str());
            let data = [
                ("id", id.into()),
                ("phase", phase.into()),
                ("position", position.into()),
                ("column", column.into()),
                ("value", value.to_string().into()),
                ("slot", slot.into()),
                ("epoch", s.epoch.into()),
                ("step", step.into()),
                ("kind", batch.kind.name().into()),
            ];
            let mut finding = found("nonfinite_value", message, Some(s.owner), &data);
            finding.layer = layer.and_then(|layer| u32::try_from(layer).ok());
            emit(Event::Finding(finding));
        }
    }

    /// The finding about a sequence that ends because no token can be made of its logits.
    pub(super) fn logits_not_finite(&self, s: &Sequence) -> Event {
        let (ordinal, position) = (s.request.ordinal, s.computed.saturating_sub(1));
        let message = format!(
            "request {ordinal}: its logits at position {position} are not finite (slot {}, epoch {}): it ends, and no token \
             was made of them",
            s.slot, s.epoch
        );
        let data = [
            ("id", s.request.id.as_str().into()),
            ("position", position.into()),
            ("slot", s.slot.into()),
            ("epoch", s.epoch.into()),
        ];
        Event::Finding(found("logits_not_finite", message, Some(ordinal), &data))
    }
}
