//! Fuzzes the reader of `verdict.json`.
#![no_main]

use cute_evidence::adapters::{Kind, read_as};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = read_as(Kind::Verdict, "x", data.to_vec());
});
