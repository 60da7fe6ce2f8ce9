//! Decode and prefill of the trained model on the CPU: tokens a second, alone and in batches.
//!
//! `cargo bench -p cute-engine --bench decode`; docs/PERFORMANCE.md quotes it.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use cute_checkpoint::Checkpoint;
use cute_engine::backend::Cpu;
use cute_engine::{Engine, EngineConfig, Knobs, Request, SamplingParams};
use std::path::Path;

const PROMPT: usize = 48;
const NEW: usize = 64;

/// An engine whose `n` sequences have all finished prefill.
fn started(checkpoint: &Checkpoint, n: usize, fusion: bool) -> Engine<Cpu> {
    let knobs = Knobs { fusion, dispatch_log: false, ..Knobs::default() };
    let config = EngineConfig {
        max_num_seqs: n,
        max_num_batched_tokens: n * PROMPT,
        knobs,
        ..EngineConfig::default()
    };
    let mut engine =
        Engine::new(Cpu::default(), checkpoint, None, config, Box::new(|_| ())).expect("an engine");
    for ordinal in 0..n as u64 {
        let prompt = (0..PROMPT as u32).map(|i| 32 + (i * 7 + ordinal as u32) % 600).collect();
        let params = SamplingParams { max_tokens: NEW + 1, ignore_eos: true, ..SamplingParams::default() };
        engine.add(Request { id: String::new(), ordinal, prompt, params }).expect("a request");
    }
    rayon::scope(|_| engine.step(&mut |_| ())).expect("prefill");
    engine
}

fn decode(c: &mut Criterion) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-hybrid");
    let checkpoint = Checkpoint::open(&dir).expect("examples/tiny-hybrid");
    let mut group = c.benchmark_group("decode");
    group.sample_size(20);
    for (path, fusion) in [("coop", true), ("paged", false)] {
        for n in [1, 8] {
            group.throughput(Throughput::Elements((n * NEW) as u64));
            group.bench_function(BenchmarkId::new(path, n), |b| {
                let run = |mut engine: Engine<Cpu>| {
                    rayon::scope(|_| while engine.step(&mut |_| ()).expect("a step") {})
                };
                b.iter_batched(|| started(&checkpoint, n, fusion), run, BatchSize::PerIteration);
            });
        }
    }
    group.finish();
    let mut group = c.benchmark_group("prefill");
    group.sample_size(20);
    group.throughput(Throughput::Elements(8 * PROMPT as u64));
    group.bench_function("8x48", |b| b.iter_with_large_drop(|| started(&checkpoint, 8, true)));
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
