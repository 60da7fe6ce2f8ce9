//! The CUDA backend against transformers and against the CPU, on a device: the one that `CUTE_TEST_DEVICE` names
//! (`cuda:0`), else an emulated one that runs the same kernels on the host.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::{
    Expected, Run, engine_on, expected, golden_models, greedy, logits, problems, run, run_on, tiny,
};
use cute_checkpoint::Checkpoint;
use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::layouts::Layouts;
use cute_engine::backend::cuda::{Cuda, Emulated, Options, Settings};
use cute_engine::backend::{Cpu, KvDtype};
use cute_engine::guard::Guard;
use cute_engine::knobs::PathKnob;
use cute_engine::{Engine, EngineConfig, Request, SamplingParams};
use std::path::PathBuf;
use std::sync::Arc;
use testing::{device, on_a_device};

/// x is split into two bf16, which keeps 16 of its 24 bits; logits have a standard deviation of about 2.
const TOLERANCE: f32 = 1e-3;

/// The golden models: all of them, or three that differ most.
fn models() -> Vec<PathBuf> {
    let chosen = ["bf16", "head-256", "odd-sizes"];
    let keep =
        |dir: &PathBuf| on_a_device() || dir.file_name().is_some_and(|n| chosen.iter().any(|c| n == *c));
    golden_models().into_iter().filter(keep).collect()
}

fn cuda(gpu: &Arc<dyn Gpu>, checkpoint: &Checkpoint, options: Options) -> Cuda {
    let backend = Cuda::new(gpu.clone(), &checkpoint.config, options).unwrap();
    if on_a_device() {
        backend.compile_ahead(&checkpoint.config, &Layouts::of(checkpoint)).unwrap();
    }
    backend
}

fn agree(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{name}: largest difference {worst:e}");
    assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < TOLERANCE), "{name}: {worst}");
}

/// Every configuration of the paths of a decode step.
fn paths() -> Vec<(String, EngineConfig)> {
    let base = EngineConfig { max_model_len: 256, max_num_seqs: 4, ..EngineConfig::default() };
    let with = |name: String, f: &dyn Fn(&mut EngineConfig)| {
        let mut config = base.clone();
        f(&mut config);
        (name, config)
    };
    let mut all = vec![
        with("paged".into(), &|c| c.knobs.fusion = false),
        with("lite".into(), &|c| c.knobs.path = PathKnob::Lite),
    ];
    for split in [1, 2, 4, 8] {
        all.push(with(format!("coop {split}"), &|c| {
            c.knobs.path = PathKnob::Coop;
            c.knobs.wo_split = split;
        }));
    }
    all.push(with("coop, gated delta net too".into(), &|c| {
        c.knobs.path = PathKnob::Coop;
        c.knobs.coop_gdn = true;
    }));
    all
}

#[test]
fn prefill_logits_agree_with_transformers_on_every_golden_model() {
    let Some(gpu) = device() else { return };
    for dir in models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let backend = cuda(&gpu, &checkpoint, Options::default());
        agree(&dir.display().to_string(), &logits(&backend, &checkpoint, &e, &[]), &e.logits);
    }
}

#[test]
fn a_prompt_is_computed_in_little_shared_memory() {
    // as on sm_120; heads of 256 need most
    let settings = Settings { shared_memory: 101_376, ..Settings::default() };
    let Ok(gpu) = Emulated::new(settings).map(|d| Arc::new(d) as Arc<dyn Gpu>) else { return };
    let dir = golden_models().into_iter().find(|dir| dir.ends_with("head-256")).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let e = expected(&dir);
    let backend = Cuda::new(gpu, &checkpoint.config, Options::default()).unwrap();
    agree("head-256", &logits(&backend, &checkpoint, &e, &[70]), &e.logits);
}

#[test]
fn chunked_prefill_logits_agree_with_transformers_and_do_not_depend_on_cuts_at_multiples_of_64() {
    let Some(gpu) = device() else { return };
    for dir in models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let of = |cuts: &[usize]| {
            let options = Options { gdn_chunked: true, ..Options::default() };
            logits(&cuda(&gpu, &checkpoint, options), &checkpoint, &e, cuts)
        };
        let whole = of(&[]);
        agree(&dir.display().to_string(), &whole, &e.logits);
        for cuts in [&[64][..], &[64, 128]] {
            let same = whole.iter().zip(of(cuts)).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} cut at {cuts:?}", dir.display());
        }
    }
}

#[test]
fn the_scheduler_cuts_prompts_where_the_backend_may_be_cut() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let options = Options { gdn_chunked: true, ..Options::default() };
    let prompt: Vec<u32> = problems(&checkpoint, 9).concat().into_iter().take(150).collect();
    let prompts = [prompt[..140].to_vec(), prompt[..3].to_vec(), prompt];
    let whole = EngineConfig { max_num_batched_tokens: 512, ..EngineConfig::default() };
    let expected = fingerprints(&gpu, options, whole.clone(), &prompts);
    for tokens in [64, 100, 130] {
        let config = EngineConfig { max_num_batched_tokens: tokens, ..whole.clone() };
        assert_eq!(fingerprints(&gpu, options, config, &prompts), expected, "{tokens} tokens a step");
    }
    let config = EngineConfig { max_num_batched_tokens: 63, ..whole };
    let backend = cuda(&gpu, &checkpoint, options);
    let Err(error) = Engine::new(backend, &checkpoint, None, config, Box::new(|_| ())) else {
        panic!("63 tokens a step were not refused");
    };
    let error = error.to_string();
    assert!(error.contains("--max-num-batched-tokens 63") && error.contains("multiples of 64"), "{error}");
}

#[test]
fn a_prompt_cut_anywhere_gives_the_same_bits() {
    let Some(gpu) = device() else { return };
    for dir in models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let bits = |cuts: &[usize]| -> Vec<u32> {
            let backend = cuda(&gpu, &checkpoint, Options::default());
            logits(&backend, &checkpoint, &e, cuts).into_iter().map(f32::to_bits).collect()
        };
        let whole = bits(&[]);
        for cuts in [&[1][..], &[2, 5, 37], &[63, 64, 65, 128], &[149]] {
            assert!(whole == bits(cuts), "{} cut at {cuts:?}", dir.display());
        }
    }
}

#[test]
fn every_path_continues_as_transformers_does() {
    let Some(gpu) = device() else { return };
    for dir in models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let Expected { input_ids, greedy_ids, .. } = expected(&dir);
        for (name, config) in paths() {
            let backend = cuda(&gpu, &checkpoint, Options::default());
            let run = run_on(
                backend,
                &checkpoint,
                config.clone(),
                std::slice::from_ref(&input_ids),
                &greedy(greedy_ids.len()),
            );
            assert_eq!(run.outputs[0].token_ids, greedy_ids, "{} on {name}", dir.display());
            let intended = if config.knobs.fusion { name.split(' ').next().unwrap() } else { "paged" };
            let outcome = format!("outcome={intended}").replace("coop,", "coop");
            assert!(run.log.iter().all(|l| l.contains(&outcome)) && !run.log.is_empty(), "{:?}", run.log);
        }
    }
}

fn fingerprints(
    gpu: &Arc<dyn Gpu>,
    options: Options,
    config: EngineConfig,
    prompts: &[Vec<u32>],
) -> Vec<String> {
    let checkpoint = tiny();
    run_on(cuda(gpu, &checkpoint, options), &checkpoint, config, prompts, &greedy(6)).fingerprints()
}

#[test]
fn a_result_depends_neither_on_neighbours_nor_on_graphs_nor_on_overlap() {
    let Some(gpu) = device() else { return };
    let prompts = problems(&tiny(), if on_a_device() { 20 } else { 3 });
    let some =
        |(name, _): &(String, EngineConfig)| on_a_device() || ["paged", "coop 4"].contains(&name.as_str());
    for (name, config) in paths().into_iter().filter(some) {
        let alone = EngineConfig { max_num_seqs: 1, ..config.clone() };
        let expected = fingerprints(&gpu, Options::default(), alone, &prompts);
        let eager = Options { graphs: false, overlap: false, ..Options::default() };
        for (how, options, config) in [
            ("in a batch of four", Options::default(), config.clone()),
            (
                "in a batch of five, chunks of 7",
                Options::default(),
                EngineConfig { max_num_seqs: 5, max_num_batched_tokens: 7, page_size: 16, ..config.clone() },
            ),
            ("eagerly", eager, config),
        ] {
            assert_eq!(fingerprints(&gpu, options, config, &prompts), expected, "{name}, {how}");
        }
    }
}

/// Eager, recorded and replayed steps alike write what their own sequences have, and read what was written for them.
#[test]
fn guards_are_silent_over_recorded_steps_and_poison_changes_no_bit() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, if on_a_device() { 20 } else { 3 });
    let some =
        |(name, _): &(String, EngineConfig)| on_a_device() || ["paged", "coop 4"].contains(&name.as_str());
    for (name, config) in paths().into_iter().filter(some) {
        let config = EngineConfig { max_num_seqs: 2, page_size: 16, max_model_len: 128, ..config };
        let plain = fingerprints(&gpu, Options::default(), config.clone(), &prompts);
        let guards = [Guard::Rows(1), Guard::Slot0, Guard::Capture].into_iter().collect();
        let watched = EngineConfig { guards, poison: true, ..config };
        let backend = cuda(&gpu, &checkpoint, Options::default());
        let run = run_on(backend, &checkpoint, watched, &prompts, &greedy(6));
        assert_eq!(run.findings, [], "{name}");
        assert_eq!(run.fingerprints(), plain, "{name}");
    }
}

#[test]
fn the_tiny_model_answers_as_on_the_cpu() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let count = if on_a_device() { 50 } else { 1 };
    let prompts = problems(&checkpoint, count);
    let params = SamplingParams::default();
    let ids = |run: Run| -> Vec<Vec<u32>> { run.outputs.into_iter().map(|o| o.token_ids).collect() };
    let some = |(name, _): &(String, EngineConfig)| on_a_device() || name.contains("too");
    for (name, config) in paths().into_iter().filter(some) {
        let config = EngineConfig { max_model_len: 512, ..config };
        let here = ids(run_on(
            cuda(&gpu, &checkpoint, Options::default()),
            &checkpoint,
            config.clone(),
            &prompts,
            &params,
        ));
        assert_eq!(here, ids(run(&checkpoint, config, &prompts, &params)), "{name}");
    }
}

#[test]
fn a_narrow_cache_agrees_with_the_cpu() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let prompts = problems(&checkpoint, 2);
    for kv_dtype in [KvDtype::Bf16, KvDtype::Fp8E4m3] {
        let config = EngineConfig { kv_dtype, ..EngineConfig::default() };
        let params = SamplingParams { logprobs: 3, ..greedy(12) };
        let backend = cuda(&gpu, &checkpoint, Options::default());
        let here = run_on(backend, &checkpoint, config.clone(), &prompts, &params);
        let there = run_on(Cpu::default(), &checkpoint, config, &prompts, &params);
        for (a, b) in here.outputs.iter().zip(&there.outputs) {
            assert_eq!(a.token_ids, b.token_ids, "{kv_dtype:?}");
            for (x, y) in a.logprobs.iter().flatten().zip(b.logprobs.iter().flatten()) {
                // a key that rounds the other way on one side moves a score by a step of its dtype
                assert!((x.logprob.0 - y.logprob.0).abs() < 0.05, "{kv_dtype:?}: {x:?} {y:?}");
            }
        }
    }
}

#[test]
fn phases_of_cooperative_launches_are_timed_when_asked() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let mut config = EngineConfig::default();
    config.knobs.path = PathKnob::Coop;
    config.knobs.region_timing = true;
    config.knobs.wo_split = 2;
    let backend = cuda(&gpu, &checkpoint, Options::default());
    let (mut engine, _) = engine_on(backend, &checkpoint, config);
    let prompt = problems(&checkpoint, 1).remove(0);
    engine.add(Request { id: "a".into(), ordinal: 0, prompt, params: greedy(4) }).unwrap();
    while engine.step(&mut |_| ()).unwrap() {}
    let regions: Vec<_> = engine.regions().collect();
    assert_eq!(regions.len(), 3, "a full-attention layer each");
    for (layer, r) in regions {
        assert_eq!(r.launches, 3, "layer {layer}: one a decode step");
        for (spent, busy) in r.spent.iter().zip(r.busy) {
            assert!(!spent.is_zero() && busy <= *spent, "layer {layer}: {r:?}");
        }
    }
}

#[test]
fn a_thousand_steps_give_the_same_bits_twice_with_poisoned_workspaces() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let steps = if on_a_device() { 1000 } else { 12 };
    let config = EngineConfig { max_model_len: 1200, ..paths().remove(6).1 };
    let prompts = problems(&checkpoint, 2);
    let run = |poison: u8| {
        let backend = cuda(&gpu, &checkpoint, Options::default());
        backend.poison(poison).unwrap();
        run_on(backend, &checkpoint, config.clone(), &prompts, &greedy(steps)).fingerprints()
    };
    let first = run(0xff);
    assert_eq!(run(0x7f), first);
}

#[test]
fn a_batch_that_no_fused_launch_takes_runs_on_the_paged_path_and_says_so() {
    let Some(gpu) = device() else { return };
    let checkpoint = Checkpoint::open(&models().remove(0)).unwrap();
    let mut config = EngineConfig { max_num_seqs: 17, max_model_len: 64, ..EngineConfig::default() };
    config.knobs.coop_gdn = true;
    let prompts: Vec<Vec<u32>> = (0..17).map(|i| vec![i + 1, 5]).collect();
    let backend = cuda(&gpu, &checkpoint, Options::default());
    let here = run_on(backend, &checkpoint, config.clone(), &prompts, &greedy(3));
    assert!(
        here.log.iter().any(|l| l.contains("outcome=paged reason=batch_exceeds_workspace")),
        "{:?}",
        here.log
    );
    let there = run(&checkpoint, config, &prompts, &greedy(3));
    for (a, b) in here.outputs.iter().zip(&there.outputs) {
        assert_eq!(a.token_ids, b.token_ids);
    }
}
