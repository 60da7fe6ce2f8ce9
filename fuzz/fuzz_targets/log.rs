//! Fuzzes the reader of text logs.
#![no_main]

use cute_evidence::logs::{self, PackSet};
use cute_records::{Record, WriteError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(packs) = PackSet::auto() else { return };
    let mut sink = |_: Record| -> Result<(), WriteError> { Ok(()) };
    if let Ok(c) = logs::extract("log", data, &packs, &mut sink) {
        assert_eq!(c.matched + c.ignored + c.unmatched, c.lines);
    }
});
