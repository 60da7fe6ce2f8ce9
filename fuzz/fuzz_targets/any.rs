//! Fuzzes the reader of files of any kind, recognised by content.
#![no_main]

use cute_evidence::{adapters, provenance::Leg};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(evidence) = adapters::read_bytes("x_output.txt", data.to_vec()) {
        Leg::from_records("x", &evidence.records);
    }
});
