//! What reaches the chat template: messages, tools and variables, of the request and of the command line.

mod common;

use common::{records, root, stderr};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// The tiny model with a template of this test.
fn model(dir: &Path, template: &str) {
    for entry in fs::read_dir(root().join("examples/tiny-hybrid").canonicalize().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        symlink(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    let file = dir.join("chat_template.jinja");
    fs::remove_file(&file).unwrap();
    fs::write(file, template).unwrap();
}

/// What the template says it was given, request by request, or why a request was refused.
fn said(template: &str, prompts: &[Value], args: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), template);
    let lines: String = prompts.iter().map(|p| format!("{p}\n")).collect();
    fs::write(dir.path().join("prompts.jsonl"), lines).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cute-generate"));
    command.arg("--model").arg(dir.path()).arg("--prompts").arg(dir.path().join("prompts.jsonl"));
    let output = command.args(["--device", "cpu", "--max-tokens", "1"]).args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let all = records(&output.stdout);
    let replies = all.iter().filter(|r| r["type"] == "completion");
    let error = |r: &Value| r["error"].as_str().unwrap().to_owned();
    replies
        .map(error)
        .map(|e| e.split_once(" line 1: ").map_or(e.clone(), |(_, said)| said.to_owned()))
        .collect()
}

#[test]
fn tools_and_variables_reach_the_template_and_a_requests_own_come_on_top() {
    let template = "{{ raise_exception([tools, enable_thinking, style, messages | length] | tojson) }}";
    let messages = json!([{"role": "user", "content": "hi"}]);
    let tool = json!({"type": "function", "function": {"name": "f<b>", "description": "é \"q\""}});
    let prompts = [
        json!({"messages": messages, "tools": [tool], "chat_template_kwargs": {"enable_thinking": true}}),
        json!({"messages": messages, "tools": []}),
        json!({"prompt": "hi", "chat_template_kwargs": {"style": null}}),
        json!({"messages": messages, "chat_template_kwargs": {"messages": []}}),
        json!({"prompt_token_ids": [1], "tools": [tool]}),
    ];
    let kwargs = ["--chat", "--chat-template-kwargs", r#"{"enable_thinking": false, "style": "brief"}"#];
    let found = said(template, &prompts, &kwargs);
    let tool = r#"{"type": "function", "function": {"name": "f<b>", "description": "é \"q\""}}"#;
    assert_eq!(found[0], format!("[[{tool}], true, \"brief\", 1]"));
    assert_eq!(found[1..3], ["[[], false, \"brief\", 1]", "[null, false, null, 1]"]);
    assert!(
        found[3].ends_with("chat_template_kwargs holds messages, which is no variable of its own"),
        "{}",
        found[3]
    );
    assert!(
        found[4].ends_with("tools is for the chat template: expected messages, or --chat"),
        "{}",
        found[4]
    );
}

#[test]
fn what_a_template_would_never_see_is_refused() {
    let found = said(
        "",
        &[json!({"prompt": "hi", "chat_template_kwargs": {}}), json!({"question": "1 + 1?", "tools": []})],
        &[],
    );
    assert!(
        found[0].ends_with("chat_template_kwargs is for the chat template: expected messages, or --chat"),
        "{found:?}"
    );
    assert!(found[1].ends_with("tools is for the chat template: expected messages, or --chat"), "{found:?}");
}

#[test]
fn a_template_is_chosen_by_name_and_bad_choices_refuse_to_start() {
    let run = |args: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        model(dir.path(), "");
        fs::write(dir.path().join("prompts.jsonl"), "{\"prompt\":\"hi\"}\n").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cute-generate"));
        command.arg("--model").arg(dir.path()).arg("--prompts").arg(dir.path().join("prompts.jsonl"));
        let output = command.args(["--device", "cpu", "--max-tokens", "1"]).args(args).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    assert_eq!(run(&["--chat-template", "default"]).0, Some(0));
    let (code, stderr) = run(&["--chat-template", "tool_use"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("there is no template \"tool_use\": expected default"), "{stderr}");
    let (code, stderr) = run(&["--chat-template-kwargs", "[1]"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("expected a JSON object"), "{stderr}");
    let (code, stderr) = run(&["--chat-template-kwargs", r#"{"n": 18446744073709551616}"#]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("the integer 18446744073709551616 would lose digits"), "{stderr}");
}

#[test]
fn an_integer_that_would_lose_digits_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path(), "{{ messages[0].n | tojson }}");
    let line = |n: &str| format!("{{\"messages\": [{{\"role\": \"user\", \"n\": {n}}}]}}\n");
    let prompts = dir.path().join("prompts.jsonl");
    fs::write(&prompts, line("18446744073709551615") + &line("10000000000000000000000001")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cute-generate"));
    command.arg("--model").arg(dir.path()).arg("--prompts").arg(&prompts);
    let output = command.args(["--device", "cpu", "--max-tokens", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let says =
        "prompts.jsonl:2: the integer 10000000000000000000000001 would lose digits: expected one of 64 bits";
    assert!(stderr(&output).contains(says), "{}", stderr(&output));
    assert_eq!(records(&output.stdout).iter().filter(|r| r["type"] == "completion").count(), 1);
}
