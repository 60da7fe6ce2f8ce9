//! The engine against another implementation: logits and greedy continuations made by transformers.

mod common;

use common::{expected, format_models, golden_models, greedy, logits, root, run, tiny};
use cute_checkpoint::Checkpoint;
use cute_engine::EngineConfig;
use cute_engine::backend::Cpu;
use std::path::PathBuf;

/// f32 against f32 in another order of summation; logits have a standard deviation of about 2.
const TOLERANCE: f32 = 1e-4;

/// All models with golden logits.
fn models() -> Vec<PathBuf> {
    let all = [golden_models(), format_models()].concat();
    assert!(all.len() >= 15, "golden models are missing: {all:?}");
    all
}

#[test]
fn logits_agree_with_transformers_on_every_golden_model() {
    for dir in models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let ours = logits(&Cpu::default(), &checkpoint, &e, &[]);
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
    for dir in models() {
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let e = expected(&dir);
        let whole: Vec<u32> =
            logits(&Cpu::default(), &checkpoint, &e, &[]).into_iter().map(f32::to_bits).collect();
        let every: Vec<usize> = (1..e.input_ids.len()).collect();
        for cuts in [&[1][..], &[2, 5, 37], &[63, 64, 65, 128], &[149], &every] {
            let cut: Vec<u32> =
                logits(&Cpu::default(), &checkpoint, &e, cuts).into_iter().map(f32::to_bits).collect();
            assert!(whole == cut, "{} cut at {cuts:?}", dir.display());
        }
    }
}

#[test]
fn greedy_continuations_are_identical_on_every_golden_model() {
    for dir in models() {
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
