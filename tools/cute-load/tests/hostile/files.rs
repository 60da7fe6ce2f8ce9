//! Files that are cut off, missing, or no files; tensors that are not the model's.

use crate::Base::Single;
use crate::{Case, WEIGHTS, edit_header, header};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

const A_LOG: &str = "model.language_model.layers.1.linear_attn.A_log";
const K_NORM: &str = "model.language_model.layers.0.self_attn.k_norm.weight";

/// Sets one field of one tensor of the header.
fn tensor(d: &Path, name: &str, field: &str, value: Value) {
    edit_header(d, WEIGHTS, |map| map[name][field] = value);
}

/// Gives a tensor another name.
fn rename(d: &Path, from: &str, to: &str) {
    edit_header(d, WEIGHTS, |map| {
        let entry = map.remove(from).unwrap();
        map.insert(to.to_owned(), entry);
    });
}

pub const CASES: &[Case] = &[
    (
        "weights cut off",
        Single,
        |d| {
            fs::File::options().write(true).open(d.join(WEIGHTS)).unwrap().set_len(42_000).unwrap();
        },
        "DIR/model.safetensors: 42000 bytes: its header says 42104, the file is cut off in tensor model.language_model.layers.2.post_attention_layernorm.weight",
    ),
    (
        "weights cut off within the header",
        Single,
        |d| {
            fs::File::options().write(true).open(d.join(WEIGHTS)).unwrap().set_len(1000).unwrap();
        },
        "DIR/model.safetensors: bad safetensors header: its length field says 4832 bytes: only 992 follow, the file is cut off",
    ),
    (
        "weights with a newline behind them",
        Single,
        |d| {
            let bytes = fs::read(d.join(WEIGHTS)).unwrap();
            fs::write(d.join(WEIGHTS), [bytes.as_slice(), b"\n"].concat()).unwrap();
        },
        "DIR/model.safetensors: 42105 bytes: its header says 42104, 1 bytes are left over",
    ),
    (
        "a directory in place of the weights",
        Single,
        |d| {
            fs::remove_file(d.join(WEIGHTS)).unwrap();
            fs::create_dir(d.join(WEIGHTS)).unwrap();
        },
        "DIR/model.safetensors: a directory: expected a regular file",
    ),
    (
        "a pipe in place of the weights",
        Single,
        |d| {
            fs::remove_file(d.join(WEIGHTS)).unwrap();
            assert!(Command::new("mkfifo").arg(d.join(WEIGHTS)).status().unwrap().success());
        },
        "DIR/model.safetensors: a pipe, socket or device: expected a regular file",
    ),
    (
        "a pipe in place of the config",
        Single,
        |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            assert!(Command::new("mkfifo").arg(d.join("config.json")).status().unwrap().success());
        },
        "DIR/config.json: a pipe, socket or device: expected a regular file",
    ),
    (
        "an endless device in place of the config",
        Single,
        |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            symlink("/dev/zero", d.join("config.json")).unwrap();
        },
        "DIR/config.json: a pipe, socket or device: expected a regular file",
    ),
    (
        "a link to itself",
        Single,
        |d| {
            fs::remove_file(d.join(WEIGHTS)).unwrap();
            symlink(WEIGHTS, d.join(WEIGHTS)).unwrap();
        },
        "DIR/model.safetensors: Too many levels of symbolic links (os error 40)",
    ),
    (
        "links in a circle",
        Single,
        |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            symlink("other.json", d.join("config.json")).unwrap();
            symlink("config.json", d.join("other.json")).unwrap();
        },
        "DIR/config.json: Too many levels of symbolic links (os error 40)",
    ),
    (
        "a link to nothing",
        Single,
        |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            symlink("nothing.json", d.join("config.json")).unwrap();
        },
        "DIR/config.json: No such file or directory (os error 2)",
    ),
    (
        "no config",
        Single,
        |d| fs::remove_file(d.join("config.json")).unwrap(),
        "DIR: no config.json: it says what shape the model has",
    ),
    (
        "no weights",
        Single,
        |d| fs::remove_file(d.join(WEIGHTS)).unwrap(),
        "DIR: no model.safetensors: the weights are read from safetensors files",
    ),
    (
        "a file name that colours the terminal",
        Single,
        |d| fs::write(d.join("\u{1b}[31m.safetensors"), "").unwrap(),
        r#"DIR: a name with control characters, "\u{1b}[31m.safetensors", is not supported: rename the file, or remove it"#,
    ),
    (
        "weights without a tensor",
        Single,
        |d| header(d, "{}", 0),
        "DIR: no tensor model.embed_tokens.weight: expected shape [50, 16]; 41 more are missing",
    ),
    (
        "a tensor of integers",
        Single,
        |d| tensor(d, A_LOG, "dtype", json!("I32")),
        "DIR/model.safetensors: tensor model.language_model.layers.1.linear_attn.A_log has dtype I32: expected BF16, F16 or F32 (it looks quantised)",
    ),
    (
        "a tensor of 8-bit floats",
        Single,
        |d| {
            tensor(d, A_LOG, "dtype", json!("F8_E4M3"));
            tensor(d, A_LOG, "shape", json!([4]));
        },
        "DIR/model.safetensors: tensor model.language_model.layers.1.linear_attn.A_log has dtype F8_E4M3: expected BF16, F16 or F32 (it looks quantised)",
    ),
    (
        "a matrix on its side",
        Single,
        |d| {
            tensor(d, "model.language_model.layers.0.mlp.down_proj.weight", "shape", json!([24, 16]));
        },
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.down_proj.weight has shape [24, 16]: config.json implies [16, 24]",
    ),
    (
        "a vector as a matrix",
        Single,
        |d| tensor(d, K_NORM, "shape", json!([16, 1])),
        "DIR/model.safetensors: tensor model.language_model.layers.0.self_attn.k_norm.weight has shape [16, 1]: config.json implies [16]",
    ),
    (
        "a tensor under another name",
        Single,
        |d| rename(d, A_LOG, "model.language_model.layers.1.linear_attn.a_log"),
        "DIR: no tensor model.language_model.layers.1.linear_attn.A_log: expected shape [1]",
    ),
    (
        "a tensor of a layer too many",
        Single,
        |d| rename(d, K_NORM, "model.language_model.layers.3.self_attn.k_norm.weight"),
        "DIR: no tensor model.language_model.layers.0.self_attn.k_norm.weight: expected shape [16]",
    ),
    (
        "a tensor of a layer beyond counting",
        Single,
        |d| {
            rename(d, K_NORM, "model.language_model.layers.99999999999999999999.k_norm.weight");
        },
        "DIR: no tensor model.language_model.layers.0.self_attn.k_norm.weight: expected shape [16]",
    ),
    (
        "a tensor of the other kind of layer",
        Single,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                let end = map["model.language_model.norm.weight"]["data_offsets"][1].clone();
                let name = "model.language_model.layers.0.linear_attn.A_log".to_owned();
                map.insert(name, json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]}));
            });
        },
        "DIR/model.safetensors: unexpected tensor model.language_model.layers.0.linear_attn.A_log: config.json says layer 0 is full_attention",
    ),
    (
        "tensors with two prefixes",
        Single,
        |d| rename(d, "model.language_model.norm.weight", "model.norm.weight"),
        "DIR: tensors with two prefixes: model.norm.weight and model.language_model.embed_tokens.weight: expected one text model",
    ),
];
