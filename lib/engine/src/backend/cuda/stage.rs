//! Host memory that one thread fills and sends, on a stream of its own: what large transfers to a device go through.
#![allow(unsafe_code)]

use super::api::cu;
use super::gpu::{Gpu, Ptr};
use crate::Error;
use cudarc::driver::sys::{self, CUevent, CUstream};
use std::ops::Range;
use std::ptr::null_mut;

/// Buffers of a stage: one is filled while the other travels.
pub const BUFFERS: usize = 2;

/// How weights are brought to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// threads that read, arrange and send; 0 for as many as the machine has, between 4 and 16
    pub threads: usize,
    /// bytes of a buffer, of which each thread has [`BUFFERS`]
    pub buffer: usize,
    /// bytes read at once, so that they are arranged while the cache still holds them
    pub read: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { threads: 0, buffer: 2 << 20, read: 256 << 10 }
    }
}

impl LoadOptions {
    /// How many threads that is here.
    pub fn count(&self) -> usize {
        let here = || std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 16);
        if self.threads == 0 { here() } else { self.threads }
    }
}

/// Host memory that one thread fills and sends to a device, beside the device's own stream.
pub trait Stage {
    /// Lends the next buffer, of the size that was asked for, when what was sent from it before has arrived. What it
    /// holds is of no meaning.
    ///
    /// # Errors
    /// When the device has failed.
    fn next(&mut self) -> Result<&mut [u8], Error>;
    /// Sends bytes of the buffer that was lent last. They must not be written before [`Stage::next`] lends it again.
    ///
    /// # Errors
    /// When the range is not the buffer's, there is no room for it on the device, or the device has failed.
    fn send(&mut self, to: Ptr, bytes: Range<usize>) -> Result<(), Error>;
    /// Waits until everything has arrived.
    ///
    /// # Errors
    /// When the device has failed.
    fn arrived(&mut self) -> Result<(), Error>;
}

/// A stage in ordinary memory, for devices without another: [`Gpu::upload`] sends it.
pub(super) struct Plain<'a, G: ?Sized> {
    gpu: &'a G,
    buffer: Vec<u8>,
}

impl<'a, G: Gpu + ?Sized> Plain<'a, G> {
    pub(super) fn new(gpu: &'a G, bytes: usize) -> Self {
        Plain { gpu, buffer: vec![0; bytes] }
    }
}

impl<G: Gpu + ?Sized> Stage for Plain<'_, G> {
    fn next(&mut self) -> Result<&mut [u8], Error> {
        Ok(&mut self.buffer)
    }
    fn send(&mut self, to: Ptr, bytes: Range<usize>) -> Result<(), Error> {
        self.gpu.upload(to, checked(&self.buffer, bytes)?)
    }
    fn arrived(&mut self) -> Result<(), Error> {
        self.gpu.synchronize()
    }
}

/// The bytes of a range, if they are there.
fn checked(buffer: &[u8], bytes: Range<usize>) -> Result<&[u8], Error> {
    let outside = || Error::Device(format!("bytes {bytes:?} of a buffer of {}", buffer.len()));
    buffer.get(bytes.clone()).ok_or_else(outside)
}

/// What a pinned stage needs of its device.
pub(super) trait Home {
    /// Makes the device's context current, unless it is recording.
    fn enter(&self) -> Result<(), Error>;
    /// Whether so many bytes at an address are allocated.
    fn holds(&self, at: Ptr, bytes: usize) -> Result<(), Error>;
}

/// A stage in pinned memory, which the device reads by itself.
pub(super) struct Pinned<'a, H: Home> {
    home: &'a H,
    bytes: usize,
    stream: CUstream,
    buffers: [*mut u8; BUFFERS],
    sent: [CUevent; BUFFERS],
    /// the buffer lent last
    current: usize,
}

impl<'a, H: Home> Pinned<'a, H> {
    pub(super) fn new(home: &'a H, bytes: usize) -> Result<Self, Error> {
        home.enter()?;
        let (buffers, sent) = ([null_mut(); BUFFERS], [null_mut(); BUFFERS]);
        let mut stage = Pinned { home, bytes, stream: null_mut(), buffers, sent, current: 0 };
        let stream = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        let event = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current and the places written to live. What is made is freed by `drop`, also after
        // a part of it.
        unsafe {
            cu!(cuStreamCreate(&mut stage.stream, stream))?;
            for i in 0..BUFFERS {
                let mut at = null_mut();
                cu!(cuMemHostAlloc(&mut at, bytes.max(1), 0))?;
                stage.buffers[i] = at.cast();
                // no byte may be lent that was never written
                stage.buffers[i].write_bytes(0, bytes);
                cu!(cuEventCreate(&mut stage.sent[i], event))?;
            }
        }
        Ok(stage)
    }
}

impl<H: Home> Stage for Pinned<'_, H> {
    fn next(&mut self) -> Result<&mut [u8], Error> {
        self.home.enter()?;
        self.current = (self.current + 1) % BUFFERS;
        // SAFETY: the event exists; one that was never recorded has happened.
        unsafe { cu!(cuEventSynchronize(self.sent[self.current])) }?;
        // SAFETY: the buffer holds so many bytes, written by `new`; the device is done with it, and the borrow of self
        // keeps others away.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.buffers[self.current], self.bytes) })
    }

    fn send(&mut self, to: Ptr, bytes: Range<usize>) -> Result<(), Error> {
        self.home.enter()?;
        self.home.holds(to, bytes.len())?;
        let buffer = self.buffers[self.current];
        // SAFETY: as in `next`; nobody writes to it while this slice lives.
        let from = checked(unsafe { std::slice::from_raw_parts(buffer, self.bytes) }, bytes)?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the range on the device was checked; the buffer is not lent again before the event, and not freed
        // before the stream has ended.
        unsafe {
            cu!(cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.stream))?;
            cu!(cuEventRecord(self.sent[self.current], self.stream))
        }
    }

    fn arrived(&mut self) -> Result<(), Error> {
        self.home.enter()?;
        // SAFETY: the stream is ours.
        unsafe { cu!(cuStreamSynchronize(self.stream)) }
    }
}

impl<H: Home> Drop for Pinned<'_, H> {
    fn drop(&mut self) {
        let _ = self.home.enter();
        // SAFETY: each was made by the driver, or is null and left alone. What is under way is waited for first.
        unsafe {
            if !self.stream.is_null() {
                let _ = sys::cuStreamSynchronize(self.stream);
            }
            for i in 0..BUFFERS {
                if !self.sent[i].is_null() {
                    let _ = sys::cuEventDestroy_v2(self.sent[i]);
                }
                if !self.buffers[i].is_null() {
                    let _ = sys::cuMemFreeHost(self.buffers[i].cast());
                }
            }
            if !self.stream.is_null() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
        }
    }
}
