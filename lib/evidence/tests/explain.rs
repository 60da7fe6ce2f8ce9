//! Mechanisms: the incident's own logs, legs that are sound, legs that no hypothesis explains, and our own engine's faults.

use cute_evidence::checks::Case;
use cute_evidence::explain::explain;
use cute_evidence::{adapters, logs};
use cute_records::{Completion, Event, Finding, FinishReason, Pool, Record, Run, Source};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn evidence(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/evidence").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

/// A leg's directory with its own log, as `cute-dispatch-extract docker.log | cute-audit --results DIR` sees it.
fn leg(dir: &Path) -> Case {
    let mut case = Case::default();
    add_leg(&mut case, dir);
    case.finish();
    case
}

fn add_leg(case: &mut Case, dir: &Path) {
    let found = adapters::read(dir).unwrap();
    found.completions.into_iter().for_each(|c| case.add(&c.into()));
    found.records.iter().for_each(|r| case.add(r));
    for log in &found.logs {
        logs::read(log).unwrap().0.iter().for_each(|r| case.add(r));
    }
}

fn find<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    findings.iter().find(|f| f.check == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

fn explained(f: &Finding, id: &str) -> Value {
    let list = f.data["hypotheses"].as_array().unwrap();
    list.iter().find(|h| h["id"] == json!(id)).map(|h| h["explained"].clone()).unwrap_or(Value::Null)
}

#[test]
fn both_soaks_are_explained_label_by_label_with_nothing_chosen() {
    for (dir, pool) in [("soak", 863), ("soak_d2_5_2L_3_7_control", 864)] {
        let Some(dir) = evidence(dir) else { return };
        let out = explain(&leg(&dir));
        let f = find(&out.findings, "mechanism");
        for (key, value) in [
            ("mechanism", json!("kv_offset_i32_overflow")),
            ("onset_ordinal", json!(162)),
            ("recovery_ordinal", json!(214)),
            ("first_bad_block", json!(655)),
            ("first_bad_token", json!(576)),
            ("labels", json!(250)),
            ("explained", json!(250)),
            ("pool_blocks", json!(pool)),
            ("warmup_requests", json!(1)),
            ("predicted_ranges", json!([[162, 213]])),
            ("demands_known_by", json!({"usage gauge": 250})),
        ] {
            assert_eq!(f.data[key], value, "{key}: {}", f.message);
        }
        assert_eq!(f.data["hypotheses"][0]["chosen_values"], json!(0));
        // 36 good answers after recovery, 52 bad ones: what each rival cannot explain.
        assert_eq!(explained(f, "after_n_requests"), json!(214));
        assert_eq!(explained(f, "after_elapsed_time"), json!(214));
        assert_eq!(explained(f, "recycled_block"), json!(162));
        assert_eq!(explained(f, "kv_offset_u32_overflow"), json!(198));
        assert_eq!(explained(f, "nothing"), json!(198));
    }
}

#[test]
fn over_two_soaks_the_ordinal_is_constant_and_the_seconds_are_not() {
    let (Some(a), Some(b)) = (evidence("soak"), evidence("soak_d2_5_2L_3_7_control")) else { return };
    let mut case = Case::default();
    add_leg(&mut case, &a);
    add_leg(&mut case, &b);
    case.finish();
    let out = explain(&case);
    assert_eq!(
        out.findings.iter().filter(|f| f.check == "mechanism").count(),
        2,
        "each leg has its own pool"
    );
    let f = find(&out.findings, "invariance");
    let constant = f.data["constant"].to_string();
    assert!(constant.contains("ordinal (162)") && constant.contains("blocks handed out (652)"), "{constant}");
    assert!(f.data["varying"].to_string().contains("seconds"), "{f:?}");
}

#[test]
fn the_may_soak_with_long_requests_and_missing_runs_is_explained_where_its_results_have_a_place() {
    let Some(dir) = evidence("prod_soak_wo8") else { return };
    let out = explain(&leg(&dir));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["mechanism"], json!("kv_offset_i32_overflow"));
    assert_eq!((&f.data["labels"], &f.data["explained"]), (&json!(132), &json!(129)), "{}", f.message);
    assert!(f.message.contains("3 result(s) have no certain place"), "{}", f.message);
}

#[test]
fn a_sound_leg_has_no_mechanism_and_is_told_that_its_pool_is_exposed() {
    for dir in ["sweep/2L_3_7", "sweep/12L_3_47"] {
        let Some(dir) = evidence(dir) else { return };
        let out = explain(&leg(&dir));
        assert_eq!(find(&out.findings, "mechanism").data["mechanism"], Value::Null);
        let exposed = find(&out.findings, "pool_exposed");
        assert_eq!(exposed.data["first_request"], json!(164));
    }
}

/// A made-up soak: `pool` blocks, one short request after the other, bad where `bad` says so.
fn soak(n: u64, pool: u64, posts: Option<u64>, bad: impl Fn(u64) -> bool) -> Case {
    let mut case = Case::default();
    let at = |line: u64| Source { file: "x/server.log".into(), line, ..Source::default() };
    case.add(&Record::Pool(Pool {
        num_blocks: Some(pool),
        block_size: Some(1600),
        block_bytes: Some(3_276_800),
        token_bytes: Some(2048),
        state_blocks_per_request: Some(3),
        first_block: Some(1),
        source: Some(at(1)),
        ..Pool::default()
    }));
    for i in 0..posts.unwrap_or(0) {
        let fields = [("method", json!("POST")), ("path", json!("/v1/completions")), ("status", json!(200))];
        let fields = fields.map(|(k, v)| (k.to_owned(), v)).into();
        case.add(&Record::Event(Event {
            event: "http_request".into(),
            fields,
            source: at(10 + i),
            ..Event::default()
        }));
    }
    for i in 0..n {
        let text = if bad(i) { format!("1{}", "!".repeat(200)) } else { format!("The answer is {i}.") };
        case.add(&Record::Completion(Completion {
            id: i.to_string(),
            run: i / 50,
            index: i % 50,
            ordinal: i,
            text: Some(text),
            finish_reason: Some(if bad(i) { FinishReason::Length } else { FinishReason::Stop }),
            wall_ms: Some(1000.0),
            leg: Some("made up".into()),
            ..Completion::default()
        }));
    }
    case.finish();
    case
}

#[test]
fn a_pool_of_another_size_moves_the_recovery_and_not_the_onset() {
    // 700 blocks: 699 usable. Request 174 (ordinal 172) holds block 696; the next takes 697-699 and wraps to block 1.
    let out = explain(&soak(250, 700, Some(251), |i| (162..173).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["predicted_ranges"], json!([[162, 172]]));
    assert_eq!(f.data["explained"], json!(250));
    // The second time round attention blocks are 1, 5, 9, …: 657 comes with request 339, ordinal 337.
    let out = explain(&soak(400, 700, Some(401), |i| (162..173).contains(&i) || (337..348).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["predicted_ranges"], json!([[162, 172], [337, 347]]), "{}", f.message);
}

#[test]
fn labels_that_contradict_the_replay_are_not_explained() {
    let out = explain(&soak(250, 863, Some(251), |i| (100..140).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["mechanism"], Value::Null, "{}", f.message);
    assert_eq!(f.data["explained"], Value::Null);
    assert!(f.message.contains("no mechanism explains the 40 collapsed outputs of 250"), "{}", f.message);
}

#[test]
fn a_collapse_that_stays_for_ever_is_left_to_the_simpler_rival() {
    let out = explain(&soak(250, 863, Some(251), |i| i >= 162));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["mechanism"], Value::Null, "{}", f.message);
    assert_eq!(explained(f, "after_n_requests"), json!(250));
}

#[test]
fn a_few_labels_that_do_not_fit_are_named() {
    let out = explain(&soak(250, 863, Some(251), |i| (162..214).contains(&i) && i != 180 || i == 20));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["mechanism"], json!("kv_offset_i32_overflow"));
    assert_eq!(f.data["unexplained_ordinals"], json!([20, 180]));
    assert!(f.message.contains("248 of 250") && f.message.contains("20, 180"), "{}", f.message);
}

#[test]
fn without_a_request_log_the_number_of_warmup_requests_is_guessed_and_said_to_be() {
    let out = explain(&soak(250, 863, None, |i| (162..214).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert_eq!((&f.data["explained"], &f.data["warmup_requests"]), (&json!(250), &json!(1)));
    assert_eq!(f.data["hypotheses"][0]["chosen_values"], json!(1));
    assert!(
        f.data["blocks_known_by"].as_str().unwrap().contains("of 0 to 3"),
        "{:?}",
        f.data["blocks_known_by"]
    );
}

#[test]
fn without_a_pool_the_replay_says_what_it_lacks() {
    let mut case = soak(60, 863, None, |i| i > 50);
    case.legs.iter_mut().for_each(|l| l.pools.clear());
    let out = explain(&case);
    assert!(find(&out.findings, "replay_impossible").message.contains("no pool record"));
    assert_eq!(find(&out.findings, "mechanism").data["mechanism"], Value::Null);
}

/// Our own engine names the pages each request held; its scaled fault truncates to the width the pool exceeds.
fn engine(bad_from_page: u32) -> Case {
    let mut case = Case::default();
    case.add(&Record::Run(Run { tool: "cute-generate".into(), ..Run::default() }));
    case.add(&Record::Pool(Pool {
        num_blocks: Some(200),
        block_size: Some(64),
        block_bytes: Some(32_768),
        state_blocks_per_request: Some(0),
        first_block: Some(1),
        ..Pool::default()
    }));
    for i in 0..250u64 {
        let first = (i * 2 % 199) as u32 + 1;
        let pages = vec![first, if first == 199 { 1 } else { first + 1 }];
        let bad = pages.iter().any(|p| *p >= bad_from_page);
        case.add(&Record::Completion(Completion {
            id: i.to_string(),
            run: i / 50,
            index: i % 50,
            ordinal: i,
            prompt_tokens: Some(60),
            completion_tokens: Some(60),
            text: Some(if bad { "!".repeat(60) } else { "Fine.".into() }),
            finish_reason: Some(if bad { FinishReason::Length } else { FinishReason::Stop }),
            kv_pages: Some(pages),
            ..Completion::default()
        }));
    }
    case.finish();
    case
}

#[test]
fn witnessed_pages_name_the_scaled_width() {
    // 128 x 32,768 = 2^22: a signed 23-bit offset; the pool ends at 200 x 32,768 = 6,553,600.
    let out = explain(&engine(128));
    let f = find(&out.findings, "mechanism");
    assert_eq!(f.data["mechanism"], json!("kv_offset_i23_overflow"), "{}", f.message);
    assert_eq!((&f.data["explained"], &f.data["first_bad_block"]), (&json!(250), &json!(128)));
    assert_eq!(f.data["witnessed"], json!(true));
    assert_eq!(
        out.findings.iter().filter(|f| f.check == "pool_exposed").count(),
        0,
        "a small pool fits 32 bits"
    );
}

#[test]
fn witnessed_pages_that_no_width_explains_leave_the_mechanism_open() {
    let out = explain(&engine(150));
    assert_eq!(find(&out.findings, "mechanism").data["mechanism"], Value::Null);
}

#[test]
fn hostile_ordinals_do_not_exhaust_memory() {
    let mut case = soak(60, 863, None, |i| i > 50);
    for (i, c) in case.legs[0].completions.iter_mut().enumerate() {
        c.ordinal = u64::MAX / 2 + i as u64 * 1_000_000_007;
    }
    let _ = explain(&case);
}

/// Adds statistics lines to a made-up soak: one before every request line, and a second request running from `from`.
fn overlapping(n: u64, from: u64, bad: impl Fn(u64) -> bool) -> Case {
    let mut case = Case::default();
    let at = |line: u64| Source { file: "x/server.log".into(), line, ..Source::default() };
    let fields = |list: Vec<(&str, Value)>| list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let event = |name: &str, line, list| {
        Record::Event(Event {
            event: name.into(),
            fields: fields(list),
            source: at(line),
            ..Event::default()
        })
    };
    for i in 0..=n {
        let running = if i >= from { 2 } else { 1 };
        case.add(&event(
            "engine_stats",
            10 + 2 * i,
            vec![("running", json!(running)), ("kv_cache_usage_percent", json!(0.5))],
        ));
        let post =
            vec![("method", json!("POST")), ("path", json!("/v1/completions")), ("status", json!(200))];
        case.add(&event("http_request", 11 + 2 * i, post));
    }
    let plain = soak(n, 863, None, bad);
    plain.legs[0].pools.iter().for_each(|p| case.add(&Record::Pool(p.clone())));
    let labels = plain.legs[0].labels.iter().map(|l| l.degenerate());
    for (c, bad) in plain.legs[0].completions.iter().zip(labels) {
        let text = if bad { "!".repeat(200) } else { "It is 4.".to_owned() };
        case.add(&Record::Completion(Completion { text: Some(text), ..c.clone() }));
    }
    case.finish();
    case
}

#[test]
fn overlapping_requests_are_said_to_be_uncertain() {
    let out = explain(&overlapping(250, 400, |i| (162..214).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert_eq!(
        (&f.data["explained"], &f.data["ambiguous_from"]),
        (&json!(250), &Value::Null),
        "{}",
        f.message
    );
    // Overlap at the end: said, but no block of these results depends on it.
    let out = explain(&overlapping(250, 201, |i| (162..214).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert_eq!((&f.data["ambiguous_from"], &f.data["explained"]), (&json!(200), &json!(250)));
    assert!(f.message.contains("requests overlap from 200 on"), "{}", f.message);
    // Overlap from the start: once the list has wrapped, blocks depend on who finished first.
    let out = explain(&overlapping(450, 1, |i| (162..214).contains(&i)));
    let f = find(&out.findings, "mechanism");
    assert!(f.data["unsure_ordinals"].as_str().unwrap().contains("21"), "{}", f.data["unsure_ordinals"]);
    let overflow = f.data["hypotheses"]
        .as_array()
        .unwrap()
        .iter()
        .find(|h| h["id"] == "kv_offset_i32_overflow")
        .unwrap();
    assert!(overflow["open"].as_u64().unwrap() > 100, "{overflow}");
}

#[test]
fn a_gauge_that_shows_two_blocks_moves_the_onset() {
    // Every request holds two attention blocks: five blocks each, 0.6 % of 862; 656 comes after 131 requests.
    let mut case = overlapping(250, 400, |_| false);
    for line in &mut case.legs[0].log {
        if let cute_evidence::checks::What::Reading { percent, .. } = &mut line.what {
            *percent = 0.6;
        }
    }
    let out = explain(&case);
    let f = find(&out.findings, "mechanism");
    let overflow = f.data["hypotheses"]
        .as_array()
        .unwrap()
        .iter()
        .find(|h| h["id"] == "kv_offset_i32_overflow")
        .unwrap();
    // request k (1-based) holds blocks 5k-1 and 5k: k = 132 is the first beyond 655, ordinal 130
    assert!(overflow["predicted"].as_str().unwrap().starts_with("130-"), "{overflow}");
}
