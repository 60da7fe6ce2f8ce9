//! config.json and generation_config.json: another model's, wrong types, absurd numbers.

use crate::Base::{Sharded, Single};
use crate::{Case, replace, set};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

fn config(d: &Path, key: &str, value: Value) {
    set(d, CONFIG, key, value);
}

pub const CASES: &[Case] = &[
    (
        "an empty config",
        Single,
        |d| fs::write(d.join(CONFIG), "").unwrap(),
        "DIR/config.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 0",
    ),
    (
        "a config cut off",
        Single,
        |d| fs::write(d.join(CONFIG), "{\"vocab_size\": 11,").unwrap(),
        "DIR/config.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 18",
    ),
    (
        "a config that is a list",
        Single,
        |d| fs::write(d.join(CONFIG), "[1, 2]").unwrap(),
        "DIR/config.json: not the JSON that belongs here: expected an object, found [1,2]",
    ),
    (
        "a config that is no UTF-8",
        Single,
        |d| fs::write(d.join(CONFIG), b"{\"a\": \"\xff\"}").unwrap(),
        "DIR/config.json: not the JSON that belongs here: invalid unicode code point at line 1 column 8",
    ),
    (
        "a config of brackets",
        Single,
        |d| fs::write(d.join(CONFIG), "[".repeat(100_000)).unwrap(),
        "DIR/config.json: not the JSON that belongs here: recursion limit exceeded at line 1 column 128",
    ),
    (
        "a config of 5 MB",
        Single,
        |d| fs::write(d.join(CONFIG), " ".repeat(5 << 20)).unwrap(),
        "DIR/config.json: 5242880 bytes: expected at most 4194304",
    ),
    (
        "a config of 4 MB of zeros",
        Single,
        |d| fs::write(d.join(CONFIG), format!("[{}0]", "0,".repeat((4 << 19) - 2))).unwrap(),
        "DIR/config.json: not the JSON that belongs here: expected an object, found [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0…",
    ),
    (
        "a config with a key twice",
        Single,
        |d| replace(d, CONFIG, "\"vocab_size\"", "\"hidden_size\": 16, \"vocab_size\""),
        r#"DIR/config.json: not the JSON that belongs here: "hidden_size" stands twice at line 16 column 15"#,
    ),
    (
        "a config with NaN",
        Single,
        |d| replace(d, CONFIG, "1e-06", "NaN"),
        "DIR/config.json: not the JSON that belongs here: expected value at line 13 column 19",
    ),
    (
        "a config with 1e999",
        Single,
        |d| replace(d, CONFIG, "1e-06", "1e999"),
        "DIR/config.json: not the JSON that belongs here: number out of range at line 13 column 23",
    ),
    (
        "a hidden size of 2^40",
        Single,
        |d| config(d, "hidden_size", json!(1u64 << 40)),
        "DIR/config.json: hidden_size is 1099511627776: expected an integer from 1 to 1048576",
    ),
    (
        "a hidden size of 2^64",
        Single,
        |d| replace(d, CONFIG, "\"hidden_size\": 16", "\"hidden_size\": 18446744073709551616"),
        "DIR/config.json: hidden_size is 1.8446744073709552e+19: expected an integer from 1 to 1048576",
    ),
    (
        "a hidden size of zero",
        Single,
        |d| config(d, "hidden_size", json!(0)),
        "DIR/config.json: hidden_size is 0: expected an integer from 1 to 1048576",
    ),
    (
        "a billion layers",
        Single,
        |d| config(d, "num_hidden_layers", json!(1_000_000_000)),
        "DIR/config.json: num_hidden_layers is 1000000000: expected an integer from 1 to 4096",
    ),
    (
        "a billion layers, by interval",
        Sharded,
        |d| config(d, "num_hidden_layers", json!(1_000_000_000)),
        "DIR/config.json: num_hidden_layers is 1000000000: expected an integer from 1 to 4096",
    ),
    (
        "an interval of zero",
        Sharded,
        |d| config(d, "full_attention_interval", json!(0)),
        "DIR/config.json: full_attention_interval is 0: expected an integer from 1 to 4096",
    ),
    (
        "a negative number of heads",
        Single,
        |d| config(d, "num_attention_heads", json!(-2)),
        "DIR/config.json: num_attention_heads is -2: expected an integer from 1 to 4096",
    ),
    (
        "half a head",
        Single,
        |d| config(d, "head_dim", json!(16.5)),
        "DIR/config.json: head_dim is 16.5: expected an integer from 1 to 4096",
    ),
    (
        "a vocabulary in words",
        Single,
        |d| config(d, "vocab_size", json!("fifty")),
        r#"DIR/config.json: vocab_size is "fifty": expected an integer from 1 to 16777216"#,
    ),
    (
        "a vocabulary that is a list",
        Single,
        |d| config(d, "vocab_size", json!([50])),
        "DIR/config.json: vocab_size is [50]: expected an integer from 1 to 16777216",
    ),
    (
        "a value of 100 kB",
        Single,
        |d| config(d, "vocab_size", json!("x".repeat(100_000))),
        r#"DIR/config.json: vocab_size is "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…: expected an integer from 1 to 16777216"#,
    ),
    (
        "no vocabulary",
        Single,
        |d| config(d, "vocab_size", json!(null)),
        "DIR/config.json: no vocab_size: expected an integer from 1 to 16777216",
    ),
    (
        "layer types for two of three",
        Single,
        |d| config(d, "layer_types", json!(["full_attention", "linear_attention"])),
        r#"DIR/config.json: layer_types is 2 entries long: expected 3 strings (num_hidden_layers), each "linear_attention" or "full_attention""#,
    ),
    (
        "layer types that are one word",
        Single,
        |d| config(d, "layer_types", json!("linear_attention")),
        r#"DIR/config.json: layer_types is "linear_attention": expected 3 strings (num_hidden_layers), each "linear_attention" or "full_attention""#,
    ),
    (
        "a layer of another kind",
        Single,
        |d| config(d, "layer_types", json!(["full_attention", "mamba", "linear_attention"])),
        r#"DIR/config.json: layer_types[1] is "mamba": expected "linear_attention" or "full_attention""#,
    ),
    (
        "layers in another order",
        Single,
        |d| {
            config(d, "layer_types", json!(["linear_attention", "full_attention", "linear_attention"]));
        },
        "DIR: no tensor model.language_model.layers.0.linear_attn.in_proj_qkv.weight: expected shape [24, 16]; 14 more are missing",
    ),
    (
        "an unknown architecture",
        Single,
        |d| config(d, "architectures", json!(["LlamaForCausalLM"])),
        "DIR/config.json: architecture LlamaForCausalLM is not supported: it needs a model text of its own; this build runs Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5MoeForCausalLM, Qwen3_5MoeForConditionalGeneration, Qwen3NextForCausalLM",
    ),
    (
        "an architecture that colours the terminal",
        Single,
        |d| config(d, "architectures", json!(["\u{1b}[31mred"])),
        r"DIR/config.json: architecture \u{1b}[31mred is not supported: it needs a model text of its own; this build runs Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration, Qwen3_5MoeForCausalLM, Qwen3_5MoeForConditionalGeneration, Qwen3NextForCausalLM",
    ),
    (
        "no architecture",
        Single,
        |d| config(d, "architectures", json!([])),
        "DIR/config.json: architectures is []: expected a list with one name",
    ),
    (
        "an unknown model type",
        Single,
        |d| config(d, "model_type", json!("gpt2")),
        r#"DIR/config.json: model_type is "gpt2": expected "qwen3_5_text", which Qwen3_5ForCausalLM has"#,
    ),
    (
        "a text model that is a number",
        Single,
        |d| config(d, "text_config", json!(7)),
        "DIR/config.json: text_config is 7: expected an object",
    ),
    (
        "three key heads for two query heads",
        Single,
        |d| config(d, "num_key_value_heads", json!(3)),
        "DIR/config.json: num_key_value_heads is 3: expected a divisor of num_attention_heads, 2",
    ),
    (
        "a rotary base of zero",
        Single,
        |d| config(d, "rope_theta", json!(0)),
        "DIR/config.json: rope_theta is 0: expected a number from 1 to 1e15",
    ),
    (
        "a rotary base in two places",
        Single,
        |d| config(d, "rope_parameters", json!({"rope_theta": 10000})),
        "DIR/config.json: rope_theta is 500000: expected 10000, as rope_parameters.rope_theta says",
    ),
    (
        "an epsilon of zero",
        Single,
        |d| config(d, "rms_norm_eps", json!(1e-60)),
        "DIR/config.json: rms_norm_eps is 1e-60: expected a number above 0 and below 1",
    ),
    (
        "tied in words",
        Single,
        |d| config(d, "tie_word_embeddings", json!("no")),
        r#"DIR/config.json: tie_word_embeddings is "no": expected true or false"#,
    ),
    (
        "the config of a wider model",
        Single,
        |d| config(d, "hidden_size", json!(32)),
        "DIR/model.safetensors: tensor model.language_model.embed_tokens.weight has shape [50, 16]: config.json implies [50, 32]",
    ),
    (
        "the config of a larger vocabulary",
        Single,
        |d| config(d, "vocab_size", json!(100)),
        "DIR/model.safetensors: tensor model.language_model.embed_tokens.weight has shape [50, 16]: config.json implies [100, 16]",
    ),
    (
        "the config of a deeper model",
        Sharded,
        |d| config(d, "num_hidden_layers", json!(6)),
        "DIR: no tensor model.layers.5.input_layernorm.weight: expected shape [32]; 10 more are missing",
    ),
    (
        "the config of a shallower model",
        Sharded,
        |d| config(d, "num_hidden_layers", json!(4)),
        "DIR/model-00003-of-00003.safetensors: unexpected tensor model.layers.4.input_layernorm.weight: config.json says num_hidden_layers 4",
    ),
    (
        "the config of more heads",
        Single,
        |d| config(d, "num_attention_heads", json!(4)),
        "DIR/model.safetensors: tensor model.language_model.layers.0.self_attn.q_proj.weight has shape [64, 16]: config.json implies [128, 16]",
    ),
    (
        "an end of sequence beyond the vocabulary",
        Single,
        |d| config(d, "eos_token_id", json!(50)),
        "DIR/config.json: eos_token_id is 50: expected a token id below vocab_size 50, or a list of them",
    ),
    (
        "an end of sequence below zero",
        Single,
        |d| set(d, GENERATION, "eos_token_id", json!([1, -1])),
        "DIR/generation_config.json: eos_token_id is -1: expected a token id below vocab_size 50, or a list of them",
    ),
    (
        "an end of sequence in words",
        Single,
        |d| set(d, GENERATION, "eos_token_id", json!("</s>")),
        r#"DIR/generation_config.json: eos_token_id is "</s>": expected a token id below vocab_size 50, or a list of them"#,
    ),
    (
        "an end of sequence within lists",
        Single,
        |d| set(d, GENERATION, "eos_token_id", json!([[[1]]])),
        "DIR/generation_config.json: eos_token_id is [[1]]: expected a token id below vocab_size 50, or a list of them",
    ),
    (
        "a generation config that is null",
        Single,
        |d| fs::write(d.join(GENERATION), "null").unwrap(),
        "DIR/generation_config.json: not the JSON that belongs here: expected an object, found null",
    ),
    (
        "a generation config that is empty",
        Single,
        |d| fs::write(d.join(GENERATION), "").unwrap(),
        "DIR/generation_config.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 0",
    ),
    (
        "a generation config that is a directory",
        Single,
        |d| fs::create_dir(d.join(GENERATION)).unwrap(),
        "DIR/generation_config.json: a directory: expected a regular file",
    ),
];
