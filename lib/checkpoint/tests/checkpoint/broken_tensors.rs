//! Tensors that do not match the config, shards that do not match their index.

use crate::tiny::{AS_WRITTEN, INDEX, Raw, SHARD_1, SHARD_2, Tiny, check, edit_index};
use safetensors::tensor::Dtype;
use serde_json::json;
use std::fs;

#[test]
fn tensors_that_do_not_match_the_config_are_refused_by_name() {
    check(
        |t| drop(t.tensors.remove("model.layers.0.linear_attn.A_log")),
        AS_WRITTEN,
        "DIR: no tensor model.layers.0.linear_attn.A_log: expected shape [2]",
    );
    check(
        |t| t.rename(|n| (!n.contains("layers.1.mlp")).then(|| n.to_owned())),
        AS_WRITTEN,
        "DIR: no tensor model.layers.1.mlp.gate_proj.weight: expected shape [12, 8]; 2 more are missing",
    );
    check(
        |t| drop(t.tensors.remove("lm_head.weight")),
        AS_WRITTEN,
        "DIR: no tensor lm_head.weight: expected shape [11, 8], because config.json says tie_word_embeddings false",
    );
    check(
        |t| {
            drop(
                t.tensors
                    .insert("model.layers.1.self_attn.q_norm.weight".into(), Raw::zeros(Dtype::F32, &[4])),
            )
        },
        AS_WRITTEN,
        "DIR/model.safetensors: tensor model.layers.1.self_attn.q_norm.weight has shape [4]: config.json implies [8]",
    );
    check(
        |t| t.set("attn_output_gate", json!(false)),
        AS_WRITTEN,
        "DIR/model.safetensors: tensor model.layers.1.self_attn.q_proj.weight has shape [32, 8]: config.json implies [16, 8]",
    );
    check(
        |t| t.set("vocab_size", json!(12)),
        AS_WRITTEN,
        "DIR/model.safetensors: tensor model.embed_tokens.weight has shape [11, 8]: config.json implies [12, 8]",
    );
    check(
        |t| drop(t.tensors.insert("model.norm.weight".into(), Raw::zeros(Dtype::F8_E4M3, &[8]))),
        AS_WRITTEN,
        "DIR/model.safetensors: tensor model.norm.weight has dtype F8_E4M3: expected BF16, F16 or F32 (it looks quantised)",
    );
    check(
        |t| drop(t.tensors.insert("model.norm.weight".into(), Raw::zeros(Dtype::F64, &[8]))),
        AS_WRITTEN,
        "DIR/model.safetensors: tensor model.norm.weight has dtype F64: expected BF16, F16 or F32",
    );
    check(
        |t| {
            drop(
                t.tensors
                    .insert("model.layers.1.self_attn.q_proj.bias".into(), Raw::zeros(Dtype::F32, &[32])),
            )
        },
        AS_WRITTEN,
        "DIR/model.safetensors: unexpected tensor model.layers.1.self_attn.q_proj.bias: config.json says layer 1 is full_attention",
    );
    check(
        |t| {
            drop(
                t.tensors
                    .insert("model.layers.2.input_layernorm.weight".into(), Raw::zeros(Dtype::F32, &[8])),
            )
        },
        AS_WRITTEN,
        "DIR/model.safetensors: unexpected tensor model.layers.2.input_layernorm.weight: config.json says num_hidden_layers 2",
    );
    check(
        |t| drop(t.tensors.insert("score.weight".into(), Raw::zeros(Dtype::F32, &[8]))),
        AS_WRITTEN,
        "DIR/model.safetensors: unexpected tensor score.weight",
    );
    check(
        |t| drop(t.tensors.insert("model.language_model.norm.weight".into(), Raw::zeros(Dtype::F32, &[8]))),
        AS_WRITTEN,
        "DIR: tensors with two prefixes: model.embed_tokens.weight and model.language_model.norm.weight: expected one text model",
    );
}

#[test]
fn tensors_under_a_prefix_of_another_program_are_named_with_what_to_do() {
    check(
        |t| t.rename(|n| Some(format!("base_model.model.{n}"))),
        AS_WRITTEN,
        "DIR: no tensor model.embed_tokens.weight: expected shape [11, 8]; 27 more are missing; there is base_model.model.model.embed_tokens.weight, as PEFT names it: save the merged model (merge_and_unload, save_pretrained)",
    );
    check(
        |t| t.rename(|n| Some(n.replace("model.", "language_model.model."))),
        AS_WRITTEN,
        "DIR: no tensor model.embed_tokens.weight: expected shape [11, 8]; 26 more are missing; there is language_model.model.embed_tokens.weight, as MLX names it: use the checkpoint that this was converted from",
    );
    check(
        |t| t.rename(|n| Some(n.replace("model.", "transformer."))),
        AS_WRITTEN,
        "DIR: no tensor model.embed_tokens.weight: expected shape [11, 8]; 26 more are missing; there is transformer.embed_tokens.weight: expected model. or model.language_model. before embed_tokens.weight",
    );
}

const SHARDED: fn(&mut Tiny) = |t| t.second_shard = vec!["model.layers.1"];

#[test]
fn shards_and_index_that_disagree_are_refused() {
    check(
        SHARDED,
        |d| fs::remove_file(d.join(SHARD_2)).unwrap(),
        "DIR/model.safetensors.index.json: shard model-00002-of-00002.safetensors is missing: tensor model.layers.1.input_layernorm.weight is said to be in it",
    );
    check(
        SHARDED,
        |d| {
            fs::remove_file(d.join(INDEX)).unwrap();
            fs::remove_file(d.join(SHARD_1)).unwrap();
        },
        "DIR: no model-00001-of-00002.safetensors: model-00002-of-00002.safetensors is one of 2 shards",
    );
    check(
        SHARDED,
        |d| _ = fs::copy(d.join(SHARD_2), d.join(SHARD_1)).unwrap(),
        "tensor model.layers.1.input_layernorm.weight stands twice: in DIR/model-00001-of-00002.safetensors and in DIR/model-00002-of-00002.safetensors",
    );
    check(
        SHARDED,
        |d| {
            fs::rename(d.join(SHARD_1), d.join("x")).unwrap();
            fs::rename(d.join(SHARD_2), d.join(SHARD_1)).unwrap();
            fs::rename(d.join("x"), d.join(SHARD_2)).unwrap();
        },
        "DIR/model.safetensors.index.json: tensor lm_head.weight is said to be in model-00001-of-00002.safetensors, it is in model-00002-of-00002.safetensors",
    );
    check(
        SHARDED,
        |d| edit_index(d, |map| drop(map.insert("model.extra".into(), json!(SHARD_1)))),
        "DIR/model.safetensors.index.json: tensor model.extra is not in shard model-00001-of-00002.safetensors, nor in any other",
    );
    check(
        SHARDED,
        |d| edit_index(d, |map| drop(map.remove("model.norm.weight"))),
        "DIR/model.safetensors.index.json: tensor model.norm.weight of model-00001-of-00002.safetensors is not listed",
    );
    check(
        SHARDED,
        |d| edit_index(d, |map| map.retain(|_, file| file == SHARD_1)),
        "DIR/model.safetensors.index.json: no tensor is said to be in model-00002-of-00002.safetensors, which stands beside it",
    );
    check(
        SHARDED,
        |d| {
            edit_index(d, |map| {
                drop(map.insert("model.norm.weight".into(), json!("../other/model.safetensors")))
            })
        },
        "DIR/model.safetensors.index.json: tensor model.norm.weight is said to be in \"../other/model.safetensors\": expected a .safetensors file of DIR",
    );
    check(
        SHARDED,
        |d| _ = fs::copy(d.join(SHARD_1), d.join("model.safetensors")).unwrap(),
        "DIR/model.safetensors.index.json: no tensor is said to be in model.safetensors, which stands beside it",
    );
    check(
        SHARDED,
        |d| fs::write(d.join(INDEX), r#"{"weight_map": {"a": "x", "a": "y"}}"#).unwrap(),
        "DIR/model.safetensors.index.json: not the JSON that belongs here: \"a\" stands twice at line 1 column 29",
    );
    check(
        SHARDED,
        |d| fs::write(d.join(INDEX), "{}").unwrap(),
        "DIR/model.safetensors.index.json: not the JSON that belongs here: no weight_map",
    );
}
