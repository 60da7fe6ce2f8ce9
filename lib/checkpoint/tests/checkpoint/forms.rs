//! The forms a sound checkpoint may take: prefixes, shards, tied or not, dtypes, older configs.

use crate::tiny::{INDEX, NOTHING, Raw, SHARD_1, SHARD_2, Tiny, check, edit_index};
use cute_checkpoint::{Checkpoint, Config, Dtype, LayerType, memory_plan};
use half::{bf16, f16};
use safetensors::tensor::Dtype as Stored;
use serde_json::{Value, json};

fn open(tiny: &Tiny) -> (tempfile::TempDir, Checkpoint) {
    let dir = tiny.write();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// Every tensor by name, as f32.
fn values(c: &Checkpoint) -> Vec<(String, Vec<f32>)> {
    c.tensor_names().map(|n| (n.to_owned(), c.tensor(n).unwrap().to_f32())).collect()
}

#[test]
fn prefix_and_shards_make_no_difference_to_the_tensors() {
    let plain = Tiny::default();
    let wrapped = |n: &str| Some(n.replace("model.", "model.language_model."));
    let mut prefixed = plain.clone();
    prefixed.rename(wrapped);
    let mut sharded = plain.clone();
    sharded.second_shard = vec!["model.layers.0", "lm_head"];
    let mut both = prefixed.clone();
    both.second_shard = vec!["model.language_model.layers.1"];
    let want = values(&open(&plain).1);
    assert_eq!(want.len(), 28);
    for tiny in [prefixed, sharded, both] {
        assert_eq!(values(&open(&tiny).1), want);
    }
}

#[test]
fn a_wrapper_is_read_through_its_text_config_and_other_towers_are_counted() {
    let mut tiny = Tiny::default();
    let mut text = tiny.config.clone();
    for key in ["architectures", "tie_word_embeddings"] {
        text.as_object_mut().unwrap().remove(key);
    }
    tiny.config = json!({
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "tie_word_embeddings": true, "text_config": text, "vision_config": {"depth": 1},
    });
    tiny.tensors.remove("lm_head.weight");
    tiny.rename(|n| Some(n.replace("model.", "model.language_model.")));
    for name in ["model.visual.patch_embed.proj.bias", "model.visual.merger.norm.weight", "mtp.fc.weight"] {
        tiny.tensors.insert(name.into(), Raw::zeros(Stored::I64, &[3]));
    }
    let (_dir, c) = open(&tiny);
    assert!(c.config.tie_word_embeddings);
    assert_eq!(
        (c.config.architecture.as_str(), c.config.model_type.as_str()),
        ("Qwen3_5ForConditionalGeneration", "qwen3_5_text")
    );
    assert!(!c.has("lm_head.weight"));
    assert_eq!(json!(c.skipped()), json!({"mtp": 1, "vision": 2}));
}

#[test]
fn a_tied_head_equal_to_the_embedding_is_counted_and_skipped() {
    let mut tiny = Tiny::default();
    tiny.set("tie_word_embeddings", json!(true));
    tiny.tensors.insert("lm_head.weight".into(), tiny.tensors["model.embed_tokens.weight"].clone());
    let (_dir, c) = open(&tiny);
    assert_eq!(json!(c.skipped()), json!({"tied_lm_head": 1}));
    assert!(!c.has("lm_head.weight"));
    assert!(c.tensor("lm_head.weight").unwrap_err().to_string().ends_with("no tensor named lm_head.weight"));
}

#[test]
fn a_head_that_is_said_to_be_the_embedding_is_compared_by_value_and_its_own_where_it_differs() {
    let mut tiny = Tiny::default();
    tiny.set("tie_word_embeddings", json!(true));
    let embedding = &tiny.tensors["model.embed_tokens.weight"];
    let values: Vec<f32> = (0..88).map(|i| i as f32 / 8.0).collect();
    let bf: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let f: Vec<u8> = values.iter().flat_map(|&x| x.to_le_bytes()).collect();
    let as_bf16 = Raw { dtype: Stored::BF16, shape: embedding.shape.clone(), bytes: bf };
    let as_f32 = Raw { dtype: Stored::F32, shape: embedding.shape.clone(), bytes: f };
    tiny.tensors.insert("model.embed_tokens.weight".into(), as_bf16);
    tiny.tensors.insert("lm_head.weight".into(), as_f32);
    let (_dir, c) = open(&tiny);
    assert!(c.config.tie_word_embeddings && !c.has("lm_head.weight") && c.findings().is_empty());
    tiny.tensors.get_mut("lm_head.weight").unwrap().bytes[4 * 7..4 * 8]
        .copy_from_slice(&0.5f32.to_le_bytes());
    let (dir, c) = open(&tiny);
    assert!(!c.config.tie_word_embeddings && c.has("lm_head.weight") && c.skipped().is_empty());
    let said = c.findings()[0].message.replace(&dir.path().display().to_string(), "DIR");
    assert_eq!(
        said,
        "DIR/model.safetensors: lm_head.weight differs from model.embed_tokens.weight at value 7, 0.5 and 0.875, and config.json says tie_word_embeddings true: it is taken as a matrix of its own"
    );
}

#[test]
fn an_index_that_is_wrong_about_a_skipped_tower_alone_is_said_to_be_and_loads() {
    let mut tiny = Tiny { second_shard: vec!["model.layers.1", "mtp."], ..Tiny::default() };
    for name in ["mtp.fc.weight", "mtp.norm.weight", "model.visual.merger.norm.weight"] {
        tiny.tensors.insert(name.into(), Raw::zeros(Stored::F32, &[3]));
    }
    let dir = tiny.write();
    edit_index(dir.path(), |map| {
        // listed and nowhere; there and not listed; in a file that is not there; in another file
        map.insert("mtp.extra.weight".into(), json!(SHARD_2));
        map.remove("mtp.fc.weight");
        map.insert("model.visual.pos_embed.weight".into(), json!("model_visual.safetensors"));
        map["model.visual.merger.norm.weight"] = json!(SHARD_2);
    });
    let c = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(json!(c.skipped()), json!({"mtp": 2, "vision": 1}));
    let said: Vec<String> =
        c.findings().iter().map(|f| f.message.replace(&dir.path().display().to_string(), "DIR")).collect();
    assert_eq!(
        said,
        [
            format!(
                "DIR/{INDEX}: tensor mtp.extra.weight is not in shard {SHARD_2}, nor in any other; it is wrong about 1 more: of mtp, which is skipped"
            ),
            format!(
                "DIR/{INDEX}: tensor model.visual.merger.norm.weight is said to be in {SHARD_2}, it is in {SHARD_1}; it is wrong about 1 more: of vision, which is skipped"
            ),
        ]
    );
    // A tensor of the model in the same missing file is another matter.
    edit_index(dir.path(), |map| map["model.norm.weight"] = json!("model_visual.safetensors"));
    let e = Checkpoint::open(dir.path()).unwrap_err().to_string();
    let want = "shard model_visual.safetensors is missing: tensor model.norm.weight is said to be in it";
    assert!(e.ends_with(want), "{e}");
    assert!(open(&tiny).1.findings().is_empty());
}

#[test]
fn of_a_wrapper_the_outer_level_says_whether_the_head_is_tied_and_of_a_text_model_its_own() {
    let tied = |architecture: &str, outer: Value, inner: Value| {
        let mut text = Tiny::default().config;
        let keys = text.as_object_mut().unwrap();
        keys.remove("architectures");
        keys.insert("tie_word_embeddings".to_owned(), inner);
        let wrapper = json!({
            "architectures": [architecture], "model_type": "qwen3_5", "tie_word_embeddings": outer, "text_config": text,
        });
        Config::parse(("config.json", wrapper.to_string().as_bytes()), None).unwrap().tie_word_embeddings
    };
    let (yes, no, absent) = (json!(true), json!(false), Value::Null);
    let wrapper =
        |outer: &Value, inner: &Value| tied("Qwen3_5ForConditionalGeneration", outer.clone(), inner.clone());
    // What transformers 5.23 makes of each, but for the last: there the class has an untied head of its own.
    assert!(wrapper(&yes, &yes) && wrapper(&yes, &no) && wrapper(&yes, &absent));
    assert!(!wrapper(&no, &yes) && !wrapper(&no, &no) && !wrapper(&no, &absent));
    assert!(!wrapper(&absent, &no) && !wrapper(&absent, &absent));
    assert!(wrapper(&absent, &yes));
    assert!(tied("Qwen3_5ForCausalLM", no.clone(), yes.clone()) && !tied("Qwen3_5ForCausalLM", yes, no));
}

#[test]
fn every_dtype_is_read_exactly_and_counted() {
    let mut tiny = Tiny::default();
    let numbers = [0.0f32, -1.5, 65504.0, 0.000_061_035_156, 3.0, -0.25, 1.0, 2.0];
    let bf: Vec<u8> = numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    let fp: Vec<u8> = numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let norm = |dtype, bytes| Raw { dtype, shape: vec![8], bytes };
    tiny.tensors.insert("model.norm.weight".into(), norm(Stored::BF16, bf));
    tiny.tensors.insert("model.layers.1.self_attn.q_norm.weight".into(), norm(Stored::F16, fp));
    let (_dir, c) = open(&tiny);
    let halves = c.tensor("layers.1.self_attn.q_norm.weight").unwrap();
    assert_eq!((halves.dtype, halves.to_f32()), (Dtype::F16, numbers.to_vec()));
    // 65504 has 11 significant bits; the nearest bf16 is 65536.
    let brains = c.tensor("norm.weight").unwrap();
    assert_eq!(brains.to_f32()[..4], [0.0, -1.5, 65536.0, 0.000_061_035_156]);
    let model = c.model(Vec::new(), None, Default::default());
    assert_eq!(json!(model.tensors_by_dtype), json!({"BF16": 1, "F16": 1, "F32": 26}));
}

#[test]
fn older_configs_say_the_same_in_other_places() {
    let want = open(&Tiny::default()).1.config;
    let mut older = Tiny::default();
    older.set("rope_parameters", json!(null));
    older.set("rope_theta", json!(10000.0));
    older.set("partial_rotary_factor", json!(0.25));
    older.set("rope_scaling", json!(null));
    older.set("dtype", json!(null));
    older.set("torch_dtype", json!("float32"));
    older.set("attention_bias", json!(null));
    older.set("hidden_act", json!(null));
    assert_eq!(open(&older).1.config, want);
    // The interval alone: layer i is full attention when (i + 1) mod 2 = 0.
    older.set("layer_types", json!(null));
    older.set("full_attention_interval", json!(2));
    let config = open(&older).1.config;
    assert_eq!(config.layer_types, [LayerType::LinearAttention, LayerType::FullAttention]);
    assert_eq!(
        (config.rotary_dim(), config.conv_channels(), config.full_attention_layers()),
        (2, 14, vec![1])
    );
}

#[test]
fn the_generation_config_decides_which_ids_end_a_reply() {
    for (generation, config, want) in [
        (Some(json!({"eos_token_id": [3, 2, 3]})), json!(1), vec![3, 2]),
        (Some(json!({"eos_token_id": 4})), json!(1), vec![4]),
        (Some(json!({"eos_token_id": null})), json!([5, 6]), vec![5, 6]),
        (Some(json!({})), json!(null), vec![]),
        (None, json!(1), vec![1]),
    ] {
        let mut tiny = Tiny::default();
        tiny.set("eos_token_id", config);
        tiny.generation = generation;
        assert_eq!(open(&tiny).1.config.eos_token_ids, want);
    }
}

#[test]
fn attention_without_an_output_gate_has_half_the_query_rows() {
    let mut tiny = Tiny::default();
    tiny.set("attn_output_gate", json!(false));
    tiny.tensors.insert("model.layers.1.self_attn.q_proj.weight".into(), Raw::zeros(Stored::F32, &[16, 8]));
    assert!(!open(&tiny).1.config.attn_output_gate);
}

#[test]
fn other_safetensors_files_are_no_part_of_the_model() {
    let stray = |d: &std::path::Path| std::fs::write(d.join("adapter_old.safetensors"), "not one").unwrap();
    check(NOTHING, stray, "it opened");
    check(|t| t.second_shard = vec!["model.layers.1"], stray, "it opened");
}

#[cfg(unix)]
#[test]
fn symbolic_links_are_followed_as_the_hub_cache_has_them() {
    let blobs = Tiny::default().write();
    let snapshot = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::os::unix::fs::symlink(blobs.path().join(name), snapshot.path().join(name)).unwrap();
    }
    let c = Checkpoint::open(snapshot.path()).unwrap();
    std::fs::remove_file(snapshot.path().join("model.safetensors")).unwrap();
    // The open file stays readable under its old name or none.
    assert_eq!(c.tensor("norm.weight").unwrap().len(), 8);
}

#[test]
fn a_file_cut_off_after_opening_is_an_error_not_a_crash() {
    let (dir, c) = open(&Tiny::default());
    let path = dir.path().join("model.safetensors");
    let full = std::fs::metadata(&path).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(full - 4).unwrap();
    let want = format!("{} bytes now, {full} when it was opened: the file changed meanwhile", full - 4);
    assert!(c.tensor("norm.weight").unwrap_err().to_string().ends_with(&want));
    assert!(c.digest(|_| ()).unwrap_err().to_string().ends_with(&want));
}

#[test]
fn digests_are_those_of_the_files_and_progress_counts_their_bytes() {
    let tiny = Tiny { generation: Some(json!({})), second_shard: vec!["model.layers.0"], ..Tiny::default() };
    let (dir, c) = open(&tiny);
    let seen = std::sync::atomic::AtomicU64::new(0);
    let files = c.digest(|n| _ = seen.fetch_add(n, std::sync::atomic::Ordering::Relaxed)).unwrap();
    let names: Vec<&str> = files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["config.json", "generation_config.json", SHARD_1, SHARD_2, INDEX]);
    for f in &files {
        let bytes = std::fs::read(dir.path().join(&f.name)).unwrap();
        assert_eq!((f.bytes, &f.sha256), (bytes.len() as u64, &cute_records::digest::sha256(&bytes)));
    }
    assert_eq!(seen.into_inner(), c.total_bytes());
    let mut other = files.clone();
    assert_eq!(Checkpoint::model_digest(&other), Checkpoint::model_digest(&files));
    other[0].sha256.replace_range(..1, "x");
    assert_ne!(Checkpoint::model_digest(&other), Checkpoint::model_digest(&files));
}

#[test]
fn the_record_counts_parameters_and_bytes_by_module() {
    let (_dir, c) = open(&Tiny::default());
    let model = c.model(c.digest(|_| ()).unwrap(), None, Default::default());
    // linear_attn: 14·8 + 6·8 + 2·8 + 2·8 + 14·4 + 2 + 2 + 3 + 8·6 = 303; self_attn: 32·8 + 8·8 + 8·8 + 8·16
    // + 8 + 8 = 528; mlp: 2·3·96 = 576; norms: 5·8 = 40; embedding and head: 88 each. All of 4 bytes.
    let bytes = json!({"embed_tokens": 352, "linear_attn": 1212, "lm_head": 352, "mlp": 2304, "norms": 160, "self_attn": 2112});
    assert_eq!(json!(model.bytes_by_module), bytes);
    assert_eq!(model.parameters, 88 + 303 + 88 + 576 + 40 + 528);
    assert_eq!(c.weight_bytes(), 4 * model.parameters);
    assert_eq!(model.config["rms_norm_eps"], json!(1e-6));
}

#[test]
fn the_memory_plan_is_that_of_the_published_model() {
    let mut config = open(&Tiny::default()).1.config;
    let types =
        (1..=64).map(|i| if i % 4 == 0 { LayerType::FullAttention } else { LayerType::LinearAttention });
    config.layer_types = types.collect();
    config.num_hidden_layers = 64;
    (config.num_key_value_heads, config.head_dim) = (4, 256);
    (config.linear_num_key_heads, config.linear_num_value_heads) = (16, 48);
    (config.linear_key_head_dim, config.linear_value_head_dim) = (128, 128);
    let plan = memory_plan(&config, 51_000_000_000, 2, 8, 100, 64);
    // 27B: 65,536 bytes of K and V a token in bf16; S of 150,994,944 bytes; conv 10240·3·4·48 = 5,898,240.
    assert_eq!(plan.kv_bytes_per_token, 65_536);
    assert_eq!(plan.recurrent_bytes_per_sequence, 150_994_944 + 5_898_240);
    // 100 tokens take 2 pages of 64; one null page, one reserved slot.
    assert_eq!((plan.kv_pages, plan.state_slots), (17, 9));
    assert_eq!(plan.kv_pool_bytes, 17 * 64 * 65_536);
    assert_eq!(plan.total_bytes, 51_000_000_000 + plan.kv_pool_bytes + 9 * plan.recurrent_bytes_per_sequence);
    assert_eq!(memory_plan(&config, 0, 2, u64::MAX, u64::MAX, 1).total_bytes, u64::MAX);
}

#[test]
fn a_scan_finds_every_nan_and_infinity() {
    let mut tiny = Tiny::default();
    let mut poison = |name: &str, at: usize, x: f32| {
        tiny.tensors.get_mut(name).unwrap().bytes[4 * at..4 * at + 4].copy_from_slice(&x.to_le_bytes());
    };
    poison("model.layers.0.linear_attn.A_log", 1, f32::NAN);
    poison("model.layers.1.self_attn.q_proj.weight", 0, f32::INFINITY);
    poison("model.layers.1.self_attn.q_proj.weight", 255, f32::NEG_INFINITY);
    let (_dir, c) = open(&tiny);
    let want = json!({"layers.0.linear_attn.A_log": 1, "layers.1.self_attn.q_proj.weight": 2});
    assert_eq!(json!(c.scan(|_| ()).unwrap().non_finite), want);
}
