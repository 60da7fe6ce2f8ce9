//! Fuzzes the reader of lm-eval samples.
#![no_main]

use cute_evidence::adapters::{Kind, read_as};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = read_as(Kind::LmEval, "x", data.to_vec());
});
