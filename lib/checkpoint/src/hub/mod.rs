//! Names of the hub: `ORG/NAME` or `ORG/NAME@REVISION`, found in the cache that `hf download` keeps. No network.
//!
//! The cache holds one directory a repository, `models--ORG--NAME`; in it `refs/REVISION` says which commit a branch or
//! tag is, and `snapshots/COMMIT` holds the files, as links to `blobs`. The crate hf-hub has a type for this, which knows
//! neither commits nor `HF_HUB_CACHE` and says of whatever is wrong only that there is no such file.

mod snapshot;

use crate::Error;
use crate::json::{line, short};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// What stands before the names of models in the cache.
const PREFIX: &str = "models--";
/// The revision when none is named.
const MAIN: &str = "main";
/// Most names of refs or snapshots in a message.
const MOST: usize = 4;
/// How a name is written.
const EXPECTED: &str = "expected a directory, or ORG/NAME or ORG/NAME@REVISION in the Hugging Face cache";

/// A checkpoint directory, and the repository it is a snapshot of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// the directory: as given, or inside the cache
    pub dir: PathBuf,
    /// the repository and commit, when the directory is a snapshot of the cache
    pub origin: Option<Origin>,
}

/// A commit of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `ORG/NAME`
    pub repository: String,
    /// the commit
    pub revision: String,
    /// the revision that was asked for; `None` for the default one
    asked: Option<String>,
}

impl Origin {
    /// What downloads it.
    fn command(&self) -> String {
        download(&self.repository, self.asked.as_deref())
    }
}

/// Finds what a command line calls a model: a directory that is there, else a snapshot in the cache that `HF_HUB_CACHE`,
/// `HF_HOME` or `XDG_CACHE_HOME` name, else the one in `~/.cache/huggingface/hub`.
///
/// # Errors
/// [`Error::NoDirectory`] for what cannot be a name, [`Error::NotCached`] for a name that the cache does not have.
pub fn locate(name: &Path) -> Result<Found, Error> {
    locate_with(name, |variable| std::env::var_os(variable))
}

/// As [`locate`], with the environment as a function of the variable's name.
///
/// # Errors
/// As [`locate`].
pub fn locate_with(name: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Result<Found, Error> {
    if name.exists() {
        return Ok(Found { dir: name.to_owned(), origin: origin(name) });
    }
    let parsed = Name::parse(name).map_err(|hint| Error::NoDirectory {
        path: line(&name.display().to_string()),
        hint: hint.map_or(String::new(), |reason| format!(", and no name of the hub: {reason}: {EXPECTED}")),
    })?;
    Cache::of(&parsed, variable)?.find(&parsed)
}

/// The repository and commit of a directory that lies where snapshots of a cache lie.
fn origin(dir: &Path) -> Option<Origin> {
    let dir = std::path::absolute(dir).ok()?;
    let part = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let (snapshots, commit) = (dir.parent()?, part(&dir)?);
    let repository = part(snapshots.parent()?)?.strip_prefix(PREFIX)?.replace("--", "/");
    let snapshot = part(snapshots)? == "snapshots" && is_commit(&commit) && valid(&repository).is_ok();
    snapshot.then(|| Origin { repository, asked: Some(commit.clone()), revision: commit })
}

fn download(repository: &str, revision: Option<&str>) -> String {
    let revision = revision.map_or(String::new(), |r| format!(" --revision {r}"));
    format!("hf download {repository}{revision}")
}

fn is_commit(word: &str) -> bool {
    word.len() == 40 && word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A name as it was given.
struct Name {
    /// all of it
    text: String,
    repository: String,
    revision: Option<String>,
}

impl Name {
    /// Takes a name apart. What is clearly a path is refused without a reason, anything else with one.
    fn parse(name: &Path) -> Result<Name, Option<String>> {
        let text = name.to_str().ok_or(None)?;
        if name.is_absolute() || text.starts_with('~') || text.starts_with("./") {
            return Err(None);
        }
        let (repository, revision) = match text.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (text, None),
        };
        valid(repository)?;
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_./+#=@".contains(c));
        if let Some(revision) = revision {
            let quoted = format!("revision {:?}", short(revision));
            if revision.is_empty() {
                return Err(Some("nothing stands behind the @".to_owned()));
            }
            if let Some(c) = revision.chars().find(|c| odd(*c)) {
                return Err(Some(format!("{c:?} cannot stand in {quoted}")));
            }
            let plain = |part: &str| !part.is_empty() && !part.starts_with(['.', '-']);
            if !revision.split('/').all(plain) {
                return Err(Some(format!("{quoted} is no branch, tag or commit")));
            }
        }
        let (repository, revision) = (repository.to_owned(), revision.map(str::to_owned));
        Ok(Name { text: text.to_owned(), repository, revision })
    }

    fn fail(&self, reason: &str) -> Error {
        let command = download(&self.repository, self.revision.as_deref());
        Error::NotCached { name: self.text.clone(), reason: reason.to_owned(), command }
    }
}

/// Whether a repository may have this name; the hub's own rules.
fn valid(repository: &str) -> Result<(), Option<String>> {
    let no = |reason: String| Err(Some(reason));
    let parts: Vec<&str> = repository.split('/').collect();
    if parts.len() > 2 {
        return no(format!("it has {} parts", parts.len()));
    }
    for part in &parts {
        if part.is_empty() {
            return no("a part of it is empty".to_owned());
        }
        let odd = |c: &char| !(c.is_ascii_alphanumeric() || "-_.".contains(*c));
        if let Some(c) = part.chars().find(odd) {
            return no(format!("{c:?} cannot stand in it"));
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) || *part == ".." {
            return no(format!("a part of it begins or ends with . or -, as {part:?} does"));
        }
        if part.contains("--") || part.contains("..") {
            return no(format!("{part:?} has -- or .. in it"));
        }
    }
    if repository.len() > 96 {
        return no(format!("it has {} characters and may have 96", repository.len()));
    }
    Ok(())
}

/// The directory of all repositories.
struct Cache {
    dir: PathBuf,
    /// the variable it was found by
    from: &'static str,
}

impl Cache {
    fn of(name: &Name, variable: impl Fn(&str) -> Option<OsString>) -> Result<Cache, Error> {
        let set = |variable_name: &str| variable(variable_name).filter(|v| !v.is_empty()).map(PathBuf::from);
        const PLACES: [(&str, &str); 5] = [
            ("HF_HUB_CACHE", ""),
            ("HUGGINGFACE_HUB_CACHE", ""),
            ("HF_HOME", "hub"),
            ("XDG_CACHE_HOME", "huggingface/hub"),
            ("HOME", ".cache/huggingface/hub"),
        ];
        let mut places =
            PLACES.iter().filter_map(|(from, rest)| Some((*from, expanded(set(from)?, &set), rest)));
        match places.next() {
            Some((from, dir, &"")) => Ok(Cache { dir, from }),
            Some((from, dir, rest)) => Ok(Cache { dir: dir.join(rest), from }),
            None => Err(name.fail("none of HF_HUB_CACHE, HF_HOME and HOME says where the cache is")),
        }
    }

    /// The snapshot of a name.
    fn find(&self, name: &Name) -> Result<Found, Error> {
        let folder = format!("{PREFIX}{}", name.repository.replace('/', "--"));
        let (root, cache) = (self.dir.join(&folder), self.name());
        if !self.dir.is_dir() {
            return Err(name.fail(&format!("{cache} is not there")));
        }
        if !root.is_dir() {
            let like = names(&self.dir).into_iter().find(|n| n.eq_ignore_ascii_case(&folder));
            let like = like.and_then(|n| Some(n.strip_prefix(PREFIX)?.replace("--", "/")));
            let hint = like.map_or(String::new(), |n| format!("; it has {n}"));
            return Err(name.fail(&format!("{cache} has no such model{hint}")));
        }
        let wanted = name.revision.as_deref().unwrap_or(MAIN);
        let snapshot = |commit: &str| root.join("snapshots").join(commit);
        let revision = match (is_commit(wanted), reference(&root, wanted)?) {
            (false, Some(commit)) if snapshot(&commit).is_dir() => commit,
            (false, Some(commit)) => {
                let reason =
                    format!("{cache} says that {wanted} is commit {commit} and has no snapshot of it");
                return Err(name.fail(&(reason + &self.there(name, &root))));
            }
            _ if snapshot(wanted).is_dir() && !wanted.contains('/') => wanted.to_owned(),
            _ => {
                let what = if name.revision.is_some() { "revision" } else { "branch" };
                let reason = format!("{cache} has the model, and no {what} {wanted} of it");
                return Err(name.fail(&(reason + &self.there(name, &root))));
            }
        };
        let dir = snapshot(&revision);
        let origin = Origin { repository: name.repository.clone(), revision, asked: name.revision.clone() };
        Ok(Found { dir, origin: Some(origin) })
    }

    fn name(&self) -> String {
        match self.from {
            "HOME" => format!("the cache {}", self.dir.display()),
            from => format!("the cache {} ({from})", self.dir.display()),
        }
    }

    /// What could be named instead.
    fn there(&self, name: &Name, root: &Path) -> String {
        let whole = |list: Vec<String>| {
            let more = list.len().saturating_sub(MOST);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            list.into_iter().take(MOST).collect::<Vec<_>>().join(", ") + &more
        };
        let as_names =
            |list: Vec<String>| whole(list.iter().map(|r| format!("{}@{r}", name.repository)).collect());
        let snapshots = names(&root.join("snapshots"));
        let mut refs = Vec::new();
        references(&root.join("refs"), "", 0, &mut refs);
        refs.retain(|r| reference(root, r).is_ok_and(|c| c.is_some_and(|c| snapshots.contains(&c))));
        match (refs.is_empty(), snapshots.is_empty()) {
            (false, _) => format!("; it has {}", as_names(refs)),
            (true, false) => format!("; it has {}", as_names(snapshots)),
            (true, true) => "; it has no snapshot at all".to_owned(),
        }
    }
}

/// A path as huggingface_hub reads it: `~` at its start is the home, `$NAME` and `${NAME}` are variables; those that are
/// not set stay as they are.
fn expanded(path: PathBuf, set: &impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let path = match (path.strip_prefix("~"), set("HOME")) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    };
    let Some(text) = path.to_str() else { return path };
    let (mut out, mut rest) = (OsString::new(), text);
    while let Some(at) = rest.find('$') {
        let (before, variable) = rest.split_at(at);
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let (name, long) = match variable.strip_prefix("${").and_then(|v| v.split_once('}')) {
            Some((name, _)) => (name, name.len() + 3),
            None => {
                let name = variable[1..].split(word).next().unwrap_or_default();
                (name, name.len() + 1)
            }
        };
        out.push(before);
        match set(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push(value),
            None => out.push(&variable[..long]),
        }
        rest = &variable[long..];
    }
    out.push(rest);
    PathBuf::from(out)
}

/// The commit that a branch or tag is, as the cache says.
fn reference(root: &Path, revision: &str) -> Result<Option<String>, Error> {
    let path = root.join("refs").join(revision);
    if !path.is_file() {
        return Ok(None);
    }
    let io = |error| Error::Io { file: path.display().to_string(), error };
    let mut text = Vec::new();
    fs::File::open(&path).map_err(io)?.take(256).read_to_end(&mut text).map_err(io)?;
    let text = String::from_utf8_lossy(&text);
    let commit = text.trim();
    match Path::new(commit).components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] if !commit.chars().any(char::is_control) => Ok(Some(commit.to_owned())),
        _ => Err(Error::BadReference { file: path.display().to_string(), found: short(&text) }),
    }
}

/// All refs below a directory, by name, sorted.
fn references(dir: &Path, prefix: &str, depth: usize, out: &mut Vec<String>) {
    for name in names(dir) {
        let (path, full) = (dir.join(&name), format!("{prefix}{name}"));
        match path.is_dir() {
            true if depth < 4 => references(&path, &format!("{full}/"), depth + 1, out),
            true => {}
            false => out.push(full),
        }
    }
}

/// Sorted names of a directory's entries; none when it cannot be read.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut out: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    out.sort();
    out
}
