//! The shapes of published models: config, tensors and memory plan, without their weights.

use cute_checkpoint::{Config, Family, expected_shapes, memory_plan};
use serde_json::{Value, json};

/// A config as those models have it: wrapped, rotary parameters and all; `changes` on top of the text keys.
fn wrapped(moe: bool, changes: Value) -> Value {
    let kind = if moe { "Moe" } else { "" };
    let word = if moe { "qwen3_5_moe" } else { "qwen3_5" };
    let mut text = json!({
        "attention_bias": false, "attn_output_gate": true, "dtype": "bfloat16", "eos_token_id": 248044,
        "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144, "mlp_only_layers": [],
        "model_type": format!("{word}_text"), "mtp_num_hidden_layers": 1, "rms_norm_eps": 1e-6, "vocab_size": 248320,
        "rope_parameters": {
            "mrope_interleaved": true, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
            "rope_theta": 10000000, "rope_type": "default"
        },
    });
    let map = text.as_object_mut().unwrap();
    map.extend(changes.as_object().unwrap().clone());
    let tied = map.remove("tie_word_embeddings").unwrap_or(json!(false));
    json!({
        "architectures": [format!("Qwen3_5{kind}ForConditionalGeneration")], "model_type": word,
        "text_config": text, "tie_word_embeddings": tied, "vision_config": {"depth": 27},
    })
}

fn dense(h: u32, i: u32, layers: u32, heads: [u32; 2], hv: u32, tied: bool) -> Value {
    wrapped(
        false,
        json!({
            "hidden_size": h, "intermediate_size": i, "num_hidden_layers": layers, "num_attention_heads": heads[0],
            "num_key_value_heads": heads[1], "linear_num_value_heads": hv, "tie_word_embeddings": tied,
        }),
    )
}

fn moe(h: u32, layers: u32, heads: u32, hv: u32, [experts, taken, i]: [u32; 3]) -> Value {
    wrapped(
        true,
        json!({
            "hidden_size": h, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 2,
            "linear_num_value_heads": hv, "num_experts": experts, "num_experts_per_tok": taken,
            "moe_intermediate_size": i, "shared_expert_intermediate_size": i,
        }),
    )
}

fn parse(config: &Value) -> Config {
    Config::parse(("config.json", config.to_string().as_bytes()), None).unwrap()
}

/// Parameters by the formulas, apart from the table of names: embedding (and head), mixers, MLPs, norms.
fn parameters(c: &Config) -> u64 {
    let (h, hd) = (c.hidden_size as u64, c.head_dim as u64);
    let (nh, nkv) = (c.num_attention_heads as u64, c.num_key_value_heads as u64);
    let (hk, hv, dk, dv) = (
        c.linear_num_key_heads as u64,
        c.linear_num_value_heads as u64,
        c.linear_key_head_dim as u64,
        c.linear_value_head_dim as u64,
    );
    let channels = 2 * hk * dk + hv * dv;
    let gdn = (channels + hv * dv + 2 * hv) * h + channels * 4 + 2 * hv + dv + h * hv * dv;
    let attention = (2 * nh * hd + 2 * nkv * hd) * h + h * nh * hd + 2 * hd;
    let full = c.full_attention_layers().len() as u64;
    let layers = c.num_hidden_layers as u64;
    let feed = match &c.moe {
        None => 3 * h * c.intermediate_size as u64,
        Some(m) => {
            let (e, i) = (m.num_experts as u64, m.moe_intermediate_size as u64);
            e * h + 3 * e * h * i + 3 * h * m.shared_expert_intermediate_size as u64 + h
        }
    };
    let tables = if c.tie_word_embeddings { 1 } else { 2 };
    tables * c.vocab_size as u64 * h + full * attention + (layers - full) * gdn + layers * (feed + 2 * h) + h
}

#[test]
fn every_published_shape_has_the_parameters_its_name_says() {
    // Billions of the text model: what the name says, but for the vision tower and the MTP layer, to one digit.
    let models = [
        ("0.8B", dense(1024, 3584, 24, [8, 2], 16, true), 0.75),
        ("2B", dense(2048, 6144, 24, [8, 2], 16, true), 1.88),
        ("4B", dense(2560, 9216, 32, [16, 4], 32, true), 4.21),
        ("9B", dense(4096, 12288, 32, [16, 4], 32, false), 8.95),
        ("27B", dense(5120, 17408, 64, [24, 4], 48, false), 26.896),
        ("35B-A3B", moe(2048, 40, 16, 32, [256, 8, 512]), 34.66),
        ("122B-A10B", moe(3072, 48, 32, 64, [256, 8, 1024]), 122.11),
        ("397B-A17B", moe(4096, 60, 32, 64, [512, 10, 1024]), 396.35),
    ];
    for (name, config, billions) in models {
        let c = parse(&config);
        let by_name: u64 = expected_shapes(&c).iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum();
        assert_eq!(by_name, parameters(&c), "{name}");
        assert!((by_name as f64 / 1e9 - billions).abs() < 0.005, "{name}: {by_name}");
    }
}

#[test]
fn the_largest_dense_one_has_the_tensors_and_the_memory_that_are_reported_of_it() {
    let c = parse(&dense(5120, 17408, 64, [24, 4], 48, false));
    assert_eq!(c.family, Family::Qwen35);
    // 48·14 + 16·11 + embedding, norm and head; 2 bytes each
    assert_eq!(expected_shapes(&c).len(), 48 * 14 + 16 * 11 + 3);
    let plan = memory_plan(&c, 2 * parameters(&c), 2, 8, 4096, 64);
    assert_eq!(plan.kv_bytes_per_token, 65_536);
    assert_eq!(plan.recurrent_bytes_per_sequence, 150_994_944 + 48 * 10_240 * 3 * 4);
    assert_eq!(plan.total_bytes, plan.weight_bytes + plan.kv_pool_bytes + plan.state_pool_bytes);
}

#[test]
fn qwen3_next_has_interleaved_projections_and_names_of_its_own() {
    let mut config = json!({
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "vocab_size": 151936,
        "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48, "full_attention_interval": 4,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "rope_theta": 10000000,
        "partial_rotary_factor": 0.25, "rope_scaling": null, "num_experts": 512, "num_experts_per_tok": 10,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "norm_topk_prob": true,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": false, "eos_token_id": 151645,
    });
    let c = parse(&config);
    let total: u64 = expected_shapes(&c).iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum();
    assert_eq!(total, parameters(&c));
    assert!((total as f64 / 1e9 - 79.67).abs() < 0.01, "{total}");
    // The model text's names, whatever the checkpoint calls them.
    let shape =
        |c: &Config, name: &str| expected_shapes(c).into_iter().find(|(n, _)| n == name).map(|(_, s)| s);
    assert_eq!(shape(&c, "layers.0.linear_attn.in_proj_qkv.weight"), Some(vec![8192, 2048]));
    assert_eq!(shape(&c, "layers.0.linear_attn.in_proj_qkvz.weight"), None);

    config["mlp_only_layers"] = json!([0, 5]);
    config["decoder_sparse_step"] = json!(2);
    let c = parse(&config);
    let dense: Vec<usize> = (0..8).filter(|l| !c.is_sparse(*l)).collect();
    assert_eq!(dense, [0, 2, 4, 5, 6], "layer i has experts when i + 1 is even and i is not listed");
    assert_eq!(shape(&c, "layers.5.mlp.gate_proj.weight"), Some(vec![5120, 2048]));
}

#[test]
fn experts_that_cannot_be_are_refused_with_their_numbers() {
    let refused = |key: &str, value: Value| {
        let mut config = moe(2048, 40, 16, 32, [256, 8, 512]);
        match value {
            Value::Null => drop(config["text_config"].as_object_mut().unwrap().remove(key)),
            value => config["text_config"][key] = value,
        }
        Config::parse(("c", config.to_string().as_bytes()), None).unwrap_err().to_string()
    };
    for (key, value, expect) in [
        ("num_experts_per_tok", json!(257), "num_experts_per_tok is 257: expected an integer from 1 to 256"),
        ("num_experts", json!(0), "num_experts is 0: expected an integer from 1 to 16384"),
        (
            "num_experts",
            json!(16384),
            "num_experts is 16384 in 40 layers: expected at most 1048576 matrices in all",
        ),
        ("num_experts", Value::Null, "no text_config.num_experts: expected an integer from 1 to 16384"),
        (
            "moe_intermediate_size",
            json!(-1),
            "moe_intermediate_size is -1: expected an integer from 1 to 1048576",
        ),
        (
            "norm_topk_prob",
            json!(false),
            "norm_topk_prob false in qwen3_5_moe is not supported: it needs router weights as they are; qwen3_5_moe always divides them by their sum",
        ),
    ] {
        let found = refused(key, value);
        assert!(found.ends_with(expect), "{found}");
    }
}
