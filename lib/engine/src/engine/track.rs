//! What accumulates beside a sequence, over its preemptions: its fingerprint, its random stream, its text.

use super::trace::Gathered;
use crate::Error;
use crate::reply::Reply;
use crate::sampler::Stream;
use crate::sequence::{Request, SamplingParams, Sequence};
use cute_checkpoint::Tokenizer;
use cute_records::digest::Hasher;
use cute_records::{Chunk, FinishReason, TokenLogprob};
use std::time::{Duration, Instant};

/// See above.
pub(super) struct Track {
    pub(super) fingerprint: Hasher,
    pub(super) stream: Stream,
    pub(super) logprobs: Vec<Vec<TokenLogprob>>,
    pub(super) decode: Duration,
    pub(super) admitted: Instant,
    /// its text, where that is looked at before the end
    pub(super) reply: Option<Reply>,
    chunks: u64,
    /// its first value that is not finite has been reported
    pub(super) nonfinite: bool,
    /// for its `trace` record, when there is to be one
    pub(super) trace: Option<Gathered>,
}

impl Track {
    pub(super) fn new(params: &SamplingParams) -> Self {
        Track {
            fingerprint: Hasher::new(),
            stream: Stream::new(params.seed),
            logprobs: Vec::new(),
            decode: Duration::ZERO,
            admitted: Instant::now(),
            reply: (params.stream || !params.stop.is_empty()).then(|| Reply::new(params)),
            chunks: 0,
            nonfinite: false,
            trace: None,
        }
    }

    /// The same with a trace, if there is one.
    pub(super) fn traced(self, trace: Option<Gathered>) -> Self {
        Track { trace, ..self }
    }

    /// What the reply has grown by since the last chunk; `text` when there is a tokenizer.
    pub(super) fn chunk(&mut self, request: &Request, text: bool) -> Chunk {
        let (new, token_ids) = self.reply.as_mut().map(Reply::take).unwrap_or_default();
        self.chunks += 1;
        Chunk {
            id: request.id.clone(),
            ordinal: request.ordinal,
            part: self.chunks - 1,
            text: text.then_some(new),
            token_ids,
            ..Chunk::default()
        }
    }

    /// The text of a sequence that ends, and the stop string that ended it. What was held back up to now may be the
    /// rest of one: that is the reason then.
    pub(super) fn end(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        s: &Sequence,
        reason: &mut FinishReason,
    ) -> Result<(Option<String>, Option<String>), Error> {
        let Some(reply) = &mut self.reply else {
            let text = tokenizer.map(|t| t.decode(&s.generated)).transpose()?;
            return Ok((text, None));
        };
        if reply.finish(tokenizer)? && *reason == FinishReason::Length {
            *reason = FinishReason::Stop;
        }
        let stopped = reply.stopped().filter(|_| *reason == FinishReason::Stop);
        Ok((tokenizer.map(|_| reply.text().to_owned()), stopped.map(str::to_owned)))
    }
}
