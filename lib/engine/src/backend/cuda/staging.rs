//! Host memory the device can read by itself: two pinned buffers, one filled while the other travels.
#![allow(unsafe_code)]

use super::api::cu;
use super::gpu::Ptr;
use crate::Error;
use cudarc::driver::sys::{self, CUevent, CUstream};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

/// Bytes of one buffer.
const CHUNK: usize = 32 << 20;

/// Bytes that one thread copies while others copy theirs.
const SHARE: usize = 4 << 20;

/// Two pinned buffers, and for each an event after its last journey. Belongs to a context and its stream.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: [*mut u8; 2],
    sent: [CUevent; 2],
}

// SAFETY: the buffers belong to this value alone, and events may be used from any thread.
unsafe impl Send for Staging {}

impl Staging {
    /// Needs the context to be current, as all methods do.
    pub(super) fn new() -> Result<Staging, Error> {
        let mut staging = Staging { buffers: [null_mut(); 2], sent: [null_mut(); 2] };
        for i in 0..2 {
            let mut at = null_mut();
            // SAFETY: the places written to live. What is made is freed by `drop`, also after half of it.
            unsafe {
                cu!(cuMemHostAlloc(&mut at, CHUNK, 0))?;
                staging.buffers[i] = at.cast();
                let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
                cu!(cuEventCreate(&mut staging.sent[i], flags))?;
            }
        }
        Ok(staging)
    }

    /// Waits until buffer `i` has been sent or received, and lends its first bytes.
    fn buffer(&mut self, i: usize, bytes: usize) -> Result<&mut [u8], Error> {
        // SAFETY: the event exists; one that was never recorded has happened.
        unsafe { cu!(cuEventSynchronize(self.sent[i])) }?;
        // SAFETY: the buffer holds CHUNK bytes, initialised outside of Rust, the device is done with it, and the borrow
        // of self keeps others away.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.buffers[i], bytes.min(CHUNK)) })
    }

    /// Sends `from` in stream order; returns when all of it has left `from`.
    ///
    /// # Safety
    /// `to` has room for `from`; the stream lives, and is not recording.
    pub(super) unsafe fn upload(&mut self, to: Ptr, from: &[u8], stream: CUstream) -> Result<(), Error> {
        for (n, part) in from.chunks(CHUNK).enumerate() {
            copy(self.buffer(n % 2, part.len())?, part);
            let (at, buffer) = (to + (n * CHUNK) as u64, self.buffers[n % 2]);
            // SAFETY: the caller's promise; the buffer is not touched again before the event.
            unsafe {
                cu!(cuMemcpyHtoDAsync_v2(at, buffer.cast(), part.len(), stream))?;
                cu!(cuEventRecord(self.sent[n % 2], stream))?;
            }
        }
        Ok(())
    }

    /// Receives into `to`, and waits for it.
    ///
    /// # Safety
    /// `from` has as many bytes; the stream lives, and is not recording.
    pub(super) unsafe fn download(
        &mut self,
        to: &mut [u8],
        from: Ptr,
        stream: CUstream,
    ) -> Result<(), Error> {
        let count = to.len().div_ceil(CHUNK);
        let length = to.len();
        let request = |this: &Staging, n: usize| {
            let bytes = CHUNK.min(length - n * CHUNK);
            // SAFETY: the caller's promise. The copy into this buffer two requests ago has been waited for and read;
            // one that sent it away comes before in stream order.
            unsafe {
                let at = from + (n * CHUNK) as u64;
                cu!(cuMemcpyDtoHAsync_v2(this.buffers[n % 2].cast(), at, bytes, stream))?;
                cu!(cuEventRecord(this.sent[n % 2], stream))
            }
        };
        if count > 0 {
            request(self, 0)?;
        }
        for (n, part) in to.chunks_mut(CHUNK).enumerate() {
            if n + 1 < count {
                request(self, n + 1)?;
            }
            let bytes = part.len();
            copy(part, self.buffer(n % 2, bytes)?);
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for i in 0..2 {
            // SAFETY: each was made by the driver, or is null and left alone. The driver waits for copies under way.
            unsafe {
                if !self.sent[i].is_null() {
                    let _ = sys::cuEventSynchronize(self.sent[i]);
                    let _ = sys::cuEventDestroy_v2(self.sent[i]);
                }
                if !self.buffers[i].is_null() {
                    let _ = sys::cuMemFreeHost(self.buffers[i].cast());
                }
            }
        }
    }
}

/// Copies slices of one length. One thread does not fill a fast bus: large ones are shared out. The threads are no
/// pool's, since a pool's thread that waits may take up another upload.
fn copy(to: &mut [u8], from: &[u8]) {
    let parts = Mutex::new(to.chunks_mut(SHARE).zip(from.chunks(SHARE)));
    let work = || {
        loop {
            let part = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((to, from)) = part else { return };
            to.copy_from_slice(from);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(from.len().div_ceil(SHARE)) {
            // Without a thread this one does the work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shared_between_threads_is_a_copy() {
        for n in [0, 1, SHARE - 1, SHARE, SHARE + 1, 3 * SHARE + 5, CHUNK] {
            let from: Vec<u8> = (0..n).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect();
            let mut to = vec![0; n];
            copy(&mut to, &from);
            assert!(to == from, "{n} bytes");
        }
    }
}
