//! Steps of an earlier run once more, without computing what is known.
//!
//! What the queues and pools do depends on nothing but when each sequence ends. So where the replies are known, the
//! steps can be repeated without their forward passes: slots, epochs, pages, free lists and counters come to stand
//! where they stood. Sequences without a known reply are computed, alone, on the paths that the whole batch took:
//! the bits of a sequence do not depend on its neighbours, only the choice of a path does.

use super::{Engine, Event, Track, slot_event};
use crate::Error;
use crate::backend::Backend;
use crate::batch::{Batch, Segment};
use cute_records::FinishReason;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is known of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// tokens it had when it ended
    pub tokens: usize,
    /// why it ended
    pub finish_reason: FinishReason,
    /// those tokens, where the reply is streamed: its chunks are made of them once more. Empty otherwise
    pub token_ids: Vec<u32>,
}

impl<B: Backend> Engine<B> {
    /// One step, computed only for sequences whose ordinal is not in `known`, which has every reply that ends in it.
    /// What is emitted of those says nothing of their bits, nor of their text unless its tokens are known, nor whether their slots were zero. Returns false
    /// when there was nothing to do. Time and launches are counted of what is computed; everything else as it was.
    ///
    /// # Errors
    /// As [`Engine::step`]; also when a known reply does not fit the pages reserved for it.
    pub fn replay(
        &mut self,
        known: &BTreeMap<u64, Known>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<bool, Error> {
        let worked = self.try_replay(known, emit);
        self.sound(worked, emit)
    }

    fn try_replay(
        &mut self,
        known: &BTreeMap<u64, Known>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<bool, Error> {
        while let Some(index) = self.scheduler.admit()? {
            let s = &self.scheduler.running[index];
            if known.contains_key(&s.request.ordinal) {
                self.totals.admissions += 1;
                self.totals.recycles += u64::from(s.epoch > 1);
                emit(Event::State(slot_event("acquire", s, &self.scheduler)));
            } else {
                self.prepare_slot(index, emit)?;
            }
        }
        let Some(batch) = self.scheduler.schedule()? else { return Ok(false) };
        self.scheduler.verify(&batch)?;
        let rest = part(&batch, |s| !known.contains_key(&s.owner));
        let start = Instant::now();
        if rest.segments.is_empty() {
            self.account(&batch, Duration::ZERO);
        } else {
            self.dispatcher.set_absent(batch.segments.len() - rest.segments.len());
            let top = self.forward(&rest);
            self.dispatcher.set_absent(0);
            self.account(&batch, start.elapsed());
            self.append(&rest, &top?, emit)?;
        }
        for segment in &batch.segments {
            if let Some(known) = known.get(&segment.owner) {
                let token = batch.logit_rows.contains(&(segment.row + segment.len - 1));
                self.recall(segment, token.then_some(known), emit)?;
            }
        }
        Ok(true)
    }

    /// Moves a sequence on as far as the batch did; where that made a token of it, ends it where it ended.
    fn recall(
        &mut self,
        segment: &Segment,
        known: Option<&Known>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        let owned = self.scheduler.running.iter().position(|s| s.request.ordinal == segment.owner);
        let Some(index) = owned else { return Ok(()) };
        let s = &mut self.scheduler.running[index];
        s.computed += segment.len;
        let Some(known) = known else { return Ok(()) };
        // a token was made, unless this is where an error took its place
        let error = known.finish_reason == FinishReason::Error;
        let failed = error && s.generated.len() >= known.tokens;
        if !failed {
            let token = known.token_ids.get(s.generated.len()).copied();
            s.generated.push(token.unwrap_or(0));
            if let Some(token) = token {
                let track = self.tracks.entry(segment.owner);
                let reply = track.or_insert_with(|| Track::new(&s.request.params)).reply.as_mut();
                reply.map_or(Ok(false), |r| r.push(self.tokenizer.as_deref(), token))?;
            }
        }
        if failed || (!error && s.generated.len() >= known.tokens) {
            return self.finish(index, known.finish_reason, None, emit);
        }
        if !known.token_ids.is_empty() {
            self.chunk(index, emit);
        }
        Ok(())
    }
}

/// The sequences of a batch that are wanted, as a batch.
fn part(batch: &Batch, wanted: impl Fn(&Segment) -> bool) -> Batch {
    let mut out =
        Batch { kind: batch.kind, tokens: Vec::new(), segments: Vec::new(), logit_rows: Vec::new() };
    for segment in batch.segments.iter().filter(|s| wanted(s)) {
        let rows = segment.row..segment.row + segment.len;
        let row = out.tokens.len();
        let logits = batch.logit_rows.iter().filter(|r| rows.contains(r));
        out.logit_rows.extend(logits.map(|r| r - segment.row + row));
        out.tokens.extend(&batch.tokens[rows]);
        out.segments.push(Segment { row, ..segment.clone() });
    }
    out
}
