//! compressed-tensors: groups of modules, each with the type of its weights.

use super::names::Names;
use super::{BLOCK, Method, Quantization, block, refuse, strings};
use crate::Error;
use crate::json::short;
use crate::keys::Keys;
use crate::weight::{Format, NVFP4_BLOCK};
use serde_json::Value;

/// Reads `config_groups` and `ignore`. `quantization_status` is not asked: the tensors show whether they are packed.
pub(super) fn compressed_tensors(q: &Keys<'_>) -> Result<Quantization, Error> {
    for (key, what) in [("sparsity_config", "sparse weights"), ("transform_config", "rotated weights")] {
        let used = q.object(key)?.is_some_and(|map| match key {
            "sparsity_config" => map.get("format").is_some_and(|f| f != "dense"),
            _ => map.get("config_groups").and_then(Value::as_object).is_some_and(|g| !g.is_empty()),
        });
        if used {
            let needed = format!("it needs {what} undone before the products");
            return Err(q.unsupported(format!("compressed-tensors with a {key}"), &needed));
        }
    }
    let groups = q
        .object("config_groups")?
        .ok_or_else(|| q.missing("config_groups", "an object of groups with their weights"))?;
    let (mut formats, mut sides) = (Vec::new(), BLOCK);
    for (name, value) in groups {
        let prefix = format!("{}config_groups.{}.", q.prefix, short(name));
        let Value::Object(map) = value else { return Err(q.bad("config_groups", value, "objects")) };
        let group = Keys { file: q.file, prefix: &prefix, map };
        let Some(weights) = group.object("weights")? else { continue };
        let prefix = format!("{prefix}weights.");
        let weights = Keys { file: q.file, prefix: &prefix, map: weights };
        formats.push(format(q, &weights, &mut sides)?);
    }
    if formats.is_empty() {
        return Err(q.wrong("config_groups", "without weights", "a group with quantised weights"));
    }
    let mut excluded = Names::default();
    excluded.expressions(&strings(q, "ignore")?).map_err(|(name, why)| q.wrong("ignore", name, &why))?;
    Ok(Quantization {
        method: Method::CompressedTensors,
        algo: q.text("format")?.unwrap_or("compressed").to_owned(),
        file: q.file.to_owned(),
        formats,
        block: sides,
        excluded,
        listed: None,
    })
}

/// The format of a group's weights.
fn format(q: &Keys<'_>, w: &Keys<'_>, sides: &mut [usize; 2]) -> Result<Format, Error> {
    let bits = w.get("num_bits").and_then(Value::as_u64).unwrap_or(0);
    let kind = w.text("type")?.unwrap_or_default();
    let strategy = w.text("strategy")?.unwrap_or_default();
    match (bits, kind, strategy) {
        (4, "float", "tensor_group" | "group") => match w.get("group_size") {
            Some(size) if size.as_u64() != Some(NVFP4_BLOCK as u64) => {
                let needed =
                    "it needs blocks of another size and their scales (MXFP4 has 32); this build reads 16";
                Err(w.unsupported(format!("4-bit floats with group_size {size}"), needed))
            }
            _ => Ok(Format::Nvfp4),
        },
        (8, "float", "tensor") => Ok(Format::Fp8Tensor),
        (8, "float", "channel") => Ok(Format::Fp8Channel),
        (8, "float", "block") => {
            if let Some(value) = w.get("block_structure") {
                *sides = block(w, "block_structure", value)?;
            }
            Ok(Format::Fp8Block)
        }
        (bits, "int", _) => {
            let what = format!("compressed-tensors with {bits}-bit integers");
            Err(w.unsupported(what, "it needs packed integers with zero points; use NVFP4 or FP8"))
        }
        _ => Err(refuse(q.file, q.map)),
    }
}
