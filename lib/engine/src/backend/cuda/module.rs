//! Loaded kernels: found by name, allowed shared memory, asked for their occupancy, launched.
//!
//! The context is current wherever this is called.
#![allow(unsafe_code)]

use super::api::cu;
use super::cubin::{self, Needs};
use super::gpu::{Arg, Join, Launch, Unit};
use super::nvrtc::describe;
use crate::Error;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::CString;
use std::ptr::null_mut;

/// Arguments of a kernel at most.
const ARGS: usize = 64;

/// A loaded unit.
pub(super) struct Module {
    handle: sys::CUmodule,
    needs: Vec<Needs>,
    /// kernels found so far: name, and a number the owner gave
    pub(super) numbers: HashMap<String, usize>,
}

/// A kernel of a module that stays loaded.
pub(super) struct Function {
    handle: sys::CUfunction,
    needs: Needs,
    /// bytes of dynamic shared memory it may be launched with
    smem: u32,
}

impl Module {
    /// Loads a unit's cubin, made for `arch`.
    pub(super) fn load(unit: &Unit, arch: &str, cubin: &[u8]) -> Result<Module, Error> {
        let trouble = |e: String| Error::Device(format!("{} for {arch}: {e}", describe(unit)));
        let needs = cubin::needs(cubin).map_err(trouble)?;
        let mut handle = null_mut();
        // SAFETY: the cubin is a whole ELF file, as `needs` has seen; the library copies what it keeps.
        unsafe { cu!(cuModuleLoadData(&mut handle, cubin.as_ptr().cast())) }
            .map_err(|e| trouble(e.to_string()))?;
        Ok(Module { handle, needs, numbers: HashMap::new() })
    }

    /// The kernel of this name. `unit` is what was loaded.
    pub(super) fn function(&self, unit: &Unit, name: &str) -> Result<Function, Error> {
        let Some(needs) = self.needs.iter().find(|needs| needs.name == name) else {
            let names: Vec<&str> = self.needs.iter().map(|needs| needs.name.as_str()).collect();
            return Err(Error::Device(format!(
                "{} has no kernel {name:?}: it has {}",
                describe(unit),
                names.join(", ")
            )));
        };
        let trouble = |e: String| Error::Device(format!("kernel {name} of {}: {e}", describe(unit)));
        let c_name = CString::new(name).map_err(|e| trouble(e.to_string()))?;
        let mut handle = null_mut();
        // SAFETY: the module is loaded; the name ends in NUL.
        unsafe { cu!(cuModuleGetFunction(&mut handle, self.handle, c_name.as_ptr())) }
            .map_err(|e| trouble(e.to_string()))?;
        // A multiprocessor must be empty to divide its memory anew, so all kernels ask for the same division: otherwise a
        // small one could not start beside a large one that it overlaps.
        let carveout = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        let all = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;
        // SAFETY: the function belongs to a loaded module.
        unsafe { cu!(cuFuncSetAttribute(handle, carveout, all)) }.map_err(|e| trouble(e.to_string()))?;
        Ok(Function { handle, needs: needs.clone(), smem: 0 })
    }

    /// Unloads it.
    ///
    /// # Safety
    /// No function of it is used again.
    pub(super) unsafe fn unload(self) {
        // SAFETY: loaded once; the caller's promise.
        let _ = unsafe { sys::cuModuleUnload(self.handle) };
    }
}

impl Function {
    /// Allows at least this much dynamic shared memory; `most` is what a block of the device can have.
    pub(super) fn allow(&mut self, smem: u32, most: u32) -> Result<(), Error> {
        use sys::CUfunction_attribute_enum as A;
        if smem <= self.smem {
            return Ok(());
        }
        let trouble = |e: Error| {
            let Needs { name, shared, .. } = &self.needs;
            Error::Device(format!(
                "kernel {name} with {smem} bytes of shared memory beside {shared} of its own, of at most {most}: {e}"
            ))
        };
        let mut now = 0;
        // SAFETY: the function belongs to a loaded module; `now` lives.
        unsafe {
            let limit = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            cu!(cuFuncGetAttribute(&mut now, limit, self.handle)).map_err(trouble)?;
            if i64::from(smem) > i64::from(now) {
                let bytes = i32::try_from(smem).unwrap_or(i32::MAX);
                cu!(cuFuncSetAttribute(self.handle, limit, bytes)).map_err(trouble)?;
            }
        }
        self.smem = smem;
        Ok(())
    }

    /// Blocks of this size that a multiprocessor holds at once.
    pub(super) fn occupancy(&self, block: u32, smem: u32) -> Result<u32, Error> {
        let threads = i32::try_from(block).unwrap_or(i32::MAX);
        let mut blocks = 0;
        // SAFETY: the function belongs to a loaded module; `blocks` lives.
        unsafe {
            let n = &mut blocks;
            cu!(cuOccupancyMaxActiveBlocksPerMultiprocessor(n, self.handle, threads, smem as usize))
        }
        .map_err(|e| {
            let name = &self.needs.name;
            Error::Device(format!("occupancy of {name}, {block} threads, {smem} bytes of shared memory: {e}"))
        })?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// Queues a launch in a stream that lives.
    pub(super) fn launch(&self, launch: Launch, args: &[Arg], stream: sys::CUstream) -> Result<(), Error> {
        let named = |what: String| {
            let ([x, y, z], block, smem) = (launch.grid, launch.block, launch.smem);
            let name = &self.needs.name;
            Error::Device(format!(
                "kernel {name}, grid {x} × {y} × {z}, block {block}, {smem} bytes of shared memory: {what}"
            ))
        };
        check(&self.needs.parameters, self.smem, &launch, args).map_err(named)?;
        let mut values = [0u64; ARGS];
        let mut places = [null_mut(); ARGS];
        for ((arg, value), place) in args.iter().zip(&mut values).zip(&mut places) {
            *value = arg.bits();
            *place = (value as *mut u64).cast();
        }
        let mut attributes = attributes(launch.join);
        let [x, y, z] = launch.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.smem,
            hStream: stream,
            numAttrs: attributes.len() as u32,
            attrs: attributes.as_mut_ptr(),
        };
        // SAFETY: the function belongs to a loaded module; there is an argument of the right size for each of its
        // parameters; the driver has copied arguments and attributes when it returns. What the kernel does with
        // addresses is up to `kernels/`.
        unsafe { cu!(cuLaunchKernelEx(&config, self.handle, places.as_mut_ptr(), null_mut())) }
            .map_err(|e| named(e.to_string()))
    }
}

/// Whether a launch fits a kernel with these parameters, allowed this much dynamic shared memory.
fn check(parameters: &[u32], smem: u32, launch: &Launch, args: &[Arg]) -> Result<(), String> {
    if launch.grid.contains(&0) || launch.block == 0 {
        return Err("a launch of nothing".to_owned());
    }
    if launch.smem > smem {
        return Err(format!("it was asked for with {smem}"));
    }
    let given = args.iter().map(|arg| arg.size());
    if args.len() > ARGS || !given.clone().eq(parameters.iter().copied()) {
        let given: Vec<u32> = given.collect();
        return Err(format!("arguments of {given:?} bytes for parameters of {parameters:?}"));
    }
    Ok(())
}

impl Arg {
    /// Its bytes, the first in the lowest.
    fn bits(self) -> u64 {
        match self {
            Arg::Ptr(x) | Arg::U64(x) => x,
            Arg::U32(x) => u64::from(x),
            Arg::F32(x) => u64::from(x.to_bits()),
        }
    }

    /// Bytes a kernel reads of it.
    fn size(self) -> u32 {
        match self {
            Arg::Ptr(_) | Arg::U64(_) => 8,
            Arg::U32(_) | Arg::F32(_) => 4,
        }
    }
}

fn attributes(join: Join) -> Vec<sys::CUlaunchAttribute> {
    use sys::CUlaunchAttributeID_enum as Id;
    let mut all = Vec::with_capacity(2);
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    if join.overlapped() {
        value.programmaticStreamSerializationAllowed = 1;
        let id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        all.push(sys::CUlaunchAttribute { id, pad: [0; 4], value });
    }
    if join.cooperative() {
        value.cooperative = 1;
        all.push(sys::CUlaunchAttribute { id: Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, pad: [0; 4], value });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCH: Launch = Launch { grid: [4, 1, 1], block: 32, smem: 100, join: Join::Plain };

    #[test]
    fn a_launch_needs_an_argument_of_the_right_size_for_each_parameter() {
        let fits = |parameters: &[u32], args: &[Arg]| check(parameters, 100, &LAUNCH, args);
        assert_eq!(fits(&[8, 4, 4, 8], &[Arg::Ptr(1), Arg::U32(2), Arg::F32(3.0), Arg::U64(4)]), Ok(()));
        assert_eq!(fits(&[], &[]), Ok(()));
        let error = fits(&[8, 4], &[Arg::Ptr(1)]).unwrap_err();
        assert_eq!(error, "arguments of [8] bytes for parameters of [8, 4]");
        assert!(fits(&[8], &[Arg::Ptr(1), Arg::U32(2)]).is_err());
        assert!(fits(&[4, 8], &[Arg::Ptr(1), Arg::U32(2)]).is_err());
        assert!(fits(&[4; ARGS + 1], &[Arg::U32(0); ARGS + 1]).is_err());
    }

    #[test]
    fn a_launch_of_nothing_or_with_more_shared_memory_than_allowed_is_refused() {
        assert!(check(&[], 99, &LAUNCH, &[]).unwrap_err().contains("99"));
        assert!(check(&[], 100, &Launch { grid: [1, 0, 1], ..LAUNCH }, &[]).is_err());
        assert!(check(&[], 100, &Launch { block: 0, ..LAUNCH }, &[]).is_err());
    }

    #[test]
    fn an_argument_lies_in_the_lowest_bytes() {
        assert_eq!(Arg::F32(1.0).bits().to_le_bytes(), [0, 0, 0x80, 0x3f, 0, 0, 0, 0]);
        assert_eq!(Arg::U32(0x01020304).bits().to_le_bytes()[..4], [4, 3, 2, 1]);
    }
}
