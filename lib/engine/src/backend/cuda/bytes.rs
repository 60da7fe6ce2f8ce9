//! Device memory by its bytes: filled, compared, digested.

use super::gpu::{Arg, Join, Launch, Ptr};
use super::{Buf, Cuda, ptr, units};
use crate::Error;
use cute_records::digest::Hasher;

impl Cuda {
    /// Fills a buffer but for what is zero behind its rows: kernels read a row to its padded end.
    pub(super) fn fill_buf(&self, buf: &Buf, byte: u8) -> Result<(), Error> {
        if buf.width == buf.ld {
            return self.gpu().fill(buf.at, byte, buf.rows * buf.ld * 4);
        }
        let row = |i: usize| buf.at + (i * buf.ld * 4) as u64;
        (0..buf.rows).try_for_each(|i| self.gpu().fill(row(i), byte, buf.width * 4))
    }

    /// sha256 of parts of the device's memory.
    pub(super) fn digest(&self, parts: impl Iterator<Item = (Ptr, usize)>) -> Result<String, Error> {
        let mut hasher = Hasher::new();
        for (at, bytes) in parts {
            let mut part = vec![0; bytes];
            self.gpu().download(&mut part, at)?;
            hasher.update(&part);
        }
        Ok(hasher.hex())
    }

    /// Whether every byte of parts of the device's memory is this.
    pub(super) fn holds(&self, parts: impl Iterator<Item = (Ptr, usize)>, byte: u8) -> Result<bool, Error> {
        let flag = self.argmax;
        self.gpu().fill(flag, 0, 4)?;
        let kernel = self.kernel(units::plain("elementwise.cu"), "any_other", 0)?;
        for (at, bytes) in parts {
            let blocks = (bytes / 4).div_ceil(4096).clamp(1, 1024) as u32;
            let launch = Launch { grid: [blocks, 1, 1], block: 256, smem: 0, join: Join::Plain };
            let word = Arg::U32(u32::from_ne_bytes([byte; 4]));
            self.gpu().launch(kernel, launch, &[ptr(flag), ptr(at), Arg::U64(bytes as u64 / 4), word])?;
        }
        let mut found = [0u8; 4];
        self.gpu().download(&mut found, flag)?;
        Ok(found == [0; 4])
    }
}
