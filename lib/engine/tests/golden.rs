//! The engine against another implementation: logits and greedy continuations made by transformers.

mod common;

use common::{golden_models, greedy, root, run, tiny};
use cute_checkpoint::Checkpoint;
use cute_engine::backend::{Backend, CacheShape, Cpu, KvDtype};
use cute_engine::batch::{Batch, BatchKind, Segment};
use cute_engine::dispatch::Dispatcher;
use cute_engine::model::{Model, Scratch};
use cute_engine::{EngineConfig, Knobs};
use safetensors::SafeTensors;
use std::path::Path;

/// f32 against f32 in another order of summation; logits have a standard deviation of about 2.
const TOLERANCE: f32 = 1e-4;

fn i64s(file: &SafeTensors<'_>, name: &str) -> Vec<usize> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let data = file.tensor(name).unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

struct Expected {
    input_ids: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<f32>,
    greedy_ids: Vec<u32>,
}

fn expected(dir: &Path) -> Expected {
    let bytes = std::fs::read(dir.with_extension("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name| i64s(&file, name).into_iter().map(|i| i as u32).collect();
    Expected {
        input_ids: ids("input_ids"),
        positions: i64s(&file, "positions"),
        logits: f32s(&file, "logits"),
        greedy_ids: ids("greedy_ids"),
    }
}

/// Logits of the wanted positions, the prompt cut after each of `cuts`.
fn logits(checkpoint: &Checkpoint, e: &Expected, cuts: &[usize]) -> Vec<f32> {
    let cpu = Cpu::default();
    let len = e.input_ids.len();
    let model = Model::load(&cpu, checkpoint, len).unwrap();
    let shape = CacheShape { num_pages: 8, page_size: 64, kv_dtype: KvDtype::F32, num_slots: 2 };
    let mut cache = cpu.cache(&checkpoint.config, shape).unwrap();
    let mut scratch = Scratch::new(&cpu, &checkpoint.config, len, len).unwrap();
    let mut dispatcher =
        Dispatcher::new(&cpu, &checkpoint.config, Knobs::default(), 1, None, Box::new(|_| ())).unwrap();
    let mut all = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([len]) {
        let wanted = e.positions.iter().filter(|p| (start..end).contains(*p));
        let batch = Batch {
            kind: BatchKind::Prefill,
            tokens: e.input_ids[start..end].to_vec(),
            segments: vec![Segment {
                owner: 0,
                slot: 1,
                epoch: 1,
                pages: vec![5, 2, 7],
                start,
                row: 0,
                len: end - start,
            }],
            logit_rows: wanted.map(|p| p - start).collect(),
        };
        let top = model.forward(&cpu, &batch, &mut cache, &mut scratch, &mut dispatcher).unwrap();
        all.extend(cpu.read(&scratch.logits, top.len()).unwrap());
        start = end;
    }
    all
}

#[test]
fn logits_agree_with_transformers_on_every_golden_model() {
    for dir in golden_models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let ours = logits(&checkpoint, &e, &[]);
        assert_eq!(ours.len(), e.logits.len(), "{}", dir.display());
        for (i, (a, b)) in ours.iter().zip(&e.logits).enumerate() {
            let position = e.positions[i / checkpoint.config.vocab_size];
            assert!(
                (a - b).abs() < TOLERANCE,
                "{}: position {position}, logit {i}: {a} against {b}",
                dir.display()
            );
        }
    }
}

#[test]
fn a_prompt_cut_anywhere_gives_the_same_bits() {
    for dir in golden_models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let whole: Vec<u32> = logits(&checkpoint, &e, &[]).into_iter().map(f32::to_bits).collect();
        let every: Vec<usize> = (1..e.input_ids.len()).collect();
        for cuts in [&[1][..], &[2, 5, 37], &[63, 64, 65, 128], &[149], &every] {
            let cut: Vec<u32> = logits(&checkpoint, &e, cuts).into_iter().map(f32::to_bits).collect();
            assert!(whole == cut, "{} cut at {cuts:?}", dir.display());
        }
    }
}

#[test]
fn greedy_continuations_are_identical_on_every_golden_model() {
    for dir in golden_models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let config = EngineConfig { max_model_len: 256, ..EngineConfig::default() };
        let run = run(&checkpoint, config, std::slice::from_ref(&e.input_ids), &greedy(e.greedy_ids.len()));
        assert_eq!(run.outputs[0].token_ids, e.greedy_ids, "{}", dir.display());
    }
}

#[test]
fn the_trained_model_answers_as_it_does_in_transformers() {
    let text = std::fs::read_to_string(root().join("tests/golden/tiny-hybrid.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ids = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
    };
    let traces = golden["traces"].as_array().unwrap();
    let prompts: Vec<Vec<u32>> = traces.iter().map(|t| ids(&t["prompt_ids"])).collect();
    let mut params = greedy(112);
    params.ignore_eos = false;
    let run = run(&tiny(), EngineConfig::default(), &prompts, &params);
    assert_eq!(run.outputs.len(), traces.len());
    for output in &run.outputs {
        let trace = &traces[output.request.ordinal as usize];
        assert_eq!(output.token_ids, ids(&trace["greedy_ids"]), "problem {}", trace["index"]);
        assert_eq!(output.text.as_deref(), trace["text"].as_str());
    }
}
