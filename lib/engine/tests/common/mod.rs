//! What the engine's tests share: paths, engines and runs.
#![allow(dead_code)] // each test binary uses a part

use cute_checkpoint::{Checkpoint, Tokenizer};
use cute_engine::backend::Cpu;
use cute_engine::{Engine, EngineConfig, Event, Output, Request, SamplingParams};
use cute_records::State;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The random-weight models with golden logits.
pub fn golden_models() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root().join("tests/golden"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir() && p.with_extension("expected.safetensors").exists())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 4, "golden models are missing: {dirs:?}");
    dirs
}

/// The trained model.
pub fn tiny() -> Checkpoint {
    Checkpoint::open(&root().join("examples/tiny-hybrid")).unwrap()
}

/// Everything a run reports.
pub struct Run {
    pub outputs: Vec<Output>,
    pub states: Vec<State>,
    pub log: Vec<String>,
}

impl Run {
    /// Fingerprints in ordinal order.
    pub fn fingerprints(&self) -> Vec<String> {
        let mut all: Vec<_> =
            self.outputs.iter().map(|o| (o.request.ordinal, o.fingerprint.clone())).collect();
        all.sort();
        all.into_iter().map(|(_, f)| f).collect()
    }
}

/// An engine on the CPU and its dispatch log.
pub fn engine(checkpoint: &Checkpoint, config: EngineConfig) -> (Engine<Cpu>, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    let cpu = Cpu { fault: config.fault, ..Cpu::default() };
    let tokenizer = Tokenizer::open(&checkpoint.dir).unwrap().map(Arc::new);
    let log_sink = Box::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
    (Engine::new(cpu, checkpoint, tokenizer, config, log_sink).unwrap(), log)
}

/// Runs prompts to their ends.
pub fn run(
    checkpoint: &Checkpoint,
    config: EngineConfig,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
) -> Run {
    let (mut engine, log) = engine(checkpoint, config);
    for (i, prompt) in prompts.iter().enumerate() {
        engine
            .add(Request {
                id: i.to_string(),
                ordinal: i as u64,
                prompt: prompt.clone(),
                params: params.clone(),
            })
            .unwrap();
    }
    let (mut outputs, mut states) = (Vec::new(), Vec::new());
    while engine
        .step(&mut |event| match event {
            Event::State(s) => states.push(s),
            Event::Finished(o) => outputs.push(*o),
        })
        .unwrap()
    {}
    engine.scheduler().slots.check().unwrap();
    engine.scheduler().pages.check().unwrap();
    let log = log.lock().unwrap().clone();
    Run { outputs, states, log }
}

/// Sampling that goes on for exactly `n` tokens.
pub fn greedy(n: usize) -> SamplingParams {
    SamplingParams { max_tokens: n, ignore_eos: true, ..SamplingParams::default() }
}

/// Token ids of the first `n` of the fifty problems.
pub fn problems(checkpoint: &Checkpoint, n: usize) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::open(&checkpoint.dir).unwrap().unwrap();
    let text = std::fs::read_to_string(root().join("examples/arith-50.jsonl")).unwrap();
    text.lines()
        .take(n)
        .map(|line| {
            let problem: serde_json::Value = serde_json::from_str(line).unwrap();
            tokenizer
                .encode(&format!("Question: {}\nAnswer:", problem["question"].as_str().unwrap()))
                .unwrap()
        })
        .collect()
}
