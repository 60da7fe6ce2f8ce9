//! NVRTC: CUDA C++ to a cubin, at run time. The library is looked for when something has to be compiled.
//!
//! `CUTE_NVRTC` names the library where the loader would not find it, as in a Python wheel. The few functions
//! used are declared here: they have been the same since CUDA 11.
#![allow(unsafe_code)]

use super::gpu::Unit;
use super::sources;
use crate::Error;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr::null_mut;

/// Names of the library where no path is given.
#[cfg(not(windows))]
const NAMES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so", "libnvrtc.so.12"];
#[cfg(windows)]
const NAMES: &[&str] = &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

type Program = *mut std::ffi::c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The compiler's library, loaded.
#[derive(Debug)]
pub struct Nvrtc {
    version: (c_int, c_int),
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    #[allow(clippy::type_complexity)]
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    cubin_size: Size,
    cubin: Get,
    log_size: Size,
    log: Get,
}

/// What is handed to the compiler for a unit, apart from text. `CUTE_RACECHECK=1` compiles kernels that compute-sanitizer's
/// racecheck understands (ring.cuh), a little slower.
pub fn options(unit: &Unit, arch: &str) -> Vec<String> {
    let mut fixed =
        vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned(), "-lineinfo".to_owned()];
    if std::env::var_os("CUTE_RACECHECK").is_some_and(|x| x == "1") {
        fixed.push("-DRACECHECK".to_owned());
    }
    let defines = unit.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
    fixed.into_iter().chain(defines).collect()
}

/// A unit in words: `linear.cu with K=1024 N=2048`.
pub fn describe(unit: &Unit) -> String {
    let defines: Vec<String> = unit.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    match defines.as_slice() {
        [] => unit.file.to_owned(),
        defines => format!("{} with {}", unit.file, defines.join(" ")),
    }
}

impl Nvrtc {
    /// Loads the library at `path`, or by its name. It stays loaded.
    ///
    /// # Errors
    /// There is none, or it is not NVRTC.
    pub fn load(path: Option<&Path>) -> Result<Nvrtc, String> {
        let library = match path {
            Some(path) => open(path.as_os_str()).map_err(|e| format!("CUTE_NVRTC {}: {e}", path.display()))?,
            None => NAMES.iter().find_map(|name| open(name.as_ref()).ok()).ok_or_else(|| {
                format!(
                    "no NVRTC found (looked for {}): install it, for example the Python wheel nvidia-cuda-nvrtc, \
                     and name the library's path in CUTE_NVRTC",
                    NAMES.join(", ")
                )
            })?,
        };
        // Unloading a compiler that may have threads gains nothing.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: these are the signatures of NVRTC's manual, in the order of the fields; `version` gets two
        // places it may write to.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                symbol(library, "nvrtcVersion")?;
            let (mut major, mut minor) = (0, 0);
            if version(&mut major, &mut minor) != 0 {
                return Err("nvrtcVersion failed".to_owned());
            }
            if let Some(folder) = path.and_then(Path::parent) {
                preload_builtins(folder, major, minor);
            }
            Ok(Nvrtc {
                version: (major, minor),
                error_string: symbol(library, "nvrtcGetErrorString")?,
                create: symbol(library, "nvrtcCreateProgram")?,
                compile: symbol(library, "nvrtcCompileProgram")?,
                destroy: symbol(library, "nvrtcDestroyProgram")?,
                cubin_size: symbol(library, "nvrtcGetCUBINSize")?,
                cubin: symbol(library, "nvrtcGetCUBIN")?,
                log_size: symbol(library, "nvrtcGetProgramLogSize")?,
                log: symbol(library, "nvrtcGetProgramLog")?,
            })
        }
    }

    /// Its version, e.g. `13.0`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Compiles a unit for an architecture such as `sm_90a`.
    ///
    /// # Errors
    /// No such file, or NVRTC's log.
    pub fn cubin(&self, unit: &Unit, arch: &str) -> Result<Vec<u8>, Error> {
        let text = sources::text(unit.file).ok_or_else(|| {
            let known: Vec<&str> = sources::SOURCES.iter().map(|(name, _)| *name).collect();
            Error::Device(format!("no kernel file {:?}: expected one of {}", unit.file, known.join(", ")))
        })?;
        self.compile(unit.file, text, &options(unit, arch)).map_err(|message| {
            Error::Device(format!("{} for {arch}: NVRTC {}: {message}", describe(unit), self.version()))
        })
    }

    /// Compiles a text, named `kernels/NAME` in messages, that may include the headers of `kernels/`.
    ///
    /// # Errors
    /// NVRTC's word for what is wrong, and its log.
    pub fn compile(&self, name: &str, text: &str, options: &[String]) -> Result<Vec<u8>, String> {
        let c = |s: &str| CString::new(s).map_err(|_| format!("{s:?} holds a NUL"));
        let (c_text, c_name) = (c(text)?, c(&format!("kernels/{name}"))?);
        let names = sources::headers().map(|(name, _)| c(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = sources::headers().map(|(_, text)| c(text)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|o| c(o)).collect::<Result<Vec<_>, _>>()?;
        let [names_at, texts_at, options_at] = [&names, &texts, &options].map(|strings| pointers(strings));
        let mut program = Running { nvrtc: self, program: null_mut() };
        // SAFETY: all strings end in NUL and outlive the program; the counts are those of the arrays; a program
        // is used by this thread alone, and destroyed by `Running`.
        unsafe {
            let (heads, includes) = (texts_at.as_ptr(), names_at.as_ptr());
            let (text, name, n) = (c_text.as_ptr(), c_name.as_ptr(), names.len() as c_int);
            self.check((self.create)(&mut program.program, text, name, n, heads, includes))?;
            let done = (self.compile)(program.program, options.len() as c_int, options_at.as_ptr());
            if let Err(what) = self.check(done) {
                let log = program.read(self.log_size, self.log).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                return Err(format!("{what}\n{}", log.trim_end_matches(['\0', '\n'])));
            }
        }
        program.read(self.cubin_size, self.cubin)
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the string is static, or null for a code that is none.
        let text = unsafe { (self.error_string)(code) };
        if text.is_null() {
            return Err(format!("error {code}"));
        }
        // SAFETY: not null, ends in NUL.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}

/// A program that is destroyed whatever happens.
struct Running<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Running<'_> {
    fn read(&self, size: Size, get: Get) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program lives; `get` fills as many bytes as `size` said.
        unsafe {
            self.nvrtc.check(size(self.program, &mut bytes))?;
            let mut out = vec![0u8; bytes];
            self.nvrtc.check(get(self.program, out.as_mut_ptr().cast()))?;
            Ok(out)
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: it was created and nobody else holds it.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

fn open(name: &std::ffi::OsStr) -> Result<Library, String> {
    // SAFETY: NVRTC's initialisers have no preconditions.
    unsafe { Library::new(name) }.map_err(|e| e.to_string())
}

/// NVRTC asks the loader for a second library by its bare name when it compiles. Where the first was named by its
/// path, the loader would not find the second beside it, unless it is loaded already.
fn preload_builtins(folder: &Path, major: c_int, minor: c_int) {
    let name = match cfg!(windows) {
        true => format!("nvrtc-builtins64_{major}{minor}.dll"),
        false => format!("libnvrtc-builtins.so.{major}.{minor}"),
    };
    if let Ok(library) = open(folder.join(name).as_os_str()) {
        std::mem::forget(library);
    }
}

/// # Safety
/// `F` is the type of the function of this name.
unsafe fn symbol<F: Copy>(library: &'static Library, name: &str) -> Result<F, String> {
    // SAFETY: the caller's promise; the library is never unloaded.
    unsafe { library.get::<F>(name.as_bytes()) }
        .map(|f| *f)
        .map_err(|e| format!("the NVRTC library has no {name}: {e}"))
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}
