//! Fuzzes the reader of `sharegpt_outputs.jsonl` and `sharegpt.json`.
#![no_main]

use cute_evidence::adapters::{Kind, read_as};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = read_as(Kind::ShareGpt, "x", data.to_vec());
    let _ = read_as(Kind::ShareGptTurns, "x", data.to_vec());
});
