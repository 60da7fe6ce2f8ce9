//! cute-generate as a user meets it: forms of prompts, refusals, settings.

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-hybrid")
}

fn generate() -> Command {
    let mut command = Command::cargo_bin("cute-generate").unwrap();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUTE_")) {
        command.env_remove(name);
    }
    command
}

/// Runs with a model and prompts on stdin; returns exit code, records and stderr.
fn run(args: &[&str], stdin: &str) -> (i32, Vec<Value>, String) {
    let out =
        generate().arg("--model").arg(model()).args(args).write_stdin(stdin.to_owned()).output().unwrap();
    let records = String::from_utf8(out.stdout).unwrap();
    let records = records.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (out.status.code().unwrap(), records, String::from_utf8(out.stderr).unwrap())
}

fn completions(records: &[Value]) -> Vec<&Value> {
    records.iter().filter(|r| r["type"] == "completion").collect()
}

const FORMS: &str = r#"{"question":"Ann has 5 pens and buys 4 more. How many pens has Ann?","answer":"5 + 4 = 9\n#### 9"}
{"prompt":"Question: Ann has 5 pens and buys 4 more. How many pens has Ann?\nAnswer:","gold":"9","id":"by-hand"}
{"messages":[{"role":"user","content":"Ann has 5 pens and buys 4 more. How many pens has Ann?"}]}
{"prompt_token_ids":[50,51,52],"max_tokens":3}
{"type":"prompt","v":1,"prompt":"1 + 1 =","max_tokens":2}
"#;

#[test]
fn every_form_of_prompt_is_answered_in_order() {
    let (code, records, stderr) = run(&["--max-tokens", "40"], FORMS);
    assert_eq!(code, 0, "{stderr}");
    let c = completions(&records);
    assert_eq!(c.iter().map(|c| c["ordinal"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(c[0]["fingerprint"], c[1]["fingerprint"], "a question becomes the question form");
    assert_eq!((c[0]["gold"].as_str(), c[1]["gold"].as_str()), (Some("9"), Some("9")));
    assert_eq!((c[1]["id"].as_str(), c[0]["id"].as_str()), (Some("by-hand"), Some("0")));
    assert_ne!(c[2]["prompt_sha256"], c[0]["prompt_sha256"], "messages go through the chat template");
    assert!(c[2]["gold"].is_null() && c[2]["correct"].is_null());
    assert_eq!((c[3]["completion_tokens"].as_u64(), c[4]["completion_tokens"].as_u64()), (Some(3), Some(2)));
    assert_eq!(records[0]["type"], "run");
    let end = records.last().unwrap();
    assert_eq!((end["type"].as_str(), end["complete"].as_bool()), (Some("end"), Some(true)));
    assert_eq!(end["counts"]["completion"], 5);
    for kind in ["slots", "pages"] {
        let count = |what: &str| end["counters"][format!("{kind}_{what}")].as_u64().unwrap();
        assert!(count("acquired") >= 5, "{end}");
        assert_eq!((count("acquired") - count("released"), count("in_use")), (0, 0), "{end}");
    }
}

#[test]
fn a_model_without_tokenizer_answers_token_ids() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        std::fs::copy(model().join(name), dir.path().join(name)).unwrap();
    }
    let stdin = "{\"prompt_token_ids\":[1,2,3]}\n{\"prompt\":\"text\"}\n";
    let out = generate()
        .arg("--model")
        .arg(dir.path())
        .args(["--max-tokens", "2"])
        .write_stdin(stdin)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2), "one of two could not be run");
    let text = String::from_utf8(out.stdout).unwrap();
    let records: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let c = completions(&records);
    assert_eq!(
        (c.len(), c[0]["finish_reason"].as_str(), c[1]["finish_reason"].as_str()),
        (2, Some("length"), Some("error"))
    );
    assert!(c[1]["error"].as_str().unwrap().contains("no tokenizer.json"), "{}", c[1]);
}

#[test]
fn bad_lines_are_named_and_their_neighbours_answered() {
    let stdin = "{\"prompt\":\"1 +\",\"max_tokens\":1}\nnot json\n{\"prompt\":\"a\",\"question\":\"b\"}\n{\"prompt_token_ids\":[999999]}\n{\"prompt\":\"\"}\n{\"prompt\":\"2 +\",\"max_tokens\":1}\n";
    let (code, records, stderr) = run(&[], stdin);
    assert_eq!(code, 2);
    assert!(stderr.contains("stdin:2: column 2"), "{stderr}");
    assert!(stderr.contains("stdin:3: 2 of prompt, messages"), "{stderr}");
    assert!(stderr.contains("token id 999999 is outside the vocabulary"), "{stderr}");
    assert!(stderr.contains("its prompt has no tokens"), "{stderr}");
    let c = completions(&records);
    let reasons: Vec<&str> = c.iter().map(|c| c["finish_reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["length", "error", "error", "length"]);
    assert_eq!(records.iter().filter(|r| r["check"] == "bad_input").count(), 2);
    let end = records.last().unwrap();
    assert_eq!(end["complete"], false, "prompts were lost: {end}");
}

#[test]
fn malformed_settings_refuse_to_start() {
    for (args, sentence) in [
        (&["--phase-e-layers", "3..7"][..], "\"3..7\" in \"3..7\" is no layer index"),
        (&["--phase-e-layers", "3,3"], "layer 3 stands twice"),
        (
            &["--phase-e-layers", "3,4"],
            "layer 4 is no full-attention layer of this model: expected some of [3, 7, 11]",
        ),
        (&["--phase-e-path", "fast"], "\"fast\" is no path: expected auto, coop or lite"),
        (&["--phase-e-fusion", "yes"], "\"yes\" is no switch: expected 0 or 1"),
        (&["--wo-split", "3"], "\"3\" is no split of W_O: expected 1, 2, 4 or 8"),
        (&["--max-num-seqs", "0"], "--max-num-seqs is 0: expected at least 1"),
        (&["--max-model-len", "99999"], "--max-model-len is 99999: this model's max_position_embeddings is"),
        (&["--num-kv-pages", "1"], "--num-kv-pages is 1: expected at least 2"),
        (&["--num-kv-pages", "99999999999"], "--num-kv-pages is 99999999999: expected at most 4294967295"),
        (&["--num-kv-pages", "4000000000"], "GB of memory are available: lower --num-kv-pages"),
        (&["--max-num-seqs", "1048576"], "GB of memory are available: lower"),
        (&["--threads", "100000"], "100000 is not in 0..=1024"),
        (&["--temperature", "nan"], "temperature is NaN: expected 0 or more"),
        (&["--top-p", "2"], "top_p is 2: expected 0 to 1"),
        (&["--fault", "gremlins"], "no fault \"gremlins\": expected one of stale-state"),
    ] {
        let (code, records, stderr) = run(args, "{\"prompt\":\"1\"}\n");
        assert_eq!((code, records.len()), (2, 0), "{args:?}");
        assert!(stderr.contains(sentence), "{args:?}: {stderr}");
    }
    for (name, value) in [
        ("CUTE_WO_SPLIT", "3"),
        ("CUTE_PHASE_E_PATH", "x"),
        ("CUTE_PHASE_E_LAYERS", "0..7"),
        ("CUTE_PHASE_E_FUSION", ""),
    ] {
        let out = generate()
            .arg("--model")
            .arg(model())
            .env(name, value)
            .write_stdin("{\"prompt\":\"1\"}\n")
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(2), "{name}={value}");
    }
}

#[test]
fn the_run_record_says_where_each_value_came_from() {
    let out = generate()
        .arg("--model")
        .arg(model())
        .args(["--max-tokens", "1", "--wo-split", "4"])
        .env("CUTE_WO_SPLIT", "8")
        .env("CUTE_PHASE_E_LAYERS", "7")
        .write_stdin("{\"prompt\":\"1\"}\n")
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let run: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let setting = |name: &str| (run["config"][name]["value"].clone(), run["config"][name]["origin"].clone());
    assert_eq!(setting("wo_split"), (4.into(), "flag".into()), "a flag goes over the environment");
    assert_eq!(setting("phase_e_layers"), (serde_json::json!([7]), "environment".into()));
    assert_eq!(setting("max_num_seqs"), (8.into(), "default".into()));
    assert_eq!(run["digests"].as_object().unwrap().len(), 3);
}

#[test]
fn a_run_says_what_loading_took_and_hashes_the_model_unless_it_is_told_not_to() {
    let run = |args: &[&str]| {
        let mut command = generate();
        command.arg("--model").arg(model()).args(["--max-tokens", "2"]).args(args);
        let out = command.write_stdin("{\"prompt\":\"1\"}\n").output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
    };
    let (hashed, unhashed) = (run(&[]), run(&["--hash-model", "0"]));
    for records in [&hashed, &unhashed] {
        let load = records.iter().find(|r| r["name"] == "load").unwrap();
        let file = std::fs::metadata(model().join("model.safetensors")).unwrap().len();
        let bytes = load["bytes"].as_u64().unwrap();
        // all of the file but its header
        assert!(bytes <= file && file - bytes < 64 << 10, "{bytes} of {file}");
        assert!(
            load["ms"].as_f64().unwrap() > 0.0 && load["figures"]["gb_per_second"].as_f64().unwrap() > 0.0
        );
    }
    let names = |records: &[Value]| -> Vec<String> {
        records[0]["digests"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(
        (names(&hashed), names(&unhashed)),
        (["model", "prompts", "tokenizer"].map(String::from).into(), vec!["prompts".to_owned()])
    );
    assert_eq!(completions(&hashed)[0]["fingerprint"], completions(&unhashed)[0]["fingerprint"]);
}

#[test]
fn another_model_than_the_recorded_one_is_refused() {
    let record = |digest: &str| {
        format!(
            "{{\"type\":\"model\",\"v\":1,\"path\":{:?},\"digest\":\"{digest}\",\"architecture\":\"\",\"model_type\":\"\",\"layer_types\":[],\
             \"full_attention_layers\":[],\"parameters\":0,\"bytes_by_module\":{{}},\"tensors_by_dtype\":{{}},\"files\":[],\"eos_token_ids\":[],\
             \"config\":{{}},\"plan\":{{\"max_num_seqs\":1,\"max_model_len\":1,\"weight_bytes\":0,\"kv_bytes_per_token\":0,\
             \"recurrent_bytes_per_sequence\":0,\"page_size\":64,\"kv_pages\":0,\"state_slots\":0,\"kv_pool_bytes\":0,\"state_pool_bytes\":0,\"total_bytes\":0}}}}\n",
            model().display().to_string()
        )
    };
    let stdin = record("00") + "{\"prompt\":\"1\",\"max_tokens\":1}\n";
    let out = generate().write_stdin(stdin).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("is not the model of the record"), "{stderr}");
    let digest = stderr.split("its digest is ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let stdin = record(&digest) + "{\"prompt\":\"1\",\"max_tokens\":1}\n";
    let out = generate().write_stdin(stdin).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_model_stream_that_was_cut_off_is_trouble() {
    let out = generate()
        .write_stdin("{\"type\":\"run\",\"v\":1,\"tool\":\"cute-load\",\"version\":\"\"}\n")
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(stderr.contains("cut off"), "{stderr}");
}

#[test]
fn token_ids_and_log_probabilities_are_written_when_asked_for() {
    let (_, records, _) = run(
        &["--token-ids", "--logprobs", "3", "--max-tokens", "4", "--ignore-eos"],
        "{\"prompt\":\"Question: \"}\n",
    );
    let c = completions(&records)[0];
    assert_eq!(c["token_ids"].as_array().unwrap().len(), 4);
    let steps = c["logprobs"].as_array().unwrap();
    assert_eq!(steps.len(), 4);
    for (step, id) in steps.iter().zip(c["token_ids"].as_array().unwrap()) {
        assert_eq!(step.as_array().unwrap().len(), 3);
        assert_eq!(step[0]["id"], *id, "greedy takes the likeliest");
        assert!(step[0]["logprob"].as_f64().unwrap() <= 0.0);
    }
}

#[test]
fn phases_of_cooperative_launches_are_timed_on_request_only() {
    let regions = |args: &[&str]| -> Vec<(u64, u64)> {
        let (_, records, _) = run(args, "{\"prompt\":\"1 + 1\"}\n");
        let timed = records
            .iter()
            .filter(|r| r["type"] == "timing" && r["name"].as_str().unwrap().starts_with("region_"));
        timed.map(|r| (r["layer"].as_u64().unwrap(), r["count"].as_u64().unwrap())).collect()
    };
    let args = ["--max-tokens", "5", "--ignore-eos", "--phase-e-layers", "3,11"];
    assert_eq!(regions(&args), []);
    // four decode steps follow the token that prefill gives; four phases a layer
    let expected: Vec<(u64, u64)> = [3, 11].into_iter().flat_map(|layer| [(layer, 4); 4]).collect();
    assert_eq!(regions(&[&args[..], &["--region-timing", "1"]].concat()), expected);
}

#[test]
fn a_seed_repeats_a_sample_and_another_seed_does_not() {
    let sample = |seed: &str| {
        let args =
            ["--temperature", "1.5", "--max-tokens", "30", "--ignore-eos", "--seed", seed, "--runs", "2"];
        let (_, records, _) = run(&args, "{\"prompt\":\"Question: Ann\"}\n");
        let texts: Vec<String> =
            completions(&records).iter().map(|c| c["token_sha256"].as_str().unwrap().to_owned()).collect();
        assert_eq!(texts[0], texts[1], "the i-th prompt samples with the same seed in every run");
        texts[0].clone()
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn equal_prompts_with_other_sampling_are_told_apart() {
    let stdin = "{\"prompt\":\"1 +\",\"max_tokens\":2}\n{\"prompt\":\"1 +\",\"max_tokens\":3}\n{\"prompt\":\"1 +\",\"max_tokens\":2,\"seed\":9}\n";
    let (_, records, _) = run(&["--ignore-eos"], stdin);
    let digests: Vec<&Value> = completions(&records).iter().map(|c| &c["sampling_sha256"]).collect();
    assert_ne!(digests[0], digests[1]);
    assert_eq!(digests[0], digests[2], "a greedy reply does not depend on its seed");
}

#[test]
fn the_digest_of_the_prompts_is_that_of_the_prompts_used() {
    let prompts = ["{\"prompt\":\"a\",\"max_tokens\":1}\n", "{\"prompt\":\"b\",\"max_tokens\":1}\n"];
    let digest = |args: &[&str], stdin: &str| run(args, stdin).1[0]["digests"]["prompts"].clone();
    assert_eq!(digest(&["--limit", "1"], &prompts.concat()), digest(&[], prompts[0]));
    assert_ne!(digest(&[], &prompts.concat()), digest(&[], prompts[0]));
}

#[test]
fn what_is_not_finite_is_traced_to_its_operation_and_is_never_a_token() {
    let prompt = "{\"prompt\":\"1 + 1 =\",\"max_tokens\":3}\n";
    let (code, records, stderr) =
        run(&["--fault", "stale-state", "--poison", "--trace-nonfinite", "--device", "cpu"], prompt);
    assert_eq!(code, 1, "{stderr}");
    let findings: Vec<&Value> = records.iter().filter(|r| r["type"] == "finding").collect();
    let names: Vec<&str> = findings.iter().filter_map(|f| f["check"].as_str()).collect();
    assert_eq!(names, ["nonfinite_value", "logits_not_finite"], "{findings:?}");
    assert_eq!((&findings[0]["layer"], &findings[0]["data"]["phase"]), (&0.into(), &"conv".into()));
    let c = completions(&records);
    assert_eq!((&c[0]["finish_reason"], &c[0]["completion_tokens"]), (&"error".into(), &0.into()));
    assert_eq!(records.last().unwrap()["complete"], true);
    let (code, records, stderr) = run(&["--poison", "--trace-nonfinite"], prompt);
    assert_eq!((code, records.iter().any(|r| r["type"] == "finding")), (0, false), "{stderr}");
    let (code, _, stderr) = run(&["--trace-nonfinite", "--journal", "nowhere"], prompt);
    assert!(code == 2 && stderr.contains("--journal with --trace-nonfinite"), "{stderr}");
}

#[test]
fn a_run_that_breaks_an_invariant_says_so_in_its_stream_and_closes_it() {
    let prompts = "{\"prompt\":\"1 + 1 =\",\"max_tokens\":3}\n".repeat(12);
    for (fault, check, slot) in
        [("double-free", "ownership_broken", Some(1)), ("stale-barrier", "counter_broken", None)]
    {
        let (code, records, stderr) = run(&["--fault", fault, "--device", "cpu"], &prompts);
        assert_eq!(code, 2, "{stderr}");
        let findings: Vec<&Value> = records.iter().filter(|r| r["type"] == "finding").collect();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0]["check"], check);
        assert_eq!(findings[0]["data"]["slot"].as_u64(), slot);
        let end = records.last().unwrap();
        assert_eq!((&end["type"], &end["complete"]), (&"end".into(), &false.into()));
        assert_eq!(end["reason"], findings[0]["message"]);
        assert_eq!(end["counts"]["finding"], 1);
        let last = stderr.lines().last().unwrap();
        assert_eq!(last, format!("cute-generate: {}", end["reason"].as_str().unwrap()));
    }
}

#[test]
fn a_slot_is_proved_zero_unless_that_is_switched_off() {
    let prompt = "{\"prompt\":\"1 + 1 =\",\"max_tokens\":2}\n";
    for (options, zero) in [(&[][..], Value::Bool(true)), (&["--zero-check", "0"], Value::Null)] {
        let (code, records, stderr) = run(options, prompt);
        assert_eq!(code, 0, "{stderr}");
        let acquired = records.iter().find(|r| r["op"] == "acquire").unwrap();
        assert_eq!(acquired["zero"], zero, "{options:?}");
        assert!(records.iter().any(|r| r["name"] == "zero_check" && r["count"] == 1), "{options:?}");
    }
}

#[test]
fn help_has_examples_and_the_extras_work() {
    let out = |args: &[&str]| String::from_utf8(generate().args(args).output().unwrap().stdout).unwrap();
    assert!(out(&["--help"]).contains("Examples:") && out(&["--help"]).contains("Exit codes:"));
    assert!(out(&["--man"]).contains(".TH cute-generate"));
    assert!(out(&["--completions", "bash"]).contains("cute-generate"));
    assert!(out(&["--schema", "completion"]).contains("fingerprint"));
    assert!(out(&["--list-faults"]).contains("kv-offset-32"));
    generate().args(["--schema", "nothing"]).assert().code(2);
}
