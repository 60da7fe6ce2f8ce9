//! What tokenizer_config.json says of tokens: what is special by its word, what both files must say alike, who ends a reply.
//!
//! What is expected here is what transformers 5.17.0 does with the same files, where it does one thing only.

use crate::tiny::Tiny;
use cute_checkpoint::{Checkpoint, Tokenizer};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A small vocabulary: letters, an added token for thoughts, two special ones.
fn directory(change: impl FnOnce(&mut Value), config: Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"},
        "added_tokens": [added(3, "<think>", false), added(4, "<s>", true), added(5, "</s>", true)],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2}, "merges": [], "unk_token": null},
    });
    change(&mut file);
    fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// The ids of a text, and the text of those ids.
fn check(config: Value, text: &str, ids: &[u32], decoded: &str) {
    let dir = directory(|_| (), config.clone());
    let tokenizer = Tokenizer::open(dir.path()).unwrap().unwrap();
    assert_eq!(tokenizer.encode(text).unwrap(), ids, "{config}");
    assert_eq!(tokenizer.decode(ids).unwrap(), decoded, "{config}");
}

fn refused(config: Value, want: &str) {
    let dir = directory(|_| (), config.clone());
    let e = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert_eq!(e, format!("{}/tokenizer_config.json: {want}", dir.path().display()), "{config}");
}

#[test]
fn a_token_that_the_config_names_is_special_and_no_part_of_a_text() {
    let (text, ids) = ("a<think>b</s>", [0, 3, 1, 5]);
    check(json!({}), text, &ids, "a<think>b");
    for name in ["eos_token", "bos_token", "pad_token", "image_token"] {
        check(json!({name: "<think>"}), text, &ids, "ab");
        check(json!({name: {"content": "<think>", "lstrip": false}}), text, &ids, "ab");
    }
    check(json!({"eos_token": "a"}), "ab", &[0, 1], "b");
    for other in [json!({"eos_token": null}), json!({"add_bos_token": true}), json!({"unk_token": "<unk>"})] {
        check(other, text, &ids, "a<think>b");
    }
    check(json!({"additional_special_tokens": ["<think>"]}), text, &ids, "a<think>b");
}

#[test]
fn files_that_disagree_about_a_token_are_refused_with_both_words() {
    let token = |content: &str| json!({"content": content, "special": false, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    let decoder = |id: &str, token: Value| json!({"added_tokens_decoder": {id: token}});
    check(decoder("3", token("<think>")), "<think>", &[3], "<think>");
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
fn the_post_processor_puts_its_tokens_around_a_plain_text_and_not_around_a_rendered_one() {
    let first = |file: &mut Value| {
        file["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}});
    };
    // transformers leaves the file's own post-processor alone, whatever add_bos_token says
    for config in [json!({}), json!({"bos_token": "<s>", "add_bos_token": false})] {
        let tokenizer = Tokenizer::open(directory(first, config).path()).unwrap().unwrap();
        assert_eq!(tokenizer.encode_whole("ab").unwrap(), [4, 0, 1]);
        assert_eq!(tokenizer.encode("ab").unwrap(), [0, 1]);
    }
    let without =
        Tokenizer::open(directory(|_| (), json!({"bos_token": "<s>", "add_bos_token": true})).path());
    assert_eq!(without.unwrap().unwrap().encode_whole("ab").unwrap(), [0, 1]);
}

#[test]
fn the_ids_that_end_a_reply_come_from_the_first_file_that_names_any() {
    let ends = |generation: Option<Value>, config: Value, tokens: Value| {
        let mut tiny = Tiny { generation, ..Tiny::default() };
        tiny.set("eos_token_id", config);
        let (dir, words) = (tiny.write(), directory(|_| (), tokens));
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
