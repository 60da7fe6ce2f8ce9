//! Memory of the emulated device: every buffer ends at an inaccessible page, and unwritten bytes are NaN.
#![allow(unsafe_code)] // maps pages and fills them

use crate::Error;
use crate::backend::cuda::gpu::Ptr;
use std::collections::BTreeMap;

/// What unwritten memory holds: a NaN in every floating-point type.
const UNWRITTEN: u8 = 0xff;

/// Bytes before a buffer that are looked at for writes out of bounds.
const WATCHED: usize = 64;

/// Pages that belong to nobody else. Inaccessible until told otherwise; given back when dropped.
pub struct Map {
    start: *mut u8,
    len: usize,
}

// SAFETY: the pages are owned by the map; whoever uses them holds the device's lock.
unsafe impl Send for Map {}

impl Map {
    /// `len` bytes, a multiple of the page size, inaccessible.
    pub fn new(len: usize) -> Result<Map, Error> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping touches nobody's memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            let why = std::io::Error::last_os_error();
            return Err(Error::Device(format!("emulated device: no {len} bytes of address space: {why}")));
        }
        Ok(Map { start: start.cast(), len })
    }

    /// Makes `len` bytes from `from` on readable and writable; both are multiples of the page size.
    pub fn open(&mut self, from: usize, len: usize) -> Result<(), Error> {
        self.protect(from, len, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Makes everything inaccessible again and gives the memory back, but not the addresses.
    pub fn close(&mut self) -> Result<(), Error> {
        // SAFETY: the pages are ours, and nothing refers to them but addresses the device was asked to forget.
        unsafe { libc::madvise(self.start.cast(), self.len, libc::MADV_DONTNEED) };
        self.protect(0, self.len, libc::PROT_NONE)
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn protect(&mut self, from: usize, len: usize, how: libc::c_int) -> Result<(), Error> {
        assert!(from + len <= self.len, "{from} + {len} of {} bytes", self.len);
        // SAFETY: the range lies inside the mapping.
        if unsafe { libc::mprotect(self.start.add(from).cast(), len, how) } != 0 {
            let why = std::io::Error::last_os_error();
            return Err(Error::Device(format!("emulated device: pages cannot be protected: {why}")));
        }
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its owner is gone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Bytes of a page.
pub fn page() -> usize {
    // SAFETY: asks for a constant.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

struct Buffer {
    map: Map,
    bytes: usize,
    freed: bool,
}

/// All buffers of a device, freed ones included: their addresses are never used again.
pub struct Memory {
    buffers: BTreeMap<Ptr, Buffer>,
    total: u64,
    used: u64,
}

impl Memory {
    /// A device with `total` bytes.
    pub fn new(total: u64) -> Memory {
        Memory { buffers: BTreeMap::new(), total, used: 0 }
    }

    /// Free and total bytes.
    pub fn free_and_total(&self) -> (u64, u64) {
        (self.total - self.used, self.total)
    }

    /// A buffer whose end, rounded up to 16 bytes, touches an inaccessible page. So it starts at a multiple of 16, and at
    /// a multiple of 256 when `bytes` is one.
    pub fn alloc(&mut self, bytes: usize) -> Result<Ptr, Error> {
        let free = self.total - self.used;
        if bytes == 0 || bytes as u64 > free {
            return Err(Error::Device(format!(
                "emulated device: no {bytes} bytes of memory: {free} of {} are free",
                self.total
            )));
        }
        let (page, rounded) = (page(), bytes.next_multiple_of(16));
        let inner = rounded.next_multiple_of(page);
        let mut map = Map::new(inner + 2 * page)?;
        map.open(page, inner)?;
        // SAFETY: these pages have just been opened.
        unsafe { map.start().add(page).write_bytes(UNWRITTEN, inner) };
        let at = map.start() as Ptr + (page + inner - rounded) as Ptr;
        self.used += bytes as u64;
        self.buffers.insert(at, Buffer { map, bytes, freed: false });
        Ok(at)
    }

    /// Makes a buffer inaccessible.
    pub fn free(&mut self, at: Ptr) -> Result<(), Error> {
        match self.buffers.get_mut(&at) {
            Some(buffer) if !buffer.freed => {
                buffer.map.close()?;
                buffer.freed = true;
                self.used -= buffer.bytes as u64;
                Ok(())
            }
            Some(_) => Err(Error::Device(format!("free: {at:#x} was freed before"))),
            None => Err(Error::Device(format!("free: {at:#x} is not the start of a buffer"))),
        }
    }

    /// Checks that `bytes` from `at` on lie inside one buffer. `call` is named in the error.
    pub fn range(&self, call: &str, at: Ptr, bytes: usize) -> Result<*mut u8, Error> {
        let inside = |(start, b): (&Ptr, &Buffer)| {
            !b.freed && at - start <= b.bytes as u64 && bytes as u64 <= b.bytes as u64 - (at - start)
        };
        if !self.buffers.range(..=at).next_back().is_some_and(inside) {
            let last = at.saturating_add(bytes.saturating_sub(1) as u64);
            let where_ = self.describe(at).unwrap_or_else(|| "in no buffer".to_owned());
            let to = self.describe(last).unwrap_or_else(|| "in no buffer".to_owned());
            return Err(Error::Device(format!(
                "{call}: {bytes} bytes at {at:#x}: the first is {where_}, the last {to}"
            )));
        }
        Ok(at as *mut u8)
    }

    /// Where an address lies, in terms of the buffer around or nearest to it, if there is one.
    pub fn describe(&self, address: u64) -> Option<String> {
        let (start, buffer) = self.buffers.iter().find(|(_, b)| {
            let from = b.map.start() as u64;
            (from..from + b.map.len() as u64).contains(&address)
        })?;
        let end = start + buffer.bytes as u64;
        let name = format!("a buffer of {} bytes", buffer.bytes);
        Some(match address {
            _ if buffer.freed => format!("in {name} that was freed"),
            a if a < *start => format!("{} bytes before {name}", start - a),
            a if a >= end => format!("{} bytes past the last of {name}", a - end + 1),
            a => format!("at {} of {name}", a - start),
        })
    }

    /// Looks for writes just outside of buffers that no inaccessible page could stop.
    pub fn check_edges(&self) -> Result<(), Error> {
        for (start, buffer) in self.buffers.iter().filter(|(_, b)| !b.freed) {
            let end = start + buffer.bytes as u64;
            let inner = buffer.map.start() as u64 + page() as u64;
            let before = inner.max(start.saturating_sub(WATCHED as u64))..*start;
            let after = end..end.next_multiple_of(16);
            for address in before.chain(after) {
                // SAFETY: both ranges lie inside the pages that `alloc` opened.
                if unsafe { *(address as *const u8) } != UNWRITTEN {
                    let place = self.describe(address).unwrap_or_default();
                    return Err(Error::Device(format!("a kernel has written {place}")));
                }
            }
        }
        Ok(())
    }
}
