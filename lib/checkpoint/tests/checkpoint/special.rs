//! What tokenizer_config.json says of tokens: what is special by its word, what both files must say alike, who ends a reply.
//!
//! What comes of files that agree is what transformers makes of them: `special_cases.json`, by `make_special_cases.py`.

use crate::tiny::Tiny;
use cute_checkpoint::{Checkpoint, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// What `make_special_cases.py` made.
fn golden() -> Value {
    serde_json::from_str(include_str!("special_cases.json")).unwrap()
}

/// The two files: a small vocabulary of letters, an added token for thoughts, two special ones.
fn directory(post_processor: &Value, config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut file = golden()["tokenizer"].clone();
    file["post_processor"] = post_processor.clone();
    fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// Asserts that both files are accepted.
fn sound(config: Value) {
    Tokenizer::open(directory(&Value::Null, &config).path()).unwrap().unwrap();
}

fn refused(config: Value, want: &str) {
    let dir = directory(&Value::Null, &config);
    let e = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert_eq!(e, format!("{}/tokenizer_config.json: {want}", dir.path().display()), "{config}");
}

#[test]
fn texts_have_the_ids_and_decodings_that_transformers_gives_them_under_each_config() {
    let data = golden();
    let (mut special, cases) = (0, data["cases"].as_array().unwrap());
    for case in cases {
        let first = if case["first"] == true { &data["first"] } else { &Value::Null };
        let tokenizer = Tokenizer::open(directory(first, &case["config"]).path()).unwrap().unwrap();
        let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids("ids"), "{case}");
        assert_eq!(tokenizer.encode_whole(text).unwrap(), ids("whole"), "{case}");
        let decoded = tokenizer.decode(&ids("ids")).unwrap();
        assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{case}");
        special += u32::from(text.contains("<think>") && !decoded.contains("<think>"));
    }
    assert!(
        cases.len() > 100 && special > 10,
        "{} cases, {special} with a thought that is special",
        cases.len()
    );
}

#[test]
fn files_that_disagree_about_a_token_are_refused_with_both_words() {
    let token = |content: &str| json!({"content": content, "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let decoder = |id: &str, token: Value| json!({"added_tokens_decoder": {id: token}});
    sound(decoder("3", token("<think>")));
    sound(json!({"unk_token": "<unk>", "pad_token": "<pad>"}));
    let expect = |id: &str, content: &str, want: &str| {
        refused(
            decoder(id, token(content)),
            &format!("added_tokens_decoder.{id} is {content:?}: expected {want}"),
        );
    };
    expect("4", "<think>", "tokenizer.json's id for it, which is 3");
    expect("6", "<new>", "a token of tokenizer.json, which has none of that name");
    expect("0", "a", "an added token of tokenizer.json too, where it is an ordinary one");
    for flag in ["special", "lstrip", "rstrip", "single_word", "normalized"] {
        let mut other = token("<think>");
        other[flag] = json!(true);
        let want = format!("tokenizer.json's flags for it: {flag} is true here and false there");
        refused(decoder("3", other), &format!("added_tokens_decoder.3 is \"<think>\": expected {want}"));
    }
    let shape = "expected an added token: an object with `content` under its id";
    refused(decoder("3", json!(7)), &format!("added_tokens_decoder.3 is 7: {shape}"));
    refused(
        decoder("x", json!({"content": "a"})),
        &format!("added_tokens_decoder.x is {{\"content\":\"a\"}}: {shape}"),
    );
    refused(json!({"added_tokens_decoder": []}), "added_tokens_decoder is []: expected an object");
    refused(json!({"eos_token": "<nope>"}), "eos_token is \"<nope>\": expected a token of tokenizer.json");
    refused(json!({"bos_token": "<nope>"}), "bos_token is \"<nope>\": expected a token of tokenizer.json");
}

#[test]
fn the_ids_that_end_a_reply_come_from_the_first_file_that_names_any() {
    let ends = |generation: Option<Value>, config: Value, tokens: Value| {
        let mut tiny = Tiny { generation, ..Tiny::default() };
        tiny.set("eos_token_id", config);
        let (dir, words) = (tiny.write(), directory(&Value::Null, &tokens));
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(words.path().join(file), dir.path().join(file)).unwrap();
        }
        let open = |dir: &Path| Checkpoint::open(dir).unwrap().config.eos_token_ids;
        open(dir.path())
    };
    let token = json!({"eos_token": "</s>"});
    assert_eq!(ends(Some(json!({"eos_token_id": [5, 4, 5]})), json!(1), token.clone()), [5, 4]);
    assert_eq!(ends(Some(json!({})), json!([2, 1]), token.clone()), [2, 1]);
    assert_eq!(ends(None, json!(null), token), [5]);
    assert_eq!(ends(None, json!(null), json!({})), [0; 0]);
}

#[test]
fn a_tokenizer_without_a_token_for_each_id_that_ends_a_reply_is_another_models() {
    let check = |generation: Option<Value>, config: Value| {
        let mut tiny = Tiny { generation, ..Tiny::default() };
        tiny.set("eos_token_id", config);
        let (dir, words) = (tiny.write(), directory(&Value::Null, &json!({"eos_token": "</s>"})));
        fs::copy(words.path().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        let config = Checkpoint::open(dir.path()).unwrap().config;
        let checked = Tokenizer::open(dir.path()).unwrap().unwrap().check(&config);
        checked.map_err(|e| e.to_string().replace(&dir.path().display().to_string(), "DIR"))
    };
    // Ids 0 to 5 have tokens; the embedding has eleven rows, as if it were padded.
    assert_eq!(check(Some(json!({"eos_token_id": [5, 0]})), json!(9)), Ok(()));
    let wants = |id: u32, file: &str| {
        Err(format!(
            "DIR/tokenizer.json: it has 6 tokens, none of id {id}: {file} says eos_token_id {id}, so it is another model's tokenizer"
        ))
    };
    assert_eq!(check(None, json!(9)), wants(9, "config.json"));
    // One of several is enough: the model ends its replies in a way that this tokenizer cannot mean.
    assert_eq!(check(Some(json!({"eos_token_id": [5, 7]})), json!(5)), wants(7, "generation_config.json"));
}
