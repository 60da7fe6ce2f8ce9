//! The step loop: admit, schedule, forward, sample, append. Nothing else.

mod append;
mod broken;
mod guards;
mod nonfinite;
mod replay;
mod trace;
mod track;

pub use replay::Known;

use track::Track;

use crate::Error;
use crate::backend::{Backend, Regions, Watch};
use crate::batch::{Batch, BatchKind};
use crate::config::EngineConfig;
use crate::dispatch::{Dispatcher, LogSink};
use crate::fault::Fault;
use crate::model::{Model, Scratch, Top};
use crate::pool::Entries as _;
use crate::scheduler::{Limits, Scheduler};
use crate::sequence::{Output, Request, Sequence};
use cute_checkpoint::{Checkpoint, Tokenizer};
use cute_records::{Chunk, Finding, FinishReason, Pool, State, Trace};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a step may report.
#[derive(Debug)]
pub enum Event {
    /// an entry was acquired or released
    State(State),
    /// a reply that is streamed has grown, or ended; `run` and `index` are not known here
    Chunk(Chunk),
    /// how a request was served, before its end is reported
    Trace(Box<Trace>),
    /// a request ended
    Finished(Box<Output>),
    /// a guard found that an invariant is broken
    Finding(Finding),
}

/// Time and tokens spent, and counters for the `end` record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// in prefill steps
    pub prefill: Duration,
    /// prompt tokens computed
    pub prefill_tokens: u64,
    /// in decode steps
    pub decode: Duration,
    /// tokens decoded
    pub decode_tokens: u64,
    /// steps, prefill and decode
    pub steps: u64,
    /// decode steps
    pub decode_steps: u64,
    /// admissions, those after a preemption included
    pub admissions: u64,
    /// requests cancelled
    pub cancelled: u64,
    /// sequences preempted
    pub preempted: u64,
    /// zeroing acquired slots, and proving it
    pub zero_check: Duration,
    /// slots acquired that had been used before
    pub recycles: u64,
    /// sequences that ended while the guard `recompute` was on, and those of them that were computed again
    pub ended: u64,
    /// see `ended`
    pub recomputed: u64,
}

/// A model being served.
pub struct Engine<B: Backend> {
    backend: B,
    model: Model<B>,
    cache: B::Cache,
    scratch: Scratch<B>,
    dispatcher: Dispatcher<B>,
    scheduler: Scheduler,
    tokenizer: Option<Arc<Tokenizer>>,
    config: EngineConfig,
    tracks: BTreeMap<u64, Track>,
    broken: broken::Broken,
    /// slot 0, page 0
    reserved_written: [bool; 2],
    changed_by_warm_up: Vec<(&'static str, u32)>,
    totals: Totals,
}

impl<B: Backend> Engine<B> {
    /// Loads a checkpoint onto a backend. Dispatch lines go to `log`.
    ///
    /// # Errors
    /// When the configuration cannot be served, or the checkpoint cannot be loaded.
    pub fn new(
        mut backend: B,
        checkpoint: &Checkpoint,
        tokenizer: Option<Arc<Tokenizer>>,
        config: EngineConfig,
        log: LogSink,
    ) -> Result<Self, Error> {
        config.validate(&checkpoint.config)?;
        let c = &checkpoint.config;
        let shape = config.cache_shape();
        let limits = Limits {
            max_num_seqs: config.max_num_seqs,
            max_model_len: config.max_model_len,
            max_num_batched_tokens: config.max_num_batched_tokens,
            page_size: config.page_size,
            chunk_multiple: backend.chunk_multiple(),
        };
        limits.validate()?;
        let rows = config.max_rows();
        if config.trace_nonfinite {
            backend.watch(Watch::default());
        }
        if config.guards.capture {
            backend.watch_captures();
        }
        let mut engine = Engine {
            model: Model::load(&backend, checkpoint, config.max_model_len)?,
            cache: backend.cache(
                c,
                if config.guards.recompute.is_some() { guards::with_scratch(shape) } else { shape },
            )?,
            scratch: Scratch::new(&backend, c, rows, config.max_num_seqs)?,
            dispatcher: Dispatcher::new(
                &backend,
                c,
                config.knobs.clone(),
                config.max_num_seqs,
                config.fault,
                log,
            )?
            .unguarded(config.unguarded),
            scheduler: Scheduler::new(limits, shape.num_slots, shape.num_pages)
                .with_fault(config.fault, config.unguarded),
            tokenizer,
            tracks: BTreeMap::new(),
            broken: broken::Broken::default(),
            reserved_written: [false; 2],
            changed_by_warm_up: Vec::new(),
            totals: Totals::default(),
            backend,
            config,
        };
        engine.lay_out()?;
        Ok(engine)
    }

    /// What the device is called.
    pub fn device(&self) -> String {
        self.backend.name()
    }
    /// Time, tokens and counters so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }
    /// The queues and pools.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }
    /// Launches and workspace resets of the fused paths.
    pub fn launches(&self) -> (u64, u64) {
        self.dispatcher.launches()
    }

    /// Time by phase of each layer's cooperative launches, when it was asked for.
    pub fn regions(&self) -> impl Iterator<Item = (usize, &Regions)> {
        self.dispatcher.regions()
    }

    /// The KV pool's geometry as a record.
    pub fn pool_record(&self) -> Pool {
        let c = &self.model.config;
        let shape = self.config.cache_shape();
        let bytes = shape.page_bytes(c);
        Pool {
            num_blocks: Some(shape.num_pages as u64),
            rule: Some("the engine's own KV pool; page 0 is the null page".into()),
            block_size: Some(shape.page_size as u64),
            block_bytes: Some(bytes as u64),
            token_bytes: None,
            state_blocks_per_request: Some(0),
            first_block: Some(1),
            kv_cache_tokens: Some(((shape.num_pages - 1) * shape.page_size) as u64),
            max_concurrency: None,
            max_model_len: Some(self.config.max_model_len as u64),
            available_bytes: Some((bytes * shape.num_pages) as u64),
            ..Pool::default()
        }
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::Request`] when it can never be served; the others go on.
    pub fn add(&mut self, request: Request) -> Result<(), Error> {
        if let Err(message) = request.params.validate() {
            return Err(Error::Request { id: request.id, message });
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= self.model.config.vocab_size) {
            let message =
                format!("token id {id} is outside the vocabulary of {}", self.model.config.vocab_size);
            return Err(Error::Request { id: request.id, message });
        }
        self.scheduler.add(request)
    }

    /// Cancels a request, waiting or running: what it held is free at once, and it ends with what it had generated.
    /// Returns false when there is no such request.
    ///
    /// # Errors
    /// When an ownership invariant is broken: the engine is of no further use then.
    pub fn cancel(&mut self, ordinal: u64, emit: &mut dyn FnMut(Event)) -> Result<bool, Error> {
        let taken = self.scheduler.cancel(ordinal);
        let Some(s) = self.sound(taken, emit)? else { return Ok(false) };
        self.totals.cancelled += 1;
        self.end(s, FinishReason::Cancelled, None, emit)?;
        Ok(true)
    }

    /// Preempts a running sequence: what it held is free at once, and it waits to be computed again from its first
    /// token. Returns false when it does not run.
    ///
    /// # Errors
    /// When an ownership invariant is broken: the engine is of no further use then.
    pub fn preempt(&mut self, ordinal: u64, emit: &mut dyn FnMut(Event)) -> Result<bool, Error> {
        let taken = self.scheduler.preempt(ordinal);
        let Some(ran) = self.sound(taken, emit)? else { return Ok(false) };
        self.totals.preempted += 1;
        self.poison_released(&ran)?;
        emit(Event::State(slot_event("release", &ran, &self.scheduler)));
        Ok(true)
    }

    /// One step. Returns false when there was nothing to do.
    ///
    /// # Errors
    /// When the device fails or an invariant of ownership or of a counter is broken, which is a finding, too: the engine
    /// is of no further use then.
    pub fn step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<bool, Error> {
        let worked = self.try_step(emit);
        self.sound(worked, emit)
    }

    fn try_step(&mut self, emit: &mut dyn FnMut(Event)) -> Result<bool, Error> {
        while let Some(index) = self.scheduler.admit()? {
            self.prepare_slot(index, emit)?;
        }
        if !self.config.unguarded {
            self.scheduler.balance()?;
        }
        self.late_step()?;
        let Some(batch) = self.scheduler.schedule()? else { return Ok(false) };
        self.verify(&batch)?;
        let others = self.others(&batch)?;
        self.poison_activations()?;
        self.watch(&batch);
        let start = Instant::now();
        let top = match self.config.fault {
            None => self.forward(&batch)?,
            Some(fault) => self.broken_forward(fault, &batch)?,
        };
        let elapsed = start.elapsed();
        self.gather(&batch);
        self.report_nonfinite(&batch, emit);
        self.compare(others, &batch, emit)?;
        self.report_captures(&batch, emit);
        self.account(&batch, elapsed);
        self.look_at_slot0(&batch, emit)?;
        self.append(&batch, &top, emit)?;
        Ok(true)
    }

    /// Whether every sequence of a batch owns what it is about to write.
    fn verify(&self, batch: &Batch) -> Result<(), Error> {
        if self.config.unguarded { Ok(()) } else { self.scheduler.verify(batch) }
    }

    /// The model's forward pass over a batch.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<Option<Top>>, Error> {
        self.model.forward(&self.backend, batch, &mut self.cache, &mut self.scratch, &mut self.dispatcher)
    }

    /// Zeroes an admitted sequence's slot and proves it, or does what the fault says.
    fn prepare_slot(&mut self, index: usize, emit: &mut dyn FnMut(Event)) -> Result<(), Error> {
        let s = &self.scheduler.running[index];
        let recycled = s.epoch > 1;
        self.totals.admissions += 1;
        self.totals.recycles += u64::from(recycled);
        let start = Instant::now();
        match self.config.fault {
            Some(Fault::StaleState) => {}
            Some(Fault::StaleResume) if s.preempted > 0 => {}
            Some(Fault::GarbageState) if recycled => {
                let stream = &mut self.broken.garbage;
                self.backend
                    .fill_slot(&mut self.cache, s.slot, &mut || (stream.uniform() as f32 - 0.5) * 100.0)?;
            }
            _ => self.backend.zero_slot(&mut self.cache, s.slot)?,
        }
        let proved = self.config.zero_check.then(|| self.backend.slot_is_zero(&self.cache, s.slot));
        let zero = proved.transpose()?;
        self.totals.zero_check += start.elapsed();
        let digest = match zero {
            Some(false) => Some(self.backend.slot_digest(&self.cache, s.slot)?),
            _ => None,
        };
        let trace = self.config.trace_requests.then(|| trace::Gathered::new(&self.scheduler));
        self.tracks.entry(s.request.ordinal).or_insert_with(|| Track::new(&s.request.params).traced(trace));
        emit(Event::State(State { zero, digest, ..slot_event("acquire", s, &self.scheduler) }));
        Ok(())
    }

    fn account(&mut self, batch: &Batch, elapsed: Duration) {
        self.totals.steps += 1;
        match batch.kind {
            BatchKind::Prefill => {
                self.totals.prefill += elapsed;
                self.totals.prefill_tokens += batch.rows() as u64;
            }
            BatchKind::Decode => {
                self.totals.decode_steps += 1;
                self.totals.decode += elapsed;
                self.totals.decode_tokens += batch.rows() as u64;
                for s in &batch.segments {
                    if let Some(track) = self.tracks.get_mut(&s.owner) {
                        track.decode += elapsed;
                    }
                }
            }
        }
    }

    fn finish(
        &mut self,
        index: usize,
        reason: FinishReason,
        error: Option<String>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        self.recompute(index, emit)?;
        if reason == FinishReason::Error {
            emit(self.logits_not_finite(&self.scheduler.running[index]));
        }
        self.broken.ends(self.config.fault, &self.scheduler.running[index]);
        let s = self.scheduler.finish(index)?;
        self.end(s, reason, error, emit)
    }

    /// Reports a sequence that is in no queue any more.
    fn end(
        &mut self,
        s: Sequence,
        mut finish_reason: FinishReason,
        error: Option<String>,
        emit: &mut dyn FnMut(Event),
    ) -> Result<(), Error> {
        // what is said to be released is: the pool has the last word
        let owner = self.scheduler.slots.entry(s.slot).and_then(|(owner, _)| owner);
        if s.epoch != 0 && owner != Some(s.request.ordinal) {
            emit(Event::State(slot_event("release", &s, &self.scheduler)));
        }
        self.poison_released(&s)?;
        let mut track =
            self.tracks.remove(&s.request.ordinal).unwrap_or_else(|| Track::new(&s.request.params));
        let (text, stop_reason) = track.end(self.tokenizer.as_deref(), &s, &mut finish_reason)?;
        if s.request.params.stream {
            let last = track.chunk(&s.request, text.is_some());
            let stop_reason = stop_reason.clone();
            emit(Event::Chunk(Chunk { finish_reason: Some(finish_reason), stop_reason, ..last }));
        }
        let fingerprint = track.fingerprint.hex();
        if let Some(gathered) = &track.trace {
            emit(self.trace(&s, gathered, (finish_reason, &fingerprint)));
        }
        emit(Event::Finished(Box::new(Output {
            token_ids: s.generated,
            text,
            finish_reason,
            stop_reason,
            error,
            fingerprint,
            logprobs: track.logprobs,
            slot: s.slot,
            epoch: s.epoch,
            pages: s.pages,
            preempted: s.preempted,
            wall: track.admitted.elapsed(),
            decode: track.decode,
            request: s.request,
        })));
        Ok(())
    }
}

fn slot_event(op: &str, s: &Sequence, scheduler: &Scheduler) -> State {
    State {
        op: op.into(),
        kind: "recurrent".into(),
        slot: s.slot,
        owner: s.request.id.clone(),
        ordinal: s.request.ordinal,
        epoch: s.epoch,
        zero: None,
        digest: None,
        free: scheduler.slots.free() as u64,
    }
}
