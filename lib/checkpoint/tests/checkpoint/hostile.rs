//! Hostile input: whatever the bytes, opening ends in an error or a checkpoint, never in a panic; and what
//! opens, the `safetensors` crate accepts too.

use crate::tiny::{Tiny, bytes};
use cute_checkpoint::{ChatTemplate, Checkpoint, Config, Detokenizer, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// Values that a careless or malicious writer puts where a number or a list belongs.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0u64..64).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!([null, 1, "linear_attention"])),
        Just(json!({"rope_theta": 1e300, "rope_type": 3})),
    ]
}

fn key() -> impl Strategy<Value = String> {
    let keys: Vec<String> = Tiny::default().config.as_object().unwrap().keys().cloned().collect();
    let more =
        ["text_config", "rope_scaling", "quantization_config", "full_attention_interval", "num_experts"];
    prop::sample::select(keys.into_iter().chain(more.map(str::to_owned)).collect::<Vec<_>>())
}

/// Any token of the trained tokenizer, and often one that is a single byte of a longer character.
fn token() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..800, prop::sample::select(vec![127u32, 120, 172, 224, 247, 253])]
}

/// Any characters, and often those that templates are made of.
fn text() -> impl Strategy<Value = String> {
    let tags = prop::sample::select(vec![
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "'",
        "\"",
        "\\",
        "-",
        " ",
        "\n",
        "é",
        "x",
        "messages",
        "0",
        "9",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "~",
        "*",
        "|",
        ".",
        ",",
        ":",
        "=",
        "raw",
        "endraw",
        "if",
        "for",
        "in",
        "endfor",
        "endif",
        "set",
        "macro",
        "endmacro",
        "not",
        "is",
        "range",
        "generation",
        "endgeneration",
        "string",
        "join",
        "tojson",
    ]);
    prop_oneof!["\\PC{0,80}", prop::collection::vec(tags, 0..24).prop_map(|parts| parts.concat())]
}

/// Does the work, and ends the process with the text that it was done on when it takes minutes.
fn in_time(text: String, work: impl FnOnce() + Send + 'static) {
    let (done, end) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    if end.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
        eprintln!("no end within two minutes: {text:?}");
        std::process::abort();
    }
    thread.join().unwrap();
}

/// Opens, and if that works reads everything.
fn exercise(dir: &std::path::Path) -> bool {
    let Ok(c) = Checkpoint::open(dir) else { return false };
    let names: Vec<String> = c.tensor_names().map(str::to_owned).collect();
    for name in names {
        c.tensor(&name).unwrap();
    }
    c.scan(|_| ()).unwrap();
    let files = c.digest(|_| ()).unwrap();
    let plan = cute_checkpoint::memory_plan(&c.config, c.weight_bytes(), 4, u64::MAX, u64::MAX, 0);
    c.model(files, None, plan);
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_config_with_any_values_never_panics(changes in prop::collection::vec((key(), value()), 1..4)) {
        let mut tiny = Tiny::default();
        for (key, value) in changes {
            tiny.config.as_object_mut().unwrap().insert(key, value);
        }
        let dir = tiny.write();
        exercise(dir.path());
    }

    #[test]
    fn config_bytes_of_any_kind_never_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Config::parse(("config.json", &text), Some(("generation_config.json", &text)));
    }

    #[test]
    fn a_damaged_file_never_panics_and_is_accepted_only_if_the_crate_accepts_it(
        edits in prop::collection::vec((0usize..3600, any::<u8>()), 0..6),
        cut in prop_oneof![3 => Just(None), 1 => (0usize..9200).prop_map(Some)],
    ) {
        let tiny = Tiny::default();
        let dir = tiny.write();
        let mut file = bytes(&tiny.tensors);
        for (at, byte) in edits {
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut);
        }
        std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
        if exercise(dir.path()) {
            prop_assert!(safetensors::SafeTensors::deserialize(&file).is_ok());
        }
    }

    #[test]
    fn a_damaged_header_of_packed_weights_never_panics(
        name in prop::sample::select(vec!["modelopt-mixed", "compressed-mixed", "next-fp8"]),
        edits in prop::collection::vec((0usize..12_000, prop::sample::select(b"0123456789[]{}F8B_U\",".to_vec())), 1..4),
        quantization in prop::option::of(value()),
    ) {
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/formats").join(name);
        let dir = tempfile::tempdir().unwrap();
        let mut file = std::fs::read(from.join("model.safetensors")).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        for (at, byte) in edits {
            file[8 + at % header] = byte;
        }
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        let mut config: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
        if let Some(value) = quantization {
            let keys = config["quantization_config"].as_object_mut().unwrap();
            let first = keys.keys().nth(value.to_string().len() % keys.len()).unwrap().clone();
            keys[&first] = value;
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        exercise(dir.path());
    }

    #[test]
    fn offsets_and_shapes_of_any_size_never_panic(
        shape in prop::collection::vec(any::<u64>(), 0..4),
        offsets in (any::<u64>(), any::<u64>()),
        data in 0usize..64,
    ) {
        let dir = Tiny::default().write();
        let header = json!({"a": {"dtype": "F4", "shape": shape, "data_offsets": offsets}}).to_string();
        let file = crate::tiny::raw_file(&header, &vec![0; data]);
        std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
        prop_assert!(!exercise(dir.path()));
    }

    #[test]
    fn tokenizer_and_template_bytes_of_any_kind_never_panic(text in text(), json in value()) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), &text).unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), json!({"chat_template": json}).to_string()).unwrap();
        in_time(format!("{text}\nor {json}"), move || {
            let _ = (Tokenizer::open(dir.path()), ChatTemplate::open(dir.path()));
            std::fs::write(dir.path().join("chat_template.jinja"), &text).unwrap();
            if let Ok(Some(template)) = ChatTemplate::open(dir.path()) {
                let _ = template.render(&[json!({"role": "user", "content": "x"})], true);
            }
        });
    }

    #[test]
    fn a_damaged_index_never_panics(edits in prop::collection::vec((0usize..1500, any::<u8>()), 1..6)) {
        let tiny = Tiny { second_shard: vec!["model.layers.1"], ..Tiny::default() };
        let dir = tiny.write();
        let path = dir.path().join(crate::tiny::INDEX);
        let mut index = std::fs::read(&path).unwrap();
        for (at, byte) in edits {
            index[at] = byte;
        }
        std::fs::write(&path, index).unwrap();
        exercise(dir.path());
    }

    #[test]
    fn any_ids_stream_to_what_decode_gives(ids in prop::collection::vec(token(), 0..200), runs in 0usize..300) {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tiny-hybrid");
        let Some(tokenizer) = Tokenizer::open(&dir).unwrap() else {
            eprintln!("skipped: no tokenizer at {}", dir.display());
            return Ok(());
        };
        // Between them a long run of one token, often half a character that is never completed.
        let (head, tail) = ids.split_at(ids.len() / 2);
        let middle = std::iter::repeat_n(ids.first().copied().unwrap_or(172), runs);
        let all: Vec<u32> = head.iter().copied().chain(middle).chain(tail.iter().copied()).collect();
        let mut stream = Detokenizer::default();
        let mut text = String::new();
        for &id in &all {
            text += &stream.push(&tokenizer, id).unwrap();
        }
        text += &stream.finish(&tokenizer).unwrap();
        prop_assert_eq!(text, tokenizer.decode(&all).unwrap());
    }
}
