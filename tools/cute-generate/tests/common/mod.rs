//! What the tests of journals share: a run's command, its output without times, and signals.
#![allow(dead_code)] // each test binary uses a part

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// cute-generate on the tiny model and the fifty problems.
pub fn generate(args: &[&str]) -> Command {
    let mut command = bare();
    command.arg("--prompts").arg(root().join("examples/arith-50.jsonl")).args(args);
    command
}

/// cute-generate on the tiny model, in the workspace's root.
pub fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cute-generate"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CUTE_")) {
        command.env_remove(name);
    }
    command.current_dir(root()).args(["--model", "examples/tiny-hybrid"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The journal's arguments.
pub fn journal(command: &mut Command, dir: &Path, resume: bool) {
    command.arg("--journal").arg(dir).args(resume.then_some("--resume"));
}

/// A run to its end, with or without a journal.
pub fn run(args: &[&str], dir: Option<(&Path, bool)>) -> Output {
    let mut command = generate(args);
    if let Some((dir, resume)) = dir {
        journal(&mut command, dir, resume);
    }
    command.output().unwrap()
}

/// stderr as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The records of a stream.
pub fn records(bytes: &[u8]) -> Vec<Value> {
    std::str::from_utf8(bytes).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The lines of a stream, each without the fields that hold durations: `*_ms`, `ms` and `figures`.
pub fn timeless(bytes: &[u8]) -> Vec<String> {
    let mut all = records(bytes);
    for record in &mut all {
        record.as_object_mut().unwrap().retain(|k, _| !(k.ends_with("_ms") || k == "ms" || k == "figures"));
    }
    all.iter().map(Value::to_string).collect()
}

/// Sends a signal, by the name that `kill` knows.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("bash").arg("-c").arg(format!("kill -{name} {}", child.id())).status();
    assert!(sent.unwrap().success(), "kill -{name}");
}

/// A journal of these lines, each sealed anew: what somebody would write who knows how.
pub fn sealed(lines: &[&str]) -> String {
    let mut last = String::new();
    let mut text = String::new();
    for line in lines {
        let body = line.rsplit_once(",\"sha256\":\"").unwrap().0;
        last = cute_records::digest::sha256(format!("{last}{body}").as_bytes());
        text += &format!("{body},\"sha256\":\"{last}\"}}\n");
    }
    text
}
