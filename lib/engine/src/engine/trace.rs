//! What a `trace` record says of a request: gathered step by step, written when it ends.

use super::{Engine, Event};
use crate::backend::Backend;
use crate::batch::{Batch, BatchKind};
use crate::dispatch::Path;
use crate::pool::Entries as _;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use cute_records::digest::sha256_ids;
use cute_records::{Count, FinishReason, Trace, TraceLayer};
use std::collections::BTreeMap;

/// Decode steps by the path that ran, and resets of W_O's slots and of the MLP's sums where they are counted.
type OfLayer = (BTreeMap<Path, u64>, Option<[u64; 2]>);

/// What is gathered of a request, over its preemptions.
#[derive(Default)]
pub(super) struct Gathered {
    /// free and used slots, free and used pages when it was first admitted
    start: [u64; 4],
    /// prefill steps
    prefill: u64,
    /// decode steps, by the tokens that were active in them
    decode: BTreeMap<usize, u64>,
    layers: BTreeMap<usize, OfLayer>,
}

impl Gathered {
    /// Begins at an admission: the request has its slot, and no page yet.
    pub(super) fn new(scheduler: &Scheduler) -> Self {
        let (slots, pages) = (&scheduler.slots, &scheduler.pages);
        let start = [slots.free() as u64, slots.in_use(), pages.free() as u64, pages.in_use()];
        Gathered { start, ..Gathered::default() }
    }
}

/// Counts as a record has them.
fn named<T: ToString>(counts: &BTreeMap<T, u64>) -> Count {
    counts.iter().map(|(name, n)| (name.to_string(), *n)).collect()
}

impl<B: Backend> Engine<B> {
    /// Takes note of a step for each request in it.
    pub(super) fn gather(&mut self, batch: &Batch) {
        if !self.config.trace_requests {
            return;
        }
        for s in &batch.segments {
            let Some(gathered) = self.tracks.get_mut(&s.owner).and_then(|t| t.trace.as_mut()) else {
                continue;
            };
            if batch.kind == BatchKind::Prefill {
                gathered.prefill += 1;
                continue;
            }
            *gathered.decode.entry(batch.rows()).or_default() += 1;
            for launch in self.dispatcher.last_step() {
                let (paths, resets) = gathered.layers.entry(launch.layer).or_default();
                *paths.entry(launch.path).or_default() += 1;
                if let Some([wo, mlp]) = launch.resets {
                    let before = resets.get_or_insert_default();
                    *before = [before[0] + wo, before[1] + mlp];
                }
            }
        }
    }

    /// The trace of a request that has ended.
    pub(super) fn trace(&self, s: &Sequence, gathered: &Gathered, ended: (FinishReason, &str)) -> Event {
        let hex = |(name, at): (&str, u64)| (name.to_owned(), format!("{at:#x}"));
        let addresses: BTreeMap<usize, _> = self.dispatcher.addresses(&self.backend).collect();
        let layers = gathered.layers.iter().map(|(layer, (paths, resets))| TraceLayer {
            layer: *layer as u32,
            paths: named(paths),
            resets: resets
                .map(|[wo, mlp]| [("wo_output".to_owned(), wo), ("mlp_partial".to_owned(), mlp)].into()),
            buffers: addresses.get(layer).into_iter().flatten().copied().map(hex).collect(),
        });
        let page_bytes = self.config.cache_shape().page_bytes(&self.model.config) as u64;
        let [slots_free, slots_used, pages_free, pages_used] = gathered.start;
        let [recurrent, kv] = self.backend.cache_addresses(&self.cache, s.slot);
        Event::Trace(Box::new(Trace {
            id: s.request.id.clone(),
            ordinal: s.request.ordinal,
            wo_split: self.config.knobs.wo_split as u64,
            steps: [
                (BatchKind::Prefill, gathered.prefill),
                (BatchKind::Decode, gathered.decode.values().sum()),
            ]
            .map(|(kind, n)| (kind.name().to_owned(), n))
            .into(),
            active_tokens: named(&gathered.decode),
            layers: layers.collect(),
            slot: s.slot,
            epoch: s.epoch,
            kv_pages: s.pages.clone(),
            page_offsets: s.pages.iter().map(|page| u64::from(*page) * page_bytes).collect(),
            buffers: [("recurrent", recurrent), ("kv", kv)].map(hex).into(),
            slots_free,
            slots_used,
            pages_free,
            pages_used,
            finish_reason: Some(ended.0),
            token_sha256: sha256_ids(&s.generated),
            fingerprint: ended.1.to_owned(),
        }))
    }
}
