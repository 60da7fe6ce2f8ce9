//! Result files as they are: the incident's own, and every way they can be incomplete or contradict themselves.

use cute_evidence::adapters::{self, Evidence, Kind, Rules, parse_arms};
use cute_records::{Completion, FinishReason, Record};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The incident's files, beside the repository; `None` where they are not at hand.
fn incident(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/evidence")).join(file);
    if !path.exists() {
        println!("skipped: {} is not at hand", path.display());
        return None;
    }
    Some(path)
}

fn read(name: &str, content: impl AsRef<[u8]>) -> Evidence {
    adapters::read_bytes(name, content.as_ref().to_vec()).unwrap()
}

fn checks(e: &Evidence) -> Vec<(String, String)> {
    e.findings.iter().map(|f| (f.check.clone(), f.message.clone())).collect()
}

fn finds(e: &Evidence, check: &str, part: &str) {
    let hit = e.findings.iter().any(|f| f.check == check && f.message.contains(part) && f.at.is_some());
    assert!(hit, "no {check} with {part:?} in {:#?}", checks(e));
}

fn correct(rows: &[Completion], run: u64) -> usize {
    rows.iter().filter(|r| r.run == run && r.correct == Some(true)).count()
}

/// A run of `n` questions of which `wrong` are wrong, as the evaluation writes it.
fn gsm8k(label: &str, n: u64, wrong: &[u64]) -> Value {
    let rows: Vec<Value> = (0..n)
        .map(|i| {
            let bad = wrong.contains(&i);
            json!({"i": i, "expected": (i * 2).to_string(), "got": if bad { "1".to_owned() } else { (i * 2).to_string() },
                   "status": if bad { "WRONG" } else { "OK" }, "elapsed": 5.25,
                   "raw_tail": if bad { "!".repeat(200) } else { format!("The answer is {}.", i * 2) },
                   "question": "Q"})
        })
        .collect();
    let right = n - wrong.len() as u64;
    json!({"label": label, "model": "default", "api": "http://localhost:8000/v1", "n": n, "seed": 42, "correct": right,
           "errors": 0, "accuracy": format!("{right}/{n} ({:.1}%)", 100.0 * right as f64 / n as f64),
           "total_seconds": 5.25 * n as f64, "results": rows})
}

fn write(path: &Path, value: &Value) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, serde_json::to_string_pretty(value).unwrap()).unwrap();
}

#[test]
fn the_incidents_soaks_are_250_requests_under_one_ordinal() {
    for (leg, scores) in [("soak", [48, 48, 48, 11, 37]), ("soak_d2_5_2L_3_7_control", [47, 47, 47, 11, 35])]
    {
        let Some(path) = incident(leg) else { return };
        let e = adapters::read(&path).unwrap();
        assert_eq!(e.completions.iter().map(|c| c.ordinal).collect::<Vec<_>>(), (0..250).collect::<Vec<_>>());
        assert!(
            e.completions.iter().all(|c| c.ordinal == c.run * 50 + c.index && c.leg.as_deref() == Some(leg))
        );
        assert_eq!([0, 1, 2, 3, 4].map(|r| correct(&e.completions, r)), scores);
        let dead = |c: &Completion| {
            let text = c.text.as_deref().or(c.text_tail.as_deref()).unwrap();
            text.contains("!!!!!!!!")
        };
        let dead: Vec<u64> = e.completions.iter().filter(|c| dead(c)).map(|c| c.ordinal).collect();
        assert_eq!((dead[0], dead[51], dead.len()), (162, 213, 52));
        assert_eq!(checks(&e), [], "{leg}: nothing is wrong with this evidence itself");
        assert_eq!(
            (e.logs.len(), e.records.iter().filter(|r| matches!(r, Record::Dispatch(_))).count()),
            (1, 16)
        );
        // lines are those of the rows: 12 is the 13th question of run 4
        let row = &e.completions[162];
        let (file, line) = row.source.as_ref().unwrap().rsplit_once(':').unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.lines().nth(line.parse::<usize>().unwrap()).unwrap().contains("\"i\": 12"));
    }
}

#[test]
fn the_other_evidence_of_the_incident_is_read_as_it_is() {
    let Some(root) = incident("") else { return };
    let stage0a = adapters::read(&root.join("stage0a")).unwrap();
    let timeouts: Vec<&Completion> = stage0a.completions.iter().filter(|c| c.error.is_some()).collect();
    assert_eq!(timeouts.iter().map(|c| c.index).collect::<Vec<_>>(), [21, 44]);
    assert!(timeouts.iter().all(|c| c.finish_reason == Some(FinishReason::Error) && c.text.is_none()));
    assert!(timeouts[0].error.as_ref().unwrap().contains("Read timed out"));
    assert!(stage0a.records.iter().any(|r| matches!(r, Record::Timing(t) if t.ms == 26.637568)));

    let prod = adapters::read(&root.join("prod_soak_wo8")).unwrap();
    finds(&prod, "missing_run", "run(s) 3 of 4");
    let replay: Vec<&Completion> = prod.completions.iter().filter(|c| c.id.starts_with("conv")).collect();
    // 50 questions, then 78 replayed requests and one long decode a run: the second replay starts at 129
    assert_eq!((replay.len(), replay[0].ordinal, replay[0].completion_tokens), (78, 129, Some(128)));
    let long = prod
        .completions
        .iter()
        .find(|c| c.text.as_deref().is_some_and(|t| t.starts_with("Write!!")))
        .unwrap();
    assert_eq!((long.run, long.text.as_ref().unwrap().len()), (4, 2052));

    let tax = adapters::read(&root.join("tax_all_beta")).unwrap();
    assert_eq!((tax.completions.len(), checks(&tax)), (50, vec![]));
    assert_eq!(tax.completions[0].prompt_tokens, Some(75));
    let alone = adapters::read(&root.join("tax_all_beta/perq.jsonl")).unwrap();
    assert_eq!(alone.completions.len(), 50);
    for (a, b) in alone.completions.iter().zip(&tax.completions) {
        assert_eq!((a.ordinal, &a.id, a.correct, &a.gold), (b.ordinal, &b.id, b.correct, &b.gold));
    }

    let sweep = adapters::read(&root.join("sweep")).unwrap();
    assert_eq!(sweep.completions.len(), 100);
    finds(&sweep, "several_legs", "12L_3_47, 2L_3_7");
    finds(&sweep, "vacuous_gate", "never evaluated");
    let arms = adapters::read(&root.join("arms.csv")).unwrap();
    assert_eq!((arms.records.len(), arms.findings.len()), (5, 0));
    let ablation = adapters::read(&root.join("ablation")).unwrap();
    assert_eq!(ablation.sources.iter().filter(|(_, k)| *k == Kind::Verdict).count(), 4);
}

#[test]
fn missing_runs_keep_their_place_in_the_order() {
    let dir = tempfile::tempdir().unwrap();
    for run in [1u64, 2, 5] {
        write(
            &dir.path().join(format!("run{run}/gsm8k.json")),
            &gsm8k(&format!("soak_x_run{run}"), 10, &[3]),
        );
    }
    std::fs::create_dir(dir.path().join("run4")).unwrap();
    let e = adapters::read(dir.path()).unwrap();
    finds(&e, "missing_run", "run(s) 3, 4 of 5");
    assert_eq!(
        e.completions.iter().map(|c| c.ordinal).collect::<Vec<_>>(),
        Vec::from_iter((0..20).chain(40..50))
    );
    // a verdict that speaks of more runs makes the last ones missing too
    let verdict = json!({"arm": "x", "n_runs": 6, "gsm8k_floor": 9, "gate_2b_pass": true,
        "runs": [{"run": 1, "correct": 8, "errors": 0, "pass": true}]});
    write(&dir.path().join("verdict.json"), &verdict);
    let e = adapters::read(dir.path()).unwrap();
    finds(&e, "missing_run", "run(s) 3, 4, 6 of 6");
    finds(&e, "missing_run", "states n_runs 6, lists 1 run(s)");
    finds(&e, "count_mismatch", "states 8 correct in run 1, the results say 9");
    finds(&e, "gate_contradicts_runs", "run 1 states pass Some(true) with 8 correct");
}

#[test]
fn rows_that_are_missing_duplicated_or_wrong_cost_only_themselves() {
    let mut doc = gsm8k("x", 10, &[]);
    let rows = doc["results"].as_array_mut().unwrap();
    rows[2]["i"] = json!("two");
    rows[3]["i"] = json!(4);
    rows[5]["status"] = json!("MAYBE");
    rows[6] = json!([1]);
    rows[7]["got"] = json!("15");
    rows[8]["elapsed"] = json!("fast");
    let text = serde_json::to_string_pretty(&doc).unwrap();
    let e = read("gsm8k.json", &text);
    assert_eq!(e.completions.iter().map(|c| c.index).collect::<Vec<_>>(), [0, 1, 4, 7, 9]);
    finds(&e, "bad_row", "i=\"two\": expected a count");
    finds(&e, "duplicate_row", "index 4 stands already at");
    finds(&e, "bad_row", "status=\"MAYBE\": expected OK, WRONG or ERROR");
    finds(&e, "bad_row", "[1]: expected an object");
    finds(&e, "bad_row", "elapsed=\"fast\": expected a number");
    finds(&e, "status_contradicts_answer", "status OK, expected \"14\", got \"15\"");
    finds(&e, "missing_rows", "5 of 10 rows, indices 2, 3, 5, 6, 8 missing");
    finds(&e, "count_mismatch", "states correct 10, its 5 rows say 5");
    let at = e.findings.iter().find(|f| f.message.contains("two")).unwrap().at.clone().unwrap();
    let line: usize = at.strip_prefix("gsm8k.json:").unwrap().parse().unwrap();
    assert!(text.lines().nth(line).unwrap().contains("\"two\""), "{at}");
}

#[test]
fn a_file_cut_off_in_the_middle_yields_its_whole_rows() {
    let text = serde_json::to_string_pretty(&gsm8k("x", 10, &[])).unwrap();
    let e = read("gsm8k.json", &text[..text.len() * 2 / 3]);
    assert!((3..9).contains(&e.completions.len()), "{}", e.completions.len());
    finds(&e, "file_cut_off", "ends before it is complete");
    let perq = (1..=5).map(|i| {
        format!("{{\"label\":\"x\",\"prompt_index\":{i},\"gold\":\"1\",\"pred\":\"1\",\"correct\":true}}\n")
    });
    let perq: String = perq.collect();
    let e = read("perq.jsonl", &perq[..perq.len() - 9]);
    assert_eq!(e.completions.len(), 4);
    finds(&e, "file_cut_off", "perq.jsonl:5");
}

#[test]
fn one_based_and_zero_based_indices_become_one_ordinal() {
    let row = |run: u64, at: u64| {
        json!({"label": "x", "run_index": run, "prompt_index": at, "gold": "5", "pred": 5, "correct": true,
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "finish_reason": "stop", "request_id": format!("r{run}-{at}")})
    };
    let lines = |rows: &[Value]| rows.iter().map(|r| format!("{r}\n")).collect::<String>();
    let all: Vec<Value> = (0..2).flat_map(|run| (1..=4).map(move |at| row(run, at))).collect();
    let e = read("perq.jsonl", lines(&all));
    assert_eq!(
        e.completions.iter().map(|c| (c.run, c.index, c.ordinal)).collect::<Vec<_>>()[3..5],
        [(0, 3, 3), (1, 0, 4)]
    );
    assert_eq!(checks(&e), []);
    // appended to on a re-run, a row skipped, counted from 0, another evaluation's row
    let mut other = row(1, 3);
    other["label"] = json!("y");
    let e = read("perq.jsonl", lines(&[row(0, 1), row(0, 2), row(0, 4), row(0, 2), row(1, 0), other]));
    finds(&e, "duplicate_row", "run 0 index 1 stands already at perq.jsonl:2");
    finds(&e, "missing_rows", "3 of 4 rows, indices 2 missing");
    finds(&e, "bad_row", "prompt_index=0: expected a 1-based index");
    finds(&e, "label_mismatch", "x, y");
    let mut bad = row(0, 1);
    bad["total_tokens"] = json!(11);
    finds(&read("perq.jsonl", lines(&[bad])), "bad_row", "total_tokens=11: expected 7 + 3");
}

#[test]
fn tails_shorter_than_200_characters_are_whole_replies() {
    let mut doc = gsm8k("x", 3, &[1]);
    doc["results"][2]["output_len"] = json!(300);
    let e = read("gsm8k.json", doc.to_string());
    assert_eq!(e.completions[0].text.as_deref(), Some("The answer is 0."));
    assert_eq!(e.completions[1].text_tail.as_deref(), Some(&*"!".repeat(200)));
    assert_eq!(
        e.completions[2].text_tail.as_deref(),
        Some("The answer is 4."),
        "the file says 300 characters"
    );
    let digest = "0123456789abcdef";
    doc["results"][0]["output_sha256"] = json!(digest);
    finds(&read("gsm8k.json", doc.to_string()), "digest_mismatch", digest);
}

#[test]
fn runs_that_do_not_belong_together_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut second = gsm8k("soak_y_run3", 12, &[]);
    second["seed"] = json!(43);
    write(&dir.path().join("run1/gsm8k.json"), &gsm8k("soak_x_run1", 10, &[]));
    write(&dir.path().join("run2/gsm8k.json"), &second);
    write(&dir.path().join("run3/gsm8k.json"), &gsm8k("soak_x_run3", 10, &[]));
    let e = adapters::read(dir.path()).unwrap();
    finds(&e, "settings_differ", "seed 43, in");
    finds(&e, "label_mismatch", "label \"soak_y_run3\" in the directory of run 2");
    finds(&e, "label_mismatch", "soak_x_run, soak_y_run");
    finds(&e, "length_differs", "12 rows, other runs have 10");
    assert_eq!(e.completions.last().unwrap().ordinal, 31);
}

#[test]
fn an_evaluations_log_stands_in_for_a_result_that_was_never_written() {
    let log = "[1/3] OK (gold=5 pred=5) 2.5s\n[2/3] WRONG (gold=36 pred=1) 211.6s ct=512 fr=length\n[3/3] ERROR (gold=2 pred=) 180.0s\n";
    let e = read("gsm8k.log", log);
    assert_eq!(e.completions.iter().map(|c| c.correct.unwrap()).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(e.completions[1].wall_ms, Some(211_600.0));
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("run1/gsm8k.json"), &gsm8k("soak_x_run1", 3, &[]));
    std::fs::write(dir.path().join("run1/gsm8k.log"), log).unwrap();
    std::fs::create_dir(dir.path().join("run2")).unwrap();
    std::fs::write(dir.path().join("run2/gsm8k.log"), log).unwrap();
    let e = adapters::read(dir.path()).unwrap();
    assert_eq!(e.completions.len(), 6, "run 1's log says nothing new, run 2's is all there is");
    assert_eq!((correct(&e.completions, 0), correct(&e.completions, 1)), (3, 1));
}

#[test]
fn verdicts_of_every_schema_are_events_and_their_holes_are_findings() {
    let verdict = |v: Value| read("verdict.json", v.to_string());
    let e = verdict(
        json!({"arm": "x", "n_runs": 0, "gsm8k_floor": 45, "runs": [], "container_alive_at_end": true,
        "docker_log_corruption_hits": 0, "gate_d2_9_pass": true}),
    );
    finds(&e, "vacuous_gate", "gate_d2_9_pass is true over no run at all");
    let Record::Event(event) = &e.records[0] else { panic!() };
    assert_eq!((&event.fields["schema"], &event.fields["gate"]), (&json!("soak"), &json!("gate_d2_9_pass")));
    let e = verdict(json!({"arm": "x", "n_runs": 1, "gsm8k_floor": 45, "container_alive_at_end": false,
        "docker_log_corruption_hits": 0, "gate_2b_pass": true, "runs": [{"run": 1, "correct": 48, "errors": 0, "pass": true}]}));
    finds(&e, "gate_contradicts_runs", "alive: false");
    let e = verdict(json!({"arm": "x", "n_runs": 2, "gate_2b_pass": false, "runs": [
        {"run": 1, "ok": false, "reason": "no_gsm8k_json"}, {"run": 1, "correct": 1, "errors": 0, "pass": true}]}));
    finds(&e, "missing_run", "no_gsm8k_json");
    finds(&e, "duplicate_row", "run 1 is stated twice");
    let e = verdict(json!({"arm": "x", "ok": true, "gsm8k_correct": 3, "gsm8k_errors": 0, "gsm8k_floor": 45,
        "dispatch_audit": "pass", "expected_coop_layers": "", "beta_per_call_median_ms": null, "beta_per_call_gate_ms": 7}));
    finds(&e, "gate_contradicts_runs", "ok is true with 3 correct");
    finds(&e, "vacuous_gate", "no layer expected");
    let e = verdict(json!({"arm": "x", "ok": false, "reason": {"server_not_ready": {}}}));
    finds(&e, "no_rows", "a verdict without results");
}

#[test]
fn dispatch_audits_are_checked_against_their_own_records() {
    let record = |layer: Value, coop: bool| {
        json!({"layer_name": "l", "layer_idx": layer, "enabled": true,
        "restricted_layers": [3], "is_decode_only": true, "use_fusion": true, "num_seqs": 1, "resident_cap": 96,
        "use_beta_coop": coop, "use_beta_lite": false})
    };
    let audit = |coop: Value, records: Value| {
        read(
            "dispatch_audit.json",
            json!({"coop_layers": coop, "lite_layers": [], "records": records}).to_string(),
        )
    };
    let e = audit(json!([3]), json!([record(json!(3), true), record(json!(7), false)]));
    assert_eq!((e.records.len(), checks(&e)), (2, vec![]));
    let e =
        audit(json!([3, 7]), json!([record(json!(3), true), record(Value::Null, true), {"layer_name": "l"}]));
    finds(&e, "count_mismatch", "states coop_layers {3, 7}, its records say {3}");
    finds(&e, "layer_unknown", "1 record(s) of coop_layers");
    finds(&e, "bad_row", "no \"enabled\": expected true or false");
    finds(&audit(json!([]), json!([])), "no_rows", "an audit of nothing");
}

#[test]
fn lm_eval_samples_count_each_document_once() {
    let row = |doc: u64, filter: &str, hit: f64| {
        json!({"doc_id": doc, "doc": {"question": "q"}, "target": "work\n#### 18", "filter": filter,
        "resps": [["some text 18"]], "filtered_resps": ["18"], "exact_match": hit, "prompt_hash": "ab"})
    };
    let rows = [
        row(0, "strict-match", 1.0),
        row(0, "flexible-extract", 1.0),
        row(1, "strict-match", 0.0),
        row(1, "flexible-extract", 1.0),
    ];
    let lines: String = rows.iter().map(|r| format!("{r}\n")).collect();
    for text in [lines, Value::from(rows.to_vec()).to_string()] {
        let e = read("samples_gsm8k.jsonl", text);
        assert_eq!(e.completions.iter().map(|c| c.correct).collect::<Vec<_>>(), [Some(true), Some(false)]);
        assert_eq!(
            (e.completions[0].gold.as_deref(), e.completions[0].extracted.as_deref()),
            (Some("18"), Some("18"))
        );
        assert_eq!(e.completions[0].text.as_deref(), Some("some text 18"));
        finds(&e, "several_filters", "\"strict-match\"");
    }
}

#[test]
fn grades_of_lm_eval_are_one_or_nought_under_any_of_their_names() {
    let row = |metric: &str, value: Value| {
        json!({"doc_id": 0, "target": "1", "resps": [["x"]], metric: value}).to_string()
    };
    for metric in ["exact_match", "pass_at_1", "prompt_level_strict_acc"] {
        for (value, correct) in [(json!(1.0), true), (json!(0), false), (json!(true), true)] {
            let e = read("samples_task.jsonl", row(metric, value));
            assert_eq!(e.completions[0].correct, Some(correct), "{metric}");
        }
        finds(&read("samples_task.jsonl", row(metric, json!(0.5))), "bad_row", "metric 0.5: expected 0 or 1");
    }
    assert_eq!(read("samples_task.jsonl", row("word_perplexity", json!(7.1))).completions[0].correct, None);
}

#[test]
fn environment_files_keep_what_is_set_and_name_what_is_no_knob() {
    let e = read("c2_diag_ENV.txt", "CUTE_WO_SPLIT=8\nCUTE_C2_DIAG=\nexport A='x y'\nCUTE_WO_SPLIT=4\n");
    let Record::Event(event) = &e.records[0] else { panic!() };
    assert_eq!(
        Value::from_iter(event.fields.clone()),
        json!({"A": "x y", "CUTE_C2_DIAG": null, "CUTE_WO_SPLIT": "8"})
    );
    finds(&e, "duplicate_row", "c2_diag_ENV.txt:4");
}

#[test]
fn arms_follow_the_seeds_rules_with_rows_counted_from_two() {
    let header = "arm,phase_e_fusion,phase_e_layers,wo_split,expected_coop_layers,description";
    let check = |row: &str, expect: &str| {
        let (arms, wrong) =
            parse_arms(&format!("{header}\nok,1,\"3,7\",8,\"3,7\",d\n{row}\n"), &Rules::default());
        assert_eq!(arms.len(), 1, "{row}");
        assert!(wrong.iter().any(|(at, m)| *at == 3 && m.contains(expect)), "{row}: {wrong:?}");
    };
    check(",1,\"3,7\",8,\"3,7\",d", "arm is empty");
    check("ok,1,3,8,3,d", "stands already above");
    check("a,2,3,8,3,d", "expected 0 or 1");
    check("a,1,\"3,...,7\",8,\"3,7\",d", "ellipsis");
    check("a,1,\"3,x\",8,\"3\",d", "\"x\" is no layer");
    check("a,1,\"3,3\",8,\"3,3\",d", "stands there twice");
    check("a,1,,8,,d", "without a layer");
    check("a,0,3,8,3,d", "expected none");
    check("a,1,4,8,4,d", "no full-attention layer");
    check("a,1,\"3,7\",8,\"3, 7\",d", "expected \"3,7\"");
    check("a,1,3,4,3,d", "wo_split=\"4\"");
    check("a,1,3", "columns: expected 6");
    let (arms, wrong) = parse_arms(&format!("{header},extra\noff,0,,8,,d,x\n"), &Rules::default());
    assert_eq!((arms.len(), arms[0].fusion, wrong), (1, false, vec![]), "extra columns do no harm");
    assert!(parse_arms("arm,phase_e_layers\n", &Rules::default()).1[0].1.contains("missing column"));
    assert!(parse_arms(header, &Rules::default()).1[0].1.contains("no arm"));
    finds(&read("arms.csv", format!("{header}\na,2,3,8,3,d\n")), "bad_arm", "arms.csv:2: phase_e_fusion");
}

#[test]
fn files_are_known_by_content_whatever_their_name() {
    let kind =
        |content: &str| adapters::read_bytes("x", content.as_bytes().to_vec()).map(|e| e.sources[0].1).ok();
    assert_eq!(kind(&gsm8k("x", 1, &[]).to_string()), Some(Kind::Gsm8k));
    assert_eq!(kind("{\"type\":\"run\",\"v\":1,\"tool\":\"t\",\"version\":\"1\"}\n"), Some(Kind::Records));
    assert_eq!(kind("{\"conv_idx\":0,\"turn_idx\":0,\"output_text\":\"a\"}\n"), Some(Kind::ShareGpt));
    assert_eq!(kind("{\"log\":\"x\\n\",\"stream\":\"stderr\"}\n"), Some(Kind::Log));
    assert_eq!(kind("INFO 01-01 00:00:00 [x.py:1] GPU KV cache size: 1 tokens\n"), Some(Kind::Log));
    assert_eq!(kind("A=1\nB=2\n"), Some(Kind::Env));
    assert_eq!(kind("# A heading\n\nsome words\n"), None);
    assert_eq!(kind(""), None);
    let error = adapters::read_bytes("notes.md", b"# words".to_vec()).unwrap_err().to_string();
    assert!(error.starts_with("notes.md: ") && error.contains("gsm8k.json"), "{error}");
    assert!(adapters::read(Path::new("/no/such/file")).unwrap_err().to_string().contains("/no/such/file"));
}

#[test]
fn records_of_our_own_engine_in_a_leg_are_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let reply = |i: u64| {
        Record::from(Completion { id: i.to_string(), index: i, ordinal: i, ..Completion::default() })
    };
    let lines: String = (0..3).map(|i| format!("{}\n", serde_json::to_string(&reply(i)).unwrap())).collect();
    std::fs::write(dir.path().join("gen.jsonl"), &lines).unwrap();
    std::fs::write(dir.path().join("audited.jsonl"), &lines).unwrap();
    let e = adapters::read(dir.path()).unwrap();
    assert_eq!(e.completions.len(), 3);
}
