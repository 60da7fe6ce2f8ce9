//! Two dozen ways in which a download, a conversion or a careless copy breaks one real checkpoint.

use crate::Base::Trained;
use crate::{Case, WEIGHTS, edit_header, replace, set};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Cuts the file in two shards at layer 6, with an index, as a conversion script would.
fn split(d: &Path) {
    let bytes = fs::read(d.join(WEIGHTS)).unwrap();
    let n = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let all: Map<String, Value> = serde_json::from_slice(&bytes[8..n]).unwrap();
    let mut map = Map::new();
    for (shard, file) in SHARDS.iter().enumerate() {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, entry) in all.iter().filter(|(name, _)| *name != "__metadata__") {
            let layer = name.split('.').nth(2).and_then(|l| l.parse::<u32>().ok());
            if usize::from(layer.is_some_and(|l| l >= 6)) != shard {
                continue;
            }
            let at = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let start = data.len();
            data.extend_from_slice(&bytes[n + at(0)..n + at(1)]);
            let mut entry = entry.clone();
            entry["data_offsets"] = json!([start, data.len()]);
            header.insert(name.clone(), entry);
            map.insert(name.clone(), json!(file));
        }
        let text = Value::Object(header).to_string();
        fs::write(d.join(file), [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat())
            .unwrap();
    }
    fs::write(d.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    fs::remove_file(d.join(WEIGHTS)).unwrap();
}

/// Lets two tensors change places in the header.
fn swap(d: &Path, a: &str, b: &str) {
    edit_header(d, WEIGHTS, |map| {
        let (x, y) = (map[a].clone(), map[b].clone());
        map[a] = y;
        map[b] = x;
    });
}

const VARIANTS: &[Case] = &[
    (
        "no config",
        Trained,
        |d| fs::remove_file(d.join("config.json")).unwrap(),
        "DIR: no config.json: it says what shape the model has",
    ),
    (
        "no weights",
        Trained,
        |d| fs::remove_file(d.join(WEIGHTS)).unwrap(),
        "DIR: no model.safetensors: the weights are read from safetensors files",
    ),
    (
        "weights cut off by a full disk",
        Trained,
        |d| {
            fs::File::options().write(true).open(d.join(WEIGHTS)).unwrap().set_len(9_000_000).unwrap();
        },
        "DIR/model.safetensors: 9000000 bytes: its header says 12160400, the file is cut off in tensor model.layers.6.mlp.up_proj.weight",
    ),
    (
        "weights with an error page behind them",
        Trained,
        |d| {
            let bytes = fs::read(d.join(WEIGHTS)).unwrap();
            fs::write(d.join(WEIGHTS), [bytes.as_slice(), b"<html>"].concat()).unwrap();
        },
        "DIR/model.safetensors: 12160406 bytes: its header says 12160400, 6 bytes are left over",
    ),
    (
        "a pointer in place of the weights",
        Trained,
        |d| {
            fs::write(
                d.join(WEIGHTS),
                "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12160400\n",
            )
            .unwrap();
        },
        "DIR/model.safetensors: bad safetensors header: it is a Git LFS pointer: fetch the file itself with git lfs pull",
    ),
    (
        "a tensor of another dtype",
        Trained,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                map["model.layers.3.self_attn.q_norm.weight"]["dtype"] = json!("I16")
            });
        },
        "DIR/model.safetensors: tensor model.layers.3.self_attn.q_norm.weight has dtype I16: expected BF16, F16 or F32",
    ),
    (
        "a tensor left out",
        Trained,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                let entry = map.remove("model.layers.11.mlp.up_proj.weight").unwrap();
                map.insert("mtp.layers.0.mlp.up_proj.weight".to_owned(), entry);
            });
        },
        "DIR: no tensor model.layers.11.mlp.up_proj.weight: expected shape [512, 192]",
    ),
    (
        "a tensor of another layer's shape",
        Trained,
        |d| {
            swap(d, "model.layers.3.self_attn.q_proj.weight", "model.layers.4.linear_attn.in_proj_z.weight");
        },
        "DIR/model.safetensors: tensor model.layers.3.self_attn.q_proj.weight has shape [256, 192]: config.json implies [512, 192]",
    ),
    (
        "a tensor on its side",
        Trained,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                map["model.layers.0.mlp.down_proj.weight"]["shape"] = json!([512, 192])
            });
        },
        "DIR/model.safetensors: tensor model.layers.0.mlp.down_proj.weight has shape [512, 192]: config.json implies [192, 512]",
    ),
    (
        "a misspelt tensor",
        Trained,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                let entry = map["model.norm.weight"].clone();
                let end = entry["data_offsets"][1].clone();
                map.insert(
                    "model.final_norm.weight".to_owned(),
                    json!({"dtype": "BF16", "shape": [0], "data_offsets": [end, end]}),
                );
            });
        },
        "DIR/model.safetensors: unexpected tensor model.final_norm.weight",
    ),
    (
        "layers in another order",
        Trained,
        |d| {
            let (l, f) = ("linear_attention", "full_attention");
            set(d, "config.json", "layer_types", json!([f, l, l, l, f, l, l, l, f, l, l, l]));
        },
        "DIR: no tensor model.layers.0.self_attn.q_proj.weight: expected shape [512, 192]; 44 more are missing",
    ),
    (
        "the config of a wider model",
        Trained,
        |d| set(d, "config.json", "hidden_size", json!(256)),
        "DIR/model.safetensors: tensor model.embed_tokens.weight has shape [704, 192]: config.json implies [704, 256]",
    ),
    (
        "the config of a deeper model",
        Trained,
        |d| {
            set(d, "config.json", "layer_types", json!(null));
            set(d, "config.json", "full_attention_interval", json!(4));
            set(d, "config.json", "num_hidden_layers", json!(16));
        },
        "DIR: no tensor model.layers.12.input_layernorm.weight: expected shape [192]; 52 more are missing",
    ),
    (
        "the config of a shallower model",
        Trained,
        |d| {
            set(d, "config.json", "layer_types", json!(null));
            set(d, "config.json", "full_attention_interval", json!(4));
            set(d, "config.json", "num_hidden_layers", json!(8));
        },
        "DIR/model.safetensors: unexpected tensor model.layers.10.input_layernorm.weight: config.json says num_hidden_layers 8",
    ),
    (
        "the config of another architecture",
        Trained,
        |d| {
            set(d, "config.json", "architectures", json!(["Qwen3MoeForCausalLM"]));
        },
        "DIR/config.json: architecture Qwen3MoeForCausalLM is not supported: it needs a model text of its own; this build runs Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5MoeForCausalLM, Qwen3_5MoeForConditionalGeneration, Qwen3NextForCausalLM",
    ),
    (
        "the config of a quantised copy",
        Trained,
        |d| {
            set(d, "config.json", "quantization_config", json!({"quant_method": "fp8"}));
        },
        "DIR/config.json: quantisation fp8 is announced: no tensor is packed",
    ),
    (
        "an untied head that is not there",
        Trained,
        |d| set(d, "config.json", "tie_word_embeddings", json!(false)),
        "DIR: no tensor lm_head.weight: expected shape [704, 192], because config.json says tie_word_embeddings false",
    ),
    (
        "an end of sequence of another vocabulary",
        Trained,
        |d| {
            set(d, "generation_config.json", "eos_token_id", json!([701, 151_645]));
        },
        "DIR/generation_config.json: eos_token_id is 151645: expected a token id below vocab_size 704, or a list of them",
    ),
    (
        "another model's tokenizer",
        Trained,
        |d| replace(d, "tokenizer.json", "\"id\": 703", "\"id\": 151645"),
        r#"DIR/tokenizer.json: added token "<|im_end|>" is said to have id 151645: its place in the vocabulary gives it id 703"#,
    ),
    (
        "a tokenizer cut off",
        Trained,
        |d| {
            fs::File::options().write(true).open(d.join("tokenizer.json")).unwrap().set_len(20_000).unwrap();
        },
        "DIR/tokenizer.json: not the JSON that belongs here: EOF while parsing a list at line 1291 column 5",
    ),
    (
        "a template with a bracket lost",
        Trained,
        |d| fs::write(d.join("chat_template.jinja"), "{{ messages[0 }}").unwrap(),
        "DIR/chat_template.jinja: chat template line 1: syntax error: unexpected `}`, expected `]`",
    ),
    (
        "one shard of two",
        Trained,
        |d| {
            split(d);
            fs::remove_file(d.join(SHARDS[1])).unwrap();
        },
        "DIR/model.safetensors.index.json: shard model-00002-of-00002.safetensors is missing: tensor model.layers.10.input_layernorm.weight is said to be in it",
    ),
    (
        "two shards swapped",
        Trained,
        |d| {
            split(d);
            fs::rename(d.join(SHARDS[0]), d.join("x")).unwrap();
            fs::rename(d.join(SHARDS[1]), d.join(SHARDS[0])).unwrap();
            fs::rename(d.join("x"), d.join(SHARDS[1])).unwrap();
        },
        "DIR/model.safetensors.index.json: tensor model.embed_tokens.weight is said to be in model-00001-of-00002.safetensors, it is in model-00002-of-00002.safetensors",
    ),
    (
        "shards beside the whole file",
        Trained,
        |d| {
            let bytes = fs::read(d.join(WEIGHTS)).unwrap();
            split(d);
            fs::write(d.join(WEIGHTS), bytes).unwrap();
        },
        "DIR/model.safetensors.index.json: no tensor is said to be in model.safetensors, which stands beside it",
    ),
];

#[test]
fn each_broken_variant_of_a_real_checkpoint_is_refused_with_the_right_sentence() {
    crate::refused(VARIANTS.iter());
}

#[test]
fn a_checkpoint_cut_in_shards_is_the_same_checkpoint() {
    let dir = crate::copy(Trained);
    let whole = crate::load(dir.path()).1;
    split(dir.path());
    let (code, shards, stderr) = crate::load(dir.path());
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let bytes = |stream: &str| {
        let model: Value = serde_json::from_str(stream.lines().nth(1).unwrap()).unwrap();
        model["bytes_by_module"].clone()
    };
    assert_eq!(bytes(&shards), bytes(&whole));
}
