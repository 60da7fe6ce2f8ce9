//! Broken files and configs, and other kinds of checkpoint: each is refused with the one sentence that says
//! what is wrong.

use crate::tiny::{AS_WRITTEN, NOTHING, Tiny, check};
use cute_checkpoint::Checkpoint;
use serde_json::json;
use std::fs;

fn config(key: &'static str, value: serde_json::Value, expect: &str) {
    let mut tiny = Tiny::default();
    tiny.set(key, value);
    let dir = tiny.write();
    let found =
        Checkpoint::open(dir.path()).map(|_| "it opened".to_owned()).unwrap_or_else(|e| e.to_string());
    assert_eq!(found.replace(&dir.path().display().to_string(), "DIR"), expect);
}

#[test]
fn a_sound_checkpoint_opens() {
    check(NOTHING, AS_WRITTEN, "it opened");
    check(|t| t.second_shard = vec!["model.layers.1"], AS_WRITTEN, "it opened");
}

#[test]
fn missing_and_strange_files_are_refused() {
    check(
        NOTHING,
        |d| fs::remove_file(d.join("config.json")).unwrap(),
        "DIR: no config.json: it says what shape the model has",
    );
    check(
        NOTHING,
        |d| fs::remove_file(d.join("model.safetensors")).unwrap(),
        "DIR: no model.safetensors: the weights are read from safetensors files",
    );
    check(
        NOTHING,
        |d| {
            fs::remove_file(d.join("model.safetensors")).unwrap();
            fs::create_dir(d.join("model.safetensors")).unwrap();
        },
        "DIR/model.safetensors: a directory: expected a regular file",
    );
    check(
        NOTHING,
        |d| fs::write(d.join("config.json"), "{\"vocab_size\": 11,").unwrap(),
        "DIR/config.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 18",
    );
    check(
        NOTHING,
        |d| fs::write(d.join("config.json"), "[1, 2]").unwrap(),
        "DIR/config.json: not the JSON that belongs here: expected an object, found [1,2]",
    );
    check(
        NOTHING,
        |d| fs::write(d.join("generation_config.json"), "").unwrap(),
        "DIR/generation_config.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 0",
    );
}

#[test]
fn a_text_file_that_is_a_pointer_of_git_lfs_is_called_that() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let expect = "it is a Git LFS pointer: fetch the file itself with git lfs pull";
    let dir = crate::tiny::Tiny::default().write();
    fs::write(dir.path().join("tokenizer.json"), POINTER).unwrap();
    let e = cute_checkpoint::Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert_eq!(e, format!("{}: {expect}", dir.path().join("tokenizer.json").display()));
    check(
        NOTHING,
        |d| fs::write(d.join("config.json"), POINTER).unwrap(),
        &format!("DIR/config.json: {expect}"),
    );
}

#[test]
fn other_kinds_of_checkpoint_are_refused_by_name() {
    check(
        NOTHING,
        |d| fs::write(d.join("adapter_config.json"), "{}").unwrap(),
        "DIR/adapter_config.json: a LoRA adapter is not supported: merge it into its base model first (merge_and_unload, save_pretrained)",
    );
    check(
        NOTHING,
        |d| fs::rename(d.join("model.safetensors"), d.join("model-Q4_K_M.gguf")).unwrap(),
        "DIR/model-Q4_K_M.gguf: GGUF is not supported: its weights are permuted and renamed; use the safetensors checkpoint",
    );
    check(
        NOTHING,
        |d| fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap(),
        "DIR/pytorch_model.bin: a pickled checkpoint is not supported: reading one runs code from it; convert it with save_pretrained, which writes safetensors",
    );
    check(
        NOTHING,
        |d| {
            fs::write(d.join("hf_quant_config.json"), r#"{"quantization": {"quant_algo": "NVFP4"}}"#).unwrap()
        },
        "DIR/hf_quant_config.json: quantisation NVFP4 is announced: no tensor is packed",
    );
    let reads = "this build reads block FP8, ModelOpt and compressed-tensors FP8 and NVFP4";
    let integers = "packed integers with zero points and the order of their groups";
    for (quantization, name, needs) in [
        (
            json!({"quant_method": "awq", "bits": 4}),
            "AWQ",
            "4-bit integers with zero points, in AWQ's column order",
        ),
        (json!({"quant_method": "gptq", "bits": 4}), "GPTQ", integers),
        (json!({"quant_method": "bitsandbytes"}), "bitsandbytes", "its nf4 table and nested scales"),
        (json!({"load_in_4bit": true}), "bitsandbytes", "its nf4 table and nested scales"),
        (json!({"quant_method": "mxfp4"}), "MXFP4", "blocks of 32 with bare exponents as scales"),
        (
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}),
            "ModelOpt NVFP4_AWQ",
            "the scales of its inputs (pre_quant_scale) applied before the products",
        ),
        (
            json!({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}),
            "ModelOpt W4A8_AWQ",
            "the scales of its inputs (pre_quant_scale) applied before the products",
        ),
        (json!({"quant_method": "hqq"}), "quant_method \"hqq\"", "the dequantisation of its packed weights"),
        (
            json!({"bits": 4, "group_size": 64, "mode": "affine"}),
            "MLX",
            "packed integers with scales and biases, and MLX's order of some weights",
        ),
        (json!({"bits": 4}), "quantization_config without quant_method", "to know who packed the weights"),
    ] {
        let expect =
            format!("DIR/config.json: quantisation {name} is not supported: it needs {needs}; {reads}");
        if name == "MLX" {
            config("quantization", quantization.clone(), &expect);
        }
        config("quantization_config", quantization, &expect);
    }
    config(
        "num_experts",
        json!(256),
        "DIR/config.json: num_experts is 256: expected none, because Qwen3_5ForCausalLM is dense",
    );
    config(
        "architectures",
        json!(["Qwen3_5MoeForConditionalGeneration"]),
        "DIR/config.json: model_type is \"qwen3_5_text\": expected \"qwen3_5_moe_text\", which Qwen3_5MoeForConditionalGeneration has",
    );
    config(
        "architectures",
        json!(["Qwen3NextForCausalLM"]),
        "DIR/config.json: model_type is \"qwen3_5_text\": expected \"qwen3_next\", which Qwen3NextForCausalLM has",
    );
    config(
        "architectures",
        json!(["LlamaForCausalLM"]),
        "DIR/config.json: architecture LlamaForCausalLM is not supported: it needs a model text of its own; this build runs Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5MoeForCausalLM, Qwen3_5MoeForConditionalGeneration, Qwen3NextForCausalLM",
    );
    config(
        "model_type",
        json!("llama"),
        "DIR/config.json: model_type is \"llama\": expected \"qwen3_5_text\", which Qwen3_5ForCausalLM has",
    );
}

#[test]
fn a_config_that_cannot_be_is_refused_with_its_numbers() {
    for (key, value, expect) in [
        (
            "architectures",
            json!(null),
            "no architectures: expected a list with one of Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5MoeForCausalLM, Qwen3_5MoeForConditionalGeneration, Qwen3NextForCausalLM",
        ),
        ("architectures", json!([]), "architectures is []: expected a list with one name"),
        ("vocab_size", json!(null), "no vocab_size: expected an integer from 1 to 16777216"),
        ("vocab_size", json!(0), "vocab_size is 0: expected an integer from 1 to 16777216"),
        (
            "hidden_size",
            json!(1u64 << 60),
            "hidden_size is 1152921504606846976: expected an integer from 1 to 1048576",
        ),
        ("hidden_size", json!(-8), "hidden_size is -8: expected an integer from 1 to 1048576"),
        ("hidden_size", json!("8"), "hidden_size is \"8\": expected an integer from 1 to 1048576"),
        ("head_dim", json!(8.5), "head_dim is 8.5: expected an integer from 1 to 4096"),
        (
            "num_hidden_layers",
            json!(100_000),
            "num_hidden_layers is 100000: expected an integer from 1 to 4096",
        ),
        (
            "num_hidden_layers",
            json!(3),
            "layer_types is 2 entries long: expected 3 strings (num_hidden_layers), each \"linear_attention\" or \"full_attention\"",
        ),
        (
            "layer_types",
            json!(["linear_attention", "mamba"]),
            "layer_types[1] is \"mamba\": expected \"linear_attention\" or \"full_attention\"",
        ),
        (
            "layer_types",
            json!(null),
            "no layer_types: expected 2 strings (num_hidden_layers), each \"linear_attention\" or \"full_attention\", or full_attention_interval",
        ),
        (
            "num_key_value_heads",
            json!(3),
            "num_key_value_heads is 3: expected a divisor of num_attention_heads, 2",
        ),
        (
            "linear_num_key_heads",
            json!(4),
            "linear_num_value_heads is 2: expected a multiple of linear_num_key_heads, 4",
        ),
        (
            "rope_parameters",
            json!({"partial_rotary_factor": 0.25}),
            "no rope_parameters.rope_theta: expected the base of the rotary frequencies, e.g. 10000000",
        ),
        (
            "rope_parameters",
            json!({"rope_theta": 1e4, "partial_rotary_factor": 0.375}),
            "partial_rotary_factor is 0.375 of head_dim 8 = 3: expected an even number of rotary dimensions",
        ),
        (
            "rope_parameters",
            json!({"rope_theta": 1e4, "partial_rotary_factor": 1.5}),
            "partial_rotary_factor is 1.5: expected a number above 0, at most 1",
        ),
        (
            "rope_parameters",
            json!({"rope_theta": 1e4, "rope_type": "yarn"}),
            "rope_parameters.rope_type \"yarn\" is not supported: it needs scaled rotary frequencies; this build computes \"default\"",
        ),
        (
            "rope_theta",
            json!(5000.0),
            "rope_theta is 5000: expected 10000, as rope_parameters.rope_theta says",
        ),
        ("rms_norm_eps", json!(0.0), "rms_norm_eps is 0.0: expected a number above 0 and below 1"),
        ("rms_norm_eps", json!(null), "no rms_norm_eps: expected a number above 0 and below 1"),
        (
            "hidden_act",
            json!("gelu"),
            "hidden_act \"gelu\" is not supported: it needs another activation; this build computes \"silu\"",
        ),
        (
            "attention_bias",
            json!(true),
            "attention_bias true is not supported: it needs biases in the linear layers",
        ),
        (
            "output_gate_type",
            json!("sigmoid"),
            "output_gate_type \"sigmoid\" is not supported: it needs another gate in linear attention; this build computes \"swish\"",
        ),
        (
            "eos_token_id",
            json!(11),
            "eos_token_id is 11: expected a token id below vocab_size 11, or a list of them",
        ),
        (
            "eos_token_id",
            json!([1, -1]),
            "eos_token_id is -1: expected a token id below vocab_size 11, or a list of them",
        ),
        ("tie_word_embeddings", json!("yes"), "tie_word_embeddings is \"yes\": expected true or false"),
        ("text_config", json!([]), "text_config is []: expected an object"),
    ] {
        config(key, value, &format!("DIR/config.json: {expect}"));
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_in_place_of_a_file_is_refused_without_waiting_for_a_writer() {
    check(
        NOTHING,
        |d| {
            fs::remove_file(d.join("config.json")).unwrap();
            let made = std::process::Command::new("mkfifo").arg(d.join("config.json")).status();
            assert!(made.unwrap().success());
        },
        "DIR/config.json: a pipe, socket or device: expected a regular file",
    );
}
