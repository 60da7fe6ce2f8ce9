//! Fuzzes the reader of region buffers (`.npy`).
#![no_main]

use cute_evidence::region::{Layout, analyse, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(buffer) = parse("x.npy", data) {
        analyse(&buffer, &Layout::default()).records();
    }
});
