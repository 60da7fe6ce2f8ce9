//! What a step's logits become: a token for each sequence whose last position was computed, or its end.

use super::{Engine, Event};
use crate::Error;
use crate::backend::Backend;
use crate::batch::{Batch, Segment};
use crate::fault::Fault;
use crate::model::Top;
use crate::sampler::{self, Choice};
use crate::sequence::Sequence;
use cute_records::{FinishReason, TokenLogprob};

/// What is known of one of a step's rows of logits.
struct Row {
    /// the largest; none when one is not finite
    top: Option<Top>,
    /// what was chosen instead of the largest
    chosen: Option<u32>,
    /// of the likeliest tokens, as many as its request asks for
    logprobs: Vec<TokenLogprob>,
}

impl<B: Backend> Engine<B> {
    /// Appends a token to each sequence whose last position was computed, and ends those that are done.
    pub(super) fn append(
        &mut self,
        batch: &Batch,
        top: &[Option<Top>],
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        let mut rows = self.rows(batch, top)?;
        for segment in &batch.segments {
            let Some(index) = self.running(segment) else { continue };
            self.scheduler.running[index].computed += segment.len;
            let Some(row) = rows.get_mut(segment.row + segment.len - 1).and_then(Option::take) else {
                continue;
            };
            match self.next_token(index, row) {
                Some((reason, error)) => self.finish(index, reason, error, emit)?,
                None => self.chunk(index, emit),
            }
        }
        Ok(())
    }

    fn running(&self, segment: &Segment) -> Option<usize> {
        self.scheduler.running.iter().position(|s| s.request.ordinal == segment.owner)
    }

    /// What the step's rows give, by row of the batch. The logits themselves stay on the device unless probabilities
    /// are asked for.
    fn rows(&mut self, batch: &Batch, top: &[Option<Top>]) -> Result<Vec<Option<Row>>, Error> {
        let vocab = self.model.config.vocab_size;
        let mut rows: Vec<Option<Row>> = (0..batch.rows()).map(|_| None).collect();
        let (mut logits, mut choices, mut chooses) = (Vec::new(), Vec::new(), Vec::new());
        for segment in &batch.segments {
            let at = segment.row + segment.len - 1;
            let (Some(index), Some(row)) =
                (self.running(segment), batch.logit_rows.iter().position(|r| *r == at))
            else {
                continue;
            };
            let Sequence { request, generated, .. } = &self.scheduler.running[index];
            let (params, top) = (&request.params, top[row]);
            let mut logprobs = Vec::new();
            if params.logprobs > 0 {
                if logits.is_empty() {
                    logits = self.backend.read(&self.scratch.logits, batch.logit_rows.len())?;
                }
                logprobs = sampler::logprobs(&logits[row * vocab..][..vocab], params.logprobs);
            }
            if top.is_some()
                && !params.is_greedy()
                && let Some(track) = self.tracks.get_mut(&segment.owner)
            {
                let seen = request.prompt.iter().chain(generated).copied();
                choices.push(Choice::new(row, params, seen, &mut track.stream));
                chooses.push(at);
            }
            rows[at] = Some(Row { top, chosen: None, logprobs });
        }
        if !choices.is_empty() {
            for (at, token) in chooses.iter().zip(self.backend.choose(&mut self.scratch.logits, &choices)?) {
                rows[*at].iter_mut().for_each(|row| row.chosen = Some(token));
            }
        }
        Ok(rows)
    }

    /// Appends one token to a sequence. Returns why it ends, if it does.
    fn next_token(&mut self, index: usize, row: Row) -> Option<(FinishReason, Option<String>)> {
        let limit = self.scheduler.limit(&self.scheduler.running[index]);
        let s = &mut self.scheduler.running[index];
        let track = self.tracks.get_mut(&s.request.ordinal)?;
        let params = &s.request.params;
        let top = match row.top {
            Some(top) => top,
            None if self.config.fault.is_some_and(Fault::launders_nan) => (0, f32::NAN),
            None => {
                let message = format!(
                    "logits at position {} are not finite: no token was made of them",
                    s.computed - 1
                );
                return Some((FinishReason::Error, Some(message)));
            }
        };
        track.fingerprint.update(&top.1.to_bits().to_le_bytes());
        track.fingerprint.update(&top.0.to_le_bytes());
        if params.logprobs > 0 {
            track.logprobs.push(row.logprobs);
        }
        let token = row.chosen.unwrap_or(top.0);
        s.generated.push(token);
        let stopped = track.reply.as_mut().map_or(Ok(false), |r| r.push(self.tokenizer.as_deref(), token));
        match stopped {
            Err(e) => return Some((FinishReason::Error, Some(e.to_string()))),
            Ok(true) => return Some((FinishReason::Stop, None)),
            Ok(false) => {}
        }
        if !params.ignore_eos && self.model.config.eos_token_ids.contains(&token) {
            return Some((FinishReason::Stop, None));
        }
        (s.len() >= limit).then_some((FinishReason::Length, None))
    }

    /// Reports what a running sequence's reply has grown by, when it is streamed and that is certain.
    pub(super) fn chunk(&mut self, index: usize, emit: &mut dyn FnMut(Event)) {
        let s = &self.scheduler.running[index];
        let Some(track) = self.tracks.get_mut(&s.request.ordinal) else { return };
        let text = self.tokenizer.is_some();
        if s.request.params.stream && track.reply.as_ref().is_some_and(|r| !text || r.has_news()) {
            emit(Event::Chunk(track.chunk(&s.request, text)));
        }
    }
}
