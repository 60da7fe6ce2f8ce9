//! A tiny checkpoint made on the fly, to be broken in one way at a time.

use cute_checkpoint::Checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    /// A tensor of zeros.
    pub fn zeros(dtype: Dtype, shape: &[usize]) -> Raw {
        let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        Raw { dtype, shape: shape.to_vec(), bytes }
    }

    /// An f32 tensor of small numbers, different for every seed.
    fn noise(seed: u64, shape: &[usize]) -> Raw {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let bytes = (0..shape.iter().product()).flat_map(|_| next().to_le_bytes()).collect();
        Raw { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }
}

/// What a checkpoint directory holds, before it is written.
#[derive(Clone, Debug)]
pub struct Tiny {
    pub config: Value,
    pub generation: Option<Value>,
    pub tensors: BTreeMap<String, Raw>,
    /// first letters of tensor names that go to the second of two shards; one file when empty
    pub second_shard: Vec<&'static str>,
}

impl Default for Tiny {
    /// One linear-attention and one full-attention layer; hidden 8, 2 heads of 4, 1 key head, 11 tokens.
    fn default() -> Tiny {
        let config = json!({
            "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "dtype": "float32",
            "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
            "linear_num_key_heads": 1, "linear_num_value_heads": 2,
            "linear_key_head_dim": 4, "linear_value_head_dim": 3, "linear_conv_kernel_dim": 4,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "tie_word_embeddings": false,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "eos_token_id": 1, "attention_bias": false, "hidden_act": "silu",
        });
        // C = 2·Hk·Dk + Hv·Dv = 2·1·4 + 2·3 = 14; q_proj has a gate beside each query: 2·2·8 rows.
        let shapes: &[(&str, &[usize])] = &[
            ("lm_head.weight", &[11, 8]),
            ("model.embed_tokens.weight", &[11, 8]),
            ("model.norm.weight", &[8]),
            ("model.layers.0.input_layernorm.weight", &[8]),
            ("model.layers.0.post_attention_layernorm.weight", &[8]),
            ("model.layers.0.mlp.gate_proj.weight", &[12, 8]),
            ("model.layers.0.mlp.up_proj.weight", &[12, 8]),
            ("model.layers.0.mlp.down_proj.weight", &[8, 12]),
            ("model.layers.0.linear_attn.in_proj_qkv.weight", &[14, 8]),
            ("model.layers.0.linear_attn.in_proj_z.weight", &[6, 8]),
            ("model.layers.0.linear_attn.in_proj_b.weight", &[2, 8]),
            ("model.layers.0.linear_attn.in_proj_a.weight", &[2, 8]),
            ("model.layers.0.linear_attn.conv1d.weight", &[14, 1, 4]),
            ("model.layers.0.linear_attn.A_log", &[2]),
            ("model.layers.0.linear_attn.dt_bias", &[2]),
            ("model.layers.0.linear_attn.norm.weight", &[3]),
            ("model.layers.0.linear_attn.out_proj.weight", &[8, 6]),
            ("model.layers.1.input_layernorm.weight", &[8]),
            ("model.layers.1.post_attention_layernorm.weight", &[8]),
            ("model.layers.1.mlp.gate_proj.weight", &[12, 8]),
            ("model.layers.1.mlp.up_proj.weight", &[12, 8]),
            ("model.layers.1.mlp.down_proj.weight", &[8, 12]),
            ("model.layers.1.self_attn.q_proj.weight", &[32, 8]),
            ("model.layers.1.self_attn.k_proj.weight", &[8, 8]),
            ("model.layers.1.self_attn.v_proj.weight", &[8, 8]),
            ("model.layers.1.self_attn.o_proj.weight", &[8, 16]),
            ("model.layers.1.self_attn.q_norm.weight", &[8]),
            ("model.layers.1.self_attn.k_norm.weight", &[8]),
        ];
        let tensors =
            shapes.iter().enumerate().map(|(i, (n, s))| ((*n).to_owned(), Raw::noise(i as u64 + 1, s)));
        Tiny { config, generation: None, tensors: tensors.collect(), second_shard: Vec::new() }
    }
}

impl Tiny {
    /// Sets a key of config.json; `null` removes it.
    pub fn set(&mut self, key: &str, value: Value) {
        let map = self.config.as_object_mut().unwrap();
        if value.is_null() {
            map.remove(key);
        } else {
            map.insert(key.to_owned(), value);
        }
    }

    /// Names every tensor anew; `None` drops it.
    pub fn rename(&mut self, name: impl Fn(&str) -> Option<String>) {
        let old = std::mem::take(&mut self.tensors);
        self.tensors = old.into_iter().filter_map(|(n, t)| Some((name(&n)?, t))).collect();
    }

    /// Writes the directory.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("config.json"), self.config.to_string()).unwrap();
        if let Some(generation) = &self.generation {
            std::fs::write(path("generation_config.json"), generation.to_string()).unwrap();
        }
        if self.second_shard.is_empty() {
            std::fs::write(path("model.safetensors"), bytes(&self.tensors)).unwrap();
            return dir;
        }
        let second = |n: &String| self.second_shard.iter().any(|s| n.starts_with(s));
        let (b, a): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.tensors.clone().into_iter().partition(|(n, _)| second(n));
        let mut map = serde_json::Map::new();
        for (file, tensors) in [(SHARD_1, a), (SHARD_2, b)] {
            std::fs::write(path(file), bytes(&tensors)).unwrap();
            map.extend(tensors.into_keys().map(|n| (n, json!(file))));
        }
        write_index(dir.path(), map);
        dir
    }
}

pub const SHARD_1: &str = "model-00001-of-00002.safetensors";
pub const SHARD_2: &str = "model-00002-of-00002.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// A safetensors file.
pub fn bytes(tensors: &BTreeMap<String, Raw>) -> Vec<u8> {
    let views =
        tensors.iter().map(|(n, t)| (n, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A safetensors file with any header and any data.
pub fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Writes an index.
pub fn write_index(dir: &Path, map: serde_json::Map<String, Value>) {
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    std::fs::write(dir.join(INDEX), index.to_string()).unwrap();
}

/// Reads the index's map, lets it be edited, and writes it again.
pub fn edit_index(dir: &Path, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let text = std::fs::read_to_string(dir.join(INDEX)).unwrap();
    let index: Value = serde_json::from_str(&text).unwrap();
    let mut map = index["weight_map"].as_object().unwrap().clone();
    edit(&mut map);
    write_index(dir, map);
}

/// Makes a checkpoint, breaks it before or after writing, and compares the refusal; `DIR` is the directory.
pub fn check(before: fn(&mut Tiny), after: fn(&Path), expect: &str) {
    let mut tiny = Tiny::default();
    before(&mut tiny);
    let dir = tiny.write();
    after(dir.path());
    let found = match Checkpoint::open(dir.path()) {
        Ok(_) => "it opened".to_owned(),
        Err(e) => e.to_string().replace(&dir.path().display().to_string(), "DIR"),
    };
    assert_eq!(found, expect);
}

/// No change.
pub const NOTHING: fn(&mut Tiny) = |_| {};
/// No change.
pub const AS_WRITTEN: fn(&Path) = |_| {};
