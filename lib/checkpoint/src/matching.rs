//! The tensors of a checkpoint against those its config implies: each found once, every other accounted for.

use crate::Error;
use crate::checkpoint::{Checkpoint, Drawn, finding};
use crate::expected::{expected, other_tower};
use crate::packed::{ACTIVATION_SCALES, Finder};
use crate::shards::Located;
use crate::source::{Elements, Form, Source, widen};
use crate::tensor::Dtype;
use crate::weight::Format;
use cute_records::{Count, Severity};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Prefix of the text model's tensors in a wrapper checkpoint.
const WRAPPED: &str = "model.language_model.";
/// Prefix of the text model's tensors in a flat checkpoint.
const FLAT: &str = "model.";
/// Prefixes of other programs, and what to do.
const FOREIGN: [(&str, &str); 2] = [
    ("base_model.model.", "PEFT names it: save the merged model (merge_and_unload, save_pretrained)"),
    ("language_model.model.", "MLX names it: use the checkpoint that this was converted from"),
];
/// The output matrix; it has no prefix in either.
const LM_HEAD: &str = "lm_head.weight";
/// Calibrated scales of the KV cache, below a layer. This build's cache has none.
const KV_SCALES: [&str; 7] = [
    "self_attn.k_scale",
    "self_attn.v_scale",
    "self_attn.q_scale",
    "self_attn.k_proj.k_scale",
    "self_attn.v_proj.v_scale",
    "self_attn.k_proj.output_scale",
    "self_attn.v_proj.output_scale",
];

impl Checkpoint {
    /// Finds every expected tensor and accounts for every other.
    pub(crate) fn match_tensors(&mut self) -> Result<(), Error> {
        let prefix = self.prefix()?;
        self.untie(&format!("{prefix}embed_tokens.weight"))?;
        let full = |name: &str| if name == LM_HEAD { LM_HEAD.to_owned() } else { format!("{prefix}{name}") };
        let has = |name: &str| self.shards.tensors.contains_key(&full(name));
        let finder = Finder { shards: &self.shards, quantization: self.quantization.as_ref() };
        let mut rest: BTreeSet<&str> = self.shards.tensors.keys().map(String::as_str).collect();
        let (mut sources, mut tensors, mut missing) = (Vec::new(), BTreeMap::new(), Vec::new());
        for want in expected(&self.config, &has) {
            let name = full(&want.name);
            let Some((form, names)) = finder.find(&want, &name)? else {
                missing.push((name, want.shape));
                continue;
            };
            names.iter().for_each(|n| _ = rest.remove(n.as_str()));
            let source = sources.len();
            if want.parts.is_empty() {
                tensors.insert(want.name.clone(), Drawn { source, rows: None });
            }
            for part in want.parts {
                tensors.insert(part.name, Drawn { source, rows: Some(part.rows) });
            }
            sources.push(Arc::new(Source { name: want.name, module: want.module, shape: want.shape, form }));
        }
        let packed: HashMap<String, bool> =
            sources.iter().map(|s| (module(&full(&s.name)).to_owned(), s.format().is_packed())).collect();
        let mut skipped = Count::new();
        let mut unexpected = None;
        for name in rest {
            let tower = match other_tower(name).or_else(|| scale(name, &prefix, &packed)) {
                None if name == LM_HEAD && self.config.tie_word_embeddings => Some("tied_lm_head"),
                tower => tower,
            };
            match tower {
                Some(tower) => *skipped.entry(tower.to_owned()).or_default() += 1,
                None => unexpected = unexpected.or(Some(name)),
            }
        }
        if let Some((tensor, shape)) = missing.first() {
            return Err(self.missing(tensor, shape, &prefix, missing.len() - 1));
        }
        if let Some(name) = unexpected {
            return Err(self.unexpected(name, &prefix));
        }
        self.announced(&sources, &finder, &full)?;
        (self.sources, self.tensors, self.skipped) = (sources, tensors, skipped);
        Ok(())
    }

    /// What is packed is announced, and what is announced is packed; scales of whole matrices are numbers that scale.
    fn announced(
        &self,
        sources: &[Arc<Source>],
        finder: &Finder<'_>,
        full: &impl Fn(&str) -> String,
    ) -> Result<(), Error> {
        for source in sources.iter().filter(|s| s.format().is_packed()) {
            let (codes, format) = (source.stored()[0].0, source.format());
            let names = (full(&source.name), module(&source.name));
            let allowed = match &self.quantization {
                Some(q) => q.check(module(&names.0), names.1, &source.form, format),
                None => Err("config.json has no quantization_config".to_owned()),
            };
            allowed.map_err(|why| finder.contradiction(codes, format, why))?;
            let (scale, kind) = match (&source.form, source.stored()[..].last()) {
                (Form::Nvfp4 { .. }, Some(scale)) => *scale,
                (Form::Fp8 { format: Format::Fp8Tensor, .. }, Some(scale)) => *scale,
                _ => continue,
            };
            let mut bytes = vec![0; scale.entry.bytes as usize];
            self.read(scale, 0, &mut bytes)?;
            if let Some(found) = widen(kind, bytes).into_iter().find(|s| !(s.is_finite() && *s > 0.0)) {
                let (file, tensor) = (finder.file(scale), scale.entry.name.clone());
                return Err(Error::ScaleValue { file, tensor, found });
            }
        }
        match &self.quantization {
            Some(q) if !sources.iter().any(|s| s.format().is_packed()) => {
                Err(Error::NothingPacked { file: q.file.clone(), algo: q.algo.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The prefix of the text model's tensors, by their names: what config.json calls the architecture says
    /// nothing about it.
    fn prefix(&self) -> Result<String, Error> {
        let names = || self.shards.tensors.keys().filter(|n| other_tower(n).is_none());
        let wrapped = names().find(|n| n.starts_with(WRAPPED));
        let flat = names().find(|n| n.starts_with(FLAT) && !n.starts_with(WRAPPED));
        match (flat, wrapped) {
            (Some(first), Some(second)) => Err(Error::MixedPrefixes {
                dir: self.dir.display().to_string(),
                first: first.clone(),
                second: second.clone(),
            }),
            (None, Some(_)) => Ok(WRAPPED.to_owned()),
            _ => Ok(FLAT.to_owned()),
        }
    }

    fn missing(&self, tensor: &str, shape: &[usize], prefix: &str, others: usize) -> Error {
        let more = match others {
            _ if tensor == LM_HEAD => ", because config.json says tie_word_embeddings false".to_owned(),
            0 => String::new(),
            n => format!("; {n} more are missing"),
        };
        let more = more + &self.renamed(tensor, prefix).unwrap_or_default();
        Error::MissingTensor {
            dir: self.dir.display().to_string(),
            tensor: tensor.to_owned(),
            expected: format!("{shape:?}"),
            more,
        }
    }

    /// Where no tensor has the prefix: what the missing one is called instead, and by whom.
    fn renamed(&self, tensor: &str, prefix: &str) -> Option<String> {
        let mut names = self.shards.tensors.keys().filter(|name| other_tower(name).is_none());
        if names.clone().any(|name| name.starts_with(prefix)) {
            return None;
        }
        let short = tensor.strip_prefix(prefix).unwrap_or(tensor);
        let name = names.find(|name| name.strip_suffix(short).is_some_and(|rest| rest.ends_with('.')))?;
        Some(match FOREIGN.iter().find(|(prefix, _)| name.starts_with(prefix)) {
            Some((_, by)) => format!("; there is {name}, as {by}"),
            None => format!("; there is {name}: expected {FLAT} or {WRAPPED} before {short}"),
        })
    }

    fn unexpected(&self, name: &str, prefix: &str) -> Error {
        if let Some(at) = ["lora_A", "lora_B", "lora_embedding"].iter().find(|at| name.contains(**at)) {
            let why = format!(": {at} is a LoRA adapter's; merge it into its base model first");
            let file = self.shards.tensors.get(name).map(|l| self.shards.files[l.shard].path.clone());
            return Error::UnexpectedTensor { file: file.unwrap_or_default(), tensor: name.to_owned(), why };
        }
        let layers = self.config.num_hidden_layers;
        let layer = name.strip_prefix(prefix).and_then(|n| n.strip_prefix("layers."));
        let layer = layer.and_then(|n| n.split('.').next()).and_then(|n| n.parse::<usize>().ok());
        let why = match layer {
            Some(l) if l >= layers => format!(": config.json says num_hidden_layers {layers}"),
            Some(l) => format!(": config.json says layer {l} is {}", self.config.layer_types[l].as_str()),
            None => String::new(),
        };
        let file = self.shards.tensors.get(name).map(|l| self.shards.files[l.shard].path.clone());
        Error::UnexpectedTensor { file: file.unwrap_or_default(), tensor: name.to_owned(), why }
    }

    /// An output matrix that a tied checkpoint stores all the same is the model's if it has other values than the
    /// embedding: so transformers decides, and warns.
    fn untie(&mut self, embed: &str) -> Result<(), Error> {
        let get = |name: &str| self.shards.tensors.get(name);
        let head = get(LM_HEAD).or_else(|| get("lm_head.weight_packed"));
        let (true, Some(head), Some(embedding)) = (self.config.tie_word_embeddings, head, get(embed)) else {
            return Ok(());
        };
        let Some(at) = self.difference(head, embedding)? else { return Ok(()) };
        let (file, name) = (&self.shards.files[head.shard].path, &head.entry.name);
        let message = format!(
            "{file}: {name} differs from {embed}{at}, and config.json says tie_word_embeddings true: it is taken as a matrix of its own"
        );
        self.findings.push(finding("head_differs", Severity::Warning, message));
        self.config.tie_word_embeddings = false;
        Ok(())
    }

    /// Where the values of two matrices differ first, if they do.
    fn difference(&self, a: &Located, b: &Located) -> Result<Option<String>, Error> {
        let dtypes = [a, b].map(|l| Dtype::from_safetensors(l.entry.dtype));
        let [Some(x), Some(y)] = dtypes else { return Ok(Some(" in dtype".to_owned())) };
        if a.entry.shape != b.entry.shape {
            return Ok(Some(" in shape".to_owned()));
        }
        const STEP: u64 = 1 << 18;
        let total = a.entry.bytes / x.size() as u64;
        let some = |l: &Located, dtype: Dtype, from: u64| -> Result<Vec<f32>, Error> {
            let size = dtype.size() as u64;
            let mut bytes = vec![0; ((total - from).min(STEP) * size) as usize];
            self.read(l, from * size, &mut bytes)?;
            Ok(widen(Elements::Float(dtype), bytes))
        };
        for from in (0..total).step_by(STEP as usize) {
            let (a, b) = (some(a, x, from)?, some(b, y, from)?);
            if let Some(i) = a.iter().zip(&b).position(|(x, y)| x.to_bits() != y.to_bits()) {
                return Ok(Some(format!(" at value {}, {} and {}", from + i as u64, a[i], b[i])));
            }
        }
        Ok(None)
    }
}

/// The module of a weight: its name without `.weight`.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// What a tensor is that stands beside the weights: a scale of the activations of a packed module, or of the KV cache.
fn scale(name: &str, prefix: &str, packed: &HashMap<String, bool>) -> Option<&'static str> {
    let of = |end: &str| name.strip_suffix(end).is_some_and(|m| packed.get(m) == Some(&true));
    if ACTIVATION_SCALES.iter().any(|end| of(end)) {
        return Some("activation_scales");
    }
    let rest = name.strip_prefix(prefix)?.strip_prefix("layers.")?;
    let (layer, end) = rest.split_once('.')?;
    let attention = packed.contains_key(&format!("{prefix}layers.{layer}.self_attn.q_proj"));
    (attention && KV_SCALES.contains(&end)).then_some("kv_scales")
}
