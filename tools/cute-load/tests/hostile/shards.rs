//! Shards and their index: missing, doubled, swapped, absurd.

use crate::Base::Sharded;
use crate::{Case, edit_header};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const THIRD: &str = "model-00003-of-00003.safetensors";
const NORM: &str = "model.norm.weight";

/// Edits the map of the index.
fn index(d: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut index: Value = serde_json::from_slice(&fs::read(d.join(INDEX)).unwrap()).unwrap();
    edit(index["weight_map"].as_object_mut().unwrap());
    fs::write(d.join(INDEX), index.to_string()).unwrap();
}

pub const CASES: &[Case] = &[
    (
        "a shard missing",
        Sharded,
        |d| fs::remove_file(d.join(SECOND)).unwrap(),
        "DIR/model.safetensors.index.json: shard model-00002-of-00003.safetensors is missing: tensor model.layers.1.mlp.down_proj.weight is said to be in it",
    ),
    (
        "a shard missing, and the index",
        Sharded,
        |d| {
            fs::remove_file(d.join(SECOND)).unwrap();
            fs::remove_file(d.join(INDEX)).unwrap();
        },
        "DIR: no model-00002-of-00003.safetensors: model-00001-of-00003.safetensors is one of 3 shards",
    ),
    (
        "a shard that is empty",
        Sharded,
        |d| fs::write(d.join(THIRD), "").unwrap(),
        "DIR/model-00003-of-00003.safetensors: bad safetensors header: the file has 0 bytes: expected at least the 8 of its length",
    ),
    (
        "a shard that is a directory",
        Sharded,
        |d| {
            fs::remove_file(d.join(THIRD)).unwrap();
            fs::create_dir(d.join(THIRD)).unwrap();
        },
        "DIR/model-00003-of-00003.safetensors: a directory: expected a regular file",
    ),
    (
        "a shard cut off",
        Sharded,
        |d| {
            fs::File::options().write(true).open(d.join(SECOND)).unwrap().set_len(100_000).unwrap();
        },
        "DIR/model-00002-of-00003.safetensors: 100000 bytes: its header says 104304, the file is cut off in tensor model.layers.3.linear_attn.in_proj_qkv.weight",
    ),
    (
        "two shards swapped",
        Sharded,
        |d| {
            fs::rename(d.join(SECOND), d.join("x")).unwrap();
            fs::rename(d.join(THIRD), d.join(SECOND)).unwrap();
            fs::rename(d.join("x"), d.join(THIRD)).unwrap();
        },
        "DIR/model.safetensors.index.json: tensor model.layers.1.mlp.down_proj.weight is said to be in model-00002-of-00003.safetensors, it is in model-00003-of-00003.safetensors",
    ),
    (
        "a shard that is the copy of another",
        Sharded,
        |d| _ = fs::copy(d.join(SECOND), d.join(THIRD)).unwrap(),
        "tensor model.layers.1.mlp.down_proj.weight stands twice: in DIR/model-00002-of-00003.safetensors and in DIR/model-00003-of-00003.safetensors",
    ),
    (
        "a tensor in two shards",
        Sharded,
        |d| {
            edit_header(d, THIRD, |map| {
                let (name, entry) = map
                    .iter()
                    .find(|(_, e)| e["shape"] == json!([32]))
                    .map(|(n, e)| (n.clone(), e.clone()))
                    .unwrap();
                map.remove(&name);
                map.insert("model.layers.1.post_attention_layernorm.weight".to_owned(), entry);
            });
        },
        "tensor model.layers.1.post_attention_layernorm.weight stands twice: in DIR/model-00002-of-00003.safetensors and in DIR/model-00003-of-00003.safetensors",
    ),
    (
        "a tensor listed that is nowhere",
        Sharded,
        |d| {
            index(d, |map| _ = map.insert("model.layers.7.mlp.up_proj.weight".to_owned(), json!(FIRST)));
        },
        "DIR/model.safetensors.index.json: tensor model.layers.7.mlp.up_proj.weight is not in shard model-00001-of-00003.safetensors, nor in any other",
    ),
    (
        "a tensor listed in another shard",
        Sharded,
        |d| index(d, |map| map[NORM] = json!(SECOND)),
        "DIR/model.safetensors.index.json: tensor model.norm.weight is said to be in model-00002-of-00003.safetensors, it is in model-00003-of-00003.safetensors",
    ),
    (
        "a tensor that is not listed",
        Sharded,
        |d| index(d, |map| _ = map.remove(NORM)),
        "DIR/model.safetensors.index.json: tensor model.norm.weight of model-00003-of-00003.safetensors is not listed",
    ),
    (
        "a shard that is not listed",
        Sharded,
        |d| index(d, |map| map.retain(|_, file| file != SECOND)),
        "DIR/model.safetensors.index.json: no tensor is said to be in model-00002-of-00003.safetensors, which stands beside it",
    ),
    (
        "a shard outside the directory",
        Sharded,
        |d| index(d, |map| map[NORM] = json!("../other.safetensors")),
        r#"DIR/model.safetensors.index.json: tensor model.norm.weight is said to be in "../other.safetensors": expected a .safetensors file of DIR"#,
    ),
    (
        "a shard by its whole path",
        Sharded,
        |d| index(d, |map| map[NORM] = json!("/dev/zero")),
        r#"DIR/model.safetensors.index.json: tensor model.norm.weight is said to be in "/dev/zero": expected a .safetensors file of DIR"#,
    ),
    (
        "a shard that is no safetensors file",
        Sharded,
        |d| index(d, |map| map[NORM] = json!("config.json")),
        r#"DIR/model.safetensors.index.json: tensor model.norm.weight is said to be in "config.json": expected a .safetensors file of DIR"#,
    ),
    (
        "a shard that is a number",
        Sharded,
        |d| index(d, |map| map[NORM] = json!(3)),
        r#"DIR/model.safetensors.index.json: not the JSON that belongs here: "model.norm.weight": invalid type: integer `3`, expected a string at line 1 column 5276"#,
    ),
    (
        "a shard whose name colours the terminal",
        Sharded,
        |d| index(d, |map| map[NORM] = json!("\u{1b}[31m.safetensors")),
        r#"DIR/model.safetensors.index.json: not the JSON that belongs here: "model.norm.weight": name "\u{1b}[31m.safetensors": expected no control characters at line 1 column 5300"#,
    ),
    (
        "an index without a map",
        Sharded,
        |d| fs::write(d.join(INDEX), r#"{"metadata": {}}"#).unwrap(),
        "DIR/model.safetensors.index.json: not the JSON that belongs here: no weight_map",
    ),
    (
        "an index without a tensor",
        Sharded,
        |d| index(d, Map::clear),
        "DIR/model.safetensors.index.json: its weight_map names no tensor",
    ),
    (
        "an index with two maps",
        Sharded,
        |d| fs::write(d.join(INDEX), r#"{"weight_map": {}, "weight_map": {}}"#).unwrap(),
        r#"DIR/model.safetensors.index.json: not the JSON that belongs here: "weight_map" stands twice at line 1 column 36"#,
    ),
    (
        "an index with a tensor twice",
        Sharded,
        |d| fs::write(d.join(INDEX), r#"{"weight_map": {"a": "x", "a": "y"}}"#).unwrap(),
        r#"DIR/model.safetensors.index.json: not the JSON that belongs here: "a" stands twice at line 1 column 29"#,
    ),
    (
        "an index that is empty",
        Sharded,
        |d| fs::write(d.join(INDEX), "").unwrap(),
        "DIR/model.safetensors.index.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 0",
    ),
    (
        "an index of brackets",
        Sharded,
        |d| fs::write(d.join(INDEX), "[".repeat(100_000)).unwrap(),
        "DIR/model.safetensors.index.json: not the JSON that belongs here: invalid type: sequence, expected an object at line 1 column 0",
    ),
    (
        "an index of 33 MB",
        Sharded,
        |d| fs::write(d.join(INDEX), " ".repeat(33 << 20)).unwrap(),
        "DIR/model.safetensors.index.json: 34603008 bytes: expected at most 33554432",
    ),
    (
        "an index that is a directory",
        Sharded,
        |d| {
            fs::remove_file(d.join(INDEX)).unwrap();
            fs::create_dir(d.join(INDEX)).unwrap();
        },
        "DIR/model.safetensors.index.json: a directory: expected a regular file",
    ),
];
