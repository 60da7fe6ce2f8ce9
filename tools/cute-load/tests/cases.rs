//! The binary from outside: records on stdout, sentences on stderr, exit codes.

use assert_cmd::Command;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// What a run of the tool left behind.
struct Output {
    code: i32,
    records: Vec<Value>,
    stderr: String,
}

fn run(args: &[&str], stdin: &str) -> Output {
    let out = Command::cargo_bin("cute-load").unwrap().args(args).write_stdin(stdin).output().unwrap();
    let stdout = String::from_utf8(out.stdout).unwrap();
    Output {
        code: out.status.code().unwrap(),
        records: stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

impl Output {
    fn kinds(&self) -> Vec<&str> {
        self.records.iter().map(|r| r["type"].as_str().unwrap()).collect()
    }

    fn messages(&self) -> Vec<&str> {
        self.records.iter().filter_map(|r| r["message"].as_str()).collect()
    }

    fn stream(&self) -> String {
        self.records.iter().map(|r| format!("{r}\n")).collect()
    }
}

fn golden(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    if !dir.join("config.json").is_file() {
        eprintln!("skipped: no checkpoint at {}", dir.display());
        return None;
    }
    Some(dir)
}

/// A copy of a golden checkpoint, to be changed.
fn copy(name: &str) -> Option<TempDir> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)?).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    Some(dir)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_sound_checkpoint_yields_run_model_and_end() {
    let Some(dir) = golden("wrapper") else { return };
    let out = run(&[text(&dir), "--max-num-seqs", "2", "--kv-cache-dtype", "bf16", "--scan"], "");
    assert_eq!((out.code, out.stderr.as_str(), out.kinds()), (0, "", vec!["run", "model", "end"]));
    let [run, model, end] = &out.records[..] else { panic!("{:?}", out.records) };
    assert_eq!(run["config"]["max_num_seqs"], json!({"value": 2, "origin": "flag"}));
    assert_eq!(run["config"]["max_model_len"], json!({"value": 1024, "origin": "derived"}));
    assert_eq!(run["digests"]["model"], model["digest"]);
    assert_eq!(model["architecture"], "Qwen3_5ForConditionalGeneration");
    assert_eq!(model["full_attention_layers"], json!([3]));
    assert_eq!(model["skipped"], json!({"mtp": 3, "vision": 4}));
    assert_eq!(model["non_finite"], json!({}));
    // K and V · 1 layer · 3 heads · 16 wide · 2 bytes; 1 null page + 2 sequences of 1024 / 64 pages.
    assert_eq!(model["plan"]["kv_bytes_per_token"], 192);
    assert_eq!(model["plan"]["kv_pages"], 33);
    assert_eq!(end["counts"], json!({"model": 1, "run": 1}));
    assert_eq!(end["complete"], true);
}

#[test]
fn the_shards_are_hashed_in_name_order() {
    let Some(dir) = golden("sharded") else { return };
    let out = run(&[text(&dir)], "");
    let files = out.records[1]["files"].as_array().unwrap();
    let names: Vec<&str> = files.iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.len() == 5, "{names:?}");
    for f in files {
        let bytes = fs::read(dir.join(f["name"].as_str().unwrap())).unwrap();
        assert_eq!(f["sha256"], cute_records::digest::sha256(&bytes));
    }
}

#[test]
fn a_refused_checkpoint_leaves_a_stream_that_says_why_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), "").unwrap();
    let out = run(&[text(dir.path())], "");
    assert_eq!((out.code, out.kinds()), (2, vec!["run", "end"]));
    let reason = format!("{}: no config.json: it says what shape the model has", dir.path().display());
    assert_eq!(out.records[1]["reason"], reason);
    assert_eq!(out.records[1]["complete"], false);
    assert_eq!(out.stderr, format!("cute-load: {reason}\n"));
    assert_eq!(run(&["no/such/directory", "--verify", "-"], "").code, 2);
}

#[test]
fn a_model_longer_than_its_limit_is_refused() {
    let Some(dir) = golden("wrapper") else { return };
    let out = run(&[text(&dir), "--max-model-len", "1025"], "");
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains("--max-model-len 1025: expected at most 1024"), "{}", out.stderr);
    assert_eq!(run(&[text(&dir), "--max-model-len", "0"], "").code, 2);
    assert_eq!(run(&[text(&dir), "--page-size", "0"], "").code, 2);
    assert_eq!(run(&[], "").code, 2);
}

#[test]
fn an_unchanged_checkpoint_verifies_wherever_it_lies() {
    let (Some(dir), Some(other)) = (golden("sharded"), copy("sharded")) else { return };
    let recorded = run(&[text(&dir)], "").stream();
    let out = run(&[text(other.path()), "--verify", "-", "--max-num-seqs", "3"], &recorded);
    assert_eq!((out.code, out.stderr.as_str(), out.kinds()), (0, "", vec!["run", "model", "end"]));
}

#[test]
fn every_difference_from_the_record_is_named_and_the_exit_is_1() {
    let Some(dir) = copy("bf16") else { return };
    let d = dir.path();
    fs::write(d.join("tokenizer_config.json"), "{}").unwrap();
    let recorded = run(&[text(d)], "").stream();
    fs::remove_file(d.join("tokenizer_config.json")).unwrap();
    fs::write(d.join("generation_config.json"), r#"{"eos_token_id": [1, 2]}"#).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(d.join("config.json")).unwrap()).unwrap();
    config["rope_parameters"]["rope_theta"] = json!(20000.0);
    fs::write(d.join("config.json"), config.to_string()).unwrap();
    let mut weights = fs::read(d.join("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(d.join("model.safetensors"), weights).unwrap();
    let out = run(&[text(d), "--verify", "-"], &recorded);
    assert_eq!(out.code, 1);
    let found = out.messages();
    for (message, start) in found.iter().zip([
        "file config.json has ",
        "file generation_config.json was added (24 bytes)",
        "file model.safetensors has sha256 ",
        "file tokenizer_config.json is gone (recorded with 2 bytes)",
        "config.eos_token_id is [1,2], recorded [0]",
        "config.rope_theta is 20000.0, recorded ",
        "eos_token_ids is [1,2], recorded [0]",
    ]) {
        assert!(message.starts_with(start), "{message}");
        assert!(out.stderr.contains(message), "{}", out.stderr);
    }
    assert_eq!(found.len(), 7, "{found:#?}");
    let end = out.records.last().unwrap();
    assert_eq!((&end["complete"], &end["counts"]["finding"]), (&json!(true), &json!(7)));
}

#[test]
fn an_index_that_is_wrong_about_a_skipped_tower_is_a_finding_and_the_exit_is_0() {
    let Some(dir) = copy("sharded") else { return };
    let path = dir.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["weight_map"]["mtp.fc.weight"] = json!("model_mtp.safetensors");
    fs::write(&path, index.to_string()).unwrap();
    let out = run(&[text(dir.path())], "");
    assert_eq!((out.code, out.kinds()), (0, vec!["run", "model", "finding", "end"]));
    let says = "shard model_mtp.safetensors is missing: tensor mtp.fc.weight is said to be in it: of mtp, which is skipped";
    assert!(out.messages()[0].ends_with(says) && out.stderr.contains(says), "{}", out.stderr);
    assert_eq!(
        (&out.records[2]["check"], &out.records[2]["severity"]),
        (&json!("index_differs"), &json!("info"))
    );
}

#[test]
fn a_checkpoint_cut_off_since_its_record_is_named_with_both_sizes() {
    let Some(dir) = copy("old-keys") else { return };
    let path = dir.path().join("model.safetensors");
    let recorded = run(&[text(dir.path())], "").stream();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let out = run(&[text(dir.path()), "--verify", "-"], &recorded);
    assert_eq!((out.code, out.kinds()), (1, vec!["run", "finding", "end"]));
    let want = format!("file model.safetensors has {} bytes, recorded {}", bytes.len() - 100, bytes.len());
    assert_eq!(out.messages(), [want]);
    assert!(out.stderr.contains("the file is cut off in tensor"), "{}", out.stderr);
}

#[test]
fn a_record_that_is_no_whole_record_is_trouble_not_a_difference() {
    let Some(dir) = golden("old-keys") else { return };
    let whole = run(&[text(&dir)], "").stream();
    let lines: Vec<&str> = whole.lines().collect();
    let check = |stdin: String, want: &str| {
        let out = run(&[text(&dir), "--verify", "-"], &stdin);
        assert_eq!(out.code, 2, "{}", out.stderr);
        assert!(out.stderr.contains(want), "{}", out.stderr);
        assert!(out.records.is_empty());
    };
    check(format!("{}\n{}\n", lines[0], lines[1]), "its stream has no `end` record");
    check(whole.trim_end().to_owned(), "the last line has no newline");
    check(format!("{}\n{}\n", lines[0], lines[2]), "counts 2 records, 1 arrived");
    check(format!("{}\n", lines[1]), "it has no `run` and no `end` record");
    check(String::new(), "0 model records: expected exactly one");
    check(whole.repeat(2), "2 model records: expected exactly one");
    check("not json\n".to_owned(), "stdin:1: ");
    let out = run(&[text(&dir), "--verify", "no/such/file"], "");
    assert_eq!((out.code, out.stderr.contains("no/such/file")), (2, true), "{}", out.stderr);
}

#[test]
fn a_scan_names_each_tensor_with_nan_or_infinity_and_the_exit_is_1() {
    let Some(dir) = copy("odd-sizes") else { return };
    let path = dir.path().join("model.safetensors");
    let mut weights = fs::read(&path).unwrap();
    let at = weights.len() - 4;
    weights[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, weights).unwrap();
    assert_eq!(run(&[text(dir.path())], "").code, 0);
    let out = run(&[text(dir.path()), "--scan"], "");
    assert_eq!((out.code, out.kinds()), (1, vec!["run", "model", "finding", "end"]));
    let finding = &out.records[2];
    let tensor = finding["data"]["tensor"].as_str().unwrap();
    assert_eq!(finding["check"], "non_finite_weights");
    assert_eq!(finding["message"], format!("tensor {tensor} holds 1 values that are NaN or infinite"));
    assert_eq!(out.records[1]["non_finite"], json!({tensor: 1}));
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let Some(dir) = copy("old-keys") else { return };
    let vocab: serde_json::Map<String, Value> = (0..60).map(|i| (format!("t{i}"), json!(i))).collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}});
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let out = run(&[text(dir.path())], "");
    assert_eq!(out.code, 2);
    let want = "tokenizer.json: token \"t59\" has id 59: config.json says vocab_size 50, so it is another model's tokenizer";
    assert!(out.stderr.contains(want), "{}", out.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_trouble_and_a_closed_pipe_is_not() {
    let Some(dir) = golden("old-keys") else { return };
    let shell = |line: &str| {
        let bin = assert_cmd::cargo::cargo_bin("cute-load");
        let line = line.replace("cute-load", &format!("{} {}", bin.display(), dir.display()));
        std::process::Command::new("bash").args(["-c", &line]).output().unwrap()
    };
    let full = shell("cute-load > /dev/full");
    assert_eq!(full.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&full.stderr).contains("cannot write records"));
    let closed = shell("set -o pipefail; { sleep 1; cute-load; echo $? >&2; } | true");
    assert_eq!(String::from_utf8_lossy(&closed.stderr), "0\n");
}

#[test]
fn the_help_shows_examples_and_exit_codes() {
    let help = |flag: &str| {
        let out = Command::cargo_bin("cute-load").unwrap().arg(flag).output().unwrap();
        assert_eq!(out.status.code(), Some(0));
        String::from_utf8(out.stdout).unwrap()
    };
    assert!(help("-h").contains("cute-load examples/tiny-hybrid --verify model.jsonl"));
    assert!(help("--help").contains("Exit codes"));
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/tiny-hybrid");

#[test]
fn kernels_are_compiled_once_for_each_architecture() {
    if std::env::var_os("CUTE_NVRTC").is_none() {
        println!("skipped: CUTE_NVRTC names no NVRTC");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("kernels");
    let args = [TINY, "--compile", "--arch", "sm_90a,sm_120a", "--kernel-cache", text(&cache)];
    let out = run(&args, "");
    assert_eq!((out.code, out.kinds()), (0, vec!["run", "model", "end"]), "{}", out.stderr);
    assert_eq!(out.records[0]["config"]["arch"]["value"], json!(["sm_90a", "sm_120a"]));
    for arch in ["sm_90a", "sm_120a"] {
        assert!(
            out.stderr.contains(&format!("kernels for {arch} in {}: ", cache.display())),
            "{}",
            out.stderr
        );
    }
    assert!(
        out.stderr.contains(" 0 were there") && !out.stderr.contains(": 0 units compiled"),
        "{}",
        out.stderr
    );
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name()).collect();
        files.sort();
        files
    };
    let before = files();
    assert!(before.len() >= 2, "{before:?}");
    let again = run(&args, "");
    assert_eq!(again.stderr.matches(": 0 units compiled").count(), 2, "{}", again.stderr);
    assert_eq!(files(), before);
}

#[test]
fn a_cache_that_cannot_be_filled_is_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let out = run(&[TINY, "--compile", "--arch", "sm_90a", "--kernel-cache", text(&file)], "");
    assert_eq!(out.code, 2);
    let (end, want) = (out.records.last().unwrap(), text(&file));
    assert_eq!((&end["type"], &end["complete"]), (&json!("end"), &json!(false)));
    assert!(out.stderr.contains(want), "{}", out.stderr);
}

#[test]
fn a_library_that_is_no_nvrtc_is_refused_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libnvrtc.so");
    fs::write(&file, "no library").unwrap();
    let out = run(
        &[TINY, "--compile", "--arch", "sm_90a", "--nvrtc", text(&file), "--kernel-cache", "nowhere"],
        "",
    );
    assert_eq!(out.code, 2);
    assert!(out.stderr.contains(&format!("CUTE_NVRTC {}", file.display())), "{}", out.stderr);
    assert!(!Path::new("nowhere").exists());
}

#[test]
fn an_architecture_that_is_none_is_refused() {
    for arch in ["sm_80", "90a", "sm_", "sm_90aa5", "compute_90"] {
        let out = run(&[TINY, "--compile", "--arch", arch], "");
        assert_eq!(out.code, 2);
        assert!(out.stderr.contains(&format!("'{arch}'")), "{}", out.stderr);
    }
    let out = run(&[TINY, "--arch", "sm_90a"], "");
    assert!(out.code == 2 && out.stderr.contains("--compile"), "{}", out.stderr);
}
