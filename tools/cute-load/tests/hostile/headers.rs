//! Hostile headers of a safetensors file: lengths, offsets, shapes, types, names, nesting.

use crate::Base::Single;
use crate::{Case, WEIGHTS, header, header_bytes};
use std::fs;

pub const CASES: &[Case] = &[
    (
        "an empty file",
        Single,
        |d| fs::write(d.join(WEIGHTS), "").unwrap(),
        "DIR/model.safetensors: bad safetensors header: the file has 0 bytes: expected at least the 8 of its length",
    ),
    (
        "seven bytes",
        Single,
        |d| fs::write(d.join(WEIGHTS), [0; 7]).unwrap(),
        "DIR/model.safetensors: bad safetensors header: the file has 7 bytes: expected at least the 8 of its length",
    ),
    (
        "a header of 2^63 bytes",
        Single,
        |d| fs::write(d.join(WEIGHTS), (1u64 << 63).to_le_bytes()).unwrap(),
        "DIR/model.safetensors: bad safetensors header: its length field says 9223372036854775808 bytes: expected at most 100000000",
    ),
    (
        "a header of 2^64 - 1 bytes",
        Single,
        |d| fs::write(d.join(WEIGHTS), u64::MAX.to_le_bytes()).unwrap(),
        "DIR/model.safetensors: bad safetensors header: its length field says 18446744073709551615 bytes: expected at most 100000000",
    ),
    (
        "a header longer than any",
        Single,
        |d| fs::write(d.join(WEIGHTS), 100_000_001u64.to_le_bytes()).unwrap(),
        "DIR/model.safetensors: bad safetensors header: its length field says 100000001 bytes: expected at most 100000000",
    ),
    (
        "a header longer than the file",
        Single,
        |d| fs::write(d.join(WEIGHTS), [9, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']).unwrap(),
        "DIR/model.safetensors: bad safetensors header: its length field says 9 bytes: only 2 follow, the file is cut off",
    ),
    (
        "a header of no bytes",
        Single,
        |d| header(d, "", 0),
        "DIR/model.safetensors: bad safetensors header: EOF while parsing a value at line 1 column 0",
    ),
    (
        "100 MB of zeros as header",
        Single,
        |d| {
            fs::write(d.join(WEIGHTS), 100_000_000u64.to_le_bytes()).unwrap();
            fs::File::options().write(true).open(d.join(WEIGHTS)).unwrap().set_len(100_000_008).unwrap();
        },
        "DIR/model.safetensors: bad safetensors header: expected value at line 1 column 1",
    ),
    (
        "100 MB of one name",
        Single,
        |d| header(d, &format!("{{\"{}\":0}}", "a".repeat(99_999_994)), 0),
        r#"DIR/model.safetensors: bad safetensors header: a name of 99999994 bytes, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…": expected at most 512 at line 1 column 99999997"#,
    ),
    (
        "100 MB of one shape",
        Single,
        |d| {
            header(d, &format!(r#"{{"a":{{"shape":[{}1]}}}}"#, "1,".repeat(49_999_980)), 0);
        },
        r#"DIR/model.safetensors: bad safetensors header: "a": shape: more than 8 dimensions at line 1 column 33"#,
    ),
    (
        "100 MB of one type",
        Single,
        |d| header(d, &format!(r#"{{"a":{{"dtype":"{}"}}}}"#, "F".repeat(99_999_980)), 0),
        r#"DIR/model.safetensors: bad safetensors header: "a": dtype is "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF…": expected a type of safetensors, such as BF16, F16 or F32 at line 1 column 99999997"#,
    ),
    (
        "100 MB of brackets",
        Single,
        |d| header(d, &format!(r#"{{"a":{{"x":{}"#, "[".repeat(99_999_980)), 0),
        r#"DIR/model.safetensors: bad safetensors header: "a": EOF while parsing a list at line 1 column 99999990"#,
    ),
    (
        "100 MB of tensors",
        Single,
        |d| {
            let entries: Vec<String> = (0..1_700_000)
                .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
                .collect();
            header(d, &format!("{{{}}}", entries.join(",")), 0);
        },
        "DIR/model.safetensors: bad safetensors header: more than 1048576 tensors at line 1 column 59706308",
    ),
    (
        "deep nesting in a tensor",
        Single,
        |d| header(d, &format!(r#"{{"a":{{"shape":{}"#, "[".repeat(100_000)), 0),
        r#"DIR/model.safetensors: bad safetensors header: "a": shape: invalid type: sequence, expected usize at line 1 column 15"#,
    ),
    (
        "a header that is no UTF-8",
        Single,
        |d| header_bytes(d, b"{\"a\xff\":0}", 0),
        "DIR/model.safetensors: bad safetensors header: invalid UTF-8 at byte 3",
    ),
    (
        "a header that is a list",
        Single,
        |d| header(d, "[1, 2]", 0),
        "DIR/model.safetensors: bad safetensors header: invalid type: sequence, expected an object of tensors by name at line 1 column 0",
    ),
    (
        "a header with more behind it",
        Single,
        |d| header(d, "{} {}", 0),
        "DIR/model.safetensors: bad safetensors header: trailing characters at line 1 column 4",
    ),
    (
        "a header cut off",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","sha"#, 0),
        r#"DIR/model.safetensors: bad safetensors header: "a": EOF while parsing a string at line 1 column 24"#,
    ),
    (
        "a tensor that stands twice",
        Single,
        |d| {
            header(
                d,
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            )
        },
        r#"DIR/model.safetensors: bad safetensors header: "a" stands twice at line 1 column 57"#,
    ),
    (
        "a key that stands twice",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": duplicate field `dtype` at line 1 column 27"#,
    ),
    (
        "metadata that are no strings",
        Single,
        |d| header(d, r#"{"__metadata__":{"format":1}}"#, 0),
        r#"DIR/model.safetensors: bad safetensors header: "__metadata__": invalid type: integer `1`, expected a string at line 1 column 27"#,
    ),
    (
        "a tensor without dtype",
        Single,
        |d| header(d, r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": dtype: missing field `dtype` at line 1 column 39"#,
    ),
    (
        "a tensor that is null",
        Single,
        |d| header(d, r#"{"a":null}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": invalid type: null, expected an object with dtype, shape and data_offsets at line 1 column 9"#,
    ),
    (
        "an unknown dtype",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": dtype is "F33": expected a type of safetensors, such as BF16, F16 or F32 at line 1 column 19"#,
    ),
    (
        "a dtype that is a number",
        Single,
        |d| header(d, r#"{"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": dtype: invalid type: integer `32`, expected a string at line 1 column 16"#,
    ),
    (
        "a negative extent",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": shape: invalid value: integer `-1`, expected usize at line 1 column 31"#,
    ),
    (
        "half an extent",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": shape: invalid type: floating point `1.5`, expected usize at line 1 column 32"#,
    ),
    (
        "an extent in words",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": shape: invalid type: string "1", expected usize at line 1 column 32"#,
    ),
    (
        "nine dimensions",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": shape: more than 8 dimensions at line 1 column 47"#,
    ),
    (
        "a product of extents beyond 64 bits",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4),
        "DIR/model.safetensors: tensor a at data offset 0: shape [4294967296, 4294967296] of F32 overflows",
    ),
    (
        "bytes beyond 64 bits",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}}"#, 4),
        "DIR/model.safetensors: tensor a at data offset 0: shape [9223372036854775807] of F32 overflows",
    ),
    (
        "half a byte",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#, 2),
        "DIR/model.safetensors: tensor a at data offset 0: shape [3] of F4 takes no whole number of bytes",
    ),
    (
        "no extent, and yet bytes",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,4]}}"#, 4),
        "DIR/model.safetensors: tensor a at data offset 0: 4 bytes: shape [0, 7] of F32 takes 0",
    ),
    (
        "fewer bytes than the shape takes",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8),
        "DIR/model.safetensors: tensor a at data offset 0: 8 bytes: shape [3] of F32 takes 12",
    ),
    (
        "an end before the beginning",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
        "DIR/model.safetensors: tensor a at data offset 4: it ends at 0, before it starts",
    ),
    (
        "an end behind the file",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4),
        "DIR/model.safetensors: 66 bytes: its header says 70, the file is cut off in tensor a",
    ),
    (
        "an end behind every file",
        Single,
        |d| {
            header(
                d,
                r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
                4,
            )
        },
        "DIR/model.safetensors: tensor a at data offset 0: shape [18446744073709551615] of U8 overflows",
    ),
    (
        "a gap before the first tensor",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        "DIR/model.safetensors: tensor a at data offset 4: 4 bytes before it belong to no tensor",
    ),
    (
        "a gap between tensors, listed backwards",
        Single,
        |d| {
            header(
                d,
                r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                12,
            )
        },
        "DIR/model.safetensors: tensor b at data offset 8: 4 bytes before it belong to no tensor",
    ),
    (
        "tensors that overlap",
        Single,
        |d| {
            header(
                d,
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            )
        },
        "DIR/model.safetensors: tensor b at data offset 4: it overlaps a, which ends at 8",
    ),
    (
        "two tensors of the same bytes",
        Single,
        |d| {
            header(
                d,
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
            )
        },
        "DIR/model.safetensors: tensor b at data offset 0: it overlaps a, which ends at 4",
    ),
    (
        "a tensor at an odd offset",
        Single,
        |d| {
            header(
                d,
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
                6,
            )
        },
        "DIR/model.safetensors: tensor b at data offset 2: 1 bytes before it belong to no tensor",
    ),
    (
        "offsets near 2^64",
        Single,
        |d| {
            header(
                d,
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[18446744073709551608,18446744073709551612]}}"#,
                4,
            )
        },
        "DIR/model.safetensors: tensor a at data offset 18446744073709551608: 18446744073709551608 bytes before it belong to no tensor",
    ),
    (
        "offsets beyond 2^64",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": data_offsets: invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 70"#,
    ),
    (
        "a negative offset",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": data_offsets: invalid value: integer `-4`, expected u64 at line 1 column 50"#,
    ),
    (
        "half an offset",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.5]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": data_offsets: invalid type: floating point `4.5`, expected u64 at line 1 column 53"#,
    ),
    (
        "an offset that is no number",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": data_offsets: number out of range at line 1 column 55"#,
    ),
    (
        "three offsets",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": data_offsets: trailing characters at line 1 column 53"#,
    ),
    (
        "one offset",
        Single,
        |d| header(d, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: "a": data_offsets: invalid length 1, expected a tuple of size 2 at line 1 column 50"#,
    ),
    (
        "a name that colours the terminal",
        Single,
        |d| header(d, r#"{"\u001b[31ma":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4),
        r#"DIR/model.safetensors: bad safetensors header: name "\u{1b}[31ma": expected no control characters at line 1 column 14"#,
    ),
    (
        "a name of 600 letters",
        Single,
        |d| header(d, &format!(r#"{{"{}":0}}"#, "ab".repeat(300)), 0),
        r#"DIR/model.safetensors: bad safetensors header: a name of 600 bytes, "abababababababababababababababababababababababababababababababababababababababab…": expected at most 512 at line 1 column 603"#,
    ),
];
