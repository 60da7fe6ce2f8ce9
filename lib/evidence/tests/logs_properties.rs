//! What holds for every log, however damaged: nothing panics, every line is counted once, and where the reads end
//! makes no difference.

use cute_evidence::logs::{self, Counters, PackSet};
use cute_records::{Record, WriteError};
use proptest::prelude::*;
use std::io::Read;

/// Hands out a few bytes at a time.
struct Pieces<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.step.min(buf.len()).min(self.bytes.len());
        buf[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

fn extract(reader: impl Read) -> (Vec<Record>, Counters) {
    let mut records = Vec::new();
    let mut sink = |record: Record| -> Result<(), WriteError> {
        records.push(record);
        Ok(())
    };
    let counters = logs::extract("log", reader, &PackSet::auto().unwrap(), &mut sink).unwrap();
    (records, counters)
}

/// Pieces of real lines: damage comes from putting them together wrongly.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "(EngineCore pid=146) INFO 05-13 13:32:02 [_backend.py:1397] ",
        "[PHASE_E_DISPATCH] layer_name=a layer_idx=3 enabled=True restricted_layers=[3, 7] is_decode_only=True ",
        "use_fusion=True num_seqs=1 resident_cap=96 use_beta_coop=True use_beta_lite=False",
        " path=coop outcome=coop reason=fits wo_split=8",
        "GPU KV cache size: 344,000 tokens",
        "Maximum concurrency for 65,536 tokens per request: 19.61x",
        "Setting attention block size to 1600 tokens",
        "Available KV cache memory: 42.14 GiB",
        "Mamba cache mode is set to 'none' when prefix caching is disabled",
        "CutePagedMetadataBuilder: block_size=64, layers=16",
        "non-default args: {'a': 1, 'b': [1, (2, {'c': <X: 1>})], 'd': F(x='y')",
        "LLM engine (v1+gabc) with config: a=1, b='x', c={'d': 1}",
        "Engine 000: Avg prompt throughput: 7.7 tokens/s, Avg generation throughput: 1.7 tokens/s, Running: 1 reqs, ",
        "127.0.0.1:1 - \"POST /v1/completions HTTP/1.1\" 200 OK",
        "{\"log\":\"x [C2_DIAG] y\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-01T00:00:00Z\"}",
        "\x1b[0;36m",
        "\x1b]0;",
        "\r",
        "\n",
        "\n",
        "\r\n",
        "=",
        "[",
        "{'",
        "ERROR ",
        "Traceback (most recent call last)",
    ]);
    prop_oneof![
        8 => known.prop_map(|s| s.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
        1 => (any::<u64>(), any::<f64>()).prop_map(|(a, b)| format!("{a}{b}").into_bytes()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_line_is_counted_once_wherever_the_reads_end(
        pieces in prop::collection::vec(fragment(), 0..40),
        step in 1usize..200,
    ) {
        let log = pieces.concat();
        let (records, counters) = extract(&log[..]);
        prop_assert_eq!(counters.matched + counters.ignored + counters.unmatched, counters.lines);
        let torn = log.last().is_some_and(|c| *c != b'\n');
        prop_assert_eq!(counters.lines, log.iter().filter(|c| **c == b'\n').count() as u64 + u64::from(torn));
        prop_assert_eq!((counters.bytes, counters.torn), (log.len() as u64, torn));
        for record in &records {
            let text = serde_json::to_string(record).unwrap();
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
        let again = extract(Pieces { bytes: &log, step });
        prop_assert_eq!(again, (records, counters));
    }

    #[test]
    fn any_bytes_at_all_are_a_log(log in prop::collection::vec(any::<u8>(), 0..2000), step in 1usize..50) {
        let whole = extract(&log[..]);
        prop_assert_eq!(whole.1.matched + whole.1.ignored + whole.1.unmatched, whole.1.lines);
        prop_assert_eq!(extract(Pieces { bytes: &log, step }), whole);
    }
}
