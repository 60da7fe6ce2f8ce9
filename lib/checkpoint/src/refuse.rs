//! Kinds of checkpoint this build does not run, each refused by name with what running it would need.

use crate::json::{line, short};
use crate::keys::{Keys, MAX_TEXT};
use crate::{Error, quantization};
use serde_json::Value;
use std::path::Path;

/// The families of text models that this build runs. They share all but the MLP and some names of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// a dense MLP in every layer
    Qwen35,
    /// experts in every layer
    Qwen35Moe,
    /// experts, and the projections of linear attention interleaved by key head
    Qwen3Next,
}

/// Architectures, with the family of each.
const ARCHITECTURES: [(&str, Family); 5] = [
    ("Qwen3_5ForCausalLM", Family::Qwen35),
    ("Qwen3_5ForConditionalGeneration", Family::Qwen35),
    ("Qwen3_5MoeForCausalLM", Family::Qwen35Moe),
    ("Qwen3_5MoeForConditionalGeneration", Family::Qwen35Moe),
    ("Qwen3NextForCausalLM", Family::Qwen3Next),
];

impl Family {
    /// `model_type` of the text model, and of a wrapper.
    fn model_types(self) -> &'static [&'static str] {
        match self {
            Family::Qwen35 => &["qwen3_5_text", "qwen3_5"],
            Family::Qwen35Moe => &["qwen3_5_moe_text", "qwen3_5_moe"],
            Family::Qwen3Next => &["qwen3_next"],
        }
    }
}

/// Architecture and model type, when they are of a family that runs.
pub(crate) fn kind(root: &Keys<'_>, t: &Keys<'_>) -> Result<(String, String, Family), Error> {
    let list = root.get("architectures").ok_or_else(|| root.missing("architectures", &one_of()))?;
    let architecture = list
        .as_array()
        .and_then(|l| l.first())
        .and_then(Value::as_str)
        .ok_or_else(|| root.bad("architectures", list, "a list with one name"))?;
    let Some(&(_, family)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        let needed = format!("it needs a model text of its own; this build runs {}", names().join(", "));
        return Err(root.unsupported(format!("architecture {architecture}"), &needed));
    };
    let types = family.model_types();
    let expected = format!("{:?}, which {architecture} has", types[0]);
    let inner = t.text("model_type")?.ok_or_else(|| t.missing("model_type", &expected))?;
    if !types.contains(&inner) {
        return Err(t.wrong("model_type", format!("{:?}", short(inner)), &expected));
    }
    if family == Family::Qwen35 && t.get("num_experts").is_some_and(|n| n.as_u64() != Some(0)) {
        let found = short(&t.map["num_experts"].to_string());
        return Err(t.wrong("num_experts", found, &format!("none, because {architecture} is dense")));
    }
    Ok((architecture.to_owned(), inner.to_owned(), family))
}

/// Whether a text model of this architecture stands inside another, with its config under `text_config`.
pub(crate) fn is_wrapper(architecture: &str) -> bool {
    architecture.ends_with("ForConditionalGeneration")
}

fn names() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

fn one_of() -> String {
    format!("a list with one of {}", names().join(", "))
}

/// Features of config.json that change the arithmetic.
pub(crate) fn features(t: &Keys<'_>) -> Result<(), Error> {
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
    if let Some(n) = names.iter().find(|n| *n == "quantize_config.json") {
        let path = dir.join(n);
        let q = match crate::keys::read_text(&path, MAX_TEXT)? {
            Some(text) => crate::keys::object(&path.display().to_string(), &text)?,
            None => serde_json::Map::new(),
        };
        return Err(quantization::refuse(&path.display().to_string(), &q));
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
