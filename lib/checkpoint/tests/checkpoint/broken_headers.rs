//! Broken safetensors headers: tensor and offset are named, nothing is allocated for what is not there.

use crate::tiny::{NOTHING, check, raw_file};
use std::fs;
use std::path::Path;

/// Overwrites model.safetensors with any header and data.
fn put(d: &Path, header: &str, data: usize) {
    fs::write(d.join("model.safetensors"), raw_file(header, &vec![0; data])).unwrap();
}

#[test]
fn broken_headers_are_refused_with_tensor_and_offset() {
    check(
        NOTHING,
        |d| fs::write(d.join("model.safetensors"), "abc").unwrap(),
        "DIR/model.safetensors: bad safetensors header: the file has 3 bytes: expected at least the 8 of its length",
    );
    check(
        NOTHING,
        |d| fs::write(d.join("model.safetensors"), u64::MAX.to_le_bytes()).unwrap(),
        "DIR/model.safetensors: bad safetensors header: its length field says 18446744073709551615 bytes: expected at most 100000000",
    );
    check(
        NOTHING,
        |d| fs::write(d.join("model.safetensors"), 90_000_000u64.to_le_bytes()).unwrap(),
        "DIR/model.safetensors: bad safetensors header: its length field says 90000000 bytes: only 0 follow, the file is cut off",
    );
    check(
        NOTHING,
        |d| put(d, "not json", 0),
        "DIR/model.safetensors: bad safetensors header: expected ident at line 1 column 2",
    );
    check(
        NOTHING,
        |d| {
            put(
                d,
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            )
        },
        "DIR/model.safetensors: bad safetensors header: \"a\" stands twice at line 1 column 57",
    );
    check(
        NOTHING,
        |d| put(d, r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4),
        "DIR/model.safetensors: bad safetensors header: \"a\": dtype is \"F33\": expected a type of safetensors, such as BF16, F16 or F32 at line 1 column 19",
    );
    check(
        NOTHING,
        |d| {
            put(
                d,
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            )
        },
        "DIR/model.safetensors: tensor b at data offset 4: it overlaps a, which ends at 8",
    );
    check(
        NOTHING,
        |d| put(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        "DIR/model.safetensors: tensor a at data offset 4: 4 bytes before it belong to no tensor",
    );
    check(
        NOTHING,
        |d| put(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 8),
        "DIR/model.safetensors: tensor a at data offset 4: it ends at 0, before it starts",
    );
    check(
        NOTHING,
        |d| put(d, r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8),
        "DIR/model.safetensors: tensor a at data offset 0: 8 bytes: shape [3] of F32 takes 12",
    );
    check(
        NOTHING,
        |d| put(d, r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8),
        "DIR/model.safetensors: tensor a at data offset 0: shape [4294967296, 4294967296] of F32 overflows",
    );
    check(
        NOTHING,
        |d| {
            let path = d.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        },
        "DIR/model.safetensors: 9175 bytes: its header says 9180, the file is cut off in tensor model.norm.weight",
    );
    check(
        NOTHING,
        |d| {
            let path = d.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, [bytes.as_slice(), b"\n"].concat()).unwrap();
        },
        "DIR/model.safetensors: 9181 bytes: its header says 9180, 1 bytes are left over",
    );
}
