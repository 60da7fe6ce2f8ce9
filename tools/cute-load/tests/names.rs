//! Names of the hub on the command line: found in the cache, refused with what to run, never looked for elsewhere.

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A home with `org/tiny` in its cache: links to the trained example.
fn home() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let repository = home.path().join("hub/models--org--tiny");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-hybrid");
    fs::create_dir_all(snapshot(&home)).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for entry in fs::read_dir(example.canonicalize().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        symlink(&path, snapshot(&home).join(path.file_name().unwrap())).unwrap();
    }
    home
}

fn snapshot(home: &TempDir) -> PathBuf {
    home.path().join("hub/models--org--tiny/snapshots").join(COMMIT)
}

/// Exit code, records and stderr.
fn load(home: &TempDir, name: &str) -> (i32, Vec<Value>, String) {
    let mut command = Command::cargo_bin("cute-load").unwrap();
    for other in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        command.env_remove(other);
    }
    let out = command.env("HF_HOME", home.path()).arg(name).output().unwrap();
    let records = String::from_utf8(out.stdout).unwrap();
    let records = records.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (out.status.code().unwrap(), records, String::from_utf8(out.stderr).unwrap())
}

#[test]
fn the_record_of_a_name_says_repository_commit_and_directory() {
    let home = home();
    for name in ["org/tiny", "org/tiny@main"] {
        let (code, records, stderr) = load(&home, name);
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert_eq!(records[0]["config"]["dir"]["value"], name);
        assert_eq!(records[1]["repository"], "org/tiny");
        assert_eq!(records[1]["revision"], COMMIT);
        assert_eq!(records[1]["path"], snapshot(&home).to_str().unwrap());
        assert!(records[1]["tokenizer_sha256"].is_string() && records[1]["chat_template_sha256"].is_string());
    }
    let (_, records, _) = load(&home, concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/tiny-hybrid"));
    assert_eq!((&records[1]["repository"], &records[1]["revision"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_name_that_is_not_whole_in_the_cache_is_refused_with_the_command() {
    let home = home();
    for (name, want) in [
        ("org/other", "has no such model; `hf download org/other` downloads it"),
        ("org/tiny@v2", "it has org/tiny@main; `hf download org/tiny --revision v2` downloads it"),
        ("org/tiny/x", "it has 3 parts"),
    ] {
        let (code, records, stderr) = load(&home, name);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.starts_with(&format!("cute-load: {name}: no such directory, and ")), "{stderr}");
        assert!(stderr.contains(want), "{stderr}");
        assert_eq!(records.last().unwrap()["complete"], false);
    }
    let weights = snapshot(&home).join("model.safetensors");
    fs::remove_file(&weights).unwrap();
    symlink("../../blobs/5ca1ab1e", &weights).unwrap();
    let (code, _, stderr) = load(&home, "org/tiny");
    assert_eq!(code, 2, "{stderr}");
    let want = "no model.safetensors: the link is there and its blob 5ca1ab1e is not; `hf download org/tiny` completes the snapshot";
    assert!(stderr.contains(want), "{stderr}");
}

#[test]
fn a_record_of_a_directory_verifies_the_same_files_in_the_cache() {
    let home = home();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/tiny-hybrid");
    let recorded = Command::cargo_bin("cute-load").unwrap().arg(example).output().unwrap().stdout;
    let mut command = Command::cargo_bin("cute-load").unwrap();
    command.env("HF_HUB_CACHE", home.path().join("hub")).args(["org/tiny", "--verify", "-"]);
    command.write_stdin(recorded).assert().success();
}
