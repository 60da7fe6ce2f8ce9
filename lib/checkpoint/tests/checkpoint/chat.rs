//! Chat templates: what transformers adds to Jinja, how refusals read, where templates are found. Whether
//! renders are Jinja2's, `rendered.rs` asks.

use cute_checkpoint::{ChatTemplate, Error};
use serde_json::{Map, Value, json};

fn template(source: &str) -> Result<ChatTemplate, Error> {
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::new("chat_template.jinja", source.to_owned(), tokens.as_object().unwrap().clone())
}

/// Renders with one user message and the variable `x`.
fn check(source: &str, x: Value, expect: &str) {
    let messages = [json!({"role": "user", "content": "a <b> & \"c\""})];
    let variables: Map<String, Value> = [("x".to_owned(), x)].into_iter().collect();
    let found = match template(source).and_then(|t| t.render_with(&messages, true, &variables)) {
        Ok(text) => text,
        Err(e) => e.to_string(),
    };
    assert_eq!(found, expect, "{source}");
}

#[test]
fn nothing_is_escaped_for_html() {
    check("{{ messages[0].content }}", json!(null), "a <b> & \"c\"");
    check("{{ messages[0].content | tojson }}", json!(null), r#""a <b> & \"c\"""#);
}

#[test]
fn tojson_is_pythons_json_dumps() {
    let x = json!({"b": [1, 2.0, true, null, "é\u{1f980}\u{7}\n"], "a": {}, "c": []});
    check(
        "{{ x | tojson }}",
        x.clone(),
        "{\"b\": [1, 2.0, true, null, \"é🦀\\u0007\\n\"], \"a\": {}, \"c\": []}",
    );
    check(
        "{{ x | tojson(ensure_ascii=true, sort_keys=true) }}",
        x.clone(),
        "{\"a\": {}, \"b\": [1, 2.0, true, null, \"\\u00e9\\ud83e\\udd80\\u0007\\n\"], \"c\": []}",
    );
    check(
        "{{ x | tojson(indent=2) }}",
        json!({"b": [1, {"c": 2}], "a": []}),
        "{\n  \"b\": [\n    1,\n    {\n      \"c\": 2\n    }\n  ],\n  \"a\": []\n}",
    );
    check("{{ x | tojson(separators=(',', ':')) }}", json!({"a": [1, 2]}), "{\"a\":[1,2]}");
    check(
        "{{ x | tojson }}",
        json!([1e20, 1e-7, 0.1, -5, 18446744073709551615u64]),
        "[1e+20, 1e-07, 0.1, -5, 18446744073709551615]",
    );
    check(
        "{{ y | tojson }}",
        json!(0),
        "chat_template.jinja: chat template line 1: tojson: undefined is not JSON serializable",
    );
}

#[test]
fn values_are_printed_as_python_prints_them() {
    check("{{ x }} {{ true }} {{ none }} {{ 1.0 }} {{ 1e20 }}", json!(false), "False True None 1.0 1e+20");
    check("{{ 'a' ~ x }}|{{ x | string }}", json!("b"), "ab|b");
}

#[test]
fn blocks_are_trimmed_and_one_last_newline_is_dropped() {
    check(
        "{% if true %}\n  {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\n{% endif %}\n",
        json!(0),
        "user\n",
    );
}

#[test]
fn what_templates_of_this_family_use_works() {
    check("{{ bos_token }}{{ eos_token }}", json!(0), "<s></s>");
    check(
        "{{ tools is none }} {{ documents is none }} {{ nothing is defined }}",
        json!(0),
        "True True False",
    );
    check("{{ x.split('</think>')[-1].lstrip('\\n') }}", json!("a</think>\n\nb"), "b");
    check("{{ x.startswith('<t>') and x.endswith('</t>') }}", json!("<t>1</t>"), "True");
    check("{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.role }}{% endfor %}", json!(0), "0user");
    check(
        "{%- set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
        json!(0),
        "3",
    );
    check("{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}", json!({"z": 1, "a": 2}), "z=1;a=2;");
    check("{{ x.get('k', 'none') }}|{{ x['a'] | trim }}|{{ x | length }}", json!({"a": " 1 "}), "none|1|1");
    check(
        "{% if x is string %}s{% elif x is mapping %}m{% elif x is iterable %}i{% endif %}",
        json!([1]),
        "i",
    );
    check("{% macro f(a, b='y') %}{{ a }}{{ b }}{% endmacro %}{{ f('x') }}", json!(0), "xy");
    check("{%- generation -%}  kept  {%- endgeneration -%}", json!(0), "kept");
    check(
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}",
        json!(0),
        "",
    );
}

#[test]
fn none_is_nothing_to_iterate_over_and_strings_and_dicts_are_sequences() {
    let asks = "{% if tools is iterable and tools | length > 0 %}tools{% else %}no tools{% endif %}";
    check(asks, json!(0), "no tools");
    check("{{ x is sequence }} {{ 'a' is sequence }} {{ 1 is sequence }}", json!({}), "True True False");
    check("{% set n = namespace() %}{{ n is mapping }} {{ n is iterable }}", json!(0), "False False");
    check("{{ x | e }}", json!("'<\"&"), "&#39;&lt;&#34;&amp;");
}

#[test]
fn reasoning_is_found_under_each_of_its_names_and_keys_without_a_value_are_left_out() {
    let template = template(
        "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}|{{ 'content' in messages[0] }}",
    );
    let template = template.unwrap();
    for name in ["reasoning_content", "thinking", "reasoning"] {
        let message = json!({"role": "assistant", "content": null, name: "because"});
        assert_eq!(template.render(&[message], true).unwrap(), "because|because|False");
    }
    let both = json!({"content": "x", "thinking": "t", "reasoning_content": "c"});
    assert_eq!(template.render(&[both], true).unwrap(), "c|t|True");
}

#[test]
fn a_template_that_refuses_says_so_with_its_line() {
    check(
        "{{ x }}\n{{ raise_exception('System message must come first.') }}",
        json!(0),
        "chat_template.jinja: chat template line 2: System message must come first.",
    );
    check(
        "{% if %}",
        json!(0),
        "chat_template.jinja: chat template line 1: syntax error: unexpected end of block",
    );
    check(
        "{{ strftime_now('%Q') }}",
        json!(0),
        "chat_template.jinja: chat template line 1: strftime_now: directive %Q of \"%Q\" is not known",
    );
    let year = template("{{ strftime_now('%Y') }}").unwrap().render(&[], false).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024);
}

#[test]
fn an_endless_template_runs_out_of_fuel() {
    let source = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
    let e = template(source).unwrap().render(&[], false).unwrap_err().to_string();
    assert!(e.contains("fuel"), "{e}");
}

#[test]
fn the_template_is_found_in_either_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = |value: Value| {
        let text = json!({"chat_template": value, "bos_token": {"content": "<s>"}, "eos_token": null});
        std::fs::write(dir.path().join("tokenizer_config.json"), text.to_string()).unwrap();
        ChatTemplate::open(dir.path()).map(|t| t.map(|t| t.render(&[], false).unwrap()))
    };
    assert_eq!(ChatTemplate::open(dir.path()).unwrap().map(|_| ()), None);
    assert_eq!(config(json!(null)).unwrap(), None);
    assert_eq!(config(json!("{{ bos_token }}{{ eos_token }}")).unwrap().unwrap(), "<s>");
    let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(config(list).unwrap().unwrap(), "d");
    let e = config(json!([{"name": "tool_use", "template": "t"}])).unwrap_err().to_string();
    assert!(e.contains("chat_template is a list of 1: expected"), "{e}");
    std::fs::write(dir.path().join("chat_template.jinja"), "from the file").unwrap();
    assert_eq!(config(json!("other")).unwrap().unwrap(), "from the file");
}

/// What a directory's templates make of no messages, with and without tools.
fn both(dir: &std::path::Path) -> (String, String) {
    let template = ChatTemplate::open(dir).unwrap().unwrap();
    let tools = json!({"tools": []}).as_object().unwrap().clone();
    (template.render(&[], false).unwrap(), template.render_with(&[], false, &tools).unwrap())
}

#[test]
fn of_several_templates_that_for_tools_is_taken_where_there_are_tools() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    let tools = json!({"tools": []}).as_object().unwrap().clone();
    let list = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}]);
    write("tokenizer_config.json", &json!({ "chat_template": list }).to_string());
    assert_eq!(both(dir.path()), ("d".into(), "t".into()));
    let mut template = ChatTemplate::open(dir.path()).unwrap().unwrap();
    template.choose("rag").unwrap();
    assert_eq!(template.render_with(&[], false, &tools).unwrap(), "r");
    let e = template.choose("rga").unwrap_err().to_string();
    assert!(
        e.ends_with("chat template: there is no template \"rga\": expected default or rag or tool_use"),
        "{e}"
    );
    // files of their own count instead of what the config says, all of them
    write("chat_template.jinja", "file");
    assert_eq!(both(dir.path()), ("file".into(), "file".into()));
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/tool_use.jinja", "tools");
    write("additional_chat_templates/README.md", "{% nothing %}");
    assert_eq!(both(dir.path()), ("file".into(), "tools".into()));
    write("additional_chat_templates/tool_use.jinja", "\n{{ raise_exception('no') }}");
    let template = ChatTemplate::open(dir.path()).unwrap().unwrap();
    let e = template.render_with(&[], false, &tools).unwrap_err().to_string();
    assert!(e.ends_with("templates/tool_use.jinja: chat template \"tool_use\" line 2: no"), "{e}");
}

#[test]
fn broken_sets_of_templates_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    let refused = |want: &str| {
        let e = ChatTemplate::open(dir.path()).unwrap_err().to_string();
        assert!(e.contains(want), "{e}");
    };
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/rag.jinja", "{% if %}");
    refused("no chat_template.jinja: the default among those of additional_chat_templates");
    write("chat_template.jinja", "file");
    refused("rag.jinja: chat template \"rag\" line 1: syntax error");
    std::fs::remove_dir_all(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let list = |second: &str| {
        let list = json!([{"name": "default", "template": "a"}, {"name": second, "template": "{{"}]);
        write("tokenizer_config.json", &json!({ "chat_template": list }).to_string());
    };
    list("default");
    refused("chat_template is a list with two templates \"default\": expected");
    list("tool_use");
    refused("tokenizer_config.json: chat template \"tool_use\" line 1: syntax error");
}
