//! Tokenizers and chat templates: another model's, broken, endless.

use crate::Base::Single;
use crate::{Case, set};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// A tokenizer of whole words with the given ids.
fn words(d: &Path, ids: impl Iterator<Item = u32>) {
    let vocab: Map<String, Value> = ids.map(|i| (format!("t{i}"), json!(i))).collect();
    let model = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "t0"});
    fs::write(d.join(TOKENIZER), json!({"version": "1.0", "added_tokens": [], "model": model}).to_string())
        .unwrap();
}

/// Very many added tokens in both files; of the last one they say different things.
fn added(d: &Path) {
    const N: u32 = 20_000;
    let token = |i: u32| {
        json!({"id": i + 1, "content": format!("<{i}>"), "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": i.is_multiple_of(2)})
    };
    let all: Vec<Value> = (0..N).map(token).collect();
    let model = json!({"type": "WordLevel", "vocab": {"t0": 0}, "unk_token": "t0"});
    let file = json!({"version": "1.0", "added_tokens": all, "model": model});
    fs::write(d.join(TOKENIZER), file.to_string()).unwrap();
    let mut decoder: Map<String, Value> = (0..N).map(|i| ((i + 1).to_string(), token(i))).collect();
    decoder[&N.to_string()]["rstrip"] = json!(true);
    let mut config = json!({ "added_tokens_decoder": decoder });
    for i in 0..N {
        config[format!("x{i}_token")] = json!(format!("<{i}>"));
    }
    fs::write(d.join(TOKENIZER_CONFIG), config.to_string()).unwrap();
}

fn template(d: &Path, text: &str) {
    fs::write(d.join(TEMPLATE), text).unwrap();
}

pub const CASES: &[Case] = &[
    (
        "a tokenizer with more tokens than the model",
        Single,
        |d| words(d, 0..60),
        r#"DIR/tokenizer.json: token "t59" has id 59: config.json says vocab_size 50, so it is another model's tokenizer"#,
    ),
    (
        "a tokenizer with one token far away",
        Single,
        |d| words(d, [0, u32::MAX].into_iter()),
        r#"DIR/tokenizer.json: token "t4294967295" has id 4294967295: config.json says vocab_size 50, so it is another model's tokenizer"#,
    ),
    (
        "twenty thousand added tokens, of which two files say different things",
        Single,
        added,
        r#"DIR/tokenizer_config.json: added_tokens_decoder.20000 is "<19999>": expected tokenizer.json's flags for it: rstrip is true here and false there"#,
    ),
    (
        "a tokenizer whose last token is another's",
        Single,
        |d| {
            words(d, 0..50);
            fs::write(d.join(TOKENIZER_CONFIG), "{\"eos_token\":\"</s>\"}").unwrap();
        },
        r#"DIR/tokenizer_config.json: eos_token is "</s>": expected a token of tokenizer.json"#,
    ),
    ("a tokenizer without tokens", Single, |d| words(d, 0..0), "DIR/tokenizer.json: it has no tokens"),
    (
        "a tokenizer that is empty",
        Single,
        |d| fs::write(d.join(TOKENIZER), "").unwrap(),
        "DIR/tokenizer.json: not the JSON that belongs here: EOF while parsing a value at line 1 column 0",
    ),
    (
        "a tokenizer that is a list",
        Single,
        |d| fs::write(d.join(TOKENIZER), "[]").unwrap(),
        "DIR/tokenizer.json: invalid type: sequence, expected struct Tokenizer at line 1 column 2",
    ),
    (
        "a tokenizer of brackets",
        Single,
        |d| fs::write(d.join(TOKENIZER), "{\"model\":".repeat(10_000)).unwrap(),
        "DIR/tokenizer.json: not the JSON that belongs here: recursion limit exceeded at line 1 column 1144",
    ),
    (
        "a tokenizer of 65 MB",
        Single,
        |d| fs::write(d.join(TOKENIZER), " ".repeat(65 << 20)).unwrap(),
        "DIR/tokenizer.json: 68157440 bytes: expected at most 67108864",
    ),
    (
        "a tokenizer that is a directory",
        Single,
        |d| fs::create_dir(d.join(TOKENIZER)).unwrap(),
        "DIR/tokenizer.json: a directory: expected a regular file",
    ),
    (
        "a tokenizer of another kind",
        Single,
        |d| fs::write(d.join(TOKENIZER), r#"{"version": "9.0", "model": {"type": "Sampler"}}"#).unwrap(),
        "DIR/tokenizer.json: Unknown tokenizer version '9.0' at line 1 column 17",
    ),
    (
        "a tokenizer with an id below zero",
        Single,
        |d| {
            words(d, 0..9);
            crate::replace(d, TOKENIZER, "\"t8\":8", "\"t8\":-8");
        },
        "DIR/tokenizer.json: invalid value: integer `-8`, expected u32 at line 1 column 155",
    ),
    (
        "a tokenizer config that is a list",
        Single,
        |d| fs::write(d.join(TOKENIZER_CONFIG), "[]").unwrap(),
        "DIR/tokenizer_config.json: not the JSON that belongs here: expected an object, found []",
    ),
    (
        "a tokenizer config with a key twice",
        Single,
        |d| fs::write(d.join(TOKENIZER_CONFIG), r#"{"bos_token": "a", "bos_token": "b"}"#).unwrap(),
        r#"DIR/tokenizer_config.json: not the JSON that belongs here: "bos_token" stands twice at line 1 column 30"#,
    ),
    (
        "a template that is a number",
        Single,
        |d| set(d, TOKENIZER_CONFIG, "chat_template", json!(3)),
        r#"DIR/tokenizer_config.json: chat_template is 3: expected a template, or a list of {"name", "template"} with one named "default""#,
    ),
    (
        "templates without a default",
        Single,
        |d| {
            set(d, TOKENIZER_CONFIG, "chat_template", json!([{"name": "tool_use", "template": "x"}]));
        },
        r#"DIR/tokenizer_config.json: chat_template is a list of 1: expected a template, or a list of {"name", "template"} with one named "default""#,
    ),
    (
        "a template that does not parse",
        Single,
        |d| template(d, "{% for m in messages %}\n{{ m.content }"),
        "DIR/chat_template.jinja: chat template line 2: syntax error: unexpected `}`, expected end of variable block",
    ),
    (
        "a template with an unknown tag",
        Single,
        |d| template(d, "{% launch %}"),
        "DIR/chat_template.jinja: chat template line 1: syntax error: unknown statement launch",
    ),
    (
        "a template that is no UTF-8",
        Single,
        |d| fs::write(d.join(TEMPLATE), b"{{ \xff }}").unwrap(),
        "DIR/chat_template.jinja: chat template: invalid UTF-8 at byte 3",
    ),
    (
        "a template of 70 kB",
        Single,
        |d| template(d, &" ".repeat(70_000)),
        "DIR/chat_template.jinja: chat template: 70000 bytes: expected at most 65536",
    ),
    (
        "a template of nothing but signs",
        Single,
        |d| template(d, &format!("{{{{ {}1 }}}}", "-".repeat(60_000))),
        "DIR/chat_template.jinja: chat template: 60000 signs of ~ + - * / %: expected at most 8192",
    ),
    (
        "a template of nothing but brackets",
        Single,
        |d| template(d, &format!("{{{{ {}1 }}}}", "(".repeat(60_000))),
        "DIR/chat_template.jinja: chat template line 1: syntax error: template exceeds maximum recursion limits",
    ),
];
