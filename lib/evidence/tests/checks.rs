//! The auditor's invariants: what each violation is called, and that sound streams have none.

use cute_evidence::checks::pipe::Outlet;
use cute_evidence::checks::{self, Case, Expectations};
use cute_records::{
    Completion, Dispatch, End, Event, Finding, FinishReason, Origin, Pool, Reader, Record, Run, Setting,
    Severity, Source, State, Trace, TraceLayer, Writer,
};
use std::io::Cursor;

fn run(tool: &str) -> Record {
    Run { tool: tool.into(), ..Run::default() }.into()
}

fn case(records: impl IntoIterator<Item = Record>) -> Case {
    let mut case = Case::default();
    records.into_iter().for_each(|r| case.add(&r));
    case.finish();
    case
}

fn reply(run: u64, index: u64, fingerprint: &str) -> Completion {
    Completion {
        id: format!("{run}-{index}"),
        run,
        index,
        ordinal: run * 10 + index,
        text: Some("The answer is 4.".into()),
        finish_reason: Some(FinishReason::Stop),
        fingerprint: Some(fingerprint.into()),
        ..Completion::default()
    }
}

fn line(layer: Option<u32>, chosen: &str, ran: Option<&str>) -> Record {
    Dispatch {
        layer_name: format!("layers.{layer:?}"),
        layer_idx: layer,
        enabled: true,
        is_decode_only: true,
        num_seqs: 1,
        resident_cap: 96,
        use_beta_coop: chosen == "coop",
        use_beta_lite: chosen == "lite",
        path: Some(chosen.into()),
        outcome: ran.map(str::to_owned),
        source: Source { file: "gen.log".into(), line: 7, ..Source::default() },
        ..Dispatch::default()
    }
    .into()
}

fn expect(coop: &str, lite: &str, paged: &str) -> Expectations {
    let set = |s: &str| if s.is_empty() { None } else { Some(s.parse().unwrap()) };
    Expectations { coop: set(coop), lite: set(lite), paged: set(paged), require_records: false }
}

/// Names of the findings that are errors, or gaps in the evidence.
fn names(findings: &[Finding]) -> Vec<&str> {
    let counts = |f: &&Finding| f.severity == Severity::Error || checks::is_gap(f);
    let mut out: Vec<&str> = findings.iter().filter(counts).map(|f| f.check.as_str()).collect();
    out.dedup();
    out
}

fn check(records: Vec<Record>, expected: &Expectations, names_expected: &[&str]) -> Vec<Finding> {
    let found = checks::all(&case(records), expected);
    assert_eq!(names(&found), names_expected, "{found:#?}");
    found
}

#[test]
fn expected_layers_on_the_expected_path_are_no_finding() {
    let coop = || {
        vec![
            line(Some(3), "coop", Some("coop")),
            line(Some(7), "coop", Some("coop")),
            line(Some(11), "paged", Some("paged")),
        ]
    };
    check(coop(), &expect("3,7", "", ""), &[]);
    check(coop(), &expect("3,7", "none", "11"), &[]);
    check(coop(), &Expectations::default(), &[]);
}

#[test]
fn a_missing_an_unexpected_and_an_unseen_layer_are_told_apart() {
    let lines = || vec![line(Some(3), "coop", Some("coop")), line(Some(7), "lite", Some("lite"))];
    let found = check(lines(), &expect("3,7", "", ""), &["dispatch_expected_absent", "dispatch_unexpected"]);
    assert_eq!(found[0].layer, Some(7));
    assert!(found[0].message.contains("expected on coop, ran on lite"), "{}", found[0].message);
    check(lines(), &expect("3", "7", ""), &[]);
    check(lines(), &expect("3,15", "7", ""), &["dispatch_expected_absent"]);
    check(lines(), &expect("none", "7", ""), &["dispatch_unexpected"]);
    check(lines(), &expect("", "7", ""), &["dispatch_unexpected"]);
}

#[test]
fn what_ran_counts_and_not_what_was_chosen() {
    let found = check(
        vec![line(Some(3), "coop", Some("lite"))],
        &expect("3", "", ""),
        &["dispatch_expected_absent", "dispatch_unexpected", "dispatch_intent_outcome"],
    );
    let differ = found.iter().find(|f| f.check == "dispatch_intent_outcome").unwrap();
    assert!(differ.message.contains("chose coop, ran lite"), "{}", differ.message);
    assert_eq!(differ.at.as_deref(), Some("gen.log:7"));
    check(vec![line(Some(3), "coop", Some("lite"))], &Expectations::default(), &["dispatch_intent_outcome"]);
}

#[test]
fn lines_that_only_state_an_intent_are_compared_by_it_with_a_warning() {
    let found = check(vec![line(Some(3), "coop", None)], &expect("3", "", ""), &[]);
    assert!(found.iter().any(|f| f.check == "dispatch_intent_only" && f.severity == Severity::Warning));
}

#[test]
fn a_layer_on_two_paths_is_an_error_where_one_was_expected() {
    let lines = || vec![line(Some(3), "coop", Some("coop")), line(Some(3), "paged", Some("paged"))];
    check(lines(), &expect("3", "", ""), &["dispatch_two_paths"]);
    let found = check(lines(), &Expectations::default(), &[]);
    assert!(found.iter().any(|f| f.check == "dispatch_two_paths"));
}

#[test]
fn a_line_without_a_layer_is_reported_and_not_dropped() {
    check(
        vec![line(None, "coop", Some("coop")), line(Some(3), "coop", Some("coop"))],
        &expect("3", "", ""),
        &["dispatch_layer_unknown"],
    );
    let found = check(vec![line(None, "coop", Some("coop"))], &Expectations::default(), &[]);
    assert_eq!(found[0].check, "dispatch_layer_unknown");
}

#[test]
fn an_expectation_without_any_record_is_a_gap_and_an_empty_list_is_refused() {
    check(vec![], &expect("3", "", ""), &["no_dispatch_records"]);
    check(vec![], &expect("none", "", ""), &["no_dispatch_records"]);
    check(
        vec![],
        &Expectations { require_records: true, ..Expectations::default() },
        &["no_dispatch_records"],
    );
    check(vec![], &Expectations::default(), &[]);
    for bad in ["", " ", "3,,7", "3,x", "3,3", "0..7", "3 7"] {
        assert!(bad.parse::<checks::Layers>().is_err(), "{bad:?}");
    }
}

#[test]
fn prefill_lines_are_no_evidence_about_decode_steps() {
    let prefill = |r: Record| match r {
        Record::Dispatch(d) => Record::Dispatch(Dispatch { is_decode_only: false, ..d }),
        r => r,
    };
    check(vec![prefill(line(Some(3), "coop", Some("coop")))], &expect("3", "", ""), &["no_dispatch_records"]);
}

#[test]
fn the_same_prompt_with_another_fingerprint_is_found_with_its_first_case() {
    let mut late = reply(1, 1, "b");
    (late.slot, late.recycle) = (Some(4), Some(2));
    let rows =
        vec![reply(0, 0, "a"), reply(0, 1, "a"), reply(1, 0, "a"), late, reply(2, 0, "a"), reply(2, 1, "c")];
    let found = check(
        rows.into_iter().map(Record::from).collect(),
        &Expectations::default(),
        &["fingerprint_differs"],
    );
    let f = found.iter().find(|f| f.check == "fingerprint_differs").unwrap();
    assert_eq!(f.ordinal, Some(11));
    assert_eq!((f.data["count"].as_u64(), f.data["compared"].as_u64()), (Some(2), Some(4)));
    assert!(f.message.contains("slot 4 used 2 time(s) before"), "{}", f.message);
}

#[test]
fn equal_prompts_at_different_places_are_compared_by_their_digest() {
    let with = |c: Completion, p: &str| Record::from(Completion { prompt_sha256: Some(p.into()), ..c });
    check(
        vec![with(reply(0, 0, "a"), "p"), with(reply(0, 1, "b"), "p")],
        &Expectations::default(),
        &["fingerprint_differs"],
    );
    check(vec![with(reply(0, 0, "a"), "p"), with(reply(1, 0, "b"), "q")], &Expectations::default(), &[]);
}

#[test]
fn cancelled_and_preempted_replies_are_not_compared_and_cancelled_ones_not_graded() {
    let graded = Completion { gold: Some("4".into()), correct: Some(true), ..reply(0, 0, "a") };
    let cancelled = Completion {
        finish_reason: Some(FinishReason::Cancelled),
        gold: Some("4".into()),
        ..reply(1, 0, "b")
    };
    let preempted = Completion { preempted: Some(1), ..reply(2, 0, "c") };
    let rows: Vec<Record> = vec![graded.into(), cancelled.into(), preempted.into()];
    let found = check(rows.clone(), &Expectations::default(), &[]);
    let told: Vec<_> = found.iter().filter(|f| f.check == "cancelled").collect();
    assert_eq!((told.len(), told[0].severity, told[0].ordinal), (1, Severity::Info, Some(10)));
    let scores: Vec<_> =
        case(rows).legs.iter().flat_map(|l| l.scores()).map(|s| (s.run, s.correct, s.n)).collect();
    assert_eq!(scores, [(0, 1, 1), (1, 0, 0), (2, 0, 0)]);
}

#[test]
fn a_run_that_sampled_is_not_held_to_one_fingerprint() {
    let mut sampled = Run { tool: "cute-generate".into(), ..Run::default() };
    let setting = |v: serde_json::Value| {
        serde_json::from_value(serde_json::json!({"value": v, "origin": "flag"})).unwrap()
    };
    sampled.config.insert("temperature".into(), setting(serde_json::json!("0.7")));
    let rows = vec![sampled.clone().into(), reply(0, 0, "a").into(), reply(1, 0, "b").into()];
    let found = check(rows, &Expectations::default(), &[]);
    assert!(found.iter().any(|f| f.check == "same_prompt_skipped"));
    sampled.config.insert("temperature".into(), setting(serde_json::json!(0.0)));
    check(
        vec![sampled.into(), reply(0, 0, "a").into(), reply(1, 0, "b").into()],
        &Expectations::default(),
        &["fingerprint_differs"],
    );
}

fn state(op: &str, slot: u32, owner: &str, zero: Option<bool>) -> Record {
    State { op: op.into(), kind: "recurrent".into(), slot, owner: owner.into(), zero, ..State::default() }
        .into()
}

#[test]
fn a_slot_that_was_not_zero_is_found_once_with_its_count() {
    let events = vec![
        state("acquire", 1, "a", Some(true)),
        state("release", 1, "a", None),
        state("acquire", 1, "b", Some(false)),
        state("release", 1, "b", None),
        state("acquire", 1, "c", Some(false)),
        state("release", 1, "c", None),
    ];
    let found = check(events, &Expectations::default(), &["state_not_zero_on_acquire"]);
    assert_eq!(found[0].data["count"], serde_json::json!(2));
    assert!(
        found[0].message.contains("slot 1") && found[0].message.contains("\"b\""),
        "{}",
        found[0].message
    );
}

/// A life of slot 1: acquired and released in these epochs.
fn life(epochs: &[(u64, u64)]) -> Vec<Record> {
    let event = |op: &str, epoch| {
        let (op, kind) = (op.into(), "recurrent".into());
        Record::from(State { op, kind, slot: 1, owner: "a".into(), epoch, ..State::default() })
    };
    epochs.iter().flat_map(|(a, r)| [event("acquire", *a), event("release", *r)]).collect()
}

#[test]
fn epochs_that_do_not_rise_and_releases_in_another_epoch_are_found() {
    let sound = Expectations::default();
    check(life(&[(1, 1), (2, 2), (3, 3)]), &sound, &[]);
    let found = check(life(&[(1, 1), (2, 2), (2, 2)]), &sound, &["state_epoch"]);
    assert!(found[0].message.contains("in epoch 2, acquired before in epoch 2"), "{}", found[0].message);
    check(life(&[(1, 1), (2, 1)]), &sound, &["state_epoch"]);
    // a second producer's slots are others
    let mut two = vec![run("cute-generate")];
    two.extend(life(&[(1, 1), (2, 2)]));
    two.push(run("cute-generate"));
    two.extend(life(&[(1, 1), (2, 2)]));
    check(two, &sound, &[]);
}

#[test]
fn pools_that_are_not_empty_at_the_end_or_do_not_balance_are_found() {
    let ended = |complete, acquired: u64, released: u64, in_use: u64| {
        let mut lines = Vec::new();
        let mut out = Writer::new(&mut lines);
        out.write(&run("cute-generate")).unwrap();
        let counters = [("slots_acquired", acquired), ("slots_released", released), ("slots_in_use", in_use)];
        let counters = counters.map(|(name, n)| (name.to_owned(), n)).into();
        out.end_with(End { tool: "cute-generate".into(), complete, counters, ..End::default() }).unwrap();
        drop(out);
        let mut case = Case::default();
        for line in Reader::new("stream", Cursor::new(lines)) {
            case.note(&line.unwrap().parse().unwrap());
        }
        case.finish();
        checks::state::pools(&case.ledger)
    };
    assert!(ended(true, 5, 5, 0).is_empty());
    assert!(ended(false, 5, 3, 2).is_empty(), "a run that was stopped holds what it held");
    let leak = ended(true, 5, 3, 2);
    assert_eq!(names(&leak), ["pool_in_use_at_end"]);
    assert!(leak[0].message.contains("5 slots acquired, 3 released, 2 in use"), "{}", leak[0].message);
    for (acquired, released, in_use) in [(5, 5, 1), (5, 3, 0), (3, 5, 0)] {
        assert_eq!(names(&ended(false, acquired, released, in_use)), ["pool_unbalanced"]);
    }
}

#[test]
fn a_slot_with_two_owners_and_a_double_release_are_found() {
    check(
        vec![state("acquire", 1, "a", None), state("acquire", 1, "b", None)],
        &Expectations::default(),
        &["state_owned_twice"],
    );
    check(
        vec![state("acquire", 1, "a", None), state("release", 1, "b", None)],
        &Expectations::default(),
        &["state_released_by_another"],
    );
    let twice =
        vec![state("acquire", 1, "a", None), state("release", 1, "a", None), state("release", 1, "a", None)];
    check(twice, &Expectations::default(), &["state_released_twice"]);
}

#[test]
fn trouble_in_the_servers_log_is_found_once_a_kind() {
    let event = |name: &str, line| {
        Record::Event(Event {
            event: name.into(),
            source: Source { file: "s.log".into(), line, ..Source::default() },
            ..Event::default()
        })
    };
    let lines = vec![
        event("fallback_raise", 1),
        event("coop_launch_failed", 2),
        event("coop_launch_failed", 3),
        event("log_warning", 4),
    ];
    let found = check(lines, &Expectations::default(), &["server_trouble"]);
    assert_eq!((found[0].at.as_deref(), found[0].data["count"].as_u64()), (Some("s.log:2"), Some(2)));
}

#[test]
fn every_unhealthy_reply_has_a_finding_with_its_evidence() {
    let bad = Completion { text: Some("!".repeat(2048)), ..reply(0, 0, "a") };
    let failed = Completion { error: Some("timed out".into()), ..reply(0, 1, "a") };
    let found = check(
        vec![bad.into(), failed.into()],
        &Expectations::default(),
        &["single_token_run", "client_error"],
    );
    assert_eq!(found[0].data["length"], serde_json::json!(2048));
    assert!(found[1].message.contains("timed out"));
}

#[test]
fn missing_and_duplicated_rows_of_a_stream_are_gaps() {
    let graded = |run, index| Record::from(Completion { correct: Some(true), ..reply(run, index, "a") });
    check(vec![graded(0, 0), graded(0, 1), graded(1, 0)], &Expectations::default(), &["missing_rows"]);
    check(vec![graded(0, 0), graded(0, 0)], &Expectations::default(), &["duplicate_row"]);
    check(vec![graded(0, 0), graded(2, 0)], &Expectations::default(), &["missing_run"]);
}

#[test]
fn rows_that_claim_absurd_places_are_gaps_and_cost_nothing() {
    let graded = |run: u64, index: u64| {
        let ordinal = run.saturating_add(index);
        Record::from(Completion { run, index, ordinal, correct: Some(true), ..reply(0, 0, "a") })
    };
    let found =
        check(vec![graded(0, 1), graded(0, u64::MAX - 5)], &Expectations::default(), &["missing_rows"]);
    let says =
        "18446744073709551609 of 18446744073709551611 rows are missing: index 0, 2-18446744073709551609";
    assert!(found[0].message.ends_with(says), "{}", found[0].message);
    let found = check(
        vec![graded(0, 0), graded(1 << 40, 0), graded(u64::MAX, 0)],
        &Expectations::default(),
        &["missing_run"],
    );
    let says = "run 1-1099511627775, 1099511627777-18446744073709551614 of 18446744073709551615 is missing";
    assert!(found[0].message.ends_with(says), "{}", found[0].message);
}

/// Reads a stream as the tools do; returns the findings and what was complained about.
fn stream(text: &str) -> (Vec<Finding>, Vec<String>, Vec<u8>) {
    let mut case = Case::default();
    let mut sink = Vec::new();
    let mut complaints = Vec::new();
    let mut out = Outlet::new(Writer::new(&mut sink));
    let lines = Reader::new("stdin", Cursor::new(text.as_bytes().to_vec()));
    case.read(lines, &mut out, &mut |e| complaints.push(e.to_string())).unwrap();
    drop(out);
    case.finish();
    (checks::all(&case, &Expectations::default()), complaints, sink)
}

fn text(records: &[Record]) -> String {
    records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect()
}

#[test]
fn a_stream_without_its_end_was_cut_off_and_a_bad_line_spares_its_neighbours() {
    let counts = [("run".to_owned(), 1), ("completion".to_owned(), 1)].into();
    let end = End { tool: "t".into(), complete: true, counts, ..End::default() };
    let whole = text(&[run("t"), reply(0, 0, "a").into(), end.into()]);
    assert_eq!(names(&stream(&whole).0), Vec::<&str>::new());
    let cut = text(&[run("t"), reply(0, 0, "a").into()]);
    assert_eq!(names(&stream(&cut).0), ["stream_cut_off"]);
    let (found, complaints, forwarded) = stream(&whole.replacen('\n', "\nnot json\n", 1));
    assert_eq!(names(&found), ["lines_unreadable"]);
    assert!(complaints[0].starts_with("stdin:2: column 2"), "{complaints:?}");
    assert_eq!(String::from_utf8(forwarded).unwrap(), whole, "good lines are forwarded byte for byte");
}

#[test]
fn thinking_goes_on_when_nobody_reads() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut case = Case::default();
    let mut out = Outlet::new(Writer::new(Closed));
    let all = text(&[run("t"), reply(0, 0, "a").into(), reply(1, 0, "b").into()]);
    case.read(Reader::new("stdin", Cursor::new(all.into_bytes())), &mut out, &mut |_| {}).unwrap();
    case.finish();
    assert!(out.closed());
    assert!(names(&checks::all(&case, &Expectations::default())).contains(&"fingerprint_differs"));
}

#[test]
fn two_producers_in_one_stream_are_two_legs() {
    let c =
        case([run("cute-generate"), reply(0, 0, "a").into(), run("cute-generate"), reply(0, 0, "b").into()]);
    assert_eq!(c.legs.len(), 2);
    assert_eq!(names(&checks::all(&c, &Expectations::default())), Vec::<&str>::new());
}

/// A run told to take a path, and its replies to prompts 0, 1, 2, … with these fingerprints.
fn told(path: &str, fusion: bool, fingerprints: &[&str]) -> Vec<Record> {
    let setting = |value: serde_json::Value| Setting { value, origin: Origin::Flag };
    let config = [("phase_e_path", path.into()), ("phase_e_fusion", fusion.into())];
    let config = config.map(|(name, value)| (name.to_owned(), setting(value))).into();
    let replies = fingerprints.iter().enumerate().map(|(i, f)| Completion {
        prompt_sha256: Some(format!("prompt {i}")),
        completion_tokens: Some(9),
        ..reply(0, i as u64, f)
    });
    let run = Run { tool: "cute-generate".into(), config, ..Run::default() };
    std::iter::once(run.into()).chain(replies.map(Into::into)).collect()
}

#[test]
fn two_paths_with_the_same_bits_are_one_path() {
    let check = |coop: Vec<Record>, other: Vec<Record>| {
        let found = checks::all(&case(coop.into_iter().chain(other)), &Expectations::default());
        names(&found).iter().map(|n| n.to_string()).collect::<Vec<_>>()
    };
    let same = &["a", "b", "c", "d"];
    let coop = || told("coop", true, same);
    assert_eq!(check(coop(), told("lite", true, same)), ["path_without_effect"]);
    let nothing = Vec::<String>::new();
    assert_eq!(check(coop(), told("lite", true, &["a", "b", "c", "e"])), nothing, "one reply differs");
    assert_eq!(check(coop(), told("lite", true, &same[..3])), nothing, "three replies are too few");
    assert_eq!(check(coop(), told("coop", true, same)), nothing, "the same path");
    assert_eq!(check(coop(), told("lite", false, same)), nothing, "without fusion there is no lite");
    let mut short = told("lite", true, same);
    for r in &mut short {
        if let Record::Completion(c) = r {
            c.completion_tokens = Some(1);
        }
    }
    assert_eq!(check(coop(), short), nothing, "one token comes from prefill, which has no paths");
}

/// A request's trace and its reply, which agree, behind a pool of five pages of 100 bytes.
fn traced() -> (Record, Completion, Trace) {
    let pool = Pool { num_blocks: Some(6), first_block: Some(1), block_bytes: Some(100), ..Pool::default() };
    let reply = Completion {
        slot: Some(2),
        epoch: Some(1),
        kv_pages: Some(vec![1, 3]),
        token_sha256: Some("t".into()),
        ..reply(0, 0, "f")
    };
    let count = |name: &str, n| [(name.to_owned(), n)].into();
    let layer = TraceLayer {
        layer: 3,
        paths: [("coop".into(), 4), ("lite".into(), 1)].into(),
        resets: Some([("wo_output".into(), 4), ("mlp_partial".into(), 5)].into()),
        buffers: [("wo_output".into(), "0x10".into())].into(),
    };
    let trace = Trace {
        id: reply.id.clone(),
        steps: count("decode", 5),
        layers: vec![layer],
        slot: 2,
        epoch: 1,
        kv_pages: vec![1, 3],
        page_offsets: vec![100, 300],
        buffers: [("kv".into(), "0x20".into()), ("recurrent".into(), "0x30".into())].into(),
        slots_free: 1,
        slots_used: 1,
        pages_free: 3,
        pages_used: 2,
        finish_reason: Some(FinishReason::Stop),
        token_sha256: "t".into(),
        fingerprint: "f".into(),
        ..Trace::default()
    };
    (pool.into(), reply, trace)
}

#[test]
fn a_trace_that_contradicts_its_reply_its_resets_its_addresses_its_pool_or_the_log_is_found() {
    let found = |change: &dyn Fn(&mut Trace), expected: &[&str]| {
        let (pool, reply, trace) = traced();
        // the first is sound; the second, of the same slot, is changed
        let second = Completion { ordinal: 1, index: 1, id: "0-1".into(), ..reply.clone() };
        let mut changed = Trace { ordinal: 1, id: "0-1".into(), ..trace.clone() };
        change(&mut changed);
        let log = [line(Some(3), "coop", Some("coop")), line(Some(3), "lite", Some("lite"))];
        let stream = [run("cute-generate"), pool, reply.into(), trace.into(), second.into(), changed.into()];
        let found = check(stream.into_iter().chain(log).collect(), &Expectations::default(), expected);
        assert!(found.iter().all(|f| expected.is_empty()
            || [Some(1), Some(7)].contains(&f.ordinal)
            || !f.check.starts_with("trace")));
    };
    let layer = |t: &mut Trace, f: &dyn Fn(&mut TraceLayer)| f(&mut t.layers[0]);
    found(&|_| (), &[]);
    let reply = &["trace_contradicts_reply"];
    found(&|t| t.token_sha256 = "u".into(), reply);
    found(&|t| t.fingerprint = "g".into(), reply);
    found(&|t| t.finish_reason = Some(FinishReason::Length), reply);
    found(&|t| (t.kv_pages, t.page_offsets) = (vec![1, 2], vec![100, 200]), reply);
    found(&|t| t.epoch = 2, reply);
    found(&|t| t.ordinal = 7, reply);
    let reset = &["trace_missing_reset"];
    found(&|t| layer(t, &|l| l.resets = Some([("mlp_partial".into(), 5)].into())), reset);
    found(&|t| layer(t, &|l| *l.resets.as_mut().unwrap().get_mut("mlp_partial").unwrap() = 4), reset);
    found(&|t| layer(t, &|l| l.resets = None), &[]);
    let moved = &["trace_buffer_moved"];
    found(&|t| *t.buffers.get_mut("kv").unwrap() = "0x21".into(), moved);
    found(&|t| *t.buffers.get_mut("recurrent").unwrap() = "0x31".into(), moved);
    found(&|t| layer(t, &|l| l.buffers = [("wo_output".into(), "0x11".into())].into()), moved);
    let pool = &["trace_contradicts_pool"];
    found(&|t| t.page_offsets[1] = 44, pool);
    found(&|t| t.pages_free = 2, pool);
    found(&|t| t.slots_used = 2, pool);
    found(&|t| layer(t, &|l| l.paths = [("paged".into(), 5)].into()), &["trace_path_unlogged"]);
}
