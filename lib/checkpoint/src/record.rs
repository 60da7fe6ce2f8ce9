//! The `model` record: what a checkpoint is, in figures and digests.

use crate::{ChatTemplate, Checkpoint};
use cute_records::digest::sha256;
use cute_records::{Count, FileDigest, MemoryPlan, Model, WeightFormat};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

impl Checkpoint {
    /// The record of this checkpoint. `files` is what [`Checkpoint::digest`] gave, `plan` what
    /// [`crate::memory_plan`] gave.
    pub fn model(&self, files: Vec<FileDigest>, template: Option<&ChatTemplate>, plan: MemoryPlan) -> Model {
        let c = &self.config;
        let (mut bytes, mut dtypes) = (Count::new(), Count::new());
        let mut parameters = 0;
        let mut groups: BTreeMap<(&str, &str), WeightFormat> = BTreeMap::new();
        for source in &self.sources {
            let (module, format) = (source.module, source.format().name());
            *bytes.entry(module.to_owned()).or_default() += source.bytes();
            for (stored, _) in source.stored() {
                *dtypes.entry(format!("{:?}", stored.entry.dtype)).or_default() += 1;
            }
            parameters += source.parameters();
            let group = groups.entry((module, format)).or_insert_with(|| WeightFormat {
                module: module.to_owned(),
                format: format.to_owned(),
                ..WeightFormat::default()
            });
            group.tensors += 1;
            group.parameters += source.parameters();
            group.bytes += source.bytes();
        }
        let tokenizer = files.iter().find(|f| f.name == "tokenizer.json");
        Model {
            path: self.dir.display().to_string(),
            repository: self.origin.as_ref().map(|o| o.repository.clone()),
            revision: self.origin.as_ref().map(|o| o.revision.clone()),
            digest: Checkpoint::model_digest(&files),
            architecture: c.architecture.clone(),
            model_type: c.model_type.clone(),
            layer_types: c.layer_types.iter().map(|t| t.as_str().to_owned()).collect(),
            full_attention_layers: c.full_attention_layers(),
            parameters,
            bytes_by_module: bytes,
            quantization: self.quantization.as_ref().map(|q| format!("{} {}", q.method.name(), q.algo)),
            formats: groups.into_values().collect(),
            tensors_by_dtype: dtypes,
            skipped: self.skipped.clone(),
            tokenizer_sha256: tokenizer.map(|f| f.sha256.clone()),
            chat_template_sha256: template.map(|t| sha256(t.source().as_bytes())),
            files,
            eos_token_ids: c.eos_token_ids.clone(),
            config: Map::<String, Value>::from(c).into_iter().collect(),
            plan,
            non_finite: None,
        }
    }
}
