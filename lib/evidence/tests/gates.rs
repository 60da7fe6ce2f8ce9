//! Gates: the grammar, the teeth, and that none passes on nothing.

use cute_evidence::checks::{self, Case, Expectations, FindingExt, finding};
use cute_evidence::gates::{Ask, METRICS, Settings, judge, seed};
use cute_records::{Completion, Event, FinishReason, Outcome, Record, Run, Severity};
use serde_json::json;

fn gate(text: &str) -> Ask {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

fn reply(run: u64, index: u64, right: bool) -> Completion {
    Completion {
        id: format!("{run}-{index}"),
        run,
        index,
        ordinal: run * 50 + index,
        text: Some("The answer is 4.".into()),
        finish_reason: Some(FinishReason::Stop),
        gold: Some("4".into()),
        extracted: Some(if right { "4" } else { "5" }.into()),
        correct: Some(right),
        wall_ms: Some(1000.0),
        ..Completion::default()
    }
}

/// A soak of runs with so many right answers of `n` questions each.
fn soak(right: &[u64], n: u64) -> Case {
    let mut case = Case::default();
    for (run, right) in right.iter().enumerate() {
        for i in 0..n {
            case.add(&reply(run as u64, i, i < *right).into());
        }
    }
    case.finish();
    case
}

fn audited(mut case: Case) -> Case {
    let found = checks::all(&case, &Expectations::default());
    case.findings.extend(found);
    case
}

fn verdict(case: &Case, gates: &[&str]) -> (Outcome, Vec<String>) {
    let settings = Settings { gates: gates.iter().map(|g| gate(g)).collect(), ..Settings::default() };
    let v = judge(case, &settings).verdict;
    (v.outcome, v.gates.iter().map(|g| format!("{}: {}", g.gate, g.reason)).collect())
}

fn check(case: &Case, asked: &str, expect: Outcome) -> String {
    let (got, reasons) = verdict(case, &[asked]);
    assert_eq!(got, expect, "{reasons:?}");
    reasons.join("\n")
}

#[test]
fn no_metric_passes_or_fails_on_nothing() {
    let empty = Case::default();
    for m in METRICS {
        let (outcome, reasons) = verdict(&empty, &[m.example]);
        assert_eq!(outcome, Outcome::Inconclusive, "{}: {reasons:?}", m.name);
    }
    assert_eq!(verdict(&empty, &[]).0, Outcome::Inconclusive);
    assert_eq!(verdict(&empty, &["finding.bad_row=0"]).0, Outcome::Inconclusive);
    assert_eq!(verdict(&empty, &["label.healthy=0"]).0, Outcome::Inconclusive);
}

#[test]
fn every_single_run_must_reach_the_share() {
    let c = soak(&[48, 48, 48, 11, 37], 50);
    assert!(
        check(&c, "correct>=45/50", Outcome::Fail).contains("2 of 5 runs fail: run 4: 11/50, run 5: 37/50")
    );
    check(&soak(&[45, 46, 50], 50), "correct>=45/50", Outcome::Pass);
    check(&soak(&[44], 50), "correct>=45/50", Outcome::Fail);
}

#[test]
fn a_run_of_another_size_is_judged_by_the_share_and_says_so() {
    // 45/50 of 20 is 18
    assert!(
        check(&soak(&[18], 20), "correct>=45/50", Outcome::Pass)
            .contains("20 questions, not 50: judged by the share, >= 18.0")
    );
    check(&soak(&[17], 20), "correct>=45/50", Outcome::Fail);
    check(&soak(&[9], 10), "correct>=90%", Outcome::Pass);
}

#[test]
fn fewer_runs_than_asked_are_inconclusive_and_a_failed_one_still_fails() {
    let settings = |gates: &[&str]| Settings {
        gates: gates.iter().map(|g| gate(g)).collect(),
        runs: Some(5),
        ..Settings::default()
    };
    let outcome = |c: &Case| judge(c, &settings(&["correct>=45/50"])).verdict.outcome;
    assert_eq!(outcome(&soak(&[48, 48], 50)), Outcome::Inconclusive);
    assert_eq!(outcome(&soak(&[48, 11], 50)), Outcome::Fail);
    assert_eq!(outcome(&soak(&[48; 5], 50)), Outcome::Pass);
    assert_eq!(judge(&soak(&[48, 48], 50), &settings(&["errors=0"])).verdict.outcome, Outcome::Inconclusive);
}

#[test]
fn missing_rows_cut_streams_and_missing_dispatch_records_keep_a_verdict_open() {
    for gap in ["missing_rows", "no_dispatch_records", "unreadable_file"] {
        let mut c = soak(&[48], 50);
        c.findings.push(finding(gap, Severity::Error, "gone"));
        assert_eq!(verdict(&c, &["correct>=45/50"]).0, Outcome::Inconclusive, "{gap}");
        assert_eq!(
            verdict(&c, &["correct>=49/50"]).0,
            Outcome::Fail,
            "{gap}: what is there fails all the same"
        );
    }
    let mut c = soak(&[48], 50);
    c.findings.push(finding("stream_cut_off", Severity::Warning, "cut"));
    assert_eq!(verdict(&c, &["correct>=45/50"]).0, Outcome::Inconclusive);
    assert_eq!(verdict(&c, &["correct>=49/50"]).0, Outcome::Inconclusive, "who knows what was cut off");
}

#[test]
fn findings_fail_by_severity_and_by_name() {
    let mut c = soak(&[48], 50);
    check(&c, "findings=0", Outcome::Pass);
    c.findings.push(finding("cut_off", Severity::Warning, "cut"));
    check(&c, "findings=0", Outcome::Pass);
    check(&c, "warnings=0", Outcome::Fail);
    c.findings.push(finding("fingerprint_differs", Severity::Error, "differs"));
    assert!(check(&c, "findings=0", Outcome::Fail).contains("fingerprint_differs 1"));
    check(&c, "finding.fingerprint_differs=0", Outcome::Fail);
    check(&c, "finding.state_owned_twice=0", Outcome::Pass);
}

fn log(case: &mut Case, event: &str) {
    case.add(&Record::Event(Event { event: event.into(), ..Event::default() }));
    case.finish();
}

#[test]
fn flips_legs_events_and_what_is_left_of_a_pool_are_gated() {
    check(&soak(&[48, 48], 50), "flips=0", Outcome::Pass);
    assert!(check(&soak(&[48, 46], 50), "flips<=1/50", Outcome::Fail).contains("2 of 50"));
    let mut two = Case::default();
    for (leg, right) in [("a", 48), ("b", 20)] {
        for i in 0..50 {
            two.add(&Completion { leg: Some(leg.into()), ..reply(0, i, i < right) }.into());
        }
    }
    two.finish();
    assert!(
        check(&two, "mcnemar_legs>=0.05", Outcome::Fail)
            .contains("b against the first leg: 28 lost, 0 gained of 50")
    );
    let mut c = soak(&[48], 50);
    check(&c, "event.first_fire>=1", Outcome::Inconclusive);
    log(&mut c, "first_fire");
    check(&c, "event.first_fire>=1", Outcome::Pass);
    check(&c, "event.fire_count>=1", Outcome::Fail);
    check(&c, "pool_left_percent<=0", Outcome::Inconclusive);
    let fields =
        |list: Vec<(&str, serde_json::Value)>| list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let post =
        fields(vec![("method", json!("POST")), ("path", json!("/v1/completions")), ("status", json!(200))]);
    c.add(&Record::Event(Event { event: "http_request".into(), fields: post, ..Event::default() }));
    let reading = fields(vec![("running", json!(0)), ("kv_cache_usage_percent", json!(0.4))]);
    c.add(&Record::Event(Event { event: "engine_stats".into(), fields: reading, ..Event::default() }));
    c.finish();
    check(&c, "pool_left_percent<=0", Outcome::Fail);
    check(&c, "pool_left_percent<=0.5", Outcome::Pass);
}

fn collapse(from: u64, to: u64) -> Case {
    let mut case = Case::default();
    for i in 0..250u64 {
        let mut c = reply(i / 50, i % 50, !matches!(i % 50, 0 | 44));
        if (from..to).contains(&i) {
            c.text = Some(format!("1{}", "!".repeat(511)));
            c.finish_reason = Some(FinishReason::Length);
            c.correct = Some(i % 50 == 1);
        }
        case.add(&c.into());
    }
    case.finish();
    case
}

#[test]
fn a_collapse_has_exact_edges_and_fails_its_gates() {
    let c = audited(collapse(162, 214));
    let j =
        judge(&c, &Settings { gates: vec![gate("degenerate=0"), gate("cusum=0")], ..Settings::default() });
    let v = &j.verdict;
    assert_eq!(
        (v.onset_ordinal, v.recovery_ordinal, v.degenerate, v.labels),
        (Some(162), Some(214), 52, 250)
    );
    assert!(v.gates.iter().all(|g| g.outcome == Outcome::Fail), "{:?}", v.gates);
    assert_eq!(v.runs.iter().map(|r| r.degenerate).collect::<Vec<_>>(), [0, 0, 0, 38, 14]);
    let leg = &v.details["legs"][0];
    let after = leg["cusum"]["requests_after_onset"].as_u64().unwrap();
    assert!((2..=12).contains(&after), "{leg}");
    check(&c, "mcnemar>=0.05", Outcome::Fail);
    check(&c, "homogeneity>=0.01", Outcome::Fail);
    check(&c, "label.lucky_garbage=0", Outcome::Fail);
    assert!(
        judge(&c, &Settings { gates: vec![gate("correct>=45/50")], ..Settings::default() })
            .power
            .unwrap()
            .contains("38 %")
    );
}

#[test]
fn a_collapse_that_never_ends_has_no_recovery_and_a_silent_one_is_found_by_its_answers() {
    let v = judge(&collapse(200, 250), &Settings::default()).verdict;
    assert_eq!((v.onset_ordinal, v.recovery_ordinal), (Some(200), None));
    let mut case = Case::default();
    for i in 0..250u64 {
        case.add(&reply(i / 50, i % 50, i % 50 != 0 && !(120..170).contains(&i)).into());
    }
    case.finish();
    let j = judge(&case, &Settings::default());
    assert_eq!((j.verdict.onset_ordinal, j.verdict.recovery_ordinal), (Some(120), Some(170)));
    assert_eq!(j.stretches[""].by, "accuracy");
}

#[test]
fn a_sound_soak_passes_every_statistical_gate() {
    let c = audited(collapse(0, 0));
    let (outcome, reasons) = verdict(
        &c,
        &[
            "correct>=45/50",
            "degenerate=0",
            "cusum=0",
            "mcnemar>=0.05",
            "homogeneity>=0.01",
            "loops=0",
            "empty=0",
        ],
    );
    assert_eq!(outcome, Outcome::Pass, "{reasons:?}");
    let v = judge(&c, &Settings::default()).verdict;
    assert_eq!((v.onset_ordinal, v.mechanism, v.degenerate), (None, None, 0));
}

#[test]
fn a_mechanism_travels_from_the_finding_to_the_verdict() {
    let mut c = collapse(162, 214);
    check(&c, "unexplained=0", Outcome::Inconclusive);
    let f = finding("mechanism", Severity::Info, "m")
        .with("mechanism", "kv_offset_i32_overflow")
        .with("labels", 250u64)
        .with("degenerate", 52u64);
    c.findings.push(f.with("explained", 250u64).with("first_bad_block", 655u64).with("pool_blocks", 863u64));
    check(&c, "unexplained=0", Outcome::Pass);
    let v = judge(&c, &Settings::default()).verdict;
    assert_eq!(v.mechanism.as_deref(), Some("kv_offset_i32_overflow"));
    assert_eq!((v.explained, v.first_bad_block, v.pool_blocks), (Some(250), Some(655), Some(863)));
}

#[test]
fn failed_requests_and_log_errors_are_counted() {
    let mut c = soak(&[48], 50);
    check(&c, "errors=0", Outcome::Pass);
    check(&c, "log_errors=0", Outcome::Inconclusive);
    log(&mut c, "engine_stats");
    check(&c, "log_errors=0", Outcome::Pass);
    check(&c, "server_alive=1", Outcome::Pass);
    log(&mut c, "engine_died");
    check(&c, "log_errors=0", Outcome::Fail);
    check(&c, "server_alive=1", Outcome::Fail);
    let mut failed = Case::default();
    failed.add(&Completion { error: Some("timed out".into()), ..reply(0, 0, false) }.into());
    failed.finish();
    check(&failed, "errors=0", Outcome::Fail);
}

#[test]
fn what_a_result_file_says_is_no_line_of_a_log() {
    let mut case = soak(&[48], 50);
    let figures = |pack: &str, event: &str| {
        let (event, pack) = (event.to_owned(), pack.to_owned());
        Record::Event(Event { event, pack, fields: Default::default(), source: Default::default() })
    };
    case.add(&figures("results", "evaluation"));
    case.finish();
    for asked in ["log_errors=0", "server_alive=1", "event.cuda_error=0"] {
        let reason = check(&case, asked, Outcome::Inconclusive);
        assert!(reason.contains("no recognised line of a server log"), "{reason}");
    }
    check(&case, "event.evaluation=1", Outcome::Pass);
}

#[test]
fn memory_that_ran_out_assertions_and_checks_that_failed_are_errors_of_a_log() {
    for event in ["out_of_memory", "assertion", "process_fatal"] {
        let mut case = soak(&[48], 50);
        log(&mut case, event);
        case.finish();
        check(&case, "log_errors=0", Outcome::Fail);
    }
}

#[test]
fn a_reply_without_a_grade_is_neither_right_nor_wrong() {
    let without = |which: fn(u64) -> bool| {
        let mut case = Case::default();
        for i in 0..50 {
            let graded = reply(0, i, true);
            let correct = graded.correct.filter(|_| !which(i));
            case.add(&Completion { correct, ..graded }.into());
        }
        case.finish();
        case
    };
    for asked in ["accuracy>=0.9", "correct>=45/50", "accuracy<=0.5"] {
        check(&without(|_| true), asked, Outcome::Inconclusive);
    }
    let reason = check(&without(|i| i < 7), "correct>=45/50", Outcome::Inconclusive);
    assert!(reason.contains("7 of 50 replies have an expected answer and no grade"), "{reason}");
}

#[test]
fn two_models_in_one_stream_are_noticed() {
    let run = |digest: &str| {
        Record::Run(Run {
            tool: "t".into(),
            digests: [("model".into(), digest.into())].into(),
            ..Run::default()
        })
    };
    let mut c = Case::default();
    c.add(&run("a"));
    check(&c, "model_digest=1", Outcome::Pass);
    c.add(&run("b"));
    check(&c, "model_digest=1", Outcome::Fail);
}

#[test]
fn the_original_scripts_fields_are_null_where_theirs_passed_on_nothing() {
    let j = |c: &Case| seed::compat(c, &judge(c, &Settings::default()));
    let c = soak(&[48, 48, 48, 11, 37], 50);
    let fields = j(&c);
    assert_eq!(fields["gate_2b_pass"], json!(false));
    assert_eq!(fields["runs"][3], json!({"run": 4, "correct": 11, "errors": 0, "pass": false}));
    assert_eq!(j(&Case::default())["gate_2b_pass"], json!(null), "their script said true");
    let mut sound = soak(&[48; 5], 50);
    assert_eq!(j(&sound)["gate_2b_pass"], json!(null), "no log: nobody knows whether the server lived");
    log(&mut sound, "engine_stats");
    assert_eq!(j(&sound)["gate_2b_pass"], json!(true));
}

#[test]
fn the_manual_holds_the_tables_that_the_program_uses() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/GATES.md");
    let manual = std::fs::read_to_string(&path).unwrap();
    let tables =
        [("metrics", cute_evidence::gates::metric::markdown()), ("checks", checks::catalogue::markdown())];
    let mut fresh = manual.clone();
    for (name, table) in &tables {
        let from = fresh.find(&format!("<!-- {name}:")).unwrap();
        let from = from + fresh[from..].find('\n').unwrap() + 1;
        let to = fresh.find(&format!("<!-- end of {name} -->")).unwrap();
        fresh.replace_range(from..to, table);
    }
    if std::env::var_os("CUTE_BLESS").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    assert!(manual == fresh, "docs/GATES.md is out of date: run this test once with CUTE_BLESS=1");
}

/// A soak of five runs of fifty questions, wrong where it says so.
fn answered(wrong: impl Fn(u64) -> bool) -> Case {
    let mut case = Case::default();
    for i in 0..250u64 {
        case.add(&reply(i / 50, i % 50, !wrong(i)).into());
    }
    case.finish();
    case
}

fn stretch(case: &Case) -> (Option<u64>, Option<u64>) {
    let v = judge(case, &Settings::default()).verdict;
    (v.onset_ordinal, v.recovery_ordinal)
}

#[test]
fn hits_behind_the_last_miss_are_no_recovery() {
    // One in three is wrong to the end: the likeliest stretch ends at the last of them, request 248.
    assert_eq!(stretch(&answered(|i| i >= 150 && (i - 150) % 50 % 3 == 0)), (Some(150), None));
    // Behind a stretch in which every second answer is right three right ones prove nothing, thirty do.
    assert_eq!(stretch(&answered(|i| (150..247).contains(&i) && i % 2 == 0)), (Some(150), None));
    assert_eq!(stretch(&answered(|i| (150..220).contains(&i) && i % 2 == 0)), (Some(150), Some(219)));
}

#[test]
fn a_pause_before_misses_gather_again_is_no_recovery() {
    let twice = |i| (150..156).contains(&i) || (200..205).contains(&i);
    assert_eq!(stretch(&answered(twice)), (Some(150), None));
    assert_eq!(stretch(&answered(|i| (150..156).contains(&i) || i == 220)), (Some(150), Some(156)));
}

#[test]
fn of_thirty_soaks_that_stay_bad_hardly_one_is_said_to_have_recovered() {
    let (mut onsets, mut recoveries) = (0, 0);
    for seed in 1..=30u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let wrong: Vec<bool> = (0..250)
            .map(|i| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let chance = (x >> 11) as f64 / (1u64 << 53) as f64;
                chance < if i < 150 { 0.04 } else { 0.3 }
            })
            .collect();
        let (onset, recovery) = stretch(&answered(|i| wrong[i as usize]));
        onsets += u32::from(onset.is_some());
        recoveries += u32::from(recovery.is_some());
    }
    assert!(onsets >= 25 && recoveries <= 1, "{recoveries} of {onsets}");
}
