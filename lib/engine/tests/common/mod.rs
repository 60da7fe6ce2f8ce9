//! What the engine's tests share: paths, engines and runs.
#![allow(dead_code)] // each test binary uses a part

use cute_checkpoint::{Checkpoint, Tokenizer};
use cute_engine::backend::{Backend, CacheShape, Cpu, KvDtype};
use cute_engine::batch::{Batch, BatchKind, Segment};
use cute_engine::dispatch::Dispatcher;
use cute_engine::model::{Model, Scratch};
use cute_engine::{Engine, EngineConfig, Event, Fault, Knobs, Output, Request, SamplingParams};
use cute_records::{Finding, State, Trace};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The random-weight models with golden logits: dense, with plain weights.
pub fn golden_models() -> Vec<PathBuf> {
    models_in("tests/golden")
}

/// The quantised, MoE and qwen3_next models with golden logits.
pub fn format_models() -> Vec<PathBuf> {
    models_in("tests/golden/formats")
}

fn models_in(folder: &str) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root().join(folder))
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
    pub findings: Vec<Finding>,
    pub traces: Vec<Trace>,
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
    let cpu = Cpu { fault: config.fault, ..Cpu::default() };
    engine_on(cpu, checkpoint, config)
}

/// An engine on a backend and its dispatch log.
pub fn engine_on<B: Backend>(
    backend: B,
    checkpoint: &Checkpoint,
    config: EngineConfig,
) -> (Engine<B>, Arc<Mutex<Vec<String>>>) {
    let log = Arc::new(Mutex::new(Vec::new()));
    let sink = log.clone();
    let tokenizer = Tokenizer::open(&checkpoint.dir).unwrap().map(Arc::new);
    let log_sink = Box::new(move |line: &str| sink.lock().unwrap().push(line.to_owned()));
    (Engine::new(backend, checkpoint, tokenizer, config, log_sink).unwrap(), log)
}

/// Runs prompts to their ends.
pub fn run(
    checkpoint: &Checkpoint,
    config: EngineConfig,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
) -> Run {
    let cpu = Cpu { fault: config.fault, ..Cpu::default() };
    run_on(cpu, checkpoint, config, prompts, params)
}

/// Runs prompts to their ends on a backend.
pub fn run_on<B: Backend>(
    backend: B,
    checkpoint: &Checkpoint,
    config: EngineConfig,
    prompts: &[Vec<u32>],
    params: &SamplingParams,
) -> Run {
    let unguarded = config.unguarded;
    let (mut engine, log) = engine_on(backend, checkpoint, config);
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
    let (mut outputs, mut states, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    let mut traces = Vec::new();
    while engine
        .step(&mut |event| match event {
            Event::State(s) => states.push(s),
            Event::Finished(o) => outputs.push(*o),
            Event::Finding(f) => findings.push(f),
            Event::Chunk(_) => {}
            Event::Trace(t) => traces.push(*t),
        })
        .unwrap()
    {}
    if !unguarded {
        engine.scheduler().slots.check().unwrap();
        engine.scheduler().pages.check().unwrap();
    }
    outputs.sort_by_key(|o| o.request.ordinal);
    let log = log.lock().unwrap().clone();
    Run { outputs, states, findings, traces, log }
}

/// What transformers computed for a golden model.
pub struct Expected {
    pub input_ids: Vec<u32>,
    pub positions: Vec<usize>,
    pub logits: Vec<f32>,
    pub greedy_ids: Vec<u32>,
}

/// Reads what transformers computed for the model in `dir`.
pub fn expected(dir: &Path) -> Expected {
    let bytes = std::fs::read(dir.with_extension("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let i64s = |name| -> Vec<usize> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as usize).collect()
    };
    let ids = |name| i64s(name).into_iter().map(|i| i as u32).collect();
    let logits = file.tensor("logits").unwrap().data().to_vec();
    Expected {
        input_ids: ids("input_ids"),
        positions: i64s("positions"),
        logits: logits.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        greedy_ids: ids("greedy_ids"),
    }
}

/// Logits of the wanted positions, the prompt cut after each of `cuts`.
pub fn logits<B: Backend>(backend: &B, checkpoint: &Checkpoint, e: &Expected, cuts: &[usize]) -> Vec<f32> {
    let len = e.input_ids.len();
    let model = Model::load(backend, checkpoint, len).unwrap();
    let shape = CacheShape {
        num_pages: 8,
        page_size: 64,
        kv_dtype: KvDtype::F32,
        num_slots: len,
        max_rows: len,
        max_len: len,
    };
    let mut cache = backend.cache(&checkpoint.config, shape).unwrap();
    let mut scratch = Scratch::new(backend, &checkpoint.config, len, len).unwrap();
    let log = Box::new(|_: &str| ());
    let mut dispatcher =
        Dispatcher::new(backend, &checkpoint.config, Knobs::default(), 1, None, log).unwrap();
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
                page_epochs: vec![1; 3],
                start,
                row: 0,
                len: end - start,
            }],
            logit_rows: wanted.map(|p| p - start).collect(),
        };
        let top = model.forward(backend, &batch, &mut cache, &mut scratch, &mut dispatcher).unwrap();
        all.extend(backend.read(&scratch.logits, top.len()).unwrap());
        start = end;
    }
    all
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

/// A fixed sequence of floats within ±1.
pub fn random_floats(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Four seats and small pages: slots are recycled from the fifth request on, prompts are cut and go together.
pub fn four_seats(fault: Option<Fault>) -> EngineConfig {
    EngineConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 100,
        page_size: 16,
        max_model_len: 128,
        fault,
        unguarded: fault.is_some(),
        ..EngineConfig::default()
    }
}

/// Eight requests on the CPU.
pub fn eight_replies(config: EngineConfig) -> Run {
    let checkpoint = tiny();
    run(&checkpoint, config, &problems(&checkpoint, 8), &greedy(12))
}
