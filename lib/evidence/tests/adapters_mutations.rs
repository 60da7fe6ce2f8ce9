//! A short fuzz of every parser without a fuzzer: seeded damage to files of every kind.
//!
//! `MUTATIONS=1000000 cargo test -p cute-evidence --test adapters_mutations` runs longer; `SEED=n` runs elsewhere.
//! The fuzz targets under `fuzz/` start from the same kinds of files.

#[path = "common/random.rs"]
mod random;

use cute_evidence::adapters::Kind;
use cute_evidence::logs::PackSet;
use cute_evidence::{adapters, logs, provenance, region};
use cute_records::{Reader, Record, WriteError};
use random::{Rng, number};
use serde_json::{Value, json};

/// One file of every kind, by the name it would have.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let rows: Vec<Value> = (0..3)
        .map(|i| {
            json!({"i": i, "expected": "36", "got": "36", "status": "OK", "elapsed": 2.5, "raw_tail": "The answer is 36.",
                   "question": "Q", "prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11, "finish_reason": "stop",
                   "output_len": 17, "output_sha256": "00ba4059338ceedd", "request_id": "cmpl-1"})
        })
        .collect();
    let dispatch = json!({"layer_name": "l", "layer_idx": 3, "enabled": true, "restricted_layers": [3, 7], "is_decode_only": true,
        "use_fusion": true, "num_seqs": 1, "resident_cap": 96, "use_beta_coop": true, "use_beta_lite": false});
    let pretty = |v: Value| serde_json::to_vec_pretty(&v).unwrap();
    let line = |v: Value| format!("{v}\n{v}\n").into_bytes();
    let mut npy = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    npy.extend(
        format!("{:<117}\n", "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3, 2), }").bytes(),
    );
    npy.extend((1..=12i64).flat_map(i64::to_le_bytes));
    let log = "\
(APIServer pid=1) INFO 05-10 20:14:02 [utils.py:299]   version 0.3.1.dev69+gf79cf418b
(APIServer pid=1) INFO 05-10 20:14:02 [utils.py:233] non-default args: {'model': 'a/b', 'max_model_len': 65536, 'c': {'m': <X.P: 1>}, 'k': K(a=[1])}
(APIServer pid=1) WARNING 05-10 20:14:07 [config.py:341] Mamba cache mode is set to 'none' when prefix caching is disabled
(EngineCore pid=146) INFO 05-10 20:14:12 [core.py:105] Initializing a V1 LLM engine (v0.3.1) with config: model='a', dtype=torch.bfloat16, max_seq_len=65536
(EngineCore pid=146) INFO 05-10 20:14:14 [_backend.py:302] CutePagedAttention initialized: 24 Q heads, 4 KV heads, head_dim=256, GQA ratio=6
(EngineCore pid=146) INFO 05-10 20:14:17 [interface.py:601] Setting attention block size to 1600 tokens to ensure
(EngineCore pid=146) INFO 05-10 20:17:26 [gpu_worker.py:436] Available KV cache memory: 42.14 GiB
(EngineCore pid=146) INFO 05-10 20:17:26 [kv_cache_utils.py:1431] GPU KV cache size: 344,000 tokens
(EngineCore pid=146) INFO 05-10 20:17:26 [kv_cache_utils.py:1436] Maximum concurrency for 65,536 tokens per request: 19.61x
\x1b[0;36m(EngineCore pid=146)\x1b[0m INFO 05-13 13:32:02 [_backend.py:1397] [PHASE_E_DISPATCH] layer_name=l.3 layer_idx=3 enabled=True restricted_layers=[3, 7] is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 use_beta_coop=True use_beta_lite=False path=coop outcome=coop
(APIServer pid=1) INFO:     127.0.0.1:39450 - \"POST /v1/completions HTTP/1.1\" 200 OK
{\"log\":\"[C2_DIAG] step=1 L=3 nat=1 hidden Linf=1e-3 rel_med=0.1 residual Linf=2 rel_med=nan OK\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-01T00:00:00Z\"}
";
    vec![
        ("docker.log", log.as_bytes().to_vec()),
        ("gsm8k.json", pretty(json!({"label": "soak_x_run4", "n": 3, "seed": 42, "correct": 3, "errors": 0,
            "accuracy": "3/3 (100.0%)", "total_seconds": 7.5, "results": rows}))),
        ("perq.jsonl", line(json!({"label": "x", "run_index": 0, "prompt_index": 1, "wall_time_s": 1.5, "gold": "1", "pred": "1",
            "correct": true, "prompt_tokens": 5, "completion_tokens": 6, "finish_reason": "length"}))),
        ("gsm8k.log", b"[1/3] OK (gold=5 pred=5) 2.5s\n[2/3] ERROR (gold=5 pred=) 180.0s\n".to_vec()),
        ("dispatch_audit.json", pretty(json!({"coop_layers": [3], "lite_layers": [], "records": [dispatch]}))),
        ("sharegpt_outputs.jsonl", line(json!({"conv_idx": 0, "turn_idx": 2, "prompt_chars": 208, "wall_s": 5.5, "ttft_ms": 640.1,
            "token_deltas_ms": [397.6, 398.1], "n_stream_chunks": 3, "finish_reason": "length", "output_text": "Write!!!!"}))),
        ("sharegpt.json", pretty(json!({"phase": "sharegpt", "seed": 42, "turns": [{"conv_idx": 0, "turn_idx": 0, "wall_s": 1.0}]}))),
        ("sharegpt_wall_tpot.csv", b"phase,conv_idx,turn_idx,request_id,prompt_chars,wall_s,ttft_ms,n_stream_chunks,finish_reason\n\
            sharegpt,0,0,,208,51.6,640.1,128,length\n".to_vec()),
        ("summary.json", pretty(json!({"phase": "concurrent", "total_wall_s": 57.4, "requests": [
            {"request_id": "request_a", "wall_s": 57.4, "ttft_ms": 28.0, "token_deltas_ms": [1.0], "n_stream_chunks": 2}]}))),
        ("verdict.json", pretty(json!({"arm": "x", "git_sha": "9f118", "image_id": "n:g@9c0f", "phase_e_layers": "3,7", "wo_split": 8,
            "n_runs": 1, "gsm8k_floor": 45, "runs": [{"run": 1, "correct": 48, "errors": 0, "pass": true}],
            "container_alive_at_end": true, "docker_log_corruption_hits": 0, "gate_2b_pass": true}))),
        ("verdict-arm.json", pretty(json!({"arm": "x", "ok": true, "gsm8k_correct": 47, "gsm8k_errors": 0, "gsm8k_floor": 45,
            "dispatch_audit": "pass", "expected_coop_layers": "3,7", "beta_per_call_gate_ms": 7}))),
        ("samples.jsonl", line(json!({"doc_id": 0, "target": "x #### 5", "resps": [["t"]], "filtered_resps": ["5"],
            "filter": "strict", "exact_match": 1.0}))),
        ("coherence.json", pretty(json!({"repeated_4gram_fraction": 0.0, "unique_trigram_ratio": 1.0, "warnings": []}))),
        ("metrics_q10.json", pretty(json!({"tag": "q10", "ts": 1.5, "metrics": {"vllm:num_requests_running": 1.0}}))),
        ("ENV.txt", b"CUTE_WO_SPLIT=8\nCUTE_PHASE_E_LAYERS=3,7\nCUTE_C2_DIAG=\n".to_vec()),
        ("arms.csv", b"arm,phase_e_fusion,phase_e_layers,wo_split,expected_coop_layers,description\n2L,1,\"3,7\",8,\"3,7\",d\n".to_vec()),
        ("region_timings.npy", npy),
        ("records.jsonl", format!("{}\n{}\n", json!({"type": "run", "v": 1, "tool": "t", "version": "1"}),
            json!({"type": "completion", "v": 1, "id": "0", "run": 0, "index": 0, "ordinal": 0})).into_bytes()),
        ("longdecode_output.txt", b"Write!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!".to_vec()),
    ]
}

/// Words that parsers look for, to be put where they do not belong.
const WORDS: &[&[u8]] = &[
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff",
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b"''",
    b"18446744073709551616",
    b"9223372036854775807",
    b"[PHASE_E_DISPATCH] ",
    b" pid=",
    b"\x1b[",
    b"\xef\xbb\xbf",
    b"0",
    b"=",
    b"'",
    b"<",
];

fn damage(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(bytes.len() + 1);
        let end = (at + rng.below(40)).min(bytes.len());
        match rng.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 if at < bytes.len() => bytes[at] = rng.next() as u8,
            2 => bytes.truncate(at),
            3 => _ = bytes.drain(at..end),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            5 => {
                let from = rng.below(other.len() + 1);
                let until = (from + rng.below(60)).min(other.len());
                bytes.splice(at..end, other[from..until].iter().copied());
            }
            _ => {
                let word = WORDS[rng.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
        }
    }
}

/// Readers that take any bytes, whether or not the bytes look like theirs.
const KINDS: &[Kind] = &[
    Kind::Gsm8k,
    Kind::EvalLog,
    Kind::PerQuestion,
    Kind::DispatchAudit,
    Kind::ShareGpt,
    Kind::ShareGptTurns,
    Kind::TpotCsv,
    Kind::Concurrent,
    Kind::Verdict,
    Kind::LmEval,
    Kind::Env,
    Kind::Arms,
    Kind::Coherence,
];

/// Puts a file through every parser that could be given it.
fn parse(name: &str, bytes: &[u8], packs: &PackSet) {
    if let Ok(evidence) = adapters::read_bytes(name, bytes.to_vec()) {
        for finding in &evidence.findings {
            assert!(!finding.message.is_empty());
        }
        let leg = provenance::Leg::from_records("leg", &evidence.records);
        provenance::compare(&[leg.clone(), leg]);
        for c in evidence.completions {
            serde_json::to_string(&Record::from(c)).unwrap();
        }
    }
    adapters::parse_arms(&String::from_utf8_lossy(bytes), &adapters::Rules::default());
    for kind in KINDS {
        let _ = adapters::read_as(*kind, name, bytes.to_vec());
    }
    if let Ok(buffer) = region::parse(name, bytes) {
        region::analyse(&buffer, &region::Layout::default()).records();
    }
    let mut sink = |_: Record| -> Result<(), WriteError> { Ok(()) };
    let counters = logs::extract(name, bytes, packs, &mut sink).unwrap();
    assert_eq!(counters.matched + counters.ignored + counters.unmatched, counters.lines);
    for line in Reader::new(name, bytes).max_line(1000) {
        let _ = line.and_then(|line| line.parse());
    }
}

#[test]
fn every_undamaged_file_is_known_and_nothing_is_wrong_with_its_rows() {
    for (name, bytes) in corpus() {
        let evidence = adapters::read_bytes(name, bytes).unwrap_or_else(|e| panic!("{e}"));
        let bad = evidence.findings.iter().find(|f| f.check == "bad_row" || f.check == "bad_field");
        assert!(bad.is_none(), "{name}: {bad:?}");
    }
}

/// `CORPUS=fuzz/corpus cargo test …` puts the files where the fuzz targets start from.
#[test]
fn the_corpus_is_written_where_asked() {
    let Ok(root) = std::env::var("CORPUS") else { return };
    for (name, bytes) in corpus() {
        let own = match name {
            "docker.log" => "log",
            "gsm8k.log" => "evallog",
            "ENV.txt" => "env",
            "sharegpt_wall_tpot.csv" => "tpot",
            "coherence.json" | "metrics_q10.json" | "longdecode_output.txt" => "any",
            name => name.split(['.', '_', '-']).next().unwrap(),
        };
        for target in ["any", own] {
            let dir =
                std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(&root).join(target);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(name), &bytes).unwrap();
        }
    }
}

#[test]
fn no_damage_makes_a_parser_panic() {
    let packs = PackSet::auto().unwrap();
    let corpus = corpus();
    let mut rng = Rng(number("SEED", 1));
    for i in 0..number("MUTATIONS", 40_000) {
        let (name, original) = &corpus[i as usize % corpus.len()];
        let other = &corpus[rng.below(corpus.len())].1;
        let mut bytes = original.clone();
        damage(&mut rng, &mut bytes, other);
        parse(name, &bytes, &packs);
    }
}

#[test]
fn a_file_cut_off_at_any_byte_is_read_up_to_there() {
    let packs = PackSet::auto().unwrap();
    for (name, bytes) in corpus() {
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 100) {
            parse(name, &bytes[..cut], &packs);
        }
    }
}
