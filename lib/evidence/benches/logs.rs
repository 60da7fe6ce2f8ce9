//! Throughput of the log scanner on generated logs: every line a record, and nine lines of ten unknown.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use cute_evidence::logs::{self, EventRef, PackSet, Sink};
use cute_records::{Record, WriteError};
use std::hint::black_box;

/// Writes events as JSON into memory, as the tool does, and forgets them.
struct Discard(Vec<u8>);

impl Sink for Discard {
    fn record(&mut self, record: Record) -> Result<(), WriteError> {
        black_box(record);
        Ok(())
    }
    fn event(&mut self, event: &EventRef<'_>) -> Result<(), WriteError> {
        self.0.clear();
        event.write_json(&mut self.0);
        black_box(&self.0);
        Ok(())
    }
}

/// A log of about `bytes`: one line in `every` is one the tables know.
fn log(bytes: usize, every: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 300);
    let mut i = 0u64;
    while out.len() < bytes {
        let (m, s) = (i / 60 % 60, i % 60);
        let line = if i.is_multiple_of(every) {
            format!(
                "(APIServer pid=1) INFO 05-10 20:{m:02}:{s:02} [loggers.py:259] Engine 000: Avg prompt throughput: {}.{} tokens/s, \
                 Avg generation throughput: 1.7 tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 0.5%, \
                 Prefix cache hit rate: 0.0%\n",
                i % 90,
                i % 10
            )
        } else {
            format!(
                "(EngineCore pid=146) DEBUG 05-10 20:{m:02}:{s:02} [scheduler.py:{}] step {i} scheduled {{'cmpl-{:032x}': 1}} \
                 running {} budget left {}\n",
                i % 900,
                u128::from(i).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_0C5D),
                i % 4,
                65536 - i % 60000
            )
        };
        out.extend_from_slice(line.as_bytes());
        i += 1;
    }
    out
}

fn scan(c: &mut Criterion) {
    let Ok(packs) = PackSet::auto() else { return };
    let mut group = c.benchmark_group("extract");
    for (name, every) in [("every line an event", 1), ("one line in ten an event", 10)] {
        let log = log(32 << 20, every);
        group.throughput(Throughput::Bytes(log.len() as u64)).sample_size(10);
        group.bench_function(name, |b| {
            b.iter_batched(
                || Discard(Vec::new()),
                |mut sink| logs::extract("bench", &log[..], &packs, &mut sink),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, scan);
criterion_main!(benches);
