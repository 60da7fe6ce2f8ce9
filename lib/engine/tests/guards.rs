//! The guards that read: what each names when something is wrong, and that they change nothing when nothing is.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::{
    Run, eight_replies, expected, format_models, four_seats, golden_models, greedy, problems, run, run_on,
    tiny,
};
use cute_checkpoint::Checkpoint;
use cute_engine::Error;
use cute_engine::backend::cuda::gpu::{Arg, Gpu, Graph, Kernel, Launch, Mark, Ptr, Unit};
use cute_engine::backend::cuda::{Cuda, Options};
use cute_engine::backend::{Backend, CacheShape, Cpu, KvDtype, NonFinite, Watch};
use cute_engine::batch::{Batch, BatchKind, Segment};
use cute_engine::dispatch::Dispatcher;
use cute_engine::guard::Guard;
use cute_engine::knobs::PathKnob;
use cute_engine::model::{Model, Scratch};
use cute_engine::{EngineConfig, Fault, Guards, Knobs};
use cute_records::{Finding, FinishReason};
use std::sync::Arc;
use testing::{device, on_a_device};

fn named<'a>(run: &'a Run, check: &str) -> Vec<&'a Finding> {
    run.findings.iter().filter(|f| f.check == check).collect()
}

/// The configurations of a decode step.
fn on_every_path(config: &EngineConfig) -> Vec<EngineConfig> {
    let with = |f: &dyn Fn(&mut Knobs)| {
        let mut config = config.clone();
        f(&mut config.knobs);
        config
    };
    vec![
        with(&|k| k.fusion = false),
        with(&|k| k.path = PathKnob::Lite),
        with(&|k| (k.path, k.coop_gdn) = (PathKnob::Coop, true)),
    ]
}

#[test]
fn a_watched_engine_gives_the_same_bits_and_finds_nothing_on_every_path() {
    for config in on_every_path(&four_seats(None)) {
        let plain = eight_replies(config.clone());
        let watched = eight_replies(EngineConfig { trace_nonfinite: true, ..config });
        assert_eq!(watched.findings, []);
        assert_eq!(watched.fingerprints(), plain.fingerprints());
    }
}

#[test]
fn every_kind_of_model_writes_before_it_reads_and_nothing_in_it_is_not_finite() {
    for dir in golden_models().into_iter().chain(format_models()) {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let prompts: Vec<Vec<u32>> = expected(&dir).input_ids.chunks(40).map(<[u32]>::to_vec).collect();
        let config = EngineConfig { max_model_len: 48, ..four_seats(None) };
        let plain = run(&checkpoint, config.clone(), &prompts, &greedy(4));
        let watched = EngineConfig { trace_nonfinite: true, poison: true, ..config };
        let watched = run(&checkpoint, watched, &prompts, &greedy(4));
        assert_eq!(watched.findings, [], "{}", dir.display());
        assert_eq!(watched.fingerprints(), plain.fingerprints(), "{}", dir.display());
    }
}

#[test]
fn what_a_dirty_slot_or_page_does_is_attributed_to_the_operation_that_read_it() {
    let traced = |fault| EngineConfig { trace_nonfinite: true, poison: true, ..four_seats(Some(fault)) };
    for (fault, layer, phase) in
        [(Fault::StaleState, 0, "conv"), (Fault::StaleConv, 0, "conv"), (Fault::NanToken, 3, "attention")]
    {
        for config in on_every_path(&traced(fault)) {
            let run = eight_replies(config);
            let traced = named(&run, "nonfinite_value");
            let first = traced.first().unwrap_or_else(|| panic!("{fault}: nothing was found"));
            assert_eq!((first.layer, first.data["phase"].as_str()), (Some(layer), Some(phase)), "{first:?}");
            for f in &traced {
                let output = &run.outputs[f.ordinal.unwrap() as usize];
                assert_eq!(f.data["slot"], output.slot, "{f:?}");
                assert_eq!(f.data["epoch"], output.epoch, "{f:?}");
                assert_eq!(f.data["value"], "NaN", "{f:?}");
            }
            let mut requests: Vec<_> = traced.iter().map(|f| f.ordinal).collect();
            requests.dedup();
            assert_eq!(requests.len(), traced.len(), "{fault}: once a request");
        }
    }
}

#[test]
fn a_request_whose_logits_are_not_finite_ends_with_an_error_and_a_finding_and_no_token() {
    let run = eight_replies(EngineConfig { poison: true, ..four_seats(Some(Fault::StaleState)) });
    let found = named(&run, "logits_not_finite");
    assert_eq!(found.len(), 8, "{:?}", run.findings);
    for f in found {
        let output = &run.outputs[f.ordinal.unwrap() as usize];
        assert_eq!((output.finish_reason, output.token_ids.len()), (FinishReason::Error, 0));
        assert_eq!(f.data["position"], output.request.prompt.len() - 1);
        assert_eq!((&f.data["slot"], &f.data["epoch"]), (&output.slot.into(), &output.epoch.into()));
    }
}

/// A sequence of 40 tokens in slot 1 and pages of 16 and, behind its prompt, one decode step of it and of another.
/// Before that step `break_it` may write to the caches. Returns what was seen in the rows of both.
fn seen<B: Backend>(
    mut backend: B,
    knobs: &Knobs,
    break_it: impl FnOnce(&B, &mut B::Cache),
) -> [Option<NonFinite>; 2] {
    let checkpoint = tiny();
    let watch = Watch::default();
    backend.watch(watch.clone());
    let shape = CacheShape {
        num_pages: 8,
        page_size: 16,
        kv_dtype: KvDtype::F32,
        num_slots: 3,
        max_rows: 64,
        max_len: 64,
    };
    let model = Model::load(&backend, &checkpoint, 64).unwrap();
    let mut cache = backend.cache(&checkpoint.config, shape).unwrap();
    let mut scratch = Scratch::new(&backend, &checkpoint.config, 64, 2).unwrap();
    let log = Box::new(|_: &str| ());
    let mut dispatcher = Dispatcher::new(&backend, &checkpoint.config, knobs.clone(), 2, None, log).unwrap();
    let tokens: Vec<u32> = problems(&checkpoint, 4).concat();
    let segment = |owner: u64, start, row, len| Segment {
        owner,
        slot: 1 + owner as u32,
        epoch: 1,
        pages: (1..4).map(|page| page + 3 * owner as u32).collect(),
        page_epochs: vec![1; 3],
        start,
        row,
        len,
    };
    let prompt = |owner| Batch {
        kind: BatchKind::Prefill,
        tokens: tokens[..40].to_vec(),
        segments: vec![segment(owner, 0, 0, 40)],
        logit_rows: vec![39],
    };
    let step = Batch {
        kind: BatchKind::Decode,
        tokens: vec![tokens[40], tokens[41]],
        segments: vec![segment(1, 40, 0, 1), segment(0, 40, 1, 1)],
        logit_rows: vec![0, 1],
    };
    let mut forward = |batch: &Batch, cache: &mut B::Cache| {
        watch.begin(batch.rows());
        model.forward(&backend, batch, cache, &mut scratch, &mut dispatcher).unwrap();
        watch.end()
    };
    for owner in 0..2 {
        assert!(forward(&prompt(owner), &mut cache).iter().all(Option::is_none), "nothing is wrong yet");
    }
    break_it(&backend, &mut cache);
    forward(&step, &mut cache).try_into().unwrap()
}

/// Puts NaN into one value of slot 1, the `at`-th of its first linear layer; elsewhere it becomes zero.
fn dirty<B: Backend>(backend: &B, cache: &mut B::Cache, at: usize) {
    let mut i = 0;
    let mut value = || {
        i += 1;
        if i == at + 1 { f32::NAN } else { 0.0 }
    };
    backend.fill_slot(cache, 1, &mut value).unwrap();
}

/// Layer and operation that are blamed, in the row whose slot and pages were written to; the other is sound.
fn blamed(seen: [Option<NonFinite>; 2]) -> Option<(Option<usize>, &'static str)> {
    assert_eq!(seen[0], None, "the other sequence");
    seen[1].map(|first| (first.layer, first.phase))
}

#[test]
fn a_value_in_a_slot_or_page_is_blamed_on_its_reader_and_in_its_own_row() {
    let shape = cute_engine::backend::GdnShape::of(&tiny().config, 0);
    let mut knobs: Vec<Knobs> = on_every_path(&four_seats(None)).into_iter().map(|c| c.knobs).collect();
    for knobs in &knobs {
        let cpu = || Cpu::default();
        assert_eq!(seen(cpu(), knobs, |_, _| ()), [None, None]);
        let recurrent = blamed(seen(cpu(), knobs, |b, c| dirty(b, c, 5)));
        assert_eq!(recurrent, Some((Some(0), "delta_rule")), "{knobs:?}");
        let conv = blamed(seen(cpu(), knobs, |b, c| dirty(b, c, shape.recurrent_len() + 5)));
        assert_eq!(conv, Some((Some(0), "conv")), "{knobs:?}");
        let page = blamed(seen(cpu(), knobs, |b, c| b.set_page(c, 2, 0xff).unwrap()));
        assert_eq!(page, Some((Some(3), "attention")), "{knobs:?}");
    }
    // on CUDA one launch computes all between two projections of a decode step, or a whole layer
    let Some(gpu) = device() else { return };
    if !on_a_device() {
        knobs.remove(1);
    }
    for knobs in &knobs {
        let cuda = || Cuda::new(gpu.clone(), &tiny().config, Options::default()).unwrap();
        assert_eq!(seen(cuda(), knobs, |_, _| ()), [None, None]);
        let recurrent = blamed(seen(cuda(), knobs, |b, c| dirty(b, c, 5)));
        assert_eq!(recurrent, Some((Some(0), "gated_norm")), "{knobs:?}");
        let page = blamed(seen(cuda(), knobs, |b, c| b.set_page(c, 2, 0xff).unwrap()));
        assert_eq!(page, Some((Some(3), "attention")), "{knobs:?}");
    }
}

#[test]
fn a_watched_device_gives_the_same_bits_and_finds_nothing() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, if on_a_device() { 20 } else { 2 });
    let mut configs = on_every_path(&four_seats(None));
    if !on_a_device() {
        configs.drain(..2);
    }
    for config in configs {
        let on_device = |config: EngineConfig| {
            let backend = Cuda::new(gpu.clone(), &checkpoint.config, Options::default()).unwrap();
            run_on(backend, &checkpoint, config, &prompts, &greedy(4))
        };
        let watched = on_device(EngineConfig { trace_nonfinite: true, poison: true, ..config.clone() });
        assert_eq!(watched.findings, []);
        assert_eq!(watched.fingerprints(), on_device(config).fingerprints());
    }
}

#[test]
fn a_trace_says_which_path_each_layer_took_what_was_zeroed_and_where_everything_lay() {
    let paths = [("paged", 0, 0), ("lite", 0, 1), ("coop", 1, 1)];
    for (config, (path, wo, mlp)) in on_every_path(&four_seats(None)).into_iter().zip(paths) {
        let page_bytes = {
            let c = tiny().config;
            2 * 16 * c.full_attention_layers().len() * c.num_key_value_heads * c.head_dim * 4
        };
        assert_eq!(eight_replies(config.clone()).traces, []);
        let run = eight_replies(EngineConfig { trace_requests: true, ..config });
        let mut traces: Vec<_> = run.traces.iter().collect();
        traces.sort_by_key(|t| t.ordinal);
        assert_eq!(traces.iter().map(|t| t.ordinal).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        for (t, o) in traces.iter().zip(&run.outputs) {
            assert_eq!((t.slot, t.epoch, &t.kv_pages), (o.slot, o.epoch, &o.pages));
            assert_eq!((&t.fingerprint, t.finish_reason), (&o.fingerprint, Some(o.finish_reason)));
            // the first of twelve tokens comes from prefill
            assert_eq!((t.steps["decode"], t.active_tokens.values().sum::<u64>()), (11, 11), "{path}");
            let far = t.kv_pages.iter().map(|page| u64::from(*page) * page_bytes as u64);
            assert!(t.page_offsets.iter().copied().eq(far), "{t:?}");
            assert_eq!(t.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [3, 7, 11]);
            for l in &t.layers {
                assert_eq!(l.paths, [(path.to_owned(), 11)].into());
                let zeroed = [("wo_output".to_owned(), wo * 11), ("mlp_partial".to_owned(), mlp * 11)];
                assert_eq!(l.resets, (mlp > 0).then(|| zeroed.into()), "{path}");
                assert_eq!(l.buffers.len(), if path == "paged" { 0 } else { 4 });
            }
            assert_eq!(t.slots_free + t.slots_used, 4);
            assert!(t.buffers["kv"].starts_with("0x") && t.buffers["kv"] == traces[0].buffers["kv"]);
        }
        assert_eq!((traces[0].slots_free, traces[0].slots_used, traces[0].pages_used), (3, 1, 0));
        assert_eq!(traces[0].slot, traces[4].slot, "the first slot is the fifth's again");
        assert_eq!(traces[0].buffers, traces[4].buffers);
        assert_ne!(traces[0].buffers, traces[1].buffers, "each slot has a place of its own");
    }
}

#[test]
fn a_reset_that_was_skipped_is_missing_in_the_trace() {
    let run = eight_replies(EngineConfig { trace_requests: true, ..four_seats(Some(Fault::SkipWoReset)) });
    let resets = run.traces[0].layers[0].resets.clone().unwrap();
    assert_eq!((resets["wo_output"], resets["mlp_partial"]), (0, 11));
}

#[test]
fn sums_that_start_from_what_was_left_there_show_as_nan_under_poison() {
    let poisoned =
        |fault| eight_replies(EngineConfig { poison: true, trace_nonfinite: true, ..four_seats(fault) });
    assert_eq!(poisoned(None).findings, []);
    let run = poisoned(Some(Fault::SkipWoReset));
    let first = named(&run, "nonfinite_value")[0];
    assert_eq!((first.layer, first.data["phase"].as_str()), (Some(3), Some("o_proj")), "{first:?}");
    assert!(run.outputs.iter().all(|o| o.finish_reason == FinishReason::Error && o.token_ids.len() == 1));
}

fn guarded(guards: &[Guard], fault: Option<Fault>) -> Run {
    let guards: Guards = guards.iter().copied().collect();
    eight_replies(EngineConfig { guards, unguarded: false, ..four_seats(fault) })
}

#[test]
fn the_slot_and_the_page_that_are_nobodys_keep_their_pattern_unless_somebody_writes_there() {
    for kv_dtype in KvDtype::ALL {
        let guards = [Guard::Slot0].into_iter().collect();
        let run = eight_replies(EngineConfig { guards, kv_dtype, ..four_seats(None) });
        assert_eq!(run.findings, [], "{kv_dtype:?}");
    }
    let run = guarded(&[Guard::Slot0], Some(Fault::PadRowSlot0));
    let checks: Vec<&str> = run.findings.iter().map(|f| f.check.as_str()).collect();
    assert_eq!(checks, ["reserved_slot_written", "reserved_page_written"]);
    assert_eq!((&run.findings[0].data["slot"], &run.findings[1].data["page"]), (&0.into(), &0.into()));
}

#[test]
fn a_warm_up_on_live_slots_is_found_with_whose_they_are() {
    assert_eq!(guarded(&[Guard::Capture], None).findings, []);
    let run = guarded(&[Guard::Capture], Some(Fault::CaptureLiveSlot));
    let found = named(&run, "capture_wrote_live_state");
    assert_eq!(found.len(), run.findings.len());
    let first = found.first().expect("the warm-up of the first size");
    assert_eq!((first.ordinal, &first.data["slot"], &first.data["step"]), (Some(0), &1.into(), &1.into()));
    assert_eq!(first.data["during"], "warming up");
}

/// A device whose recordings run while they are made.
struct Careless(Arc<dyn Gpu>);

impl Gpu for Careless {
    fn name(&self) -> String {
        self.0.name()
    }
    fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors()
    }
    fn shared_memory(&self) -> u32 {
        self.0.shared_memory()
    }
    fn wgmma(&self) -> bool {
        self.0.wgmma()
    }
    fn memory(&self) -> Result<(u64, u64), Error> {
        self.0.memory()
    }
    fn alloc(&self, bytes: usize) -> Result<Ptr, Error> {
        self.0.alloc(bytes)
    }
    fn free(&self, at: Ptr) -> Result<(), Error> {
        self.0.free(at)
    }
    fn upload(&self, to: Ptr, from: &[u8]) -> Result<(), Error> {
        self.0.upload(to, from)
    }
    fn download(&self, to: &mut [u8], from: Ptr) -> Result<(), Error> {
        self.0.download(to, from)
    }
    fn copy(&self, to: Ptr, from: Ptr, bytes: usize) -> Result<(), Error> {
        self.0.copy(to, from, bytes)
    }
    fn fill(&self, to: Ptr, byte: u8, bytes: usize) -> Result<(), Error> {
        self.0.fill(to, byte, bytes)
    }
    fn compile(&self, units: &[Unit]) -> Result<(), Error> {
        self.0.compile(units)
    }
    fn kernel(&self, unit: &Unit, name: &str, smem: u32) -> Result<Kernel, Error> {
        self.0.kernel(unit, name, smem)
    }
    fn occupancy(&self, kernel: Kernel, block: u32, smem: u32) -> Result<u32, Error> {
        self.0.occupancy(kernel, block, smem)
    }
    fn launch(&self, kernel: Kernel, launch: Launch, args: &[Arg]) -> Result<(), Error> {
        self.0.launch(kernel, launch, args)
    }
    fn begin_capture(&self) -> Result<(), Error> {
        self.0.begin_capture()
    }
    fn end_capture(&self, keep: bool) -> Result<Option<Graph>, Error> {
        let graph = self.0.end_capture(keep)?;
        graph.map_or(Ok(()), |graph| self.0.replay(graph))?;
        Ok(graph)
    }
    fn replay(&self, graph: Graph) -> Result<(), Error> {
        self.0.replay(graph)
    }
    fn drop_graph(&self, graph: Graph) -> Result<(), Error> {
        self.0.drop_graph(graph)
    }
    fn synchronize(&self) -> Result<(), Error> {
        self.0.synchronize()
    }
    fn mark(&self) -> Result<Mark, Error> {
        self.0.mark()
    }
    fn elapsed(&self, from: Mark, to: Mark) -> Result<f32, Error> {
        self.0.elapsed(from, to)
    }
}

#[test]
fn a_recording_that_runs_on_live_slots_is_found_on_a_device_and_a_sound_one_is_not() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 2);
    let guards: Guards = [Guard::Capture, Guard::Slot0].into_iter().collect();
    let on = |gpu: Arc<dyn Gpu>, fault| {
        let backend = Cuda::new(gpu, &checkpoint.config, Options::default()).unwrap();
        let config = EngineConfig { guards, unguarded: false, ..four_seats(fault) };
        run_on(backend, &checkpoint, config, &prompts, &greedy(5))
    };
    assert_eq!(on(gpu.clone(), None).findings, []);
    let warm = on(gpu.clone(), Some(Fault::CaptureLiveSlot));
    let found = named(&warm, "capture_wrote_live_state");
    let first = found.first().expect("the warm-up of the first size");
    assert_eq!((&first.data["slot"], &first.data["during"]), (&1.into(), &"warming up".into()));
    let run = on(Arc::new(Careless(gpu)), None);
    let entries: Vec<_> = run.findings.iter().map(|f| (f.check.as_str(), f.data.get("slot"))).collect();
    let slot = |n: u32| ("capture_wrote_live_state", Some(n.into()));
    let slots = [slot(1), slot(2)];
    for (check, n) in slots {
        assert!(entries.contains(&(check, n.as_ref())), "{n:?}: {entries:?}");
    }
    assert!(run.findings.iter().all(|f| f.data["during"] == "recording" && f.ordinal.is_some()));
}

#[test]
fn on_a_device_the_pattern_of_what_is_nobodys_is_seen_to_change() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let backend = Cuda::new(gpu, &checkpoint.config, Options::default()).unwrap();
    let shape = CacheShape {
        num_pages: 3,
        page_size: 16,
        kv_dtype: KvDtype::Bf16,
        num_slots: 3,
        max_rows: 4,
        max_len: 32,
    };
    let mut cache = backend.cache(&checkpoint.config, shape).unwrap();
    assert!(backend.slot_is_zero(&cache, 0).unwrap() && backend.page_holds(&cache, 0, 0).unwrap());
    backend.set_slot(&mut cache, 0, 0xca).unwrap();
    backend.set_page(&mut cache, 0, 0xca).unwrap();
    assert!(backend.slot_holds(&cache, 0, 0xca).unwrap() && backend.page_holds(&cache, 0, 0xca).unwrap());
    assert!(backend.slot_is_zero(&cache, 1).unwrap() && backend.page_holds(&cache, 1, 0).unwrap());
    let mut i = 0;
    let mut one_zero = || {
        i += 1;
        if i == 70 { 0.0 } else { f32::from_bits(0xcaca_caca) }
    };
    backend.fill_slot(&mut cache, 0, &mut one_zero).unwrap();
    assert!(!backend.slot_holds(&cache, 0, 0xca).unwrap(), "one value of it is zero");
    backend.set_page(&mut cache, 0, 0).unwrap();
    assert!(!backend.page_holds(&cache, 0, 0xca).unwrap());
}
