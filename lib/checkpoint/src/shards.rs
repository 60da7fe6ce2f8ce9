//! The safetensors files of a directory: one, or several with an index, each tensor exactly once.

use crate::Error;
use crate::expected::other_tower;
use crate::header::{self, Entry};
use crate::json::{reason, short};
use crate::keys::{MAX_INDEX, open_file, read_text};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the file that says which tensor stands in which shard.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Name of the only file of a checkpoint that is not sharded.
pub(crate) const SINGLE: &str = "model.safetensors";

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
    /// bytes of tensors read so far
    pub read: AtomicU64,
    /// what is wrong with the index, and concerns only towers that are skipped
    pub notes: Vec<String>,
}

impl Shards {
    /// Opens the checkpoint's safetensors files among `names` (the directory's entries, sorted) and reads
    /// their headers.
    ///
    /// As in transformers, other safetensors files may lie beside `model.safetensors` or beside the shards of
    /// an index; they are no part of the model.
    pub fn open(dir: &Path, names: &[String]) -> Result<Shards, Error> {
        let index = Index::read(dir)?;
        let files = match &index {
            Some(index) => index.files(dir, names)?,
            None if names.iter().any(|n| n == SINGLE) => vec![SINGLE.to_owned()],
            None => unindexed(dir, names)?,
        };
        let mut out = Shards {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            read: AtomicU64::new(0),
            notes: Vec::new(),
        };
        for name in files {
            let path = dir.join(&name);
            let (handle, bytes) = open_file(&path)?;
            let path = path.display().to_string();
            let entries = header::read(&handle, bytes, &path)?;
            out.files.push(Shard { name, path, handle, bytes });
            out.add(entries)?;
        }
        if let Some(index) = &index {
            out.notes = index.check_tensors(&out)?;
        }
        Ok(out)
    }

    /// Reads bytes of a tensor, from `at` bytes behind its start.
    pub fn read(&self, l: &Located, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let shard = &self.files[l.shard];
        let start = l.entry.start + at;
        let unreadable = |at, why| {
            let (file, tensor) = (shard.path.clone(), l.entry.name.clone());
            Err(Error::Unreadable { file, tensor, at, why })
        };
        match shard.handle.read_exact_at(bytes, start) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let found = shard.handle.metadata().map_or(0, |m| m.len());
                return unreadable(found.max(start), changed(found, shard.bytes));
            }
            Err(error) => return unreadable(start, error.to_string()),
        }
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
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

/// What is said of a file that is shorter or longer than it was.
pub(crate) fn changed(found: u64, expected: u64) -> String {
    format!("{found} bytes now, {expected} when it was opened: the file changed meanwhile")
}

/// The first safetensors file that should be among `names` (the directory's entries, sorted) and is not, and who says so.
///
/// # Errors
/// When the index cannot be read.
pub(crate) fn absent(dir: &Path, names: &[String]) -> Result<Option<(String, String)>, Error> {
    let there = |name: &String| names.binary_search(name).is_ok();
    Ok(match Index::read(dir)? {
        Some(index) => {
            let needed = |(tensor, file): &(String, String)| other_tower(tensor).is_none() && !there(file);
            let absent = index.map.into_iter().filter(needed).min_by(|a, b| a.1.cmp(&b.1));
            absent.map(|(tensor, file)| {
                (short(&file), format!("tensor {} is said to be in it", short(&tensor)))
            })
        }
        None if there(&SINGLE.to_owned()) => None,
        None => match unindexed(dir, names) {
            Err(Error::MissingFile { file, why, .. }) => Some((file, why)),
            _ => None,
        },
    })
}

/// Which tensor stands in which file.
struct Index {
    path: String,
    map: BTreeMap<String, String>,
}

impl Index {
    fn read(dir: &Path) -> Result<Option<Index>, Error> {
        let path = dir.join(INDEX);
        let Some(text) = read_text(&path, MAX_INDEX)? else { return Ok(None) };
        let path = path.display().to_string();
        match header::string_map(&text, "weight_map") {
            Ok(pairs) => Ok(Some(Index { path, map: pairs.into_iter().collect() })),
            Err(e) => Err(Error::Json { file: path, reason: reason(&e) }),
        }
    }

    fn error<T>(&self, reason: String) -> Result<T, Error> {
        Err(Error::Index { file: self.path.clone(), reason })
    }

    /// The files the index names: each that is needed is there, and none of the same series is left out.
    fn files(&self, dir: &Path, names: &[String]) -> Result<Vec<String>, Error> {
        let mut files = BTreeSet::new();
        for (tensor, file) in &self.map {
            if file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
                let dir = dir.display();
                return self.error(format!(
                    "tensor {tensor} is said to be in {file:?}: expected a .safetensors file of {dir}"
                ));
            }
            match names.binary_search(file) {
                Ok(_) => _ = files.insert(file.clone()),
                Err(_) if other_tower(tensor).is_some() => {}
                Err(_) => {
                    return self
                        .error(format!("shard {file} is missing: tensor {tensor} is said to be in it"));
                }
            }
        }
        let series: BTreeSet<&str> =
            files.iter().filter_map(|f| numbered(f)).map(|(stem, ..)| stem).collect();
        let stray = names
            .iter()
            .filter(|n| !files.contains(*n))
            .find(|n| *n == SINGLE || numbered(n).is_some_and(|(stem, ..)| series.contains(stem)));
        match stray {
            Some(stray) => self.error(format!("no tensor is said to be in {stray}, which stands beside it")),
            None if files.is_empty() => self.error("its weight_map names no tensor".to_owned()),
            None => Ok(files.into_iter().collect()),
        }
    }

    /// Every tensor is where the index says, and none elsewhere. Where that fails for a tower that is skipped, it is only
    /// said: one sentence a tower, with the first tensor.
    fn check_tensors(&self, shards: &Shards) -> Result<Vec<String>, Error> {
        let misplaced = self.map.iter().filter_map(|(tensor, file)| {
            let why = match shards.tensors.get(tensor).map(|l| &shards.files[l.shard].name) {
                Some(found) if found == file => return None,
                Some(found) => format!("tensor {tensor} is said to be in {file}, it is in {found}"),
                None if shards.files.iter().any(|f| f.name == *file) => {
                    format!("tensor {tensor} is not in shard {file}, nor in any other")
                }
                None => format!("shard {file} is missing: tensor {tensor} is said to be in it"),
            };
            Some((tensor, why))
        });
        let unlisted = shards.tensors.iter().filter(|(tensor, _)| !self.map.contains_key(*tensor));
        let unlisted = unlisted.map(|(tensor, l)| {
            (tensor, format!("tensor {tensor} of {} is not listed", shards.files[l.shard].name))
        });
        let mut towers: BTreeMap<&str, (String, usize)> = BTreeMap::new();
        for (tensor, why) in misplaced.chain(unlisted) {
            match other_tower(tensor) {
                None => return self.error(why),
                Some(tower) => towers.entry(tower).or_insert((why, 0)).1 += 1,
            }
        }
        let note = |(tower, (why, n)): (&str, (String, usize))| {
            let more = if n > 1 { format!("; it is wrong about {} more", n - 1) } else { String::new() };
            format!("{}: {why}{more}: of {tower}, which is skipped", self.path)
        };
        Ok(towers.into_iter().map(note).collect())
    }
}

/// Without an index every safetensors file counts, and the numbers in `…-00001-of-00002.safetensors` say how
/// many belong together.
fn unindexed(dir: &Path, names: &[String]) -> Result<Vec<String>, Error> {
    let missing =
        |file: String, why: String| Err(Error::MissingFile { dir: dir.display().to_string(), file, why });
    let files: Vec<String> = names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
    if files.is_empty() {
        return missing(SINGLE.to_owned(), "the weights are read from safetensors files".to_owned());
    }
    for name in &files {
        let Some((stem, _, of)) = numbered(name) else { continue };
        let mut all = (1..=of).map(|i| format!("{stem}-{i:05}-of-{of:05}.safetensors"));
        if let Some(absent) = all.find(|n| files.binary_search(n).is_err()) {
            return missing(absent, format!("{name} is one of {of} shards"));
        }
    }
    Ok(files)
}

/// Splits `stem-00001-of-00002.safetensors` into stem and numbers.
fn numbered(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, i) = rest.rsplit_once('-')?;
    let number = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
    Some((stem, number(i)?, number(of)?))
}
