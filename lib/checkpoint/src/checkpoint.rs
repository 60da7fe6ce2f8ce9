//! A checkpoint directory: opened and checked by its headers alone, tensors read on demand.

use crate::config::Config;
use crate::expected::{Expected, expected, other_tower};
use crate::keys::{MAX_TEXT, read_text};
use crate::shards::{Located, Shards};
use crate::tensor::{Dtype, Tensor};
use crate::{Error, digest, refuse};
use cute_records::Count;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Prefix of the text model's tensors in a wrapper checkpoint.
const WRAPPED: &str = "model.language_model.";
/// Prefix of the text model's tensors in a flat checkpoint.
const FLAT: &str = "model.";
/// The output matrix; it has no prefix in either.
const LM_HEAD: &str = "lm_head.weight";

/// A checkpoint whose config and headers were found consistent.
#[derive(Debug)]
pub struct Checkpoint {
    /// the directory, as given
    pub dir: PathBuf,
    /// shape of the text model
    pub config: Config,
    pub(crate) shards: Shards,
    /// defining text files and their sizes
    pub(crate) texts: Vec<(String, u64)>,
    /// tensors of the text model by name without prefix
    pub(crate) tensors: BTreeMap<String, Weight>,
    /// tensors of other towers, by tower
    pub(crate) skipped: Count,
}

/// A tensor of the text model and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Weight {
    pub dtype: Dtype,
    pub module: &'static str,
    pub located: Located,
}

impl Checkpoint {
    /// Opens a directory: config first, then every header, then each expected tensor's presence, shape and
    /// dtype. No tensor data is read, except that a tied checkpoint which stores its output matrix all the
    /// same has it compared with the embedding.
    ///
    /// # Errors
    /// The first thing that is wrong, naming file, key or tensor.
    pub fn open(dir: &Path) -> Result<Checkpoint, Error> {
        let names = entries(dir)?;
        refuse::directory(dir, &names)?;
        let config = read_config(dir)?;
        let shards = Shards::open(dir, &names)?;
        let texts = digest::texts(dir, &names)?;
        let mut out = Checkpoint {
            dir: dir.to_owned(),
            config,
            shards,
            texts,
            tensors: BTreeMap::new(),
            skipped: Count::new(),
        };
        out.match_tensors()?;
        Ok(out)
    }

    /// True when the text model has this tensor; `name` is without prefix.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a tensor of the text model; `name` is without prefix, e.g. `layers.0.linear_attn.A_log`.
    ///
    /// # Errors
    /// When there is no such tensor, no memory for it, or its bytes cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let weight = self.tensors.get(name).ok_or_else(|| Error::NoSuchTensor {
            dir: self.dir.display().to_string(),
            tensor: name.to_owned(),
        })?;
        let entry = &weight.located.entry;
        let mut bytes = Vec::new();
        let room = usize::try_from(entry.bytes).ok().filter(|&n| bytes.try_reserve_exact(n).is_ok());
        let Some(room) = room else {
            let file = self.shards.files[weight.located.shard].path.clone();
            return Err(Error::Memory { file, tensor: entry.name.clone(), bytes: entry.bytes });
        };
        bytes.resize(room, 0);
        self.read(&weight.located, 0, &mut bytes)?;
        Ok(Tensor { name: name.to_owned(), dtype: weight.dtype, shape: entry.shape.clone(), bytes })
    }

    /// Names of the text model's tensors, without prefix, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of the text model's tensors.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|w| w.located.entry.bytes).sum()
    }

    /// Tensors that were skipped by name, by tower: `vision`, `mtp`, and `tied_lm_head` for an output matrix
    /// stored beside the equal embedding.
    pub fn skipped(&self) -> &Count {
        &self.skipped
    }

    /// Reads bytes of a tensor, from `at` bytes behind its start.
    pub(crate) fn read(&self, l: &Located, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let shard = &self.shards.files[l.shard];
        shard.handle.read_exact_at(bytes, l.entry.start + at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Changed {
                file: shard.path.clone(),
                found: shard.handle.metadata().map_or(0, |m| m.len()),
                expected: shard.bytes,
            },
            _ => Error::Io { file: shard.path.clone(), error },
        })
    }

    /// Finds every expected tensor and accounts for every other.
    fn match_tensors(&mut self) -> Result<(), Error> {
        let prefix = self.prefix()?;
        let mut rest: BTreeSet<&str> = self.shards.tensors.keys().map(String::as_str).collect();
        let full = |name: &str| if name == LM_HEAD { LM_HEAD.to_owned() } else { format!("{prefix}{name}") };
        let (mut tensors, mut missing) = (BTreeMap::new(), Vec::new());
        for want in expected(&self.config) {
            let name = full(&want.name);
            rest.remove(name.as_str());
            match self.shards.tensors.get(&name) {
                Some(located) => {
                    tensors.insert(want.name.clone(), self.check(&want, located)?);
                }
                None => missing.push((name, want.shape)),
            }
        }
        let mut skipped = Count::new();
        let mut unexpected = None;
        for name in rest {
            let tower = match other_tower(name) {
                None if name == LM_HEAD && self.config.tie_word_embeddings && missing.is_empty() => {
                    self.check_tied_head(&full("embed_tokens.weight"))?;
                    Some("tied_lm_head")
                }
                tower => tower,
            };
            match tower {
                Some(tower) => *skipped.entry(tower.to_owned()).or_default() += 1,
                None => unexpected = unexpected.or(Some(name)),
            }
        }
        if let Some((tensor, shape)) = missing.first() {
            return Err(self.missing(tensor, shape, missing.len() - 1));
        }
        if let Some(name) = unexpected {
            return Err(self.unexpected(name, &prefix));
        }
        (self.tensors, self.skipped) = (tensors, skipped);
        Ok(())
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

    fn check(&self, want: &Expected, located: &Located) -> Result<Weight, Error> {
        let entry = &located.entry;
        let file = || self.shards.files[located.shard].path.clone();
        let Some(dtype) = Dtype::from_safetensors(entry.dtype) else {
            let found = format!("{:?}", entry.dtype);
            let quantised = found.starts_with("F8") || matches!(found.as_str(), "U8" | "I8" | "F4" | "I32");
            let hint = if quantised { " (it looks quantised)" } else { "" }.to_owned();
            return Err(Error::Dtype { file: file(), tensor: entry.name.clone(), found, hint });
        };
        if entry.shape != want.shape {
            return Err(Error::Shape {
                file: file(),
                tensor: entry.name.clone(),
                found: format!("{:?}", entry.shape),
                expected: format!("{:?}", want.shape),
            });
        }
        Ok(Weight { dtype, module: want.module, located: located.clone() })
    }

    fn missing(&self, tensor: &str, shape: &[usize], others: usize) -> Error {
        let more = match others {
            _ if tensor == LM_HEAD => ", because config.json says tie_word_embeddings false".to_owned(),
            0 => String::new(),
            n => format!("; {n} more are missing"),
        };
        Error::MissingTensor {
            dir: self.dir.display().to_string(),
            tensor: tensor.to_owned(),
            expected: format!("{shape:?}"),
            more,
        }
    }

    fn unexpected(&self, name: &str, prefix: &str) -> Error {
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

    /// An output matrix stored in a tied checkpoint must be the embedding, bit for bit.
    fn check_tied_head(&self, embed: &str) -> Result<(), Error> {
        let (Some(head), Some(embedding)) =
            (self.shards.tensors.get(LM_HEAD), self.shards.tensors.get(embed))
        else {
            return Ok(());
        };
        let differs = |at: String| Error::TiedHeadDiffers {
            file: self.shards.files[head.shard].path.clone(),
            head: LM_HEAD.to_owned(),
            embed: embed.to_owned(),
            at,
        };
        if head.entry.shape != embedding.entry.shape || head.entry.dtype != embedding.entry.dtype {
            return Err(differs(" in shape or dtype".to_owned()));
        }
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        while at < head.entry.bytes {
            let n = (head.entry.bytes - at).min(1 << 20) as usize;
            self.read(head, at, &mut a[..n])?;
            self.read(embedding, at, &mut b[..n])?;
            if let Some(i) = a[..n].iter().zip(&b[..n]).position(|(x, y)| x != y) {
                return Err(differs(format!(" at byte {}", at + i as u64)));
            }
            at += n as u64;
        }
        Ok(())
    }
}

/// Sorted names of the directory's entries.
fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let path = dir.display().to_string();
    if path.ends_with(".gguf") {
        refuse::directory(Path::new(""), std::slice::from_ref(&path))?;
    }
    if !dir.exists() {
        let hub = !dir.is_absolute() && dir.components().count() == 2 && !path.starts_with('.');
        let hint = match hub {
            true => {
                format!("; if it is a name of the hub, `hf download {path}` prints the directory to give")
            }
            false => String::new(),
        };
        return Err(Error::NoDirectory { path, hint });
    }
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

fn read_config(dir: &Path) -> Result<Config, Error> {
    let path = |name: &str| dir.join(name);
    let (config, generation) = (path("config.json"), path("generation_config.json"));
    let text = read_text(&config, MAX_TEXT)?.ok_or_else(|| Error::MissingFile {
        dir: dir.display().to_string(),
        file: "config.json".to_owned(),
        why: "it says what shape the model has".to_owned(),
    })?;
    let generated = read_text(&generation, MAX_TEXT)?;
    let (config, generation) = (config.display().to_string(), generation.display().to_string());
    Config::parse((&config, &text), generated.as_deref().map(|text| (generation.as_str(), text)))
}
