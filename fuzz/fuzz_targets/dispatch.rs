//! Fuzzes the reader of `dispatch_audit.json`.
#![no_main]

use cute_evidence::adapters::{Kind, read_as};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = read_as(Kind::DispatchAudit, "x", data.to_vec());
});
