//! Whole pipelines on the tiny model: what a user types, what comes out, and how it ends.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs a bash command in the workspace's root, the built tools first in PATH. `$T` is a fresh directory.
fn sh(command: &str) -> Done {
    let exe = std::env::current_exe().unwrap();
    let bin = exe.parent().unwrap().parent().unwrap();
    for tool in ["cute-load", "cute-generate", "cute-audit", "cute-dispatch-extract", "cute-verdict"] {
        assert!(bin.join(tool).exists(), "{tool} is not built beside this test: run cargo test --workspace");
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new("bash")
        .args(["-c", command])
        .current_dir(root())
        .env("PATH", path)
        .env("T", dir.path())
        .env("OUT", dir.path().join("out"))
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Done { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn records(text: &str, kind: &str) -> Vec<Value> {
    let all = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap_or_else(|e| panic!("{e}: {l}")));
    all.filter(|r| r["type"] == kind).collect()
}

fn verdict(done: &Done) -> Value {
    records(&done.stdout, "verdict").pop().unwrap_or_else(|| panic!("no verdict record: {}", done.stderr))
}

fn checks(done: &Done) -> Vec<String> {
    records(&done.stdout, "finding").iter().map(|f| f["check"].as_str().unwrap().to_owned()).collect()
}

const GENERATE: &str = "cute-load examples/tiny-hybrid | cute-generate --prompts examples/arith-50.jsonl";
const JUDGE: &str =
    "cute-audit -q | cute-verdict -q --gate 'correct>=45/50' --gate errors=0 --gate findings=0";

#[test]
fn a_sound_engine_passes_with_a_picture() {
    let done = sh(&format!(
        "{GENERATE} --runs 2 --phase-e-layers 3,7 2> $T/gen.log | cute-audit --expect-coop-layers 3,7 --require-records --dispatch $T/gen.log \
         | cute-verdict --runs 2 --gate 'correct>=45/50' --gate findings=0 --report $T/soak.html; code=$?; grep -c '<svg' $T/soak.html >&2; exit $code"
    ));
    assert_eq!(done.code, 0, "{}", done.stderr);
    let verdict = verdict(&done);
    assert_eq!((verdict["outcome"].as_str(), verdict["labels"].as_u64()), (Some("pass"), Some(100)));
    assert_eq!(verdict["degenerate"], 0);
    assert!(verdict["onset_ordinal"].is_null());
    assert_eq!(records(&done.stdout, "completion").len(), 100);
    let fingerprints = |run: u64| -> Vec<Value> {
        let all = records(&done.stdout, "completion");
        all.into_iter().filter(|c| c["run"] == run).map(|c| c["fingerprint"].clone()).collect()
    };
    assert_eq!(fingerprints(0), fingerprints(1), "same prompt, same bits");
}

#[test]
fn stale_state_keeps_the_accuracy_gate_green_and_is_caught_at_the_first_recycled_slot() {
    let done = sh(&format!(
        "{GENERATE} --runs 2 --fault stale-state 2> $T/log | {JUDGE}; code=$?; cat $T/log >&2; exit $code"
    ));
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("FAULT INJECTED: stale-state"), "{}", done.stderr);
    let verdict = verdict(&done);
    assert_eq!(verdict["gates"][0]["outcome"], "pass", "the accuracy gate sees nothing: {verdict}");
    let findings = records(&done.stdout, "finding");
    let first =
        |check: &str| findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check}"));
    assert_eq!(
        first("state_not_zero_on_acquire")["ordinal"],
        8,
        "eight slots: request 8 is the first on a used one"
    );
    first("fingerprint_differs");
    assert_eq!(records(&done.stdout, "run").iter().filter(|r| r["fault"] == "stale-state").count(), 1);
}

#[test]
fn garbage_state_collapses_silently_and_the_verdict_names_the_onset() {
    let done = sh(&format!("{GENERATE} --fault garbage-state 2> /dev/null | {JUDGE}"));
    assert_eq!(done.code, 1, "{}", done.stderr);
    let verdict = verdict(&done);
    assert!(
        records(&done.stdout, "completion").iter().all(|c| c["finish_reason"] != "error"),
        "no error is logged"
    );
    let onset = verdict["onset_ordinal"].as_u64().unwrap();
    assert!((8..16).contains(&onset), "request 8 is the first on a used slot: {verdict}");
}

#[test]
fn the_narrow_kv_offset_gives_clean_runs_a_sharp_onset_and_a_sharp_recovery() {
    let done = sh(&format!(
        "{GENERATE} --runs 5 --fault kv-offset-32 --max-num-seqs 1 2> /dev/null | cute-audit -q --explain \
         | cute-verdict -q --gate 'correct>=45/50'"
    ));
    assert_eq!(done.code, 1, "{}", done.stderr);
    let verdict = verdict(&done);
    let (onset, recovery) =
        (verdict["onset_ordinal"].as_u64().unwrap(), verdict["recovery_ordinal"].as_u64().unwrap());
    assert!(onset > 100 && recovery > onset && recovery < 250, "{verdict}");
    assert_eq!(verdict["degenerate"], recovery - onset, "one stretch, without gaps");
    for completion in records(&done.stdout, "completion") {
        let ordinal = completion["ordinal"].as_u64().unwrap();
        let bad = (onset..recovery).contains(&ordinal);
        let text = completion["text"].as_str().unwrap();
        assert_eq!(text.ends_with("!!!!!!!!"), bad, "request {ordinal}: {text}");
        assert_eq!(completion["finish_reason"] == "length", bad);
    }
    assert_eq!(
        (verdict["explained"].as_u64(), verdict["labels"].as_u64()),
        (Some(250), Some(250)),
        "{verdict}"
    );
    assert_eq!(verdict["pool_blocks"], 600);
    // 3 layers of 65,536 bytes a page: the offset's sign bit, 2^26, falls into page 341
    assert_eq!(verdict["first_bad_block"], 341);
    assert!(verdict["mechanism"].as_str().unwrap().starts_with("kv_offset_i27"), "{verdict}");
}

#[test]
fn the_incident_happens_again_with_the_fault_and_not_without() {
    let done = sh("bash examples/incident/reproduce.sh");
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(!done.stderr.contains("NO:") && done.stderr.matches("  yes: ").count() == 16, "{}", done.stderr);
    let done = sh("bash examples/incident/reproduce.sh --num-kv-pages 2000");
    assert_eq!(done.code, 1, "a pool that five runs do not walk through: {}", done.stderr);
    assert!(done.stderr.contains("NO: it did not collapse and recover"), "{}", done.stderr);
}

#[test]
fn sampled_replies_are_compared_by_their_seeds() {
    let prompts = r#"printf '%s\n' '{"prompt":"Question: Ann","temperature":1,"seed":1}' '{"prompt":"Question: Ann","temperature":1,"seed":2}'"#;
    let generate = "cute-generate --model examples/tiny-hybrid --max-num-seqs 1 --max-tokens 20 --ignore-eos";
    let done = sh(&format!("{prompts} | {generate} --runs 2 | cute-audit -q"));
    assert_eq!(done.code, 0, "other seeds, other replies: {}", done.stdout);
    let done =
        sh(&format!("{prompts} | {generate} --runs 2 --fault stale-state 2> /dev/null | cute-audit -q"));
    assert!(checks(&done).contains(&"fingerprint_differs".to_owned()), "{}", done.stdout);
}

#[test]
fn a_dead_producer_never_looks_like_a_pass() {
    for cut in ["head -n 30", "head -n -1", "head -c 20000", "grep -v '\"ordinal\":7,'"] {
        let done = sh(&format!("{GENERATE} --limit 20 2> /dev/null | {cut} | {JUDGE}"));
        assert!(matches!(done.code, 1..=3), "{cut}: exit {}\n{}", done.code, done.stderr);
        assert_ne!(verdict(&done)["outcome"], "pass", "{cut}");
    }
    let done = sh(&format!("cute-generate --model no/such/model < /dev/null | {JUDGE}"));
    assert!(done.code == 3 || done.code == 2, "nothing arrived: exit {}", done.code);
}

#[test]
fn a_closed_pipe_never_turns_a_failed_verdict_into_a_pass() {
    let done = sh(&format!(
        "{GENERATE} --limit 20 --fault garbage-state 2> /dev/null | cute-audit -q 2> /dev/null | cute-verdict -q --gate 'correct>=19/20' | head -c 1 > /dev/null; echo ${{PIPESTATUS[3]}}"
    ));
    assert_eq!(done.stdout.trim(), "1", "{}", done.stderr);
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
}

#[test]
fn the_dispatch_log_becomes_records_and_a_wrong_expectation_fails() {
    let done = sh(
        "cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --limit 2 --phase-e-path lite 2>&1 > /dev/null | cute-dispatch-extract",
    );
    assert_eq!(done.code, 0, "{}", done.stderr);
    let layers: Vec<u64> =
        records(&done.stdout, "dispatch").iter().map(|d| d["layer_idx"].as_u64().unwrap()).collect();
    assert_eq!(layers, [3, 7, 11]);
    assert!(records(&done.stdout, "dispatch").iter().all(|d| d["path"] == "lite" && d["outcome"] == "lite"));
    for (expectation, code) in [
        ("--expect-lite-layers 3,7,11", 0),
        ("--expect-coop-layers 3,7,11", 1),
        ("--expect-lite-layers 3,7", 1),
        ("--expect-coop-layers none --expect-lite-layers 3,7,11", 0),
    ] {
        let done = sh(&format!(
            "{GENERATE} --limit 2 --phase-e-path lite 2> $T/log | cute-audit -q {expectation} --dispatch $T/log > $T/audited; echo $?"
        ));
        assert_eq!(done.stdout.trim(), code.to_string(), "{expectation}: {}", done.stderr);
    }
}

#[test]
fn a_launch_that_fell_back_is_caught_by_its_outcome() {
    let done = sh(&format!(
        "{GENERATE} --limit 2 --fault coop-launch-fails 2> $T/log | cute-audit -q --expect-coop-layers 3,7,11 --dispatch $T/log"
    ));
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(!checks(&done).is_empty());
}

#[test]
fn traces_of_a_sound_engine_contradict_nothing_and_those_of_a_broken_one_name_the_reset() {
    let audited = |options: &str| {
        sh(&format!(
            "{GENERATE} --limit 12 --max-tokens 40 --device cpu --trace requests {options} 2> $T/log | cute-audit -q --dispatch $T/log"
        ))
    };
    for sound in
        ["--phase-e-fusion 0", "--storm cancel,preempt --storm-every 9 --probe aba,canary --pressure 2x"]
    {
        let done = audited(sound);
        assert_eq!(done.code, 0, "{sound}: {:?}", checks(&done));
        let traces = records(&done.stdout, "trace");
        assert!(traces.len() >= 12, "{sound}: {}", traces.len());
        assert!(traces.iter().all(|t| t["wo_split"] == 1 && t["layers"].as_array().is_some()), "{sound}");
    }
    for fault in ["skip-wo-reset", "silent-fallback"] {
        let done = audited(&format!("--fault {fault} --unguarded"));
        let found = records(&done.stdout, "finding");
        let missing = found.iter().find(|f| f["check"] == "trace_missing_reset");
        let missing = missing.unwrap_or_else(|| panic!("{fault}: {:?}", checks(&done)));
        assert_eq!(
            (done.code, &missing["layer"], &missing["ordinal"]),
            (1, &3.into(), &0.into()),
            "{missing}"
        );
    }
    let refused = sh(&format!("{GENERATE} --trace requests --journal $T/j"));
    assert!(refused.code == 2 && refused.stderr.contains("--journal with --trace"), "{}", refused.stderr);
}

#[test]
fn the_examples_end_in_a_verdict_and_its_exit_code() {
    let done = sh("RUNS=1 bash examples/pipeline.sh");
    assert_eq!(done.code, 0, "{}", done.stderr);
    let done = sh("RUNS=1 bash examples/pipeline.sh --fault garbage-state");
    assert_eq!(done.code, 1, "{}", done.stderr);
    let done = sh("make -s -f examples/soak.mk ARM=2L_3_7 RUNS=2 OUT=$T/soak && cat $T/soak/verdict.code");
    assert!(done.code == 0 && done.stdout.ends_with("0\n"), "{}{}", done.stdout, done.stderr);
    let done = sh("make -s -f examples/soak.mk ARM=9L_nowhere OUT=$T/soak");
    assert!(done.code == 2 && done.stderr.contains("no arm 9L_nowhere"), "{}", done.stderr);
    let done = sh("bash examples/sweep.sh");
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(done.stdout.lines().filter(|l| l.contains("exit 0")).count(), 4, "{}", done.stdout);
    let done =
        sh("sed 's/3,7,11/3,8,11/' examples/arms.csv > $T/arms.csv; bash examples/sweep.sh $T/arms.csv");
    assert_eq!(done.code, 2, "{}", done.stderr);
    assert!(done.stderr.contains("8 is no full-attention layer"), "{}", done.stderr);
}
