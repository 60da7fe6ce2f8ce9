//! Storms from outside: who is left alone keeps every bit, who is cancelled says so, and the same seed is the same storm.

use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const SMALL: &[&str] = &["--max-model-len", "96", "--page-size", "16", "--max-num-batched-tokens", "40"];

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Runs without stdin; returns exit code, records and stderr.
fn run(args: &[&[&str]]) -> (i32, Vec<Value>, String) {
    let mut command = Command::cargo_bin("cute-generate").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUTE_")) {
        command.env_remove(name);
    }
    let out = command
        .env("CUTE_DEVICE", "cpu")
        .arg("--model")
        .arg(examples().join("tiny-hybrid"))
        .args(args.concat())
        .write_stdin("")
        .output()
        .unwrap();
    let records = String::from_utf8(out.stdout).unwrap();
    let records = records.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (out.status.code().unwrap(), records, String::from_utf8(out.stderr).unwrap())
}

fn replies(records: &[Value]) -> BTreeMap<u64, &Value> {
    let all = records.iter().filter(|r| r["type"] == "completion");
    all.map(|r| (r["ordinal"].as_u64().unwrap(), r)).collect()
}

#[test]
fn who_is_left_alone_keeps_every_bit_and_who_is_cancelled_says_so() {
    let prompts = examples().join("arith-50.jsonl");
    let soak: &[&str] = &["--prompts", prompts.to_str().unwrap(), "--limit", "16", "--max-tokens", "40"];
    let (code, calm, stderr) = run(&[soak]);
    assert_eq!(code, 0, "{stderr}");
    // fewer at once take more steps
    for (seed, every, pressure) in
        [("1", "14", &[][..]), ("2", "40", &["--pressure", "4x"]), ("3", "14", &["--wo-split", "1"])]
    {
        let storm = ["--storm", "cancel,preempt", "--storm-every", every, "--storm-seed", seed];
        let (code, records, stderr) = run(&[soak, &storm, pressure]);
        assert_eq!(code, 0, "{stderr}");
        let (calm, got) = (replies(&calm), replies(&records));
        assert_eq!(got.len(), 16, "every request is answered");
        let (mut whole, mut cancelled, mut preempted) = (0, 0, 0);
        for (ordinal, reply) in &got {
            if reply["finish_reason"] == "cancelled" {
                cancelled += 1;
                assert!(reply["correct"].is_null(), "nobody grades it: {reply}");
                assert!(reply["completion_tokens"].as_u64() < calm[ordinal]["completion_tokens"].as_u64());
            } else if reply["preempted"].is_u64() {
                preempted += reply["preempted"].as_u64().unwrap();
                assert_eq!(reply["text"], calm[ordinal]["text"], "seed {seed}");
            } else {
                whole += 1;
                assert_eq!(
                    reply["fingerprint"], calm[ordinal]["fingerprint"],
                    "seed {seed}, request {ordinal}"
                );
            }
        }
        assert!(whole >= 2 && cancelled >= 1 && preempted >= 1, "{seed}: {whole}, {cancelled}, {preempted}");
        let counters = &records.last().unwrap()["counters"];
        assert_eq!(counters["cancelled"], cancelled);
        assert!(
            counters["preempted"].as_u64() >= Some(preempted),
            "cancelled ones may have been preempted before"
        );
        assert_eq!((&counters["slots_in_use"], &counters["pages_in_use"]), (&0.into(), &0.into()));
    }
}

#[test]
fn the_same_seed_is_the_same_storm() {
    let storm = |seed: &str| {
        let (code, records, stderr) =
            run(&[SMALL, &["--probe", "aba,canary", "--storm", "cancel,preempt", "--storm-seed", seed]]);
        assert_eq!(code, 0, "{stderr}");
        let mut records = records;
        for r in &mut records {
            for timed in ["wall_ms", "decode_ms", "ms", "figures"] {
                r.as_object_mut().unwrap().remove(timed);
            }
        }
        records.into_iter().map(|r| r.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(storm("7"), storm("7"));
    assert_ne!(storm("7")[1..], storm("8")[1..]);
}

#[test]
fn probes_in_a_storm_raise_no_alarm_and_a_stale_resume_does() {
    let unfused: &[&str] = &["--phase-e-fusion", "0"];
    for (args, fault, code) in [
        (&[][..], &[][..], 0),
        (&["--pressure", "4x"], &[], 0),
        (unfused, &[], 0),
        (unfused, &["--fault", "stale-resume"], 1),
        // with fused paths a preempted reply has other bits by design, and is left out
        (&[], &["--fault", "stale-resume"], 0),
    ] {
        let storm =
            ["--probe", "aba,codeword,boundary,canary", "--storm", "preempt,cancel", "--storm-seed", "2"];
        let (got, records, stderr) = run(&[SMALL, &storm, args, fault]);
        assert_eq!(got, code, "{args:?} {fault:?}: {stderr}");
        let cancelled = replies(&records).values().filter(|r| r["finish_reason"] == "cancelled").count();
        assert_eq!(records.last().unwrap()["counters"]["cancelled"], cancelled);
        assert!(cancelled > 3, "{args:?}: {cancelled}");
    }
}

#[test]
fn what_makes_no_sense_with_a_storm_or_a_fault_is_refused() {
    for (args, sentence) in [
        (&["--storm", "hail"][..], "invalid value 'hail' for '--storm <NAMES>'"),
        (&["--storm-seed", "3", "--probe", "aba"], "--storm <NAMES>"),
        (&["--storm", "cancel", "--storm-every", "0"], "0 is not in 1..=1048576"),
        (
            &["--storm", "cancel", "--probe", "canary", "--journal", "no-such-journal"],
            "--journal with --probe: what a probe compares",
        ),
        (&["--unguarded", "--probe", "aba"], "--fault <NAME>"),
        (
            &["--fault", "late-step", "--probe", "aba", "--device", "cuda"],
            "--fault late-step is built into the CPU engine: give --device cpu",
        ),
        (&["--guard", "recompute", "--probe", "aba"], "--guard recompute needs --phase-e-fusion 0"),
        (&["--guard", "recompute/0", "--probe", "aba"], "recompute/0: expected a number of at least 1"),
    ] {
        let (code, records, stderr) = run(&[SMALL, args]);
        assert_eq!((code, records.len()), (2, 0), "{args:?}: {stderr}");
        assert!(stderr.contains(sentence), "{args:?}: {stderr}");
    }
    let journal = tempfile::tempdir().unwrap();
    let prompts = examples().join("arith-50.jsonl");
    let journal: &[&str] = &[
        "--prompts",
        prompts.to_str().unwrap(),
        "--limit",
        "1",
        "--journal",
        journal.path().to_str().unwrap(),
    ];
    for (args, sentence) in [
        (&["--storm", "cancel"][..], "--journal with --storm: whom a storm struck, and when, is not kept"),
        (&["--guard", "slot0"], "--journal with --guard: what a guard finds is not kept"),
    ] {
        let (code, _, stderr) = run(&[journal, args]);
        assert!(code == 2 && stderr.contains(sentence), "{args:?}: {stderr}");
    }
}
