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
use cute_engine::backend::cuda::{Cuda, Options};
use cute_engine::backend::{Cpu, KvDtype};
use cute_engine::knobs::PathKnob;
use cute_engine::{EngineConfig, Request, SamplingParams};
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
        backend.compile_ahead(&checkpoint.config).unwrap();
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
