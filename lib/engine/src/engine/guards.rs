//! The engine's guards at work: what they look at, and the findings they make.
//!
//! **`recompute`** computes a sequence once more: the state it leaves must be that of its tokens, and of nothing else. When
//! a sequence ends, all its tokens go through prefill again, alone, cut at other places, into a slot and pages that
//! nobody is ever given. Without fused paths prefill and decode sum in one order on the CPU, so both slots must hold the
//! same bits, whatever company the sequence had, however it was cut, and whatever was in its slot before. It costs a
//! second prefill of everything, and finds what ownership alone cannot: kernels that read a neighbour's rows, states
//! kept in too few bits, a row that was advanced twice.
//!
//! **`rows`** digests the slots and pages that no sequence of a step has, before and after it: a step writes what its own
//! sequences have, and nothing else. It needs nothing of the device but to read memory.
//!
//! **`slot0`** fills the slot and the page that nobody is given with a pattern, and looks at them: who writes there writes
//! without a slot or page of their own.
//!
//! **`capture`** digests what is live around the recording of a step and around what warms it up: neither is a step.
//!
//! Poison (`--poison`) makes no findings of its own: slots and pages that nobody has hold NaN, and so does every buffer of
//! activations before every step, so that whoever reads what was not written for them gets logits that are not finite,
//! and an error in place of a token.

use super::{Engine, Event};
use crate::Error;
use crate::backend::{Backend, CacheShape};
use crate::batch::{Batch, BatchKind, Segment};
use crate::error::Mismatch;
use crate::pool::{Entries, Pool};
use crate::sequence::Sequence;
use cute_records::{Finding, Severity};
use serde_json::Value;

/// A byte that makes NaN of f32, bf16 and e4m3.
const NAN: u8 = 0xff;

/// Every byte of slot 0 and page 0 under the guard `slot0`: finite in f32, bf16 and e4m3, and not what anybody computes.
const PATTERN: u8 = 0xca;

/// The shape of the caches with room for the second computation: one slot and the pages of one sequence, behind all others.
pub(super) fn with_scratch(shape: CacheShape) -> CacheShape {
    let pages = shape.max_len.div_ceil(shape.page_size);
    CacheShape { num_slots: shape.num_slots + 1, num_pages: shape.num_pages + pages, ..shape }
}

/// A slot or page that no sequence of a step has, as it was before the step.
pub(super) struct Other {
    what: &'static str,
    number: u32,
    digest: String,
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
            emit(Event::Finding(found("state_not_reproduced", message, Some(ordinal), &data)));
        }
        Ok(())
    }

    /// Digests what a step must leave alone, before it, when it is one that is watched.
    pub(super) fn others(&self, batch: &Batch) -> Result<Vec<Other>, Error> {
        match self.config.guards.rows {
            Some(every) if self.totals.steps.is_multiple_of(every) => {}
            _ => return Ok(Vec::new()),
        }
        let shape = self.config.cache_shape();
        let slots = (0..shape.num_slots as u32).filter(|n| batch.segments.iter().all(|s| s.slot != *n));
        let pages =
            (0..shape.num_pages as u32).filter(|n| batch.segments.iter().all(|s| !s.pages.contains(n)));
        let slot = |number| Ok(Other { what: "slot", number, digest: self.digest("slot", number)? });
        let page = |number| Ok(Other { what: "page", number, digest: self.digest("page", number)? });
        slots.map(slot).chain(pages.map(page)).collect()
    }

    fn digest(&self, what: &str, number: u32) -> Result<String, Error> {
        match what {
            "slot" => self.backend.slot_digest(&self.cache, number),
            _ => self.backend.page_digest(&self.cache, number),
        }
    }

    /// Reports what a step should have left alone.
    pub(super) fn compare(
        &self,
        others: Vec<Other>,
        batch: &Batch,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        for Other { what, number, digest } in others {
            let now = self.digest(what, number)?;
            if now == digest {
                continue;
            }
            let pool = if what == "slot" { &self.scheduler.slots } else { &self.scheduler.pages };
            let owner = pool.entry(number).and_then(|(owner, _)| owner);
            let of =
                owner.map_or("which is nobody's".to_owned(), |owner| format!("which is request {owner}'s"));
            let message = format!(
                "guard rows: {} wrote to {what} {number}, {of} and none of theirs",
                self.words(batch)
            );
            let data = [(what, number.into()), ("before", digest.into()), ("after", now.into())];
            let finding = self.found_in(batch, "row_outside_step_written", message, owner, &data);
            emit(Event::Finding(finding));
        }
        Ok(())
    }

    /// What guards and poison need in the caches before the first step.
    pub(super) fn lay_out(&mut self) -> Result<(), Error> {
        if self.config.guards.slot0 {
            self.backend.set_slot(&mut self.cache, 0, PATTERN)?;
            self.backend.set_page(&mut self.cache, 0, PATTERN)?;
        }
        let shape = self.config.cache_shape();
        let (slots, pages) = (1..shape.num_slots as u32, 1..shape.num_pages as u32);
        self.poison(slots, pages)
    }

    /// Fills a sequence's slot and pages with NaN, as far as nobody has them any more.
    pub(super) fn poison_released(&mut self, s: &Sequence) -> Result<(), Error> {
        let released =
            |pool: &Pool, n: u32| n != 0 && pool.entry(n).is_some_and(|(owner, _)| owner.is_none());
        let slot = Some(s.slot).filter(|n| released(&self.scheduler.slots, *n));
        let pages: Vec<u32> =
            s.pages.iter().copied().filter(|n| released(&self.scheduler.pages, *n)).collect();
        self.poison(slot, pages)
    }

    fn poison(
        &mut self,
        slots: impl IntoIterator<Item = u32>,
        pages: impl IntoIterator<Item = u32>,
    ) -> Result<(), Error> {
        if !self.config.poison {
            return Ok(());
        }
        for slot in slots {
            self.backend.set_slot(&mut self.cache, slot, NAN)?;
        }
        pages.into_iter().try_for_each(|page| self.backend.set_page(&mut self.cache, page, NAN))
    }

    /// Fills what a step computes in with NaN, rows that it will not use included.
    pub(super) fn poison_activations(&mut self) -> Result<(), Error> {
        if !self.config.poison {
            return Ok(());
        }
        self.scratch.poison(&self.backend)?;
        self.dispatcher.poison(&self.backend)?;
        self.backend.poison_own()
    }

    /// Lets a result pass. An invariant that is broken becomes a finding on its way.
    pub(super) fn sound<T>(&self, result: Result<T, Error>, emit: &mut dyn FnMut(Event)) -> Result<T, Error> {
        match &result {
            Err(e @ Error::Ownership(m)) => emit(Event::Finding(self.ownership_broken(e, m))),
            Err(e @ Error::Counter { layer, .. }) => {
                let mut finding = found("counter_broken", e.to_string(), None, &[]);
                finding.layer = u32::try_from(*layer).ok();
                emit(Event::Finding(finding));
            }
            _ => {}
        }
        result
    }

    /// Request, entry, epochs and the layers whose state or keys and values lie in the entry.
    fn ownership_broken(&self, e: &Error, m: &Mismatch) -> Finding {
        let running = m.request.and_then(|ordinal| self.scheduler.index(ordinal));
        let id = running.map(|i| self.scheduler.running[i].request.id.as_str());
        let mut data: Vec<(&str, Value)> = vec![("step", self.totals.steps.into())];
        data.extend(id.map(|id| ("id", id.into())));
        if let Some((what, number)) = m.entry {
            let attention = self.model.config.full_attention_layers();
            let in_it = |layer: &usize| attention.contains(layer) == (what == "page");
            let layers: Vec<usize> = (0..self.model.config.num_hidden_layers).filter(in_it).collect();
            data.extend([(what, number.into()), ("layers", layers.into())]);
        }
        let numbers = [("expected_epoch", m.expected_epoch), ("epoch", m.epoch), ("owner", m.owner)];
        data.extend(numbers.into_iter().filter_map(|(name, n)| Some((name, n?.into()))));
        found("ownership_broken", e.to_string(), m.request, &data)
    }

    /// Looks at slot 0 and page 0 after a step, each until it has been written to.
    pub(super) fn look_at_slot0(&mut self, batch: &Batch, emit: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let reserved = [("slot", "reserved_slot_written"), ("page", "reserved_page_written")];
        for (i, (what, check)) in reserved.into_iter().enumerate() {
            if !self.config.guards.slot0 || self.reserved_written[i] {
                continue;
            }
            let untouched = match what {
                "slot" => self.backend.slot_holds(&self.cache, 0, PATTERN)?,
                _ => self.backend.page_holds(&self.cache, 0, PATTERN)?,
            };
            if !untouched {
                self.reserved_written[i] = true;
                let message =
                    format!("guard slot0: {} wrote to {what} 0, which is nobody's", self.words(batch));
                let first = batch.segments.first().map(|s| s.owner);
                emit(Event::Finding(self.found_in(batch, check, message, first, &[(what, 0.into())])));
            }
        }
        Ok(())
    }

    /// Digests of the slots that running sequences have, and of their pages.
    fn live(&self) -> Result<Vec<Other>, Error> {
        let slots = self.scheduler.running.iter().map(|s| ("slot", s.slot));
        let pages = self.scheduler.running.iter().flat_map(|s| s.pages.iter().map(|page| ("page", *page)));
        let digest = |(what, number)| Ok(Other { what, number, digest: self.digest(what, number)? });
        slots.chain(pages).map(digest).collect()
    }

    /// A forward pass over what is nobody's, to warm a step up: it must leave what is live alone.
    pub(super) fn warm_up(&mut self, batch: &Batch) -> Result<(), Error> {
        let before = if self.config.guards.capture { self.live()? } else { Vec::new() };
        self.forward(batch)?;
        for Other { what, number, digest } in before {
            if self.digest(what, number)? != digest {
                self.changed_by_warm_up.push((what, number));
            }
        }
        Ok(())
    }

    /// Reports what recording this step, or warming it up, has changed.
    pub(super) fn report_captures(&mut self, batch: &Batch, emit: &mut dyn FnMut(Event)) {
        let warm =
            std::mem::take(&mut self.changed_by_warm_up).into_iter().map(|entry| ("warming up", entry));
        let recorded = self.backend.changed_by_capture().into_iter().map(|entry| ("recording", entry));
        for (how, (what, number)) in warm.chain(recorded) {
            let pool = if what == "slot" { &self.scheduler.slots } else { &self.scheduler.pages };
            let owner = pool.entry(number).and_then(|(owner, _)| owner);
            let of =
                owner.map_or("which is nobody's".to_owned(), |owner| format!("which is request {owner}'s"));
            let message =
                format!("guard capture: {how} {} wrote to {what} {number}, {of}", self.words(batch));
            let data = [(what, number.into()), ("during", how.into())];
            emit(Event::Finding(self.found_in(batch, "capture_wrote_live_state", message, owner, &data)));
        }
    }

    /// A step in words.
    fn words(&self, batch: &Batch) -> String {
        let (kind, n) = (batch.kind.name(), batch.segments.len());
        format!("a {kind} step of {n} sequences (step {})", self.totals.steps)
    }

    /// A finding about a step.
    fn found_in(
        &self,
        batch: &Batch,
        check: &str,
        message: String,
        ordinal: Option<u64>,
        data: &[(&str, Value)],
    ) -> Finding {
        let step = [
            ("step", self.totals.steps.into()),
            ("kind", batch.kind.name().into()),
            ("sequences", batch.segments.len().into()),
        ];
        let mut finding = found(check, message, ordinal, &step);
        finding.data.extend(data.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        finding
    }
}

pub(super) fn found(check: &str, message: String, ordinal: Option<u64>, data: &[(&str, Value)]) -> Finding {
    Finding {
        check: check.to_owned(),
        severity: Severity::Error,
        message,
        ordinal,
        layer: None,
        at: None,
        data: data.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    }
}
