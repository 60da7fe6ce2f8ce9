//! Every way in which the files of a checkpoint can be hostile or broken, and the one sentence that each is
//! refused with. The binary runs with 2 GB of address space: what would fill the memory fails here.

mod configs;
mod files;
mod headers;
mod packed;
mod shards;
mod texts;
mod variants;

use serde_json::{Map, Value};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A case: what it is, the checkpoint that is broken, how, and the sentence; `DIR` is the directory.
pub type Case = (&'static str, Base, fn(&Path), &'static str);

/// The sound checkpoints that the cases start from.
#[derive(Clone, Copy)]
pub enum Base {
    /// one file; hidden 16, three layers, 50 tokens
    Single,
    /// three shards and an index; hidden 32, five layers
    Sharded,
    /// the trained model with its tokenizer and template; hidden 192, twelve layers, 704 tokens
    Trained,
    /// block FP8 in a wrapper; hidden 144
    BlockFp8,
    /// ModelOpt's mixed precision: NVFP4 and FP8
    ModelOpt,
    /// compressed-tensors: NVFP4 and FP8 by channel
    Compressed,
    /// eight fused experts
    Moe,
    /// eight experts in ModelOpt's NVFP4, one by one
    MoeNvfp4,
    /// qwen3_next
    Next,
    /// qwen3_next in block FP8
    NextFp8,
}

/// Longest that one refusal may take, on a machine that does other things as well.
const LONGEST: Duration = Duration::from_secs(20);
/// Address space of the process, in kB.
const ADDRESS_SPACE_KB: u64 = 2_000_000;

fn copy(base: Base) -> TempDir {
    let name = match base {
        Base::Single => "tests/golden/old-keys",
        Base::Sharded => "tests/golden/sharded",
        Base::Trained => "examples/tiny-hybrid",
        Base::BlockFp8 => "tests/golden/formats/fp8-block",
        Base::ModelOpt => "tests/golden/formats/modelopt-mixed",
        Base::Compressed => "tests/golden/formats/compressed-mixed",
        Base::Moe => "tests/golden/formats/moe",
        Base::MoeNvfp4 => "tests/golden/formats/moe-nvfp4",
        Base::Next => "tests/golden/formats/next",
        Base::NextFp8 => "tests/golden/formats/next-fp8",
    };
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// What a run says: exit code, stdout, stderr; `DIR` for the directory.
fn load(dir: &Path) -> (Option<i32>, String, String) {
    let script = format!("ulimit -v {ADDRESS_SPACE_KB} && exec \"$0\" \"$1\"");
    let out = std::process::Command::new("bash")
        .args(["-c", &script])
        .arg(assert_cmd::cargo::cargo_bin("cute-load"))
        .arg(dir)
        .env("MALLOC_ARENA_MAX", "2")
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(dir.to_str().unwrap(), "DIR");
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn each_hostile_file_is_refused_by_name() {
    let tables = [headers::CASES, files::CASES, shards::CASES, configs::CASES, texts::CASES];
    assert!(tables.iter().map(|t| t.len()).sum::<usize>() >= 60);
    refused(tables.into_iter().flatten());
}

/// Breaks a sound checkpoint in each way, and asks for exit 2, the sentence on stderr, and a stream that says the same.
fn refused<'a>(cases: impl Iterator<Item = &'a Case>) {
    let mut wrong = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for (name, base, breaks, says) in cases {
        assert!(names.insert(name), "{name} stands twice");
        let dir = copy(*base);
        breaks(dir.path());
        let start = Instant::now();
        let (code, stdout, stderr) = load(dir.path());
        let took = start.elapsed();
        let records: Vec<Value> = stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let kinds: Vec<&str> = records.iter().filter_map(|r| r["type"].as_str()).collect();
        let end = records.last().cloned().unwrap_or_default();
        let as_wanted = code == Some(2)
            && stderr == format!("cute-load: {says}\n")
            && kinds == ["run", "end"]
            && end["complete"] == false
            && end["reason"] == *says
            && took < LONGEST;
        if !as_wanted {
            wrong.push(format!(
                "{name}: exit {code:?} after {took:.1?}, {kinds:?}\n  wanted {says}\n  found  {stderr}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), names.len(), wrong.join("\n"));
}

#[test]
fn the_checkpoints_that_are_broken_here_are_sound() {
    let packed = [Base::BlockFp8, Base::ModelOpt, Base::Compressed, Base::Moe, Base::MoeNvfp4, Base::Next];
    let plain = [Base::Single, Base::Sharded, Base::Trained, Base::NextFp8];
    for base in packed.into_iter().chain(plain) {
        let dir = copy(base);
        let (code, _, stderr) = load(dir.path());
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
    }
}

/// The one safetensors file.
pub const WEIGHTS: &str = "model.safetensors";

/// Writes model.safetensors with any header and so many bytes of data.
pub fn header(d: &Path, header: &str, data: usize) {
    header_bytes(d, header.as_bytes(), data);
}

/// As [`header`], for a header that is no text.
pub fn header_bytes(d: &Path, header: &[u8], data: usize) {
    let file = [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat();
    fs::write(d.join(WEIGHTS), file).unwrap();
}

/// Edits the header of a safetensors file; its data stays.
pub fn edit_header(d: &Path, file: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
    let bytes = fs::read(d.join(file)).unwrap();
    let n = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut map: Map<String, Value> = serde_json::from_slice(&bytes[8..n]).unwrap();
    edit(&mut map);
    let text = Value::Object(map).to_string();
    let out = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[n..]].concat();
    fs::write(d.join(file), out).unwrap();
}

/// Sets a key of a JSON file; `null` removes it.
pub fn set(d: &Path, file: &str, key: &str, value: Value) {
    let mut map: Map<String, Value> = match fs::read(d.join(file)) {
        Ok(text) => serde_json::from_slice(&text).unwrap(),
        Err(_) => Map::new(),
    };
    map.remove(key);
    if !value.is_null() {
        map.insert(key.to_owned(), value);
    }
    fs::write(d.join(file), Value::Object(map).to_string()).unwrap();
}

/// Replaces a text in a file, where it stands once.
pub fn replace(d: &Path, file: &str, old: &str, new: &str) {
    let text = fs::read_to_string(d.join(file)).unwrap();
    assert_eq!(text.matches(old).count(), 1, "{old} in {file}");
    fs::write(d.join(file), text.replace(old, new)).unwrap();
}
