//! Streams of which one number, line or byte is absurd, from the reader through every check, mechanism and gate to the page:
//! an answer, no panic, and no work beyond the records there are.
//!
//! `MUTATIONS=100000 SEED=7 cargo test -p cute-evidence --test whole_mutations` runs longer, and elsewhere.

#[path = "common/random.rs"]
mod random;

use cute_evidence::checks::pipe::Outlet;
use cute_evidence::checks::{self, Case, Expectations};
use cute_evidence::explain::explain;
use cute_evidence::gates::{Settings, judge};
use cute_evidence::logs;
use cute_evidence::report::{html, table, tables};
use cute_records::*;
use random::{Rng, number};
use std::io::Cursor;
use std::time::{Duration, Instant};

/// Longest that one stream may take. A thousand times what it takes on an idle machine.
const LONGEST: Duration = Duration::from_secs(60);
const REQUESTS: u64 = 24;

/// The records of a soak of three runs that collapses in its middle, as our engine writes them.
fn soak() -> Vec<String> {
    let mut all: Vec<Record> = vec![
        Run {
            tool: "cute-generate".into(),
            version: "1".into(),
            device: Some("cpu".into()),
            ..Run::default()
        }
        .into(),
        Pool {
            num_blocks: Some(2_000),
            block_size: Some(16),
            block_bytes: Some(2_000_000),
            token_bytes: Some(125_000),
            state_blocks_per_request: Some(1),
            first_block: Some(1),
            ..Pool::default()
        }
        .into(),
    ];
    for ordinal in 0..REQUESTS {
        let bad = (12..16).contains(&ordinal);
        let (id, slot, pages) = (ordinal.to_string(), 1 + ordinal as u32 % 2, vec![3 * ordinal as u32 + 1]);
        let state = |op: &str, free| State {
            op: op.into(),
            kind: "recurrent".into(),
            slot,
            owner: id.clone(),
            ordinal,
            epoch: 1 + ordinal / 2,
            free,
            ..State::default()
        };
        let reply = Completion {
            id: id.clone(),
            run: ordinal / 8,
            index: ordinal % 8,
            ordinal,
            prompt_tokens: Some(40 + ordinal),
            completion_tokens: Some(60),
            prompt_chars: Some(160),
            finish_reason: Some(if bad { FinishReason::Length } else { FinishReason::Stop }),
            text: Some(if bad { "!".repeat(80) } else { "The answer is 7.".into() }),
            gold: Some("7".into()),
            extracted: Some("7".into()),
            correct: Some(!bad),
            fingerprint: Some(format!("f{}", ordinal % 8)),
            prompt_sha256: Some(format!("p{}", ordinal % 8)),
            token_sha256: Some(format!("t{}", ordinal % 8)),
            wall_ms: Some(100.5),
            decode_ms: Some(80.25),
            slot: Some(slot),
            epoch: Some(1 + ordinal / 2),
            kv_pages: Some(pages.clone()),
            ..Completion::default()
        };
        let trace = Trace {
            id: id.clone(),
            ordinal,
            slot,
            epoch: 1 + ordinal / 2,
            page_offsets: pages.iter().map(|p| u64::from(*p) * 2_000_000).collect(),
            kv_pages: pages,
            slots_free: 1,
            slots_used: 1,
            pages_free: 1_900,
            pages_used: 100,
            finish_reason: reply.finish_reason,
            token_sha256: format!("t{}", ordinal % 8),
            fingerprint: format!("f{}", ordinal % 8),
            ..Trace::default()
        };
        let timing = Timing { name: "prefill".into(), ms: 3.5, count: 1, ..Timing::default() };
        all.push(state("acquire", 1).into());
        all.push(timing.into());
        all.push(reply.into());
        all.push(trace.into());
        all.push(state("release", 2).into());
    }
    for layer in [3u32, 7] {
        all.push(
            Dispatch {
                layer_idx: Some(layer),
                is_decode_only: true,
                use_beta_coop: true,
                num_seqs: 1,
                outcome: Some("coop".into()),
                ..Dispatch::default()
            }
            .into(),
        );
    }
    let mut counts = Count::new();
    let mut lines = Vec::new();
    for record in all {
        let line = serde_json::to_string(&record).unwrap();
        let kind = line.split('"').nth(3).unwrap().to_owned();
        *counts.entry(kind).or_default() += 1;
        lines.push(line);
    }
    let end = End { tool: "cute-generate".into(), complete: true, counts, ..End::default() };
    lines.push(serde_json::to_string(&Record::End(end)).unwrap());
    lines
}

/// What another server's log says around as many requests, as records.
fn served() -> Vec<String> {
    let mut log = "\
(EngineCore pid=1) INFO 05-10 20:14:17 [interface.py:601] Setting attention block size to 1600 tokens to ensure
(EngineCore pid=1) INFO 05-10 20:17:26 [gpu_worker.py:436] Available KV cache memory: 42.14 GiB
(EngineCore pid=1) INFO 05-10 20:17:26 [kv_cache_utils.py:1431] GPU KV cache size: 344,000 tokens
(EngineCore pid=1) INFO 05-10 20:17:26 [kv_cache_utils.py:1436] Maximum concurrency for 65,536 tokens per request: 19.61x
"
    .to_owned();
    for i in 0..REQUESTS {
        let at = format!("05-10 20:18:{i:02}");
        log += &format!(
            "(APIServer pid=1) INFO {at} [loggers.py:236] Engine 000: Avg prompt throughput: 5.0 tokens/s, Avg generation throughput: 9.1 \
             tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 0.5%, Prefix cache hit rate: 0.0%\n\
             (APIServer pid=1) INFO:     127.0.0.1:39450 - \"POST /v1/completions HTTP/1.1\" 200 OK\n"
        );
    }
    let mut lines = Vec::new();
    let mut sink = |record: Record| -> Result<(), WriteError> {
        lines.push(serde_json::to_string(&record).unwrap());
        Ok(())
    };
    logs::extract("docker.log", log.as_bytes(), &logs::PackSet::auto().unwrap(), &mut sink).unwrap();
    lines
}

const ABSURD: &[&str] = &[
    "0",
    "-1",
    "1",
    "1e308",
    "1e-320",
    "1.5",
    "4294967295",
    "4294967296",
    "9007199254740991",
    "9007199254740992",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "null",
    "true",
    "\"\"",
    "\"x\"",
    "[]",
    "{}",
    "[0, 18446744073709551615]",
];

/// Where a value of a line stands: behind a colon, up to a comma or bracket.
fn values(line: &str) -> Vec<std::ops::Range<usize>> {
    let ends = |from: usize| line[from..].find([',', '}', ']']).map(|n| from..from + n);
    line.match_indices([':', '[']).filter_map(|(at, _)| ends(at + 1)).filter(|r| !r.is_empty()).collect()
}

fn damage(rng: &mut Rng, lines: &mut Vec<String>) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(lines.len());
        match rng.below(10) {
            0 => _ = lines.remove(at),
            1 => lines.insert(rng.below(lines.len() + 1), lines[at].clone()),
            2 => {
                let to = rng.below(lines.len());
                lines.swap(at, to);
            }
            _ => {
                let all = values(&lines[at]);
                if !all.is_empty() {
                    let place = all[rng.below(all.len())].clone();
                    lines[at].replace_range(place, ABSURD[rng.below(ABSURD.len())]);
                }
            }
        }
        if lines.is_empty() {
            return;
        }
    }
}

/// All that the tools do with a stream.
fn all(text: &str) {
    let mut case = Case::default();
    let mut sink = Vec::new();
    let mut out = Outlet::new(Writer::new(&mut sink));
    let lines = Reader::new("stdin", Cursor::new(text.as_bytes().to_vec()));
    case.read(lines, &mut out, &mut |_| ()).unwrap();
    drop(out);
    case.finish();
    let mut found = checks::all(&case, &Expectations::default());
    found.extend(explain(&case).findings);
    case.findings.extend(found);
    let settings = Settings {
        gates: ["correct>=5/8", "mcnemar>=0.05", "cusum=0", "unexplained=0", "findings=0"]
            .map(|gate| gate.parse().unwrap())
            .into(),
        ..Settings::default()
    };
    let judgment = judge(&case, &settings);
    serde_json::to_string(&Record::Verdict(judgment.verdict.clone())).unwrap();
    let page = html::page(&case, &judgment);
    assert!(page.ends_with("</html>") && page.len() < 4_000_000, "a page of {} bytes", page.len());
    for t in tables::all(&case, &judgment) {
        t.text(table::WIDTH);
    }
}

#[test]
fn no_absurd_number_in_a_stream_makes_a_tool_panic_or_work_without_end() {
    let streams = [soak(), [served(), soak()].concat()];
    streams.iter().for_each(|lines| all(&lines.join("\n")));
    let mut rng = Rng(number("SEED", 1));
    for i in 0..number("MUTATIONS", 3_000) as usize {
        let mut lines = streams[i % streams.len()].clone();
        damage(&mut rng, &mut lines);
        let text = lines.join("\n") + "\n";
        let start = Instant::now();
        if let Err(panic) = std::panic::catch_unwind(|| all(&text)) {
            eprintln!("mutation {i} of SEED {}:\n{text}", number("SEED", 1));
            std::panic::resume_unwind(panic);
        }
        assert!(start.elapsed() < LONGEST, "mutation {i} took {:?}:\n{text}", start.elapsed());
    }
}
