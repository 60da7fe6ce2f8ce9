//! Against the golden data: random models open with the right tensors, texts have transformers' ids and
//! renders.

use cute_checkpoint::{ChatTemplate, Checkpoint, Detokenizer, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A golden file and the directory its first key names, when both are there.
fn golden(file: &str, key: &str) -> Option<(Value, PathBuf)> {
    let path = root().join("tests/golden").join(file);
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: no golden data at {}", path.display());
        return None;
    };
    let data: Value = serde_json::from_str(&text).unwrap();
    let dir = root().join(data[key].as_str().unwrap());
    Some((data, dir))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// What a stream of the ids yields, put together; no piece may hold half a character.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = Detokenizer::default();
    let mut out: String = ids.iter().map(|&id| stream.push(tokenizer, id).unwrap()).collect();
    out += &stream.finish(tokenizer).unwrap();
    out
}

#[test]
fn every_random_model_opens_and_names_no_other_tower_by_mistake() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("tests/golden")).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.join("config.json").is_file() {
            continue;
        }
        let c = Checkpoint::open(&dir).unwrap();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(c.skipped().is_empty(), name != "wrapper", "{name}");
        assert_eq!(c.has("lm_head.weight"), !c.config.tie_word_embeddings, "{name}");
        assert_eq!(c.scan(|_| ()).unwrap(), Default::default(), "{name}");
        seen += 1;
    }
    if seen == 0 {
        eprintln!("skipped: no random models in tests/golden");
    }
}

#[test]
fn texts_have_the_ids_and_decodings_of_the_golden_file() {
    let Some((data, dir)) = golden("tokenize.json", "tokenizer") else { return };
    let tokenizer = Tokenizer::open(&dir).unwrap().unwrap();
    assert_eq!(tokenizer.vocab_size() as u64, data["vocab_size"].as_u64().unwrap());
    for (token, id) in data["special"].as_object().unwrap() {
        assert_eq!(tokenizer.id(token).map(u64::from), id.as_u64(), "{token}");
    }
    for case in data["encode"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids(&case["ids"]), "{text:?}");
    }
    for case in data["encode"].as_array().unwrap().iter().chain(data["decode"].as_array().unwrap()) {
        let (ids, want) = (ids(&case["ids"]), case["decoded_skip_special"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&ids).unwrap(), want, "{ids:?}");
        assert_eq!(streamed(&tokenizer, &ids), want, "{ids:?}");
    }
}

#[test]
fn messages_render_as_in_the_golden_file() {
    let Some((data, dir)) = golden("chat.json", "model") else { return };
    let template = ChatTemplate::open(&dir).unwrap().unwrap();
    let tokenizer = Tokenizer::open(&dir).unwrap().unwrap();
    for case in data["chats"].as_array().unwrap() {
        let messages = case["messages"].as_array().unwrap();
        let text = template.render(messages, case["add_generation_prompt"].as_bool().unwrap()).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text).unwrap(), ids(&case["ids"]), "{text:?}");
    }
}
