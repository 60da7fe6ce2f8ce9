//! Kinds of checkpoint this build does not run, each refused by name with what running it would need.

use crate::Error;
use crate::json::{line, short};
use crate::keys::{Keys, MAX_TEXT};
use serde_json::Value;
use std::path::Path;

/// Architectures whose text model this is.
const ARCHITECTURES: [&str; 2] = ["Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"];
/// `model_type` of their text models, and of the wrapper.
const MODEL_TYPES: [&str; 2] = ["qwen3_5_text", "qwen3_5"];

const MOE: &str = "it needs a router, routed experts and the gated shared expert in place of the dense MLP";
const NEXT: &str =
    "it needs in_proj_qkvz and in_proj_ba taken apart per key head, and the mixture of experts";

/// Architecture and model type, when they are this family's.
pub(crate) fn kind(root: &Keys<'_>, t: &Keys<'_>) -> Result<(String, String), Error> {
    let list = root.get("architectures").ok_or_else(|| root.missing("architectures", &one_of()))?;
    let architecture = list
        .as_array()
        .and_then(|l| l.first())
        .and_then(Value::as_str)
        .ok_or_else(|| root.bad("architectures", list, "a list with one name"))?;
    let outer = root.text("model_type")?.unwrap_or_default();
    let inner = t.text("model_type")?.ok_or_else(|| t.missing("model_type", "\"qwen3_5_text\""))?;
    let experts = t.get("num_experts").and_then(Value::as_u64).is_some_and(|n| n > 0);
    if [outer, inner].iter().any(|m| m.starts_with("qwen3_next")) || architecture.starts_with("Qwen3Next") {
        return Err(root.unsupported(format!("qwen3_next ({architecture})"), NEXT));
    }
    if [outer, inner].iter().any(|m| m.contains("_moe")) || architecture.contains("Moe") || experts {
        return Err(root.unsupported(format!("a mixture of experts ({architecture}, {inner})"), MOE));
    }
    if !ARCHITECTURES.contains(&architecture) {
        let needed =
            format!("it needs a model text of its own; this build runs {}", ARCHITECTURES.join(", "));
        return Err(root.unsupported(format!("architecture {architecture}"), &needed));
    }
    if !MODEL_TYPES.contains(&inner) {
        return Err(t.wrong("model_type", format!("{:?}", short(inner)), "\"qwen3_5_text\""));
    }
    Ok((architecture.to_owned(), inner.to_owned()))
}

fn one_of() -> String {
    format!("a list with one of {}", ARCHITECTURES.join(", "))
}

/// Features of config.json that change the arithmetic.
pub(crate) fn features(root: &Keys<'_>, t: &Keys<'_>) -> Result<(), Error> {
    for keys in [root, t] {
        for key in ["quantization_config", "compression_config"] {
            if let Some(q) = keys.object(key)? {
                return Err(quantised(keys.file, q));
            }
        }
    }
    for key in ["attention_bias", "mlp_bias"] {
        if t.flag(key)? == Some(true) {
            return Err(t.unsupported(format!("{key} true"), "it needs biases in the linear layers"));
        }
    }
    match t.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => {
            let needed = "it needs another activation; this build computes \"silu\"";
            return Err(t.unsupported(format!("hidden_act {other:?}"), needed));
        }
    }
    match t.text("output_gate_type")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => {
            let needed = "it needs another gate in linear attention; this build computes \"swish\"";
            Err(t.unsupported(format!("output_gate_type {other:?}"), needed))
        }
    }
}

/// Rotary embeddings other than the plain one.
pub(crate) fn rope_type(keys: &Keys<'_>) -> Result<(), Error> {
    for key in ["rope_type", "type"] {
        match keys.text(key)? {
            // For text alone the multimodal form is the plain one: all three positions are equal.
            None | Some("default" | "mrope") => {}
            Some(other) => {
                let needed = "it needs scaled rotary frequencies; this build computes \"default\"";
                return Err(keys.unsupported(format!("{}{key} {other:?}", keys.prefix), needed));
            }
        }
    }
    Ok(())
}

/// The error for quantised weights, by the name of their format.
pub(crate) fn quantised(file: &str, q: &serde_json::Map<String, Value>) -> Error {
    let word = |key: &str| q.get(key).and_then(Value::as_str);
    let method = word("quant_method").unwrap_or("");
    let algo = word("quant_algo")
        .or_else(|| q.get("quantization").and_then(|v| v.get("quant_algo")).and_then(Value::as_str))
        .or(word("format"))
        .unwrap_or("");
    let name = match (method, algo) {
        ("fp8", _) => "block FP8 (quant_method \"fp8\")".to_owned(),
        ("modelopt" | "modelopt_fp4" | "", algo) if !algo.is_empty() => format!("ModelOpt {algo}"),
        ("compressed-tensors", algo) => format!("compressed-tensors {algo}").trim_end().to_owned(),
        ("awq", _) => "AWQ".to_owned(),
        ("gptq", _) => "GPTQ".to_owned(),
        ("", _) => "quantization_config without quant_method".to_owned(),
        (other, _) => format!("quant_method {:?}", short(other)),
    };
    Error::Unsupported {
        file: file.to_owned(),
        what: line(&format!("quantisation {name}")),
        needed: "it needs the dequantisation of its packed weights and scales; use the bf16 checkpoint"
            .to_owned(),
    }
}

/// Files that say the directory holds something else than plain weights.
pub(crate) fn directory(dir: &Path, names: &[String]) -> Result<(), Error> {
    let refuse = |file: &str, what: &str, needed: &str| {
        Err(Error::Unsupported {
            file: dir.join(file).display().to_string(),
            what: what.to_owned(),
            needed: needed.to_owned(),
        })
    };
    if let Some(name) = names.iter().find(|n| n.chars().any(char::is_control)) {
        return Err(Error::Unsupported {
            file: dir.display().to_string(),
            what: line(&format!("a name with control characters, {name:?},")),
            needed: "rename the file, or remove it".to_owned(),
        });
    }
    let find = |ends: &[&str]| names.iter().find(|n| ends.iter().any(|e| n.ends_with(e)));
    if names.iter().any(|n| n == "adapter_config.json") {
        let needed = "merge it into its base model first (merge_and_unload, save_pretrained)";
        return refuse("adapter_config.json", "a LoRA adapter", needed);
    }
    if let Some(n) = names.iter().find(|n| *n == "hf_quant_config.json" || *n == "quantize_config.json") {
        let path = dir.join(n);
        let q = match crate::keys::read_text(&path, MAX_TEXT)? {
            Some(text) => crate::keys::object(&path.display().to_string(), &text)?,
            None => serde_json::Map::new(),
        };
        return Err(quantised(&path.display().to_string(), &q));
    }
    if find(&[".safetensors"]).is_some() {
        return Ok(());
    }
    if let Some(n) = find(&[".gguf"]) {
        let needed = "its weights are permuted and renamed; use the safetensors checkpoint";
        return refuse(n, "GGUF", needed);
    }
    if let Some(n) = find(&[".bin", ".pt", ".pth", ".ckpt"]) {
        let needed =
            "reading one runs code from it; convert it with save_pretrained, which writes safetensors";
        return refuse(n, "a pickled checkpoint", needed);
    }
    Ok(())
}
