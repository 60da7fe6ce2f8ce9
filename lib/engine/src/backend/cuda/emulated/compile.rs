//! Kernel files to shared libraries: the host's C++ compiler, and a cache by everything that goes into it.

use crate::Error;
use crate::backend::cuda::gpu::Unit;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What takes the place of the device in a kernel file.
const HEADERS: &[(&str, &str)] = &[
    ("emulate.h", include_str!("../../../../../../kernels/emulate.h")),
    ("fibers.h", include_str!("../../../../../../kernels/fibers.h")),
];

/// Products and sums are never fused; a misaligned access ends in a trap, as on a device; a stack is 64 KiB.
const FLAGS: &[&str] = &[
    "-O2",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-exceptions",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-fvisibility=hidden",
    "-fsanitize=alignment",
    "-fsanitize-undefined-trap-on-error",
    "-DCUTE_EMULATED",
    "-Werror=frame-larger-than=32768",
];

/// A C++ compiler and its cache.
pub struct Compiler {
    command: Vec<String>,
    version: String,
    cache: PathBuf,
}

impl Compiler {
    /// `$CXX`, or `c++`. Libraries are kept in `cache`, or in the user's cache directory.
    pub fn find(cache: Option<PathBuf>) -> Result<Compiler, Error> {
        let chosen = std::env::var("CXX").unwrap_or_default();
        let mut command: Vec<String> = chosen.split_whitespace().map(str::to_owned).collect();
        if command.is_empty() {
            command.push("c++".to_owned());
        }
        let name = command.join(" ");
        let missing = |why: String| {
            Error::Device(format!(
                "the emulated device needs a C++ compiler, and `{name} --version` fails: {why} (install g++, or set CXX)"
            ))
        };
        let output = run(&command).arg("--version").output().map_err(|e| missing(e.to_string()))?;
        if !output.status.success() {
            return Err(missing(output.status.to_string()));
        }
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Compiler { command, version, cache: cache.unwrap_or_else(cache_directory) })
    }

    /// The library of a unit, from the cache or made now. `sources` are all files, by name.
    pub fn library(&self, unit: &Unit, sources: &[(&str, &str)]) -> Result<PathBuf, Error> {
        if !sources.iter().any(|(name, _)| *name == unit.file) {
            return Err(Error::Device(format!("there is no kernel file `{}`", unit.file)));
        }
        let included = |name: &str| name == unit.file || name.ends_with(".cuh");
        let files: Vec<_> = sources.iter().filter(|(name, _)| included(name)).chain(HEADERS).collect();
        // Names are defined after emulate.h, so that they cannot meet those of the C library.
        let mut text = "#include \"emulate.h\"\n".to_owned();
        unit.defines.iter().for_each(|(name, value)| text += &format!("#define {name} {value}\n"));
        text += &format!("#include \"{}\"\n", unit.file);

        let mut key = Sha256::new();
        let mut add = |text: &str| {
            key.update((text.len() as u64).to_le_bytes());
            key.update(text);
        };
        add(&self.version);
        FLAGS.iter().for_each(|flag| add(flag));
        add(&text);
        files.iter().for_each(|(name, text)| {
            add(name);
            add(text);
        });
        let key: String = key.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let library = self.cache.join(format!("{}-{}.so", unit.file.trim_end_matches(".cu"), &key[..32]));
        if library.exists() {
            return Ok(library);
        }

        let trouble = |path: &Path, e: std::io::Error| Error::Device(format!("{}: {e}", path.display()));
        std::fs::create_dir_all(&self.cache).map_err(|e| trouble(&self.cache, e))?;
        let folder = tempfile::tempdir_in(&self.cache).map_err(|e| trouble(&self.cache, e))?;
        for (name, text) in files.into_iter().chain(&[("unit.cpp", &*text)]) {
            let path = folder.path().join(name);
            std::fs::write(&path, text).map_err(|e| trouble(&path, e))?;
        }
        let output = run(&self.command)
            .args(FLAGS)
            .args(["unit.cpp", "-o", "unit.so"])
            .current_dir(folder.path())
            .output()
            .map_err(|e| Error::Device(format!("{}: {e}", self.command.join(" "))))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let text: String = text.lines().take(40).collect::<Vec<_>>().join("\n");
            return Err(Error::Device(format!("{} {:?} does not compile:\n{text}", unit.file, unit.defines)));
        }
        // Renamed when whole: whoever finds it can load it.
        std::fs::rename(folder.path().join("unit.so"), &library).map_err(|e| trouble(&library, e))?;
        Ok(library)
    }
}

fn run(command: &[String]) -> Command {
    let mut run = Command::new(&command[0]);
    run.args(&command[1..]);
    run
}

/// Where the user's caches lie; a folder of this process when there is no such place.
fn cache_directory() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|caches| caches.join("cute"))
        .unwrap_or_else(|| std::env::temp_dir().join(format!("cute-{}", std::process::id())))
        .join("emulated")
}
