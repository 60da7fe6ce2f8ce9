//! The safetensors files of a directory: one, or several with an index, each tensor exactly once.

use crate::Error;
use crate::header::{self, Entry};
use crate::keys::{open_file, read_text};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Name of the file that says which tensor stands in which shard.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An open safetensors file.
#[derive(Debug)]
pub(crate) struct Shard {
    /// name in the directory
    pub name: String,
    /// path, for errors
    pub path: String,
    /// the open file: reads go on even if the name is given to another file
    pub handle: File,
    /// its size
    pub bytes: u64,
}

/// A tensor and the shard it stands in.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// position of the shard in name order
    pub shard: usize,
    /// what the header says
    pub entry: Entry,
}

/// All shards of a directory, and all tensors by full name.
#[derive(Debug)]
pub(crate) struct Shards {
    /// in name order
    pub files: Vec<Shard>,
    /// by full name
    pub tensors: BTreeMap<String, Located>,
}

impl Shards {
    /// Opens the safetensors files among `names` (the directory's entries, sorted) and reads their headers.
    pub fn open(dir: &Path, names: &[String]) -> Result<Shards, Error> {
        let files: Vec<&String> = names.iter().filter(|n| n.ends_with(".safetensors")).collect();
        let index = Index::read(dir)?;
        match &index {
            Some(index) => index.check_files(dir, &files)?,
            None => check_numbering(dir, &files)?,
        }
        let mut out = Shards { files: Vec::new(), tensors: BTreeMap::new() };
        for name in files {
            let path = dir.join(name);
            let (handle, bytes) = open_file(&path)?;
            let path = path.display().to_string();
            let entries = header::read(&handle, bytes, &path)?;
            out.files.push(Shard { name: name.clone(), path, handle, bytes });
            out.add(entries)?;
        }
        if let Some(index) = &index {
            index.check_tensors(&out)?;
        }
        Ok(out)
    }

    /// Adds the tensors of the last file.
    fn add(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let shard = self.files.len() - 1;
        for entry in entries {
            if let Some(other) = self.tensors.get(&entry.name) {
                return Err(Error::DuplicateTensor {
                    tensor: entry.name,
                    first: self.files[other.shard].path.clone(),
                    second: self.files[shard].path.clone(),
                });
            }
            self.tensors.insert(entry.name.clone(), Located { shard, entry });
        }
        Ok(())
    }
}

/// Which tensor stands in which file.
struct Index {
    path: String,
    map: BTreeMap<String, String>,
}

impl Index {
    fn read(dir: &Path) -> Result<Option<Index>, Error> {
        let path = dir.join(INDEX);
        let Some(text) = read_text(&path)? else { return Ok(None) };
        let path = path.display().to_string();
        match header::string_map(&text, "weight_map") {
            Ok(pairs) => Ok(Some(Index { path, map: pairs.into_iter().collect() })),
            Err(e) => Err(Error::Json { file: path, reason: e.to_string() }),
        }
    }

    fn error<T>(&self, reason: String) -> Result<T, Error> {
        Err(Error::Index { file: self.path.clone(), reason })
    }

    /// Every file the index names is there, and no other.
    fn check_files(&self, dir: &Path, files: &[&String]) -> Result<(), Error> {
        for (tensor, file) in &self.map {
            if file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
                return self.error(format!(
                    "tensor {tensor} is said to be in {file:?}: expected a .safetensors file of {}",
                    dir.display()
                ));
            }
            if files.binary_search(&file).is_err() {
                return self.error(format!("shard {file} is missing: tensor {tensor} is said to be in it"));
            }
        }
        match files.iter().find(|f| !self.map.values().any(|named| named == **f)) {
            Some(stray) => {
                self.error(format!("{stray} stands beside the shards, but no tensor is said to be in it"))
            }
            None => Ok(()),
        }
    }

    /// Every tensor is where the index says, and none elsewhere.
    fn check_tensors(&self, shards: &Shards) -> Result<(), Error> {
        for (tensor, file) in &self.map {
            match shards.tensors.get(tensor).map(|l| &shards.files[l.shard].name) {
                None => {
                    return self.error(format!("tensor {tensor} is not in shard {file}, nor in any other"));
                }
                Some(found) if found != file => {
                    return self.error(format!("tensor {tensor} is said to be in {file}, it is in {found}"));
                }
                Some(_) => {}
            }
        }
        match shards.tensors.iter().find(|(name, _)| !self.map.contains_key(*name)) {
            Some((name, l)) => {
                self.error(format!("tensor {name} of {} is not listed", shards.files[l.shard].name))
            }
            None => Ok(()),
        }
    }
}

/// Without an index, the numbers in `…-00001-of-00002.safetensors` say how many files belong together.
fn check_numbering(dir: &Path, files: &[&String]) -> Result<(), Error> {
    let missing = |file: String, why: &str| {
        Err(Error::MissingFile { dir: dir.display().to_string(), file, why: why.to_owned() })
    };
    if files.is_empty() {
        return missing("*.safetensors".to_owned(), "the weights are read from safetensors files");
    }
    for name in files {
        let Some((stem, _, of)) = numbered(name) else { continue };
        let absent = (1..=of).map(|i| format!("{stem}-{i:05}-of-{of:05}.safetensors"));
        if let Some(absent) = absent.into_iter().find(|n| files.binary_search(&n).is_err()) {
            return missing(absent, &format!("{name} is one of {of} shards"));
        }
    }
    Ok(())
}

/// Splits `stem-00001-of-00002.safetensors` into stem and numbers.
fn numbered(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, i) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
    Some((stem, number(i)?, number(of)?))
}
