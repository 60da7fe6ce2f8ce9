//! How an engine is set up, and what can be served.

use crate::Error;
use crate::backend::{CacheShape, KvDtype};
use crate::fault::Fault;
use crate::guard::Guards;
use crate::knobs::Knobs;

/// A pool that a few hundred short requests walk through once: clean runs come before the overflow.
const FAULT_PAGES: usize = 600;

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// sequences running at once
    pub max_num_seqs: usize,
    /// prompt and reply of one sequence, in tokens
    pub max_model_len: usize,
    /// prompt tokens of one step
    pub max_num_batched_tokens: usize,
    /// tokens of a KV page
    pub page_size: usize,
    /// KV pages with the null page; `None` is enough for `max_num_seqs` sequences of `max_model_len`
    pub num_kv_pages: Option<usize>,
    /// element type of the KV cache
    pub kv_dtype: KvDtype,
    /// the dispatch rule's knobs
    pub knobs: Knobs,
    /// the fault to inject
    pub fault: Option<Fault>,
    /// what is watched on top of ownership; `recompute` without fused paths only
    pub guards: Guards,
    /// prove that a slot is zero when a request gets it
    pub zero_check: bool,
    /// fill what is released, and what was never used, with NaN
    pub poison: bool,
    /// attribute the first value that is not finite of every request to layer, operation, slot and position
    pub trace_nonfinite: bool,
    /// keep what a `trace` record says of each request
    pub trace_requests: bool,
    /// leave out the engine's own checks of ownership and counters, so that what a fault does reaches the replies
    pub unguarded: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            max_num_seqs: 8,
            max_model_len: 512,
            max_num_batched_tokens: 256,
            page_size: 64,
            num_kv_pages: None,
            kv_dtype: KvDtype::F32,
            knobs: Knobs::default(),
            fault: None,
            guards: Guards::default(),
            zero_check: true,
            poison: false,
            trace_nonfinite: false,
            trace_requests: false,
            unguarded: false,
        }
    }
}

impl EngineConfig {
    /// KV pages, the null page included. The fault `kv-offset-32` has at least [`FAULT_PAGES`] unless told otherwise.
    pub fn pages(&self) -> usize {
        let per_sequence = self.max_model_len.div_ceil(self.page_size.max(1));
        let enough = self.max_num_seqs.saturating_mul(per_sequence).saturating_add(1);
        let least = if self.fault == Some(Fault::KvOffset32) { FAULT_PAGES } else { 0 };
        self.num_kv_pages.unwrap_or(enough.max(least))
    }

    /// Most rows of a step.
    pub(crate) fn max_rows(&self) -> usize {
        self.max_num_batched_tokens.max(self.max_num_seqs)
    }

    pub(crate) fn cache_shape(&self) -> CacheShape {
        CacheShape {
            num_pages: self.pages(),
            page_size: self.page_size,
            kv_dtype: self.kv_dtype,
            num_slots: 1 + self.max_num_seqs,
            max_rows: self.max_rows(),
            max_len: self.max_model_len,
        }
    }

    pub(crate) fn validate(&self, model: &cute_checkpoint::Config) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Config(message));
        let limits = [
            ("--max-num-seqs", self.max_num_seqs, 1, 1 << 20),
            ("--max-model-len", self.max_model_len, 2, usize::MAX),
            ("--max-num-batched-tokens", self.max_num_batched_tokens, 1, 1 << 24),
            ("--page-size", self.page_size, 1, 1 << 16),
            ("--num-kv-pages", self.pages(), 2, u32::MAX as usize),
        ];
        for (name, value, least, most) in limits {
            if value < least {
                return fail(format!("{name} is {value}: expected at least {least}"));
            }
            if value > most {
                return fail(format!("{name} is {value}: expected at most {most}"));
            }
        }
        if self.max_model_len > model.max_position_embeddings {
            return fail(format!(
                "--max-model-len is {}: this model's max_position_embeddings is {}",
                self.max_model_len, model.max_position_embeddings
            ));
        }
        if self.guards.recompute.is_some() && self.knobs.fusion {
            return fail(
                "--guard recompute needs --phase-e-fusion 0: a fused path sums in another order than prefill"
                    .into(),
            );
        }
        self.knobs.validate(model).map_err(Error::Config)
    }
}
