//! Compiled kernels on disk, one file a unit and architecture, safe to share between processes.
//!
//! A file is called `KEY.nvrtc-VERSION.cubin`. The key is a sha256 of all that decides the result but the compiler:
//! text, headers, options, architecture. With NVRTC at hand only its own version is taken; without it the newest
//! version there, so that a filled cache serves machines that have no compiler. Content is never trusted: a file
//! opens with the sha256 of key and cubin, and whatever does not fit is compiled again.

use super::gpu::Unit;
use super::{nvrtc, sources};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// First bytes of a file; changes with its layout.
const MAGIC: &[u8; 16] = b"cute cubin v1   ";

/// A directory of cubins, or none.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: Option<PathBuf>,
}

/// What decides a cubin but the compiler: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of a unit of `kernels/` for an architecture such as `sm_90a`.
    pub fn of(unit: &Unit, arch: &str) -> Key {
        let text = sources::text(unit.file).unwrap_or_default();
        Key::from_parts(
            std::iter::once((unit.file, text)).chain(sources::headers()),
            &nvrtc::options(unit, arch),
        )
    }

    fn from_parts<'a>(files: impl Iterator<Item = (&'a str, &'a str)>, options: &[String]) -> Key {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            // Lengths keep neighbours apart.
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(MAGIC);
        for (name, text) in files {
            part(name.as_bytes());
            part(text.as_bytes());
        }
        for option in options {
            part(option.as_bytes());
        }
        Key(hex(&hash.finalize()))
    }
}

impl Cache {
    /// A cache in a directory, which is made when something is kept; none keeps nothing.
    pub fn new(dir: Option<PathBuf>) -> Cache {
        Cache { dir }
    }

    /// `CUTE_KERNEL_CACHE`, else `cute/kernels` in the user's cache directory.
    pub fn default_dir() -> Option<PathBuf> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let caches = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
        var("CUTE_KERNEL_CACHE").or_else(|| Some(caches()?.join("cute").join("kernels")))
    }

    /// Where it is.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The cubin that this version of NVRTC made, if it is there and whole.
    pub fn get(&self, key: &Key, version: &str) -> Option<Vec<u8>> {
        read(&self.dir.as_ref()?.join(file_name(key, version)), key)
    }

    /// The cubin of the newest version of NVRTC, if one is there and whole.
    pub fn get_any(&self, key: &Key) -> Option<Vec<u8>> {
        let number = |version: &str| -> Option<(u32, u32)> {
            let (major, minor) = version.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        let mut found: Vec<((u32, u32), PathBuf)> = std::fs::read_dir(self.dir.as_ref()?)
            .ok()?
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                let rest = name.strip_prefix(&key.0)?.strip_prefix(".nvrtc-")?;
                Some((number(rest.strip_suffix(".cubin")?)?, self.dir.as_ref()?.join(&name)))
            })
            .collect();
        found.sort();
        found.iter().rev().find_map(|(_, path)| read(path, key))
    }

    /// Keeps a cubin. Written beside its place and renamed, so that no reader sees half of it.
    ///
    /// # Errors
    /// There is no directory, or it cannot be written to.
    pub fn put(&self, key: &Key, version: &str, cubin: &[u8]) -> Result<(), String> {
        let dir = self
            .dir
            .as_ref()
            .ok_or("there is no cache directory: neither CUTE_KERNEL_CACHE nor HOME is set")?;
        let trouble = |e: std::io::Error| format!("{}: {e}", dir.display());
        std::fs::create_dir_all(dir).map_err(trouble)?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            // Others may read what one has compiled.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o644));
        }
        let mut file = builder.prefix(".new-").tempfile_in(dir).map_err(trouble)?;
        for part in [&MAGIC[..], &seal(key, cubin), cubin] {
            file.write_all(part).map_err(trouble)?;
        }
        file.persist(dir.join(file_name(key, version))).map_err(|e| trouble(e.error))?;
        Ok(())
    }
}

fn file_name(key: &Key, version: &str) -> String {
    format!("{}.nvrtc-{version}.cubin", key.0)
}

/// sha256 of key and cubin: a whole file under another's name is no better than half a file.
fn seal(key: &Key, cubin: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(&key.0).chain_update(cubin).finalize().into()
}

fn read(path: &Path, key: &Key) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (sum, cubin) = rest.split_first_chunk::<32>()?;
    (*sum == seal(key, cubin)).then(|| cubin.to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str, options: &[&str]) -> Key {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        Key::from_parts([("a.cu", text), ("common.cuh", "head")].into_iter(), &options)
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(dir.path().join("not").join("yet")));
        (dir, cache)
    }

    #[test]
    fn what_is_kept_is_found_under_its_own_key_and_version_alone() {
        let (_dir, cache) = cache();
        let key = |n| key(n, &["-DA=1"]);
        cache.put(&key("x"), "13.0", b"cubin").unwrap();
        assert_eq!(cache.get(&key("x"), "13.0").unwrap(), b"cubin");
        assert_eq!(cache.get(&key("x"), "13.1"), None);
        assert_eq!(cache.get(&key("y"), "13.0"), None);
    }

    #[test]
    fn without_a_compiler_the_newest_version_serves() {
        let (_dir, cache) = cache();
        let key = key("x", &[]);
        assert_eq!(cache.get_any(&key), None);
        for version in ["9.10", "12.9", "13.0"] {
            cache.put(&key, version, version.as_bytes()).unwrap();
        }
        assert_eq!(cache.get_any(&key).unwrap(), b"13.0");
        let newest = cache.dir().unwrap().join(file_name(&key, "13.0"));
        std::fs::write(newest, "torn").unwrap();
        assert_eq!(cache.get_any(&key).unwrap(), b"12.9");
    }

    #[test]
    fn a_damaged_file_is_not_there() {
        let (_dir, cache) = cache();
        let key = key("x", &[]);
        cache.put(&key, "13.0", b"a cubin of some length").unwrap();
        let path = cache.dir().unwrap().join(file_name(&key, "13.0"));
        let whole = std::fs::read(&path).unwrap();
        for n in 0..whole.len() {
            std::fs::write(&path, &whole[..n]).unwrap();
            assert_eq!(cache.get(&key, "13.0"), None, "cut to {n} bytes");
            let mut flipped = whole.clone();
            flipped[n] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert_eq!(cache.get(&key, "13.0"), None, "byte {n} flipped");
        }
        cache.put(&key, "13.0", b"again").unwrap();
        assert_eq!(cache.get(&key, "13.0").unwrap(), b"again");
    }

    #[test]
    fn a_whole_file_under_another_name_is_not_there() {
        let (_dir, cache) = cache();
        let [x, y] = ["x", "y"].map(|t| key(t, &[]));
        cache.put(&x, "13.0", b"cubin").unwrap();
        let dir = cache.dir().unwrap();
        std::fs::rename(dir.join(file_name(&x, "13.0")), dir.join(file_name(&y, "13.0"))).unwrap();
        assert_eq!(cache.get(&y, "13.0"), None);
    }

    #[test]
    fn every_part_of_a_unit_is_in_its_key() {
        let keys = [
            key("x", &["-DA=1", "-DB=2"]),
            key("x", &["-DA=1-DB=2"]),
            key("x", &["-DB=2", "-DA=1"]),
            key("x", &["-DA=1", "-DB=3"]),
            key("y", &["-DA=1", "-DB=2"]),
            Key::from_parts(
                [("a.cu", "x"), ("common.cuh", "heat")].into_iter(),
                &["-DA=1".into(), "-DB=2".into()],
            ),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b), "key {i} twice");
        }
        let unit = |a: &str| Unit { file: "common.cuh", defines: vec![("A", a.to_owned())] };
        assert_eq!(Key::of(&unit("1"), "sm_90a"), Key::of(&unit("1"), "sm_90a"));
        assert_ne!(Key::of(&unit("1"), "sm_90a"), Key::of(&unit("2"), "sm_90a"));
        assert_ne!(Key::of(&unit("1"), "sm_90a"), Key::of(&unit("1"), "sm_100a"));
    }

    #[test]
    fn processes_that_write_at_once_leave_whole_files() {
        let (_dir, cache) = cache();
        let key = key("x", &[]);
        let cubins: Vec<Vec<u8>> = (0..8u8).map(|i| vec![i; 100_000]).collect();
        std::thread::scope(|scope| {
            for cubin in &cubins {
                scope.spawn(|| (0..20).for_each(|_| cache.put(&key, "13.0", cubin).unwrap()));
            }
            for _ in 0..200 {
                if let Some(cubin) = cache.get(&key, "13.0") {
                    assert!(cubins.contains(&cubin));
                }
            }
        });
        assert!(cubins.contains(&cache.get(&key, "13.0").unwrap()));
        assert_eq!(std::fs::read_dir(cache.dir().unwrap()).unwrap().count(), 1, "temporary files are left");
    }

    #[test]
    fn a_cache_that_cannot_be_written_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cache = Cache::new(Some(file.clone()));
        let error = cache.put(&key("x", &[]), "13.0", b"cubin").unwrap_err();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(Cache::new(None).put(&key("x", &[]), "13.0", b"").unwrap_err().contains("CUTE_KERNEL_CACHE"));
    }
}
