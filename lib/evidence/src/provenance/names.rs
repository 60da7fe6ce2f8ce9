//! Who calls a knob what, and one spelling for its values.

use serde_json::Value;

/// Environment variables and the knobs they set.
pub(super) const ENVIRONMENT: &[(&str, &str)] = &[
    ("CUTE_WO_SPLIT", "wo_split"),
    ("CUTE_PHASE_E_FUSION", "phase_e_fusion"),
    ("CUTE_PHASE_E_PATH", "phase_e_path"),
    ("CUTE_PHASE_E_LAYERS", "phase_e_layers"),
    ("CUTE_PHASE_E_FALLBACK_RAISE", "fallback_raise"),
    ("CUTE_PHASE_E_DISPATCH_LOG", "dispatch_log"),
    ("CUTE_BETA_REGION_TIMING", "region_timing"),
    ("CUTE_MLP_TILE", "mlp_tile"),
];

/// Fields of a recorded verdict or manifest that are knobs.
pub(super) const RECORDED: &[(&str, &str)] = &[
    ("wo_split", "wo_split"),
    ("phase_e_fusion", "phase_e_fusion"),
    ("fusion", "phase_e_fusion"),
    ("phase_e_path", "phase_e_path"),
    ("phase_e_layers", "phase_e_layers"),
    ("expected_coop_layers", "expected_coop_layers"),
    ("git_sha", "git_sha"),
    ("image", "image"),
    ("image_id", "image_digest"),
    ("n_runs", "n_runs"),
    ("gsm8k_floor", "gsm8k_floor"),
    ("ssm_sentinel", "ssm_sentinel"),
    ("kv_sentinel", "kv_sentinel"),
    ("host_driver", "host_driver"),
    ("host_kernel", "host_kernel"),
    ("prompt_set_hash", "prompt_set_hash"),
    ("patched_repo", "patched_repo"),
    ("reverted_commit", "reverted_commit"),
    ("pre_pr10_baseline_commit", "baseline_commit"),
    ("hf_model", "model"),
];

/// Fields of an evaluation that are knobs.
pub(super) const EVALUATION: &[(&str, &str)] = &[
    ("n", "eval_n"),
    ("seed", "eval_seed"),
    ("max_tokens", "eval_max_tokens"),
    ("model", "eval_model"),
    ("api", "eval_api"),
];

/// Server arguments that say nothing about what is computed.
pub(super) const SILENT: &[&str] =
    &["host", "port", "model_tag", "served_model_name", "api_key", "line_cut_off"];

/// Fields of the resolved engine configuration and the arguments they answer.
pub(super) const ENGINE: &[(&str, &str)] = &[
    ("max_seq_len", "max_model_len"),
    ("kv_cache_dtype", "kv_cache_dtype"),
    ("dtype", "dtype"),
    ("quantization", "quantization"),
    ("enable_prefix_caching", "enable_prefix_caching"),
    ("enable_chunked_prefill", "enable_chunked_prefill"),
    ("enforce_eager", "enforce_eager"),
    ("tensor_parallel_size", "tensor_parallel_size"),
    ("pipeline_parallel_size", "pipeline_parallel_size"),
    ("data_parallel_size", "data_parallel_size"),
    ("model", "model"),
    ("revision", "revision"),
    ("seed", "seed"),
];

/// One spelling for a value: `True`, `true` and `1` are one switch, `[3, 7]` and `"3, 7"` one list.
pub(super) fn spell(knob: &str, value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::Bool(b) => u64::from(*b).to_string(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            items.iter().map(|i| spell("", i).unwrap_or_default()).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    };
    let text = text.trim();
    Some(match knob {
        "attention_backend" => text.rsplit('.').next().unwrap_or(text).to_owned(),
        "image_digest" => {
            let digest = text.rsplit(['@', ':']).next().unwrap_or(text);
            digest.chars().take(12).collect()
        }
        "phase_e_path" => text.to_ascii_lowercase(),
        "expected_coop_layers" | "phase_e_layers" => {
            text.split(',').map(str::trim).collect::<Vec<_>>().join(",")
        }
        _ => text.to_owned(),
    })
}
