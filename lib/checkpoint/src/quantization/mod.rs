//! What a checkpoint says of its quantised weights: `quantization_config` in config.json, and ModelOpt's
//! `hf_quant_config.json`.
//!
//! The tensors decide what a weight is; this decides whether they may be that. A format that is not announced, a
//! module that is excluded and packed all the same, or an announcement without a packed tensor is a contradiction,
//! and refused. A module that is announced and plain is not: exporters forget to list what they leave alone.

mod groups;
mod names;
mod unknown;

use crate::Error;
use crate::expected::other_tower;
use crate::json::short;
use crate::keys::Keys;
use crate::source::Form;
use crate::weight::{Format, NVFP4_BLOCK};
use names::Names;
use serde_json::{Map, Value};
pub(crate) use unknown::refuse;

/// Who packed the weights, which is also how the tensors are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Hugging Face's FP8: `weight_scale_inv`
    Fp8,
    /// NVIDIA ModelOpt: `weight_scale`, `weight_scale_2`
    ModelOpt,
    /// compressed-tensors: `weight_packed`, `weight_scale`, `weight_global_scale`
    CompressedTensors,
}

impl Method {
    /// `quant_method`, as config.json has it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Fp8 => "fp8",
            Method::ModelOpt => "modelopt",
            Method::CompressedTensors => "compressed-tensors",
        }
    }
}

/// What is announced of the quantised weights.
#[derive(Clone, Debug)]
pub struct Quantization {
    /// who packed them
    pub method: Method,
    /// the algorithm in its own words, e.g. `NVFP4`, `nvfp4-pack-quantized`
    pub algo: String,
    /// the file that says so
    pub(crate) file: String,
    /// formats that may occur
    formats: Vec<Format>,
    /// outputs and inputs that share a scale of block FP8
    pub(crate) block: [usize; 2],
    /// modules that are left alone
    excluded: Names,
    /// modules that are packed, and how, where each is listed
    listed: Option<Vec<(Names, Format)>>,
}

/// ModelOpt's word for an algorithm of its own for each module.
const MIXED: &str = "MIXED_PRECISION";
/// Blocks of FP8 where nothing else is said.
const BLOCK: [usize; 2] = [128, 128];

impl Quantization {
    /// Reads what config.json (`root`, and `t` for its text model) and hf_quant_config.json say together.
    pub(crate) fn parse(
        root: &Keys<'_>,
        t: &Keys<'_>,
        modelopt: Option<&Keys<'_>>,
    ) -> Result<Option<Quantization>, Error> {
        let mut found: Option<(&'static str, &Map<String, Value>)> = None;
        for keys in [root, t] {
            if let Some(Value::Object(map)) = keys.get("quantization")
                && unknown::is_mlx(map)
            {
                return Err(refuse(root.file, map));
            }
            for key in ["quantization_config", "compression_config"] {
                match (keys.object(key)?, found) {
                    (Some(map), None) => found = Some((key, map)),
                    (Some(map), Some((_, first))) if map != first => {
                        return Err(keys.wrong(key, "another than the first", "the same in both places"));
                    }
                    _ => {}
                }
            }
        }
        let prefix = found.map_or(String::new(), |(key, _)| format!("{key}."));
        let config = found.map(|(_, map)| Keys { file: root.file, prefix: &prefix, map });
        let modelopt = match modelopt {
            None => None,
            Some(keys) => {
                let inner = keys.object("quantization")?;
                let map = inner.ok_or_else(|| keys.missing("quantization", "an object"))?;
                Some(Keys { file: keys.file, prefix: "quantization.", map })
            }
        };
        let said = config.as_ref().map(announced).transpose()?;
        let also = modelopt.as_ref().map(modelopt_config).transpose()?;
        let merged = match (said, also, &modelopt) {
            (Some(said), Some(also), Some(keys)) => Some(said.merged(also, keys)?),
            (said, also, _) => said.or(also),
        };
        match (&merged, config.or(modelopt)) {
            (Some(q), Some(keys)) if q.algo == MIXED && q.listed.is_none() => {
                Err(keys.missing("quantized_layers", "an algorithm for each packed module"))
            }
            _ => Ok(merged),
        }
    }

    /// Takes over what the other file says; either list may be the shorter one.
    fn merged(mut self, also: Quantization, keys: &Keys<'_>) -> Result<Quantization, Error> {
        if (self.method, &self.algo) != (also.method, &also.algo) {
            let found = format!("{:?} of {}", also.algo, also.method.name());
            let expected = format!("{:?} of {}, as config.json says", self.algo, self.method.name());
            return Err(keys.wrong("quant_algo", found, &expected));
        }
        self.excluded.merge(also.excluded);
        self.listed = self.listed.or(also.listed);
        Ok(self)
    }

    /// Formats that may occur.
    pub fn formats(&self) -> &[Format] {
        &self.formats
    }

    /// Whether a module may be packed like this. `full` and `short` are its names with and without the
    /// checkpoint's prefix, neither with `.weight`.
    pub(crate) fn check(&self, full: &str, short: &str, form: &Form, format: Format) -> Result<(), String> {
        let named = match form {
            Form::Nvfp4 { divides, .. } => *divides == (self.method == Method::CompressedTensors),
            _ => true,
        };
        if !named || !self.formats.contains(&format) {
            let said: Vec<&str> = self.formats.iter().map(|f| f.name()).collect();
            let how = if named { "" } else { ", whose tensors have other names" };
            let (method, algo) = (self.method.name(), &self.algo);
            return Err(format!("{method} {algo} announces {}{how}", said.join(", ")));
        }
        if let Some(by) = self.excluded.find(full, short) {
            return Err(format!("{by:?} excludes the module from quantisation"));
        }
        let Some(listed) = &self.listed else { return Ok(()) };
        match listed.iter().find(|(names, _)| names.holds(full, short)) {
            None => Err("quantized_layers does not list the module".to_owned()),
            Some((_, f)) if *f != format => Err(format!("quantized_layers says {}", f.name())),
            Some(_) => Ok(()),
        }
    }
}

/// `quantization_config` of config.json.
fn announced(q: &Keys<'_>) -> Result<Quantization, Error> {
    match q.text("quant_method")? {
        Some("fp8") => fp8_config(q),
        Some("modelopt" | "modelopt_fp4" | "modelopt_mixed") => modelopt_config(q),
        Some("compressed-tensors") => groups::compressed_tensors(q),
        _ => Err(refuse(q.file, q.map)),
    }
}

/// Hugging Face's FP8.
fn fp8_config(q: &Keys<'_>) -> Result<Quantization, Error> {
    match q.text("fmt")? {
        None | Some("e4m3") => {}
        Some(other) => {
            return Err(q.unsupported(format!("FP8 of fmt {other:?}"), "it needs e5m2 in place of e4m3"));
        }
    }
    let (formats, block) = match q.get("weight_block_size") {
        None => (vec![Format::Fp8Tensor], BLOCK),
        Some(value) => (vec![Format::Fp8Block], block(q, "weight_block_size", value)?),
    };
    let mut excluded = Names::default();
    for key in ["modules_to_not_convert", "ignored_layers"] {
        excluded.below(&strings(q, key)?);
    }
    let algo = "fp8".to_owned();
    Ok(Quantization {
        method: Method::Fp8,
        algo,
        file: q.file.to_owned(),
        formats,
        block,
        excluded,
        listed: None,
    })
}

/// ModelOpt's, in either file; the modules of mixed precision may stand in one of them only.
fn modelopt_config(q: &Keys<'_>) -> Result<Quantization, Error> {
    let algo = q.text("quant_algo")?.ok_or_else(|| q.missing("quant_algo", "e.g. \"NVFP4\""))?;
    group_size(q)?;
    let mixed = algo == MIXED;
    let formats = match mixed {
        true => vec![Format::Nvfp4, Format::Fp8Tensor, Format::Fp8Channel, Format::Fp8Block],
        false => vec![modelopt_format(q, algo)?],
    };
    let mut excluded = Names::default();
    for key in ["exclude_modules", "ignore"] {
        excluded.wildcards(&strings(q, key)?).map_err(|(name, why)| q.wrong(key, name, &why))?;
    }
    let listed = match q.object("quantized_layers")? {
        Some(layers) if mixed => Some(listed(q, layers)?),
        _ => None,
    };
    Ok(Quantization {
        method: Method::ModelOpt,
        algo: algo.to_owned(),
        file: q.file.to_owned(),
        formats,
        block: BLOCK,
        excluded,
        listed,
    })
}

fn listed(q: &Keys<'_>, layers: &Map<String, Value>) -> Result<Vec<(Names, Format)>, Error> {
    let prefix = format!("{}quantized_layers.", q.prefix);
    let mut by_format: Vec<(Names, Format)> = Vec::new();
    // How a tower is packed that is skipped makes no difference.
    let skipped = |module: &str| other_tower(&format!("{}.", module.trim_end_matches(['*', '.']))).is_some();
    for (module, value) in layers.iter().filter(|(module, _)| !skipped(module)) {
        let at = Keys { file: q.file, prefix: &prefix, map: layers };
        let Value::Object(layer) = value else { return Err(at.bad(module, value, "an object")) };
        let layer_prefix = format!("{prefix}{}.", short(module));
        let keys = Keys { file: q.file, prefix: &layer_prefix, map: layer };
        group_size(&keys)?;
        let algo = keys.text("quant_algo")?.ok_or_else(|| keys.missing("quant_algo", "e.g. \"NVFP4\""))?;
        let format = modelopt_format(&keys, algo)?;
        let at = by_format.iter().position(|(_, f)| *f == format).unwrap_or_else(|| {
            by_format.push((Names::default(), format));
            by_format.len() - 1
        });
        let names = &mut by_format[at].0;
        names.wildcards(&[module.as_str()]).map_err(|(name, why)| q.wrong("quantized_layers", name, &why))?;
    }
    Ok(by_format)
}

fn modelopt_format(q: &Keys<'_>, algo: &str) -> Result<Format, Error> {
    match algo {
        "NVFP4" | "W4A16_NVFP4" => Ok(Format::Nvfp4),
        "FP8" => Ok(Format::Fp8Tensor),
        "FP8_PER_CHANNEL_PER_TOKEN" => Ok(Format::Fp8Channel),
        "FP8_PB_WO" => Ok(Format::Fp8Block),
        _ => Err(refuse(q.file, q.map)),
    }
}

/// NVFP4 has blocks of 16, and nothing else is read.
fn group_size(q: &Keys<'_>) -> Result<(), Error> {
    let algo = q.text("quant_algo")?.unwrap_or_default();
    match q.get("group_size") {
        Some(size) if algo.contains("NVFP4") && size.as_u64() != Some(NVFP4_BLOCK as u64) => {
            Err(q.bad("group_size", size, "16, the block of NVFP4"))
        }
        _ => Ok(()),
    }
}

/// Two counts, outputs and inputs.
fn block(q: &Keys<'_>, key: &str, value: &Value) -> Result<[usize; 2], Error> {
    let side = |v: &Value| v.as_u64().filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize);
    let sides: Option<Vec<usize>> = value.as_array().and_then(|l| l.iter().map(side).collect());
    match sides.as_deref() {
        Some(&[n, k]) => Ok([n, k]),
        _ => Err(q.bad(key, value, "two integers from 1 to 65536, e.g. [128, 128]")),
    }
}

/// A list of strings, empty when the key is absent.
fn strings<'a>(q: &Keys<'a>, key: &str) -> Result<Vec<&'a str>, Error> {
    match q.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            list.iter().map(|v| v.as_str().ok_or_else(|| q.bad(key, v, "names of modules"))).collect()
        }
        Some(other) => Err(q.bad(key, other, "a list of names")),
    }
}
