//! A checkpoint directory: opened and checked by its headers alone, tensors read on demand.

use crate::config::Config;
use crate::hub::{Found, Origin};
use crate::keys::{MAX_TEXT, read_text};
use crate::quantization::Quantization;
use crate::shards::{Located, Shards};
use crate::source::Source;
use crate::tensor::Tensor;
use crate::weight::{Format, Weight};
use crate::{Error, digest, hub, refuse, tokenizer};
use cute_records::{Count, Finding, Severity};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A checkpoint whose config and headers were found consistent.
#[derive(Debug)]
pub struct Checkpoint {
    /// the directory: as given, or where the name was found
    pub dir: PathBuf,
    /// repository and commit, when it is a snapshot of the Hugging Face cache
    pub origin: Option<Origin>,
    /// shape of the text model
    pub config: Config,
    /// what is announced of quantised weights, if anything
    pub quantization: Option<Quantization>,
    pub(crate) shards: Arc<Shards>,
    /// defining text files and their sizes
    pub(crate) texts: Vec<(String, u64)>,
    /// what is stored of the text model
    pub(crate) sources: Vec<Arc<Source>>,
    /// tensors of the text model by name without prefix
    pub(crate) tensors: BTreeMap<String, Drawn>,
    /// tensors that the text model does not use, by what they are
    pub(crate) skipped: Count,
    /// what is odd, and no reason to refuse
    pub(crate) findings: Vec<Finding>,
}

/// A tensor of the text model: a stored one, or rows of one.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    /// which one
    pub source: usize,
    /// which rows of it, planes one below the other; all of it as it is when `None`
    pub rows: Option<Vec<Range<usize>>>,
}

impl Checkpoint {
    /// Opens a directory, or the snapshot that a name of the hub has in the local cache ([`hub::locate`]): config first,
    /// then every header, then each expected tensor's presence, shape, dtype and scales. No tensor data is read but the
    /// global scales of packed weights, and the output matrix of a tied checkpoint that stores it all the same: it is
    /// compared with the embedding.
    ///
    /// # Errors
    /// The first thing that is wrong, naming file, key or tensor.
    pub fn open(name: &Path) -> Result<Checkpoint, Error> {
        let path = name.display().to_string();
        if path.ends_with(".gguf") {
            refuse::directory(Path::new(""), &[path])?;
        }
        Checkpoint::open_found(hub::locate(name)?)
    }

    /// Opens what was located.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_found(found: Found) -> Result<Checkpoint, Error> {
        let Found { dir, origin } = found;
        let (dir, names) = (dir.as_path(), entries(&dir)?);
        refuse::directory(dir, &names)?;
        origin.as_ref().map_or(Ok(()), |origin| origin.check(dir, &names))?;
        let (mut config, quantization) = read_config(dir)?;
        if config.eos_token_ids.is_empty() {
            config.eos_file = "tokenizer_config.json";
            config.eos_token_ids.extend(tokenizer::eos(dir, config.vocab_size)?);
        }
        let shards = Arc::new(Shards::open(dir, &names)?);
        let texts = digest::texts(dir, &names)?;
        let mut out = Checkpoint {
            dir: dir.to_owned(),
            origin,
            config,
            quantization,
            shards,
            texts,
            sources: Vec::new(),
            tensors: BTreeMap::new(),
            skipped: Count::new(),
            findings: Vec::new(),
        };
        let notes = out.shards.notes.iter().cloned();
        out.findings = notes.map(|note| finding("index_differs", Severity::Info, note)).collect();
        out.match_tensors()?;
        Ok(out)
    }

    /// True when the text model has this tensor; `name` is without prefix.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a tensor of the text model as numbers; `name` is without prefix, e.g. `layers.0.linear_attn.A_log`. What
    /// is packed comes as f32.
    ///
    /// # Errors
    /// When there is no such tensor, no memory for it, or its bytes cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        Ok(self.weight(name)?.into_tensor())
    }

    /// Reads a tensor of the text model as it is stored: numbers, or codes with their scales. Names are those of
    /// [`crate::expected_shapes`], whatever the checkpoint calls them and however it puts them together.
    ///
    /// # Errors
    /// When there is no such tensor, no memory for it, or its bytes cannot be read.
    pub fn weight(&self, name: &str) -> Result<Weight, Error> {
        self.lazy(name)?.read_all()
    }

    /// Formats of the text model's tensors.
    pub fn formats(&self) -> BTreeSet<Format> {
        self.sources.iter().map(|s| s.format()).collect()
    }

    /// Format of a tensor of the text model, named without prefix.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.tensors.get(name).map(|drawn| self.sources[drawn.source].format())
    }

    /// Names of the text model's tensors, without prefix, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of the text model's tensors as they are stored, scales included.
    pub fn weight_bytes(&self) -> u64 {
        self.sources.iter().map(|s| s.bytes()).sum()
    }

    /// Bytes of the same weights where packed ones are held as f32, as the CPU backend does.
    pub fn unpacked_bytes(&self) -> u64 {
        let bytes = |s: &Arc<Source>| if s.format().is_packed() { 4 * s.parameters() } else { s.bytes() };
        self.sources.iter().map(bytes).sum()
    }

    /// Tensors that were skipped by name: `vision`, `mtp`; `tied_lm_head` for an output matrix stored beside the
    /// equal embedding; `activation_scales` and `kv_scales`, which weight-only inference has no use for.
    pub fn skipped(&self) -> &Count {
        &self.skipped
    }

    /// What is odd about the checkpoint and no reason to refuse it: an index that is wrong about a tower that is skipped,
    /// an output matrix beside an embedding that is said to be it.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Reads bytes of a tensor, from `at` bytes behind its start.
    pub(crate) fn read(&self, l: &Located, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.shards.read(l, at, bytes)
    }
}

/// A finding about the whole checkpoint.
pub(crate) fn finding(check: &str, severity: Severity, message: String) -> Finding {
    let (check, data) = (check.to_owned(), BTreeMap::new());
    Finding { check, severity, message, ordinal: None, layer: None, at: None, data }
}

/// Sorted names of the directory's entries.
fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let path = dir.display().to_string();
    if !dir.is_dir() {
        let why = "the argument is a file; give the directory it stands in".to_owned();
        return Err(Error::MissingFile { dir: path, file: "config.json".to_owned(), why });
    }
    let io = |error| Error::Io { file: path.clone(), error };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn read_config(dir: &Path) -> Result<(Config, Option<Quantization>), Error> {
    let path = |name: &str| dir.join(name);
    let (config, generation) = (path("config.json"), path("generation_config.json"));
    let modelopt = path("hf_quant_config.json");
    let text = read_text(&config, MAX_TEXT)?.ok_or_else(|| Error::MissingFile {
        dir: dir.display().to_string(),
        file: "config.json".to_owned(),
        why: "it says what shape the model has".to_owned(),
    })?;
    let (generated, quantised) = (read_text(&generation, MAX_TEXT)?, read_text(&modelopt, MAX_TEXT)?);
    let [config, generation, modelopt] = [config, generation, modelopt].map(|p| p.display().to_string());
    let generation = generated.as_deref().map(|text| (generation.as_str(), text));
    let modelopt = quantised.as_deref().map(|text| (modelopt.as_str(), text));
    Config::with_quantization((&config, &text), generation, modelopt)
}
