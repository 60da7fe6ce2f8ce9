//! Runs one launch: stacks and shared memory for its threads, and signals turned into errors.
#![allow(unsafe_code)] // calls compiled kernels and handles their signals

use super::memory::{Map, page};
use crate::Error;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Bytes of a thread's stack. No multiple of a page: the tops of stacks should not all fall into one line of the cache.
const STACK: usize = 64 * 1024 + 17 * 64;

/// Inaccessible bytes before the first stack, a multiple of every page size.
const BELOW: usize = 64 * 1024;

/// What a launch is given; `fibers.h` has the same struct.
#[repr(C)]
pub struct Host {
    stacks: *mut u8,
    stack_bytes: u64,
    smem_end: *mut u8,
    smem_stride: u64,
    seed: u64,
    fault: Option<unsafe extern "C" fn(*mut Host, u64, u32)>,
    error: [c_char; 512],
}

/// Grid, block and shared memory; `fibers.h` has the same struct.
#[repr(C)]
pub struct Shape {
    /// blocks in x, y, z
    pub grid: [u32; 3],
    /// threads of a block
    pub block: u32,
    /// bytes of dynamic shared memory
    pub smem: u32,
    /// 0 plain, 1 overlapped, 2 cooperative
    pub join: u32,
}

/// A kernel's entry.
pub type Entry = unsafe extern "C" fn(*mut Host, *const Shape, *mut *mut c_void) -> c_int;

/// What went wrong in a launch.
pub struct Failure {
    /// kernel, block, thread and what it did
    pub message: String,
    /// the address it must not touch, if that was it
    pub address: Option<u64>,
}

/// Stacks and shared memory, kept between launches.
pub struct Machine {
    stacks: Option<Map>,
    /// blocks' shared memory, and the distance from one to the next
    smem: Option<(Map, usize)>,
    seed: u64,
}

impl Machine {
    /// `seed` chooses the order in which threads run; 0 is the ascending one.
    pub fn new(seed: u64) -> Machine {
        Machine { stacks: None, smem: None, seed }
    }

    /// Runs a launch to its end.
    ///
    /// # Safety
    /// `entry` belongs to a loaded library and `args` points to arguments of its kernel's kinds.
    pub unsafe fn run(
        &mut self,
        entry: Entry,
        shape: &Shape,
        args: &mut [*mut c_void],
    ) -> Result<Result<(), Failure>, Error> {
        // the libraries' variables are the process's, so launches take turns
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        catch_signals();
        let alive = if shape.join == 2 { shape.grid.iter().product::<u32>() as usize } else { 1 };
        let page = page();
        let stacks = (alive * shape.block as usize * STACK).next_multiple_of(page);
        let smem = (shape.smem as usize).next_multiple_of(page) + page;
        let stacks = match self.stacks.take().filter(|map| map.len() >= BELOW + stacks) {
            Some(map) => map,
            None => {
                let mut map = Map::new(BELOW + stacks)?;
                map.open(BELOW, stacks)?;
                map
            }
        };
        let smem_map = match self.smem.take().filter(|(_, stride)| *stride == smem) {
            Some((map, _)) if map.len() >= alive * smem => map,
            _ => {
                let mut map = Map::new(alive * smem)?;
                for block in (0..alive).filter(|_| smem > page) {
                    map.open(block * smem, smem - page)?;
                }
                map
            }
        };
        let mut host = Host {
            stacks: stacks.start().wrapping_add(BELOW),
            stack_bytes: STACK as u64,
            smem_end: smem_map.start().wrapping_add(smem - page),
            smem_stride: smem as u64,
            seed: self.seed,
            fault: None,
            error: [0; 512],
        };
        RUNNING.set(&raw mut host);
        // SAFETY: the caller vouches for entry and arguments; stacks and shared memory are as large as the shape asks.
        let failed = unsafe { entry(&raw mut host, shape, args.as_mut_ptr()) } != 0;
        RUNNING.set(std::ptr::null_mut());
        let address = ADDRESS.replace(0);
        self.smem = Some((smem_map, smem));
        self.stacks = Some(stacks);
        if !failed {
            return Ok(Ok(()));
        }
        // SAFETY: the message is written by snprintf, which ends it.
        let message = unsafe { CStr::from_ptr(host.error.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Err(Failure { message, address: (address != 0).then_some(address) }))
    }

    /// Where an address lies in the shared memory of `shape` or in the stacks, if it does.
    pub fn describe(&self, shape: &Shape, address: u64) -> Option<String> {
        let inside =
            |map: &Map| (map.start() as u64..map.start() as u64 + map.len() as u64).contains(&address);
        if self.stacks.as_ref().is_some_and(inside) {
            return Some("below the stack: too many local variables".to_owned());
        }
        let (map, stride) = self.smem.as_ref()?;
        let at = inside(map).then(|| address - map.start() as u64)? % *stride as u64;
        let start = stride - page() - shape.smem.next_multiple_of(16) as usize;
        Some(format!("at {} of {} bytes of shared memory", at as i64 - start as i64, shape.smem))
    }
}

thread_local! {
    /// The launch that runs on this thread.
    static RUNNING: Cell<*mut Host> = const { Cell::new(std::ptr::null_mut()) };
    /// The address of the last fault.
    static ADDRESS: Cell<u64> = const { Cell::new(0) };
}

const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// What was done on a signal before this file was asked.
static BEFORE: OnceLock<[libc::sigaction; 4]> = OnceLock::new();

fn catch_signals() {
    BEFORE.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: sigaction is plain data, for which zeroes are valid.
            let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
            new.sa_sigaction = handler as *const () as usize;
            // Not blocked while it is handled, since the handler is left by a jump.
            new.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
            // SAFETY: both structs live through the call.
            unsafe { libc::sigaction(signal, &raw const new, &raw mut old) };
            old
        })
    });
}

/// A fault of a kernel's thread becomes the launch's error; any other is handled as before.
extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    /// The code of a fault without an address: the processor refuses the instruction.
    const BY_KERNEL: c_int = 0x80;
    let host = RUNNING.get();
    if !host.is_null() {
        // SAFETY: the kernel hands over valid structs; `host` lives on the stack of `run` until the launch ends.
        unsafe {
            let (cause, address) = match signal {
                libc::SIGFPE => (3, 0),
                libc::SIGILL => (2, 0),
                _ if (*info).si_code == BY_KERNEL => (4, 0),
                _ => (u32::from(is_write(context)), (*info).si_addr() as u64),
            };
            ADDRESS.set(address);
            if let Some(fault) = (*host).fault {
                fault(host, address, cause); // returns only if no thread of a kernel was running
            }
        }
    }
    if let Some(before) = BEFORE.get()
        && let Some(i) = SIGNALS.iter().position(|s| *s == signal)
    {
        // SAFETY: puts back what was there; the instruction that failed runs again and is caught by it.
        unsafe { libc::sigaction(signal, &raw const before[i], std::ptr::null_mut()) };
    }
}

/// Whether a fault was a write.
///
/// # Safety
/// `context` is what a signal handler was given.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
unsafe fn is_write(context: *mut c_void) -> bool {
    // SAFETY: a handler with SA_SIGINFO gets a ucontext; bit 1 of the page fault's code is set for writes.
    unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] & 2 != 0 }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
unsafe fn is_write(_: *mut c_void) -> bool {
    false
}
