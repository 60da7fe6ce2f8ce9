//! sha256, always as 64 lower-case hexadecimal digits.

use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io::{self, Read};

/// A running sha256.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// An empty hash.
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// The digest in hexadecimal.
    pub fn hex(self) -> String {
        let mut out = String::with_capacity(64);
        for b in self.0.finalize() {
            let _ = write!(out, "{b:02x}");
        }
        out
    }
}

/// sha256 of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    let mut h = Hasher::new();
    h.update(bytes);
    h.hex()
}

/// sha256 of token ids, each as a little-endian `u32`.
pub fn sha256_ids(ids: &[u32]) -> String {
    let mut h = Hasher::new();
    for id in ids {
        h.update(&id.to_le_bytes());
    }
    h.hex()
}

/// sha256 of everything a reader yields; `progress` hears the bytes of each block.
///
/// # Errors
/// What the reader returns.
pub fn sha256_reader(mut r: impl Read, mut progress: impl FnMut(u64)) -> io::Result<String> {
    let mut h = Hasher::new();
    let mut block = vec![0u8; 1 << 20];
    loop {
        match r.read(&mut block) {
            Ok(0) => return Ok(h.hex()),
            Ok(n) => {
                h.update(&block[..n]);
                progress(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_empty_string_has_the_published_digest() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(super::sha256(b""), empty);
        assert_eq!(super::sha256_ids(&[]), empty);
        assert_eq!(super::sha256_reader(&b""[..], |_| ()).unwrap(), empty);
    }
}
