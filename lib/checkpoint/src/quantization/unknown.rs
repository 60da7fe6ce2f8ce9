//! Quantised weights that this build does not read, each by its name with what reading them would need.

use crate::Error;
use crate::json::{line, short};
use serde_json::{Map, Value};

const READ: &str = "this build reads block FP8, ModelOpt and compressed-tensors FP8 and NVFP4";

/// Whether this is what MLX writes, as `quantization` and as `quantization_config`: bits and group size, and no method.
pub(super) fn is_mlx(q: &Map<String, Value>) -> bool {
    ["bits", "group_size"].iter().all(|key| q.get(*key).is_some_and(Value::is_u64))
        && !q.contains_key("quant_method")
}

/// The error for a `quantization_config` (or a `quantize_config.json`) of another kind.
pub(crate) fn refuse(file: &str, q: &Map<String, Value>) -> Error {
    let word = |key: &str| q.get(key).and_then(Value::as_str);
    let algo = word("quant_algo").or(word("format")).unwrap_or("");
    let method = word("quant_method").unwrap_or("");
    let modelopt = if algo.contains("AWQ") {
        "the scales of its inputs (pre_quant_scale) applied before the products"
    } else {
        "the dequantisation of this algorithm"
    };
    let flag = |key: &str| q.get(key) == Some(&Value::Bool(true));
    let (name, needs) = match method {
        "awq" => ("AWQ".to_owned(), "4-bit integers with zero points, in AWQ's column order"),
        "gptq" => ("GPTQ".to_owned(), "packed integers with zero points and the order of their groups"),
        "" if file.ends_with("quantize_config.json") => {
            ("GPTQ".to_owned(), "packed integers with zero points and the order of their groups")
        }
        _ if method == "bitsandbytes" || flag("load_in_4bit") || flag("load_in_8bit") => {
            ("bitsandbytes".to_owned(), "its nf4 table and nested scales")
        }
        "mxfp4" => ("MXFP4".to_owned(), "blocks of 32 with bare exponents as scales"),
        "compressed-tensors" => (
            format!("compressed-tensors {algo}").trim_end().to_owned(),
            "the dequantisation of this type of weights",
        ),
        "modelopt" | "modelopt_fp4" | "modelopt_mixed" => {
            (format!("ModelOpt {algo}").trim_end().to_owned(), modelopt)
        }
        "" if is_mlx(q) => {
            ("MLX".to_owned(), "packed integers with scales and biases, and MLX's order of some weights")
        }
        "" if !algo.is_empty() => (format!("ModelOpt {algo}"), modelopt),
        "" => ("quantization_config without quant_method".to_owned(), "to know who packed the weights"),
        other => (format!("quant_method {:?}", short(other)), "the dequantisation of its packed weights"),
    };
    Error::Unsupported {
        file: file.to_owned(),
        what: line(&format!("quantisation {name}")),
        needed: format!("it needs {needs}; {READ}"),
    }
}
