//! Probes from outside: a sound engine raises none, each fault is caught by those that can see it, and from which request on.

use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Small pages and steps: many boundaries in few tokens.
const SMALL: &[&str] = &["--max-model-len", "96", "--page-size", "16", "--max-num-batched-tokens", "40"];
const ALL: &[&str] = &["--probe", "aba,codeword,boundary,canary"];

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Runs without prompts on stdin; returns exit code, records and stderr.
fn run(args: &[&[&str]]) -> (i32, Vec<Value>, String) {
    let mut command = Command::cargo_bin("cute-generate").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUTE_")) {
        command.env_remove(name);
    }
    let out = command
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

fn of<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|r| r["type"] == kind).collect()
}

/// The first request that each check names.
fn first(records: &[Value]) -> BTreeMap<&str, u64> {
    let mut out = BTreeMap::new();
    for f in of(records, "finding") {
        if let (Some(check), Some(ordinal)) = (f["check"].as_str(), f["ordinal"].as_u64()) {
            out.entry(check).or_insert(ordinal);
        }
    }
    out
}

#[test]
fn a_sound_engine_raises_no_probe_whatever_the_seed() {
    for seed in 0..12 {
        let seed = seed.to_string();
        let pressure: &[&str] =
            if seed.ends_with(['1', '3', '5', '7', '9']) { &["--pressure", "4x"] } else { &[] };
        let dtype: &[&str] = if seed.ends_with(['2', '3']) { &["--kv-cache-dtype", "bf16"] } else { &[] };
        let (code, records, stderr) = run(&[ALL, SMALL, pressure, dtype, &["--seed", &seed]]);
        assert_eq!((code, first(&records)), (0, BTreeMap::new()), "seed {seed}: {stderr}");
        let counters = &records.last().unwrap()["counters"];
        assert_eq!(counters["probe_findings"], 0);
        assert_eq!(counters["probe_replies"], counters["requests"]);
        assert!(counters["slots_recycled"].as_u64().unwrap() > 40, "seed {seed}: {counters}");
    }
}

#[test]
fn each_fault_is_caught_by_the_probes_that_can_see_it() {
    // Eight slots, or two under pressure, or the whole three times. Request 0 is a canary, 1 the first A; then come a B for
    // every slot and an A for every slot, with a canary after every ten. The narrow offset hurts only pages far up in the
    // pool, so it needs a small pool or time.
    type Caught<'a> = &'a [(&'a str, u64)];
    let state: [Caught<'_>; 3] = [
        &[("probe_aba", 10), ("probe_boundary", 75), ("probe_canary", 11)],
        &[("probe_aba", 4), ("probe_boundary", 36), ("probe_canary", 11)],
        &[("probe_aba", 10), ("probe_boundary", 75), ("probe_canary", 11)],
    ];
    let offset: [Caught<'_>; 3] = [
        &[],
        &[("probe_boundary", 40), ("probe_canary", 33)],
        &[("probe_aba", 97), ("probe_boundary", 152), ("probe_canary", 107)],
    ];
    let modes: [&[&str]; 3] = [&[], &["--pressure", "4x"], &["--runs", "3"]];
    // The fallback is another path, taken by every reply alike: no probe can see it, the dispatch log can.
    for (fault, table) in [
        ("stale-state", state),
        ("garbage-state", state),
        ("kv-offset-32", offset),
        ("coop-launch-fails", [&[][..]; 3]),
    ] {
        for (args, caught) in modes.into_iter().zip(table) {
            let (code, records, stderr) = run(&[ALL, SMALL, args, &["--fault", fault]]);
            let want: BTreeMap<&str, u64> = caught.iter().copied().collect();
            assert_eq!(first(&records), want, "{fault} {args:?}");
            assert_eq!(code, i32::from(!caught.is_empty()), "{fault} {args:?}: {stderr}");
            for f in of(&records, "finding").iter().filter(|f| f["severity"] == "error") {
                assert!(stderr.contains(f["message"].as_str().unwrap()), "{f}");
            }
        }
    }
}

#[test]
fn prompts_keep_their_names_and_replies_among_probes() {
    let prompts = examples().join("arith-50.jsonl");
    let prompts: &[&str] = &["--prompts", prompts.to_str().unwrap(), "--limit", "6", "--max-tokens", "30"];
    let sampled: &[&str] = &["--temperature", "0.8", "--runs", "2"];
    let replies = |records: &[Value]| -> Vec<(String, String, Value)> {
        let own = of(records, "completion")
            .into_iter()
            .filter(|c| !c["id"].as_str().unwrap().starts_with("probe."));
        own.map(|c| (c["id"].to_string(), c["fingerprint"].to_string(), c["text"].clone())).collect()
    };
    let (_, without, _) = run(&[prompts, sampled]);
    let (code, with, stderr) = run(&[prompts, sampled, &["--probe", "aba,canary", "--canary-every", "3"]]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(replies(&with).len(), 12);
    assert_eq!(replies(&with), replies(&without));
    let probes =
        of(&with, "completion").into_iter().filter(|c| c["id"].as_str().unwrap().starts_with("probe."));
    for c in probes {
        assert!(c["fingerprint"].is_string() && c["text"].is_null() && c["finish_reason"].is_null(), "{c}");
    }
}

#[test]
fn pressure_shrinks_the_pools_and_keeps_room_for_one_sequence() {
    let setting = |args: &[&str], name: &str| {
        let (_, records, stderr) = run(&[&["--probe", "canary"], args]);
        records.first().unwrap_or_else(|| panic!("{stderr}"))["config"][name]["value"].clone()
    };
    // 8 sequences of 1024 tokens in pages of 64: 128 pages and the null page.
    assert_eq!(setting(&[], "num_kv_pages"), 129);
    assert_eq!(setting(&["--pressure", "4x"], "num_kv_pages"), 33);
    assert_eq!(setting(&["--pressure", "4"], "max_num_seqs"), 2);
    assert_eq!(setting(&["--pressure", "1000x"], "num_kv_pages"), 17);
    assert_eq!(setting(&["--pressure", "1000x"], "max_num_seqs"), 1);
    let canary = |args: &[&str]| {
        let (_, records, _) = run(&[&["--probe", "canary"], args]);
        of(&records, "completion")[0]["fingerprint"].clone()
    };
    let fingerprint = canary(&[]);
    assert!(fingerprint.is_string());
    assert_eq!(
        canary(&["--pressure", "8x", "--seed", "5"]),
        fingerprint,
        "the same canary in every run of a model"
    );
}

#[test]
fn probes_that_could_not_say_anything_refuse_to_start() {
    for (args, sentence) in [
        (&["--probe", "abba"][..], "invalid value 'abba' for '--probe <NAMES>'"),
        (&["--probe", "aba", "--pressure", "0"], "expected a factor from 1x to 1048576x, such as 4x"),
        (&["--probe", "canary", "--canary-every", "0"], "0 is not in 1..=1048576"),
        (
            &["--probe", "aba", "--max-model-len", "30"],
            "--probe aba: its prompts and replies have 40 tokens: --max-model-len and the pool allow 30",
        ),
        (
            &["--probe", "boundary", "--resident-cap", "64"],
            "--probe: with --resident-cap 64 the path depends on the size of the batch, and with it the bits of a reply: \
             expected at least 512, or --phase-e-path lite",
        ),
        (&["--canary-every", "5"], "no prompts"),
    ] {
        let (code, records, stderr) = run(&[args]);
        assert_eq!((code, records.len()), (2, 0), "{args:?}");
        assert!(stderr.contains(sentence), "{args:?}: {stderr}");
    }
}
