//! Templates against what Jinja2 renders in transformers' environment: `chat_cases.json`, made by
//! `make_chat_cases.py`.

use cute_checkpoint::ChatTemplate;
use serde_json::{Value, json};

fn render(template: &str, case: &Value) -> Result<String, String> {
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"}).as_object().unwrap().clone();
    let variables = case["variables"].as_object().unwrap();
    ChatTemplate::new("t", template.to_owned(), tokens)
        .and_then(|t| {
            let messages = case["messages"].as_array().unwrap();
            t.render_with(messages, case["add_generation_prompt"].as_bool().unwrap(), variables)
        })
        .map_err(|e| e.to_string())
}

/// The difference between what is rendered and what should be, if there is one. A refusal must come with the
/// same words; the words of other errors are each engine's own.
fn difference(template: &str, case: &Value) -> Option<String> {
    let found = render(template, case);
    let same = match (&found, case["text"].as_str(), case["error"].as_str()) {
        (Ok(text), Some(want), _) => text == want,
        (Err(e), None, Some(want)) => e.ends_with(want) || !template.contains("raise_exception"),
        _ => false,
    };
    let want = case.get("text").or(case.get("error"));
    (!same).then(|| {
        format!("{}\n  found  {found:?}\n  wanted {want:?}", template.chars().take(200).collect::<String>())
    })
}

#[test]
fn every_template_renders_as_jinja2_renders_it() {
    let data: Value = serde_json::from_str(include_str!("chat_cases.json")).unwrap();
    let mut differences = Vec::new();
    let mut cases = 0;
    for t in data["templates"].as_array().unwrap() {
        for case in t["cases"].as_array().unwrap() {
            differences.extend(difference(t["template"].as_str().unwrap(), case));
            cases += 1;
        }
    }
    assert!(cases > 100, "{cases} cases");
    assert!(differences.is_empty(), "{} of {cases}:\n{}", differences.len(), differences.join("\n"));
}

/// Renders a case of transformers' own: the template's file, its text, the special tokens, the messages, the arguments.
fn with_arguments(source: &str, data: &Value, case: &Value) -> Result<String, String> {
    let tokens = data["special_tokens"].as_object().unwrap().clone();
    let messages = data["conversations"][case["conversation"].as_str().unwrap()].as_array().unwrap();
    let mut variables = case["arguments"].as_object().unwrap().clone();
    let prompt = variables.remove("add_generation_prompt").unwrap().as_bool().unwrap();
    ChatTemplate::new("t", source.to_owned(), tokens)
        .and_then(|t| t.render_with(messages, prompt, &variables))
        .map_err(|e| e.to_string())
}

#[test]
fn templates_of_this_family_render_as_transformers_renders_them() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/templates");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let data: Value = serde_json::from_str(&read("templates.json")).unwrap();
    let (mut differences, mut refused, cases) = (Vec::new(), 0, data["cases"].as_array().unwrap());
    for case in cases {
        let found = with_arguments(&read(case["template"].as_str().unwrap()), &data, case);
        let same = match (&found, case["text"].as_str(), case["error"].as_str()) {
            (Ok(text), Some(want), _) => text == want,
            // the template's own words are the same, those of the engines are not
            (Err(e), None, Some(want)) => e.ends_with(want) && e.starts_with("t: chat template line "),
            _ => false,
        };
        refused += u32::from(found.is_err());
        if !same {
            let want = case.get("text").or(case.get("error"));
            let place = format!("{} {} {}", case["template"], case["conversation"], case["arguments"]);
            differences.push(format!("{place:.300}\n  found  {found:?}\n  wanted {want:?}"));
        }
    }
    assert!(cases.len() > 150 && refused > 5, "{} cases, {refused} refused", cases.len());
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), cases.len(), differences.join("\n"));
}
