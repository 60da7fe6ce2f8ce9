//! Whether a snapshot of the cache is whole: a download that was interrupted leaves links without their blobs, or no
//! links, and blobs that are called `.incomplete`.

use super::{Origin, names};
use crate::Error;
use crate::digest::DEFINING;
use crate::keys::{MAX_INDEX, read_text};
use crate::shards;
use serde_json::Value;
use std::path::Path;

/// Files that every checkpoint of the hub has which answers to text.
const EVERY: [&str; 3] = ["config.json", "tokenizer.json", "tokenizer_config.json"];

impl Origin {
    /// Refuses a snapshot in which a file is missing that this build would read. `names` are the entries of `dir`, sorted.
    ///
    /// What belongs to a snapshot is said by the index of the weights and, where `hf download` kept it, by the repository's
    /// list of files. Where there is neither and a download was interrupted, the files that every model has are expected.
    ///
    /// # Errors
    /// [`Error::Incomplete`] with the first such file; also when the index is broken.
    pub(crate) fn check(&self, dir: &Path, names: &[String]) -> Result<(), Error> {
        let fail = |file: &str, why: String| {
            let (dir, file) = (dir.display().to_string(), file.to_owned());
            Err(Error::Incomplete { dir, file, why, command: self.command() })
        };
        let read = |n: &&String| DEFINING.contains(&n.as_str()) || n.ends_with(".safetensors");
        let has = |n: &str| names.iter().any(|name| name == n);
        for name in names.iter().filter(read) {
            let path = dir.join(name);
            if path.symlink_metadata().is_ok() && !path.exists() {
                let target = std::fs::read_link(&path).unwrap_or_default();
                let blob = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return fail(name, format!("the link is there and its blob {blob} is not"));
            }
        }
        let interrupted = self.interrupted(dir);
        let listed = self.listed(dir);
        if let Some(listed) = &listed {
            let single = |n: &str| n == shards::SINGLE && !listed.iter().any(|l| l == shards::INDEX);
            let absent = |n: &&String| (DEFINING.contains(&n.as_str()) || single(n)) && !has(n);
            if let Some(absent) = listed.iter().find(absent) {
                return fail(absent, format!("the repository's list of files has it{interrupted}"));
            }
        } else if !interrupted.is_empty()
            && let Some(absent) = EVERY.iter().find(|n| !has(n))
        {
            return fail(absent, format!("it is not in the snapshot{interrupted}"));
        }
        match shards::absent(dir, names)? {
            Some((file, why)) => fail(&file, format!("{why}{interrupted}")),
            None if !has(EVERY[0]) => fail(EVERY[0], format!("it is not in the snapshot{interrupted}")),
            None => Ok(()),
        }
    }

    /// Says that a download was cut off, if one was.
    fn interrupted(&self, dir: &Path) -> String {
        let blobs = dir.join("../../blobs");
        let n = names(&blobs).iter().filter(|n| n.ends_with(".incomplete")).count();
        match n {
            0 => String::new(),
            1 => ", and one blob is incomplete: its download goes on or was interrupted".to_owned(),
            n => format!(", and {n} blobs are incomplete: their download goes on or was interrupted"),
        }
    }

    /// All files of the commit, as `hf download` was told by the hub; `None` where it kept no list that can be read.
    fn listed(&self, dir: &Path) -> Option<Vec<String>> {
        let path = dir.join("../../trees").join(format!("{}.json", self.revision));
        let tree: Value = serde_json::from_slice(&read_text(&path, MAX_INDEX).ok()??).ok()?;
        let known = tree.get("format_version") == Some(&Value::from(1));
        let files = tree.get("files").filter(|_| known)?.as_object()?;
        Some(files.keys().cloned().collect())
    }
}
