//! libcuda, checked: every call's result becomes a sentence with the call's name, CUDA's name of the error and its text.
#![allow(unsafe_code)]

use crate::Error;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};
use std::ptr::null_mut;

/// Calls a function of libcuda: `cu!(cuMemFree_v2(at))` is a `Result<(), Error>`.
macro_rules! cu {
    ($f:ident($($arg:expr),* $(,)?)) => {
        $crate::backend::cuda::api::check(stringify!($f), ::cudarc::driver::sys::$f($($arg),*))
    };
}
pub(super) use cu;

/// Oldest driver that has all that is called here: CUDA 12.0.
const OLDEST_DRIVER: i32 = 12_000;

/// Oldest compute capability the kernels are written for: Hopper.
const OLDEST_DEVICE: i32 = 9;

/// `cuEventElapsedTime`: the bindings for CUDA 13 know only the second version, which older drivers lack.
pub(super) type ElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> CUresult;

/// Ok, or what went wrong in `call`.
pub(super) fn check(call: &str, code: CUresult) -> Result<(), Error> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let call = call.trim_end_matches("_v2");
    Err(Error::Device(format!("{call}: {}", words(code))))
}

/// `CUDA_ERROR_OUT_OF_MEMORY (out of memory)`.
fn words(code: CUresult) -> String {
    let error = DriverError(code);
    let text = |t: Result<&std::ffi::CStr, DriverError>| t.ok().map(|t| t.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|| format!("error {}", code as u32));
    match text(error.error_string()) {
        Some(text) => format!("{name} ({text})"),
        None => name,
    }
}

/// What a device is, before it is used.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) handle: sys::CUdevice,
    /// e.g. `cuda:0 NVIDIA H200 (sm_90a)`
    pub(super) name: String,
    /// e.g. `sm_90a`
    pub(super) arch: String,
    pub(super) multiprocessors: u32,
    /// bytes of shared memory of one block at most
    pub(super) shared_memory: u32,
}

/// Whether there is a libcuda to load.
pub(super) fn installed() -> bool {
    // SAFETY: looks for the library, which runs its initialisers if it is there.
    unsafe { sys::is_culib_present() }
}

/// Starts the driver and counts devices: never none.
pub(super) fn devices() -> Result<i32, Error> {
    let trouble = |message: &str| Error::Device(message.to_owned());
    // SAFETY: looks for the library by name; its initialisers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(trouble("no CUDA driver: libcuda is not installed on this machine"));
    }
    for name in ["cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuLaunchKernelEx", "cuEventElapsedTime"] {
        // SAFETY: the library is there; the symbol is looked for, and not called.
        if unsafe { sys::culib().get::<ElapsedTime>(name.as_bytes()) }.is_err() {
            return Err(Error::Device(format!("the CUDA driver is too old, or none: libcuda has no {name}")));
        }
    }
    // SAFETY: nothing has to come before these; the places written to live.
    unsafe {
        match sys::cuInit(0) {
            CUresult::CUDA_ERROR_NO_DEVICE => {
                return Err(trouble("no CUDA device: the driver is there and finds none"));
            }
            code => check("cuInit", code)?,
        }
        let (mut version, mut count) = (0, 0);
        cu!(cuDriverGetVersion(&mut version))?;
        if version < OLDEST_DRIVER {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(Error::Device(format!(
                "the CUDA driver is made for CUDA {major}.{minor}: expected one for 12.0 or later"
            )));
        }
        cu!(cuDeviceGetCount(&mut count))?;
        match count {
            0 => Err(trouble("no CUDA device: the driver is there and finds none")),
            count => Ok(count),
        }
    }
}

impl Device {
    /// The device of this number, if the kernels run on it.
    pub(super) fn get(ordinal: usize) -> Result<Device, Error> {
        let count = devices()?;
        let number = i32::try_from(ordinal).ok().filter(|n| *n < count).ok_or_else(|| {
            let there =
                if count == 1 { "there is cuda:0 alone".to_owned() } else { format!("there are {count}") };
            Error::Device(format!("no device cuda:{ordinal}: {there}"))
        })?;
        let mut handle = 0;
        let mut name = [0u8; 256];
        // SAFETY: the driver is initialised; the places written to live, `name` with its length.
        unsafe {
            cu!(cuDeviceGet(&mut handle, number))?;
            cu!(cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, handle))?;
        }
        let text = name.split(|b| *b == 0).next().unwrap_or_default();
        let named = format!("cuda:{ordinal} {}", String::from_utf8_lossy(text));
        use sys::CUdevice_attribute_enum as A;
        let major = attribute(handle, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(handle, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major as i32) < OLDEST_DEVICE {
            return Err(Error::Device(format!(
                "{named} has compute capability {major}.{minor}: the kernels need {OLDEST_DEVICE}.0 or later"
            )));
        }
        let arch = format!("sm_{major}{minor}a");
        Ok(Device {
            handle,
            name: format!("{named} ({arch})"),
            arch,
            multiprocessors: attribute(handle, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory: attribute(handle, A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }
}

fn attribute(device: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u32, Error> {
    let mut value = 0;
    // SAFETY: the device comes from cuDeviceGet; `value` lives.
    unsafe { cu!(cuDeviceGetAttribute(&mut value, which, device)) }?;
    u32::try_from(value).map_err(|_| Error::Device(format!("cuDeviceGetAttribute {which:?}: {value}")))
}

/// `cuEventElapsedTime` of the driver that is there.
pub(super) fn elapsed_time() -> Result<ElapsedTime, Error> {
    // SAFETY: `devices` has found the library; the type is the function's in CUDA's manual.
    let symbol = unsafe { sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime") };
    symbol.map(|f| *f).map_err(|e| Error::Device(format!("libcuda has no cuEventElapsedTime: {e}")))
}

/// A device's primary context, given back when dropped.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Context {
    pub(super) fn new(device: &Device) -> Result<Context, Error> {
        let mut handle = null_mut();
        // SAFETY: the device is one; `handle` lives.
        unsafe { cu!(cuDevicePrimaryCtxRetain(&mut handle, device.handle)) }?;
        Ok(Context { device: device.handle, handle })
    }

    /// Makes it this thread's.
    pub(super) fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context is retained.
        unsafe { cu!(cuCtxSetCurrent(self.handle)) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, given back once.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
