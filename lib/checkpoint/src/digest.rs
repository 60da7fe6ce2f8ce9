//! sha256 of every file that defines the model, and one digest over them all.

use crate::chat;
use crate::checkpoint::Checkpoint;
use crate::keys::open_file;
use crate::shards::Shard;
use crate::{Error, shards};
use cute_records::FileDigest;
use cute_records::digest::{Hasher, sha256_reader};
use rayon::prelude::*;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Files beside the weights that decide what the model says.
pub(crate) const DEFINING: [&str; 7] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    shards::INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Reads an open file from its start without moving its cursor, which several threads may share.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Checkpoint {
    /// sha256 of every file that defines the model, in name order. Files are read in parallel, the shards
    /// through the handles they were opened with; `progress` hears the bytes of each block.
    ///
    /// # Errors
    /// When a file cannot be read, or has another size than when the checkpoint was opened.
    pub fn digest(&self, progress: impl Fn(u64) + Sync) -> Result<Vec<FileDigest>, Error> {
        let mut files: Vec<FileDigest> =
            self.shards.files.par_iter().map(|s| self.shard(s, &progress)).collect::<Result<_, _>>()?;
        for (name, bytes) in &self.texts {
            let path = self.dir.join(name);
            let (handle, _) = open_file(&path)?;
            files.push(digest(&handle, name, &path.display().to_string(), *bytes, &progress)?);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    fn shard(&self, shard: &Shard, progress: &(impl Fn(u64) + Sync)) -> Result<FileDigest, Error> {
        digest(&shard.handle, &shard.name, &shard.path, shard.bytes, progress)
    }

    /// Bytes [`Checkpoint::digest`] will read.
    pub fn total_bytes(&self) -> u64 {
        let weights: u64 = self.shards.files.iter().map(|s| s.bytes).sum();
        weights + self.texts.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// One digest over all files: sha256 over lines of name, a zero byte and the file's sha256.
    pub fn model_digest(files: &[FileDigest]) -> String {
        let mut h = Hasher::new();
        for f in files {
            h.update(format!("{}\0{}\n", f.name, f.sha256).as_bytes());
        }
        h.hex()
    }
}

/// sha256 of one file of a directory, whatever it is; `None` when there is none.
pub(crate) fn file(dir: &Path, name: &str) -> Result<Option<FileDigest>, Error> {
    let path = dir.join(name);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let (handle, bytes) = open_file(&path)?;
    digest(&handle, name, &path.display().to_string(), bytes, &|_| ()).map(Some)
}

/// The defining text files among the directory's entries, with their sizes.
pub(crate) fn texts(dir: &Path, names: &[String]) -> Result<Vec<(String, u64)>, Error> {
    let defining = names.iter().filter(|n| DEFINING.contains(&n.as_str())).cloned();
    defining.chain(chat::more(dir)).map(|n| open_file(&dir.join(&n)).map(|(_, bytes)| (n, bytes))).collect()
}

fn digest(
    file: &File,
    name: &str,
    path: &str,
    bytes: u64,
    progress: &(impl Fn(u64) + Sync),
) -> Result<FileDigest, Error> {
    let mut read = 0;
    let sha256 = sha256_reader(FromStart { file, at: 0 }, |n| {
        read += n;
        progress(n);
    })
    .map_err(|error| Error::Io { file: path.to_owned(), error })?;
    if read != bytes {
        return Err(Error::Changed { file: path.to_owned(), found: read, expected: bytes });
    }
    Ok(FileDigest { name: name.to_owned(), bytes, sha256 })
}
