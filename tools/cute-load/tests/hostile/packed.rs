//! Ways in which quantised and MoE checkpoints are broken: a scale gone or another's, a config that says something
//! else than the tensors, a format that only looks like one that is read.

use crate::Base::{BlockFp8, Compressed, ModelOpt, Moe, MoeNvfp4, Next, NextFp8};
use crate::{Case, WEIGHTS, edit_header, set};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// Lets an entry of the header be changed.
fn entry(d: &Path, name: &str, edit: impl FnOnce(&mut Value)) {
    edit_header(d, WEIGHTS, |map| edit(map.get_mut(name).unwrap()));
}

/// Gives a tensor another name.
fn rename(d: &Path, old: &str, new: &str) {
    edit_header(d, WEIGHTS, |map| {
        let entry = map.remove(old).unwrap();
        assert!(map.insert(new.to_owned(), entry).is_none(), "{new}");
    });
}

/// Lets two tensors change places.
fn swap(d: &Path, a: &str, b: &str) {
    edit_header(d, WEIGHTS, |map| {
        let (x, y) = (map[a].clone(), map[b].clone());
        map[a] = y;
        map[b] = x;
    });
}

/// Overwrites the first bytes of a tensor.
fn poke(d: &Path, name: &str, new: &[u8]) {
    let mut bytes = fs::read(d.join(WEIGHTS)).unwrap();
    let n = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let map: Map<String, Value> = serde_json::from_slice(&bytes[8..n]).unwrap();
    let at = n + map[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + new.len()].copy_from_slice(new);
    fs::write(d.join(WEIGHTS), bytes).unwrap();
}

/// Changes config.json below `quantization_config`.
fn quantization(d: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let mut config: Value = serde_json::from_slice(&fs::read(d.join("config.json")).unwrap()).unwrap();
    edit(config["quantization_config"].as_object_mut().unwrap());
    fs::write(d.join("config.json"), config.to_string()).unwrap();
}

/// Changes config.json below `text_config`.
fn text(d: &Path, key: &str, value: Value) {
    let mut config: Value = serde_json::from_slice(&fs::read(d.join("config.json")).unwrap()).unwrap();
    config["text_config"][key] = value;
    fs::write(d.join("config.json"), config.to_string()).unwrap();
}

const UP: &str = "model.language_model.layers.0.mlp.up_proj";
const FLAT_UP: &str = "model.layers.0.mlp.up_proj";

const PACKED: &[Case] = &[
    (
        "block FP8 without one matrix's scales",
        BlockFp8,
        |d| rename(d, &format!("{UP}.weight_scale_inv"), "model.visual.x"),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight has dtype F8_E4M3, and there is no model.language_model.layers.0.mlp.up_proj.weight_scale_inv: packed weights need their scales",
    ),
    (
        "block scales of another matrix",
        BlockFp8,
        |d| {
            swap(
                d,
                &format!("{UP}.weight_scale_inv"),
                "model.language_model.layers.1.self_attn.k_proj.weight_scale_inv",
            );
        },
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight_scale_inv has shape [1, 2]: config.json implies [2, 2]",
    ),
    (
        "block scales counted without the last block",
        BlockFp8,
        |d| {
            // [2, 2] of BF16: the second row goes elsewhere
            edit_header(d, WEIGHTS, |map| {
                let scale = map.get_mut(&format!("{UP}.weight_scale_inv")).unwrap();
                let at = |i: usize| scale["data_offsets"][i].as_u64().unwrap();
                let (start, end) = (at(0), at(1));
                *scale = json!({"dtype": "BF16", "shape": [1, 2], "data_offsets": [start, start + 4]});
                let rest = json!({"dtype": "BF16", "shape": [2], "data_offsets": [start + 4, end]});
                map.insert("model.visual.rest".to_owned(), rest);
            });
        },
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight_scale_inv has shape [1, 2]: config.json implies [2, 2]",
    ),
    (
        "block scales of integers",
        BlockFp8,
        |d| entry(d, &format!("{UP}.weight_scale_inv"), |e| e["dtype"] = json!("I16")),
        "DIR/model.safetensors: scale model.language_model.layers.0.mlp.up_proj.weight_scale_inv has dtype I16: expected BF16, F16, F32 or, as exponents, F8_E8M0 or U8",
    ),
    (
        "codes that say they are e5m2",
        BlockFp8,
        |d| entry(d, &format!("{UP}.weight"), |e| e["dtype"] = json!("F8_E5M2")),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight has dtype F8_E5M2: expected BF16, F16 or F32, or packed as F8_E4M3 or U8 with scales",
    ),
    (
        "a config that says e5m2",
        BlockFp8,
        |d| quantization(d, |q| q["fmt"] = json!("e5m2")),
        r#"DIR/config.json: FP8 of fmt "e5m2" is not supported: it needs e5m2 in place of e4m3"#,
    ),
    (
        "blocks of another size in the config",
        BlockFp8,
        |d| quantization(d, |q| q["weight_block_size"] = json!([64, 64])),
        "DIR/model.safetensors: tensor model.language_model.layers.0.linear_attn.in_proj_qkv.weight_scale_inv has shape [2, 2]: config.json implies [4, 3]",
    ),
    (
        "a block size that is none",
        BlockFp8,
        |d| quantization(d, |q| q["weight_block_size"] = json!([128, 0])),
        "DIR/config.json: quantization_config.weight_block_size is [128,0]: expected two integers from 1 to 65536, e.g. [128, 128]",
    ),
    (
        "a config that forgets the quantisation",
        BlockFp8,
        |d| set(d, "config.json", "quantization_config", json!(null)),
        "DIR/model.safetensors: tensor model.language_model.layers.0.linear_attn.in_proj_qkv.weight is packed as fp8_block: config.json has no quantization_config",
    ),
    (
        "a quant_method that nobody knows",
        BlockFp8,
        |d| quantization(d, |q| q["quant_method"] = json!("fp9")),
        r#"DIR/config.json: quantisation quant_method "fp9" is not supported: it needs the dequantisation of its packed weights; this build reads block FP8, ModelOpt and compressed-tensors FP8 and NVFP4"#,
    ),
    (
        "the config of an AWQ copy",
        BlockFp8,
        |d| quantization(d, |q| q["quant_method"] = json!("awq")),
        "DIR/config.json: quantisation AWQ is not supported: it needs 4-bit integers with zero points, in AWQ's column order; this build reads block FP8, ModelOpt and compressed-tensors FP8 and NVFP4",
    ),
    (
        "a module that is to be left alone, packed",
        BlockFp8,
        |d| {
            quantization(d, |q| {
                q["modules_to_not_convert"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!("model.language_model.layers.0.mlp"));
            });
        },
        r#"DIR/model.safetensors: tensor model.language_model.layers.0.mlp.gate_proj.weight is packed as fp8_block: "model.language_model.layers.0.mlp" excludes the module from quantisation"#,
    ),
    (
        "a norm of 8-bit floats",
        BlockFp8,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                let norm = map.get_mut("model.language_model.norm.weight").unwrap();
                norm["dtype"] = json!("F8_E4M3");
                norm["shape"] = json!([576]);
            });
        },
        "DIR/model.safetensors: tensor model.language_model.norm.weight has dtype F8_E4M3: expected BF16, F16 or F32 (it looks quantised)",
    ),
    (
        "the config of a wider quantised model",
        BlockFp8,
        |d| text(d, "intermediate_size", json!(256)),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.gate_proj.weight has shape [200, 144]: config.json implies [256, 144]",
    ),
    (
        "quantised weights cut off by a full disk",
        BlockFp8,
        |d| {
            fs::File::options().write(true).open(d.join(WEIGHTS)).unwrap().set_len(300_000).unwrap();
        },
        "DIR/model.safetensors: 300000 bytes: its header says 500464, the file is cut off in tensor model.language_model.layers.0.mlp.up_proj.weight",
    ),
    (
        "a LoRA adapter's matrix among the weights",
        BlockFp8,
        |d| rename(d, "mtp.fc.weight", "model.language_model.layers.0.mlp.up_proj.lora_A.weight"),
        "DIR/model.safetensors: unexpected tensor model.language_model.layers.0.mlp.up_proj.lora_A.weight: lora_A is a LoRA adapter's; merge it into its base model first",
    ),
    (
        "NVFP4 without the global scale",
        ModelOpt,
        |d| rename(d, &format!("{UP}.weight_scale_2"), "model.visual.x"),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight has dtype U8, and there is no model.language_model.layers.0.mlp.up_proj.weight_scale_2: packed weights need their scales",
    ),
    (
        "NVFP4 without the block scales",
        ModelOpt,
        |d| rename(d, &format!("{UP}.weight_scale"), "model.visual.x"),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight has dtype U8, and there is no model.language_model.layers.0.mlp.up_proj.weight_scale: packed weights need their scales",
    ),
    (
        "a global scale of zero",
        ModelOpt,
        |d| poke(d, &format!("{UP}.weight_scale_2"), &0f32.to_le_bytes()),
        "DIR/model.safetensors: scale model.language_model.layers.0.mlp.up_proj.weight_scale_2 is 0: expected a finite number above 0",
    ),
    (
        "the one scale of a matrix below zero",
        ModelOpt,
        |d| poke(d, "model.language_model.layers.1.self_attn.o_proj.weight_scale", &(-1f32).to_le_bytes()),
        "DIR/model.safetensors: scale model.language_model.layers.1.self_attn.o_proj.weight_scale is -1: expected a finite number above 0",
    ),
    (
        "a global scale that is no number",
        ModelOpt,
        |d| poke(d, &format!("{UP}.weight_scale_2"), &f32::NAN.to_le_bytes()),
        "DIR/model.safetensors: scale model.language_model.layers.0.mlp.up_proj.weight_scale_2 is NaN: expected a finite number above 0",
    ),
    (
        "block scales of NVFP4 that were widened",
        ModelOpt,
        |d| {
            // [96, 4] of one byte as [96, 1] of four
            entry(d, &format!("{UP}.weight_scale"), |e| {
                e["dtype"] = json!("F32");
                e["shape"] = json!([96, 1]);
            });
        },
        "DIR/model.safetensors: scale model.language_model.layers.0.mlp.up_proj.weight_scale has dtype F32: expected F8_E4M3",
    ),
    (
        "block scales of the matrix on its side",
        ModelOpt,
        |d| entry(d, &format!("{UP}.weight_scale"), |e| e["shape"] = json!([64, 6])),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight_scale has shape [64, 6]: config.json implies [96, 4]",
    ),
    (
        "codes of the matrix on its side",
        ModelOpt,
        |d| swap(d, &format!("{UP}.weight"), "model.language_model.layers.0.mlp.down_proj.weight"),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.up_proj.weight has shape [64, 48]: config.json implies [96, 32]",
    ),
    (
        "the two files of ModelOpt at odds",
        ModelOpt,
        |d| {
            quantization(d, |q| {
                q["quant_algo"] = json!("NVFP4");
                q.remove("quantized_layers");
            });
        },
        r#"DIR/hf_quant_config.json: quantization.quant_algo is "MIXED_PRECISION" of modelopt: expected "NVFP4" of modelopt, as config.json says"#,
    ),
    (
        "a packed module that quantized_layers does not list",
        ModelOpt,
        |d| {
            for file in ["config.json", "hf_quant_config.json"] {
                replace_all(
                    d,
                    file,
                    "model.language_model.layers.1.mlp.down_proj",
                    "model.language_model.layers.9.x",
                );
            }
        },
        "DIR/model.safetensors: tensor model.language_model.layers.1.mlp.down_proj.weight is packed as nvfp4: quantized_layers does not list the module",
    ),
    (
        "a packed module listed as another algorithm",
        ModelOpt,
        |d| {
            quantization(d, |q| {
                q["quantized_layers"]["model.language_model.layers.1.self_attn.o_proj"]["quant_algo"] =
                    json!("NVFP4");
            });
        },
        "DIR/model.safetensors: tensor model.language_model.layers.1.self_attn.o_proj.weight is packed as fp8_tensor: quantized_layers says nvfp4",
    ),
    (
        "NVFP4 in blocks of 32",
        MoeNvfp4,
        |d| {
            fs::remove_file(d.join("hf_quant_config.json")).unwrap();
            quantization(d, |q| q["group_size"] = json!(32));
        },
        "DIR/config.json: quantization_config.group_size is 32: expected 16, the block of NVFP4",
    ),
    (
        "an algorithm that needs more than scales",
        MoeNvfp4,
        |d| {
            fs::remove_file(d.join("hf_quant_config.json")).unwrap();
            quantization(d, |q| q["quant_algo"] = json!("NVFP4_AWQ"));
        },
        "DIR/config.json: quantisation ModelOpt NVFP4_AWQ is not supported: it needs the scales of its inputs (pre_quant_scale) applied before the products; this build reads block FP8, ModelOpt and compressed-tensors FP8 and NVFP4",
    ),
    (
        "FP8 announced, NVFP4 stored",
        MoeNvfp4,
        |d| {
            fs::remove_file(d.join("hf_quant_config.json")).unwrap();
            quantization(d, |q| q["quant_algo"] = json!("FP8"));
        },
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.experts.0.gate_proj.weight is packed as nvfp4: modelopt FP8 announces fp8_tensor",
    ),
    (
        "experts excluded by a wildcard, and packed",
        MoeNvfp4,
        |d| quantization(d, |q| q["ignore"].as_array_mut().unwrap().push(json!("*.experts.3.*"))),
        r#"DIR/model.safetensors: tensor model.language_model.layers.0.mlp.experts.3.gate_proj.weight is packed as nvfp4: "*.experts.3.*" excludes the module from quantisation"#,
    ),
    (
        "one expert short",
        MoeNvfp4,
        |d| rename(d, &format!("{EXPERTS}.7.up_proj.weight"), "model.visual.x"),
        "DIR: no tensor model.language_model.layers.0.mlp.experts.7.up_proj.weight: expected shape [48, 64]",
    ),
    (
        "a config with fewer experts",
        MoeNvfp4,
        |d| text(d, "num_experts", json!(7)),
        "DIR/model.safetensors: tensor model.language_model.layers.0.mlp.gate.weight has shape [8, 64]: config.json implies [7, 64]",
    ),
    (
        "a token that takes more experts than there are",
        MoeNvfp4,
        |d| text(d, "num_experts_per_tok", json!(9)),
        "DIR/config.json: text_config.num_experts_per_tok is 9: expected an integer from 1 to 8",
    ),
    (
        "fused experts with one half",
        Moe,
        |d| {
            let name = "model.layers.0.mlp.experts.gate_up_proj";
            entry(d, name, |e| e["shape"] = json!([16, 48, 64]));
        },
        "DIR/model.safetensors: tensor model.layers.0.mlp.experts.gate_up_proj has shape [16, 48, 64]: config.json implies [8, 96, 64]",
    ),
    (
        "fused experts without the down half",
        Moe,
        |d| rename(d, "model.layers.2.mlp.experts.down_proj", "model.visual.x"),
        "DIR: no tensor model.layers.2.mlp.experts.down_proj: expected shape [8, 64, 48]",
    ),
    (
        "a dense config over experts",
        Moe,
        |d| {
            set(d, "config.json", "architectures", json!(["Qwen3_5ForCausalLM"]));
            set(d, "config.json", "model_type", json!("qwen3_5_text"));
        },
        "DIR/config.json: num_experts is 8: expected none, because Qwen3_5ForCausalLM is dense",
    ),
    (
        "names of compressed-tensors, config of ModelOpt",
        Compressed,
        |d| {
            set(
                d,
                "config.json",
                "quantization_config",
                json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}),
            );
        },
        "DIR/model.safetensors: tensor model.layers.0.mlp.gate_proj.weight_packed is packed as nvfp4: modelopt NVFP4 announces nvfp4, whose tensors have other names",
    ),
    (
        "an ignored module that is packed",
        Compressed,
        |d| quantization(d, |q| q["ignore"] = json!(["re:.*self_attn.*"])),
        r#"DIR/model.safetensors: tensor model.layers.1.self_attn.q_proj.weight is packed as fp8_channel: "re:.*self_attn.*" excludes the module from quantisation"#,
    ),
    (
        "an expression that is none",
        Compressed,
        |d| quantization(d, |q| q["ignore"] = json!(["re:(["])),
        r#"DIR/config.json: quantization_config.ignore is "re:([": expected a name or a pattern: Parsing error at position 7: Invalid character class"#,
    ),
    (
        "packed integers",
        Compressed,
        |d| {
            quantization(d, |q| q["config_groups"]["group_0"]["weights"]["type"] = json!("int"));
        },
        "DIR/config.json: compressed-tensors with 4-bit integers is not supported: it needs packed integers with zero points; use NVFP4 or FP8",
    ),
    (
        "rotated weights",
        Compressed,
        |d| {
            quantization(d, |q| {
                let transform = json!({"config_groups": {"u": {"type": "hadamard"}}});
                q.insert("transform_config".to_owned(), transform);
            });
        },
        "DIR/config.json: compressed-tensors with a transform_config is not supported: it needs rotated weights undone before the products",
    ),
    (
        "plain and packed codes of one matrix",
        Compressed,
        |d| {
            edit_header(d, WEIGHTS, |map| {
                let end = map.values().filter_map(|e| e["data_offsets"][1].as_u64()).max().unwrap();
                let empty = json!({"dtype": "BF16", "shape": [0], "data_offsets": [end, end]});
                map.insert(format!("{FLAT_UP}.weight"), empty);
            });
        },
        "DIR/model.safetensors: model.layers.0.mlp.up_proj.weight_packed stands beside tensor model.layers.0.mlp.up_proj.weight of dtype BF16: expected one format for a weight",
    ),
    (
        "scales beside a plain matrix",
        Compressed,
        |d| {
            rename(
                d,
                &format!("{FLAT_UP}.input_global_scale"),
                "model.layers.0.linear_attn.out_proj.weight_scale",
            )
        },
        "DIR/model.safetensors: model.layers.0.linear_attn.out_proj.weight_scale stands beside tensor model.layers.0.linear_attn.out_proj.weight of dtype BF16: expected one format for a weight",
    ),
    (
        "projections of qwen3_next under Qwen3.5's names",
        Next,
        |d| {
            rename(
                d,
                "model.layers.0.linear_attn.in_proj_qkvz.weight",
                "model.layers.0.linear_attn.in_proj_qkv.weight",
            );
        },
        "DIR: no tensor model.layers.0.linear_attn.in_proj_qkvz.weight: expected shape [192, 64]",
    ),
    (
        "a layer without experts that the config gives some",
        Next,
        |d| set(d, "config.json", "mlp_only_layers", json!([])),
        "DIR: no tensor model.layers.3.mlp.gate.weight: expected shape [6, 64]; 22 more are missing",
    ),
    (
        "a layer of mlp_only_layers that is not there",
        Next,
        |d| set(d, "config.json", "mlp_only_layers", json!([3, 4])),
        "DIR/config.json: mlp_only_layers is 4: expected a list of layers below num_hidden_layers, 4",
    ),
    (
        "block scales of the smaller projection",
        NextFp8,
        |d| {
            swap(
                d,
                "model.layers.0.linear_attn.in_proj_qkvz.weight_scale_inv",
                "model.layers.0.linear_attn.out_proj.weight_scale_inv",
            );
        },
        "DIR/model.safetensors: tensor model.layers.0.linear_attn.in_proj_qkvz.weight_scale_inv has shape [2, 2]: config.json implies [5, 2]",
    ),
    (
        "a GPTQ matrix in place of a plain one",
        Next,
        |d| rename(d, "model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.qweight"),
        "DIR/model.safetensors: tensor model.layers.3.mlp.up_proj.qweight, an AWQ or GPTQ weight, is not supported: it needs packed integers with zero points",
    ),
];

const EXPERTS: &str = "model.language_model.layers.0.mlp.experts";

/// Replaces a text in a file wherever it stands.
fn replace_all(d: &Path, file: &str, old: &str, new: &str) {
    let text = fs::read_to_string(d.join(file)).unwrap();
    assert!(text.contains(old), "{old} in {file}");
    fs::write(d.join(file), text.replace(old, new)).unwrap();
}

#[test]
fn each_broken_variant_of_a_packed_checkpoint_is_refused_with_the_right_sentence() {
    assert!(PACKED.len() >= 40);
    crate::refused(PACKED.iter());
}
