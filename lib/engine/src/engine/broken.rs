//! What a step does under a fault that lies around the forward pass: padded batches, recorded steps, a step too late.
//!
//! A GPU server pads a decode batch to a size it has recorded, warms up and records each size once, and sends a step off
//! before it knows how the one before ended. The CPU engine does none of this when it is sound; under one of these
//! faults it does as much of it as the bug needs, so that what is corrupted goes through the same arithmetic.

use super::Engine;
use crate::Error;
use crate::backend::Backend;
use crate::batch::{Batch, BatchKind, Segment};
use crate::fault::Fault;
use crate::model::Top;
use crate::sampler::Stream;
use crate::sequence::Sequence;
use std::collections::BTreeMap;

/// What a fault remembers from step to step.
pub(super) struct Broken {
    /// where garbage comes from
    pub(super) garbage: Stream,
    /// the buffer that decode batches are laid out in: a token and a sequence a row
    rows: Vec<(u32, Segment)>,
    /// slots of the recorded step of each size
    recorded: BTreeMap<usize, Vec<u32>>,
    /// rows of the step that was sent off before the end of their sequences was known
    late: Vec<(u32, Segment)>,
}

impl Default for Broken {
    fn default() -> Self {
        Broken {
            garbage: Stream::new(0x6a72_6261),
            rows: Vec::new(),
            recorded: BTreeMap::new(),
            late: Vec::new(),
        }
    }
}

impl Broken {
    /// Takes note of a sequence that is about to end, by [`Fault::LateStep`].
    pub(super) fn ends(&mut self, fault: Option<Fault>, s: &Sequence) {
        let segment = Segment {
            owner: s.request.ordinal,
            slot: s.slot,
            epoch: s.epoch,
            pages: s.pages.clone(),
            page_epochs: s.page_epochs.clone(),
            start: s.computed,
            row: 0,
            len: 1,
        };
        if fault == Some(Fault::LateStep) {
            self.late.extend(s.generated.last().map(|token| (*token, segment)));
        }
    }
}

impl<B: Backend> Engine<B> {
    /// The step that was sent off too early, when there is one. Its keys and values go where there is a page for them.
    pub(super) fn late_step(&mut self) -> Result<(), Error> {
        let page_size = self.config.page_size;
        let mut late = std::mem::take(&mut self.broken.late);
        late.retain(|(_, s)| s.start < s.pages.len() * page_size && s.start < self.config.max_model_len);
        if late.is_empty() {
            return Ok(());
        }
        let batch = decode(late);
        self.verify(&batch)?;
        self.forward(&batch).map(|_| ())
    }

    /// The forward pass over a batch, with what a fault does around it.
    pub(super) fn broken_forward(&mut self, fault: Fault, batch: &Batch) -> Result<Vec<Option<Top>>, Error> {
        if batch.kind == BatchKind::Prefill {
            return self.forward(batch);
        }
        match fault {
            Fault::PadRowSlot0 | Fault::PadRowLive => {
                let padded = self.padded(fault, batch);
                self.forward(&padded)
            }
            Fault::CaptureLiveSlot => {
                let size = batch.segments.len();
                if self.broken.recorded.insert(size, Vec::new()).is_none() {
                    self.warm_up(&decode((1..=size).map(|slot| (0, null(slot as u32))).collect()))?;
                }
                self.forward(batch)
            }
            Fault::BakedSlot => {
                let mut replayed = batch.clone();
                let slots = || batch.segments.iter().map(|s| s.slot).collect();
                let baked = self.broken.recorded.entry(batch.segments.len()).or_insert_with(slots);
                replayed.segments.iter_mut().zip(baked).for_each(|(s, slot)| s.slot = *slot);
                self.forward(&replayed)
            }
            _ => self.forward(batch),
        }
    }

    /// A decode batch with rows up to the next power of two: null ones, or whatever the buffer has there.
    fn padded(&mut self, fault: Fault, batch: &Batch) -> Batch {
        let size = batch.segments.len();
        let wanted = size.next_power_of_two().min(self.config.max_num_seqs);
        let rows = &mut self.broken.rows;
        for (i, row) in batch.tokens.iter().copied().zip(batch.segments.iter().cloned()).enumerate() {
            match rows.get_mut(i) {
                Some(old) => *old = row,
                None => rows.push(row),
            }
        }
        let pad: Vec<_> = match fault {
            Fault::PadRowSlot0 => (size..wanted).map(|_| (0, null(0))).collect(),
            _ => rows.get(size..wanted.min(rows.len())).unwrap_or_default().to_vec(),
        };
        let real = batch.tokens.iter().copied().zip(batch.segments.iter().cloned());
        Batch { logit_rows: batch.logit_rows.clone(), ..decode(real.chain(pad).collect()) }
    }
}

/// A row of nobody: a slot, and the null page.
fn null(slot: u32) -> Segment {
    Segment {
        owner: u64::MAX,
        slot,
        epoch: 0,
        pages: vec![0],
        page_epochs: vec![0],
        start: 0,
        row: 0,
        len: 1,
    }
}

/// A decode batch of these rows; no logits are wanted.
fn decode(rows: Vec<(u32, Segment)>) -> Batch {
    let (tokens, mut segments): (Vec<u32>, Vec<Segment>) = rows.into_iter().unzip();
    segments.iter_mut().enumerate().for_each(|(row, s)| s.row = row);
    Batch { kind: BatchKind::Decode, tokens, segments, logit_rows: Vec::new() }
}
