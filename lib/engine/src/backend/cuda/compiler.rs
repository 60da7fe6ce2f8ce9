//! Units to cubins: from the cache where it has them, else compiled, several at a time.

use super::gpu::Unit;
use super::kernel_cache::{Cache, Key};
use super::nvrtc::{self, Nvrtc};
use crate::Error;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Stack of a compiling thread: the compiler recurses.
const STACK: usize = 32 << 20;

/// A compiler with its cache. The NVRTC library is loaded when it is first needed.
#[derive(Debug)]
pub struct Compiler {
    library: Option<PathBuf>,
    cache: Cache,
    nvrtc: OnceLock<Result<Nvrtc, String>>,
}

/// A compiled unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// an ELF file
    pub cubin: Vec<u8>,
    /// where it came from
    pub origin: Origin,
}

/// Where a cubin came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// it was in the cache
    Cache,
    /// it was compiled, and is in the cache now
    Compiled,
    /// it was compiled, and could not be kept: why
    NotKept(String),
}

impl Compiler {
    /// `library`: path of libnvrtc, where the loader does not find it. `cache`: directory of compiled kernels.
    pub fn new(library: Option<PathBuf>, cache: Option<PathBuf>) -> Compiler {
        Compiler { library, cache: Cache::new(cache), nvrtc: OnceLock::new() }
    }

    /// As `CUTE_NVRTC` and `CUTE_KERNEL_CACHE` say.
    pub fn from_env() -> Compiler {
        let library = std::env::var_os("CUTE_NVRTC").filter(|path| !path.is_empty());
        Compiler::new(library.map(PathBuf::from), Cache::default_dir())
    }

    /// Where compiled kernels are kept.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The NVRTC library.
    ///
    /// # Errors
    /// It is not there.
    pub fn nvrtc(&self) -> Result<&Nvrtc, Error> {
        let loaded = self.nvrtc.get_or_init(|| Nvrtc::load(self.library.as_deref()));
        loaded.as_ref().map_err(|message| Error::Device(message.clone()))
    }

    /// The cubins of units, in their order, for an architecture such as `sm_90a`.
    ///
    /// # Errors
    /// The first unit that does not compile, with NVRTC's log, or that would have to be compiled without NVRTC;
    /// a library named in `CUTE_NVRTC` that is none.
    pub fn compile(&self, units: &[Unit], arch: &str) -> Result<Vec<Compiled>, Error> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        // A path that somebody wrote down is not passed over, even if everything is in the cache.
        if self.library.is_some() {
            self.nvrtc()?;
        }
        in_parallel(units.len(), |i| self.one(&units[i], arch))?.into_iter().collect()
    }

    fn one(&self, unit: &Unit, arch: &str) -> Result<Compiled, Error> {
        let key = Key::of(unit, arch);
        let nvrtc = match self.nvrtc() {
            Ok(nvrtc) => nvrtc,
            Err(missing) => {
                let cubin = self.cache.get_any(&key).ok_or_else(|| {
                    let place =
                        self.cache.dir().map_or("no cache".to_owned(), |dir| dir.display().to_string());
                    let unit = nvrtc::describe(unit);
                    Error::Device(format!(
                        "{unit} for {arch} is not in {place} and cannot be compiled: {missing}"
                    ))
                })?;
                return Ok(Compiled { cubin, origin: Origin::Cache });
            }
        };
        let version = nvrtc.version();
        if let Some(cubin) = self.cache.get(&key, &version) {
            return Ok(Compiled { cubin, origin: Origin::Cache });
        }
        let cubin = nvrtc.cubin(unit, arch)?;
        let origin = match self.cache.put(&key, &version, &cubin) {
            Ok(()) => Origin::Compiled,
            Err(why) => Origin::NotKept(why),
        };
        Ok(Compiled { cubin, origin })
    }
}

/// `work(0)` … `work(n - 1)`, in order, on as many threads as the machine has processors.
///
/// # Errors
/// The system gives no thread.
pub fn in_parallel<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Result<Vec<T>, Error> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(n));
    let worker = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return;
            }
            let result = work(i);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(n);
    let started = std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, worker).is_ok();
        (0..threads).filter(|i| spawn(*i)).count()
    });
    if started == 0 && n > 0 {
        return Err(Error::Device("the system gives no thread to compile kernels in".to_owned()));
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
