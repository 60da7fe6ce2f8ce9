//! Fuzzes the reader of record lines.
#![no_main]

use cute_records::Reader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for line in Reader::new("x", data).max_line(1 << 16) {
        let _ = line.and_then(|line| line.parse());
    }
});
